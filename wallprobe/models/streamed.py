"""A decoder whose blocks come one at a time: built without memory by transformers, filled from shards, emptied again.

What it builds is no transformer-lens model, since one block at a time has no hooks of a whole.
"""

import contextlib
import copy
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wallprobe.errors import CheckpointError, UnknownNameError, one_line
from wallprobe.models.foreign import check_folder, needs_code, refuse_parts, tell_ignored
from wallprobe.models.guard import reading
from wallprobe.models.header import read_once
from wallprobe.models.hub import fetch
from wallprobe.models.limits import of_config
from wallprobe.models.loaded import quiet
from wallprobe.models.quantised import Quantised, unpacked_bytes
from wallprobe.models.shards import INDEX, SINGLE, Shards
from wallprobe.models.sizes import count
from wallprobe.models.sources import check_complete, hash_files, refuse_encoder
from wallprobe.models.strips import Crew, StripLinear

ATTENTION, STACKS = ("self_attn", "attention", "attn"), ("layers", "h")
PARALLEL = ("gptj", "phi", "codegen", "cohere")  # attention and MLP read the same residual without saying so in their config
HEADS = ("lm_head", "embed_out")  # what unembeddings are called in files, whatever the class calls them
PROBED = 8  # vocabulary of the small models that are built to look at
HASHED = 4 << 30  # bytes up to which a checkpoint's SHA-256 is worth the reading


