"""Decoders taken apart into the steps that a forward pass from the middle needs: heads, what they write, MLP, logits.

Three layouts are known: a run's (HookedTransformer, as `training.wall.lean` holds it), GPT-2's, GPT-NeoX's and Llama's with its kin. Each
is the model's own weights through the model's own arithmetic; `faithful` says how far the assembled pass is from the model's.
"""

from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from wallprobe.errors import InstrumentError
from wallprobe.models.products import Products
from wallprobe.training.wall import lean

PLAIN = Products()  # lays nothing out
Heads = tuple[
    Float[Tensor, "batch head query d_head"],
    Float[Tensor, "batch group index d_head"],
    Float[Tensor, "batch group index d_head"],
]


@runtime_checkable
class Stack(Protocol):
    """A decoder in steps. Pre-norm; `parallel` says that the MLP reads what attention reads.

    Attributes:
        n_layers: blocks.
        d_model: width of the residual stream.
        d_heads: width of the heads' outputs side by side.
        parallel: attention and MLP of a block read the same residual.
        scale: of the attention scores.
    """

    n_layers: int
    d_model: int
    d_heads: int
    d_mlp: int
    n_heads: int
    parallel: bool
    scale: float

    def embed(self, tokens: Int[Tensor, "batch index"]) -> Float[Tensor, "batch index d_model"]:
        """The residual stream before the first block."""
        ...

    def heads(
        self, layer: int, residual: Float[Tensor, "*batch index d_model"], start: int, queries: int, products: Products = PLAIN
    ) -> Heads:
        """Queries of the last `queries` indices, keys and values of all; the first index given is `start` of its sequence."""
        ...

    def write(self, layer: int, z: Float[Tensor, "batch index z"], products: Products = PLAIN) -> Float[Tensor, "batch index d_model"]:
        """What attention adds to the residual stream, from its heads' outputs side by side."""
        ...

    def mlp(self, layer: int, residual: Float[Tensor, "*batch d_model"], products: Products = PLAIN) -> Float[Tensor, "*batch d_model"]:
        """What the MLP adds, its norm included."""
        ...

    def read(self, residual: Float[Tensor, "batch d_model"]) -> Float[Tensor, "batch vocab"]:
        """Logits, the final norm included."""
        ...


class RunStack:
    """A run's transformer, from its stacked parameters."""

    parallel = False

    def __init__(self, params: lean.Params, shape: lean.Shape) -> None:
        self.n_layers, self.d_model, self.n_heads, self.d_mlp = shape.n_layers, shape.d_model, shape.n_heads, shape.d_mlp
        self.scale, self.d_heads = shape.d_head**-0.5, shape.n_heads * shape.d_head
        self._params, self._width = params, shape.d_head
        qkv = torch.cat([params["W_Q"], params["W_K"], params["W_V"]], dim=-1).mT.contiguous()
        bias = torch.cat([params["b_Q"], params["b_K"], params["b_V"]], dim=-1)
        turned = {name: params[name].mT.contiguous() for name in ("W_O", "W_in", "W_out")}
        self._layers = [
            {"qkv": qkv[layer], "b_qkv": bias[layer]}
            | {name: tensor[layer] for name, tensor in turned.items()}
            | {name: params[name][layer] for name in ("ln1_w", "ln1_b", "ln2_w", "ln2_b", "b_O", "b_in", "b_out")}
            for layer in range(shape.n_layers)
        ]

    def embed(self, tokens: Tensor) -> Tensor:
        """See `Stack`."""
        return self._params["W_E"][tokens] + self._params["W_pos"][: tokens.shape[1]]

    def heads(self, layer: int, residual: Tensor, start: int, queries: int, products: Products = PLAIN) -> Heads:
        """See `Stack`."""
        weights, d = self._layers[layer], self.d_model
        normed = F.layer_norm(residual, (d,), weights["ln1_w"], weights["ln1_b"], 1e-5).flatten(0, -3)
        if queries == residual.shape[-2]:
            query, key, value = products.linear(normed, weights["qkv"], weights["b_qkv"]).chunk(3, dim=-1)
        else:
            key, value = products.linear(normed, weights["qkv"][d:], weights["b_qkv"][d:]).chunk(2, dim=-1)
            query = products.linear(normed[:, -queries:], weights["qkv"][:d], weights["b_qkv"][:d])
        return _split(query, self._width), _split(key, self._width), _split(value, self._width)

    def write(self, layer: int, z: Tensor, products: Products = PLAIN) -> Tensor:
        """See `Stack`."""
        return products.linear(z, self._layers[layer]["W_O"], self._layers[layer]["b_O"])

    def mlp(self, layer: int, residual: Tensor, products: Products = PLAIN) -> Tensor:
        """See `Stack`."""
        weights = self._layers[layer]
        normed = F.layer_norm(residual, (self.d_model,), weights["ln2_w"], weights["ln2_b"], 1e-5)
        inner = products.linear(normed, weights["W_in"], weights["b_in"], "gelu")
        return products.linear(inner, weights["W_out"], weights["b_out"])

    def read(self, residual: Tensor) -> Tensor:
        """See `Stack`."""
        params = self._params
        return F.layer_norm(residual, (self.d_model,), params["ln_w"], params["ln_b"], 1e-5) @ params["W_U"] + params["b_U"]


