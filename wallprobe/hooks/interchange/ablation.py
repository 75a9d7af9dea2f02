"""Ablation of a subspace: does a run's own answer need what stands there?

On program sequences the component of the state in a span is replaced by its mean (or by zero) at one layer and index; the answer is
read at the last supervised index, or at the index itself beyond it. Random spans of as many dimensions, and the whole state, beside.
Source: Misra's code (probe ablation).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe import models, stats
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.findings import foremost, rounding, side
from wallprobe.hooks.attach.interventions import Intervention, Swap
from wallprobe.hooks.interchange import subspaces
from wallprobe.hooks.interchange.engines import PointHooks
from wallprobe.hooks.interchange.places import LATE_SITES, Place
from wallprobe.hooks.interchange.subspaces import InSubspace
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset
from wallprobe.store.runs import Run
from wallprobe.tasks.recurrence import RecurrenceTask

METHODS = ("mean", "zero")
SPANS = 5  # random spans a cell; one alone may be lucky
METRICS: Mapping[str, tuple[str, str]] = {
    "accuracy": ("fraction", "share of sequences whose first choice is the correct next token"),
    "p_answer": ("probability", "probability of the correct next token"),
    "entropy": ("bits", "entropy of the prediction"),
    "kl": ("nats", "KL(prediction without ablation || prediction)"),
}
ARMS: Mapping[str, str] = {
    "": "the subspace ablated",
    "_base": "nothing ablated",
    "_span": f"a random span of as many dimensions ablated, mean of {SPANS}",
    "_whole": "the whole state ablated",
}


@dataclass(frozen=True)
class Ablation:
    """What to ablate.

    Attributes:
        subspace: what `subspaces.parse` reads.
        layers: layers, one at a time; None for all.
        indices: indices, one at a time; None for the last two supervised ones.
        site: one of `models.SITES`.
        method: "mean" (over fresh sequences of the task at that index) or "zero".
        sequences: program sequences; those that stand still (their slope is never shown) are dropped.
        seed: of sequences, random spans and bootstrap.
    """

    subspace: str
    layers: tuple[int, ...] | None = None
    indices: tuple[int, ...] | None = None
    site: str = "resid_pre"
    method: str = "mean"
    sequences: int = 1000
    seed: int = 0


Reading = dict[str, Float[Tensor, " sequence"]]
Cell = tuple[int, int]


def ablate(run: Run, request: Ablation, *, device: str = "cpu", on_cell: Callable[[int, int], None] | None = None) -> Result:
    """Ablate a subspace of a run's states and read its own answer.

    Args:
        run: a finished run of the task recurrence.
        request: what to ablate.
        device: torch device.
        on_cell: called with (cells done, cells in all).

    Returns:
        Result of kind "ablation", table over layer x index.

    Raises:
        UnknownNameError: for a site or probe target there is not.
        ConfigError: for a layer, index, subspace or method that cannot be ablated, or a run of another task.
        CheckpointError: if the weights are damaged.
        InstrumentError: if a hook did not fire exactly once, an ablation changed nothing, or the self-patch changed something.
    """
    watch = Stopwatch()
    task, horizon, layers, indices = _resolve(run, request)
    task.check_room(request.sequences, "--sequences")
    programs = task.sample_programs(request.sequences, generator(request.seed, "ablation"))
    tokens = programs.tokens[programs.tokens[:, 0] != programs.tokens[:, 1]]
    loaded = models.load_run(run, device)
    drawn = subspaces.draw(task, request.seed)
    states = subspaces.observe(loaded, drawn, layers, indices, request.site)
    spans = subspaces.fit(subspaces.parse(request.subspace), states, drawn, task, request.seed)
    weights = stats.resamples(len(tokens), generator(request.seed, "ablation bootstrap"))
    figures: dict[Cell, dict[str, float]] = {}
    for index in indices:
        read = max(index, horizon - 1)
        here = [Place(request.site, layer, index) for layer in layers]
        whole, given = PointHooks(loaded.name, lambda: loaded, None), tokens[:, : read + 1]
        seen, base = whole.look(given, here)
        for place in here:
            layer, patcher = place.layer, Patcher(whole, given, place, seen[place].cpu(), base.double().log_softmax(-1).cpu())
            target = states[layer, index].mean(0) if request.method == "mean" else torch.zeros_like(patcher.clean[0])
            arms, guards = _arms(patcher, target.expand_as(patcher.clean), spans[layer, index], tokens[:, read + 1], request.seed)
            figures[layer, index] = _figures(arms, weights) | guards | spans[layer, index].figures()
            if on_cell is not None:
                on_cell(len(figures), len(layers) * len(indices))
    return _result(run, request, task, (layers, indices), figures, len(tokens), horizon, device, watch)


@dataclass(frozen=True)
class Patcher:
    """One slot on its sequences: patches it and reads the next token.

    Attributes:
        whole: the model's passes.
        clean: the activation that stands there.
        base_log: log-probabilities without a patch.
    """

    whole: PointHooks
    tokens: Int[Tensor, "sequence index"]
    place: Place
    clean: Float[Tensor, "sequence width"]
    base_log: Float[Tensor, "sequence vocab"]

    def __call__(self, intervention: Intervention, source: Tensor) -> tuple[Float[Tensor, "sequence vocab"], float]:
        """Log-probabilities under the patch, and its largest change at the site."""
        logits, change = self.whole.patch(self.tokens, self.place, intervention(self.clean, source))
        return logits.double().log_softmax(-1).cpu(), change


def check(run: Run, request: Ablation) -> None:
    """Raise what `ablate` would raise for a request that cannot be met, before anything is computed."""
    _resolve(run, request)


def _resolve(run: Run, request: Ablation) -> tuple[RecurrenceTask, int, tuple[int, ...], tuple[int, ...]]:
    """Check the request against the run and fill in its defaults."""
    models.hook_name(0, request.site)
    subspaces.parse(request.subspace)
    if request.method not in METHODS:
        raise ConfigError(f"--method {request.method} is none of {', '.join(METHODS)}")
    task, horizon = RecurrenceTask.from_manifest(run.manifest["task"]), int(run.manifest["horizon"])
    depth = int(run.manifest["shape"]["n_layers"])
    layers = tuple(range(depth)) if request.layers is None else request.layers
    wrong = [layer for layer in layers if not 0 <= layer < depth]
    if wrong:
        raise ConfigError(f"layer {wrong[0]} does not exist in {run.name}; give 0 to {depth - 1}, or 'all'")
    indices = (horizon - 2, horizon - 1) if request.indices is None else request.indices
    wrong = [index for index in indices if not 0 <= index <= task.length - 2]
    if wrong:
        raise ConfigError(f"index {wrong[0]} predicts no token of the sequence; give 0 to {task.length - 2}")
    if request.site in LATE_SITES and depth - 1 in layers and any(index < horizon - 1 for index in indices):
        if request.indices is not None or len(layers) > 1:
            raise ConfigError(
                f"site {request.site} of the last layer, {depth - 1}, is read at its own index alone: give --index {horizon - 1} or more, "
                "or site resid_pre"
            )
        indices = (horizon - 1,)
    return task, horizon, layers, indices


def reading(log: Float[Tensor, "sequence vocab"], base: Float[Tensor, "sequence vocab"], answer: Int[Tensor, " sequence"]) -> Reading:
    """Every metric of `METRICS` of each sequence.

    Args:
        log: log-probabilities (fp64).
        base: those without ablation.
        answer: the correct next token.
    """
    probs = log.exp()
    return {
        "accuracy": (log.argmax(-1) == answer).double(),
        "p_answer": probs.gather(1, answer[:, None])[:, 0],
        "entropy": -torch.special.xlogy(probs, probs).sum(-1) / math.log(2.0),
        "kl": (base.exp() * (base - log)).sum(-1),
    }


def _arms(
    patcher: Patcher, target: Float[Tensor, "sequence width"], span: subspaces.Fitted, answer: Int[Tensor, " sequence"], seed: int
) -> tuple[dict[str, Reading], dict[str, float]]:
    """The treatment and its controls; what the guards saw.

    Raises:
        InstrumentError: if the treatment changed nothing, or the self-patch changed anything.
    """
    where = f"ablation at {patcher.place.hook}, index {patcher.place.index}"
    log, at_hook = patcher(InSubspace(Swap(), span.axes), target)
    at_answer = float((log - patcher.base_log).abs().max())
    if at_hook == 0.0 or at_answer == 0.0:
        raise InstrumentError(f"{where} changed nothing (at the hook {at_hook}, at the answer {at_answer}); give another layer or index")
    untouched, self_hook = patcher(InSubspace(Swap(), span.axes), patcher.clean)
    self_change = max(self_hook, float((untouched - patcher.base_log).abs().max()))
    if self_change != 0.0:
        raise InstrumentError(f"{where}: putting the state's own component back changed the answer by {self_change}")

    def measured(intervention: Intervention) -> Reading:
        return reading(patcher(intervention, target)[0], patcher.base_log, answer)

    width = len(span.axes)
    places = (patcher.place.hook, int(patcher.place.index))
    others = [span.control] + [subspaces.random_axes(width, span.dims, seed, "control", *places, more) for more in range(1, SPANS)]
    several = [measured(InSubspace(Swap(), axes)) for axes in others]
    arms = {
        "": reading(log, patcher.base_log, answer),
        "_base": reading(patcher.base_log, patcher.base_log, answer),
        "_span": {name: torch.stack([one[name] for one in several]).mean(0) for name in METRICS},
        "_whole": measured(Swap()),
    }
    return arms, {"self_patch_max_change": self_change, "change_at_hook": at_hook, "change_at_logits": at_answer}


def _figures(arms: Mapping[str, Reading], weights: Float[Tensor, "draws sequence"]) -> dict[str, float]:
    """Means of every metric and arm with bounds, and the excess of the treatment's loss of probability over the random spans'."""
    figures: dict[str, float] = {}
    columns = {f"{name}{arm}": values[name] for arm, values in arms.items() for name in METRICS}
    columns["excess"] = arms["_span"]["p_answer"] - arms[""]["p_answer"]
    for name, values in columns.items():
        low, high = stats.interval(weights @ values)
        figures |= {name: float(values.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}
    return figures


def describe(name: str) -> tuple[str, str]:
    """Units and long name of a figure."""
    fixed = {
        "excess": ("probability", "what the answer loses beyond what a random span of as many dimensions takes from it"),
        "self_patch_max_change": ("log-probability", "largest change when the state's own component is put back"),
        "change_at_hook": ("activation", "largest change at the hook"),
        "change_at_logits": ("log-probability", "largest change of the answer's log-probabilities"),
    } | subspaces.LONG
    stem = name.removesuffix("_low").removesuffix("_high")
    if stem in fixed:
        return fixed[stem]
    metric = next(key for key in METRICS if stem.startswith(key))
    units, what = METRICS[metric]
    return units, f"{what}, {ARMS[stem.removeprefix(metric)]}"


def _result(
    run: Run,
    request: Ablation,
    task: RecurrenceTask,
    cells: tuple[tuple[int, ...], tuple[int, ...]],
    figures: Mapping[Cell, Mapping[str, float]],
    sequences: int,
    horizon: int,
    device: str,
    watch: Stopwatch,
) -> Result:
    layers, indices = cells
    grid = {
        name: (("layer", "index"), np.array([[figures[layer, index][name] for index in indices] for layer in layers]), *describe(name))
        for name in next(iter(figures.values()))
    }
    attrs: dict[str, Any] = {"run": str(run.name), "site": request.site, "subspace": request.subspace, "method": request.method}
    data = dataset({"layer": list(layers), "index": list(indices)}, grid, **attrs, horizon=horizon, chance=1.0 / task.modulus)
    cells_by_place = list(figures)
    excess = [figures[cell]["excess"] for cell in cells_by_place]
    at = cells_by_place[foremost(excess, noise=rounding(*(figures[cell]["p_answer_base"] for cell in cells_by_place))) or 0]
    best = figures[at]
    summary = attrs | {
        "layer": at[0],
        "index": at[1],
        "n_sequences": sequences,
        "chance": 1.0 / task.modulus,
        "dims": best["subspace_dims"],
    }
    keys = [f"{metric}{arm}" for metric in METRICS for arm in ARMS] + ["excess"]
    summary |= {f"{key}{end}": best[f"{key}{end}"] for key in keys for end in ("", "_low", "_high")}
    summary |= {key: best[key] for key in subspaces.LONG if key != "subspace_dims"}
    summary["self_patch_max_change"] = max(cell["self_patch_max_change"] for cell in figures.values())
    manifest = provenance(
        config=attrs
        | {"layers": list(layers), "indices": list(indices), "sequences": request.sequences, "seed": request.seed}
        | {"weight_hash": run.manifest["weight_hash"], "task": task.config(), "horizon": horizon},
        device=device,
        dtype="float32 model, float64 figures",
        watch=watch,
        subject=f"{run.name} {request.subspace}",
        weight_hash=run.manifest["weight_hash"],
        weight_processing="none",
        seeds={"sequences": request.seed},
    )
    return Result("ablation", data, ("layer", "index"), summary | {"finding": finding(summary)}, manifest)


def finding(summary: Mapping[str, Any]) -> str:
    """One plain sentence, of the cell where the subspace matters most beyond random spans."""
    what = f"{summary['subspace']} ({summary['dims']:.0f} dimensions, {summary['subspace_variance']:.0%} of the variance)"
    where = f"{summary['site']} of layer {summary['layer']}, index {summary['index']}"
    told = side(summary["p_answer_span"], summary["p_answer"], (summary["excess_low"], summary["excess_high"]))
    matters = {"above": "more than", "below": "less than", "level": "no more than"}[told]
    left = f"from {summary['p_answer_base']:.3f} to {summary['p_answer']:.3f}"
    return (
        f"{summary['run']}: {summary['method']}-ablating {what} at {where} costs {matters} random spans of as many dimensions: the correct "
        f"token's probability goes {left}, with random spans ({summary['span_variance']:.0%}) to {summary['p_answer_span']:.3f}, "
        f"with the whole state to {summary['p_answer_whole']:.3f}."
    )
