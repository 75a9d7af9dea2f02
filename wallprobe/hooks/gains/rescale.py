"""Causal scaling: a sub-layer's output times s, at all tokens, at sinks only or elsewhere; what it does to loss, entropy and first choice.

A loud sub-layer need not matter: the last MLP's output at the sink can go and the loss stays. It asks what the gains study
leaves open (6.8.4, causal claims).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe import stats
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.findings import beyond, difference, foremost, rounding, side
from wallprobe.hooks.attach.any_model import on_prompts
from wallprobe.hooks.attach.prompt_sets import FIRST_TOKEN, PromptSet, batches
from wallprobe.hooks.gains import definitions
from wallprobe.hooks.gains.measure import measure_norms
from wallprobe.hooks.gains.report import Subject
from wallprobe.models import Loaded, hook_name
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset

NOISE = rounding(8.0)  # nats, of a difference of two losses of a few nats
LEVEL = 1 << 24  # of our hooks alone
SCALES, PLACES, CONTROLS = (0.0, 0.5, 1.0, 2.0), ("all", "sink", "non_sink"), 3
BRANCHES = {"attn": "attn_out", "mlp": "mlp_out"}
BOUNDS = {"": "", "_low": ", 2.5 % bootstrap bound over prompts", "_high": ", 97.5 % bootstrap bound over prompts"}
MEASURES = {
    "delta_nll": ("change of the loss on the next token", "nats"),
    "delta_entropy": ("change of the prediction's entropy", "nats"),
    "delta_top1": ("change of the share of next tokens put first", "fraction"),
}
TABLE = ("layer", "scale", "place")


@on_prompts
def rescale(
    loaded: Loaded,
    prompts: PromptSet,
    layers: Sequence[int] | None = None,
    branch: str = "mlp",
    *,
    scales: Sequence[float] = SCALES,
    seed: int = 42,
    draws: int = 1000,
    on_progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Scale the output of a layer's sub-layer and measure what the model says.

    Args:
        loaded: the model.
        prompts: at least two tokens each; each token's loss counts alike.
        layers: which; by default the last two. Three others, drawn at random, stand beside as controls.
        branch: "mlp" or "attn".
        scales: factors; 1 must change nothing and is added.
        seed: of the draw of controls, and of the bootstrap over prompts.
        draws: bootstrap resamples.
        on_progress: told (layers done, layers in all).

    Returns:
        Result of kind "rescale", table by layer, scale and place ("all", "sink", "non_sink" tokens).

    Raises:
        ConfigError: for an unknown branch or layer, or prompts without a next token.
        InstrumentError: if a scale of 1 changes the logits, or a hook does not fire.
    """
    watch = Stopwatch()
    if branch not in BRANCHES:
        raise ConfigError(f"no sub-layer '{branch}'; there are: {', '.join(BRANCHES)}")
    chosen = list(dict.fromkeys(layers)) if layers else list(range(max(0, loaded.n_layers - 2), loaded.n_layers))
    wrong = [layer for layer in chosen if not 0 <= layer < loaded.n_layers]
    if wrong:
        raise ConfigError(f"{loaded.name} has no layer {wrong[0]}; there are 0 to {loaded.n_layers - 1}")
    if any(len(row) < 2 for row in prompts.tokens):
        raise ConfigError("a prompt of one token has no next token to predict; give longer ones")
    controls = _controls(loaded.n_layers, chosen, seed)
    factors = sorted({*scales, 1.0})
    rows = chosen + controls
    parts = [_Part(loaded, members, torch.stack([prompts.tokens[index] for index in members])) for members in batches(prompts)]
    counts = torch.cat([torch.full((len(part.members),), part.tokens.shape[1] - 1.0, dtype=torch.float64) for part in parts])
    sums = torch.zeros(len(counts), len(MEASURES), len(rows), len(factors), len(PLACES), dtype=torch.float64)
    for at, layer in enumerate(rows):
        for column, factor in enumerate(factors):
            for depth, place in enumerate(PLACES):
                if factor == 1.0 and place != "all":  # identity is checked once a layer
                    continue
                sums[:, :, at, column, depth] = torch.cat([part.change(layer, BRANCHES[branch], factor, place) for part in parts])
        if on_progress is not None:
            on_progress(at + 1, len(rows))
    sinks = [
        {"prompt": number, "position": place, "token": prompts.pieces[number][place]}
        for part in parts
        for row, number in enumerate(part.members)
        for place in part.sink[row].nonzero().flatten().tolist()
    ]
    return _result(loaded, prompts, branch, chosen, controls, factors, _means(sums, counts, seed, draws), sinks, seed, watch)


