"""L-BFGS on many penalised softmax regressions in lockstep (Nocedal and Wright 2006, algorithm 7.4), one evaluation a step for all.

The first Hessian is the one at uniform predictions, variance / classes + strength, applied in each cell's principal axes.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

MEMORY = 5  # pairs of steps and gradient changes kept
ARMIJO = 1e-4
ROUNDING = 16  # rounding errors by which a step may seem to raise the loss and be taken all the same
SHRINK = 0.9  # share of cells still moving below which the others leave the batch

Weights = Float[Tensor, "cell problem class weight"]  # the last one the intercept


@dataclass(frozen=True)
class Objective:
    """Mean cross-entropy of all problems with its gradient.

    Labels enter through each class's features summed over its rows, / n, alone: mean cross-entropy = mean log-normaliser -
    <weights, means>.
    """

    columns: Float[Tensor, "cell feature row"]
    means: Weights

    @classmethod
    def of(cls, columns: Tensor, labels: Tensor, classes: int) -> "Objective":
        """From the labels [cell, problem, row]."""
        (cells, problems, rows), width = labels.shape, columns.shape[1]
        hot = columns.new_zeros(cells, problems, classes, rows).scatter_(2, labels[:, :, None], 1.0).flatten(1, 2)
        means = torch.cat([torch.bmm(hot, columns.mT), hot.sum(2, keepdim=True)], dim=2).div_(rows)
        return cls(columns, means.view(cells, problems, classes, width + 1))

    def only(self, chosen: Int[Tensor, " some"]) -> "Objective":
        """Of some cells."""
        return Objective(self.columns.index_select(0, chosen), self.means[chosen])

    def __call__(self, theta: Weights) -> tuple[Float[Tensor, "cell problem"], Weights]:
        """Loss in nats and gradient, without the penalty."""
        cells, problems, classes, width = theta.shape
        flat = theta.flatten(1, 2)
        logits = torch.baddbmm(flat[:, :, -1:], flat[:, :, :-1], self.columns).view(cells, problems, classes, -1)
        probs = logits.softmax(2)
        # Any class tells the log-normaliser, and the first is there after the softmax as before.
        normaliser = (logits[:, :, 0] - probs[:, :, 0].clamp(min=torch.finfo(theta.dtype).tiny).log_()).mean(2)
        gradient = torch.empty_like(theta)
        gradient[..., :-1] = torch.bmm(probs.flatten(1, 2), self.columns.mT).view(cells, problems, classes, width - 1)
        gradient[..., -1] = probs.sum(3)
        return normaliser - dot(theta, self.means), gradient.div_(self.columns.shape[2]).sub_(self.means)


def dot(a: Weights, b: Weights) -> Float[Tensor, "cell problem"]:
    """Inner product of each problem's weights."""
    products: Tensor = torch.linalg.vecdot(a.flatten(2), b.flatten(2))
    return products


def wide(values: Shaped[Tensor, "cell problem"]) -> Shaped[Tensor, "cell problem 1 1"]:
    """A figure of each problem, to scale its weights by."""
    return values[..., None, None]


