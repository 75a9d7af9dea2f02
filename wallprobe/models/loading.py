"""Load any decoder: a run name (`p5`, `p5@1337`), a run folder, a local Hugging Face folder, a .gguf file or a hub id.

Weights are never processed (no folding, no centring).
"""

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from wallprobe.errors import CheckpointError, UnknownNameError, one_line
from wallprobe.models.building import build, build_equilibrium
from wallprobe.models.equilibrium import EqConfig
from wallprobe.models.foreign import check_folder, needs_code, refuse_parts, tell_ignored
from wallprobe.models.guard import reading
from wallprobe.models.header import read_once
from wallprobe.models.hub import fetch
from wallprobe.models.loaded import Loaded, Plain, hook_name, quiet
from wallprobe.models.sizes import SIZES, count
from wallprobe.models.sources import check_complete, hash_files, refuse_encoder
from wallprobe.store import runs
from wallprobe.store.weights import check_finite

# Eager attention, as the bridge's own loading has it: the fused kernels return no pattern to hook.
RAW: Mapping[str, Any] = MappingProxyType({"dtype": torch.float32, "attn_implementation": "eager"})
LOCAL: Mapping[str, Any] = MappingProxyType({"local_files_only": True, "trust_remote_code": False})
REFETCH = "fetch or convert it again"
OWNERLESS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")  # hub ids without a slash


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Keep transformers' own progress bars off stderr, where ours is; those of GGUF files know no other switch than its redirection."""
    from transformers.utils import logging

    bars: Any = logging  # untyped there
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bar()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        if shown:
            bars.enable_progress_bar()


def load_run(run: runs.Run, device: str = "cpu") -> Loaded:
    """A run's model, its weights verified against the manifest; `kind` "equilibrium" for an equilibrium transformer's."""
    shape, fixed = run.manifest["shape"], run.kind == runs.EQUILIBRIUM
    model = build_equilibrium(EqConfig.of(shape), run.tensors()).to(device) if fixed else build(shape, run.tensors(), device)
    kind = runs.EQUILIBRIUM if fixed else "run"
    return Loaded(str(run.name), kind, model, shape["n_layers"], shape["d_model"], run.manifest["weight_hash"], run=run)


def load(source: str, device: str = "cpu", root: Path | None = None) -> Loaded:
    """Load a model from a run name, a run folder, a Hugging Face folder, a .gguf file or a hub id, in that order.

    Args:
        source: as above.
        device: torch device.
        root: run store; default as `runs.default_root`.

    Returns:
        The model in fp32, unprocessed, in evaluation mode.

    Raises:
        UnknownNameError: if it is none of these.
        CheckpointError: if it is there but damaged.
    """
    path = Path(source)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UnknownNameError(f"no file {source}; give an existing .gguf file")
        return _load_transformers(source, "gguf", path.parent, path.name, device)
    if path.is_dir():
        if runs.is_run_folder(path):
            return load_run(runs.open_run(path), device)
        if not (path / "config.json").is_file():
            raise UnknownNameError(f"folder {source} is neither a run (manifest.json) nor a Hugging Face model (config.json)")
        return _load_transformers(source, "folder", path, None, device)
    if "/" in source or os.sep in source:
        return _load_hub(source, device)
    if source.partition("@")[0] in OWNERLESS:
        return _load_hub(source, device)
    return load_run(runs.find_run(source, root), device)


def _load_transformers(source: str, kind: str, folder: Path, gguf: str | None, device: str) -> Loaded:
    """A local folder or GGUF file through transformers and the bridge, raw weights in fp32."""
    plain = _read_local(source, kind, folder, gguf, device)
    with quiet():
        from transformer_lens import model_bridge  # noqa: F401  (imported before the guard is armed)
    with quiet(), reading(source, folder):
        bridged = bridge(source, str(folder), plain.model, plain.tokenizer, device)
    return _loaded(source, kind, bridged, plain.tokenizer, plain.weight_hash)


def _read_local(source: str, kind: str, folder: Path, gguf: str | None, device: str, *, weights: bool = True) -> Plain:
    check_folder(source, folder, weights=gguf is None)
    options: dict[str, Any] = {**LOCAL} | ({"gguf_file": gguf} if gguf else {})
    with quiet():
        from transformers import AutoTokenizer
    once = read_once() if gguf else contextlib.nullcontext()
    with quiet(), reading(source, folder), once:
        model, loading = _model(source, folder, options, weights=weights)
        refuse_parts(source, model.config)
        refuse_encoder(source, model.config)
        check_complete(source, loading)
        check_finite(model.named_parameters(), source, REFETCH)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        except Exception as error:
            wanted = needs_code(source, folder, error)
            raise wanted or CheckpointError(f"{source} has no usable tokenizer beside its weights: {one_line(error)}") from error
        if not set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids):  # what transformers makes up where no file is
            raise CheckpointError(f"{source} has no tokenizer beside its weights; save one there: tokenizer.save_pretrained(folder)")
    tell_ignored(source, folder)
    if not weights:
        return Plain(source, kind, model.eval(), tokenizer, None)
    files = [folder / gguf] if gguf else sorted(folder.glob("*.safetensors"))
    return Plain(source, kind, model.to(device).eval(), tokenizer, hash_files(files))


