"""Estimators for decoders with transformer-lens hooks: backpropagation in two precisions, direct feedback, simultaneous perturbation.

DFA: Noekland 2016 (arXiv 1609.01596) with the inputs of every block detached, as `feedback` has it for the networks of the audit.
SPSA: Spall 1992; the same draws are made again in place of being kept (as MeZO does: Malladi et al. 2023, arXiv 2305.17333).
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from wallprobe.errors import ConfigError
from wallprobe.models.equilibrium import Equilibrium
from wallprobe.rng import derive_seed, generator
from wallprobe.training.estimators.gradients import in_dtype, masked_mean, mean_loss, named_grads, restored, token_losses
from wallprobe.training.estimators.protocol import Batch, Estimator, GradResult, Maker


def built_in() -> Mapping[str, Maker]:
    """What works on any model with a forward pass; `bp` and `dfa` of decoders are reached through `feedback`."""
    return MappingProxyType({"bp64": bp64, "spsa": spsa})


def bp64(model: nn.Module, seed: int) -> Estimator:
    """Backpropagation in fp64: what fp32 misses. `seed` decides nothing."""
    return Backpropagation(torch.float64)


def spsa(model: nn.Module, seed: int, *, directions: int = 8, scale: float = 1e-3) -> Estimator:
    """Two forward passes along each of some random directions: the noise floor of whatever sees no derivative.

    Raises:
        ConfigError: for no direction, or a scale that is not positive.
    """
    if directions < 1 or not scale > 0:
        raise ConfigError(f"spsa with {directions} directions of scale {scale:g} estimates nothing; give 1 or more, and a positive scale")
    return Perturbation(seed, directions, scale)


@dataclass(frozen=True)
class Backpropagation:
    """The derivative itself, of every parameter the loss reaches.

    Attributes:
        dtype: precision of weights, states and gradients; the model's own by default.
    """

    dtype: torch.dtype | None = None

    def __call__(self, model: Any, batch: Batch) -> GradResult:
        """Gradients of the mean loss.

        Raises:
            ConfigError: for an equilibrium model, whose forward pass leaves no graph.
        """
        if isinstance(model, Equilibrium):
            raise ConfigError("backpropagation through a relaxation is called bptt; name it with its steps: bptt:steps=60")
        if self.dtype is None:
            return self._backward(model, batch)
        with in_dtype(model, self.dtype):
            return self._backward(model, batch)

    def _backward(self, model: Any, batch: Batch) -> GradResult:
        loss = mean_loss(model, batch)
        return GradResult(named_grads(model, loss), loss.detach())


@dataclass(frozen=True)
class Direct:
    """Direct feedback alignment in a decoder: block l is given e B_l^T at every index, B_l ~ N(0, 1) / sqrt(vocabulary).

    B_l is drawn anew from (seed, l) at each call: of a decoder with many tokens, all of them together are larger than the model.
    """

    seed: int

    def __call__(self, model: Any, batch: Batch) -> GradResult:
        """Gradients of CE(readout(h_L detached)) + <h_l, e B_l^T>, every block's input detached."""
        pieces: list[Tensor] = []

        def cut(value: Tensor, hook: Any) -> Tensor:
            pieces.append(value)
            return value.detach()

        layers = int(model.cfg.n_layers)
        names = [*(f"blocks.{layer}.hook_resid_pre" for layer in range(layers)), f"blocks.{layers - 1}.hook_resid_post"]
        found: dict[str, Tensor] = {}

        def keep(logits: Tensor) -> Tensor:
            found["logits"] = logits
            return logits

        losses = token_losses(lambda x: keep(model.run_with_hooks(x, fwd_hooks=[(name, cut) for name in names])), batch)
        loss = masked_mean(losses, batch)
        (error,) = torch.autograd.grad(loss, found["logits"], retain_graph=True)
        total = loss
        for place, piece in enumerate(pieces):
            draws = torch.randn(piece.shape[-1], error.shape[-1], generator=generator(self.seed, "feedback", place))
            credit = error @ (draws / math.sqrt(error.shape[-1])).to(error).T
            total = total + (piece * credit).sum()
        return GradResult(named_grads(model, total), loss.detach())


@dataclass(frozen=True)
class Perturbation:
    """Simultaneous perturbation: mean over directions u of (L(w + c u) - L(w - c u)) / 2c u, u of independent signs.

    Attributes:
        seed: of the directions, the same for every batch and every model of a shape.
        directions: how many.
        scale: c.
    """

    seed: int
    directions: int
    scale: float

    def _signs(self, model: nn.Module, direction: int) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        rng = generator(derive_seed(self.seed, "spsa", direction))
        for name, value in model.named_parameters():
            if value.requires_grad:
                yield name, value, (torch.randint(2, value.shape, generator=rng, dtype=torch.int8) * 2 - 1).to(value)

    @torch.no_grad()
    def __call__(self, model: Any, batch: Batch) -> GradResult:
        """What the perturbations suggest; the parameters are left as they were, bit for bit."""
        grads = {name: torch.zeros_like(value) for name, value in model.named_parameters() if value.requires_grad}
        loss = mean_loss(model, batch)
        with restored(model) as kept:
            for direction in range(self.directions):
                sides = []
                for side in (1, -1):
                    for name, value, signs in self._signs(model, direction):
                        value.copy_(kept[name] + side * self.scale * signs)
                    sides.append(mean_loss(model, batch))
                slope = (sides[0] - sides[1]) / (2 * self.scale * self.directions)
                for name, _, signs in self._signs(model, direction):
                    grads[name] += slope * signs
        size = sum(grad.numel() for grad in grads.values())
        expected = math.sqrt(self.directions / (size + self.directions - 1))
        return GradResult(grads, loss, {"directions": self.directions, "cos_expected": expected})
