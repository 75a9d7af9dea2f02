"""Linear probes of every cell (layer, index) at once: softmax by preconditioned L-BFGS, ridge in closed form, along a path of strengths.

Softmax: min over W, b of mean cross-entropy + strength/2 |W|^2; ridge: min of mean squared error + strength |w|^2; intercepts are
free. In scikit-learn's words C = 1 / (n strength) and alpha = n strength, on features standardised over the training rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wallprobe.hooks.probes_lbfgs import Objective, State, descend

TOLERANCE = 3e-4  # nats that the loss may still fall, as L-BFGS sees it; a hundredth of what the test sequences resolve
CHUNK = 16  # cells solved together: about what a processor's cache holds
FLAT = 8.0  # spread, in roundings of the mean, up to which a feature is constant


@dataclass(frozen=True)
class Features:
    """Features of each cell, centred and standardised over its training rows.

    Attributes:
        columns: one column a row of data: training, then validation, then test.
        train: how many are training rows.
        validation: how many are validation rows.
        variance: eigenvalues (fp64) of the training rows' correlation matrix, ascending.
        axes: its eigenvectors (fp64), one a column.
    """

    columns: Float[Tensor, "cell feature row"]
    train: int
    validation: int
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
    columns = x.mT.contiguous()
    mean = columns[..., :train].mean(2, keepdim=True)
    columns -= mean
    if standardise:
        spread = torch.linalg.vector_norm(columns[..., :train], dim=2, keepdim=True) / math.sqrt(train)
        rounding = FLAT * torch.finfo(x.dtype).eps * mean.abs()
        columns *= torch.where(spread <= rounding, 0.0, 1 / spread)
    gram = torch.bmm(columns[..., :train], columns[..., :train].mT).double() / train
    variance, axes = torch.linalg.eigh(gram)
    return Features(columns, train, validation, variance.clamp(min=0), axes)


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
    parts = []
    for first in range(0, len(labels), CHUNK):
        some = slice(first, first + CHUNK)
        part = replace(given, columns=given.columns[some], variance=given.variance[some], axes=given.axes[some])
        parts.append(_walk(part, labels[some], classes, strengths, tolerance, evaluations))
    return Fit(*(torch.cat([getattr(part, entry.name) for part in parts]) for entry in fields(Fit)))


def _walk(
    given: Features,
    labels: Int[Tensor, "cell problem row"],
    classes: int,
    strengths: Sequence[float],
    tolerance: float,
    evaluations: int,
) -> Fit:
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
    products = torch.bmm(centred, given.columns[..., : given.train].mT).double() / given.train @ given.axes
    shrunk = [products / (given.variance[:, None] + strength) @ given.axes.mT for strength in strengths]
    return torch.stack([torch.cat([weights, mean], dim=2) for weights in shrunk])
