"""From every prompt's norms to a Result of kind "gains": figures by layer with intervals over prompts, sinks by name, a flat summary."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wallprobe import stats
from wallprobe.findings import difference, side
from wallprobe.hooks.attach.prompt_sets import FIRST_TOKEN, PromptSet
from wallprobe.hooks.gains import definitions
from wallprobe.hooks.gains.definitions import POSITIONS, Definition, Norms, Reduction, Terms
from wallprobe.hooks.gains.regimes import L_STAR, argmin, regime_of
from wallprobe.models import Loaded
from wallprobe.models.sizes import count_hooked
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch, peak_memory_mib, provenance
from wallprobe.store.results import Result, dataset

BRANCHES = {"attn": "attention", "mlp": "the MLP"}
SUFFIXES = {name: "" if name == "all" else f"_{name}" for name in POSITIONS}
GAINS = tuple(f"{branch}_gain{suffix}" for suffix in SUFFIXES.values() for branch in BRANCHES)
NETS = tuple(f"net_{kind}{suffix}" for kind in ("block", "sum") for suffix in ("", "_no_sink"))
LONG_NAMES = {
    **{
        f"{branch}_gain{suffix}": f"gain of {words}, {POSITIONS[name]}"
        for name, suffix in SUFFIXES.items()
        for branch, words in BRANCHES.items()
    },
    "net_block": "norm after the block over norm before it",
    "net_block_no_sink": "the same without sink tokens",
    "net_sum": "|A + M| over the norm of what attention is given",
    "net_sum_no_sink": "the same without sink tokens",
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


@dataclass(frozen=True)
class Settings:
    """How gains are made of norms; `make` checks the names."""

    definition: Definition
    tokens: str
    positions: str
    seed: int
    draws: int

    @classmethod
    def make(cls, definition: str, tokens: str, positions: str, seed: int = 42, draws: int = 1000) -> "Settings":
        """From names.

        Raises:
            UnknownNameError: for an unknown definition, reduction or choice of positions.
        """
        definitions.get_reduction(tokens)
        definitions.get_positions(positions)
        return cls(definitions.get_definition(definition), tokens, positions, seed, draws)

    @property
    def reduction(self) -> Reduction:
        """The function of that name."""
        return definitions.get_reduction(self.tokens)[1]


@dataclass(frozen=True)
class Subject:
    """The model as a report names it.

    Attributes:
        name, kind, n_layers, d_model, weight_hash, parallel: as in `Loaded`.
        n_params, n_params_non_embedding: its size.
        device: where it ran.
        processing: of the weights: "none", or what was done to them.
        streamed: whether its blocks were read one at a time.
        peak_gib: peak anonymous memory where it was watched, else None.
    """

    name: str
    kind: str
    n_layers: int
    d_model: int
    weight_hash: str | None
    parallel: bool
    n_params: int
    n_params_non_embedding: int
    device: str = "cpu"
    processing: str = "none"
    streamed: bool = False
    peak_gib: float | None = None

    @classmethod
    def of(cls, loaded: Loaded) -> "Subject":
        """A model in memory."""
        n_params, inner = count_hooked(loaded.model, loaded.kind != "run")
        device = str(next(loaded.model.parameters()).device)
        shape = (loaded.name, loaded.kind, loaded.n_layers, loaded.d_model, loaded.weight_hash, loaded.parallel)
        return cls(*shape, n_params, inner, device, loaded.processing)

    @property
    def label(self) -> str:
        """Its name without folders."""
        return Path(self.name).name if self.kind in ("folder", "gguf") else self.name


def report(subject: Subject, prompts: PromptSet, settings: Settings, norms: list[Norms], terms: list[Terms], watch: Stopwatch) -> Result:
    """The Result.

    Args:
        subject: the model.
        prompts: what it read.
        settings: how gains are made.
        norms, terms: one a prompt, in order.
        watch: started with the work.
    """
    columns = prompt_columns(norms, terms, settings)
    variables = _variables(columns, generator(settings.seed, "gains", "bootstrap"), settings.draws)
    found = sink_records(norms, prompts)
    summary = _summary(subject, prompts, settings, variables, columns, found)
    coords = {"layer": list(range(subject.n_layers)), "prompt": list(prompts.texts)}
    chosen = settings.definition
    data = dataset(
        coords,
        variables,
        model=subject.name,
        definition=chosen.name,
        tokens=settings.tokens,
        positions=settings.positions,
        prompts=prompts.name,
    )
    return Result(
        "gains", data, ("layer",), summary, _manifest(subject, prompts, settings, found, watch) | {"peaks": _peaks(norms, prompts)}
    )


def _manifest(subject: Subject, prompts: PromptSet, settings: Settings, sinks: list[dict[str, Any]], watch: Stopwatch) -> dict[str, Any]:
    chosen = settings.definition
    config = {"model": subject.name, "definition": chosen.name, "prompts": prompts.name, "data_hash": prompts.data_hash}
    config |= {"tokens": settings.tokens, "positions": settings.positions, "processing": subject.processing}
    return provenance(
        config=config | {"seed": settings.seed, "draws": settings.draws},
        device=subject.device,
        dtype="float32",
        watch=watch,
        subject=subject.label,
        weight_hash=subject.weight_hash,
        weight_processing=subject.processing,
        data_hash=prompts.data_hash,
        seeds={"bootstrap": settings.seed} | ({} if prompts.seed is None else {"sequences": prompts.seed}),
        formula=chosen.formula,
        reduction=f"{definitions.get_reduction(settings.tokens)[0]}, then mean over prompts; norms accumulated in float64",
        positions="all; no_sink: without tokens above 10 x the prompt's median residual norm at any layer; no_first; last",
        first_token=FIRST_TOKEN,
        parallel_blocks=subject.parallel,
        sinks=sinks,
    )


def prompt_columns(norms: list[Norms], terms: list[Terms], settings: Settings) -> dict[str, Tensor]:
    """Per-prompt figures `[layer, prompt]`."""
    reduction, power = settings.reduction, settings.definition.power
    plain = definitions.get_reduction("ratio_of_means")[1]
    rows: list[dict[str, Tensor]] = []
    for one, term in zip(norms, terms, strict=True):
        kept = definitions.keeps(one)
        sink = ~kept["no_sink"]
        row: dict[str, Tensor] = {}
        for name, suffix in SUFFIXES.items():
            row[f"attn_gain{suffix}"] = definitions.reduce(reduction, term.attn_over, term.attn_under, kept[name], power)
            row[f"mlp_gain{suffix}"] = definitions.reduce(reduction, term.mlp_over, term.mlp_under, kept[name], power)
        for name in ("all", "no_sink"):
            row[f"net_block{SUFFIXES[name]}"] = definitions.reduce(plain, one.resid_post, one.resid_pre, kept[name])
            row[f"net_sum{SUFFIXES[name]}"] = definitions.reduce(plain, one.update, one.attn_in, kept[name])
        row |= {
            "attn_sink_share": definitions.share(term.attn_over, sink),
            "mlp_sink_share": definitions.share(term.mlp_over, sink),
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


def _variables(columns: dict[str, Tensor], rng: torch.Generator, draws: int) -> dict[str, Any]:
    """The Result's variables: means over prompts with intervals, and the gains of each prompt."""
    variables: dict[str, Any] = {}
    weights = stats.resamples(columns["attn_gain"].shape[-1], rng, draws)
    means: dict[str, Tensor] = {}

    def bounds(name: str, resampled: Tensor, unit: str, long_name: str, prompts: int) -> None:
        low, high = stats.interval(resampled)
        if prompts < 2:  # one prompt has no spread to resample
            low, high = low * math.nan, high * math.nan
        variables[f"{name}_low"] = (("layer",), low.numpy(), unit, f"{long_name}, 2.5 % bootstrap bound over prompts")
        variables[f"{name}_high"] = (("layer",), high.numpy(), unit, f"{long_name}, 97.5 % bootstrap bound over prompts")

    for name, long_name in LONG_NAMES.items():
        known = columns[name][:, ~columns[name].isnan().any(dim=0)]
        unit = "residual units" if name.endswith("_norm") else "1"
        variables[name] = (("layer",), known.mean(dim=-1).numpy(), unit, f"{long_name}, mean over prompts")
        if name in (*GAINS, *NETS):
            means[name] = stats.masked_means(weights, columns[name].T)
            bounds(name, means[name], unit, long_name, known.shape[-1])
        if name in GAINS:
            variables[f"{name}_by_prompt"] = (("layer", "prompt"), columns[name].numpy(), unit, f"{long_name}, each prompt")
    for suffix in ("", "_no_sink"):
        long_name = f"attention gain x MLP gain{' without sink tokens' if suffix else ''} (the gains study's net; the gain of no map)"
        product = variables[f"attn_gain{suffix}"][1] * variables[f"mlp_gain{suffix}"][1]
        variables[f"net_product{suffix}"] = (("layer",), product, "1", long_name)
        both = means[f"attn_gain{suffix}"] * means[f"mlp_gain{suffix}"]
        bounds(f"net_product{suffix}", both, "1", long_name, columns["attn_gain"].shape[-1])
    worst = columns["identity_error"].amax(dim=-1).numpy()
    variables["identity_error"] = (("layer",), worst, "1", "largest |x + A + M - x'| over the largest of their norms")
    return variables


