"""How a language model gives activations and is patched: by passes from the middle on its own weights, or by nnsight's traces.

`Resumed` is the quick way; some of its cells are also run whole, through hooks on the model's own modules. `Looped` runs every cell so,
for models that nobody here has taken apart. `Traced` is the same model through nnsight, one trace a patch.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wallprobe import models
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.hooks.attach import resume, sites, stacks
from wallprobe.hooks.attach.remote import Point, Tracer
from wallprobe.hooks.interchange import budget
from wallprobe.hooks.interchange.prompts.report import ARMS, Read
from wallprobe.hooks.interchange.sweep_report import Place

AGREEMENT = 1e-3  # logits by which the model taken apart may differ from the model
SELF_BATCH = 64  # cells whose self-patches share one pass
# As a forward pass comes to them.
ORDER = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")
Reads = Callable[[Float[Tensor, "entry pair vocab"]], list[Read]]


@runtime_checkable
class Engine(Protocol):
    """One model on one batch of prompts."""

    def run(self, tokens: Int[Tensor, "pair index"], places: Sequence[Place]) -> Float[Tensor, "pair vocab"]:
        """Logits at the last index without a patch; what stands at the places is kept for `value`."""
        ...

    def value(self, place: Place) -> Float[Tensor, "pair width"]:
        """What stood there in the last run."""
        ...

    def patched(self, entries: Sequence[tuple[Place, Tensor]], reads: Reads) -> list[Read]:
        """What is read with each of these patches in the last run's prompts; cells of one index, in the order of `budget.entered`."""
        ...

    def whole(self, place: Place, value: Float[Tensor, "pair width"]) -> Float[Tensor, "pair vocab"]:
        """Logits at the last index with this patch, by a whole pass of the model."""
        ...

    def self_patches(self, places: Sequence[Place], tokens: Int[Tensor, "pair index"]) -> dict[Place, float]:
        """The largest change of a logit when a cell is given its own activation, one prompt a cell."""
        ...

    def groups(self, places: Sequence[Place], tokens: Int[Tensor, "pair index"], gib: float) -> list[list[Place]]:
        """Cells that go together within a budget."""
        ...


def layout(plain: models.Plain) -> stacks.Native | stacks.Modules:
    """The model in steps, or its blocks where the steps are not known.

    Raises:
        ConfigError: if not even those are.
    """
    stack = stacks.of_transformers(plain.model) or stacks.of_modules(plain.model)
    if stack is None:
        raise ConfigError(
            f"{plain.name} is a {plain.model.config.model_type}, whose blocks cannot be told; known are {', '.join(stacks.LAYOUTS)}"
        )
    return stack


def points(plain: models.Plain, stack: stacks.Native | stacks.Modules, places: Sequence[Place]) -> dict[Place, Point]:
    """Where in the model's own modules each cell is.

    Raises:
        InstrumentError: for a site that is no module's own.
    """
    paths = {module: path for path, module in plain.model.named_modules()}
    found = {(place.site, place.layer): stack.point(place.layer, sites.module_site(place.site)) for place in places}
    return {place: (paths[found[place.site, place.layer][0]], found[place.site, place.layer][1]) for place in places}


