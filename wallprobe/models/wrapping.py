"""Objects of the user's as models: `wrap` one, and `as_model` for whatever a function is given.

The object is left as it was found. A transformers decoder is bridged through a structural copy that shares its parameters' memory (the
bridge splits and replaces modules); everything else is hooked where it is, and the hooks leave with the instrument.
"""

import contextlib
import copy
import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from wallprobe.errors import CheckpointError, ConfigError
from wallprobe.models.blocks import hooked_blocks
from wallprobe.models.guard import reading
from wallprobe.models.loaded import Loaded, Origin, hook_name, pick_device, quiet, stamp
from wallprobe.models.loading import bridge, load, load_run
from wallprobe.models.sources import refuse_encoder
from wallprobe.store.runs import Run
from wallprobe.store.weights import check_finite

Model: TypeAlias = str | Path | nn.Module | Loaded | Run
THROUGH = ("auto", "blocks")
REMEDY = "give a model whose weights are sound"


def wrap(model: nn.Module, tokenizer: Any = None, name: str = "wrapped", *, through: str = "auto") -> Loaded:
    """An object of yours as a model that every instrument takes. It is left as it was found, and shares its parameters' memory.

    Args:
        model: a HookedTransformer, a TransformerBridge, any HookedRootModule with `blocks.L.hook_resid_post`, a transformers decoder, or
            a module with a stack of blocks that map [batch, index, d_model] to the same (see `models.blocks`).
        tokenizer: the Hugging Face tokenizer; by default the model's own, if it has one. Without one, give token ids as prompts.
        name: what tables and manifests call it.
        through: "blocks" hooks a transformers decoder's own modules instead of bridging a copy, so that hook modules follow your
            calls of it, in a training loop for instance; only the residual stream and what its sub-layers add can then be hooked.

    Returns:
        A model of kind "wrapped"; `weight_hash` is the SHA-256 of its parameters' names, shapes, dtypes and bytes.

    Raises:
        ConfigError: if it cannot be wrapped; the message says what is wanted.
        CheckpointError: if a parameter is not finite, or transformer-lens knows no such architecture.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"{type(model).__name__} is no torch module; wrap a model, or give its name or folder to wallprobe.load")
    if through not in THROUGH:
        raise ConfigError(f"no way to wrap called '{through}'; there are: {', '.join(THROUGH)}")
    if name in ("", ".", "..") or len(name) > 200:
        raise ConfigError(f"'{name[:40]}' is no name for a model; give a short one")
    _check(model, name)
    tokenizer = getattr(model, "tokenizer", None) if tokenizer is None else tokenizer
    with quiet():
        from transformer_lens import HookedRootModule
        from transformer_lens.model_bridge import TransformerBridge
    inside, copied = model, False
    if isinstance(model, (HookedRootModule, TransformerBridge)):
        layers, width, parallel = _sizes(model, name)
    elif of_transformers(model) and through == "auto":
        inside, copied = _bridged(model, name), True
        layers, width, parallel = _sizes(inside, name)
    else:
        inside, layers, width = hooked_blocks(model)
        parallel = bool(getattr(getattr(model, "config", None), "use_parallel_residual", False))
    origin = Origin(model, stamp(model), copied)
    return Loaded(name, "wrapped", inside, layers, width, hash_parameters(model), None, tokenizer, parallel, origin=origin)


def _check(model: nn.Module, name: str) -> None:
    """Refuse what no instrument could read."""
    kind = type(model).__name__
    if hasattr(model, "_orig_mod"):
        raise ConfigError(f"{name} was compiled (torch.compile), where hooks are not seen; wrap the model that was compiled")
    parameters = dict(model.named_parameters())
    if not parameters:
        raise ConfigError(f"{kind} has no parameters; wrap a model")
    if getattr(model, "is_quantized", False) or not any(one.is_floating_point() for one in parameters.values()):
        raise ConfigError(f"{name} ({kind}) is quantised; wrap the model it was made of, or give a .gguf file to wallprobe.load")
    devices = sorted({str(one.device) for one in parameters.values()})
    if devices == ["meta"] or len(devices) > 1:
        raise ConfigError(f"{name} ({kind}) lies on {' and '.join(devices)}; put all of it on one device first")
    dtypes = sorted({str(one.dtype).removeprefix("torch.") for one in parameters.values() if one.is_floating_point()})
    if dtypes != ["float32"] and not of_transformers(model):
        raise ConfigError(f"{name} ({kind}) holds {' and '.join(dtypes)}; wallprobe measures in float32: wrap a float32 copy of it")
    check_finite(parameters.items(), f"{name} ({kind})", REMEDY)


def of_transformers(model: nn.Module) -> bool:
    """Whether it is a model of transformers, of any class."""
    if "transformers" not in sys.modules:
        return False
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)


def _sizes(model: Any, name: str) -> tuple[int, int, bool]:
    """Blocks, width, and whether attention and MLP read the same residual."""
    points, config = model.hook_dict, getattr(model, "cfg", None)
    layers = 0
    while hook_name(layers, "resid_post") in points:
        layers += 1
    width = getattr(config, "d_model", None)
    if not layers or not isinstance(width, int):
        raise ConfigError(
            f"{name} ({type(model).__name__}) has no {hook_name(0, 'resid_post')} or no cfg.d_model; give a model with the names of "
            "transformer-lens"
        )
    parallel = bool(getattr(config, "parallel_attn_mlp", False)) or hook_name(0, "resid_mid") not in points
    return layers, width, parallel


def _bridged(model: Any, name: str) -> Any:
    """A transformers decoder behind the bridge, through a structural copy: modules and settings are new, parameters' memory is shared."""
    kind = type(model).__name__
    refuse_encoder(name, model.config)
    if getattr(model.config, "is_encoder_decoder", False):
        raise CheckpointError(f"{name} is an encoder and a decoder ({kind}); give a causal decoder")
    if model.get_output_embeddings() is None:
        raise CheckpointError(f"{name} is a {kind}, which has no unembedding; wrap the whole language model (...ForCausalLM)")
    device = str(next(model.parameters()).device)
    shared: dict[int, Any] = {id(one): nn.Parameter(_fp32(one), requires_grad=False) for one in model.parameters()}
    for module in model.modules():  # functions that the user hooked on stay his, and go on acting
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            shared |= {id(hook): hook for hook in hooks.values()}
    with quiet():
        from transformer_lens import model_bridge  # noqa: F401  (imported before the guard is armed)

        twin = copy.deepcopy(model, shared)
        twin.set_attn_implementation("eager")
        twin.eval()
        with reading(name):
            bridged: Any = bridge(name, name, twin, _placeholder(), device)
    bridged.tokenizer = None
    return bridged


