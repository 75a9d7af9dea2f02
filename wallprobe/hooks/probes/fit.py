"""Linear probes of every cell (layer, index) at once: softmax by preconditioned L-BFGS, ridge in closed form, along a path of strengths.

Softmax: min over W, b of mean cross-entropy + strength/2 |W|^2; ridge: min of mean squared error + strength |w|^2; intercepts are
free. In scikit-learn's words C = 1 / (n strength) and alpha = n strength, on features standardised over the training rows.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wallprobe.hooks.probes.lbfgs import Objective, State, descend

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3)  # of the softmax probes' penalty, strongest first
TOLERANCE = 1e-3  # nats that the loss may still fall, as L-BFGS sees it; a thirtieth of what the test sequences resolve
CHUNK = 16  # cells solved together
FLAT = 8.0  # spread, in roundings of the mean, up to which a feature is constant


@dataclass(frozen=True)
class Features:
    """Features of each cell, centred and standardised over its training rows.

    Attributes:
        columns: one column a row of data: training, then validation, then test.
        train: how many are training rows.
        validation: how many are validation rows.
        correlation: matrix of the training rows.
        variance: its eigenvalues, ascending.
        axes: its eigenvectors, one a column.
    """

    columns: Float[Tensor, "cell feature row"]
    train: int
    validation: int
    correlation: Float[Tensor, "cell feature feature"]
    variance: Float[Tensor, "cell feature"]
    axes: Float[Tensor, "cell feature axis"]

    @property
    def fitted(self) -> int:
        """Rows that are not test rows."""
        return self.train + self.validation


@dataclass(frozen=True)
class Fit:
    """Softmax probes at the strength that validation chose.

    Attributes:
        weights: by standardised feature, the last one the intercept.
        strength: of each problem's penalty.
        loss: validation loss in nats.
        evaluations: of loss and gradient, over the whole path.
        converged: whether what is left to gain is within the tolerance.
    """

    weights: Float[Tensor, "cell problem class weight"]
    strength: Float[Tensor, "cell problem"]
    loss: Float[Tensor, "cell problem"]
    evaluations: Int[Tensor, "cell problem"]
    converged: Bool[Tensor, "cell problem"]


def features(x: Float[Tensor, "cell row feature"], train: int, validation: int, *, standardise: bool = True) -> Features:
    """Centre, and standardise unless told otherwise, by the first `train` rows; features that are constant there become 0."""
    return _fill(x.new_empty(x.shape[0], x.shape[2], x.shape[1]), x, train, validation, standardise)


def in_chunks(
    x: Float[Tensor, "cell batch feature"],
    train: int,
    validation: int,
    *,
    order: Int[Tensor, " row"] | None = None,
    standardise: bool = True,
) -> Iterator[tuple[slice, Features]]:
    """Features of some cells after the other, with which cells they are.

    All share one piece of memory: fresh pages cost more than what is done with them. The next ones overwrite the last.

    Args:
        x: activations.
        train: how many rows are training rows.
        validation: how many come next and are validation rows; the rest is the test.
        order: which of the batch are the rows; None for all as they come.
        standardise: or only centre.
    """
    rows = x.shape[1] if order is None else len(order)
    memory = x.new_empty(min(CHUNK, len(x)), x.shape[2], rows)
    for first in range(0, len(x), CHUNK):
        some = x[first : first + CHUNK]
        yield slice(first, first + len(some)), _fill(memory[: len(some)], some, train, validation, standardise, order)


def _fill(
    columns: Float[Tensor, "cell feature row"],
    x: Float[Tensor, "cell batch feature"],
    train: int,
    validation: int,
    standardise: bool,
    order: Int[Tensor, " row"] | None = None,
) -> Features:
    """One cell after the other, which the processor's cache holds."""
    correlation = x.new_empty(x.shape[0], x.shape[2], x.shape[2])
    picked = x.new_empty(0 if order is None else len(order), x.shape[2])
    for given, own, products in zip(x, columns, correlation, strict=True):
        own.copy_(given.T if order is None else torch.index_select(given, 0, order, out=picked).T)
        mean = own[:, :train].mean(1, keepdim=True)
        own -= mean
        if standardise:
            spread = torch.linalg.vector_norm(own[:, :train], dim=1, keepdim=True) / math.sqrt(train)
            rounding = FLAT * torch.finfo(x.dtype).eps * mean.abs()
            own *= torch.where(spread <= rounding, 0.0, 1 / spread)
        torch.mm(own[:, :train], own[:, :train].T, out=products)
    correlation /= train
    variance, axes = torch.linalg.eigh(correlation)
    return Features(columns, train, validation, correlation, variance.clamp(min=0), axes)


