"""The optimiser: Muon on the stacked block matrices, AdamW on the rest; state is a flat dict of tensors, so a checkpoint
is one safetensors file and a resumed run continues to the same bytes.

Muon: momentum, then orthogonalisation by five Newton-Schulz steps (Jordan et al. 2024), all matrices of one shape at once.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from wallprobe.training.wall.lean import MATRICES, Params

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


@dataclass(frozen=True)
class OptimSettings:
    """Learning rates and decays. `muon_lr` 0 gives every parameter to AdamW."""

    muon_lr: float
    adam_lr: float
    weight_decay: float
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.99)
    clip: float = 1.0


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """Approximate orthogonal factor of each matrix of a stack [stack, rows, cols] (singular values near 1), in bf16."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.mT if tall else matrices
    x = (wide / (wide.square().sum((-2, -1), keepdim=True).sqrt() + 1e-7)).to(torch.bfloat16)
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def init_state(params: Params, settings: OptimSettings) -> dict[str, Tensor]:
    """Zero moments for each parameter under the settings."""
    state: dict[str, Tensor] = {}
    for name, tensor in params.items():
        state[f"m.{name}"] = torch.zeros_like(tensor)
        if not (settings.muon_lr and name in MATRICES):
            state[f"v.{name}"] = torch.zeros_like(tensor)
    return state


@dataclass(frozen=True)
class Rates:
    """What of an update changes from step to step, as 0-dim tensors, so that a compiled update is compiled once.

    Attributes:
        muon: learning rate of the block matrices at this step.
        adam: learning rate of the rest.
        mean: AdamW's bias correction of the first moment, 1 / (1 - beta1^t).
        square: the same of the second.
    """

    muon: Tensor
    adam: Tensor
    mean: Tensor
    square: Tensor

    @classmethod
    def at(cls, step: int, scale: float, settings: OptimSettings, device: torch.device) -> "Rates":
        """Rates after `step` steps under the schedule's factor `scale`."""
        first, second = settings.betas
        values = (
            settings.muon_lr * scale,
            settings.adam_lr * scale,
            1 / (1 - first ** (step + 1)),
            1 / (1 - second ** (step + 1)),
        )
        return cls(*torch.tensor(values, dtype=torch.float32).to(device).unbind(0))


def clip_gradients(grads: dict[str, Tensor], limit: float) -> dict[str, Tensor]:
    """All gradients, scaled so that their joint norm is at most `limit`."""
    total = torch.stack([grad.square().sum() for grad in grads.values()]).sum().sqrt()
    scale = (limit / (total + 1e-6)).clamp(max=1.0)
    return {name: grad * scale for name, grad in grads.items()}


def update(
    params: Params,
    grads: dict[str, Tensor],
    state: dict[str, Tensor],
    rates: Rates,
    settings: OptimSettings,
) -> None:
    """One step in place.

    Args:
        params: parameters, changed.
        grads: gradients by the same names; their joint norm is clipped.
        state: moments as of `init_state`, changed.
        rates: learning rates and bias corrections of this step.
        settings: decays, momentum, clipping.
    """
    clipped = clip_gradients(grads, settings.clip)
    muon = [name for name in params if settings.muon_lr and name in MATRICES]
    if muon:
        _muon(params, clipped, state, rates, settings, muon)
    for name in params:
        if name not in muon:
            _adamw(params[name], clipped[name], state[f"m.{name}"], state[f"v.{name}"], rates, settings, name.startswith("W_"))


def _adamw(weight: Tensor, grad: Tensor, mean: Tensor, square: Tensor, rates: Rates, settings: OptimSettings, decayed: bool) -> None:
    first, second = settings.betas
    mean.lerp_(grad, 1 - first)
    square.mul_(second).addcmul_(grad, grad, value=1 - second)
    if decayed and settings.weight_decay:
        weight.mul_(1 - rates.adam * settings.weight_decay)
    weight.sub_(rates.adam * (mean * rates.mean) / ((square * rates.square).sqrt() + 1e-8))


def _muon(
    params: Params, grads: dict[str, Tensor], state: dict[str, Tensor], rates: Rates, settings: OptimSettings, names: list[str]
) -> None:
    square = [name for name in names if params[name].shape[-1] == params[name].shape[-2]]
    for group in (square, [name for name in names if name not in square]):
        if not group:
            continue
        directions = []
        for name in group:
            moment = state[f"m.{name}"]
            moment.mul_(settings.momentum).add_(grads[name])
            direction = grads[name] + settings.momentum * moment
            directions.append(direction if _is_wide(direction) else direction.mT)
        parts = torch.split(orthogonalise(torch.cat(directions)), [len(params[name]) for name in group])
        for name, part in zip(group, parts, strict=True):
            weight = params[name]
            # Stored as input x output: an output wider than its input gets the larger step.
            growth = max(1.0, weight.shape[-1] / weight.shape[-2]) ** 0.5
            if settings.weight_decay:
                weight.mul_(1 - rates.muon * settings.weight_decay)
            weight.sub_((part if _is_wide(weight) else part.mT) * (rates.muon * growth))


def _is_wide(tensor: Tensor) -> bool:
    return tensor.shape[-1] >= tensor.shape[-2]