class Hooked:
    """Whole passes and self-patches through torch's hooks on the model's own modules."""

    def __init__(self, plain: models.Plain, stack: stacks.Native | stacks.Modules) -> None:
        self.plain, self.stack = plain, stack
        self._tokens: Tensor | None = None
        # Most decoders can leave out the other indices' logits.
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(plain.model.forward).parameters else {}

    def whole(self, place: Place, value: Float[Tensor, "pair width"]) -> Float[Tensor, "pair vocab"]:
        """See `Engine`."""
        assert self._tokens is not None

        def put(here: Tensor) -> Tensor:
            here, head = here.clone(), sites.head_of(place.site)
            there = here[:, place.index] if head is None else here[:, place.index, sites.part_of(self.stack, head)]
            there.copy_(value)
            return here

        return self._hooked(self._tokens, {(place.site, place.layer): put})

    def self_patches(self, places: Sequence[Place], tokens: Int[Tensor, "pair index"]) -> dict[Place, float]:
        """See `Engine`.

        Raises:
            InstrumentError: if a module is not called exactly once, or a self-patch changes anything.
        """
        changes: dict[Place, float] = {}
        batch = min(SELF_BATCH, 4 * len(tokens))
        for start in range(0, len(places), batch):
            some = places[start : start + batch]
            rows = tokens[torch.arange(len(some)) % len(tokens)]
            by_point: dict[tuple[str, int], dict[int, int]] = {}
            for row, place in enumerate(some):
                by_point.setdefault((place.site, place.layer), {})[row] = place.index
            seen: dict[tuple[str, int], dict[int, Tensor]] = {}
            untouched = self._hooked(rows, {point: _see(seen, point, slots) for point, slots in by_point.items()})
            again = self._hooked(rows, {point: _restore(seen[point], slots) for point, slots in by_point.items()})
            changes |= {place: float(change) for place, change in zip(some, (again - untouched).abs().amax(-1), strict=True)}
        return checked_selves(self.plain.name, changes)

    def _hooked(self, tokens: Int[Tensor, "row index"], edits: "Mapping[tuple[str, int], Edit]") -> Float[Tensor, "row vocab"]:
        """Logits at the last index with edits at points of the model's own modules.

        Raises:
            InstrumentError: if a module is not called exactly once.
        """
        handles, called = [], dict.fromkeys(edits, 0)
        for (site, layer), edit in edits.items():

            def once(value: Tensor, edit: Edit = edit, point: tuple[str, int] = (site, layer)) -> Tensor:
                called[point] += 1
                return edit(value)

            module, given = self.stack.point(layer, sites.module_site(site))
            handles.append(_attach(module, given, once))
        try:
            logits: Tensor = self.plain.model(tokens, **self._last).logits[:, -1]
        finally:
            for handle in handles:
                handle.remove()
        for (site, layer), times in called.items():
            if times != 1:
                raise InstrumentError(f"{site} of layer {layer} of {self.plain.name} was computed {times} times in one pass; expected once")
        return logits


class Resumed(Hooked):
    """Passes from the middle; see `Engine`."""

    def __init__(self, plain: models.Plain, stack: stacks.Native) -> None:
        super().__init__(plain, stack)
        self.steps = stack
        self._clean: resume.Clean | None = None

    def run(self, tokens: Int[Tensor, "pair index"], places: Sequence[Place]) -> Float[Tensor, "pair vocab"]:
        """See `Engine`; the model taken apart is held to the model itself.

        Raises:
            InstrumentError: if the steps give other logits than the model.
        """
        self._clean, self._tokens = None, tokens  # the last one is freed first
        self._clean = resume.observe(self.steps, tokens)
        logits = self.steps.read(self._clean.residual[-1][:, -1])
        apart = float((logits[:2] - self.plain.model(tokens[:2], logits_to_keep=1).logits[:, -1]).abs().max())
        if not apart <= AGREEMENT * max(1.0, float(logits[:2].abs().max())):
            name = self.plain.name
            raise InstrumentError(f"{name} taken apart gives logits {apart:g} off its own; its layout is not what its config says")
        return logits

    def value(self, place: Place) -> Float[Tensor, "pair width"]:
        """See `Engine`."""
        assert self._clean is not None
        return sites.value_at(self.steps, self._clean, place.layer, place.index, place.site)

    def patched(self, entries: Sequence[tuple[Place, Tensor]], reads: Reads) -> list[Read]:
        """See `Engine`."""
        assert self._clean is not None
        clean = self._clean

        def figures(logits: Float[Tensor, "entry pair vocab"]) -> Float[Tensor, "entry pair figure"]:
            return torch.stack([torch.stack([read.difference, read.probability], -1) for read in reads(logits)])

        entered = [sites.enter(self.steps, clean, place.layer, place.index, place.site, value) for place, value in entries]
        walked = resume.walk(self.steps, clean, entries[0][0].index, entered, figures)
        return [Read(*row.unbind(-1)) for row in walked]

    def groups(self, places: Sequence[Place], tokens: Int[Tensor, "pair index"], gib: float) -> list[list[Place]]:
        """See `Engine`.

        Raises:
            ConfigError: if not even one cell fits.
        """
        stack, (pairs, length) = self.steps, tokens.shape
        held = budget.clean_bytes(stack, pairs, length) + budget.values_bytes(stack, places, pairs) + budget.statistics_bytes(pairs)
        held += budget.block_bytes(stack)
        # 8 bytes a logit: itself, and its exponential while probabilities are summed.
        each = {
            index: budget.cell_bytes(stack, pairs, length, index, len(ARMS), stack.vocabulary, 8) for index in {p.index for p in places}
        }
        return budget.groups(places, each, held, gib, f"one cell of {pairs} pairs of {self.plain.name}")