def sink_records(norms: list[Norms], prompts: PromptSet) -> list[dict[str, Any]]:
    """Every sink token: prompt, position, token, and its peak as a multiple of the median."""
    records = []
    for number, one in enumerate(norms):
        peak = definitions.times_median(one)
        for position in definitions.sinks(one).nonzero().flatten().tolist():
            token, times = prompts.pieces[number][position], round(float(peak[position]), 1)
            records.append({"prompt": number, "position": position, "token": token, "times_median": times})
    return records


def _peaks(norms: list[Norms], prompts: PromptSet, shown: int = 8) -> list[dict[str, Any]]:
    """Of the first prompts, every token and its residual's peak as a multiple of the median."""
    return [
        {"tokens": list(prompts.pieces[number]), "times_median": [round(float(peak), 2) for peak in definitions.times_median(one)]}
        for number, one in enumerate(norms[:shown])
    ]


def _sink_text(records: list[dict[str, Any]], shown: int = 8) -> str:
    parts = [
        f"prompt {item['prompt']} position {item['position']} {item['token']!r} ({item['times_median']:.0f}x)" for item in records[:shown]
    ]
    more = f"; and {len(records) - shown} more" if len(records) > shown else ""
    return "; ".join(parts) + more if parts else "none"


def _summary(
    subject: Subject,
    prompts: PromptSet,
    settings: Settings,
    variables: dict[str, Any],
    columns: dict[str, Tensor],
    sinks: list[dict[str, Any]],
) -> dict[str, Any]:
    def last(name: str) -> float:
        return float(variables[name][1][-1])

    def count(name: str) -> str | None:
        return definitions.contracting(torch.as_tensor(variables[name][1]))

    peak = peak_memory_mib()
    summary: dict[str, Any] = {
        "model": subject.name,
        "definition": settings.definition.name,
        "tokens": settings.tokens,
        "positions": settings.positions,
        "n_layers": subject.n_layers,
        "d_model": subject.d_model,
        "n_params": subject.n_params,
        "n_params_non_embedding": subject.n_params_non_embedding,
        "attn_contracting": count("attn_gain"),
        "mlp_contracting": count("mlp_gain"),
        "net_contracting": count("net_product"),
        "net_block_contracting": count("net_block"),
        "net_sum_contracting": count("net_sum"),
        "final_mlp_gain": last("mlp_gain"),
        "final_mlp_gain_low": last("mlp_gain_low"),
        "final_mlp_gain_high": last("mlp_gain_high"),
        "attn_contracting_no_sink": count("attn_gain_no_sink"),
        "mlp_contracting_no_sink": count("mlp_gain_no_sink"),
        "net_contracting_no_sink": count("net_product_no_sink"),
        "final_mlp_gain_no_sink": last("mlp_gain_no_sink"),
        "final_mlp_gain_no_sink_low": last("mlp_gain_no_sink_low"),
        "final_mlp_gain_no_sink_high": last("mlp_gain_no_sink_high"),
        "final_mlp_gain_no_first": last("mlp_gain_no_first"),
        "final_mlp_gain_last": last("mlp_gain_last"),
        "final_mlp_sink_share": last("mlp_sink_share"),
        "residual_identity_error": float(columns["identity_error"].max()),
        "prompts": prompts.name,
        "n_prompts": len(prompts.tokens),
        "n_tokens": sum(len(row) for row in prompts.tokens),
        "n_sinks": len(sinks),
        "sink_positions": ",".join(str(place) for place in sorted({item["position"] for item in sinks})),
        "sinks": _sink_text(sinks),
        "streamed": subject.streamed,
        "peak_gib": subject.peak_gib if subject.peak_gib is not None else None if peak is None else round(peak / 1024, 3),
    }
    summary |= _shape(settings, variables)
    return summary | {"finding": _finding(summary, settings.definition, {branch: _below(variables, branch) for branch in BRANCHES})}