def _means(
    sums: Float[Tensor, "prompt measure layer scale place"], counts: Float[Tensor, " prompt"], seed: int, draws: int
) -> Float[Tensor, "bound measure layer scale place"]:
    """Means over next tokens, and the bounds of their bootstrap over prompts; NaN bounds of a single prompt."""
    mean = sums.sum(dim=0) / counts.sum()
    if len(counts) < 2:
        return torch.stack([mean, mean * math.nan, mean * math.nan])
    weights = stats.resamples(len(counts), generator(seed, "rescale", "bootstrap"), draws)
    drawn = (weights @ sums.flatten(1)) / (weights @ counts)[:, None]
    low, high = stats.interval(drawn)
    return torch.stack([mean, low.view_as(mean), high.view_as(mean)])


def _controls(n_layers: int, chosen: Sequence[int], seed: int) -> list[int]:
    others = [layer for layer in range(n_layers) if layer not in chosen]
    order = torch.randperm(len(others), generator=generator(seed, "rescale", "controls")).tolist()
    return sorted(others[place] for place in order[:CONTROLS])


class _Part:
    """Prompts of one length: their sinks, and what the model says untouched."""

    def __init__(self, loaded: Loaded, members: list[int], tokens: Int[Tensor, "batch index"]) -> None:
        self.loaded, self.members, self.tokens = loaded, members, tokens
        self.sink = torch.stack([definitions.sinks(norms) for norms in measure_norms(loaded, tokens)])
        self.plain = self._logits({})
        self.before = _sums(self.plain, tokens)

    def _logits(self, hooks: dict[str, Callable[..., Tensor]]) -> Tensor:
        model, points = cast(Any, self.loaded.model), self.loaded.points
        placed = self.tokens.to(next(self.loaded.model.parameters()).device)
        options = {} if self.loaded.tokenizer is None else {"attention_mask": torch.ones_like(placed)}
        for name, hook in hooks.items():
            points[name].add_hook(hook, level=LEVEL)
        try:
            with torch.no_grad():
                return cast(Tensor, model(placed, **options)).float().cpu()
        finally:
            for name in hooks:
                points[name].remove_hooks("fwd", level=LEVEL)

    def change(self, layer: int, site: str, factor: float, place: str) -> Float[Tensor, "batch measure"]:
        """Sums over each prompt's tokens of every measure's change."""
        mask = {"all": torch.ones_like(self.sink), "sink": self.sink, "non_sink": ~self.sink}[place]
        if not bool(mask.any()):
            return torch.zeros(len(self.tokens), len(MEASURES), dtype=torch.float64)
        scale = torch.where(mask, factor, 1.0)[..., None]
        fired = []

        def hook(value: Tensor, hook: Any = None) -> Tensor:
            fired.append(layer)
            return value * scale.to(value)

        logits = self._logits({hook_name(layer, site): hook})
        if len(fired) != 1:
            raise InstrumentError(f"{self.loaded.name}: {site} of layer {layer} fired {len(fired)} times in one forward pass")
        if factor == 1.0 and not torch.equal(logits, self.plain):
            raise InstrumentError(
                f"{self.loaded.name}: {site} of layer {layer} times 1 changes the logits; nothing measured so would count"
            )
        return _sums(logits, self.tokens) - self.before


def _sums(logits: Float[Tensor, "batch index vocabulary"], tokens: Int[Tensor, "batch index"]) -> Float[Tensor, "batch measure"]:
    log_p = logits[:, :-1].log_softmax(dim=-1)
    following = tokens[:, 1:]
    loss = -log_p.gather(-1, following[..., None])[..., 0].double()
    entropy = -(log_p.exp() * log_p).sum(dim=-1).double()
    return torch.stack([loss, entropy, (log_p.argmax(dim=-1) == following).double()], dim=-1).sum(dim=1)