class _Recorder(nn.Module):
    """Stands where a block will: keeps what it is called with."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.hidden: Tensor | None = None

    def forward(self, hidden: Tensor, *positional: Any, **named: Any) -> Tensor:
        """The hidden states as they came."""
        self.given.append((positional, named))
        self.hidden = hidden
        return hidden


@dataclass
class Head:
    """Final norm, in fp32, and unembedding.

    Attributes:
        norm: the module.
        weight: `[vocabulary, d_model]`, of the files' own type, in their pages.
        bias: `[vocabulary]` fp32, or None.
    """

    norm: nn.Module
    weight: Tensor
    bias: Tensor | None


@dataclass
class Streamed:
    """A decoder on disk.

    Attributes:
        name: how the user called it.
        kind: "folder", "hub" or "gguf".
        n_layers, d_model, context, vocabulary: its shape.
        n_params, n_params_non_embedding: its size.
        parallel: attention and MLP read the same residual.
        tokenizer: the Hugging Face tokenizer.
        shards: the files.
        weight_hash: SHA-256 of the weights' files; None above 4 GiB, where reading them all first would double the work.
        kept_bytes: of each block, in fp32, what does not stay in the files: all but the weights of linear layers.
    """

    name: str
    kind: str
    n_layers: int
    d_model: int
    context: int
    vocabulary: int
    n_params: int
    n_params_non_embedding: int
    parallel: bool
    tokenizer: Any
    shards: Shards | Quantised
    weight_hash: str | None
    kept_bytes: list[int]
    config: Any
    blocks: nn.ModuleList
    stack: str
    prefix: str

    def close(self) -> None:
        """Close its files."""
        self.shards.close()

    def names(self, layer: int) -> dict[str, str]:
        """Parameters of a block: name within it -> name in the shards."""
        module = self.blocks[layer]
        return {name: self.prefix + f"{self.stack}.{layer}.{name}" for name in module.state_dict()}

    def check(self) -> None:
        """Hold every block's parameters to the shards, before hours are spent.

        Raises:
            CheckpointError: if one is missing or of another shape.
        """
        for layer, module in enumerate(self.blocks):
            shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
            for name, stored in self.names(layer).items():
                if stored not in self.shards.shapes:
                    raise CheckpointError(f"{self.name} lacks {stored}, which its config asks for; fetch it again")
                if self.shards.shapes[stored] != shapes[name]:
                    raise CheckpointError(f"{stored} of {self.name} has shape {self.shards.shapes[stored]}, its config says {shapes[name]}")

    def block(self, layer: int, tensors: Mapping[str, Tensor], crew: Crew) -> tuple[nn.Module, nn.Module, nn.Module]:
        """A block, its attention module and its MLP; the caller lets go of it.

        Weights of linear layers stay as they are until they are multiplied; whatever else it holds is in fp32.

        Args:
            layer: which.
            tensors: of it, by their names in the shards.
            crew: what multiplies; the block stands on its device.

        Raises:
            CheckpointError: if the block cannot be filled, or is laid out differently.
        """
        module, names = copy.deepcopy(self.blocks[layer]), self.names(layer)
        for place, linear in linear_layers(module).items():
            parent, _, own = place.rpartition(".")
            weight = tensors[names.pop(f"{place}.weight")]
            bias = None if linear.bias is None else tensors[names.pop(f"{place}.bias")].to(crew.device).float()
            setattr(module.get_submodule(parent), own, StripLinear(weight, bias, crew, transposed=type(linear) is not nn.Linear))
        kept = {name: tensors[stored].to(crew.device).float() for name, stored in names.items()}
        module.load_state_dict(kept, strict=True, assign=True)
        if any(value.is_meta for value in (*module.parameters(), *module.buffers())):
            raise CheckpointError(f"{self.name} keeps tables inside its blocks that no file holds; it cannot be streamed")
        attention = next((getattr(module, name) for name in ATTENTION if hasattr(module, name)), None)
        mlp = getattr(module, "mlp", None)
        if not isinstance(attention, nn.Module) or not isinstance(mlp, nn.Module):
            raise CheckpointError(f"{self.name} is laid out differently: no attention or no mlp in its blocks; it cannot be streamed")
        return module.eval(), attention, mlp

    def start(self, tokens: Int[Tensor, "batch index"]) -> tuple[Float[Tensor, "batch index d_model"], list[tuple[Any, Any]]]:
        """What the first block reads, and what each block is called with besides (masks, rotations), computed once."""
        with quiet(), reading(self.name, self.shards.folder):
            small = copy.deepcopy(self.config)
            small.num_hidden_layers, small.vocab_size, small.pad_token_id = 0, 1, None
            base, _ = _base(_from_config(small))
        base.config.num_hidden_layers = self.n_layers
        recorders = [_Recorder() for _ in range(self.n_layers)]
        setattr(base, self.stack, nn.ModuleList(recorders))
        embedding = base.get_input_embeddings()
        place = next(name for name, module in base.named_modules() if module is embedding)
        for name, parameter in base.named_parameters():
            if not name.startswith((f"{self.stack}.", f"{place}.")):
                stored = self._stored(name)
                parameter.data = self.shards.tensor(stored)
        ids, inverse = torch.unique(tokens, return_inverse=True)
        embedded = self.shards.rows(self._stored(f"{place}.weight"), ids.tolist())[inverse]
        with torch.inference_mode():
            base.eval()(inputs_embeds=embedded, attention_mask=torch.ones_like(tokens), use_cache=False)
        first = recorders[0].hidden
        if first is None or any(len(recorder.given) != 1 for recorder in recorders):
            raise CheckpointError(f"{self.name} does not call its blocks once each, in order; it cannot be streamed")
        return first, [recorder.given[0] for recorder in recorders]

    def head(self) -> "Head":
        """What makes logits of the last block's output.

        Raises:
            CheckpointError: if a weight is missing, or the logits are not the unembedding of the final norm (a scale, a cap).
        """
        with quiet(), reading(self.name, self.shards.folder):
            small = copy.deepcopy(self.config)
            small.num_hidden_layers, small.vocab_size, small.pad_token_id = 0, PROBED, None
            model = _from_config(small).eval()
        base, _ = _base(model)
        place, norm = [(name, part) for name, part in base.named_modules() if getattr(getattr(part, "weight", None), "ndim", 0) == 1][-1]
        for name, parameter in norm.named_parameters():
            parameter.data = self.shards.tensor(self._stored(f"{place}.{name}"))
        output = model.get_output_embeddings()
        _check_head(self.name, model, norm, output)
        own = next(name for name, part in model.named_modules() if part is output)
        named = next((name for name in (own, *HEADS) if f"{name}.weight" in self.shards.shapes), None)
        embedding = base.get_input_embeddings()
        tied = next(name for name, module in base.named_modules() if module is embedding)
        weight = self._stored(f"{tied}.weight") if named is None else f"{named}.weight"
        if self.shards.shapes[weight] != (self.vocabulary, self.d_model):
            raise CheckpointError(
                f"{weight} of {self.name} has shape {self.shards.shapes[weight]}, its config says {(self.vocabulary, self.d_model)}"
            )
        bias = None if output.bias is None else self.shards.tensor(f"{named}.bias")
        return Head(norm.requires_grad_(False), self.shards.tensor(weight, None), bias)

    def _stored(self, name: str) -> str:
        if self.prefix + name not in self.shards.shapes:
            raise CheckpointError(f"{self.name} lacks {self.prefix + name}, which its config asks for; fetch it again")
        return self.prefix + name


def _check_head(name: str, model: Any, norm: nn.Module, output: Any) -> None:
    """Hold the logits of a model without blocks to the unembedding of its final norm."""
    seen: list[Tensor] = []
    handle = norm.register_forward_hook(lambda _, given, made: seen.append(made))
    states = torch.randn(1, 4, model.config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = model(inputs_embeds=states, use_cache=False).logits
        handle.remove()
        wanted = nn.functional.linear(seen[-1], output.weight, output.bias) if len(seen) == 1 else logits + math.inf
    if not bool((logits - wanted).abs().max() <= 1e-5 * logits.abs().max()):
        raise CheckpointError(f"{name} does more between its last block and its logits than a norm and a product; leave --stream out")


def linear_layers(block: nn.Module) -> dict[str, Any]:
    """Linear layers of a block by name, GPT-2's among them; no classes of their own that may compute something else."""
    from transformers.pytorch_utils import Conv1D

    return {place: part for place, part in block.named_modules() if type(part) in (nn.Linear, Conv1D)}


