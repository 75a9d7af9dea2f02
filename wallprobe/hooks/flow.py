"""What a model would say after each layer, and how many directions its states take: logit-lens entropy, effective rank, efficiency.

The logit lens applies the final norm and the unembedding to the residual after a block; after the last one it must give the logits.
Specification of the gains, B6; effective rank: Roy and Vetterli 2007.
"""

import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe import stats
from wallprobe.errors import InstrumentError
from wallprobe.hooks.efficiency import OTHERS, Unigram, efficiency, text_tokens
from wallprobe.hooks.efficiency import unigram as count_unigram
from wallprobe.hooks.gain_regimes import argmin
from wallprobe.hooks.gain_report import Subject
from wallprobe.hooks.gains import batches, gains
from wallprobe.hooks.prompt_sets import FIRST_TOKEN, PromptSet
from wallprobe.manifest import Stopwatch, provenance
from wallprobe.models import Loaded, hook_name
from wallprobe.results import Result, dataset
from wallprobe.rng import generator

TOLERANCE = 1e-4  # of the largest logit: the last row against the model's own
LEVEL = 1 << 22  # of our hooks alone
MOST = 4096  # states of which singular values are taken
CARRIED = (
    "final_mlp_gain",
    "final_mlp_gain_no_sink",
    "final_mlp_gain_no_first",
    "final_mlp_gain_last",
    "definition",
    "tokens",
    "n_params",
    "n_params_non_embedding",
    "d_model",
)
LONG_NAMES = {
    "lens_entropy": ("entropy of the lens's prediction at the last token", "nats"),
    "lens_entropy_mean": ("the same, mean over tokens that are no sinks", "nats"),
    "lens_nll": ("loss of the lens on the next token, mean over tokens that have one", "nats"),
    "lens_top1": ("share of next tokens that the lens puts first", "fraction"),
}


def residuals(
    loaded: Loaded, tokens: Int[Tensor, "batch index"]
) -> tuple[list[Float[Tensor, "batch index d_model"]], Float[Tensor, "batch index vocabulary"]]:
    """Every block's resid_post and the logits, one forward pass.

    Raises:
        InstrumentError: if a block's hook does not fire exactly once.
    """
    model, points = cast(Any, loaded.model), loaded.points
    seen: list[Tensor] = []
    placed = tokens.to(next(loaded.model.parameters()).device)
    options = {} if loaded.tokenizer is None else {"attention_mask": torch.ones_like(placed)}
    with ExitStack() as stack:
        for layer in range(loaded.n_layers):
            point = points[hook_name(layer, "resid_post")]
            point.add_hook(lambda value, hook=None: seen.append(value.detach()), level=LEVEL)
            stack.callback(point.remove_hooks, "fwd", level=LEVEL)
        stack.enter_context(torch.no_grad())
        logits = model(placed, **options)
    if len(seen) != loaded.n_layers:
        raise InstrumentError(f"{loaded.name}: {len(seen)} of {loaded.n_layers} residuals fired in one forward pass")
    return seen, logits.detach()


def lens(loaded: Loaded, residual: Float[Tensor, "batch index d_model"]) -> Float[Tensor, "batch index vocabulary"]:
    """Logits that the final norm and the unembedding make of a residual."""
    model = cast(Any, loaded.model)
    with torch.no_grad():
        return cast(Tensor, model.unembed(model.ln_final(residual)))


