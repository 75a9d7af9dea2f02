"""The contraction controller: a Jacobian penalty, its servo, excursions, the fuse, kinds of plateau (the equilibrium study)."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from wallprobe.models.equilibrium import Equilibrium
from wallprobe.training.equilibrium.job import Control
from wallprobe.training.equilibrium.linear import Frozen

EXCURSION = 10.0  # times the target
LODGED_STEPS, LODGED_ABOVE = 100, 0.5  # steps out of range, nats above the best
PLATEAUS = ("invalid", "over-contracted", "controller fight", "none")


def penalty(model: Equilibrium, z: Tensor, draws: torch.Generator) -> Tensor:
    """|v^T J_nc(z)|^2 / numel(z), v ~ N(0, I): Hutchinson's estimate of |J_nc|_F^2 / numel, differentiable by the block's weights.

    Args:
        model: whose branches.
        z: state, held.
        draws: of v.
    """
    v = torch.randn(z.shape, generator=draws).to(z)
    return Frozen.at(model.fused(), z.detach()).pull(v).square().mean()


def servo(lam: float, res: float, limits: Control) -> float:
    """lambda after a step: up where the residual is above its target, down where it is below, by at most e^kappa."""
    if not math.isfinite(res) or res <= 0:
        push = 1.0 if not math.isfinite(res) else -1.0
    else:
        push = min(1.0, max(-1.0, math.log(res / limits.target)))
    return min(limits.most, max(limits.floor, lam * math.exp(limits.kappa * push)))


@dataclass
class Watch:
    """What the residual has done so far.

    Attributes:
        skips: steps whose task gradient was left out.
        first_valid: the first step that was not; None while there is none.
        first_cos: cosine to BPTT's gradient there, over the block's parameters, where the recipe asks for it.
        excursions: how often, after that, the residual left 10 targets before it came back under one.
        out: whether it is out now.
        above_fuse: steps on end above the fuse.
        out_steps: steps on end out of range.
        best: least validation loss, with its step.
        status: "running", "done", "diverged", "fused"; "lodged" where it ended far above its best, out of range.
        lodged_at: the step from which it was lodged; None where it was not, or came back.
    """

    skips: int = 0
    first_valid: int | None = None
    first_cos: float | None = None
    excursions: int = 0
    out: bool = False
    above_fuse: int = 0
    out_steps: int = 0
    best: float = math.inf
    best_step: int = 0
    status: str = "running"
    lodged_at: int | None = None

    def see(self, step: int, res: float, skipped: bool, limits: Control) -> None:
        """One step's residual."""
        self.skips += skipped
        if not skipped and self.first_valid is None:
            self.first_valid = step
        if self.first_valid is not None and not self.out and res > EXCURSION * limits.target:
            self.out, self.excursions = True, self.excursions + 1
        elif self.out and res < limits.target:
            self.out = False
        self.out_steps = self.out_steps + 1 if res > EXCURSION * limits.target else 0
        self.above_fuse = self.above_fuse + 1 if res > limits.fuse else 0
        if not math.isfinite(res):
            self.status = "diverged"
        elif self.above_fuse >= limits.patience:
            self.status = "fused"

    def judge(self, step: int, val: float) -> bool:
        """One evaluation; True if it is the best so far."""
        better = val < self.best
        if better:
            self.best, self.best_step = val, step
        if self.out_steps >= LODGED_STEPS and val > self.best + LODGED_ABOVE:
            self.lodged_at = step if self.lodged_at is None else self.lodged_at
        else:
            self.lodged_at = None
        return better

    def config(self) -> dict[str, Any]:
        """Plain JSON."""
        whole = asdict(self)
        return whole | {"best": None if math.isinf(self.best) else self.best}

    @classmethod
    def of(cls, stored: dict[str, Any]) -> "Watch":
        """What `config` wrote."""
        return cls(**stored | {"best": math.inf if stored["best"] is None else stored["best"]})


@dataclass(frozen=True)
class Plateau:
    """What kind of plateau the last part of a log looks like, with what it was told from. Labels; thresholds are ours."""

    kind: str
    skip_share: float
    at_most_share: float
    res_over_target: float
    flip_share: float
    cos_task_jac: float


def classify(
    res: Sequence[float], lam: Sequence[float], skipped: Sequence[bool], cosines: Sequence[float], limits: Control, last: float = 0.5
) -> Plateau:
    """The plateau of a log's last part.

    Args:
        res, lam, skipped: of every step.
        cosines: between task and penalty gradient, where both were there.
        limits: of the controller.
        last: share of the log that is looked at.
    """
    start = int(len(res) * (1 - last))
    res, lam, skipped = res[start:], lam[start:], skipped[start:]
    if not res:
        return Plateau("none", math.nan, math.nan, math.nan, math.nan, math.nan)
    moves = [now - before for before, now in itertools.pairwise(lam) if now != before]
    flips = sum((a > 0) != (b > 0) for a, b in itertools.pairwise(moves)) / len(lam)
    share = sum(skipped) / len(skipped)
    pinned = sum(value >= limits.most * (1 - 1e-9) for value in lam) / len(lam)
    over = sorted(res)[len(res) // 2] / limits.target
    kept = [value for value in cosines[int(len(cosines) * (1 - last)) :] if math.isfinite(value)]
    cos = sorted(kept)[len(kept) // 2] if kept else math.nan
    kind = "none"
    if share > 0.5 and pinned > 0.5:
        kind = "invalid"
    elif flips > 0.4 or cos < -0.5:
        kind = "controller fight"
    elif over < 1 and share < 0.05:
        kind = "over-contracted"
    return Plateau(kind, share, pinned, over, flips, cos)
