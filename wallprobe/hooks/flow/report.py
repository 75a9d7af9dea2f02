"""The report on what a model would say after each layer, whether it was in memory or went by block by block."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from wallprobe import stats
from wallprobe.findings import Bounds, side
from wallprobe.hooks.attach.prompt_sets import FIRST_TOKEN, PromptSet
from wallprobe.hooks.gains.efficiency import Unigram, efficiency
from wallprobe.hooks.gains.regimes import argmin
from wallprobe.hooks.gains.report import Subject
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset

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
POSITIONS = ("", "_no_sink")


@dataclass
class Read:
    """What was read of a model.

    Attributes:
        subject: the model.
        prompts: what it read.
        measured: its gains on them.
        columns: a key of `LONG_NAMES` -> `[layer, prompt]`.
        ranks: one of `POSITIONS` -> effective rank and participation ratio of every layer.
        ranked: states that these are of, at most.
        vocabulary: its size.
        reference: the unigram model; its text where one was given.
        text: whether one was.
        lens_error: of the lens's last row against the logits, relative to the largest; NaN where there were no whole logits.
    """

    subject: Subject
    prompts: PromptSet
    measured: Result
    columns: dict[str, Tensor]
    ranks: dict[str, list[tuple[float, float]]]
    ranked: int
    vocabulary: int
    reference: Unigram
    text: bool
    lens_error: float


def report(read: Read, seed: int, draws: int, watch: Stopwatch) -> Result:
    """The Result of kind "flow"; see `lens.flow`."""
    prompts, subject, reference = read.prompts, read.subject, read.reference
    variables = _variables(read.columns, generator(seed, "flow", "bootstrap"), draws)
    for name, found in read.ranks.items():
        for place, (key, words) in enumerate((("erank", "effective rank exp(H)"), ("participation", "participation ratio"))):
            long_name = f"{words} of the centred states of all prompts{', sinks left out' if name else ''}"
            variables[f"{key}{name}"] = (("layer",), [rank[place] for rank in found], "directions", long_name)
    bought = _efficiency(read.columns["lens_nll"][-1], read.measured, read.vocabulary, reference, seed, draws)
    summary = _summary(read, variables, bought, _rise(read.columns["lens_entropy"], seed, draws))
    for name in ("mlp_gain_by_prompt", "mlp_gain_no_sink_by_prompt"):
        gain = read.measured.data[name]
        variables[name] = (("layer", "prompt"), gain.values, gain.attrs["units"], gain.attrs["long_name"])
    coords = {"layer": list(range(subject.n_layers)), "prompt": list(prompts.texts)}
    manifest = provenance(
        config={"model": subject.name, "prompts": prompts.name, "data_hash": prompts.data_hash, "seed": seed, "draws": draws}
        | ({"unigram": reference.source, "unigram_tokens": reference.tokens} if read.text else {}),
        device=subject.device,
        dtype="float32",
        watch=watch,
        subject=subject.label,
        weight_hash=subject.weight_hash,
        weight_processing=subject.processing,
        data_hash=prompts.data_hash,
        seeds={"bootstrap": seed},
        formula="H = -sum p ln p, p = softmax(W_U Norm_f(x)); erank = exp(-sum s ln s), s = sigma^2 / sum sigma^2; "
        "eta = (ln V - loss) / F, eta_ppl = exp(unigram loss - loss) / F",
        unigram=_unigram_stamp(reference),
        first_token=FIRST_TOKEN,
        sinks=read.measured.manifest["sinks"],
        streamed=subject.streamed,
    )
    return Result("flow", dataset(coords, variables, model=subject.name, prompts=prompts.name), ("layer",), summary, manifest)


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


def _rise(entropy: Float[Tensor, "layer prompt"], seed: int, draws: int) -> Bounds | None:
    """Bounds, over prompts, of how much the last layer's entropy lies above the least; None where there are none."""
    least = argmin(entropy.nanmean(dim=-1).tolist())
    if least is None or entropy.shape[-1] < 2:
        return None
    weights = stats.resamples(entropy.shape[-1], generator(seed, "flow", "rise"), draws)
    low, high = stats.interval(stats.masked_means(weights, (entropy[-1] - entropy[least])[:, None])[:, 0])
    return float(low), float(high)


def ending(entropy: Sequence[float], least: int | None, rise: Bounds | None) -> str:
    """Whether the entropy, in nats by layer, ends above its least."""
    if least is None or least == len(entropy) - 1:
        return "is least at the end"
    told = side(entropy[-1], entropy[least], rise)
    return "rises again at the end" if told == "above" else "ends no higher beyond its interval"


def _summary(read: Read, variables: dict[str, Any], bought: dict[str, Any], rise: Bounds | None) -> dict[str, Any]:
    entropy, rank = [float(value) for value in variables["lens_entropy"][1]], [float(value) for value in variables["erank_no_sink"][1]]
    least, spread, net = argmin(entropy), argmin(rank), read.measured.summary["l_star"]
    told: dict[str, Any] = {
        "model": read.subject.name,
        "n_layers": read.subject.n_layers,
        "prompts": read.prompts.name,
        "n_prompts": len(read.prompts.tokens),
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
        **{key: read.measured.summary[key] for key in CARRIED},
        "lens_error": read.lens_error,
        "n_states": sum(len(row) for row in read.prompts.tokens),
        "n_states_ranked": read.ranked,
        "streamed": read.subject.streamed,
        "peak_gib": read.subject.peak_gib,
    }
    shape = ending(entropy, least, rise)
    told["finding"] = (
        f"The lens's entropy goes from {entropy[0]:.2f} nats after layer 0 to {told['lens_entropy_min']:.2f} after layer {least} "
        f"and {shape} ({entropy[-1]:.2f}); the bottleneck of the gains is layer {net}. Per unit of the last MLP's gain the model gains "
        f"{told['eta']:.3g} nats over a uniform guess."
    )
    return told
