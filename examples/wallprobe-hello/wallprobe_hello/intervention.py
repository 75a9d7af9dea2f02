"""The intervention `half`: halfway from the receiver's own activation to the donor's."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from wallprobe.hooks.attach.interventions import Intervention


def half(base: Float[Tensor, "pair d_dst"], source: Float[Tensor, "pair d_src"]) -> Float[Tensor, "pair d_dst"]:
    """The mean of both, which must be of one width."""
    return (base + source) / 2


def interventions() -> Mapping[str, Intervention]:
    """By name."""
    return {"half": half}
