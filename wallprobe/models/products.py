"""Matrix products of a walk: by oneDNN with a block's weights in its own layout, where that can be had and pays, else by torch.

oneDNN multiplies fp32 on a CPU a fifth faster with a weight laid out for it, and applies the activation while the product is in the
cache. Laying out one of SmolLM2's blocks costs about what a thousand rows of it save (2 threads, reckoned from 1.7 ms a matrix of 1536 x
576): a walk holds the block at hand, and lets go of it for the next.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

WORTH = 1024  # rows that a block's weights must see before they are laid out
# What torch and oneDNN call an activation: its name and its algorithm.
FUSED = {"gelu": ("gelu", "none"), "gelu_tanh": ("gelu", "tanh"), "silu": ("swish", "")}


def available() -> bool:
    """Whether this torch has oneDNN's product on laid-out weights."""
    mkldnn: Any = torch.backends.mkldnn
    return bool(mkldnn.is_available() and mkldnn.enabled and hasattr(torch.ops.mkldnn, "_linear_pointwise"))


@dataclass
class Products:
    """What a block's weights are multiplied by, and the weights as they were last laid out.

    Attributes:
        rows: that the block at hand will see.
    """

    rows: int = 0
    _laid: dict[tuple[int, tuple[int, ...]], Tensor] = field(default_factory=dict)

    def block(self, rows: int) -> None:
        """Go on to a block that will see so many rows; the last one's weights are let go."""
        self.rows = rows
        self._laid.clear()

    def linear(
        self,
        rows: Float[Tensor, "*batch in"],
        weight: Float[Tensor, "out in"],
        bias: Float[Tensor, "out"] | None = None,
        activation: str | None = None,
        times: Float[Tensor, "*batch out"] | None = None,
    ) -> Float[Tensor, "*batch out"]:
        """activation(rows weight^T + bias), or (rows weight^T + bias) * times.

        Args:
            rows: what is multiplied.
            weight: as a linear layer holds it.
            bias: of the layer.
            activation: a key of `FUSED`; not together with `times`.
            times: multiplied to the product, number by number.
        """
        if self.rows < WORTH or weight.device.type != "cpu" or weight.dtype != torch.float32 or not available():
            return _plain(rows, weight, bias, activation, times)
        key = weight.data_ptr(), tuple(weight.shape)
        if key not in self._laid:
            self._laid[key] = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        product = torch.ops.mkldnn._linear_pointwise
        made: Tensor
        if times is not None:
            made = product(rows, times, self._laid[key], bias, "mul")
        else:
            name, algorithm = FUSED[activation] if activation else ("none", "")
            made = product(rows, self._laid[key], bias, name, [], algorithm)
        return made


def _plain(rows: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, times: Tensor | None) -> Tensor:
    made = F.linear(rows, weight, bias)
    if times is not None:
        return made.mul_(times)
    if activation is None:
        return made
    return F.silu(made, inplace=True) if activation == "silu" else F.gelu(made, approximate=FUSED[activation][1])