class OneByOne(ABC):
    """What goes one whole pass a patch; see `Engine`."""

    _values: Mapping[Place, Tensor]

    @abstractmethod
    def whole(self, place: Place, value: Float[Tensor, "pair width"]) -> Float[Tensor, "pair vocab"]:
        """See `Engine`."""

    def value(self, place: Place) -> Float[Tensor, "pair width"]:
        """See `Engine`."""
        return self._values[place]

    def patched(self, entries: Sequence[tuple[Place, Tensor]], reads: Reads) -> list[Read]:
        """See `Engine`."""
        return [read for place, value in entries for read in reads(self.whole(place, value)[None])]

    def groups(self, places: Sequence[Place], tokens: Int[Tensor, "pair index"], gib: float) -> list[list[Place]]:
        """See `Engine`: every cell alone."""
        return [[place] for place in places]


class Looped(Hooked, OneByOne):
    """Whole passes through torch's hooks; see `Engine`."""

    def __init__(self, plain: models.Plain, stack: stacks.Native | stacks.Modules) -> None:
        super().__init__(plain, stack)
        self._values: dict[Place, Tensor] = {}

    def run(self, tokens: Int[Tensor, "pair index"], places: Sequence[Place]) -> Float[Tensor, "pair vocab"]:
        """See `Engine`."""
        self._tokens, self._values = tokens, {}
        by_point: dict[tuple[str, int], list[Place]] = {}
        for place in places:
            by_point.setdefault((place.site, place.layer), []).append(place)
        return self._hooked(tokens, {point: self._keeper(here) for point, here in by_point.items()})

    def _keeper(self, places: Sequence[Place]) -> "Edit":
        def keep(value: Tensor) -> Tensor:
            self._values |= {place: value[:, place.index].clone() for place in places}
            return value

        return keep


class Traced(OneByOne):
    """A language model through nnsight; see `Engine`."""

    def __init__(self, plain: models.Plain, remote: str = "none") -> None:
        self.plain, self.stack = plain, layout(plain)
        self._tracer = Tracer(plain.name, plain.model, plain.tokenizer, remote)
        self._values: dict[Place, Tensor] = {}
        self._tokens: Tensor | None = None

    def run(self, tokens: Int[Tensor, "pair index"], places: Sequence[Place]) -> Float[Tensor, "pair vocab"]:
        """See `Engine`."""
        where = points(self.plain, self.stack, places)
        kept: dict[Point, list[int]] = {}
        for place in sorted(places, key=lambda place: (place.layer, ORDER.index(place.site))):
            kept.setdefault(where[place], []).append(place.index)
        found, logits = self._tracer.look(tokens, list(kept), list(kept.values()))
        width = dict(zip(kept, found, strict=True))
        self._values = {place: width[where[place]][:, kept[where[place]].index(place.index)] for place in places}
        self._tokens = tokens
        return logits

    def whole(self, place: Place, value: Float[Tensor, "pair width"]) -> Float[Tensor, "pair vocab"]:
        """See `Engine`."""
        assert self._tokens is not None
        (point,) = points(self.plain, self.stack, [place]).values()
        return self._tracer.patch(self._tokens, point, place.index, value)[0]

    def self_patches(self, places: Sequence[Place], tokens: Int[Tensor, "pair index"]) -> dict[Place, float]:
        """See `Engine`.

        Raises:
            InstrumentError: if a module is not called exactly once, or a self-patch changes anything.
        """
        untouched = self.run(tokens, places)
        changes = {place: float((self.whole(place, self.value(place)) - untouched).abs().max()) for place in places}
        return checked_selves(self.plain.name, changes)


Edit = Callable[[Tensor], Tensor]


def checked_selves(name: str, changes: dict[Place, float]) -> dict[Place, float]:
    """The changes that self-patches made.

    Raises:
        InstrumentError: if one is not zero, to the bit.
    """
    for place, change in changes.items():
        if change != 0.0:
            raise InstrumentError(f"{place}: putting {name}'s own activation back changed a logit by {change}")
    return changes


def _attach(module: nn.Module, given: bool, edit: Edit) -> Any:
    if given:
        return module.register_forward_pre_hook(lambda _, named: (edit(named[0]), *named[1:]))
    return module.register_forward_hook(lambda _, __, output: (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output))


def _see(seen: dict[tuple[str, int], dict[int, Tensor]], point: tuple[str, int], slots: Mapping[int, int]) -> Edit:
    def see(value: Tensor) -> Tensor:
        seen[point] = {row: value[row, index].clone() for row, index in slots.items()}
        return value

    return see


def _restore(kept: Mapping[int, Tensor], slots: Mapping[int, int]) -> Edit:
    def restore(value: Tensor) -> Tensor:
        value = value.clone()
        for row, index in slots.items():
            value[row, index] = kept[row]
        return value

    return restore