def _split(values: Float[Tensor, "batch index width"], width: int) -> Float[Tensor, "batch head index d_head"]:
    return values.view(*values.shape[:-1], -1, width).transpose(1, 2)


def _through(products: Products, module: nn.Module, rows: Tensor, activation: str | None = None, times: Tensor | None = None) -> Tensor:
    """A linear layer of transformers: torch's own, or GPT-2's, whose weight stands the other way up."""
    weight: Any = module.weight
    bias: Any = module.bias
    return products.linear(rows, weight if isinstance(module, nn.Linear) else weight.mT, bias, activation, times)


def _turned(values: Float[Tensor, "batch head index d_head"], cos: Tensor, sin: Tensor) -> Float[Tensor, "batch head index d_head"]:
    """Rotary positions on the first `cos.shape[-1]` of each head's coordinates, halves paired, in place; halves of the angles are alike."""
    half = cos.shape[-1] // 2
    first, second = values[..., :half], values[..., half : 2 * half]
    cos, sin = cos[..., :half], sin[..., :half]
    carried = first * sin
    first.mul_(cos).addcmul_(second, sin, value=-1)
    second.mul_(cos).add_(carried)
    return values


class Native(ABC):
    """What the Hugging Face layouts share."""

    parallel = False

    def __init__(self, model: Any, body: Any) -> None:
        config = model.config
        self.n_layers, self.d_model, self.n_heads = config.num_hidden_layers, config.hidden_size, config.num_attention_heads
        self.d_mlp = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
        self._model, self._body, self.vocabulary = model, body, int(config.vocab_size)
        self._width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.scale, self.d_heads = self._width**-0.5, self._width * self.n_heads

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """See `Stack`."""

    @abstractmethod
    def heads(self, layer: int, residual: Tensor, start: int, queries: int, products: Products = PLAIN) -> Heads:
        """See `Stack`."""

    @abstractmethod
    def write(self, layer: int, z: Tensor, products: Products = PLAIN) -> Tensor:
        """See `Stack`."""

    @abstractmethod
    def mlp(self, layer: int, residual: Tensor, products: Products = PLAIN) -> Tensor:
        """See `Stack`."""

    def read(self, residual: Tensor) -> Tensor:
        """See `Stack`."""
        norm = next(getattr(self._body, name) for name in ("ln_f", "final_layer_norm", "norm") if hasattr(self._body, name))
        logits: Tensor = self._model.get_output_embeddings()(norm(residual))
        return logits

    def point(self, layer: int, site: str) -> tuple[nn.Module, bool]:
        """The module whose input (True) or output (False) a site is.

        Raises:
            InstrumentError: for resid_mid, which is no module's own.
        """
        block = (self._body.h if hasattr(self._body, "h") else self._body.layers)[layer]
        attention = next(getattr(block, name) for name in ("attn", "attention", "self_attn") if hasattr(block, name))
        if site == "z":
            return next(getattr(attention, name) for name in ("c_proj", "dense", "o_proj") if hasattr(attention, name)), True
        known: dict[str, tuple[nn.Module, bool]] = {
            "resid_pre": (block, True),
            "resid_post": (block, False),
            "attn_out": (attention, False),
            "mlp_out": (block.mlp, False),
        }
        if site not in known:
            raise InstrumentError(f"site {site} cannot be patched in a model of transformers; there are: {', '.join([*known, 'z'])}")
        return known[site]

    def _activated(self, products: Products, module: nn.Module, function: nn.Module, rows: Tensor) -> Tensor:
        """What a linear layer and the activation after it make of rows."""
        config = self._model.config
        known = ACTIVATIONS.get(str(getattr(config, "hidden_act", None) or getattr(config, "activation_function", "")))
        made: Tensor = function(_through(products, module, rows)) if known is None else _through(products, module, rows, known)
        return made

    def _angles(self, residual: Tensor, start: int, count: int) -> tuple[Tensor, Tensor]:
        places = torch.arange(start, start + count, device=residual.device)[None]
        cos, sin = self._body.rotary_emb(residual, position_ids=places)
        return cos[:, None], sin[:, None]