def _result(
    loaded: Loaded,
    prompts: PromptSet,
    branch: str,
    chosen: list[int],
    controls: list[int],
    factors: list[float],
    bounded: Float[Tensor, "bound measure layer scale place"],
    sinks: list[dict[str, Any]],
    seed: int,
    watch: Stopwatch,
) -> Result:
    values = bounded[0]
    if not sinks:  # nothing was scaled there: not a change of 0
        bounded[..., PLACES.index("sink")] = math.nan
    coords = {"layer": chosen + controls, "scale": factors, "place": list(PLACES)}
    data = dataset(coords, _variables(bounded, len(chosen)), model=loaded.name, branch=branch, prompts=prompts.name)
    bounds = bounded[:, 0, : len(chosen), factors.index(0.0) if 0.0 in factors else 0, 0]
    off = bounds[0]
    worst = foremost(off.tolist(), NOISE) or 0
    summary: dict[str, Any] = {
        "model": loaded.name,
        "branch": branch,
        "layers": ",".join(map(str, chosen)),
        "controls": ",".join(map(str, controls)),
        "prompts": prompts.name,
        "n_prompts": len(prompts.tokens),
        "n_sinks": len(sinks),
        "identity_change": 0.0,
        "worst_layer": chosen[worst],
        "worst_delta_nll": float(off[worst]),
    }
    at_sink = float(values[0, worst, factors.index(min(factors)), PLACES.index("sink")])
    elsewhere = float(values[0, worst, factors.index(min(factors)), PLACES.index("non_sink")])
    words = f", {at_sink:+.3f} at the sinks alone and {elsewhere:+.3f} elsewhere" if sinks else ""
    name = "the MLP" if branch == "mlp" else "attention"
    beside = values[0, len(chosen) :, factors.index(min(factors)), 0]
    summary["control_delta_nll"] = float(beside.max()) if len(beside) else math.nan
    drawn = f"; layers drawn at random {float(beside.min()):+.3f} to {float(beside.max()):+.3f}" if len(beside) else ""
    summary["finding"] = (
        f"Of the layers asked for, taking {name}'s output times {min(factors):g} {dearest(chosen, bounds.T.tolist(), worst)}: "
        f"{float(off[worst]):+.3f} nats{words}{drawn}."
    )
    subject = Subject.of(loaded)
    manifest = provenance(
        config={"model": loaded.name, "branch": branch, "layers": chosen, "scales": factors, "data_hash": prompts.data_hash, "seed": seed},
        device=subject.device,
        dtype="float32",
        watch=watch,
        subject=f"{subject.label} {branch}",
        weight_hash=loaded.weight_hash,
        weight_processing=loaded.processing,
        data_hash=prompts.data_hash,
        seeds={"controls": seed, "bootstrap": seed},
        formula="change of the mean over next tokens when the sub-layer's output is multiplied by the scale",
        first_token=FIRST_TOKEN,
        sinks=sinks,
    )
    return Result("rescale", data, TABLE, summary, manifest)


def dearest(layers: Sequence[int], costs: Sequence[Sequence[float]], worst: int) -> str:
    """Where it costs most, which layers cannot be told apart from that one, and whether it costs anything.

    Args:
        layers: their numbers.
        costs: of each layer the change of the loss in nats with its lower and upper bound.
        worst: place of the largest.
    """
    most, low, high = costs[worst]
    if not beyond(most, 0.0, (low, high), NOISE):
        return f"costs nothing beyond its interval, most in layer {layers[worst]}"
    level = [
        str(layer)
        for place, (layer, (cost, least, top)) in enumerate(zip(layers, costs, strict=True))
        if place != worst and side(cost, most, difference((least, top), (low, high)), NOISE) == "level"
    ]
    beside = f" (as much, within their intervals, in {', '.join(level)})" if level else ""
    return f"costs most in layer {layers[worst]}{beside}"


def _variables(bounded: Float[Tensor, "bound measure layer scale place"], asked: int) -> dict[str, Any]:
    """The measures with their bounds, and which layers are controls: those behind the ones asked for."""
    variables: dict[str, Any] = {}
    for at, (name, (long_name, unit)) in enumerate(MEASURES.items()):
        for bound, (suffix, words) in enumerate(BOUNDS.items()):
            variables[f"{name}{suffix}"] = (TABLE, bounded[bound, at].numpy(), unit, f"{long_name}{words}")
    flags = torch.zeros(bounded.shape[2:])
    flags[asked:] = 1
    return variables | {"is_control": (TABLE, flags.numpy(), "1", "1 for a layer drawn at random as control")}
