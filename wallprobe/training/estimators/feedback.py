"""Backpropagation, feedback alignment, direct feedback alignment and the frozen baseline, as estimators.

FA: Lillicrap et al. 2016 (arXiv 1411.0247); DFA: Noekland 2016 (arXiv 1609.01596), in the audit study's form: each block gets the
gradient of <h_{l+1}, e_T B^T> with its input detached. Feedback is drawn once, from (seed, layer) alone.
"""

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
import torch.nn.grad as conv
from torch import Tensor, nn

from wallprobe.errors import ConfigError
from wallprobe.models.equilibrium import Equilibrium
from wallprobe.rng import derive_seed, generator
from wallprobe.training.estimators import decoders, transport
from wallprobe.training.estimators.gradients import named_grads, penalised
from wallprobe.training.estimators.nets import Net
from wallprobe.training.estimators.protocol import Batch, CreditEstimator, Estimator, GradResult, Maker, Seen

NORMS = (nn.LayerNorm, nn.BatchNorm2d)


def built_in() -> Mapping[str, Maker]:
    """The methods of the audit by name."""
    from wallprobe.training.estimators.energy import ep

    return MappingProxyType({"bp": bp, "fa": fa, "dfa": dfa, "ep": ep, "frozen": frozen})


def bp(model: nn.Module, seed: int, *, penalty: float = 0.0) -> Estimator:
    """Backpropagation. `seed` decides nothing; `penalty` is weighed against the mean square of every state (networks of the audit)."""
    if isinstance(model, Net):
        return Backpropagation(penalty)
    _without_penalty("bp", penalty)
    return decoders.Backpropagation()


def frozen(model: Net, seed: int, *, penalty: float = 0.0) -> CreditEstimator:
    """The baseline: blocks left as they were drawn, embedding and readout trained by backpropagation through them."""
    return Backpropagation(penalty, outer_only=True)


def dfa(model: nn.Module, seed: int, *, penalty: float = 0.0) -> Estimator:
    """Direct feedback alignment, B_l ~ N(0, 1) / sqrt(classes); of a decoder, classes are its tokens."""
    if isinstance(model, Net):
        return Direct(feedback_matrices(model, seed), penalty)
    if not hasattr(getattr(model, "cfg", None), "n_layers") or isinstance(model, Equilibrium):
        raise ConfigError("direct feedback needs blocks one after the other with hooks between them; this model has none")
    _without_penalty("dfa", penalty)
    return decoders.Direct(seed)


def _without_penalty(name: str, penalty: float) -> None:
    if penalty:
        raise ConfigError(f"{name} of a decoder knows no penalty on states; leave it out")


def fa(model: nn.Module, seed: int, *, penalty: float = 0.0, fa_ln: str = "skip") -> CreditEstimator:
    """Feedback alignment; `fa_ln` "skip" passes credits through layer norms unchanged, "true" uses their Jacobian.

    Raises:
        ConfigError: for another word, or a model with trained layers other than linear, convolution and normalisation.
    """
    if fa_ln not in ("skip", "true"):
        raise ConfigError(f"fa_ln '{fa_ln}' is none of skip, true")
    if not isinstance(model, Net):
        raise ConfigError("feedback alignment knows no transport through this model; use bp or dfa, or `audit run --arch wall`")
    return Sequential(feedback_matrices(model, seed)[-1], random_weights(model, seed), penalty, skip_ln=fa_ln == "skip")


def feedback_matrices(model: Net, seed: int) -> list[Tensor]:
    """B_0..B_L, each [width, classes] in fp32, N(0, 1) / sqrt(classes)."""
    scale = 1 / math.sqrt(model.classes)
    return [
        torch.randn(width, model.classes, generator=generator(seed, "feedback", place)) * scale for place, width in enumerate(model.widths)
    ]