@dataclass
class State:
    """Where every problem stands.

    Attributes:
        theta: weights.
        loss: with the penalty.
        gradient: with the penalty.
        strength: of the penalty.
        length: of the next trial step.
        scale: of the first inverse Hessian, from the last step.
        variance: eigenvalues for the first Hessian.
        axes: their eigenvectors.
        steps: the last steps, oldest first; zeros before there are any.
        changes: the gradient's changes along them.
    """

    theta: Weights
    loss: Float[Tensor, "cell problem"]
    gradient: Weights
    strength: Float[Tensor, "cell problem"]
    length: Float[Tensor, "cell problem"]
    scale: Float[Tensor, "cell problem"]
    variance: Float[Tensor, "cell feature"]
    axes: Float[Tensor, "cell feature axis"]
    steps: list[Weights] = field(default_factory=list)
    changes: list[Weights] = field(default_factory=list)

    @classmethod
    def begin(cls, objective: Objective, variance: Tensor, axes: Tensor, strength: float) -> "State":
        """At zero, where all predictions are uniform and loss and gradient are known without an evaluation."""
        theta = torch.zeros_like(objective.means)
        classes, dtype = theta.shape[2], theta.dtype
        gradient = -objective.means
        gradient[..., :-1] += objective.columns.mean(2)[:, None, None] / classes
        gradient[..., -1] += 1 / classes
        ones = theta.new_ones(theta.shape[:2])
        loss = ones * torch.tensor(float(classes)).log()
        past = [[torch.zeros_like(theta) for _ in range(MEMORY)] for _ in range(2)]
        return cls(theta, loss, gradient, strength * ones, ones.clone(), ones.clone(), variance.to(dtype), axes.to(dtype), *past)

    def penalise(self, strength: Float[Tensor, "cell problem"]) -> None:
        """Change the strengths: loss, gradient and the remembered changes move by the penalty's difference, nothing is evaluated."""
        more = strength - self.strength
        self.loss = self.loss + 0.5 * more * self.theta[..., :-1].square().sum((2, 3))
        self.gradient = self._pulled(self.gradient, more, self.theta)
        self.changes = [self._pulled(change, more, step) for step, change in zip(self.steps, self.changes, strict=True)]
        self.strength = strength

    @staticmethod
    def _pulled(gradient: Weights, strength: Float[Tensor, "cell problem"], theta: Weights) -> Weights:
        pulled = gradient.clone()
        pulled[..., :-1].addcmul_(wide(strength), theta[..., :-1])
        return pulled

    def evaluate(self, objective: Objective, theta: Weights) -> tuple[Float[Tensor, "cell problem"], Weights]:
        """Loss and gradient at theta, with the penalty."""
        loss, gradient = objective(theta)
        gradient[..., :-1].addcmul_(wide(self.strength), theta[..., :-1])
        return loss + 0.5 * self.strength * theta[..., :-1].square().sum((2, 3)), gradient

    def only(self, chosen: Int[Tensor, " some"]) -> "State":
        """Of some cells."""
        parts = {name: getattr(self, name)[chosen] for name in ALONG}
        return State(**parts, steps=[one[chosen] for one in self.steps], changes=[one[chosen] for one in self.changes])

    def write(self, at: Int[Tensor, " some"], part: "State") -> None:
        """Take over the state of some cells."""
        for name in ALONG:
            getattr(self, name)[at] = getattr(part, name)
        for own, new in zip([*self.steps, *self.changes], [*part.steps, *part.changes], strict=True):
            own[at] = new

    def direction(self) -> Weights:
        """The two-loop recursion; pairs of steps not taken, or without curvature, weigh nothing."""
        towards, weights = self.gradient, []
        curvatures = [dot(step, change) for step, change in zip(self.steps, self.changes, strict=True)]
        inverses = [torch.where(value > 0, 1 / value, 0.0) for value in curvatures]
        for step, change, inverse in reversed(list(zip(self.steps, self.changes, inverses, strict=True))):
            weights.append(inverse * dot(step, towards))
            towards = torch.addcmul(towards, wide(weights[-1]), change, value=-1.0)
        last = self.changes[-1]
        self.scale = torch.where(curvatures[-1] > 0, curvatures[-1] / dot(last, self._inverse(last)), self.scale)
        towards = wide(self.scale) * self._inverse(towards)
        for step, change, inverse, weight in zip(self.steps, self.changes, inverses, reversed(weights), strict=True):
            towards.addcmul_(wide(weight - inverse * dot(change, towards)), step)
        return towards.neg_()

    def _inverse(self, gradient: Weights) -> Weights:
        """The inverse of the Hessian at uniform predictions."""
        cells, problems, classes, width = gradient.shape
        even = 1.0 / classes
        turned = torch.bmm(gradient[..., :-1].reshape(cells, -1, width - 1), self.axes).view(cells, problems, classes, width - 1)
        turned /= even * self.variance[:, None, None] + wide(self.strength)
        back = torch.bmm(turned.flatten(1, 2), self.axes.mT).view(turned.shape)
        return torch.cat([back, gradient[..., -1:] / even], dim=3)

    def advance(
        self,
        objective: Objective,
        direction: Weights,
        slope: Float[Tensor, "cell problem"],
        done: Bool[Tensor, "cell problem"],
    ) -> None:
        """One evaluation: take the trial step where it lowers the loss enough, shorten it elsewhere."""
        trial = torch.addcmul(self.theta, wide(torch.where(done, 0.0, self.length)), direction)
        loss, gradient = self.evaluate(objective, trial)
        accepted = loss <= self.loss + ARMIJO * self.length * slope + ROUNDING * torch.finfo(loss.dtype).eps * self.loss.abs()
        moved = accepted & ~done
        step = torch.where(wide(moved), trial - self.theta, 0.0)
        change = torch.where(wide(moved), gradient - self.gradient, 0.0)
        self.theta, self.gradient = self.theta + step, self.gradient + change
        self.loss = torch.where(moved, loss, self.loss)
        self.length = torch.where(accepted | done, 1.0, 0.25 * self.length)
        self.steps, self.changes = [*self.steps[1:], step], [*self.changes[1:], change]


ALONG = ("theta", "loss", "gradient", "strength", "length", "scale", "variance", "axes")


def descend(
    objective: Objective,
    whole: State,
    tolerance: float,
    evaluations: int,
    used: Int[Tensor, "cell problem"],
    resting: Bool[Tensor, "cell problem"],
) -> Float[Tensor, "cell problem"]:
    """Advance until no problem that does not rest has more than the tolerance left to gain; the batch shrinks as cells get there.

    Args:
        objective: of all cells.
        whole: the state of all cells, changed in place.
        tolerance: nats.
        evaluations: at most.
        used: evaluations so far, added to.
        resting: problems to leave alone.

    Returns:
        What is left to gain, -<gradient, direction> / 2, in nats.
    """
    state, active = whole, torch.arange(len(whole.theta))
    left = torch.zeros_like(whole.loss)
    for spent in range(evaluations + 1):
        direction = state.direction()
        slope = dot(state.gradient, direction)
        left[active] = -0.5 * slope
        done = resting[active] | (-0.5 * slope <= tolerance)
        moving = ~done.all(1)
        if spent == evaluations or not bool(moving.any()):
            break
        if float(moving.double().mean()) < SHRINK:
            if state is not whole:
                whole.write(active, state)
            kept = moving.nonzero()[:, 0]
            active, done, direction, slope = active[kept], done[kept], direction[kept], slope[kept]
            objective, state = objective.only(kept), state.only(kept)
        used[active] += (~done).long()
        state.advance(objective, direction, slope, done)
    if state is not whole:
        whole.write(active, state)
    return left
