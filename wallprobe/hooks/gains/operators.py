"""Gains that are no ratios of norms: the Jacobian's, by forward-mode derivatives of one pass, and the weights' largest singular values.

Ours: the Jacobian's is the only gain of a map, and no rewriting of norms and weights changes it.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd import forward_ad

from wallprobe.errors import InstrumentError
from wallprobe.hooks.attach.prompt_sets import PromptSet
from wallprobe.hooks.gains.definitions import Definition, Terms
from wallprobe.models import Loaded, hook_name
from wallprobe.rng import generator

DIRECTIONS = 8
LEVEL = 1 << 21  # of our hooks alone


def operator_terms(
    loaded: Loaded, prompts: PromptSet, definition: Definition, batches: Sequence[Sequence[int]], seed: int = 42
) -> list[Terms]:
    """One `Terms` a prompt for `jacobian` or `spectral`.

    Args:
        loaded: the model.
        prompts: whose tokens.
        definition: one whose source is "tangents" or "weights".
        batches: places of prompts of one length.
        seed: of the random directions.

    Raises:
        InstrumentError: if a derivative does not reach a sub-layer's output, or if the weights are laid out differently.
    """
    if definition.source == "weights":
        attn, mlp = spectral(loaded)
        return [_constant(attn, mlp, len(row)) for row in prompts.tokens]
    found: dict[int, Terms] = {}
    for members in batches:
        terms = tangents(loaded, torch.stack([prompts.tokens[index] for index in members]), seed)
        found |= dict(zip(members, terms, strict=True))
    return [found[index] for index in range(len(prompts.tokens))]


def _constant(attn: Tensor, mlp: Tensor, tokens: int) -> Terms:
    one = torch.ones(len(attn), tokens, dtype=torch.float64)
    return Terms(attn[:, None] * one, one, mlp[:, None] * one, one)


def tangents(loaded: Loaded, tokens: Int[Tensor, "batch index"], seed: int = 42) -> list[Terms]:
    """Mean squares of J v and of v by layer and token, over `DIRECTIONS` Gaussian v at every token at once.

    J maps the residual a block reads to what its sub-layer adds, the norm included. One forward pass carries the derivative of every
    layer: it starts anew at each block's resid_pre, and attention's output hands none on, so that the MLP's is with respect to the same v.
    """
    model, points = cast(Any, loaded.model), loaded.points
    device = next(loaded.model.parameters()).device
    sums: dict[tuple[int, str], Tensor] = {}
    options = {} if loaded.tokenizer is None else {"attention_mask": torch.ones_like(tokens).to(device)}

    def add(layer: int, site: str, squares: Tensor) -> None:
        sums[layer, site] = sums.get((layer, site), torch.zeros(tokens.shape, dtype=torch.float64)) + squares.cpu()

    for draw in range(DIRECTIONS):
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(forward_ad.dual_level())
            for layer in range(loaded.n_layers):
                for site, hook in _hooks(loaded, layer, (seed, draw), add).items():
                    point = points[hook_name(layer, site)]
                    point.add_hook(hook, level=LEVEL)
                    stack.callback(point.remove_hooks, "fwd", level=LEVEL)
            model(tokens.to(device), return_type=None, **options)
    stacked = {site: torch.stack([sums[layer, site] for layer in range(loaded.n_layers)], dim=1) for site in ("v", "attn_out", "mlp_out")}
    return [Terms(stacked["attn_out"][row], stacked["v"][row], stacked["mlp_out"][row], stacked["v"][row]) for row in range(len(tokens))]


def _hooks(
    loaded: Loaded, layer: int, labels: tuple[int, int], add: Callable[[int, str, Tensor], None]
) -> dict[str, Callable[..., Tensor]]:
    """The hooks of one block: start a derivative, read it behind attention and the MLP, end it."""

    def start(value: Tensor, hook: Any = None) -> Tensor:
        primal = forward_ad.unpack_dual(value).primal  # type: ignore[no-untyped-call]
        direction = torch.randn(value.shape[1:], generator=generator(*labels, "jacobian", layer)).to(value).expand_as(value).contiguous()
        add(layer, "v", direction.double().square().sum(dim=-1))
        return cast(Tensor, forward_ad.make_dual(primal, direction))  # type: ignore[no-untyped-call]

    def read(site: str) -> Callable[..., Tensor]:
        def hook(value: Tensor, hook: Any = None) -> Tensor:
            both = forward_ad.unpack_dual(value)  # type: ignore[no-untyped-call]
            if both.tangent is None:
                raise InstrumentError(f"{loaded.name}: no derivative reaches {site} of layer {layer}; use another --gain")
            add(layer, site, both.tangent.double().square().sum(dim=-1))
            return cast(Tensor, both.primal)

        return hook

    def end(value: Tensor, hook: Any = None) -> Tensor:
        return cast(Tensor, forward_ad.unpack_dual(value).primal)  # type: ignore[no-untyped-call]

    return {"resid_pre": start, "attn_out": read("attn_out"), "mlp_out": read("mlp_out"), "resid_post": end}


def spectral(loaded: Loaded) -> tuple[Float[Tensor, " layer"], Float[Tensor, " layer"]]:
    """By layer: the largest sigma_max(W_O W_V) of a head, and sigma_max(W_out) sigma_max(W_in); norms and gates are left out.

    Raises:
        InstrumentError: if the model does not show its weights by transformer-lens's names.
    """
    attn, mlp = [], []
    for layer in range(loaded.n_layers):
        value, out = head_weights(loaded, layer)
        attn.append(product_norms(value, out).max())
        inner, outer = mlp_weights(loaded, layer)
        mlp.append(torch.linalg.matrix_norm(inner, 2) * torch.linalg.matrix_norm(outer, 2))
    return torch.stack(attn).double().cpu(), torch.stack(mlp).double().cpu()


def head_weights(loaded: Loaded, layer: int) -> tuple[Float[Tensor, "head d_model d_head"], Float[Tensor, "head d_head d_model"]]:
    """W_V and W_O of every query head, fp64 on the CPU; grouped value heads are repeated.

    Raises:
        InstrumentError: if the model does not show them.
    """
    try:
        attention = cast(Any, loaded.model).blocks[layer].attn
        value, out = (weight.detach().double().cpu() for weight in (attention.W_V, attention.W_O))
    except AttributeError as error:
        raise InstrumentError(f"{loaded.name} does not show W_V and W_O of layer {layer} ({error})") from error
    return value.repeat_interleave(len(out) // len(value), dim=0), out


def mlp_weights(loaded: Loaded, layer: int) -> tuple[Tensor, Tensor]:
    """W_in and W_out of an MLP, fp64 on the CPU.

    Raises:
        InstrumentError: if the model does not show them.
    """
    try:
        mlp = cast(Any, loaded.model).blocks[layer].mlp
        inner, outer = (getattr(mlp, name).detach().double().cpu() for name in ("W_in", "W_out"))
    except AttributeError as error:
        raise InstrumentError(f"{loaded.name} does not show W_in and W_out of layer {layer} ({error})") from error
    return inner, outer


def product_norms(left: Float[Tensor, "head d_model d_head"], right: Float[Tensor, "head d_head d_model"]) -> Float[Tensor, " head"]:
    """sigma_max of left x right of each head, by the d_head x d_head product of their triangular factors."""
    upper = torch.linalg.qr(left).R
    lower = torch.linalg.qr(right.mT).R
    found: Tensor = torch.linalg.matrix_norm(upper @ lower.mT, 2)
    return found
