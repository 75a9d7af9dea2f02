"""How a model gives activations and is patched: whole passes through its own hooks, or passes from the middle on its own weights.

`Resumed` is the quick way, for models whose steps are known; some of its cells are also run whole. `Looped` runs every cell whole.
Whole passes go through transformer-lens's hook points, torch's hooks on the model's own modules, or nnsight's traces.
"""

import functools
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from wallprobe import models
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.hooks.attach import cache, resume, sites, stacks
from wallprobe.hooks.attach.remote import Tracer
from wallprobe.hooks.interchange import budget
from wallprobe.hooks.interchange.places import Place

AGREEMENT = 1e-3  # of the largest logit, by which a model taken apart may differ from the model
Point = tuple[str, int]  # a module's site, and its layer
Edit = Callable[[Float[Tensor, "row index width"]], Float[Tensor, "row index width"]]
Reduce = Callable[[Float[Tensor, "entry row vocab"]], Float[Tensor, "entry row figure"]]
# As a forward pass comes to them.
ORDER = ("resid_pre", "z", "attn_out", "resid_mid", "mlp_out", "resid_post")


class Whole(ABC):
    """Whole passes of a model with edits at its sites.

    Attributes:
        name: the model's, for messages.
        blocks: its sizes; heads' parts of z are cut by them.
        batch: cells whose self-patches share one pass.
    """

    name: str
    blocks: Any
    batch = 64

    @abstractmethod
    def logits(self, tokens: Int[Tensor, "row index"], edits: Mapping[Point, Edit]) -> Float[Tensor, "row vocab"]:
        """Logits at the last index with edits.

        Raises:
            InstrumentError: if a site is not computed exactly once.
        """

    def part(self, site: str) -> slice:
        """Where in a module's value a site is: a head's part of z."""
        head = sites.head_of(site)
        return slice(None) if head is None else sites.part_of(self.blocks, head)

    def look(self, tokens: Int[Tensor, "row index"], places: Sequence[Place]) -> tuple[dict[Place, Tensor], Float[Tensor, "row vocab"]]:
        """What stands at places, windows side by side, and the logits at the last index."""
        wanted: dict[Point, list[tuple[str, int]]] = {}
        for place in places:
            for layer in place.layers:
                wanted.setdefault((sites.module_site(place.site), layer), []).append((place.site, int(place.index)))
        seen: dict[tuple[str, int, int], Tensor] = {}

        def keeper(point: Point, asked: Sequence[tuple[str, int]]) -> Edit:
            def keep(value: Tensor) -> Tensor:
                seen.update({(site, point[1], index): value[:, index, self.part(site)].detach().clone() for site, index in asked})
                return value

            return keep

        logits = self.logits(tokens, {point: keeper(point, asked) for point, asked in wanted.items()})
        return {place: torch.cat([seen[place.site, layer, int(place.index)] for layer in place.layers], -1) for place in places}, logits

    def patch(
        self, tokens: Int[Tensor, "row index"], place: Place, value: Float[Tensor, "row width"]
    ) -> tuple[Float[Tensor, "row vocab"], float]:
        """Logits at the last index with a value put at a place, and the largest change there."""
        changes: list[float] = []

        def putter(new: Tensor) -> Edit:
            def put(here: Tensor) -> Tensor:
                there = (slice(None), int(place.index), self.part(place.site))
                changes.append(float((new.to(here) - here[there]).abs().max()))
                here = here.clone()
                here[there] = new.to(here)
                return here

            return put

        parts = value.chunk(place.window, dim=-1)
        edits = {(sites.module_site(place.site), layer): putter(new) for layer, new in zip(place.layers, parts, strict=True)}
        return self.logits(tokens, edits), max(changes)

    def self_patches(self, places: Sequence[Place], tokens: Int[Tensor, "row index"]) -> dict[Place, float]:
        """The largest change of a logit when a cell is given its own activation: one sequence a cell, all of a batch in one pass, beside
        a pass of the very same batch without a patch."""
        changes: dict[Place, float] = {}
        batch = min(self.batch, 4 * len(tokens))
        for start in range(0, len(places), batch):
            some = places[start : start + batch]
            rows = tokens[torch.arange(len(some)) % len(tokens)]
            slots: dict[Point, list[tuple[int, int]]] = {}
            for row, place in enumerate(some):
                for layer in place.layers:
                    slots.setdefault((sites.module_site(place.site), layer), []).append((row, int(place.index)))
            at = {point: tuple(torch.tensor(side) for side in zip(*asked, strict=True)) for point, asked in slots.items()}
            seen: dict[Point, Tensor] = {}
            untouched = self.logits(rows, {point: _see(seen, point, where) for point, where in at.items()})
            again = self.logits(rows, {point: _restore(seen[point], where) for point, where in at.items()})
            changes |= {place: float(change) for place, change in zip(some, (again - untouched).abs().amax(-1), strict=True)}
        return changes