def _shape(settings: Settings, variables: dict[str, Any]) -> dict[str, Any]:
    """Regime with its distances, and the bottleneck by the rules that gains alone can answer."""
    suffix = SUFFIXES[settings.positions]
    attn, mlp = (variables[f"{branch}_gain{suffix}"][1] for branch in BRANCHES)
    told: dict[str, Any] = {}
    if settings.definition.name == "sublayer":
        found = regime_of(mlp.tolist())
        told["regime"] = found.name
        told |= {f"regime_{name}": getattr(found, name) for name in ("early", "middle", "final")}
        told |= {f"regime_{name}_margin": margin for name, margin in found.margins.items()}
    else:
        told["regime"] = None  # its thresholds are of `sublayer`
    told["l_star"] = argmin((attn * mlp).tolist())
    told |= dict.fromkeys((f"l_star_{name}" for name in L_STAR), None)
    return told | {"l_star_argmin_net": told["l_star"], "l_star_argmin_attn": argmin(attn.tolist())}


def _below(variables: dict[str, Any], branch: str) -> tuple[int, int]:
    """In how many layers a branch's gain lies below 1, and in how many it cannot be told apart from 1."""
    columns = [variables[f"{branch}_gain{end}"][1].tolist() for end in ("", "_low", "_high")]
    sides = [side(gain, 1.0, difference((low, high), 1.0)) for gain, low, high in zip(*columns, strict=True) if not math.isnan(gain)]
    return sides.count("below"), sides.count("level")


def _finding(summary: dict[str, Any], chosen: Definition, below: Mapping[str, tuple[int, int]]) -> str:
    """One plain sentence; of each branch in how many layers its gain is below 1, and in how many not told apart from it."""

    def told(branch: str, whole: str = "") -> str:
        sure, level = below[branch]
        return f"{sure}{whole}" + (f" ({level} more cannot be told apart from 1)" if level else "")

    layers, final, clean = summary["n_layers"], summary["final_mlp_gain"], summary["final_mlp_gain_no_sink"]
    attn, mlp = told("attn", f" of {layers} layers"), told("mlp")
    start = (
        f"Held against {chosen.against} ({chosen.name}), attention stays below 1 in {attn} and the MLP in {mlp}; "
        f"the last MLP's gain is {final:.3g}"
    )
    if chosen.source == "weights":
        return f"{start}."
    if not summary["n_sinks"]:
        return f"{start}, and no token is a sink that could carry it."
    if math.isnan(clean):
        return f"{start}, but every token counts as a sink, so nothing is left to compare it with."
    share = summary["final_mlp_sink_share"]
    return f"{start}, {clean:.3g} without the {summary['n_sinks']} sink tokens, which carry {share:.0%} of its output norm."