def _model(source: str, folder: Path, options: dict[str, Any], *, weights: bool) -> tuple[Any, Mapping[str, Any]]:
    """The raw model in fp32, on the meta device without its weights, and what transformers says of its loading."""
    from transformers import AutoConfig, AutoModelForCausalLM

    reader: Any = AutoModelForCausalLM
    try:
        with _no_bars():
            config = None if weights and "gguf_file" in options else AutoConfig.from_pretrained(folder, **options)
            refuse_parts(source, config)  # before hours of reading, and before anything looks for a processor
            if weights:
                safe: dict[str, Any] = {} if "gguf_file" in options else {"use_safetensors": True}
                safe |= {"ignore_mismatched_sizes": True}  # `check_complete` names them
                model, loading = reader.from_pretrained(folder, **RAW, **options, **safe, output_loading_info=True)
                return model, loading
            with torch.device("meta"):
                return reader.from_config(config, **RAW, trust_remote_code=False), {}
    except CheckpointError:
        raise
    except Exception as error:
        wanted = needs_code(source, folder, error)
        raise wanted or CheckpointError(f"{source} cannot be loaded as a causal language model: {one_line(error)}") from error


def load_plain(source: str, device: str = "cpu", *, weights: bool = True) -> Plain:
    """A decoder from a local Hugging Face folder, a .gguf file or a hub id, without hooks: half the memory of `load`.

    Args:
        source: as above.
        device: torch device.
        weights: False for its layout and tokenizer alone, to be checked before anything is computed.

    Raises:
        UnknownNameError: if it is none of these.
        CheckpointError: if it is there but damaged.
    """
    path = Path(source)
    if path.suffix == ".gguf":
        if not path.is_file():
            raise UnknownNameError(f"no file {source}; give an existing .gguf file")
        return _read_local(source, "gguf", path.parent, path.name, device, weights=weights)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UnknownNameError(f"folder {source} is no Hugging Face model (config.json); prompts need a language model")
        return _read_local(source, "folder", path, None, device, weights=weights)
    if "/" not in source and source not in OWNERLESS:
        raise UnknownNameError(
            f"'{source}' is no language model: give a Hugging Face folder, a .gguf file or a hub id; runs take no --prompts"
        )
    return _read_local(source, "hub", fetch(source, runs=False), None, device, weights=weights)


def bridge(source: str, name: str, model: Any, tokenizer: Any, device: str) -> nn.Module:
    """A transformers decoder behind transformer-lens's bridge, in fp32 and evaluation mode. The model is changed: it becomes the bridge's.

    Args:
        source: how the user called it, for messages.
        name: a folder or an id, where the bridge looks for what it is not given.
        model: the decoder.
        tokenizer: its tokenizer.
        device: torch device.

    Raises:
        CheckpointError: if transformer-lens knows no such architecture.
    """
    from transformer_lens.model_bridge import TransformerBridge

    sizes = count(model)  # before: the bridge splits joint projections into copies
    model.to(device)  # the bridge leaves a model it is handed where it is
    # It goes by what the settings say they are, transformers by the model's type: a file that says Llava gets no way into its processors.
    model.config.architectures = [type(model).__name__]
    if hasattr(model.config, "original_architecture"):
        del model.config.original_architecture
    try:
        made: nn.Module = TransformerBridge.boot_transformers(
            name, hf_model=model, tokenizer=tokenizer, device=device, dtype=torch.float32, trust_remote_code=False
        )
    except Exception as error:
        kind = type(model).__name__
        raise CheckpointError(f"{source} is a {kind}, which transformer-lens cannot bridge: {one_line(error)}") from error
    setattr(made, SIZES, sizes)
    return made.eval()


def _load_hub(source: str, device: str) -> Loaded:
    """A hub id: HookedTransformer without processing where the name is official, else the bridge; both of the files as they are read."""
    folder = fetch(source)
    plain = _read_local(source, "hub", folder, None, device)
    with quiet():
        from transformer_lens import HookedTransformer, model_bridge  # noqa: F401  (imported before the guard is armed)
        from transformer_lens.loading_from_pretrained import NEED_REMOTE_CODE_MODELS
        from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES
    repository, _, revision = source.partition("@")
    # Of the last ones HookedTransformer insists on trusting the repository's code, whatever it is told.
    if repository not in OFFICIAL_MODEL_NAMES or repository.startswith(NEED_REMOTE_CODE_MODELS):
        with quiet(), reading(source, folder):
            bridged = bridge(source, str(folder), plain.model, plain.tokenizer, device)
        return _loaded(source, "hub", bridged, plain.tokenizer, plain.weight_hash)
    options: dict[str, Any] = {"revision": revision} if revision else {}
    with quiet(), reading(source, folder):
        try:
            model: Any = HookedTransformer.from_pretrained_no_processing(
                repository,
                hf_model=plain.model,
                tokenizer=plain.tokenizer,
                device=device,
                dtype=torch.float32,
                trust_remote_code=False,
                **options,
            )
        except Exception as error:
            raise CheckpointError(f"{source} cannot be loaded by transformer-lens: {one_line(error)}") from error
    return _loaded(source, "hub", model.eval(), model.tokenizer, plain.weight_hash)


def _loaded(source: str, kind: str, model: Any, tokenizer: Any, weight_hash: str | None) -> Loaded:
    config = model.cfg
    # Not every adapter of the bridge sets the flag; none of the parallel ones has the hook.
    parallel = bool(getattr(config, "parallel_attn_mlp", False)) or hook_name(0, "resid_mid") not in model.hook_dict
    return Loaded(source, kind, model, int(config.n_layers), int(config.d_model), weight_hash, None, tokenizer, parallel)