def _from_config(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    maker: Any = AutoModelForCausalLM
    return maker.from_config(config, attn_implementation="eager", dtype=torch.float32, trust_remote_code=False)


def _base(model: Any) -> tuple[Any, str]:
    """The model below its head, and the name of its stack of blocks."""
    base = model.base_model
    stack = next((name for name in STACKS if isinstance(getattr(base, name, None), nn.ModuleList)), None)
    if stack is None:
        raise CheckpointError(f"{type(model).__name__} has no stack of blocks named {' or '.join(STACKS)}; it cannot be streamed")
    return base, stack


def resolve(source: str) -> tuple[Path, str]:
    """The folder of a source, fetched from the hub where it is none here, and its kind.

    Raises:
        UnknownNameError: if it is neither a Hugging Face folder nor to be had from the hub.
    """
    path = Path(source)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UnknownNameError(f"no file {source}; give an existing .gguf file")
        return path, "gguf"
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UnknownNameError(f"folder {source} is no Hugging Face model (config.json); runs are small, leave --stream out")
        return path, "folder"
    if "/" not in source:
        raise UnknownNameError(f"'{source}' is no folder here and no hub id; runs are small, leave --stream out")
    return fetch(source), "hub"


def open_streamed(source: str) -> Streamed:
    """Open a checkpoint for streaming; nothing but headers is read.

    Args:
        source: a Hugging Face folder, a hub id or a .gguf file.

    Raises:
        UnknownNameError, CheckpointError: as `resolve` and `Shards`; if the model is no causal decoder with a stack of blocks.
    """
    folder, kind = resolve(source)
    with read_once() if kind == "gguf" else contextlib.nullcontext():
        config, model, tokenizer = _built(source, folder, gguf=kind == "gguf")
        base, stack = _base(model)
        shards = _quantised(folder, model, config) if kind == "gguf" else Shards(folder)
    blocks = getattr(base, stack)
    first = next(iter(blocks[0].state_dict()))
    prefix = next((p for p in (f"{model.base_model_prefix}.", "") if f"{p}{stack}.0.{first}" in shards.shapes), None)
    if prefix is None:
        shards.close()
        check_complete(source, {"missing_keys": [f"{stack}.0.{first}"]})
    total, inner = count(model)
    parallel = bool(getattr(config, "use_parallel_residual", False)) or config.model_type in PARALLEL
    files = [folder] if kind == "gguf" else sorted(folder.glob("*.safetensors"))
    known = sum(path.stat().st_size for path in files) <= HASHED
    bounds = of_config(config)
    made = Streamed(
        source,
        kind,
        len(blocks),
        int(config.hidden_size),
        bounds.context,
        bounds.vocabulary,
        total,
        inner,
        parallel,
        tokenizer,
        shards,
        hash_files(files) if known else None,
        [_kept_bytes(block, unpacked=kind == "gguf") for block in blocks],
        config,
        blocks,
        stack,
        str(prefix),
    )
    try:
        made.check()
    except CheckpointError:
        shards.close()
        raise
    return made


def _built(source: str, path: Path, *, gguf: bool) -> tuple[Any, Any, Any]:
    """Configuration, model without memory, and tokenizer of a folder or a .gguf file.

    Raises:
        CheckpointError: as `open_streamed`; if the folder asks for more than reading.
    """
    place, options = (path.parent, {"gguf_file": path.name}) if gguf else (path, {})
    check_folder(source, place, weights=not gguf)
    with quiet():
        from transformers import AutoConfig, AutoTokenizer
    with quiet(), reading(source, place):
        try:
            config: Any = AutoConfig.from_pretrained(place, local_files_only=True, trust_remote_code=False, **options)
            refuse_parts(source, config)
            with torch.device("meta"):
                model = _from_config(config)
            tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True, trust_remote_code=False, **options)
        except CheckpointError:
            raise
        except Exception as error:
            wanted = needs_code(source, place, error)
            raise wanted or CheckpointError(f"{source} cannot be built as a causal language model: {one_line(error)}") from error
    refuse_encoder(source, config)
    tell_ignored(source, place)
    return config, model, tokenizer


