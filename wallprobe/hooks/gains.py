"""Layer gains: how loud each sub-layer is against what it reads, on raw weights (seed 003; specification of the gains, B1 to B3, B7).

One forward pass a batch of equal-length prompts; nothing but norms leaves the hooks, so memory does not grow with width or depth.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe import stats
from wallprobe.errors import InstrumentError
from wallprobe.hooks import gain_math
from wallprobe.hooks.gain_math import Norms
from wallprobe.hooks.prompt_sets import FIRST_TOKEN, PromptSet
from wallprobe.manifest import Stopwatch, provenance
from wallprobe.models import Loaded, hook_name, on_input, parameter_counts
from wallprobe.results import Result, dataset
from wallprobe.rng import generator

IDENTITY_TOLERANCE = 1e-4  # relative; fp32 sums of two terms stay below 1e-6
FINAL_TOLERANCE = 1e-6
MAX_TOKENS = 1024  # a batch; bounds the logits some models make whether asked or not
SITES = ("resid_pre", "attn_out", "mlp_out", "resid_post")
HOOK_LEVEL = 1 << 20  # ours alone, so that removing them leaves others' hooks in place
EXPECTED = frozenset({*SITES, "attn_in", "mlp_in"})
DEFAULT_DEFINITION = "sublayer"


class _Tap:
    """Collects one forward pass: the current block's vectors until its resid_post arrives, then only their norms."""

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self.rows: list[dict[str, Tensor]] = []
        self.live: dict[str, Tensor] = {}
        self.last: Tensor | None = None
        self.final_error: float | None = None

    def see(self, layer: int, site: str, value: Tensor) -> None:
        """A hook fired."""
        if layer != len(self.rows) or site in self.live:
            raise InstrumentError(
                f"{self.loaded.name}: {site} of layer {layer} fired out of turn or twice in one forward pass; no gain reported"
            )
        if value.ndim != 3 or value.shape[-1] != self.loaded.d_model:
            raise InstrumentError(
                f"{self.loaded.name}: {site} of layer {layer} has shape {tuple(value.shape)}, wanted batch x index x {self.loaded.d_model}"
            )
        self.live[site] = value
        if site == "resid_post":
            missing = sorted(EXPECTED - self.live.keys())
            if missing:
                raise InstrumentError(
                    f"{self.loaded.name}: {', '.join(missing)} of layer {layer} did not fire; its blocks are laid out differently"
                )
            self.rows.append(_block_norms(self.live, self.loaded.parallel))
            self.live, self.last = {}, value

    def see_final(self, value: Tensor) -> None:
        """The final norm was called: its input must be the last block's resid_post (B7: hidden_states[-1] is not)."""
        if self.final_error is not None or self.last is None or self.last.shape != value.shape:
            raise InstrumentError(f"{self.loaded.name}: the final norm fired twice, or not after the last block; no gain reported")
        last, given = self.last.cpu().double(), value.detach().cpu().double()
        self.final_error = float(((last - given).norm(dim=-1) / given.norm(dim=-1).clamp_min(1e-30)).max())
        if not self.final_error <= FINAL_TOLERANCE:
            raise InstrumentError(
                f"{self.loaded.name}: the last block's resid_post differs from the final norm's input by {self.final_error:.1e} of it; "
                "it is not the true residual stream, no gain reported"
            )


def _block_norms(live: dict[str, Tensor], parallel: bool) -> dict[str, Tensor]:
    """One block's norms `[batch, index]`, from fp32 vectors lifted to fp64 on the CPU (mps has no fp64)."""
    pre, attn_in, attn, mlp_in, mlp, post = (
        live[site].detach().cpu().double() for site in ("resid_pre", "attn_in", "attn_out", "mlp_in", "mlp_out", "resid_post")
    )
    attn_sum = pre + attn
    read = pre if parallel else attn_sum
    norm = {"resid_pre": pre, "attn_in": attn_in, "attn_out": attn, "attn_sum": attn_sum, "mlp_read": read}
    norm |= {"mlp_in": mlp_in, "mlp_out": mlp, "mlp_sum": read + mlp, "resid_post": post}
    found = {name: vector.norm(dim=-1) for name, vector in norm.items()}
    found["attn_mlp_cosine"] = torch.cosine_similarity(attn, mlp, dim=-1)
    found["mlp_resid_cosine"] = torch.cosine_similarity(mlp, read, dim=-1)
    # Relative to the largest term: where an MLP erases a massive activation, fp32 rounding is that term's, not the small sum's.
    largest = torch.stack([found[name] for name in ("resid_pre", "attn_out", "mlp_out", "resid_post")]).amax(dim=0)
    found["identity_error"] = (attn_sum + mlp - post).norm(dim=-1) / largest.clamp_min(1e-30)
    return found


