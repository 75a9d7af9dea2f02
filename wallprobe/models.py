"""The one seam to transformer-lens: build a small HookedTransformer, load any decoder, name its hooks.

A source is a run name (`p5`, `p5@1337`), a run folder, a local Hugging Face folder, a .gguf file or a hub id. Weights are
never processed (no folding, no centring). Nothing outside this file constructs a transformer-lens model.
"""

import contextlib
import functools
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn

from wallprobe import runs
from wallprobe.endogenous import add_endogenous
from wallprobe.equilibrium import EqConfig, Equilibrium, fill
from wallprobe.errors import CheckpointError, ConfigError, InstrumentError, UnknownNameError
from wallprobe.sizes import SIZES, count
from wallprobe.sources import check_complete, first_line, hash_files, refuse_encoder, unreachable

# Eager attention, as the bridge's own loading has it: the fused kernels return no pattern to hook.
RAW: Mapping[str, Any] = MappingProxyType({"dtype": torch.float32, "attn_implementation": "eager"})
OWNERLESS = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2")  # hub ids without a slash
SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "z")


def pick_device(name: str) -> str:
    """The torch device for `auto`, `cpu`, `cuda`, `cuda:1` or `mps`.

    Raises:
        ConfigError: if it is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device '{name}' cannot be used here ({str(error).splitlines()[0]}); give auto, cpu, cuda or mps") from error
    return name


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformer-lens's import banners, its deprecation notes on HookedTransformer and progress bars off the terminal."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        previous = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(previous)


def hook_name(layer: int, site: str) -> str:
    """The transformer-lens hook of a site.

    Raises:
        UnknownNameError: for a site that is not in `SITES`.
    """
    if site not in SITES:
        raise UnknownNameError(f"no site named '{site}'; there are: {', '.join(SITES)}")
    return f"blocks.{layer}.attn.hook_z" if site == "z" else f"blocks.{layer}.hook_{site}"


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


@dataclass(frozen=True)
class Loaded:
    """A model ready for instruments.

    Attributes:
        name: how the user called it.
        kind: "run", "equilibrium", "folder", "gguf", "hub", or "net" (a network of the audit).
        model: HookedTransformer or TransformerBridge, which answer to the same hook names; or an equilibrium transformer.
        n_layers: blocks.
        d_model: width of the residual stream.
        weight_hash: SHA-256 of the weights' files, None where the files are not at hand.
        run: the Run, for runs.
        tokenizer: the Hugging Face tokenizer, None for runs.
        parallel: attention and MLP read the same residual (GPT-NeoX, GPT-J).
        processing: what was done to the weights; "none" unless `folded` made it.
    """

    name: str
    kind: str
    model: nn.Module
    n_layers: int
    d_model: int
    weight_hash: str | None
    run: runs.Run | None = None
    tokenizer: Any = None
    parallel: bool = False
    processing: str = "none"

    @functools.cached_property
    def points(self) -> Mapping[str, Any]:
        """Hook points by name; the bridge resolves every alias of the model again each time it is asked."""
        found: Mapping[str, Any] = cast(Any, self.model).hook_dict
        return found


@dataclass(frozen=True)
class Plain:
    """A Hugging Face decoder as transformers holds it.

    Attributes:
        name: how the user called it.
        kind: "folder", "gguf" or "hub".
        model: the model, fp32, in evaluation mode; on torch's meta device where its weights were left out.
        tokenizer: its tokenizer.
        weight_hash: SHA-256 of the weights' files, None where the weights were left out.
    """

    name: str
    kind: str
    model: Any
    tokenizer: Any
    weight_hash: str | None


def on_input(loaded: Loaded, path: str, callback: Callable[[Tensor], object]) -> Callable[[], None]:
    """Call back with what a module is given, each time it is called.

    HookedTransformer has no hook for it that fires once: it runs `ln1` for query, key and value each, and `hook_normalized` comes
    before the affine. The module's own argument is the same thing in every model.

    Args:
        loaded: the model.
        path: module by transformer-lens name, such as `blocks.3.attn`, `blocks.3.mlp` or `ln_final`.
        callback: told the `[batch, index, d_model]` tensor.

    Returns:
        A function that ends it.

    Raises:
        InstrumentError: if the model has no such module; when called, if the module is given no hidden states.
    """
    try:
        module = loaded.model.get_submodule(path)
    except AttributeError as error:
        raise InstrumentError(f"{loaded.name} has no module {path}; its blocks are laid out differently") from error

    def hook(_: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        given = positional[0] if positional else named.get("hidden_states", named.get("query_input"))
        if not isinstance(given, Tensor):
            raise InstrumentError(f"{path} of {loaded.name} is not given its hidden states by a known name ({', '.join(named)})")
        callback(given)

    return module.register_forward_pre_hook(hook, with_kwargs=True).remove


def build(shape: Mapping[str, Any], state: Mapping[str, Tensor], device: str = "cpu") -> nn.Module:
    """A HookedTransformer of a run's shape: causal, pre-LN, exact GELU, learned positions.

    Args:
        shape: `n_layers`, `d_model`, `n_heads`, `n_ctx`, `vocabulary`; `act_fn` where it is not exact GELU.
        state: parameters by HookedTransformer name. Those under `temperature.` and `blocks.L.attn.gate.` (endogenous conditions) become
            part of the model, so that it computes what was trained. Those under `head.` (a training's scalar head, which only reads)
            are left out.
        device: torch device.

    Raises:
        CheckpointError: if the parameters do not fit the shape, or if there are others than these.
    """
    with quiet():
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        config = HookedTransformerConfig(
            n_layers=shape["n_layers"],
            d_model=shape["d_model"],
            n_heads=shape["n_heads"],
            d_head=shape["d_model"] // shape["n_heads"],
            d_mlp=4 * shape["d_model"],
            n_ctx=shape["n_ctx"],
            d_vocab=shape["vocabulary"],
            act_fn=shape.get("act_fn", "gelu"),
            normalization_type="LN",
            init_weights=False,
            device=device,
        )
        model: nn.Module = HookedTransformer(config)
    wanted = {name: tensor for name, tensor in state.items() if not name.startswith("head.")}
    add_endogenous(model, shape, wanted)
    expected = {name: parameter.shape for name, parameter in model.named_parameters()}
    wrong = sorted(name for name in expected.keys() | wanted.keys() if expected.get(name) != getattr(wanted.get(name), "shape", None))
    if wrong:
        raise CheckpointError(f"the weights do not fit a model of shape {dict(shape)}: {', '.join(wrong[:4])} differ; retrain the run")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(wanted[name])
    return model.eval()


def hooked(net: Any, name: str = "net") -> Loaded:
    """A network of the audit (`training.nets.Net`) with transformer-lens hook names, for the shared cache.

    `hook_embed` is h_0, `blocks.L.hook_resid_pre` and `blocks.L.hook_resid_post` are the states before and after a block, each as
    `[batch, index, width]`: a vector has one index, a map one for each pixel. What a hook returns goes on through the network.

    Args:
        net: the network; its weights are shared, not copied.
        name: what to call it.
    """
    with quiet():
        from transformer_lens import HookedRootModule
        from transformer_lens.hook_points import HookPoint

    class Point(nn.Module):
        """The hooks of a block."""

        def __init__(self) -> None:
            super().__init__()
            self.hook_resid_pre, self.hook_resid_post = HookPoint(), HookPoint()

    class Hooked(HookedRootModule):  # type: ignore[misc]
        """The network between hooks."""

        def __init__(self) -> None:
            super().__init__()
            self.net, self.hook_embed = net, HookPoint()
            self.blocks = nn.ModuleList(Point() for _ in net.blocks)
            HookedRootModule.setup(self)

        def forward(self, x: Tensor, stop_at_layer: int | None = None) -> Tensor:
            """Logits, or the state before a block."""
            h = _through(self.hook_embed, self.net.embed(x))
            for block, point in list(zip(self.net.blocks, self.blocks, strict=True))[:stop_at_layer]:
                h = _through(point.hook_resid_post, block(_through(point.hook_resid_pre, h)))
            out: Tensor = self.net.readout(h) if stop_at_layer is None else h
            return out

    return Loaded(name, "net", Hooked().eval(), len(net.blocks), net.widths[-1], None)


def _through(hook: Any, state: Tensor) -> Tensor:
    """A state through a hook as [batch, index, width], and back in its own shape."""
    rows = state[:, None] if state.ndim == 2 else state.flatten(2).transpose(1, 2) if state.ndim == 4 else state
    out: Tensor = hook(rows)
    return out[:, 0] if state.ndim == 2 else out.transpose(1, 2).reshape(state.shape) if state.ndim == 4 else out


def equilibrium(cfg: EqConfig, state: Mapping[str, Tensor] | None = None, seed: int = 0) -> Equilibrium:
    """An equilibrium transformer with transformer-lens hooks, caches and all.

    Args:
        cfg: shape and dynamics.
        state: parameters by name; None leaves those drawn from the seed.
        seed: of that draw.

    Raises:
        CheckpointError: if the parameters are another model's.
    """
    with quiet():
        from transformer_lens import HookedRootModule
        from transformer_lens.hook_points import HookPoint

    class EquilibriumTransformer(Equilibrium, HookedRootModule):  # type: ignore[misc]
        """The model between hooks."""

        def __init__(self) -> None:
            super().__init__()
            self.lay(cfg, seed, HookPoint)
            HookedRootModule.setup(self)

    model: Equilibrium = EquilibriumTransformer()
    if state is not None:
        fill(model, state)
    return model.eval()


def load_run(run: runs.Run, device: str = "cpu") -> Loaded:
    """A run's model, its weights verified against the manifest; `kind` "equilibrium" for an equilibrium transformer's."""
    shape, fixed = run.manifest["shape"], run.kind == runs.EQUILIBRIUM
    model = equilibrium(EqConfig.of(shape), run.tensors()).to(device) if fixed else build(shape, run.tensors(), device)
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
    bridge = _bridge(source, str(folder), plain.model, plain.tokenizer, device)
    return _loaded(source, kind, bridge, plain.tokenizer, plain.weight_hash)


def _read_local(source: str, kind: str, folder: Path, gguf: str | None, device: str, *, weights: bool = True) -> Plain:
    with quiet():
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        reader: Any = AutoModelForCausalLM
        options: dict[str, Any] = {"local_files_only": True} | ({"gguf_file": gguf} if gguf else {})
        loading: dict[str, Any] = {}
        try:
            with _no_bars():
                if weights:
                    model, loading = reader.from_pretrained(folder, **RAW, **options, output_loading_info=True)
                else:
                    with torch.device("meta"):
                        model = reader.from_config(AutoConfig.from_pretrained(folder, **options), **RAW)
        except Exception as error:
            raise CheckpointError(f"{source} cannot be loaded as a causal language model: {first_line(error)}") from error
        refuse_encoder(source, model.config)
        check_complete(source, loading)
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        except Exception as error:
            raise CheckpointError(f"{source} has no usable tokenizer beside its weights: {first_line(error)}") from error
        if not set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids):  # what transformers makes up where no file is
            raise CheckpointError(f"{source} has no tokenizer beside its weights; save one there: tokenizer.save_pretrained(folder)")
    if not weights:
        return Plain(source, kind, model.eval(), tokenizer, None)
    files = [folder / gguf] if gguf else sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    return Plain(source, kind, model.to(device).eval(), tokenizer, hash_files(files))


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
    try:
        with quiet():
            from huggingface_hub import snapshot_download

            repository, _, revision = source.partition("@")
            folder = Path(
                snapshot_download(repository, revision=revision or None, allow_patterns=["*.json", "*.safetensors", "*.model", "*.txt"])
            )
    except Exception as error:
        raise UnknownNameError(
            f"model '{source}' could not be fetched: it is unknown to the hub, not in the local cache, or the network is down "
            f"({first_line(error)}); give a hub id, a local folder or a .gguf file"
        ) from error
    return _read_local(source, "hub", folder, None, device, weights=weights)


def _bridge(source: str, name: str, model: Any, tokenizer: Any, device: str) -> nn.Module:
    from transformer_lens.model_bridge import TransformerBridge

    sizes = count(model)  # before: the bridge splits joint projections into copies
    model.to(device)  # the bridge leaves a model it is handed where it is
    try:
        bridge: nn.Module = TransformerBridge.boot_transformers(
            name, hf_model=model, tokenizer=tokenizer, device=device, dtype=torch.float32
        )
    except Exception as error:
        kind = type(model).__name__
        raise CheckpointError(f"{source} is a {kind}, which transformer-lens cannot bridge: {first_line(error)}") from error
    setattr(bridge, SIZES, sizes)
    return bridge.eval()


def _load_hub(source: str, device: str) -> Loaded:
    """A hub id: HookedTransformer without processing where the name is official, else the bridge."""
    import huggingface_hub.utils

    utils: Any = huggingface_hub.utils  # re-exports without saying so
    repository, _, revision = source.partition("@")
    try:
        utils.validate_repo_id(repository)
    except utils.HFValidationError as error:
        raise UnknownNameError(f"'{source}' is no folder here and no hub id ({first_line(error)})") from error
    try:
        with quiet():
            from transformer_lens import HookedTransformer
            from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES

            options: dict[str, Any] = {"revision": revision} if revision else {}
            if repository in OFFICIAL_MODEL_NAMES:
                model: Any = HookedTransformer.from_pretrained_no_processing(repository, device=device, dtype=torch.float32, **options)
                tokenizer = model.tokenizer
            else:
                from transformers import AutoModelForCausalLM, AutoTokenizer

                tokenizer = AutoTokenizer.from_pretrained(repository, **options)
                reader: Any = AutoModelForCausalLM
                raw, loading = reader.from_pretrained(repository, **RAW, **options, output_loading_info=True)
                refuse_encoder(source, raw.config)
                check_complete(source, loading)
                model = _bridge(source, repository, raw, tokenizer, device)
    except CheckpointError:
        raise
    except Exception as error:
        raise unreachable(source, error) from error
    return _loaded(source, "hub", model.eval(), tokenizer, None)


def _loaded(source: str, kind: str, model: Any, tokenizer: Any, weight_hash: str | None) -> Loaded:
    config = model.cfg
    # Not every adapter of the bridge sets the flag; none of the parallel ones has the hook.
    parallel = bool(getattr(config, "parallel_attn_mlp", False)) or hook_name(0, "resid_mid") not in model.hook_dict
    return Loaded(source, kind, model, int(config.n_layers), int(config.d_model), weight_hash, None, tokenizer, parallel)
