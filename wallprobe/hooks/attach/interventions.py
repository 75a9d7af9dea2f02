"""Interventions: values that say what to put in place of an activation, `intervention(base, source) -> patched`.

A control wraps the treatment it controls, so that it goes through the same map and the same hook.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe.errors import ConfigError, look_up
from wallprobe.plugins import named_functions
from wallprobe.rng import generator

GROUP = "wallprobe.interventions"


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


@dataclass(frozen=True)
class Zero:
    """Nothing: zeros in the place of the activation."""

    def __call__(self, base: Float[Tensor, "pair d_dst"], source: Float[Tensor, "pair d_src"]) -> Float[Tensor, "pair d_dst"]:
        """Zeros."""
        return torch.zeros_like(base)


@dataclass(frozen=True)
class Mean:
    """The mean of the receiver's activations over the pairs: what all have in common stays."""

    def __call__(self, base: Float[Tensor, "pair d_dst"], source: Float[Tensor, "pair d_src"]) -> Float[Tensor, "pair d_dst"]:
        """One vector for every pair."""
        return base.mean(0, keepdim=True).expand_as(base).clone()


def built_in() -> Mapping[str, Intervention]:
    """Ours that need no settings, by name."""
    return {"swap": Swap(), "zero": Zero(), "mean": Mean()}


def interventions() -> Mapping[str, Intervention]:
    """Every registered intervention by name: an entry point is a function that returns a mapping of them; the built-in ones win a clash."""
    return named_functions(GROUP)


def as_intervention(what: Any) -> Intervention:
    """An intervention by name, or one itself: any callable of (base, source).

    Raises:
        UnknownNameError: for a name that none has; the message lists those there are.
        ConfigError: for what cannot be called.
    """
    if isinstance(what, str):
        return look_up("intervention", what, interventions())
    if not callable(what):
        raise ConfigError(f"{what!r} is no intervention; give a name ({', '.join(interventions())}) or a function of (base, source)")
    found: Intervention = what
    return found