def flow(
    loaded: Loaded,
    prompts: PromptSet,
    *,
    unigram: str | Path | None = None,
    seed: int = 42,
    draws: int = 1000,
    on_progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Entropy, loss and rank after every layer, and the efficiency of the last MLP's gain.

    Args:
        loaded: the model.
        prompts: what it reads.
        unigram: UTF-8 text whose tokens make the unigram model that perplexity is held against; by default the other prompts.
        seed: of the bootstrap over prompts.
        draws: bootstrap resamples.
        on_progress: told (prompts done, prompts in all).

    Returns:
        Result of kind "flow", table by layer. `eta` is (ln V - loss) / gain of the last MLP, nats per unit of gain; `eta_ppl` the unigram
        model's perplexity over the model's, per unit of gain.

    Raises:
        InstrumentError: if the last row of the lens is not the model's logits, and as `gains`.
        ConfigError, UnknownNameError: as `efficiency.text_tokens`.
    """
    watch = Stopwatch()
    vocabulary = int(cast(Any, loaded.model).cfg.d_vocab)
    text = None if unigram is None else text_tokens(loaded.tokenizer, unigram)
    reference = count_unigram(prompts.tokens, vocabulary, text, OTHERS if unigram is None else Path(unigram).name)
    measured = gains(loaded, prompts, seed=seed, draws=draws)
    sinks = {(item["prompt"], item["position"]) for item in measured.manifest["sinks"]}
    columns, states, error = _read(loaded, prompts, sinks, on_progress)
    variables = _variables(columns, generator(seed, "flow", "bootstrap"), draws)
    for name, kept in (("", False), ("_no_sink", True)):
        ranks = [ranks_of(torch.cat([row[keep] if kept else row for row, keep in layer])) for layer in states]
        for place, (key, words) in enumerate((("erank", "effective rank exp(H)"), ("participation", "participation ratio"))):
            long_name = f"{words} of the centred states of all prompts{', sinks left out' if kept else ''}"
            variables[f"{key}{name}"] = (("layer",), [rank[place] for rank in ranks], "directions", long_name)
    bought = _efficiency(columns["lens_nll"][-1], measured, vocabulary, reference, seed, draws)
    summary = _summary(loaded, prompts, variables, measured, bought, error)
    summary["n_states"] = sum(len(row) for row in prompts.tokens)
    for name in ("mlp_gain_by_prompt", "mlp_gain_no_sink_by_prompt"):
        found = measured.data[name]
        variables[name] = (("layer", "prompt"), found.values, found.attrs["units"], found.attrs["long_name"])
    coords = {"layer": list(range(loaded.n_layers)), "prompt": list(prompts.texts)}
    data = dataset(coords, variables, model=loaded.name, prompts=prompts.name)
    subject = Subject.of(loaded)
    manifest = provenance(
        config={"model": loaded.name, "prompts": prompts.name, "data_hash": prompts.data_hash, "seed": seed, "draws": draws}
        | ({} if unigram is None else {"unigram": reference.source, "unigram_tokens": reference.tokens}),
        device=subject.device,
        dtype="float32",
        watch=watch,
        subject=subject.label,
        weight_hash=loaded.weight_hash,
        weight_processing=loaded.processing,
        data_hash=prompts.data_hash,
        seeds={"bootstrap": seed},
        formula="H = -sum p ln p, p = softmax(W_U Norm_f(x)); erank = exp(-sum s ln s), s = sigma^2 / sum sigma^2; "
        "eta = (ln V - loss) / F, eta_ppl = exp(unigram loss - loss) / F",
        unigram=_unigram_stamp(reference),
        first_token=FIRST_TOKEN,
        sinks=measured.manifest["sinks"],
    )
    return Result("flow", data, ("layer",), summary, manifest)


def _read(
    loaded: Loaded, prompts: PromptSet, sinks: set[tuple[int, int]], on_progress: Callable[[int, int], None] | None
) -> tuple[dict[str, Tensor], list[list[tuple[Tensor, Tensor]]], float]:
    """Per-prompt figures `[layer, prompt]`, every layer's states with which of them are no sinks, the last row's error."""
    columns = {name: torch.full((loaded.n_layers, len(prompts.tokens)), math.nan, dtype=torch.float64) for name in LONG_NAMES}
    states: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(loaded.n_layers)]
    worst, done = 0.0, 0
    for members in batches(prompts):
        tokens = torch.stack([prompts.tokens[index] for index in members])
        keep = torch.tensor([[(index, place) not in sinks for place in range(tokens.shape[1])] for index in members])
        seen, logits = residuals(loaded, tokens)
        for layer, residual in enumerate(seen):
            said = lens(loaded, residual)
            if layer + 1 == loaded.n_layers:
                worst = max(worst, _check_last(loaded, said, logits))
            for name, value in _figures(said.float().cpu(), tokens, keep).items():
                columns[name][layer, members] = value
            states[layer] += [(row, kept) for row, kept in zip(residual.cpu().double(), keep, strict=True)]
        done += len(members)
        if on_progress is not None:
            on_progress(done, len(prompts.tokens))
    return columns, states, worst


def _check_last(loaded: Loaded, said: Tensor, logits: Tensor) -> float:
    error = float((said - logits).abs().max() / logits.abs().max().clamp_min(1e-30))
    if not error <= TOLERANCE:
        raise InstrumentError(
            f"{loaded.name}: the logit lens after the last layer differs from the logits by {error:.1e} of the largest (at most "
            f"{TOLERANCE:.0e}); something stands between the final norm, the unembedding and the logits"
        )
    return error


def _figures(
    logits: Float[Tensor, "batch index vocabulary"], tokens: Int[Tensor, "batch index"], keep: Tensor
) -> dict[str, Float[Tensor, " batch"]]:
    log_p = logits.log_softmax(dim=-1)
    entropy = -(log_p.exp() * log_p).sum(dim=-1).double()
    found = {"lens_entropy": entropy[:, -1], "lens_entropy_mean": (entropy * keep).sum(dim=-1) / keep.sum(dim=-1)}
    if tokens.shape[1] > 1:
        following = tokens[:, 1:, None]
        found["lens_nll"] = -log_p[:, :-1].gather(-1, following)[..., 0].double().mean(dim=-1)
        found["lens_top1"] = (logits[:, :-1].argmax(dim=-1) == following[..., 0]).double().mean(dim=-1)
    return found


def ranks_of(states: Float[Tensor, "state d_model"]) -> tuple[float, float]:
    """Effective rank and participation ratio of centred states; the first 4,096 of them. NaN below two states."""
    if len(states) < 2:
        return math.nan, math.nan
    centred = states[:MOST] - states[:MOST].mean(dim=0)
    share = torch.linalg.svdvals(centred).square()
    share = share / share.sum()
    entropy = -(share * share.clamp_min(1e-300).log()).sum()
    return float(entropy.exp()), float(1 / share.square().sum())


def _variables(columns: dict[str, Tensor], rng: torch.Generator, draws: int) -> dict[str, Any]:
    weights = stats.resamples(columns["lens_entropy"].shape[-1], rng, draws)
    variables: dict[str, Any] = {}
    for name, (long_name, unit) in LONG_NAMES.items():
        variables[name] = (("layer",), columns[name].nanmean(dim=-1).numpy(), unit, long_name)
        low, high = stats.interval(stats.masked_means(weights, columns[name].T))
        if columns[name].shape[-1] < 2:
            low, high = low * math.nan, high * math.nan
        variables[f"{name}_low"] = (("layer",), low.numpy(), unit, f"{long_name}, 2.5 % bootstrap bound over prompts")
        variables[f"{name}_high"] = (("layer",), high.numpy(), unit, f"{long_name}, 97.5 % bootstrap bound over prompts")
    return variables


def _efficiency(
    nll: Float[Tensor, " prompt"], measured: Result, vocabulary: int, reference: Unigram, seed: int, draws: int
) -> dict[str, Any]:
    """Both efficiencies, all tokens and without sinks, on the gains' own prompts."""
    gains_by = {suffix: torch.from_numpy(measured.data[f"mlp_gain{suffix}_by_prompt"].values[-1]) for suffix in ("", "_no_sink")}
    finals = {suffix: float(measured.summary[f"final_mlp_gain{suffix}"]) for suffix in gains_by}
    weights = stats.resamples(len(nll), generator(seed, "flow", "efficiency"), draws)
    return efficiency(nll, gains_by, finals, vocabulary, reference, weights)


def _unigram_stamp(reference: Unigram) -> str:
    told = f"counted on {reference.source} ({reference.tokens} tokens, {reference.types} types), Witten-Bell"
    return f"{told}; {reference.seen:.0%} of the scored tokens known" + (f"; {reference.reason}" if reference.reason else "")


def _summary(
    loaded: Loaded, prompts: PromptSet, variables: dict[str, Any], measured: Result, bought: dict[str, Any], error: float
) -> dict[str, Any]:
    entropy, rank = [float(value) for value in variables["lens_entropy"][1]], [float(value) for value in variables["erank_no_sink"][1]]
    least, spread, net = argmin(entropy), argmin(rank), measured.summary["l_star"]
    told: dict[str, Any] = {
        "model": loaded.name,
        "n_layers": loaded.n_layers,
        "prompts": prompts.name,
        "n_prompts": len(prompts.tokens),
        "lens_entropy_first": entropy[0],
        "lens_entropy_min": math.nan if least is None else entropy[least],
        "lens_entropy_last": entropy[-1],
        "l_star_argmin_lens_entropy": least,
        "l_star_argmin_erank": spread,
        "l_star_argmin_net": net,
        "bottleneck_distance": math.nan if least is None or net is None else abs(least - net),
        "erank_min_no_sink": math.nan if spread is None else rank[spread],
        "lens_top1_first": float(variables["lens_top1"][1][0]),
        "lens_top1_last": float(variables["lens_top1"][1][-1]),
        **bought,
        **{key: measured.summary[key] for key in CARRIED},
        "lens_error": error,
    }
    shape = "rises again at the end" if entropy[-1] > told["lens_entropy_min"] else "is least at the end"
    told["finding"] = (
        f"The lens's entropy goes from {entropy[0]:.2f} nats after layer 0 to {told['lens_entropy_min']:.2f} after layer {least} "
        f"and {shape} ({entropy[-1]:.2f}); the bottleneck of the gains is layer {net}. Per unit of the last MLP's gain the model gains "
        f"{told['eta']:.3g} nats over a uniform guess."
    )
    return told