def _see(seen: dict[Point, Tensor], point: Point, where: Any) -> Edit:
    def see(value: Tensor) -> Tensor:
        seen[point] = value[where].clone()
        return value

    return see


def _restore(kept: Tensor, where: Any) -> Edit:
    def restore(value: Tensor) -> Tensor:
        value = value.clone()
        value[where] = kept
        return value

    return restore


class PointHooks(Whole):
    """Through transformer-lens's hook points: runs, and whatever is wrapped."""

    batch = 512

    def __init__(self, name: str, load: Callable[[], models.Loaded], blocks: Any) -> None:
        self.name, self.blocks, self._load = name, blocks, functools.cache(load)

    def logits(self, tokens: Int[Tensor, "row index"], edits: Mapping[Point, Edit]) -> Float[Tensor, "row vocab"]:
        """See `Whole`."""
        names = {models.hook_name(layer, site): edit for (site, layer), edit in edits.items()}
        missing = [name for name in names if name not in self._load().points]
        if missing:
            raise InstrumentError(f"{self.name} has no hook {', '.join(missing)}; choose another --site")
        fired = dict.fromkeys(names, 0)

        def hooked(name: str, edit: Edit) -> Callable[..., Tensor]:
            def hook(value: Tensor, hook: Any) -> Tensor:
                fired[name] += 1
                return edit(value.flatten(2)).view(value.shape)

            return hook

        found = cache.run(self._load(), tokens, {name: hooked(name, edit) for name, edit in names.items()})[:, -1]
        for name, times in fired.items():
            if times != 1:
                raise InstrumentError(f"hook {name} of {self.name} fired {times} times in one forward pass; expected once")
        return found


class ModuleHooks(Whole):
    """Through torch's hooks on the modules of a transformers model."""

    def __init__(self, plain: models.Plain, blocks: stacks.Native | stacks.Modules) -> None:
        self.name, self.blocks, self._model = plain.name, blocks, plain.model
        # Most decoders can leave out the other indices' logits.
        self._last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(plain.model.forward).parameters else {}

    def logits(self, tokens: Int[Tensor, "row index"], edits: Mapping[Point, Edit]) -> Float[Tensor, "row vocab"]:
        """See `Whole`."""
        handles, called = [], dict.fromkeys(edits, 0)
        for point, edit in edits.items():

            def once(value: Tensor, edit: Edit = edit, point: Point = point) -> Tensor:
                called[point] += 1
                return edit(value)

            module, given = self.blocks.point(point[1], point[0])
            handles.append(_attach(module, given, once))
        try:
            found: Tensor = self._model(tokens.to(self._model.device), **self._last).logits[:, -1]
        finally:
            for handle in handles:
                handle.remove()
        for (site, layer), times in called.items():
            if times != 1:
                raise InstrumentError(f"{site} of layer {layer} of {self.name} was computed {times} times in one pass; expected once")
        return found


