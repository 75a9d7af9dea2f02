"""Subspaces of an activation: the row span of probes, principal axes, or a random span as control; and patches that stay inside one.

A span has orthonormal axes V; the component of x in it is (x V) V'. Only that component is replaced, base + ((donor - base) V) V', so
that everything orthogonal to the span stays as it was. Spans live in the receiving network's basis.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe import models
from wallprobe.errors import ConfigError, UnknownNameError
from wallprobe.hooks.attach import cache
from wallprobe.hooks.attach.interventions import Intervention
from wallprobe.hooks.probes import fit as probes_fit
from wallprobe.hooks.probes.measure import STRENGTHS, Split
from wallprobe.hooks.probes.targets import Labels, classification
from wallprobe.rng import generator
from wallprobe.tasks.recurrence import RecurrenceTask, Sequences

SEQUENCES = 4000  # drawn to fit probes and principal axes on
PROBED = ("token", "a", "b", "class")
EXAMPLE = "probes:a,b, pca:8 or random:8"
RANK = 1e-4  # singular value, of the largest, from which a direction counts


@dataclass(frozen=True)
class Wanted:
    """A subspace as asked for.

    Attributes:
        kind: "probes", "pca" or "random".
        targets: of the probes, some of `PROBED`.
        dims: of the others.
    """

    kind: str
    targets: tuple[str, ...] = ()
    dims: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{','.join(self.targets) if self.targets else self.dims}"


@dataclass(frozen=True)
class Fitted:
    """A subspace at one layer and index, and a random one of as many dimensions.

    Attributes:
        axes: orthonormal, one a column.
        control: the same of the random one.
        variance: share of the states' variance inside.
        control_variance: inside the random one.
        accuracy: of the probes whose rows span it on sequences they were not fitted on, mean over targets; NaN for other kinds.
    """

    axes: Float[Tensor, "width dims"]
    control: Float[Tensor, "width dims"]
    variance: float
    control_variance: float
    accuracy: float

    @property
    def dims(self) -> int:
        """Dimensions of the span."""
        return self.axes.shape[1]

    def figures(self) -> dict[str, float]:
        """What a Result tells of it, by name; `LONG` has the words."""
        return {
            "subspace_dims": float(self.dims),
            "subspace_variance": self.variance,
            "span_variance": self.control_variance,
            "probe_accuracy": self.accuracy,
        }


LONG = {
    "subspace_dims": ("dimensions", "dimensions of the subspace"),
    "subspace_variance": ("fraction", "share of the states' variance inside the subspace"),
    "span_variance": ("fraction", "share of it inside the random span of as many dimensions"),
    "probe_accuracy": ("fraction", "accuracy on held-out sequences of the probes that span it, mean over targets"),
}


@dataclass(frozen=True)
class InSubspace:
    """The treatment, confined to a span: what it would put there enters by its component in the span alone."""

    treatment: Intervention
    axes: Float[Tensor, "width dims"]

    def __call__(self, base: Float[Tensor, "pair d_dst"], source: Float[Tensor, "pair d_src"]) -> Float[Tensor, "pair d_dst"]:
        """`base + ((treated - base) V) V'`: base itself, to the bit, where the treatment gives base or the span has no dimension."""
        axes = self.axes.to(base)
        return base + ((self.treatment(base, source) - base) @ axes) @ axes.mT


@dataclass(frozen=True)
class NormMatchedInside:
    """Control: in the span a random direction, as long as the component that the treatment would have put there."""

    treatment: Intervention
    axes: Float[Tensor, "width dims"]
    seed: int

    def __call__(self, base: Float[Tensor, "pair d_dst"], source: Float[Tensor, "pair d_src"]) -> Float[Tensor, "pair d_dst"]:
        """Gaussian coordinates for each pair, rescaled; what is orthogonal to the span stays."""
        axes = self.axes.to(base)
        wanted = self.treatment(base, source) @ axes
        noise = torch.randn(wanted.shape, generator=generator(self.seed, "norm-matched inside")).to(wanted)
        size: Tensor = torch.linalg.vector_norm(wanted, dim=-1, keepdim=True) / torch.linalg.vector_norm(noise, dim=-1, keepdim=True)
        patched: Tensor = base + (noise * size - base @ axes) @ axes.mT
        return patched


def parse(text: str) -> Wanted:
    """Read `probes:a,b`, `pca:8` or `random:8`.

    Raises:
        ConfigError: for anything else.
        UnknownNameError: for a probe target there is not.
    """
    kind, _, rest = text.partition(":")
    if kind == "probes":
        targets = tuple(dict.fromkeys(part.strip() for part in rest.split(",")))
        unknown = [name for name in targets if name not in PROBED]
        if unknown:
            raise UnknownNameError(f"--subspace {text}: no probe target '{unknown[0]}'; there are: {', '.join(PROBED)}")
        return Wanted(kind, targets=targets)
    if kind not in ("pca", "random") or not rest.strip().isdecimal() or int(rest) < 1:
        raise ConfigError(f"--subspace {text} is no subspace; give {EXAMPLE}, with at least one dimension")
    return Wanted(kind, dims=int(rest))


def random_axes(width: int, dims: int, *labels: str | int) -> Float[Tensor, "width dims"]:
    """A uniformly random span: orthonormal axes from the labels' generator."""
    draw = torch.randn(width, dims, dtype=torch.float64, generator=generator(*labels, "span"))
    axes: Tensor = torch.linalg.qr(draw).Q.float()
    return axes