class Gpt2Stack(Native):
    """GPT-2's layout."""

    def embed(self, tokens: Tensor) -> Tensor:
        """See `Stack`."""
        summed: Tensor = self._body.wte(tokens) + self._body.wpe.weight[: tokens.shape[1]]
        return summed

    def heads(self, layer: int, residual: Tensor, start: int, queries: int, products: Products = PLAIN) -> Heads:
        """See `Stack`."""
        block = self._body.h[layer]
        query, key, value = _through(products, block.attn.c_attn, block.ln_1(residual).flatten(0, -3)).chunk(3, dim=-1)
        return _split(query[:, -queries:], self._width), _split(key, self._width), _split(value, self._width)

    def write(self, layer: int, z: Tensor, products: Products = PLAIN) -> Tensor:
        """See `Stack`."""
        return _through(products, self._body.h[layer].attn.c_proj, z)

    def mlp(self, layer: int, residual: Tensor, products: Products = PLAIN) -> Tensor:
        """See `Stack`."""
        block = self._body.h[layer]
        inner = self._activated(products, block.mlp.c_fc, block.mlp.act, block.ln_2(residual))
        return _through(products, block.mlp.c_proj, inner)


class NeoXStack(Native):
    """GPT-NeoX's layout: Pythia."""

    def __init__(self, model: Any, body: Any) -> None:
        super().__init__(model, body)
        self.parallel = bool(model.config.use_parallel_residual)

    def embed(self, tokens: Tensor) -> Tensor:
        """See `Stack`."""
        embedded: Tensor = self._body.embed_in(tokens)
        return embedded

    def heads(self, layer: int, residual: Tensor, start: int, queries: int, products: Products = PLAIN) -> Heads:
        """See `Stack`."""
        block = self._body.layers[layer]
        normed = block.input_layernorm(residual).flatten(0, -3)
        together = _split(_through(products, block.attention.query_key_value, normed), 3 * self._width)
        query, key, value = together.chunk(3, dim=-1)
        cos, sin = self._angles(residual, start, residual.shape[-2])
        return _turned(query[:, :, -queries:], cos[:, :, -queries:], sin[:, :, -queries:]), _turned(key, cos, sin), value

    def write(self, layer: int, z: Tensor, products: Products = PLAIN) -> Tensor:
        """See `Stack`."""
        return _through(products, self._body.layers[layer].attention.dense, z)

    def mlp(self, layer: int, residual: Tensor, products: Products = PLAIN) -> Tensor:
        """See `Stack`."""
        block = self._body.layers[layer]
        inner = self._activated(products, block.mlp.dense_h_to_4h, block.mlp.act, block.post_attention_layernorm(residual))
        return _through(products, block.mlp.dense_4h_to_h, inner)