def _attach(module: nn.Module, given: bool, edit: Edit) -> Any:
    if given:
        return module.register_forward_pre_hook(lambda _, named: (edit(named[0]), *named[1:]))
    return module.register_forward_hook(lambda _, __, output: (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output))


class Traces(Whole):
    """Through nnsight: one trace a patch.

    Args:
        name: the model's.
        model: a run's HookedTransformer, or a transformers model.
        blocks: its layout; None for a run's, whose sites are its hook points.
        tokenizer, remote: as `Tracer`.
    """

    def __init__(self, name: str, model: Any, blocks: Any, tokenizer: Any = None, remote: str = "none", *, points: bool = False) -> None:
        self.name, self.blocks, self._points = name, blocks, points
        self._tracer, self._device = Tracer(name, model, tokenizer, remote), next(model.parameters()).device
        self._paths = {module: path for path, module in model.named_modules()}

    def logits(self, tokens: Int[Tensor, "row index"], edits: Mapping[Point, Edit]) -> Float[Tensor, "row vocab"]:
        """Never called: a trace takes no function of ours."""
        raise InstrumentError("nnsight's traces take values, not functions")

    def _where(self, place: Place) -> tuple[str, bool]:
        if place.window > 1 or sites.head_of(place.site) is not None:
            raise InstrumentError(f"{place}: a trace patches one whole site; use --backend hooks")
        if self._points:
            return place.hook, False
        module, given = self.blocks.point(place.layer, sites.module_site(place.site))
        return self._paths[module], given

    def look(self, tokens: Int[Tensor, "row index"], places: Sequence[Place]) -> tuple[dict[Place, Tensor], Float[Tensor, "row vocab"]]:
        """See `Whole`."""
        kept: dict[tuple[str, bool], list[int]] = {}
        for place in sorted(places, key=lambda place: (place.layer, ORDER.index(place.site))):
            kept.setdefault(self._where(place), []).append(int(place.index))
        found, logits = self._tracer.look(tokens.to(self._device), list(kept), list(kept.values()))
        width = dict(zip(kept, found, strict=True))
        return {place: width[self._where(place)][:, kept[self._where(place)].index(int(place.index))].clone() for place in places}, logits

    def patch(
        self, tokens: Int[Tensor, "row index"], place: Place, value: Float[Tensor, "row width"]
    ) -> tuple[Float[Tensor, "row vocab"], float]:
        """See `Whole`."""
        return self._tracer.patch(tokens.to(self._device), self._where(place), int(place.index), value)

    def self_patches(self, places: Sequence[Place], tokens: Int[Tensor, "row index"]) -> dict[Place, float]:
        """See `Whole`: every cell alone, on all sequences."""
        values, untouched = self.look(tokens, places)
        return {place: float((self.patch(tokens, place, values[place])[0] - untouched).abs().max()) for place in places}


class Looped:
    """One model on one batch of sequences of one length; one whole pass a patch.

    Attributes:
        how: in a Result, how it was computed.
    """

    how = "whole"

    def __init__(self, whole: Whole) -> None:
        self.whole, self._values = whole, dict[Place, Tensor]()
        self.tokens: Tensor = torch.empty(0, 0)

    def run(self, tokens: Int[Tensor, "row index"], places: Sequence[Place]) -> Float[Tensor, "row vocab"]:
        """Logits at the last index without a patch; what stands at the places is kept for `value`."""
        self.tokens = tokens
        self._values, logits = self.whole.look(tokens, places)
        return logits

    def value(self, place: Place) -> Float[Tensor, "row width"]:
        """What stood there in the last run."""
        return self._values[place]

    def patched(self, entries: Sequence[tuple[Place, Tensor]], reduce: Reduce) -> list[Float[Tensor, "row figure"]]:
        """What is read with each of these patches in the last run's sequences; cells of one index, in the order of `budget.entered`."""
        return [reduce(self.whole.patch(self.tokens, place, value)[0][None])[0] for place, value in entries]

    def self_patches(self, places: Sequence[Place]) -> dict[Place, float]:
        """The largest change of a logit when a cell is given its own activation: here on all sequences, a pass a cell."""
        untouched = self.whole.look(self.tokens, places)[1]
        return {place: float((self.whole.patch(self.tokens, place, self.value(place))[0] - untouched).abs().max()) for place in places}

    def groups(self, places: Sequence[Place], tokens: Int[Tensor, "row index"], arms: int, gib: float) -> list[list[Place]]:
        """Cells that go together within a budget: every one alone."""
        return [[place] for place in places]

    def passes(self, place: Place, length: int) -> float:
        """What one patch costs, in whole passes."""
        return 1.0