def measure_norms(loaded: Loaded, tokens: Int[Tensor, "batch index"]) -> list[Norms]:
    """Every norm the gains are made of, one forward pass.

    Args:
        loaded: the model.
        tokens: prompts of one length, no padding.

    Returns:
        One `Norms` a prompt, fp64, on the CPU.

    Raises:
        InstrumentError: if a hook did not fire exactly once, if resid_pre + attn_out + mlp_out differs from resid_post by more than
            `IDENTITY_TOLERANCE` of the largest norm, or if the last resid_post is not what the final norm reads.
    """
    model, tap = cast(Any, loaded.model), _Tap(loaded)

    def hook(layer: int, site: str) -> Callable[..., None]:
        return lambda value, hook=None: tap.see(layer, site, value)

    # Looked up once: the bridge's own `hooks` resolves every alias of the model again for each hook it adds (13 ms each on 30 layers).
    points = model.hook_dict
    device = next(loaded.model.parameters()).device
    placed = tokens.to(device)
    # A stated mask: without it some models take a token that equals the padding id for padding.
    options = {} if loaded.tokenizer is None else {"attention_mask": torch.ones_like(placed)}
    with ExitStack() as stack:
        for layer in range(loaded.n_layers):
            for branch in ("attn", "mlp"):
                stack.callback(on_input(loaded, f"blocks.{layer}.{branch}", hook(layer, f"{branch}_in")))
            for site in SITES:
                point = points.get(hook_name(layer, site))
                if point is None:
                    raise InstrumentError(
                        f"{loaded.name} has no {hook_name(layer, site)}; its blocks are laid out differently, no gain reported"
                    )
                point.add_hook(hook(layer, site), level=HOOK_LEVEL)
                stack.callback(point.remove_hooks, "fwd", level=HOOK_LEVEL)
        stack.callback(on_input(loaded, "ln_final", tap.see_final))
        stack.enter_context(torch.inference_mode())
        model(placed, return_type=None, **options)
    if len(tap.rows) != loaded.n_layers or tap.final_error is None:
        raise InstrumentError(
            f"{loaded.name}: {len(tap.rows)} of {loaded.n_layers} blocks fired, final norm {tap.final_error}; no gain reported"
        )
    stacked = {name: torch.stack([row[name] for row in tap.rows], dim=1) for name in tap.rows[0]}
    _check_identity(loaded, stacked["identity_error"])
    return [Norms(**{field.name: stacked[field.name][row] for field in fields(Norms)}) for row in range(len(tokens))]


def _check_identity(loaded: Loaded, error: Float[Tensor, "batch layer index"]) -> None:
    worst = error.amax(dim=(0, 2))
    if not bool((worst <= IDENTITY_TOLERANCE).all()):
        layer = int(worst.nan_to_num(math.inf).argmax())
        raise InstrumentError(
            f"{loaded.name}: resid_pre + attn_out + mlp_out misses resid_post by {float(worst[layer]):.1e} of the norm at layer {layer} "
            f"(at most {IDENTITY_TOLERANCE:.0e}); a hook does not carry what is added to the residual, no gain reported"
        )


