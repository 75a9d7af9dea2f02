"""Linear probes of every cell (layer, index) at once: softmax by preconditioned L-BFGS, ridge in closed form, along a path of strengths.

Softmax: min over W, b of mean cross-entropy + strength/2 |W|^2; ridge: min of mean squared error + strength |w|^2; intercepts are
free. In scikit-learn's words C = 1 / (n strength) and alpha = n strength, on features standardised over the training rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

TOLERANCE = 3e-4  # of the gradient; leaves the loss within about 1e-5 nats of its minimum
MEMORY = 4  # pairs of steps and gradient changes that L-BFGS keeps
ARMIJO = 1e-4
SHRINK = 0.9  # share of cells still moving below which the others leave the batch
FLAT = 8.0  # spread, in roundings of the mean, up to which a feature is constant

Weights = Float[Tensor, "cell problem class weight"]  # in the principal axes, the last one the intercept


@dataclass(frozen=True)
class Features:
    """Standardised features in each cell's principal axes, where the penalty stays what it was and the Hessian is nearly diagonal.

    Attributes:
        rows: centred, divided by each feature's standard deviation, rotated; training rows first, then validation, then test.
        train: how many rows are training rows.
        validation: how many rows are validation rows.
        variance: eigenvalues of the training rows' correlation matrix, ascending.
        axes: the rotation, standardised feature to principal axis.
    """

    rows: Float[Tensor, "cell row feature"]
    train: int
    validation: int
    variance: Float[Tensor, "cell feature"]
    axes: Float[Tensor, "cell feature feature"]

    @property
    def fitted(self) -> int:
        """Rows that are not test rows."""
        return self.train + self.validation


@dataclass(frozen=True)
class Fit:
    """Softmax probes at the strength that validation chose.

    Attributes:
        weights: in the principal axes, the last one the intercept.
        strength: of each problem's penalty.
        loss: validation loss in nats.
        evaluations: of loss and gradient, over the whole path.
        converged: whether the gradient came within the tolerance at every strength tried.
    """

    weights: Float[Tensor, "cell problem class weight"]
    strength: Float[Tensor, "cell problem"]
    loss: Float[Tensor, "cell problem"]
    evaluations: Int[Tensor, "cell problem"]
    converged: Bool[Tensor, "cell problem"]


def features(x: Float[Tensor, "cell row feature"], train: int, validation: int) -> Features:
    """Standardise by the first `train` rows and rotate into their principal axes; features that are constant there become 0."""
    mean = x[:, :train].mean(1, keepdim=True)
    centred = x - mean
    spread = torch.stack([rows.double().square().mean(0, keepdim=True) for rows in centred[:, :train]])
    rounding = FLAT * torch.finfo(x.dtype).eps * mean.double().abs()
    scale = torch.where(spread <= rounding.square(), 0.0, spread.rsqrt())
    centred *= scale.to(x.dtype)
    # In fp64, a cell at a time: the smallest eigenvalues are what the ridge divides by.
    gram = torch.stack([rows.T @ rows for rows in (part.double() for part in centred[:, :train])]) / train
    variance, axes = torch.linalg.eigh(gram)
    rotated = torch.bmm(centred, axes.to(x.dtype))
    return Features(rotated, train, validation, variance.clamp(min=0).to(x.dtype), axes.to(x.dtype))


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

    L-BFGS (Nocedal and Wright 2006, algorithm 7.4) from the Hessian at uniform predictions, which is diagonal in the principal
    axes. Cells that have converged leave the batch. Between strengths the gradients, also those remembered, change by the
    penalty's alone, so nothing is evaluated anew. A problem rests once a weaker penalty has not lowered its validation loss.

    Args:
        given: features.
        labels: class of each row that is not a test row, one row of labels a problem (a target or its control).
        classes: number of classes.
        strengths: of the penalty, strongest first.
        tolerance: largest absolute gradient at which a problem has converged.
        evaluations: of loss and gradient at most, for each strength.
    """
    objective = _Objective.of(given.rows[:, : given.train], labels[..., : given.train], classes)
    state = _State.begin(objective, strengths[0])
    best = torch.zeros_like(state.theta)
    least, chosen = (torch.full_like(state.loss, value) for value in (torch.inf, strengths[0]))
    used = torch.ones(labels.shape[:2], dtype=torch.int64)
    converged, resting = (torch.full_like(used, value, dtype=torch.bool) for value in (True, False))
    for strength in strengths:
        state.weaken(strength)
        _descend(objective, state, given.variance, tolerance, evaluations, used, resting)
        converged &= resting | state.within(tolerance)
        loss = _validation_loss(given, state.theta, labels)
        better = ~resting & (loss < least)
        least, chosen = torch.where(better, loss, least), torch.where(better, strength, chosen)
        best = torch.where(better[..., None, None], state.theta, best)
        resting = ~better
        if bool(resting.all()):
            break
    return Fit(best, chosen, least, used, converged)