class Resumed(Looped):
    """Passes from the middle.

    Args:
        whole: the model's whole passes.
        steps: the model taken apart.
        word: bytes that a logit and what is made of it take.
        verify: hold the steps to the model in every run; a run's own arithmetic is held to it by tests.

    Attributes:
        held: bytes that lie beside all the while.
    """

    how = "from the middle"

    def __init__(self, whole: Whole, steps: stacks.Stack, word: int = 8, *, verify: bool = True) -> None:
        super().__init__(whole)
        self.steps, self._word, self._verify, self.held = steps, word, verify, 0
        self._clean: resume.Clean | None = None

    def run(self, tokens: Int[Tensor, "row index"], places: Sequence[Place]) -> Float[Tensor, "row vocab"]:
        """See `Looped`; the model taken apart is held to the model itself.

        Raises:
            InstrumentError: if the steps give other logits than the model.
        """
        self._clean, self.tokens = None, tokens  # the last one is freed first
        self._clean = resume.observe(self.steps, tokens)
        logits = self.steps.read(self._clean.residual[-1][:, -1])
        apart = float((logits[:2] - self.whole.logits(tokens[:2], {})).abs().max()) if self._verify else 0.0
        if not apart <= AGREEMENT * max(1.0, float(logits[:2].abs().max())):
            name = self.whole.name
            raise InstrumentError(f"{name} taken apart gives logits {apart:g} off its own; its layout is not what its config says")
        return logits

    def value(self, place: Place) -> Float[Tensor, "row width"]:
        """See `Looped`."""
        assert self._clean is not None
        return sites.value_at(self.steps, self._clean, place.layer, int(place.index), place.site)

    def patched(self, entries: Sequence[tuple[Place, Tensor]], reduce: Reduce) -> list[Float[Tensor, "row figure"]]:
        """See `Looped`."""
        assert self._clean is not None
        index = int(entries[0][0].index)
        entered = [sites.enter(self.steps, self._clean, place.layer, index, place.site, value) for place, value in entries]
        return list(resume.walk(self.steps, self._clean, index, entered, reduce))

    def self_patches(self, places: Sequence[Place]) -> dict[Place, float]:
        """See `Whole.self_patches`: one sequence a cell."""
        return self.whole.self_patches(places, self.tokens)

    def groups(self, places: Sequence[Place], tokens: Int[Tensor, "row index"], arms: int, gib: float) -> list[list[Place]]:
        """Cells that are walked together within a budget.

        Raises:
            ConfigError: if not even one cell fits.
        """
        rows, length = tokens.shape
        held = budget.clean_bytes(self.steps, rows, length) + budget.values_bytes(self.steps, places, rows) + budget.statistics_bytes(rows)
        held += budget.block_bytes(self.steps) + self.held
        vocabulary = getattr(self.steps, "vocabulary", None) or int(self.steps.read(torch.zeros(1, self.steps.d_model)).shape[-1])
        indices = {int(place.index) for place in places}
        each = {index: budget.cell_bytes(self.steps, rows, length, index, arms, vocabulary, self._word) for index in indices}
        return budget.groups(places, each, held, gib, f"one cell of {rows} pairs of {self.whole.name}")

    def passes(self, place: Place, length: int) -> float:
        """See `Looped`: the layers above, from the index on."""
        return (self.steps.n_layers - budget.entered(place)) / self.steps.n_layers * (length - int(place.index)) / length


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