def _batches(prompts: PromptSet) -> Iterator[list[int]]:
    """Indices of prompts of one length, at most `MAX_TOKENS` tokens together."""
    lengths: dict[int, list[int]] = {}
    for index, row in enumerate(prompts.tokens):
        lengths.setdefault(len(row), []).append(index)
    for length, members in sorted(lengths.items()):
        size = max(1, MAX_TOKENS // length)
        yield from (members[start : start + size] for start in range(0, len(members), size))


def _measure_all(loaded: Loaded, prompts: PromptSet, on_progress: Callable[[int, int], None] | None) -> list[Norms]:
    found: dict[int, Norms] = {}
    for members in _batches(prompts):
        norms = measure_norms(loaded, torch.stack([prompts.tokens[index] for index in members]))
        found |= dict(zip(members, norms, strict=True))
        if on_progress is not None:
            on_progress(len(found), len(prompts.tokens))
    return [found[index] for index in range(len(prompts.tokens))]


def gains(
    loaded: Loaded,
    prompts: PromptSet,
    definition: str = DEFAULT_DEFINITION,
    *,
    seed: int = 42,
    draws: int = 1000,
    on_progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Gain of every attention and MLP sub-layer, with and without attention-sink tokens.

    G_attn(l) = mean_t |A_l| / mean_t |LN1(x_l)| and G_mlp(l) = mean_t |M_l| / mean_t |LN2(x_l)| per prompt, then the mean over prompts:
    definition `sublayer`, the seed's, and the default so that its figures are reproduced. It is no property of the function computed
    (scaling a norm up and the weights behind it down changes it): use `sublayer_unit` across model families. Others:
    `gain_math.DEFINITIONS`. Source: seed 003; specification of the gains, B1 and B2.

    Args:
        loaded: the model, raw weights, fp32.
        prompts: see `prompt_sets.prompt_set`.
        definition: a key of `gain_math.DEFINITIONS`.
        seed: of the bootstrap over prompts.
        draws: bootstrap resamples.
        on_progress: told (prompts done, prompts in all).

    Returns:
        Result of kind "gains", table by layer; gains are ratios without unit. `*_no_sink` leaves out tokens whose residual is above
        10 times the prompt's median at any layer.

    Raises:
        UnknownNameError: for an unknown definition.
        InstrumentError: as `measure_norms`.
    """
    watch, chosen = Stopwatch(), gain_math.get_definition(definition)
    norms = _measure_all(loaded, prompts, on_progress)
    columns = _columns(norms, chosen, loaded.d_model)
    variables = _variables(columns, generator(seed, "gains", "bootstrap"), draws)
    found = _sink_records(norms, prompts)
    summary = _summary(loaded, prompts, chosen, variables, columns, found)
    coords = {"layer": list(range(loaded.n_layers)), "prompt": list(prompts.texts)}
    data = dataset(coords, variables, model=loaded.name, definition=chosen.name, tokens="ratio_of_means", prompts=prompts.name)
    manifest = _manifest(loaded, prompts, chosen, seed, draws, found, watch)
    return Result("gains", data, ("layer",), summary, manifest)


def _manifest(
    loaded: Loaded,
    prompts: PromptSet,
    chosen: gain_math.Definition,
    seed: int,
    draws: int,
    sinks: list[dict[str, Any]],
    watch: Stopwatch,
) -> dict[str, Any]:
    config = {"model": loaded.name, "definition": chosen.name, "prompts": prompts.name, "data_hash": prompts.data_hash}
    return provenance(
        config=config | {"seed": seed, "draws": draws},
        device=str(next(loaded.model.parameters()).device),
        dtype="float32",
        watch=watch,
        subject=Path(loaded.name).name if loaded.kind in ("folder", "gguf") else loaded.name,
        weight_hash=loaded.weight_hash,
        weight_processing="none",
        data_hash=prompts.data_hash,
        seeds={"bootstrap": seed} | ({} if prompts.seed is None else {"sequences": prompts.seed}),
        formula=chosen.formula,
        reduction="ratio of token means, then mean over prompts; norms accumulated in float64",
        positions="all, and no_sink: without tokens above 10 x the prompt's median residual norm at any layer",
        first_token=FIRST_TOKEN,
        parallel_blocks=loaded.parallel,
        sinks=sinks,
    )


def _columns(norms: list[Norms], chosen: gain_math.Definition, d_model: int) -> dict[str, Tensor]:
    """Per-prompt figures `[layer, prompt]`."""
    rows: list[dict[str, Tensor]] = []
    for one in norms:
        terms, sink = chosen.terms(one, d_model), gain_math.sinks(one)
        every = torch.ones_like(sink)
        row = {
            "attn_gain": gain_math.ratio_of_means(terms.attn_over, terms.attn_under, every),
            "mlp_gain": gain_math.ratio_of_means(terms.mlp_over, terms.mlp_under, every),
            "attn_gain_no_sink": gain_math.ratio_of_means(terms.attn_over, terms.attn_under, ~sink),
            "mlp_gain_no_sink": gain_math.ratio_of_means(terms.mlp_over, terms.mlp_under, ~sink),
            "net_block": gain_math.ratio_of_means(one.resid_post, one.resid_pre, every),
            "attn_sink_share": gain_math.share(terms.attn_over, sink),
            "mlp_sink_share": gain_math.share(terms.mlp_over, sink),
            "mlp_resid_cosine_sink": one.mlp_resid_cosine[:, sink].mean(dim=-1),
            "identity_error": one.identity_error.amax(dim=-1),
        }
        means = {
            "resid_pre_norm": one.resid_pre,
            "resid_post_norm": one.resid_post,
            "attn_out_norm": one.attn_out,
            "mlp_out_norm": one.mlp_out,
            "ln1_norm": one.attn_in,
            "ln2_norm": one.mlp_in,
            "attn_mlp_cosine": one.attn_mlp_cosine,
        }
        rows.append(row | {name: value.mean(dim=-1) for name, value in means.items()})
    return {name: torch.stack([row[name] for row in rows], dim=-1) for name in rows[0]}


LONG_NAMES = {
    "attn_gain": "gain of attention, all positions",
    "mlp_gain": "gain of the MLP, all positions",
    "attn_gain_no_sink": "gain of attention without sink tokens",
    "mlp_gain_no_sink": "gain of the MLP without sink tokens",
    "net_block": "norm after the block over norm before it",
    "attn_sink_share": "sink tokens' share of attention's numerator",
    "mlp_sink_share": "sink tokens' share of the MLP's numerator",
    "mlp_resid_cosine_sink": "cosine between MLP output and residual at sink tokens (near -1: erased)",
    "resid_pre_norm": "norm of the residual before the block",
    "resid_post_norm": "norm of the residual after the block",
    "attn_out_norm": "norm of attention's output",
    "mlp_out_norm": "norm of the MLP's output",
    "ln1_norm": "norm of what the attention module is given",
    "ln2_norm": "norm of what the MLP module is given",
    "attn_mlp_cosine": "cosine between attention's and the MLP's output",
}
GAINS = ("attn_gain", "mlp_gain", "attn_gain_no_sink", "mlp_gain_no_sink")


def _variables(columns: dict[str, Tensor], rng: torch.Generator, draws: int) -> dict[str, Any]:
    """The Result's variables: means over prompts with intervals, and the gains of each prompt."""
    variables: dict[str, Any] = {}
    weights = stats.resamples(columns["attn_gain"].shape[-1], rng, draws)
    for name, long_name in LONG_NAMES.items():
        known = columns[name][:, ~columns[name].isnan().any(dim=0)]
        unit = "residual units" if name.endswith("_norm") else "1"
        variables[name] = (("layer",), known.mean(dim=-1).numpy(), unit, f"{long_name}, mean over prompts")
        if name in GAINS:
            low, high = stats.interval(stats.masked_means(weights, columns[name].T))
            if known.shape[-1] < 2:  # one prompt has no spread to resample
                low, high = low * math.nan, high * math.nan
            variables[f"{name}_low"] = (("layer",), low.numpy(), unit, f"{long_name}, 2.5 % bootstrap bound over prompts")
            variables[f"{name}_high"] = (("layer",), high.numpy(), unit, f"{long_name}, 97.5 % bootstrap bound over prompts")
            variables[f"{name}_by_prompt"] = (("layer", "prompt"), columns[name].numpy(), unit, f"{long_name}, each prompt")
    product = variables["attn_gain"][1] * variables["mlp_gain"][1]
    variables["net_product"] = (("layer",), product, "1", "attention gain x MLP gain (the seed's net; the gain of no map)")
    worst = columns["identity_error"].amax(dim=-1).numpy()
    variables["identity_error"] = (("layer",), worst, "1", "largest |x + A + M - x'| over the largest of their norms")
    return variables


def _sink_records(norms: list[Norms], prompts: PromptSet) -> list[dict[str, Any]]:
    """Every sink token: prompt, position, token, and its peak as a multiple of the median."""
    records = []
    for number, one in enumerate(norms):
        peak = gain_math.times_median(one)
        for position in gain_math.sinks(one).nonzero().flatten().tolist():
            token, times = prompts.pieces[number][position], round(float(peak[position]), 1)
            records.append({"prompt": number, "position": position, "token": token, "times_median": times})
    return records


def _sink_text(records: list[dict[str, Any]], shown: int = 8) -> str:
    parts = [
        f"prompt {item['prompt']} position {item['position']} {item['token']!r} ({item['times_median']:.0f}x)" for item in records[:shown]
    ]
    more = f"; and {len(records) - shown} more" if len(records) > shown else ""
    return "; ".join(parts) + more if parts else "none"


def _summary(
    loaded: Loaded,
    prompts: PromptSet,
    chosen: gain_math.Definition,
    variables: dict[str, Any],
    columns: dict[str, Tensor],
    sinks: list[dict[str, Any]],
) -> dict[str, Any]:
    def last(name: str) -> float:
        return float(variables[name][1][-1])

    n_params, inner = parameter_counts(loaded)
    count = {name: gain_math.contracting(torch.as_tensor(variables[name][1])) for name in GAINS}
    summary: dict[str, Any] = {
        "model": loaded.name,
        "definition": chosen.name,
        "tokens": "ratio_of_means",
        "n_layers": loaded.n_layers,
        "d_model": loaded.d_model,
        "n_params": n_params,
        "n_params_non_embedding": inner,
        "attn_contracting": count["attn_gain"],
        "mlp_contracting": count["mlp_gain"],
        "final_mlp_gain": last("mlp_gain"),
        "final_mlp_gain_low": last("mlp_gain_low"),
        "final_mlp_gain_high": last("mlp_gain_high"),
        "attn_contracting_no_sink": count["attn_gain_no_sink"],
        "mlp_contracting_no_sink": count["mlp_gain_no_sink"],
        "final_mlp_gain_no_sink": last("mlp_gain_no_sink"),
        "final_mlp_sink_share": last("mlp_sink_share"),
        "residual_identity_error": float(columns["identity_error"].max()),
        "prompts": prompts.name,
        "n_prompts": len(prompts.tokens),
        "n_tokens": sum(len(row) for row in prompts.tokens),
        "n_sinks": len(sinks),
        "sinks": _sink_text(sinks),
    }
    return summary | {"finding": _finding(summary, chosen)}


def _finding(summary: dict[str, Any], chosen: gain_math.Definition) -> str:
    """One plain sentence."""
    layers, final, clean = summary["n_layers"], summary["final_mlp_gain"], summary["final_mlp_gain_no_sink"]
    attn, mlp = (str(summary[f"{branch}_contracting"]).partition("/")[0] for branch in ("attn", "mlp"))
    start = (
        f"Held against {chosen.against} ({chosen.name}), attention stays below 1 in {attn} of {layers} layers and the MLP in {mlp}; "
        f"the last MLP's gain is {final:.3g}"
    )
    if not summary["n_sinks"]:
        return f"{start}, and no token is a sink that could carry it."
    if math.isnan(clean):
        return f"{start}, but every token counts as a sink, so nothing is left to compare it with."
    share = summary["final_mlp_sink_share"]
    return f"{start}, {clean:.3g} without the {summary['n_sinks']} sink tokens, which carry {share:.0%} of its output norm."