def random_weights(model: Net, seed: int) -> dict[str, Any]:
    """For every linear layer and convolution of embedding and blocks another weight, drawn as torch draws the layer's own; for a
    HookedTransformer's block, one for each of its six matrices."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        if name.startswith("readout") or name.startswith(tuple(f"{block}." for block in found)):
            continue
        if transport.is_block(module):
            found[name] = transport.random_block(module, seed, name)
            continue
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            bound = 1 / math.sqrt(module.weight[0].numel())
            draws = generator(seed, "feedback weight", name)
            found[name] = torch.empty(module.weight.shape).uniform_(-bound, bound, generator=draws)
        elif name.startswith("blocks.") and any(True for _ in module.parameters(recurse=False)) and not isinstance(module, NORMS):
            raise ConfigError(f"feedback alignment knows no transport for {name} ({type(module).__name__}); use bp or dfa")
    return found


def outputs(model: Net, x: Tensor) -> list[list[Tensor]]:
    """A forward pass cut before every part of every block: for each state h_0..h_L, the outputs that make it (one a part)."""
    made = [[model.embed(x)]]
    for place in range(model.depth):
        pieces, h = [], made[-1][-1]
        for part in model.parts(place):
            h = part(h.detach())
            pieces.append(h)
        made.append(pieces)
    return made


@dataclass(frozen=True)
class Backpropagation:
    """True gradients of all parameters, or of those outside the blocks."""

    penalty: float = 0.0
    outer_only: bool = False

    def __call__(self, model: Net, batch: Batch) -> GradResult:
        """Gradients of the mean loss."""
        states = model.states(batch.x) if self.penalty else []
        loss = model.losses(model.readout(states[-1]) if states else model(batch.x), batch.y).mean()
        only = model.outer() if self.outer_only else None
        return GradResult(named_grads(model, penalised(loss, states, self.penalty), only), loss.detach())

    def credits(self, model: Net, batch: Batch) -> list[Tensor]:
        """The derivatives themselves."""
        states = model.states(batch.x)
        if not states[0].requires_grad:
            states = _from_leaf(model, states[0])
        return list(torch.autograd.grad(model.losses(model.readout(states[-1]), batch.y).sum(), states))

    def credits_from(self, model: Net, batch: Batch, seen: Seen) -> list[Tensor]:
        """The reference is the credit."""
        return seen.grads


def _from_leaf(model: Net, h: Tensor) -> list[Tensor]:
    """States from an h_0 that no parameter reaches (the picture itself)."""
    states = [h.detach().requires_grad_(True)]
    for block in model.blocks:
        states.append(block(states[-1]))
    return states


@dataclass(frozen=True)
class Direct:
    """Direct feedback alignment with these B_0..B_L, each [width, classes]."""

    feedback: list[Tensor]
    penalty: float = 0.0

    def __call__(self, model: Net, batch: Batch) -> GradResult:
        """Gradients of CE(readout(h_L detached)) + sum_l mean_i <h_l, e B_l^T>, every part's input detached."""
        made = outputs(model, batch.x)
        logits = model.readout(made[-1][-1].detach())
        loss = model.losses(logits, batch.y).mean()
        error = model.error(logits.detach(), batch.y)
        pulls = []
        for pieces, weights in zip(made, self.feedback, strict=True):
            credit = error @ weights.to(error).T / len(batch.x)
            pulls += [(piece, model.spread(credit, piece)) for piece in pieces]
        total = penalised(loss, [piece for piece, _ in pulls], self.penalty)
        return GradResult(named_grads(model, total, pulls=pulls), loss.detach())

    def credits(self, model: Net, batch: Batch) -> list[Tensor]:
        """e B_l^T, spread over the state."""
        with torch.no_grad():
            states = model.states(batch.x)
            return self.credits_from(model, batch, Seen(states, [], model.readout(states[-1])))

    def credits_from(self, model: Net, batch: Batch, seen: Seen) -> list[Tensor]:
        """The same from states and logits that are there."""
        error = model.error(seen.logits, batch.y)
        return [model.spread(error @ weights.to(error).T, h) for weights, h in zip(self.feedback, seen.states, strict=True)]


