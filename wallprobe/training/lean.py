"""A lean forward pass over a HookedTransformer's own parameters, layers stacked, no hooks: what training runs.

Tests hold its logits to the HookedTransformer's (max abs difference 1e-5 in fp32). Stacking lets the optimiser treat all
matrices of one shape in one batched call. Weights leave this room only as a HookedTransformer state dict.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe.rng import generator

Params = dict[str, Tensor]

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
BLOCK_NAMES = ("W_O", "b_O", "ln1_w", "ln1_b", "ln2_w", "ln2_b", "W_in", "b_in", "W_out", "b_out")
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


def forward(
    params: Params, tokens: Int[Tensor, "batch index"], shape: Shape, dropout: float = 0.0
) -> tuple[Float[Tensor, "batch index vocab"], Float[Tensor, "batch index d_model"]]:
    """Logits and the final residual stream (`hook_resid_post` of the last layer).

    Pre-LN, causal, exact GELU, learned positions: the HookedTransformer that `models.build` makes of the same shape.

    Args:
        params: stacked parameters as of `init_params`.
        tokens: int64 token ids, at most `shape.n_ctx` a sequence.
        shape: the sizes.
        dropout: probability after the embedding and after each sub-layer; 0 leaves the pass deterministic.
    """
    batch, length = tokens.shape
    d, heads = shape.d_model, shape.n_heads

    def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, (d,), weight, bias, 1e-5)

    def drop(x: Tensor) -> Tensor:
        return F.dropout(x, dropout) if dropout else x

    qkv_weight = torch.cat([params["W_Q"], params["W_K"], params["W_V"]], dim=-1)
    qkv_bias = torch.cat([params["b_Q"], params["b_K"], params["b_V"]], dim=-1)
    # unbind, not indexing: the backward of n selects would write the whole stack n times.
    layers = zip(
        qkv_weight.unbind(0), qkv_bias.unbind(0), *(params[name].unbind(0) for name in BLOCK_NAMES), strict=True
    )  # fmt: skip
    # Written out: on CPU the fused kernel's backward in bf16 takes four times as long at these lengths.
    mask = torch.full((length, length), -torch.inf, device=tokens.device).triu(1)
    residual = drop(F.embedding(tokens, params["W_E"]) + params["W_pos"][:length])
    for qkv_w, qkv_b, out_w, out_b, ln1_w, ln1_b, ln2_w, ln2_b, in_w, in_b, down_w, down_b in layers:
        qkv = norm(residual, ln1_w, ln1_b) @ qkv_w + qkv_b
        query, key, value = qkv.view(batch, length, 3, heads, shape.d_head).permute(2, 0, 3, 1, 4).unbind(0)
        scores = query @ key.mT * shape.d_head**-0.5
        mixed = (scores + mask).softmax(dim=-1).to(value.dtype) @ value
        residual = residual + drop(mixed.transpose(1, 2).reshape(batch, length, d) @ out_w + out_b)
        hidden = F.gelu(norm(residual, ln2_w, ln2_b) @ in_w + in_b)
        residual = residual + drop(hidden @ down_w + down_b)
    logits = norm(residual, params["ln_w"], params["ln_b"]) @ params["W_U"] + params["b_U"]
    return logits, residual


def to_hooked(params: Params, shape: Shape) -> dict[str, Tensor]:
    """The stacked parameters as a HookedTransformer state dict (attention matrices split by head)."""
    heads, width, d = shape.n_heads, shape.d_head, shape.d_model
    state: dict[str, Tensor] = {}
    for name, (hooked, per_layer) in NAMES.items():
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
    """The inverse of `to_hooked`."""
    d = shape.d_model
    params: Params = {}
    for name, (hooked, per_layer) in NAMES.items():
        if not per_layer:
            params[name] = state[hooked].clone()
            continue
        layers = [state[f"blocks.{layer}.{hooked}"] for layer in range(shape.n_layers)]
        if name in ("W_Q", "W_K", "W_V"):
            layers = [tensor.transpose(0, 1).reshape(d, d) for tensor in layers]
        elif name == "W_O":
            layers = [tensor.reshape(d, d) for tensor in layers]
        elif name in ("b_Q", "b_K", "b_V"):
            layers = [tensor.reshape(d) for tensor in layers]
        params[name] = torch.stack(layers)
    return params
