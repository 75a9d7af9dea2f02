"""Feedback alignment through a block of a HookedTransformer: the block's own forward pass, its backward pass through other weights.

Every product with a weight W passes its derivative on through a fixed random R of the same shape; products of activations with one another
(scores, mixing) and the activation function keep their own derivatives. Layer norms are passed by unless told otherwise.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from wallprobe.rng import generator

WEIGHTS = ("attn.W_Q", "attn.W_K", "attn.W_V", "attn.W_O", "mlp.W_in", "mlp.W_out")
ACTIVATIONS = ("gelu",)


def is_block(module: nn.Module) -> bool:
    """Whether a module is a block that `through` knows: pre-LN, exact GELU, attention and MLP one after the other."""
    cfg = getattr(module, "cfg", None)
    names = {name for name, _ in module.named_parameters()}
    plain = cfg is not None and cfg.act_fn in ACTIVATIONS and cfg.normalization_type == "LN" and not cfg.parallel_attn_mlp
    return plain and {*WEIGHTS, "ln1.w", "ln2.w"} <= names and not any(".gate." in name for name in names)


def random_block(block: nn.Module, seed: int, name: str) -> dict[str, Tensor]:
    """A random weight for each of the block's six, uniform within one over the root of its inputs, as for linear layers."""
    found = {}
    for key in WEIGHTS:
        weight = block.get_parameter(key)
        inputs = weight.shape[0] * weight.shape[1] if key == "attn.W_O" else weight.shape[-2]
        bound = 1 / math.sqrt(inputs)
        found[key] = torch.empty(weight.shape).uniform_(-bound, bound, generator=generator(seed, "feedback weight", f"{name}.{key}"))
    return found


def through(
    block: Any, h: Float[Tensor, "batch index d_model"], other: Mapping[str, Tensor], skip_ln: bool
) -> Float[Tensor, "batch index d_model"]:
    """The next state, whose derivative by `h` goes through the other weights.

    Args:
        block: see `is_block`.
        h: the state before it.
        other: as of `random_block`.
        skip_ln: pass credits by the layer norms.
    """
    attn, mlp = block.attn, block.mlp

    def product(x: Tensor, key: str, formula: str) -> Tensor:
        weight = block.get_parameter(key)
        return _fed(x, weight, other[key].to(weight), formula)

    normed = _norm(block.ln1, h, skip_ln)
    query = product(normed, "attn.W_Q", "bid,hde->bihe") + attn.b_Q
    key = product(normed, "attn.W_K", "bid,hde->bihe") + attn.b_K
    value = product(normed, "attn.W_V", "bid,hde->bihe") + attn.b_V
    scores = torch.einsum("bihe,bjhe->bhij", query, key) / attn.attn_scale
    future = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    pattern = scores.masked_fill(future, -torch.inf).softmax(-1)
    mixed = torch.einsum("bhij,bjhe->bihe", pattern, value)
    h = h + product(mixed, "attn.W_O", "bihe,hed->bid") + attn.b_O
    hidden = product(_norm(block.ln2, h, skip_ln), "mlp.W_in", "bid,df->bif") + mlp.b_in
    out: Tensor = h + product(F.gelu(hidden), "mlp.W_out", "bif,fd->bid") + mlp.b_out
    return out


def _fed(x: Tensor, weight: Tensor, other: Tensor, formula: str) -> Tensor:
    """x W by value; the derivative by x goes through `other`, that by W is its own (the second term is zero by value)."""
    fed: Tensor = torch.einsum(formula, x.detach(), weight) + torch.einsum(formula, x - x.detach(), other)
    return fed


def _norm(ln: Any, h: Tensor, skip: bool) -> Tensor:
    """A layer norm; passed by, its derivative by h is the identity while its gain and bias are trained as usual."""
    normed = F.layer_norm(h, h.shape[-1:], eps=ln.eps)
    out: Tensor = normed.detach() * ln.w + ln.b + (h - h.detach()) if skip else normed * ln.w + ln.b
    return out
