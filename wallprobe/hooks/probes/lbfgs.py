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
        means = columns.new_empty(cells, problems * classes, width + 1)
        for own, label, sums in zip(columns, labels, means, strict=True):
            hot = own.new_zeros(problems, classes, rows).scatter_(1, label[:, None], 1.0).flatten(0, 1)
            torch.mm(hot, own.T, out=sums[:, :-1])
            sums[:, -1] = hot.sum(1)
        return cls(columns, means.div_(rows).view(cells, problems, classes, width + 1))

    def __call__(
        self, theta: Weights, cells: Int[Tensor, " cell"], wanted: Bool[Tensor, "cell problem"]
    ) -> tuple[Float[Tensor, "cell problem"], Weights]:
        """Loss in nats and gradient, without the penalty, of the wanted problems of some cells; of the others, nothing of use.

        One cell after the other: what a cell's products read and write then fits the processor's cache, and problems that rest
        cost nothing.
        """
        normaliser, sums = theta.new_zeros(theta.shape[:2]), torch.zeros_like(theta)
        classes, rows, tiny = theta.shape[2], self.columns.shape[2], torch.finfo(theta.dtype).tiny
        for place, (cell, which) in enumerate(zip(cells.tolist(), wanted.tolist(), strict=True)):
            if not any(which):
                continue
            chosen = slice(None) if all(which) else torch.tensor(which)
            columns, weights = self.columns[cell], theta[place, chosen].view(-1, theta.shape[3])
            logits = torch.addmm(weights[:, -1:], weights[:, :-1], columns).view(-1, classes, rows)
            probs = logits.softmax(1)
            # Any class tells the log-normaliser, and the first is there after the softmax as before.
            normaliser[place, chosen] = (logits[:, 0] - probs[:, 0].clamp(min=tiny).log_()).sum(1)
            made = torch.empty_like(weights)
            torch.mm(probs.view(-1, rows), columns.T, out=made[:, :-1])
            torch.sum(probs.view(-1, rows), 1, out=made[:, -1])
            sums[place, chosen] = made.view(-1, classes, theta.shape[3])
        means = self.means if len(cells) == len(self.means) else self.means[cells]
        return normaliser / rows - dot(theta, means), sums.div_(rows).sub_(means)


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
        steps: the last steps, `MEMORY` at most, oldest first.
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
        classes = theta.shape[2]
        gradient = -objective.means
        gradient[..., :-1] += objective.columns.mean(2)[:, None, None] / classes
        gradient[..., -1] += 1 / classes
        ones = theta.new_ones(theta.shape[:2])
        loss = ones * torch.tensor(float(classes)).log()
        return cls(theta, loss, gradient, strength * ones, ones.clone(), ones.clone(), variance, axes)

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

    def evaluate(
        self, objective: Objective, theta: Weights, cells: Int[Tensor, " cell"], wanted: Bool[Tensor, "cell problem"]
    ) -> tuple[Float[Tensor, "cell problem"], Weights]:
        """Loss and gradient at theta, with the penalty, of the wanted problems."""
        loss, gradient = objective(theta, cells, wanted)
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
        for own, new in ((self.steps, part.steps), (self.changes, part.changes)):
            own.extend(torch.zeros_like(self.theta) for _ in range(len(new) - len(own)))
            for whole, some in zip(own, new, strict=True):
                whole[at] = some

    def direction(self) -> Weights:
        """The two-loop recursion; pairs of steps not taken, or without curvature, weigh nothing."""
        towards, weights = self.gradient, []
        curvatures = [dot(step, change) for step, change in zip(self.steps, self.changes, strict=True)]
        inverses = [torch.where(value > 0, 1 / value, 0.0) for value in curvatures]
        for step, change, inverse in reversed(list(zip(self.steps, self.changes, inverses, strict=True))):
            weights.append(inverse * dot(step, towards))
            towards = torch.addcmul(towards, wide(weights[-1]), change, value=-1.0)
        if self.changes:
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
        cells: Int[Tensor, " cell"],
        direction: Weights,
        slope: Float[Tensor, "cell problem"],
        done: Bool[Tensor, "cell problem"],
    ) -> None:
        """One evaluation: take the trial step where it lowers the loss enough, shorten it elsewhere."""
        trial = torch.addcmul(self.theta, wide(torch.where(done, 0.0, self.length)), direction)
        loss, gradient = self.evaluate(objective, trial, cells, ~done)
        accepted = loss <= self.loss + ARMIJO * self.length * slope + ROUNDING * torch.finfo(loss.dtype).eps * self.loss.abs()
        moved = accepted & ~done
        step = torch.where(wide(moved), trial - self.theta, 0.0)
        change = torch.where(wide(moved), gradient - self.gradient, 0.0)
        self.theta, self.gradient = self.theta + step, self.gradient + change
        self.loss = torch.where(moved, loss, self.loss)
        self.length = torch.where(accepted | done, 1.0, 0.25 * self.length)
        self.steps, self.changes = [*self.steps, step][-MEMORY:], [*self.changes, change][-MEMORY:]


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
            state = state.only(kept)
        used[active] += (~done).long()
        state.advance(objective, active, direction, slope, done)
    if state is not whole:
        whole.write(active, state)
    return left
