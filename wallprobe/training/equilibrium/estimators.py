"""Estimators of an equilibrium model's gradient: equilibrium propagation, BPTT, truncated BPTT, implicit.

All but BPTT find a = -dz*/d(beta), the loss's adjoint at the fixed point, and read the gradient of <a, F(z*)> + CE(z* W_U) with z* and a
held: no backward pass through the relaxation. EP: Scellier and Bengio 2017 (arXiv 1602.05179); symmetric nudges: Laborieux et al. 2021
(arXiv 2006.03824); N points: Laborieux and Zenke 2022 (arXiv 2209.00530); correction for a J that is not symmetric: Scurria et al. 2026
(arXiv 2602.03670).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from wallprobe.errors import ConfigError
from wallprobe.models.equilibrium import Equilibrium, Fused, RelaxResult
from wallprobe.training.equilibrium.linear import Frozen, branches_complex, softmax_complex
from wallprobe.training.estimators.gradients import named_grads
from wallprobe.training.estimators.protocol import Batch, Estimator, GradResult, Maker

AUTO_R, AUTO_AMP = 0.02, 0.01  # where "auto" begins, and the relative displacement it steers to
TINY = 1e-30


def built_in() -> Mapping[str, Maker]:
    """The estimators by name."""
    return MappingProxyType(
        {"eqprop": eqprop, "eqprop-4": eqprop_4, "eqprop-plain": eqprop_plain, "bptt": bptt, "tbptt": tbptt, "implicit": implicit}
    )


@dataclass(frozen=True)
class Free:
    """A free phase.

    Attributes:
        relaxed: state (detached) and residuals.
        end: the state with its graph, where an estimator differentiates through the relaxation.
    """

    relaxed: RelaxResult
    end: Tensor | None = None


@runtime_checkable
class TwoPhase(Estimator, Protocol):
    """An estimator whose free phase can be looked at before the rest is paid for: what the validity gate needs."""

    def free(self, model: Any, batch: Batch) -> Free:
        """Relax."""

    def gradient(self, model: Any, batch: Batch, free: Free) -> GradResult:
        """The estimate from there."""


def nudge(logits: Tensor, batch: Batch) -> Tensor:
    """softmax - onehot where a label counts, 0 elsewhere: the summed CE's derivative by the logits. `logits` may hold the batch twice."""
    made = logits.softmax(-1) if not logits.is_complex() else softmax_complex(logits)
    wanted = batch.y.repeat(len(logits) // len(batch.y), 1)[..., None]
    made.scatter_add_(-1, wanted, torch.full_like(wanted, -1, dtype=made.dtype))
    return made if batch.mask is None else made * batch.mask.repeat(len(logits) // len(batch.mask), 1)[..., None]


def supervised(batch: Batch) -> int:
    """How many labels count."""
    return batch.y.numel() if batch.mask is None else int(batch.mask.sum())


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Mean over the labels that count, nats."""
    each = F.cross_entropy(logits.flatten(0, 1), batch.y.flatten(), reduction="none")
    return each.mean() if batch.mask is None else each[batch.mask.flatten()].mean()


def read_out(model: Equilibrium, batch: Batch, z: Tensor, a: Tensor, aux: dict[str, Any]) -> GradResult:
    """Gradients of <a, F(z, x(theta), theta)> + CE(z W_U), z and a held."""
    z = z.detach()
    loss = cross_entropy(model.logits(z), batch)
    whole = (a.detach() * model.force(z, model.embedded(batch.x))).sum() + loss
    sizes = a.detach().double().flatten(1).norm(dim=1)
    outlier = float(sizes.max() / sizes.median().clamp_min(TINY))
    return GradResult(named_grads(model, whole), loss.detach(), aux | {"a_norms": sizes, "outlier": outlier})


def free_phase(model: Equilibrium, batch: Batch, steps: int | None = None, tol: float | None = None) -> Free:
    """Relax from x without a graph."""
    return Free(model.relax(model.embedded(batch.x), steps=steps, tol=tol))


def _told(free: Free) -> dict[str, Any]:
    """What every estimate says of its free phase."""
    return {"res": free.relaxed.res, "free_steps": free.relaxed.steps}


@dataclass
class EqProp:
    """Equilibrium propagation with N = 2 (real, +-r) or N = 4 points (and +-ir, by conjugate symmetry one complex relaxation).

    Attributes:
        points: N.
        r: the nudges' radius; where `auto` is set, what the last batch asks of the next.
        auto: steer r so that the nudged state is displaced by `AUTO_AMP` of the free one's norm.
        steps: T2; None takes the model's.
        corrected: add (J^T - J)(z - z*), which makes the nudged response that of J^T.
        free_steps: of the free phase; None takes T1.
        probe: also relax at r/2 and report `lin`, the change of a.
    """

    points: int = 2
    r: float = AUTO_R
    auto: bool = False
    steps: int | None = None
    corrected: bool = True
    free_steps: int | None = None
    probe: bool = False

    def free(self, model: Equilibrium, batch: Batch) -> Free:
        """The free phase."""
        return free_phase(model, batch, self.free_steps)

    def gradient(self, model: Equilibrium, batch: Batch, free: Free) -> GradResult:
        """The estimate; aux has r, amp, nudge_res, outlier, and lin under `probe`."""
        with torch.no_grad():
            fused, x = model.fused(), model.embedded(batch.x)
            nudged = _Nudged(model, fused, batch, free.relaxed.z, x, self.steps or model.cfg.T2, self.corrected)
            a, aux = nudged.adjoint(self.r, self.points)
            aux |= _told(free) | {"r": self.r}
            if self.probe:
                half, _ = nudged.adjoint(self.r / 2, self.points)
                aux["lin"] = float((a - half).double().norm() / half.double().norm().clamp_min(TINY))
        if self.auto and math.isfinite(aux["amp"]) and aux["amp"] > 0:
            self.r *= min(10.0, max(0.1, AUTO_AMP / aux["amp"]))
        return read_out(model, batch, free.relaxed.z, a, aux)

    def __call__(self, model: Equilibrium, batch: Batch) -> GradResult:
        """Both phases."""
        return self.gradient(model, batch, self.free(model, batch))

    def state(self) -> dict[str, float]:
        """What the next estimate depends on beyond model and batch."""
        return {"r": self.r}

    def restore(self, state: Mapping[str, float]) -> None:
        """Go on from there."""
        self.r = float(state["r"])


@dataclass(frozen=True)
class _Nudged:
    """Nudged phases from one free state."""

    model: Equilibrium
    fused: Fused
    batch: Batch
    z: Tensor
    x: Tensor
    steps: int
    corrected: bool
    frozen: dict[int, Frozen] = field(default_factory=dict)

    def adjoint(self, r: float, points: int) -> tuple[Tensor, dict[str, Any]]:
        """a, and figures of the nudged phase."""
        size = len(self.z)
        shift, step = self.settle(torch.tensor([r, -r], dtype=self.z.dtype), 2)
        plus, minus = shift[:size], shift[size:]
        scale = supervised(self.batch) * r
        a = (minus - plus) / (2 * scale)
        if points == 4:
            turned, last = self.settle_complex(r)
            step = max(step, last)
            a = a / 2 - turned.imag / (2 * scale)
        return a, {"amp": float(plus.double().norm() / self.z.double().norm()), "nudge_res": step}

    def settle(self, betas: Tensor, times: int) -> tuple[Tensor, float]:
        """z - z* after the nudged steps at each of several real betas, stacked, and the last step's relative size."""
        cfg, fused = self.model.cfg, self.fused
        batch, _, width = self.z.shape
        start = self.z.repeat(times, 1, 1)
        drive = (self.x + fused.b_out).repeat(times, 1, 1)
        pushed = betas.to(self.z).repeat_interleave(batch)[:, None, None]
        unembed: Tensor = self.model.unembed.W_U
        frozen = self._frozen(times) if self.corrected else None
        z, step = start, torch.zeros_like(start)
        for _ in range(self.steps):
            mixed, hidden = fused.inner(z)
            force = torch.addcmul(drive, pushed, nudge(z @ unembed, self.batch) @ unembed.T, value=-1).add_(z, alpha=-(1 + cfg.c))
            force.view(-1, width).addmm_(mixed.view(-1, width), fused.w_o).addmm_(hidden, fused.w_out)
            if frozen is not None:
                d = z - start
                force.add_(frozen.pull(d)).sub_(frozen.push(d))
            step = force.mul_(cfg.eps)
            z = z + step
        return z - start, float(step.double().norm() / z.double().norm())

    def settle_complex(self, r: float) -> tuple[Tensor, float]:
        """The same at beta = ir."""
        cfg, kind = self.model.cfg, torch.complex128 if self.z.dtype == torch.float64 else torch.complex64
        start, x, unembed = self.z.to(kind), self.x.to(kind), self.model.unembed.W_U.to(kind)
        size = len(start)
        frozen = self._frozen(2) if self.corrected else None
        z, step = start, torch.zeros_like(start)
        for _ in range(self.steps):
            force = x - (1 + cfg.c) * z + branches_complex(self.fused, z) - 1j * r * (nudge(z @ unembed, self.batch) @ unembed.T)
            if frozen is not None:
                d = z - start
                parts = torch.cat([d.real, d.imag])
                turn = frozen.pull(parts) - frozen.push(parts)
                force = force + torch.complex(turn[:size], turn[size:])
            step = cfg.eps * force
            z = z + step
        return z - start, float(step.abs().double().norm() / z.abs().double().norm())

    def _frozen(self, times: int) -> Frozen:
        """The linearisation at z*, made once."""
        if times not in self.frozen:
            self.frozen[times] = Frozen.at(self.fused, self.z).repeated(times)
        return self.frozen[times]


@dataclass(frozen=True)
class Unrolled:
    """Backpropagation through Euler steps: all of them from z0 = x (BPTT), or K more from the detached free state (truncated).

    Attributes:
        steps: of the unroll; None takes T1.
        truncated: begin at the free state.
        free_steps: of the free phase before a truncated unroll; None takes T1.
    """

    steps: int | None = None
    truncated: bool = False
    free_steps: int | None = None

    def free(self, model: Equilibrium, batch: Batch) -> Free:
        """The free phase; with its graph unless truncated."""
        if self.truncated:
            return free_phase(model, batch, self.free_steps)
        x = model.embedded(batch.x)
        return unroll(model, x, x, self.steps or model.cfg.T1)

    def gradient(self, model: Equilibrium, batch: Batch, free: Free) -> GradResult:
        """Backwards."""
        aux = _told(free)
        if self.truncated:
            free = unroll(model, free.relaxed.z, model.embedded(batch.x), self.steps or model.cfg.T2)
        assert free.end is not None
        loss = cross_entropy(model.logits(free.end), batch)
        return GradResult(named_grads(model, loss), loss.detach(), aux)

    def __call__(self, model: Equilibrium, batch: Batch) -> GradResult:
        """Both phases."""
        return self.gradient(model, batch, self.free(model, batch))


def unroll(model: Equilibrium, z: Tensor, x: Tensor, steps: int) -> Free:
    """Euler steps with their graph."""
    cfg, fused = model.cfg, model.fused()
    drive, keep = cfg.eps * x, 1 - cfg.eps * (1 + cfg.c)
    before = z
    for _ in range(steps):
        before, z = z, torch.add(drive + keep * z, fused.branches(z), alpha=cfg.eps)
    moved, size = ((value.detach().double()).flatten(1).norm(dim=1) for value in (z - before, z))
    return Free(RelaxResult(z.detach(), float(moved.norm() / size.norm()), moved / size, steps), z)


@dataclass(frozen=True)
class Implicit:
    """The adjoint of the implicit function theorem by its own relaxation: a <- a + eps (J^T a + g). The reference.

    Attributes:
        tol: relative change of a at which it is there; None takes 1e-6 in fp32, 1e-10 in fp64.
        max_steps: at most.
        free_steps: of the free phase; None takes T1.
    """

    tol: float | None = None
    max_steps: int = 4000
    free_steps: int | None = None

    def free(self, model: Equilibrium, batch: Batch) -> Free:
        """The free phase."""
        return free_phase(model, batch, self.free_steps)

    def gradient(self, model: Equilibrium, batch: Batch, free: Free) -> GradResult:
        """The estimate; aux has `adjoint_steps` and `converged`."""
        cfg, z = model.cfg, free.relaxed.z
        tol = self.tol or (1e-10 if z.dtype == torch.float64 else 1e-6)
        converged, done = False, 0
        with torch.no_grad():
            frozen, unembed = Frozen.at(model.fused(), z), model.unembed.W_U
            pushed = cfg.eps / supervised(batch) * (nudge(z @ unembed, batch) @ unembed.T)
            a = torch.zeros_like(z)
            for done in range(1, self.max_steps + 1):  # noqa: B007
                step = torch.add(pushed, frozen.pull(a), alpha=cfg.eps).add_(a, alpha=-cfg.eps * (1 + cfg.c))
                a = a + step
                change = float(step.norm() / a.norm().clamp_min(TINY))
                converged = change < tol
                if converged or not math.isfinite(change):
                    break
        return read_out(model, batch, z, a, _told(free) | {"adjoint_steps": done, "converged": converged})

    def __call__(self, model: Equilibrium, batch: Batch) -> GradResult:
        """Both phases."""
        return self.gradient(model, batch, self.free(model, batch))


def _needs_equilibrium(name: str, model: nn.Module) -> None:
    if not isinstance(model, Equilibrium):
        raise ConfigError(
            f"estimator {name} needs an equilibrium model, and this is a {type(model).__name__}; train one: equilibrium train"
        )


def _positive(name: str, **given: float | int | None) -> None:
    for key, value in given.items():
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"estimator {name} with {key} {value:g}: give more than 0")


def eqprop(
    model: nn.Module,
    seed: int,
    *,
    r: float | str = AUTO_R,
    steps: int | None = None,
    free_steps: int | None = None,
    points: int = 2,
    corrected: bool = True,
    probe: bool = False,
) -> EqProp:
    """Equilibrium propagation. `seed` decides nothing.

    Args:
        model: an equilibrium model.
        seed: unused.
        r: radius of the nudges, times the mean CE summed over labels; or "auto".
        steps: T2.
        free_steps: of the free phase.
        points: 2 or 4.
        corrected: with the correction for a J that is not symmetric.
        probe: report `lin` too, at the cost of a second nudged phase.

    Raises:
        ConfigError: for a model that has no fixed point, or values that nudge nothing.
    """
    _needs_equilibrium("eqprop", model)
    if isinstance(r, str) and r != "auto":
        raise ConfigError(f"estimator eqprop with r '{r}': give a number or auto")
    if points not in (2, 4):
        raise ConfigError(f"estimator eqprop with {points} points: give 2 or 4")
    start = AUTO_R if isinstance(r, str) else r
    _positive("eqprop", r=start, steps=steps, free_steps=free_steps)
    return EqProp(points, start, isinstance(r, str), steps, corrected, free_steps, probe)


def eqprop_4(model: nn.Module, seed: int, **options: Any) -> EqProp:
    """Equilibrium propagation with four points on a circle in the complex plane: bias O(r^4) for O(r^2)."""
    return eqprop(model, seed, **{"points": 4, **options})


def eqprop_plain(model: nn.Module, seed: int, **options: Any) -> EqProp:
    """Equilibrium propagation without the correction: the negative control."""
    return eqprop(model, seed, **{"corrected": False, **options})


def bptt(model: nn.Module, seed: int, *, steps: int | None = None) -> Unrolled:
    """Backpropagation through the whole relaxation from z0 = x: the exact gradient of the loss after so many steps.

    Raises:
        ConfigError: as `eqprop`.
    """
    _needs_equilibrium("bptt", model)
    _positive("bptt", steps=steps)
    return Unrolled(steps)


def tbptt(model: nn.Module, seed: int, *, steps: int | None = None, free_steps: int | None = None) -> Unrolled:
    """Backpropagation through K more steps from the free state.

    Raises:
        ConfigError: as `eqprop`.
    """
    _needs_equilibrium("tbptt", model)
    _positive("tbptt", steps=steps, free_steps=free_steps)
    return Unrolled(steps, truncated=True, free_steps=free_steps)


def implicit(model: nn.Module, seed: int, *, tol: float | None = None, max_steps: int = 4000, free_steps: int | None = None) -> Implicit:
    """Implicit differentiation at the free state: the reference.

    Raises:
        ConfigError: as `eqprop`.
    """
    _needs_equilibrium("implicit", model)
    _positive("implicit", tol=tol, max_steps=max_steps, free_steps=free_steps)
    return Implicit(tol, max_steps, free_steps)
