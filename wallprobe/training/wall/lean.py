"""A lean forward pass over a HookedTransformer's own parameters, layers stacked, no hooks: what training runs.

Tests hold its logits to the HookedTransformer's (max abs difference 1e-5 in fp32). Stacking lets the optimiser treat all
matrices of one shape in one batched call. Weights leave this room only as a HookedTransformer state dict.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe.errors import CheckpointError
from wallprobe.rng import generator
from wallprobe.store.memory import require
from wallprobe.training.wall.signals import NUDGE

Params = dict[str, Tensor]
LayerParams = Mapping[str, Any]  # the stacks taken apart: a tuple of tensors, one a layer, where `Params` has a stack

# name here -> (name in the HookedTransformer, is it one tensor a layer)
NAMES: dict[str, tuple[str, bool]] = {
    "W_E": ("embed.W_E", False),
    "W_pos": ("pos_embed.W_pos", False),
    "ln1_w": ("ln1.w", True),
    "ln1_b": ("ln1.b", True),
    "W_Q": ("attn.W_Q", True),
    "W_K": ("attn.W_K", True),
    "W_V": ("attn.W_V", True),
    "W_O": ("attn.W_O", True),
    "b_Q": ("attn.b_Q", True),
    "b_K": ("attn.b_K", True),
    "b_V": ("attn.b_V", True),
    "b_O": ("attn.b_O", True),
    "ln2_w": ("ln2.w", True),
    "ln2_b": ("ln2.b", True),
    "W_in": ("mlp.W_in", True),
    "b_in": ("mlp.b_in", True),
    "W_out": ("mlp.W_out", True),
    "b_out": ("mlp.b_out", True),
    "ln_w": ("ln_final.w", False),
    "ln_b": ("ln_final.b", False),
    "W_U": ("unembed.W_U", False),
    "b_U": ("unembed.b_U", False),
}
# What some conditions add: a scalar head beside the network (no part of the forward pass), and the endogenous mechanisms (part of it).
ADDED: dict[str, tuple[str, bool]] = {
    "head_w": ("head.w", False),
    "head_b": ("head.b", False),
    "temperature_in_w": ("temperature.W_in", False),
    "temperature_in_b": ("temperature.b_in", False),
    "temperature_out_w": ("temperature.W_out", False),
    "temperature_out_b": ("temperature.b_out", False),
    "gate_w": ("attn.gate.W", True),
    "gate_b": ("attn.gate.b", True),
}
COLDEST = 0.01  # the temperature head's floor
LAYERED = frozenset(name for name, (_, layered) in (NAMES | ADDED).items() if layered)
MATRICES = ("W_Q", "W_K", "W_V", "W_O", "W_in", "W_out")


@dataclass(frozen=True)
class Shape:
    """Sizes of a small transformer. `d_head` is d_model / n_heads, `d_mlp` 4 d_model."""

    n_layers: int
    d_model: int
    n_heads: int
    n_ctx: int
    vocabulary: int

    @property
    def d_head(self) -> int:
        """Width of one head."""
        return self.d_model // self.n_heads

    @property
    def d_mlp(self) -> int:
        """Width of the MLP's hidden layer."""
        return 4 * self.d_model

    def check_room(self, batch: int) -> None:
        """Refuse what does not fit in memory: parameters, gradients and two moments, and what a backward pass keeps.

        Raises:
            ConfigError: if it does not.
        """
        parameters = self.n_layers * 12 * self.d_model**2 + (2 * self.vocabulary + self.n_ctx) * self.d_model
        kept = self.n_layers * batch * self.n_ctx * (16 * self.d_model + self.n_heads * self.n_ctx)
        what = f"{self.n_layers} layers of width {self.d_model} and a batch of {batch} sequences of {self.n_ctx} tokens"
        require(4.0 * (4 * parameters + kept), what, "a smaller --width, --depth, batch or task")