def softmax_path(
    given: Features,
    labels: Int[Tensor, "cell problem row"],
    classes: int,
    strengths: Sequence[float],
    *,
    tolerance: float = TOLERANCE,
    evaluations: int = 300,
) -> Fit:
    """Softmax probes of all problems of all cells, in lockstep, warm-started from strength to strength.

    A problem rests once a weaker penalty has not lowered its validation loss; cells that have converged leave the batch.

    Args:
        given: features.
        labels: class of each row that is not a test row, one row of labels a problem (a target or its control).
        classes: number of classes.
        strengths: of the penalty, strongest first.
        tolerance: nats that a problem's loss may still fall by when it counts as converged.
        evaluations: of loss and gradient at most, for each strength.
    """
    objective = Objective.of(given.columns[..., : given.train], labels[..., : given.train], classes)
    state = State.begin(objective, given.variance, given.axes, strengths[0])
    best = state.theta
    least, chosen, left = (torch.full_like(state.loss, value) for value in (torch.inf, strengths[0], torch.inf))
    used = torch.zeros(labels.shape[:2], dtype=torch.int64)
    resting = torch.zeros_like(used, dtype=torch.bool)
    for strength in strengths:
        state.penalise(torch.full_like(least, strength))
        remaining = descend(objective, state, tolerance, evaluations, used, resting)
        loss = _validation_loss(given, state.theta, labels)
        better = ~resting & (loss < least)
        least, chosen = torch.where(better, loss, least), torch.where(better, strength, chosen)
        left = torch.where(better, remaining, left)
        best = torch.where(better[..., None, None], state.theta, best)
        resting = ~better
        if bool(resting.all()):
            break
    return Fit(best, chosen, least, used, left <= tolerance)


def _validation_loss(
    given: Features, weights: Float[Tensor, "cell problem class weight"], labels: Int[Tensor, "cell problem row"]
) -> Float[Tensor, "cell problem"]:
    said = logits(weights, given.columns[..., given.train : given.fitted]).log_softmax(2)
    return -said.gather(2, labels[:, :, None, given.train : given.fitted])[:, :, 0].mean(2)


def logits(
    weights: Float[Tensor, "cell problem class weight"], columns: Float[Tensor, "cell feature row"]
) -> Float[Tensor, "cell problem class row"]:
    """What the probes say of standardised rows."""
    flat = weights.flatten(1, 2)
    said = torch.baddbmm(flat[:, :, -1:], flat[:, :, :-1], columns)
    return said.view(*weights.shape[:3], columns.shape[2])


def best(
    weights: Float[Tensor, "cell problem class weight"], columns: Float[Tensor, "cell feature row"]
) -> Int[Tensor, "cell problem row"]:
    """The class that the probes say of standardised rows; of equal ones the first."""
    said = logits(weights, columns)
    top, place = said[:, :, 0], torch.zeros(said.shape[0], said.shape[1], said.shape[3], dtype=torch.int64)
    for other in range(1, said.shape[2]):  # argmax over a dimension that is not the last takes three times as long
        place.masked_fill_(said[:, :, other] > top, other)
        top = torch.maximum(top, said[:, :, other])
    return place


def ridge_path(
    given: Features, target: Float[Tensor, "cell problem train"], strengths: Sequence[float]
) -> Float[Tensor, "strength cell problem weight"]:
    """Ridge of every problem of every cell at every strength: in the principal axes, w = (X'y/n) / (variance + strength).

    Args:
        given: features; the training rows are used.
        target: one row of training targets a problem.
        strengths: of the penalty.

    Returns:
        Weights (fp64) by standardised feature, the last one the intercept.
    """
    mean = target.double().mean(2, keepdim=True)
    centred = (target.double() - mean).to(given.columns.dtype)
    variance, axes = torch.linalg.eigh(given.correlation.double())
    products = torch.bmm(centred, given.columns[..., : given.train].mT).double() / given.train @ axes
    shrunk = [products / (variance.clamp(min=0)[:, None] + strength) @ axes.mT for strength in strengths]
    return torch.stack([torch.cat([weights, mean], dim=2) for weights in shrunk])