def principal_axes(states: Float[Tensor, "sequence width"], dims: int) -> Float[Tensor, "width dims"]:
    """The axes along which the states vary most, largest first."""
    centred = states.double() - states.double().mean(0)
    axes: Tensor = torch.linalg.eigh(centred.mT @ centred).eigenvectors.flip(1)[:, :dims].float().contiguous()
    return axes


def row_span(rows: Sequence[Float[Tensor, "_ width"]]) -> Float[Tensor, "width dims"]:
    """The span of the probes' rows. A softmax reads differences of rows only, so each probe's mean row is taken away first; probes
    are brought to one size, so that a strongly penalised one counts."""
    centred = [(part - part.mean(0)).double() for part in rows]
    scaled = [part / torch.linalg.matrix_norm(part).clamp(min=1e-30) for part in centred]
    _, sizes, axes = torch.linalg.svd(torch.cat(scaled), full_matrices=False)
    span: Tensor = axes[sizes > RANK * sizes[0]].mT.float().contiguous()
    return span


def share_inside(states: Float[Tensor, "sequence width"], axes: Float[Tensor, "width dims"]) -> float:
    """Share of the states' variance inside a span."""
    centred = states.double() - states.double().mean(0)
    return float((centred @ axes.double()).square().sum() / centred.square().sum().clamp(min=1e-30))


def draw(task: RecurrenceTask, seed: int) -> Sequences:
    """The sequences that spans are fitted on and means taken over, apart from those that are patched."""
    return task.sample(SEQUENCES, generator(seed, "subspace"))


def observe(
    loaded: models.Loaded, drawn: Sequences, layers: Sequence[int], indices: Sequence[int], site: str
) -> dict[tuple[int, int], Float[Tensor, "sequence width"]]:
    """The states of those sequences at each (layer, index)."""
    names = {layer: models.hook_name(layer, site) for layer in layers}
    seen = cache.capture(loaded, drawn.tokens[:, : max(indices) + 1], list(names.values()), keep=list(indices))
    return {(layer, index): seen[name][:, slot] for layer, name in names.items() for slot, index in enumerate(indices)}


def fit(
    wanted: Wanted, states: dict[tuple[int, int], Float[Tensor, "sequence width"]], drawn: Sequences, task: RecurrenceTask, seed: int
) -> dict[tuple[int, int], Fitted]:
    """The subspace at every (layer, index), each with its random control.

    Args:
        wanted: what is asked for.
        states: of the network whose basis it is.
        drawn: the sequences that gave them.
        task: theirs.
        seed: of the random spans.

    Raises:
        ConfigError: if the states have fewer dimensions than asked for.
    """
    width = next(iter(states.values())).shape[1]
    if wanted.dims > width:
        raise ConfigError(f"--subspace {wanted}: the states have {width} dimensions; give at most {width}")
    probed = _probe_spans(wanted.targets, states, drawn, task) if wanted.kind == "probes" else {}
    spans: dict[tuple[int, int], Fitted] = {}
    for (layer, index), values in states.items():
        accuracy = float("nan")
        if wanted.kind == "probes":
            axes, accuracy = probed[layer, index]
        elif wanted.kind == "pca":
            axes = principal_axes(values, wanted.dims)
        else:
            axes = random_axes(width, wanted.dims, seed, "treatment", layer, index)
        control = random_axes(width, axes.shape[1], seed, "control", layer, index)
        spans[layer, index] = Fitted(axes, control, share_inside(values, axes), share_inside(values, control), accuracy)
    return spans


def _probe_spans(
    targets: Sequence[str], states: dict[tuple[int, int], Float[Tensor, "sequence width"]], drawn: Sequences, task: RecurrenceTask
) -> dict[tuple[int, int], tuple[Float[Tensor, "width dims"], float]]:
    """Row span of the targets' probes at each cell, and their mean held-out accuracy."""
    cells, exact = list(states), task.posterior(drawn.tokens)
    stacked = torch.stack([states[cell] for cell in cells])
    rows: list[Tensor] = []
    right: list[Float[Tensor, " cell"]] = []
    for name in targets:
        labels = classification(task, drawn, exact, name)
        split = Split.of(len(drawn.tokens)).among(labels.sequences)
        weights, accuracy = probe_rows(stacked, torch.stack([labels.label[:, index] for _, index in cells]), labels, split)
        rows.append(weights)
        right.append(accuracy)
    mean = torch.stack(right).mean(0)
    return {cell: (row_span([part[place] for part in rows]), float(mean[place])) for place, cell in enumerate(cells)}


def probe_rows(
    states: Float[Tensor, "cell sequence width"], label: Int[Tensor, "cell sequence"], labels: Labels, split: Split
) -> tuple[Float[Tensor, "cell class width"], Float[Tensor, " cell"]]:
    """One softmax probe a cell, as `wallprobe probe` fits it, by raw coordinate; and its accuracy on the test sequences."""
    order, train = split.order, len(split.train)
    x = states[:, order]
    spread, mean = torch.std_mean(x[:, :train], dim=1, correction=0, keepdim=True)
    flat = spread <= probes_fit.FLAT * torch.finfo(x.dtype).eps * mean.abs()
    scale = torch.where(flat, 0.0, 1 / spread)
    given = probes_fit.features((x - mean) * scale, train, len(split.validation), standardise=False)
    classes = label[:, order]
    found = probes_fit.softmax_path(given, classes[:, None, : given.fitted], labels.classes, STRENGTHS)
    said = probes_fit.logits(found.weights, given.columns[..., given.fitted :])[:, 0].argmax(1)
    return found.weights[:, 0, :, :-1] * scale, (said == classes[:, given.fitted :]).double().mean(1)