def init_params(shape: Shape, seed: int, embedding_std: float = 1.0) -> Params:
    """Fresh fp32 parameters from the seed alone.

    Matrices inside the blocks and the unembedding are normal with std 1/sqrt(fan-in), the two that write to the residual
    stream scaled down by sqrt(2 n_layers); embeddings have `embedding_std`; biases are zero, norms identity.
    """
    rng = generator(seed, "init")
    layers, d, ff = shape.n_layers, shape.d_model, shape.d_mlp

    def normal(*size: int, std: float) -> Tensor:
        return torch.randn(*size, generator=rng) * std

    residual = (2 * layers) ** -0.5
    return {
        "W_E": normal(shape.vocabulary, d, std=embedding_std),
        "W_pos": normal(shape.n_ctx, d, std=embedding_std),
        "ln1_w": torch.ones(layers, d),
        "ln1_b": torch.zeros(layers, d),
        "W_Q": normal(layers, d, d, std=d**-0.5),
        "W_K": normal(layers, d, d, std=d**-0.5),
        "W_V": normal(layers, d, d, std=d**-0.5),
        "W_O": normal(layers, d, d, std=d**-0.5 * residual),
        "b_Q": torch.zeros(layers, d),
        "b_K": torch.zeros(layers, d),
        "b_V": torch.zeros(layers, d),
        "b_O": torch.zeros(layers, d),
        "ln2_w": torch.ones(layers, d),
        "ln2_b": torch.zeros(layers, d),
        "W_in": normal(layers, d, ff, std=d**-0.5),
        "b_in": torch.zeros(layers, ff),
        "W_out": normal(layers, ff, d, std=ff**-0.5 * residual),
        "b_out": torch.zeros(layers, d),
        "ln_w": torch.ones(d),
        "ln_b": torch.zeros(d),
        "W_U": normal(d, shape.vocabulary, std=d**-0.5),
        "b_U": torch.zeros(shape.vocabulary),
    }