def _validation_loss(given: Features, weights: Weights, labels: Int[Tensor, "cell problem row"]) -> Float[Tensor, "cell problem"]:
    said = logits(weights, given.rows[:, given.train : given.fitted]).log_softmax(2)
    return -said.gather(2, labels[:, :, None, given.train : given.fitted])[:, :, 0].mean(2)


@dataclass(frozen=True)
class _Objective:
    """Penalised mean cross-entropy of all problems, with its gradient.

    Labels enter through each class's mean features alone: mean cross-entropy = mean log-normaliser - <weights, class means>.
    """

    x: Float[Tensor, "cell train feature"]
    means: Weights

    @classmethod
    def of(cls, x: Tensor, labels: Tensor, classes: int) -> "_Objective":
        cells, problems, train = labels.shape
        hot = x.new_zeros(cells, problems, classes, train).scatter_(2, labels[:, :, None], 1.0).flatten(1, 2)
        means = torch.cat([torch.bmm(hot, x), hot.sum(2, keepdim=True)], dim=2) / train
        return cls(x, means.view(cells, problems, classes, -1))

    def only(self, chosen: Bool[Tensor, " cell"]) -> "_Objective":
        return _Objective(self.x[chosen], self.means[chosen])

    def __call__(self, theta: Weights, strength: float) -> tuple[Float[Tensor, "cell problem"], Weights]:
        cells, problems, classes, width = theta.shape
        train, flat = self.x.shape[1], theta.flatten(1, 2)
        logits = torch.baddbmm(flat[:, :, -1:], flat[:, :, :-1], self.x.mT).view(cells, problems, classes, train)
        probs = logits.softmax(2)
        # Any class gives the log-normaliser; the softmax has it already.
        normaliser = (logits[:, :, 0] - probs[:, :, 0].clamp(min=torch.finfo(probs.dtype).tiny).log()).mean(2)
        gradient = torch.empty_like(theta)
        gradient[..., :-1] = torch.bmm(probs.flatten(1, 2), self.x).view(cells, problems, classes, width - 1)
        gradient[..., -1] = probs.sum(3)
        gradient.div_(train).sub_(self.means)
        gradient[..., :-1].add_(theta[..., :-1], alpha=strength)
        penalty = 0.5 * strength * theta[..., :-1].square().sum((2, 3))
        return normaliser - (theta * self.means).sum((2, 3)) + penalty, gradient


def _dot(a: Tensor, b: Tensor) -> Float[Tensor, "cell problem 1 1"]:
    products: Tensor = torch.einsum("cpkf,cpkf->cp", a, b)
    return products[..., None, None]


@dataclass
class _State:
    """Where L-BFGS stands in every problem."""

    strength: float
    theta: Weights
    loss: Float[Tensor, "cell problem"]
    gradient: Weights
    length: Float[Tensor, "cell problem"]
    scale: Float[Tensor, "cell problem 1 1"]
    steps: list[Weights]
    changes: list[Weights]

    @classmethod
    def begin(cls, objective: _Objective, strength: float) -> "_State":
        theta = torch.zeros_like(objective.means)
        loss, gradient = objective(theta, strength)
        steps, changes = ([torch.zeros_like(theta) for _ in range(MEMORY)] for _ in range(2))
        one = torch.ones_like(loss)
        return cls(strength, theta, loss, gradient, one, one[..., None, None].clone(), steps, changes)

    def within(self, tolerance: float) -> Bool[Tensor, "cell problem"]:
        return self.gradient.abs().amax((2, 3)) <= tolerance

    def weaken(self, strength: float) -> None:
        """Go to another strength: loss, gradient and remembered changes move by the penalty's difference."""
        more = strength - self.strength
        self.loss = self.loss + 0.5 * more * self.theta[..., :-1].square().sum((2, 3))
        self.gradient[..., :-1] += more * self.theta[..., :-1]
        for step, change in zip(self.steps, self.changes, strict=True):
            change[..., :-1] += more * step[..., :-1]
        self.strength = strength

    def only(self, chosen: Bool[Tensor, " cell"]) -> "_State":
        theta, loss, gradient, length, scale = (value[chosen] for value in self._tensors()[:5])
        steps, changes = ([value[chosen] for value in past] for past in (self.steps, self.changes))
        return _State(self.strength, theta, loss, gradient, length, scale, steps, changes)

    def put(self, at: Int[Tensor, " some"], part: "_State") -> None:
        """Write the state of some cells back."""
        for own, new in zip(self._tensors(), part._tensors(), strict=True):
            own[at] = new

    def _tensors(self) -> list[Tensor]:
        return [self.theta, self.loss, self.gradient, self.length, self.scale, *self.steps, *self.changes]

    def advance(self, objective: _Objective, inverse: Tensor, done: Bool[Tensor, "cell problem"]) -> None:
        """One evaluation: take the trial step where it lowers the loss enough, shorten it elsewhere."""
        direction = -self._newton(inverse)
        trial = self.theta + torch.where(done, 0.0, self.length)[..., None, None] * direction
        loss, gradient = objective(trial, self.strength)
        slope = _dot(self.gradient, direction)[..., 0, 0]
        rounding = 16 * torch.finfo(loss.dtype).eps * self.loss.abs()
        accepted = loss <= self.loss + ARMIJO * self.length * slope + rounding
        moved = (accepted & ~done)[..., None, None]
        step, change = torch.where(moved, trial - self.theta, 0.0), torch.where(moved, gradient - self.gradient, 0.0)
        self.theta = torch.where(moved, trial, self.theta)
        self.gradient = torch.where(moved, gradient, self.gradient)
        self.loss = torch.where(moved[..., 0, 0], loss, self.loss)
        self.length = torch.where(accepted | done, 1.0, 0.25 * self.length)
        self.steps, self.changes = [*self.steps[1:], step], [*self.changes[1:], change]

    def _newton(self, inverse: Tensor) -> Weights:
        """The two-loop recursion; pairs of steps not taken, or without curvature, weigh nothing."""
        towards, weights = self.gradient, []
        curvatures = [_dot(step, change) for step, change in zip(self.steps, self.changes, strict=True)]
        inverses = [torch.where(value > 0, 1 / value, 0.0) for value in curvatures]
        for step, change, weight in reversed(list(zip(self.steps, self.changes, inverses, strict=True))):
            weights.append(weight * _dot(step, towards))
            towards = torch.addcmul(towards, weights[-1], change, value=-1.0)
        newest = _dot(self.changes[-1], inverse * self.changes[-1])
        self.scale = torch.where(curvatures[-1] > 0, curvatures[-1] / newest, self.scale)
        towards = towards * self.scale * inverse
        for step, change, kept, weight in zip(self.steps, self.changes, inverses, reversed(weights), strict=True):
            towards.addcmul_(weight - kept * _dot(change, towards), step)
        return towards


