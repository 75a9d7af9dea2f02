"""Signals (what information the other positions receive) and routes (where its gradient enters the network).

A signal maps a step's data to a target; a route maps the network's output and that target to a loss per position. An introspective
signal's target comes from the network's own output in the same step, as a constant: no gradient flows through it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe.errors import InstrumentError
from wallprobe.plugins import named_functions
from wallprobe.tasks.recurrence import Posterior

TEMPERATURE = 2.0
NUDGE = 0.1  # length of the self-perturbation, as a share of the residual's own at that index


@dataclass(frozen=True)
class StepData:
    """What a signal may read; positions 1..T-1 in columns 0..T-2.

    Attributes:
        tokens: the sequences.
        label: 1.0 for programs, 0.0 for noise.
        posterior: the exact Bayesian answer, in fp32.
        teacher_logits: the frozen teacher's logits, where the condition has a teacher.
        generator: random numbers of this step, drawn on CPU.
        constant: the condition's constant target in bits, where it has one.
        d_model: width of the residual stream.
        symbols: p, the tokens a sequence may hold; a vocabulary with a separator or with room to spare is larger.
    """

    tokens: Int[Tensor, "batch index"]
    label: Float[Tensor, " batch"]
    posterior: Posterior
    teacher_logits: Float[Tensor, "batch position vocab"] | None
    generator: torch.Generator
    constant: float | None = None
    d_model: int = 0
    symbols: int = field(kw_only=True)


@dataclass(frozen=True)
class Output:
    """What a route may read: the network's outputs that predict positions 1..T-1.

    Attributes:
        logits: fp32.
        residual: final residual stream.
        head: scalar head's reading of the normalised final residual, where the route has one.
        plain, nudged: logits without dropout, and the same with the residual stream nudged half-way up; constants, there for
            signal "self_perturbation" alone.
        symbols: p, as in `StepData`.
    """

    logits: Float[Tensor, "batch position vocab"]
    residual: Float[Tensor, "batch position d_model"]
    head: Float[Tensor, "batch position"] | None
    plain: Float[Tensor, "batch position vocab"] | None = None
    nudged: Float[Tensor, "batch position vocab"] | None = None
    symbols: int = field(kw_only=True)


Signal = Callable[[StepData], Tensor]
Route = Callable[[Output, Tensor], Float[Tensor, "batch position"]]


def entropy_bits(logits: Float[Tensor, "... vocab"]) -> Float[Tensor, "..."]:
    """Entropy of the softmax, in bits."""
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1) / math.log(2.0)


def _no_target(data: StepData) -> Tensor:
    return torch.zeros_like(data.posterior.entropy)


def _entropy(data: StepData) -> Tensor:
    return data.posterior.entropy


def _uniform_entropy(data: StepData) -> Tensor:
    return torch.full_like(data.posterior.entropy, math.log2(data.symbols))


def _constant_entropy(data: StepData) -> Tensor:
    assert data.constant is not None
    return torch.full_like(data.posterior.entropy, data.constant)


def _random_entropy(data: StepData) -> Tensor:
    """Uniform between 0 and log2 p, one draw for each sequence and position, as published."""
    exact = data.posterior.entropy
    return torch.rand(exact.shape, generator=data.generator).to(exact) * math.log2(data.symbols)


def _nudge(data: StepData) -> Float[Tensor, "batch position d_model"]:
    """Random unit vectors, one for each sequence and index."""
    drawn = torch.randn(*data.posterior.entropy.shape, data.d_model, generator=data.generator)
    return F.normalize(drawn, dim=-1).to(data.posterior.entropy)


def _token(data: StepData) -> Tensor:
    return data.tokens[:, 1:]


def _program_weight(data: StepData) -> Tensor:
    return data.posterior.program_weight


def _program_label(data: StepData) -> Tensor:
    return data.label[:, None].expand_as(data.posterior.entropy)


def _random_label(data: StepData) -> Tensor:
    drawn = torch.randint(2, data.label.shape, generator=data.generator).to(data.label)
    return drawn[:, None].expand_as(data.posterior.entropy)


def _shuffled_weight(data: StepData) -> Tensor:
    order = torch.randperm(len(data.label), generator=data.generator)
    return data.posterior.program_weight[order.to(data.label.device)]


def _teacher(data: StepData) -> Tensor:
    assert data.teacher_logits is not None
    return (data.teacher_logits / TEMPERATURE).softmax(-1)


_SIGNALS: Mapping[str, Signal] = MappingProxyType(
    {
        "none": _no_target,
        "entropy": _entropy,
        "uniform_entropy": _uniform_entropy,
        "constant_entropy": _constant_entropy,
        "random_entropy": _random_entropy,
        "token": _token,
        "program_weight": _program_weight,
        "program_label": _program_label,
        "random_label": _random_label,
        "shuffled_weight": _shuffled_weight,
        "teacher": _teacher,
        "smoothness": _no_target,
        "self_entropy": _no_target,
        "self_perturbation": _nudge,
    }
)


def _own_entropy(output: Output) -> Tensor:
    return entropy_bits(output.logits.detach())


def _own_sensitivity(output: Output) -> Tensor:
    """Change of entropy per relative length of the nudge: a rate, so that its size does not hang on how small a nudge is."""
    assert output.plain is not None
    assert output.nudged is not None
    return (entropy_bits(output.nudged) - entropy_bits(output.plain)).abs() / NUDGE


# Targets, in bits (bits per relative length for the perturbation), that only the network's own output can give.
INTROSPECTIVE: Mapping[str, Callable[[Output], Tensor]] = MappingProxyType(
    {"self_entropy": _own_entropy, "self_perturbation": _own_sensitivity}
)


def _softmax_entropy(output: Output, target: Tensor) -> Tensor:
    return (entropy_bits(output.logits) - target).square()


def _softmax_ce(output: Output, target: Tensor) -> Tensor:
    return F.cross_entropy(output.logits.flatten(0, 1), target.flatten(), reduction="none").view(target.shape)


def _softmax_kl(output: Output, target: Tensor) -> Tensor:
    log_probs = (output.logits / TEMPERATURE).log_softmax(-1)
    return (torch.xlogy(target, target) - target * log_probs).sum(-1) * TEMPERATURE**2


def _softmax_peak(output: Output, target: Tensor) -> Tensor:
    floor = 1.0 / output.symbols
    peak = output.logits.softmax(-1).amax(-1)
    return ((peak - floor) / (1.0 - floor) - target).square()


def _scalar_mse(output: Output, target: Tensor) -> Tensor:
    assert output.head is not None
    return (output.head - target).square()


def _scalar_bce(output: Output, target: Tensor) -> Tensor:
    assert output.head is not None
    return F.binary_cross_entropy_with_logits(output.head, target, reduction="none")


def _residual_jump(output: Output, target: Tensor) -> Tensor:
    jump = (output.residual[:, 1:] - output.residual[:, :-1]).square().mean(-1)
    return F.pad(jump, (1, 0))


_ROUTES: Mapping[str, Route] = MappingProxyType(
    {
        "none": lambda output, target: target,
        "softmax_entropy": _softmax_entropy,
        "softmax_ce": _softmax_ce,
        "softmax_kl": _softmax_kl,
        "softmax_peak": _softmax_peak,
        "scalar_mse": _scalar_mse,
        "scalar_bce": _scalar_bce,
        "residual_jump": _residual_jump,
    }
)
SCALAR_ROUTES = ("scalar_mse", "scalar_bce")


def built_in_signals() -> Mapping[str, Signal]:
    """Ours, by name."""
    return _SIGNALS


def built_in_routes() -> Mapping[str, Route]:
    """Ours, by name."""
    return _ROUTES


def signals() -> Mapping[str, Signal]:
    """Every registered signal by name: an entry point is a function that returns a mapping of them; the built-in ones win a clash."""
    return named_functions("wallprobe.signals")


def routes() -> Mapping[str, Route]:
    """Every registered route by name, as `signals`."""
    return named_functions("wallprobe.routes")


def check_target(name: str, target: Any, data: StepData) -> Tensor:
    """A signal's target as it is; the check that a training makes of each.

    Raises:
        InstrumentError: if it is no constant tensor of one entry (or one row of figures) a sequence and position.
    """
    wanted = tuple(data.posterior.entropy.shape)
    if not isinstance(target, Tensor) or tuple(target.shape[:2]) != wanted or target.requires_grad:
        given = f"{tuple(target.shape)}" if isinstance(target, Tensor) else type(target).__name__
        graph = " with a gradient" if isinstance(target, Tensor) and target.requires_grad else ""
        raise InstrumentError(f"signal {name} gives {given}{graph}; it must give a constant tensor [batch, position] = {wanted}")
    return target


def check_loss(name: str, loss: Any, output: Output) -> Tensor:
    """A route's loss as it is.

    Raises:
        InstrumentError: if it is not one figure a sequence and position.
    """
    wanted = tuple(output.residual.shape[:2])
    if not isinstance(loss, Tensor) or tuple(loss.shape) != wanted:
        given = f"{tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise InstrumentError(f"route {name} gives {given}; it must give one figure a sequence and position, {wanted}")
    return loss