def init_endogenous(shape: Shape, seed: int, mechanisms: Sequence[str]) -> Params:
    """Fresh parameters of the mechanisms a condition adds to the network, from the seed alone; `init_params` stays as it is.

    The temperature starts at exactly 1, the gates at 0.80 whatever the input.

    Args:
        shape: the sizes.
        seed: of the run.
        mechanisms: of "temperature" (d_model -> d_model / 4 -> GELU -> softplus of a scalar, which divides the logits) and "gate"
            (for each layer, head and index a sigmoid, which scales what the position embedding adds to query and key).
    """
    params: Params = {}
    if "temperature" in mechanisms:
        hidden = max(1, shape.d_model // 4)
        rng = generator(seed, "init temperature")
        params["temperature_in_w"] = torch.randn(shape.d_model, hidden, generator=rng) * shape.d_model**-0.5
        params["temperature_in_b"] = torch.zeros(hidden)
        params["temperature_out_w"] = torch.zeros(hidden)
        params["temperature_out_b"] = torch.tensor(math.log(math.e - 1.0))
    if "gate" in mechanisms:
        params["gate_w"] = torch.zeros(shape.n_layers, shape.d_model, shape.n_heads)
        params["gate_b"] = torch.full((shape.n_layers, shape.n_heads), 1.4)
    return params


def temperature(params: LayerParams, normed: Float[Tensor, "batch index d_model"]) -> Float[Tensor, "batch index"]:
    """The temperature head's reading of the normalised final residual."""
    hidden = F.gelu(normed @ params["temperature_in_w"] + params["temperature_in_b"])
    # No matrix product for the one output: bf16 would leave a temperature three digits.
    scalar = (hidden.to(params["temperature_out_w"].dtype) * params["temperature_out_w"]).sum(-1) + params["temperature_out_b"]
    return F.softplus(scalar).clamp(min=COLDEST)


def forward(
    params: LayerParams,
    tokens: Int[Tensor, "batch index"],
    shape: Shape,
    dropout: float = 0.0,
    nudge: Float[Tensor, "batch index d_model"] | None = None,
) -> tuple[Float[Tensor, "batch index vocab"], Float[Tensor, "batch index d_model"]]:
    """Logits and the final residual stream (`hook_resid_post` of the last layer).

    Pre-LN, causal, exact GELU, learned positions: the HookedTransformer that `models.build` makes of the same parameters. A learned
    temperature or forget gates act where their parameters are there (the roof experiment, 3; see `init_endogenous`).

    Args:
        params: stacked parameters as of `init_params`, with or without those of `init_endogenous`; or the same taken apart by `by_layer`.
        tokens: int64 token ids, at most `shape.n_ctx` a sequence.
        shape: the sizes.
        dropout: probability after the embedding and after each sub-layer; 0 leaves the pass deterministic.
        nudge: unit vectors added to the residual stream before block n_layers // 2, each `NUDGE` times as long as what it is added to.
    """
    length, params = tokens.shape[1], by_layer(params)
    # Written out: on CPU the fused kernel's backward in bf16 takes four times as long at these lengths.
    mask = torch.full((length, length), -torch.inf, device=tokens.device).triu(1)
    residual = _drop(F.embedding(tokens, params["W_E"]) + params["W_pos"][:length], dropout)
    for layer in range(shape.n_layers):
        if nudge is not None and layer == shape.n_layers // 2:
            residual = residual + NUDGE * residual.norm(dim=-1, keepdim=True) * nudge
        weights = {name: params[name][layer] for name in LAYERED if name in params}
        residual = _block(weights, params["W_pos"], residual, mask, shape, dropout)
    normed = F.layer_norm(residual, (shape.d_model,), params["ln_w"], params["ln_b"], 1e-5)
    logits = normed @ params["W_U"] + params["b_U"]
    if "temperature_in_w" in params:
        logits = logits / temperature(params, normed)[..., None]
    return logits, residual


def by_layer(params: LayerParams) -> LayerParams:
    """The stacks taken apart, a tensor a layer: what to give to a compiled forward pass. Its kernels are then the same in every layer and
    compiled once."""
    # unbind, not indexing: the backward of n selects would write the whole stack n times.
    return {name: value.unbind(0) if name in LAYERED and isinstance(value, Tensor) else value for name, value in params.items()}


def _drop(x: Tensor, dropout: float) -> Tensor:
    return F.dropout(x, dropout) if dropout else x


def _block(weights: Params, placed: Tensor, residual: Tensor, mask: Tensor, shape: Shape, dropout: float) -> Tensor:
    batch, length, d = residual.shape
    qkv_w = torch.cat([weights["W_Q"], weights["W_K"], weights["W_V"]], dim=-1)
    given = F.layer_norm(residual, (d,), weights["ln1_w"], weights["ln1_b"], 1e-5)
    qkv = given @ qkv_w + torch.cat([weights["b_Q"], weights["b_K"], weights["b_V"]])
    query, key, value = qkv.view(batch, length, 3, shape.n_heads, shape.d_head).permute(2, 0, 3, 1, 4).unbind(0)
    if "gate_w" in weights:
        opened = (given @ weights["gate_w"] + weights["gate_b"]).sigmoid().mT[..., None]
        where = (placed[:length] @ qkv_w[:, : 2 * d]).view(length, 2, shape.n_heads, shape.d_head).permute(1, 2, 0, 3)
        query, key = query + opened * where[0], key + opened * where[1]
    scores = query @ key.mT * shape.d_head**-0.5
    mixed = (scores + mask).softmax(dim=-1).to(value.dtype) @ value
    residual = residual + _drop(mixed.transpose(1, 2).reshape(batch, length, d) @ weights["W_O"] + weights["b_O"], dropout)
    normed = F.layer_norm(residual, (d,), weights["ln2_w"], weights["ln2_b"], 1e-5)
    return residual + _drop(F.gelu(normed @ weights["W_in"] + weights["b_in"]) @ weights["W_out"] + weights["b_out"], dropout)


def to_hooked(params: Params, shape: Shape) -> dict[str, Tensor]:
    """The stacked parameters as a HookedTransformer state dict (attention matrices split by head)."""
    heads, width, d = shape.n_heads, shape.d_head, shape.d_model
    state: dict[str, Tensor] = {}
    for name, (hooked, per_layer) in (NAMES | {name: ADDED[name] for name in ADDED if name in params}).items():
        if not per_layer:
            state[hooked] = params[name]
            continue
        for layer, tensor in enumerate(params[name]):
            if name in ("W_Q", "W_K", "W_V"):
                tensor = tensor.reshape(d, heads, width).transpose(0, 1)
            elif name == "W_O":
                tensor = tensor.reshape(heads, width, d)
            elif name in ("b_Q", "b_K", "b_V"):
                tensor = tensor.reshape(heads, width)
            state[f"blocks.{layer}.{hooked}"] = tensor
    return {name: tensor.detach().to("cpu", torch.float32).clone().contiguous() for name, tensor in state.items()}


def from_hooked(state: Mapping[str, Tensor], shape: Shape) -> Params:
    """The inverse of `to_hooked`.

    Raises:
        CheckpointError: if a parameter is missing or unknown here, so that none is dropped silently.
    """
    d = shape.d_model
    params: Params = {}
    left = dict(state)
    kinds = {name.partition("_")[0] for name, (hooked, _) in ADDED.items() if any(place.endswith(hooked) for place in state)}
    added = {name: place for name, place in ADDED.items() if name.partition("_")[0] in kinds}
    for name, (hooked, per_layer) in (NAMES | added).items():
        places = [f"blocks.{layer}.{hooked}" for layer in range(shape.n_layers)] if per_layer else [hooked]
        missing = [place for place in places if place not in left]
        if missing:
            raise CheckpointError(f"the weights lack {', '.join(missing[:4])}; retrain the run")
        layers = [left.pop(place) for place in places]
        if not per_layer:
            params[name] = layers[0].clone()
            continue
        if name in ("W_Q", "W_K", "W_V"):
            layers = [tensor.transpose(0, 1).reshape(d, d) for tensor in layers]
        elif name == "W_O":
            layers = [tensor.reshape(d, d) for tensor in layers]
        elif name in ("b_Q", "b_K", "b_V"):
            layers = [tensor.reshape(d) for tensor in layers]
        params[name] = torch.stack(layers)
    if left:
        raise CheckpointError(f"the weights hold {', '.join(sorted(left)[:4])}, which this version does not know; update wallprobe")
    return params