@dataclass(frozen=True)
class Sequential:
    """Feedback alignment: e B_L^T at the top, then backwards through random weights."""

    top: Tensor
    weights: dict[str, Any]
    penalty: float = 0.0
    skip_ln: bool = True

    def __call__(self, model: Net, batch: Batch) -> GradResult:
        """Gradients of CE(readout(h_L detached)) + mean_i <h_L, e B_L^T>, transported by the random weights."""
        with rewired(model, self.weights, self.skip_ln):
            states = model.states(batch.x)
        logits = model.readout(states[-1].detach())
        loss = model.losses(logits, batch.y).mean()
        credit = model.spread(model.error(logits.detach(), batch.y) @ self.top.to(logits).T / len(batch.x), states[-1])
        return GradResult(named_grads(model, penalised(loss, states, self.penalty), pulls=[(states[-1], credit)]), loss.detach())

    def credits(self, model: Net, batch: Batch) -> list[Tensor]:
        """The transported credits."""
        with rewired(model, self.weights, self.skip_ln), still(model):
            with torch.no_grad():
                first = model.embed(batch.x)
            states = _from_leaf(model, first)
        error = model.error(model.readout(states[-1]).detach(), batch.y)
        return list(torch.autograd.grad(states[-1], states, model.spread(error @ self.top.to(error).T, states[-1])))


@contextlib.contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """While the block runs, no parameter wants a gradient: a graph built in it has none of the work that theirs would take."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextlib.contextmanager
def rewired(model: nn.Module, weights: Mapping[str, Any], skip_ln: bool) -> Iterator[None]:
    """While the block runs, a forward pass of the model builds a graph whose backward pass uses these weights instead of its own."""
    changed: list[nn.Module] = []
    try:
        for name, module in model.named_modules():
            if isinstance(weights.get(name), Mapping):
                module.__dict__["forward"] = functools.partial(transport.through, module, other=weights[name], skip_ln=skip_ln)
            elif name in weights:
                _replace(module, weights[name])
            elif skip_ln and isinstance(module, nn.LayerNorm) and not name.startswith("readout"):
                _pass_by(module)
            else:
                continue
            changed.append(module)
        yield
    finally:
        for module in changed:
            del module.forward


def _replace(module: nn.Module, other: Tensor) -> None:
    function: Any = _FedConv if isinstance(module, nn.Conv2d) else _FedLinear
    settings = (module.stride, module.padding, module.dilation, module.groups) if isinstance(module, nn.Conv2d) else ()
    module.forward = lambda x: function.apply(x, module.weight, module.bias, other, *settings)


def _pass_by(module: nn.LayerNorm) -> None:
    function: Any = _PassedNorm
    module.__dict__["forward"] = lambda x: function.apply(x, module.weight, module.bias, module.eps)


class _FedLinear(torch.autograd.Function):
    """x W^T + b, whose input gets its derivative through another weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor) -> Tensor:
        ctx.save_for_backward(x, other)
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        x, other = ctx.saved_tensors
        flat = given[0].flatten(0, -2)
        back = given[0] @ other.to(flat) if ctx.needs_input_grad[0] else None
        own = flat.T @ x.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return back, own, flat.sum(0) if ctx.needs_input_grad[2] else None, None


_conv_input: Any = conv.conv2d_input
_conv_weight: Any = conv.conv2d_weight


class _FedConv(torch.autograd.Function):
    """A convolution whose input gets its derivative through another weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, other: Tensor, *settings: Any) -> Tensor:
        ctx.save_for_backward(x, other)
        ctx.settings = settings
        return F.conv2d(x, weight, bias, *settings)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        x, other = ctx.saved_tensors
        back = _conv_input(x.shape, other.to(x), given[0], *ctx.settings) if ctx.needs_input_grad[0] else None
        own = _conv_weight(x, other.shape, given[0], *ctx.settings) if ctx.needs_input_grad[1] else None
        bias = given[0].sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return back, own, bias, None, None, None, None, None


class _PassedNorm(torch.autograd.Function):
    """A layer norm that credits pass as if it were not there; its own gain and bias are trained as usual."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(F.layer_norm(x, x.shape[-1:], eps=eps))
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor | None, ...]:
        (normed,) = ctx.saved_tensors
        gain = (given[0] * normed).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return given[0], gain, given[0].flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None, None


def fresh_feedback(model: Net, seed: int, draw: int) -> list[Tensor]:
    """B_0..B_L that no training used: the null of an alignment."""
    return feedback_matrices(model, derive_seed(seed, "null", draw))