def _descend(
    objective: _Objective,
    whole: _State,
    variance: Float[Tensor, "cell feature"],
    tolerance: float,
    evaluations: int,
    used: Int[Tensor, "cell problem"],
    resting: Bool[Tensor, "cell problem"],
) -> None:
    """Advance until every problem that does not rest is within the tolerance; the batch shrinks as cells get there."""
    state, active = whole, torch.arange(len(whole.theta))
    even = 1.0 / whole.theta.shape[2]
    curvature = torch.cat([even * variance + whole.strength, torch.full_like(variance[:, :1], even)], dim=1)
    inverse = curvature.reciprocal()[:, None, None]
    for _ in range(evaluations):
        done = resting[active] | state.within(tolerance)
        moving = ~done.all(1)
        if not bool(moving.any()):
            break
        if float(moving.double().mean()) < SHRINK:
            if state is not whole:
                whole.put(active, state)
            active, inverse, done = active[moving], inverse[moving], done[moving]
            objective, state = objective.only(moving), state.only(moving)
        used[active] += (~done).long()
        state.advance(objective, inverse, done)
    if state is not whole:
        whole.put(active, state)


def logits(weights: Weights, rows: Float[Tensor, "cell row feature"]) -> Float[Tensor, "cell problem class row"]:
    """What the probes say of rows given in the principal axes."""
    flat = weights.flatten(1, 2)
    said = torch.baddbmm(flat[:, :, -1:], flat[:, :, :-1], rows.mT)
    return said.view(*weights.shape[:3], rows.shape[1])


def coefficients(weights: Weights, given: Features) -> Weights:
    """The weights by standardised feature instead of principal axis; intercepts as they were."""
    turned = torch.einsum("cpkf,cgf->cpkg", weights[..., :-1], given.axes)
    return torch.cat([turned, weights[..., -1:]], dim=-1)


def ridge_path(
    given: Features, target: Float[Tensor, "cell problem train"], strengths: Sequence[float]
) -> Float[Tensor, "strength cell problem weight"]:
    """Ridge of every problem of every cell at every strength, in closed form: in the principal axes, w = (X'y/n) / (variance + strength).

    Args:
        given: features; the training rows are used.
        target: one row of training targets a problem.
        strengths: of the penalty.

    Returns:
        Weights (fp64) in the principal axes, the last one the intercept.
    """
    mean = target.double().mean(2, keepdim=True)
    centred = target.double() - mean
    x = given.rows[:, : given.train]
    products = torch.stack([y @ rows.double() for y, rows in zip(centred, x, strict=True)]) / given.train
    shrunk = [products / (given.variance.double()[:, None] + strength) for strength in strengths]
    return torch.stack([torch.cat([weights, mean], dim=2) for weights in shrunk])