class LlamaStack(Native):
    """Llama's layout: Llama, Mistral, Qwen 2 and 3, SmolLM2."""

    def embed(self, tokens: Tensor) -> Tensor:
        """See `Stack`."""
        embedded: Tensor = self._body.embed_tokens(tokens)
        return embedded

    def heads(self, layer: int, residual: Tensor, start: int, queries: int, products: Products = PLAIN) -> Heads:
        """See `Stack`."""
        block = self._body.layers[layer]
        attention, normed = block.self_attn, _rms_normed(block.input_layernorm, residual).flatten(0, -3)
        query = _split(_through(products, attention.q_proj, normed[:, -queries:]), self._width)
        key, value = (_split(_through(products, part, normed), self._width) for part in (attention.k_proj, attention.v_proj))
        if hasattr(attention, "q_norm"):
            query, key = attention.q_norm(query), attention.k_norm(key)
        cos, sin = self._angles(residual, start, normed.shape[1])
        return _turned(query, cos[:, :, -queries:], sin[:, :, -queries:]), _turned(key, cos, sin), value

    def write(self, layer: int, z: Tensor, products: Products = PLAIN) -> Tensor:
        """See `Stack`."""
        return _through(products, self._body.layers[layer].self_attn.o_proj, z)

    def mlp(self, layer: int, residual: Tensor, products: Products = PLAIN) -> Tensor:
        """See `Stack`."""
        block = self._body.layers[layer]
        normed = _rms_normed(block.post_attention_layernorm, residual)
        gate = self._activated(products, block.mlp.gate_proj, block.mlp.act_fn, normed)
        return _through(products, block.mlp.down_proj, _through(products, block.mlp.up_proj, normed, times=gate))


def _rms_normed(norm: Any, values: Tensor) -> Tensor:
    """transformers' own RMS norm in one pass over the values instead of five."""
    return F.rms_norm(values, norm.weight.shape, norm.weight, norm.variance_epsilon)


# As transformers names them.
ACTIVATIONS = {
    **dict.fromkeys(("silu", "swish"), "silu"),
    "gelu": "gelu",
    **dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "gelu_tanh"),
}
LAYOUTS: dict[str, tuple[str, type[Native]]] = {
    "gpt2": ("transformer", Gpt2Stack),
    "gpt_neox": ("gpt_neox", NeoXStack),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), ("model", LlamaStack)),
}


class Modules:
    """A Hugging Face decoder of which the blocks are known and not what is in them: it can be patched between blocks."""

    parallel, d_heads, n_heads = False, 0, 1

    def __init__(self, model: Any, blocks: nn.ModuleList) -> None:
        self.n_layers, self._blocks, self._kind = len(blocks), blocks, str(model.config.model_type)

    def point(self, layer: int, site: str) -> tuple[nn.Module, bool]:
        """As `Native.point`.

        Raises:
            InstrumentError: for a site inside a block.
        """
        if site not in ("resid_pre", "resid_post"):
            raise InstrumentError(f"what {site} is in a {self._kind} is not known here; give --site resid_pre or resid_post")
        return self._blocks[layer], site == "resid_pre"


def of_modules(model: Any) -> Modules | None:
    """The blocks of a Hugging Face decoder, by their number; None where no one list of modules has it."""
    depth = getattr(model.config, "num_hidden_layers", None)
    found = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == depth]
    return Modules(model, found[0]) if len(found) == 1 else None


def of_transformers(model: Any) -> Native | None:
    """The steps of a Hugging Face decoder, None where its layout is not known."""
    known = LAYOUTS.get(model.config.model_type)
    return None if known is None else known[1](model, getattr(model, known[0]))


def of_run(state: dict[str, Tensor], shape: lean.Shape) -> Stack | None:
    """The steps of a run's transformer, None where a learned temperature or forget gates are part of it."""
    params = lean.from_hooked({name: tensor for name, tensor in state.items() if not name.startswith("head.")}, shape)
    return None if any(name.startswith(("temperature", "gate")) for name in params) else RunStack(params, shape)
