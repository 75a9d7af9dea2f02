"""The optimiser: Muon on the stacked block matrices, AdamW on the rest; state is a flat dict of tensors, so a checkpoint
is one safetensors file and a resumed run continues to the same bytes.

Muon: momentum, then orthogonalisation by five Newton-Schulz steps (Jordan et al. 2024), all matrices of one shape at once.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from wallprobe.training.lean import MATRICES, Params

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
    """Approximate orthogonal factor of each matrix of a stack [..., rows, cols] (singular values near 1), in bf16."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x: Tensor = matrices.to(torch.bfloat16)
    x = x.mT if tall else x
    x = x / (torch.linalg.matrix_norm(x.float(), keepdim=True) + 1e-7).to(torch.bfloat16)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    x = x.mT if tall else x
    return x.to(matrices.dtype)


def init_state(params: Params, settings: OptimSettings) -> dict[str, Tensor]:
    """Zero moments for each parameter under the settings."""
    state: dict[str, Tensor] = {}
    for name, tensor in params.items():
        state[f"m.{name}"] = torch.zeros_like(tensor)
        if not (settings.muon_lr and name in MATRICES):
            state[f"v.{name}"] = torch.zeros_like(tensor)
    return state


def clip_gradients(grads: dict[str, Tensor], limit: float) -> None:
    """Scale all gradients in place so that their joint norm is at most `limit`."""
    total = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in grads.values()]))
    scale = (limit / (total + 1e-6)).clamp(max=1.0)
    for grad in grads.values():
        grad.mul_(scale)


def update(
    params: Params,
    grads: dict[str, Tensor],
    state: dict[str, Tensor],
    step: int,
    scale: float,
    settings: OptimSettings,
    orthogonal: Callable[[Tensor], Tensor] = orthogonalise,
) -> None:
    """One step in place.

    Args:
        params: parameters, changed.
        grads: gradients by the same names, clipped in place.
        state: moments as of `init_state`, changed.
        step: steps done before this one, from 0 (for AdamW's bias correction).
        scale: the schedule's factor on both learning rates.
        settings: rates and decays.
        orthogonal: the orthogonaliser, possibly compiled.
    """
    clip_gradients(grads, settings.clip)
    muon = [name for name in params if settings.muon_lr and name in MATRICES]
    if muon:
        _muon(params, grads, state, scale, settings, muon, orthogonal)
    others = [name for name in params if name not in muon]
    if others:
        _adamw(params, grads, state, step, scale, settings, others)


def _adamw(
    params: Params, grads: dict[str, Tensor], state: dict[str, Tensor], step: int, scale: float, settings: OptimSettings, others: list[str]
) -> None:
    first, second = settings.betas
    rate = settings.adam_lr * scale
    weights = [params[name] for name in others]
    means, squares = [state[f"m.{name}"] for name in others], [state[f"v.{name}"] for name in others]
    gradients = [grads[name] for name in others]
    torch._foreach_lerp_(means, gradients, 1 - first)
    torch._foreach_mul_(squares, second)
    torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
    roots = torch._foreach_sqrt(squares)
    torch._foreach_div_(roots, (1 - second ** (step + 1)) ** 0.5)
    torch._foreach_add_(roots, 1e-8)
    decayed = [params[name] for name in others if params[name].ndim >= 2 and name.startswith("W_")]
    if settings.weight_decay and decayed:
        torch._foreach_mul_(decayed, 1 - rate * settings.weight_decay)
    torch._foreach_addcdiv_(weights, means, roots, value=-rate / (1 - first ** (step + 1)))


def _muon(
    params: Params,
    grads: dict[str, Tensor],
    state: dict[str, Tensor],
    scale: float,
    settings: OptimSettings,
    names: list[str],
    orthogonal: Callable[[Tensor], Tensor],
) -> None:
    rate = settings.muon_lr * scale
    directions: dict[str, Tensor] = {}
    for name in names:
        moment = state[f"m.{name}"]
        moment.mul_(settings.momentum).add_(grads[name])
        directions[name] = grads[name] + settings.momentum * moment
    square = [name for name in names if params[name].shape[-1] == params[name].shape[-2]]
    wide = [name for name in names if name not in square]
    for group in (square, wide):
        if not group:
            continue
        stacked = torch.cat([directions[name] if _is_wide(directions[name]) else directions[name].mT for name in group])
        for name, direction in zip(group, torch.split(orthogonal(stacked), [len(params[name]) for name in group]), strict=True):
            tensor = params[name]
            if not _is_wide(tensor):
                direction = direction.mT
            # Stored as input x output: an output wider than its input gets the larger step.
            growth = max(1.0, tensor.shape[-1] / tensor.shape[-2]) ** 0.5
            if settings.weight_decay:
                tensor.mul_(1 - rate * settings.weight_decay)
            tensor.add_(direction, alpha=-rate * growth)


def _is_wide(tensor: Tensor) -> bool:
    return tensor.shape[-1] >= tensor.shape[-2]
