"""Interventions: values that say what to put in place of an activation, `intervention(base, source) -> patched`.

A control wraps the treatment it controls, so that it goes through the same map and the same hook.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe.rng import generator


@runtime_checkable
class Intervention(Protocol):
    """What replaces `base` (the receiving activation), given `source` (the donor's)."""

    def __call__(self, base: Float[Tensor, "pair d_dst"], source: Float[Tensor, "pair d_src"]) -> Float[Tensor, "pair d_dst"]:
        """The patched activation."""
        ...


@dataclass(frozen=True)
class Swap:
    """The donor's activation as it is."""

    def __call__(self, base: Float[Tensor, "pair d_dst"], source: Float[Tensor, "pair d_src"]) -> Float[Tensor, "pair d_dst"]:
        """`source`."""
        return source


@dataclass(frozen=True)
class AlignedSwap:
    """The donor's activation carried into the receiver's basis: source @ matrix + offset."""

    matrix: Float[Tensor, "d_src d_dst"]
    offset: Float[Tensor, " d_dst"]

    def __call__(self, base: Float[Tensor, "pair d_dst"], source: Float[Tensor, "pair d_src"]) -> Float[Tensor, "pair d_dst"]:
        """`source @ matrix + offset`."""
        return source @ self.matrix + self.offset


@dataclass(frozen=True)
class OtherDonor:
    """Control: the treatment with another pair's donor (`order[i]` instead of i)."""

    treatment: Intervention
    order: Int[Tensor, " pair"]

    def __call__(self, base: Float[Tensor, "pair d_dst"], source: Float[Tensor, "pair d_src"]) -> Float[Tensor, "pair d_dst"]:
        """The treatment on the reordered donors."""
        return self.treatment(base, source[self.order])


@dataclass(frozen=True)
class NormMatched:
    """Control: a random direction with the norm of what the treatment would have put there."""

    treatment: Intervention
    seed: int

    def __call__(self, base: Float[Tensor, "pair d_dst"], source: Float[Tensor, "pair d_src"]) -> Float[Tensor, "pair d_dst"]:
        """A Gaussian direction for each pair, rescaled."""
        treated = self.treatment(base, source)
        noise = torch.randn(treated.shape, generator=generator(self.seed, "norm-matched")).to(treated)
        size: Tensor = torch.linalg.vector_norm(treated, dim=-1, keepdim=True) / torch.linalg.vector_norm(noise, dim=-1, keepdim=True)
        return noise * size
