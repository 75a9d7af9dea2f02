"""A model ready for instruments: its noun, the names of its hooks, and what a module of it is given."""

import contextlib
import functools
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from wallprobe.errors import ConfigError, InstrumentError, UnknownNameError, one_line
from wallprobe.store import runs

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
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:  # the first holds NotImplementedError: torch's meta device holds no figures
        raise ConfigError(f"device '{name}' cannot be used here ({one_line(error)}); give auto, cpu, cuda or mps") from error
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


@dataclass(frozen=True)
class Origin:
    """A user's object behind a wrapped model.

    Attributes:
        module: the object.
        stamp: its parameters as they were when it was wrapped (see `stamp`).
        copied: hooks act on a structural copy that shares its parameters, not on the object itself.
    """

    module: nn.Module
    stamp: tuple[tuple[int, int, int], ...]
    copied: bool

    @property
    def changed(self) -> bool:
        """Whether a parameter was written to or replaced since; a write through `.data` goes unseen."""
        return stamp(self.module) != self.stamp


def stamp(module: nn.Module) -> tuple[tuple[int, int, int], ...]:
    """Of each parameter: which one, where its bytes lie, and how often it was written to."""
    return tuple((id(one), one.data_ptr(), -1 if one.is_inference() else one._version) for one in module.parameters())


@dataclass(frozen=True)
class Loaded:
    """A model ready for instruments.

    Attributes:
        name: how the user called it.
        kind: "run", "equilibrium", "folder", "gguf", "hub", "net" (a network of the audit), or "wrapped" (an object of the user's).
        model: HookedTransformer or TransformerBridge, which answer to the same hook names; or an equilibrium transformer.
        n_layers: blocks.
        d_model: width of the residual stream.
        weight_hash: SHA-256 of the weights' files, None where the files are not at hand; of a wrapped model's parameters.
        run: the Run, for runs.
        tokenizer: the Hugging Face tokenizer, None for runs and where a wrapped model came without.
        parallel: attention and MLP read the same residual (GPT-NeoX, GPT-J).
        processing: what was done to the weights; "none" unless `folded` made it.
        origin: the user's object and what it was when it was wrapped; None for what was loaded.
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
    origin: Origin | None = field(default=None, compare=False, repr=False)

    @property
    def current_hash(self) -> str | None:
        """`weight_hash`, but None for a wrapped model that was written to since: what is seen of a training is of no one model."""
        return None if self.origin is not None and self.origin.changed else self.weight_hash

    @property
    def root(self) -> nn.Module:
        """The module whose call is a forward pass: the user's own where hooks act on it, else the model."""
        return self.model if self.origin is None or self.origin.copied else self.origin.module

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
