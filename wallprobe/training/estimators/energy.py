"""Equilibrium propagation on a predictive-coding energy (Millidge et al. 2022, arXiv 2206.02629).

E = sum_l |h_{l+1} - block_l(h_l)|^2 / 2 + beta CE. Free phase: the forward pass, where the first part is zero. Nudged phase: K steps of
h_l <- h_l - gamma dE/dh_l for l >= 1. Credits are the prediction errors over -beta, weights get dE/dtheta over beta at the nudged state;
both tend to backpropagation's as beta -> 0 and K -> infinity. What the audit study calls EP it does not define: this is our reading.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from wallprobe.errors import ConfigError
from wallprobe.training.estimators.gradients import named_grads, penalised
from wallprobe.training.estimators.nets import Net
from wallprobe.training.estimators.protocol import Batch, CreditEstimator, GradResult


def ep(model: Net, seed: int, *, penalty: float = 0.0, beta: float = 0.1, steps: int = 50, gamma: float = 0.3) -> CreditEstimator:
    """Equilibrium propagation. `seed` decides nothing.

    Raises:
        ConfigError: for values that relax nothing. (gamma 0.5 diverges on ResMLP at its initialisation.)
    """
    if not (beta > 0 and steps >= 1 and 0 < gamma < 1):
        raise ConfigError(f"ep with beta {beta:g}, steps {steps}, gamma {gamma:g}: give beta > 0, steps >= 1 and 0 < gamma < 1")
    return Equilibrium(beta, steps, gamma, penalty)


@dataclass(frozen=True)
class Equilibrium:
    """The nudged predictive-coding network.

    Attributes:
        beta: strength of the nudge.
        steps: K, of the relaxation.
        gamma: its step size.
        penalty: of the states' mean squares.
    """

    beta: float
    steps: int
    gamma: float
    penalty: float = 0.0

    def energy(self, model: Net, states: list[Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """The nudged energy, summed over samples, and the summed loss within it."""
        loss = model.losses(model.readout(states[-1]), batch.y).sum()
        misses = [(after - block(before)).square().sum() for block, before, after in zip(model.blocks, states, states[1:], strict=False)]
        return torch.stack(misses).sum() / 2 + self.beta * loss, loss

    def relax(self, model: Net, batch: Batch) -> tuple[list[Tensor], Tensor, Tensor]:
        """Nudged states h_0..h_L (detached), the free phase's mean loss, and how far the last step moved over how far all did."""
        with torch.no_grad():
            free = model.states(batch.x)
            loss = model.losses(model.readout(free[-1]), batch.y).mean()
        states = [h.detach() for h in free]
        moved = torch.zeros(())
        for _ in range(self.steps):
            leaves = [states[0], *(h.requires_grad_(True) for h in states[1:])]
            slopes = torch.autograd.grad(self.energy(model, leaves, batch)[0], leaves[1:])
            moved = torch.stack([self.gamma * slope.norm() for slope in slopes]).norm()
            states = [states[0], *((h - self.gamma * slope).detach() for h, slope in zip(leaves[1:], slopes, strict=True))]
        whole = torch.stack([(now - before).norm() for now, before in zip(states[1:], free[1:], strict=True)]).norm()
        return states, loss, moved / whole.clamp_min(1e-30)

    def __call__(self, model: Net, batch: Batch) -> GradResult:
        """dE/dtheta over beta at the nudged state, for the mean over the batch; aux has the relaxation's last relative `step`."""
        states, loss, step = self.relax(model, batch)
        live = [model.embed(batch.x), *states[1:]]
        total = self.energy(model, live, batch)[0] / (self.beta * len(batch.x))
        if self.penalty:
            total = penalised(total, model.states(batch.x), self.penalty)
        return GradResult(named_grads(model, total), loss, {"step": float(step)})

    def credits(self, model: Net, batch: Batch) -> list[Tensor]:
        """a_{l+1} = -(h_{l+1} - block_l(h_l)) / beta; a_0 is dE/dh_0 over beta."""
        states, _, _ = self.relax(model, batch)
        first = states[0].detach().requires_grad_(True)
        energy, _ = self.energy(model, [first, *states[1:]], batch)
        (bottom,) = torch.autograd.grad(energy, first)
        with torch.no_grad():
            errors = [after - block(before) for block, before, after in zip(model.blocks, states, states[1:], strict=False)]
        return [bottom / self.beta, *(-error / self.beta for error in errors)]