def _fp32(parameter: Tensor) -> Tensor:
    """The same memory where it is fp32 already."""
    return parameter.detach().float() if parameter.is_floating_point() else parameter.detach()


def _placeholder() -> Any:
    """A tokenizer of two words: without one the bridge looks for one on the hub, and of one it is given it makes another."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({"<>": 0, "a": 1}, unk_token="<>"))
    made: Any = PreTrainedTokenizerFast
    return made(tokenizer_object=words, unk_token="<>", eos_token="<>", pad_token="<>")


def hash_parameters(model: nn.Module) -> str:
    """SHA-256 over every parameter's name, dtype, shape and bytes, by name."""
    digest = hashlib.sha256()
    for name, value in sorted(model.named_parameters()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def as_model(what: Model, device: str = "cpu", root: Path | None = None) -> Loaded:
    """The model that a function of ours was given, whichever way.

    Args:
        what: a name, folder, file or hub id as `load` takes them, a Run, an object as `wrap` takes it, or what either gave. A wrapped
            one whose parameters were written to since is wrapped anew.
        device: where to load names; an object stays where it is.
        root: run store for names.

    Raises:
        ConfigError: if it is none of these, or as `wrap`.
        UnknownNameError, CheckpointError: as `load`.
    """
    if isinstance(what, Loaded):
        if what.origin is None or not what.origin.changed:
            return what
        through = "auto" if what.origin.copied or not of_transformers(what.origin.module) else "blocks"
        return wrap(what.origin.module, what.tokenizer, what.name, through=through)
    if isinstance(what, Run):
        return load_run(what, pick_device(device))
    if isinstance(what, (str, Path)):
        return load(str(what), pick_device(device), root)
    if isinstance(what, nn.Module):
        return wrap(what)
    raise ConfigError(
        f"{type(what).__name__} is no model; give a run, a hub id, a folder, a .gguf file, a torch module, or what wallprobe.load gave"
    )


@contextlib.contextmanager
def resting(*models: Loaded) -> Iterator[None]:
    """Evaluation mode while the block runs; each module is then again in the mode it was found in."""
    whole = [loaded.model for loaded in models] + [loaded.origin.module for loaded in models if loaded.origin is not None]
    training = list(dict.fromkeys(module for one in whole for module in one.modules() if module.training))
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def attachable(what: Model) -> Model:
    """What a hook module attaches to: a transformers decoder given as an object is hooked where it is, so that calls of it are seen."""
    return wrap(what, through="blocks") if isinstance(what, nn.Module) and of_transformers(what) else what