def _kept_bytes(block: nn.Module, *, unpacked: bool) -> int:
    """Bytes of a block that do not stay in the files as they are; where they are unpacked, of it all and the next one."""
    whole = 4 * sum(parameter.numel() for parameter in block.parameters())
    return 2 * whole if unpacked else whole - 4 * sum(part.weight.numel() for part in linear_layers(block).values())


def _quantised(path: Path, model: Any, config: Any) -> Quantised:
    """A .gguf file under the model's names, by transformers' own table of them.

    Raises:
        CheckpointError: if it is damaged, or its architecture is not in the table.
    """
    from transformers import modeling_gguf_pytorch_utils as table

    with quiet(), reading(str(path), path.parent):
        try:
            told = config.to_dict()
            processor = table.TENSOR_PROCESSORS.get(config.model_type, table.TensorProcessor)(config=told)
            names = table.get_gguf_hf_weights_map(model, processor)
        except Exception as error:
            raise CheckpointError(f"{path} cannot be streamed: {one_line(error)}; leave --stream out") from error
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    return Quantised(path, names, shapes, lambda weights, name: processor.process(weights=weights, name=name).weights)


def size_in_memory(source: str) -> int | None:
    """Bytes that a model would take in fp32, from headers or, on the hub, from its index; None where they do not tell."""
    folder = Path(source)
    if folder.is_dir():
        if not any((folder / name).is_file() for name in (INDEX, SINGLE)) or not (folder / "config.json").is_file():
            return None
        with Shards(folder) as shards:
            return sum(4 * _numel(shape) for shape in shards.shapes.values())
    if folder.suffix == ".gguf":
        return unpacked_bytes(folder)
    return _size_on_hub(source) if "/" in source else None


def _size_on_hub(source: str) -> int | None:
    """From the index, a small file; a model in a single shard fits in memory and has none."""
    from huggingface_hub import hf_hub_download

    repository, _, revision = source.partition("@")
    try:
        with quiet():
            index, config = (Path(hf_hub_download(repository, name, revision=revision or None)) for name in (INDEX, "config.json"))
        told = json.loads(config.read_text(encoding="utf-8"))
        width = getattr(torch, str(told.get("torch_dtype") or told.get("dtype") or "float32")).itemsize
        return 4 * int(json.loads(index.read_text(encoding="utf-8"))["metadata"]["total_size"]) // int(width)
    except Exception:  # whatever is wrong with the model is said, better, by its loading
        return None


def _numel(shape: tuple[int, ...]) -> int:
    return math.prod(shape)
