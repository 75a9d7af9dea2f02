"""What hook modules share: how one attaches and leaves, which hooks a pattern names, and where a forward pass begins and ends."""

import inspect
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from wallprobe.errors import InstrumentError, UnknownNameError
from wallprobe.hooks.attach.cache import layers_needed
from wallprobe.models import Loaded, Model, as_model, attachable

Own = TypeVar("Own", bound="Attached")


class Attached:
    """A context manager over a model: entering attaches hooks, leaving removes them, also on an error. It can be entered again.

    Hooks act on calls of `loaded.root`: your own object, or what `wallprobe.wrap` made of it where a copy had to be bridged.

    Args:
        model: as `models.as_model`; a transformers decoder given as it is is hooked where it is, so that your calls of it are seen.
    """

    def __init__(self, model: Model) -> None:
        self.loaded = model if isinstance(model, Loaded) else as_model(attachable(model))
        self._stack: ExitStack | None = None

    def __enter__(self: Own) -> Own:
        """Attach.

        Raises:
            InstrumentError: if it is attached already, if the model has no such hook, or if the model behind a bridge was changed.
        """
        name, origin = self.loaded.name, self.loaded.origin
        if self._stack is not None:
            raise InstrumentError(f"this {type(self).__name__} is attached to {name} already; leave it first, or make another")
        if origin is not None and origin.copied and origin.changed:
            raise InstrumentError(
                f"{name} was written to since it was wrapped, and its bridge holds copies of some weights: wrap it again, or with "
                "through='blocks', which follows a training"
            )
        with ExitStack() as stack:
            self._attach(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leave the model as it was; then say what went wrong, unless something did already."""
        stack, self._stack = self._stack, None
        assert stack is not None
        if kind is not None:
            stack.__exit__(kind, error, trace)
            return
        with stack:
            self._finish()

    def _attach(self, stack: ExitStack) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        """What is checked and written when the block ended well."""

    def hook(self, stack: ExitStack, name: str, function: Callable[..., Any]) -> None:
        """Add a hook that the stack takes off again; hooks of others at that point stay.

        Raises:
            InstrumentError: if the model has no such hook.
        """
        point = self.loaded.points.get(name)
        if point is None:
            raise InstrumentError(f"{self.loaded.name} has no hook {name}; its blocks are laid out differently")
        level = id(self)
        point.add_hook(function, level=level)
        stack.callback(point.remove_hooks, "fwd", level=level)


class Following(Attached):
    """One that keeps something of every forward pass: values gathered at hooks are taken together when the pass is over.

    A pass that fails half way leaves nothing. A value that comes outside a call of the model, or twice in one, is an error.
    """

    def __init__(self, model: Model, names: Sequence[str]) -> None:
        super().__init__(model)
        self.names = tuple(names)
        self._fired: dict[str, Tensor] = {}
        self._inside = False

    def _attach(self, stack: ExitStack) -> None:
        self._fired, self._inside = {}, False
        for name in self.names:
            self.hook(stack, name, self._recorder(name))
        root = self.loaded.root
        stack.callback(root.register_forward_pre_hook(self._enter_pass, with_kwargs=True).remove)
        stack.callback(root.register_forward_hook(self._leave_pass).remove)

    def _recorder(self, name: str) -> Callable[..., None]:
        def record(value: Tensor, hook: Any = None) -> None:
            if not self._inside:
                raise InstrumentError(f"hook {name} fired outside a call of {self.loaded.name}: call the model itself, not its forward")
            if name in self._fired:
                raise InstrumentError(f"hook {name} fired more than once in one forward pass")
            self._fired[name] = self._part(name, value.detach())

        return record

    def _enter_pass(self, module: nn.Module, positional: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._fired, self._inside = {}, True
        tokens = positional[0] if positional else named.get("input_ids", named.get("input", named.get("tokens")))
        self._begin(tokens.detach() if isinstance(tokens, Tensor) else None)

    def _leave_pass(self, module: nn.Module, positional: Any, out: Any) -> None:
        fired, self._fired, self._inside = self._fired, {}, False
        silent = [name for name in self.names if name not in fired]
        if silent:
            raise InstrumentError(f"hooks {', '.join(silent[:4])} of {self.loaded.name} did not fire in this pass; nothing is kept of it")
        self._take(fired)

    def _begin(self, tokens: Tensor | None) -> None:
        """A pass begins; what it reads, where that is a tensor."""

    def _part(self, name: str, value: Tensor) -> Tensor:
        """What is kept of a value until the pass is over."""
        return value

    def _take(self, fired: dict[str, Tensor]) -> None:
        raise NotImplementedError


def names_of(loaded: Loaded, patterns: str | Sequence[str]) -> list[str]:
    """The hooks that names or patterns stand for, in the model's order; `*` is anything within one part of a name, `**` anything.

    Raises:
        UnknownNameError: if a pattern names no hook of the model.
    """
    found: dict[str, None] = {}
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        form = re.compile(re.escape(pattern).replace(r"\*\*", ".*").replace(r"\*", r"[^.]*").replace(r"\?", "[^.]"))
        matched = [name for name in loaded.points if form.fullmatch(name)]
        if not matched:
            some = [name for name in loaded.points if name.startswith("blocks.0.")][:6]
            raise UnknownNameError(f"no hook of {loaded.name} is named '{pattern}'; there are for instance: {', '.join(some)}")
        found |= dict.fromkeys(sorted(matched, key=_natural))
    return list(found)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def feed(loaded: Loaded, tokens: Shaped[Tensor, "batch index"], names: Sequence[str] = ()) -> None:
    """One forward pass without gradients, for the hooks' sake; it stops behind the last block that `names` need.

    Args:
        loaded: the model.
        tokens: ids, equal lengths, no padding.
        names: hooks; none for a whole pass.
    """
    model: Any = loaded.model
    placed = tokens.to(next(loaded.model.parameters()).device)
    # A stated mask: without it some models take a token that equals the padding id for padding.
    options: dict[str, Any] = {} if loaded.tokenizer is None else {"attention_mask": torch.ones_like(placed)}
    stop = layers_needed(names) if names else None
    if stop is not None and stop < loaded.n_layers and "stop_at_layer" in inspect.signature(model.forward).parameters:
        options["stop_at_layer"] = stop
    with torch.no_grad():
        model(placed, return_type=None, **options)
