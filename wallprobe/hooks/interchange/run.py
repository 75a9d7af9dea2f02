"""Interchange: put one network's activation into another and read which answer comes out. One way for runs, prompts, the user's pairs:

pairs x plan (places, in the order they are walked) x engine (from the middle, whole passes, nnsight's traces) x reads x controls -> report.
src gives its activations and is freed; dst is walked. The self-patch must change nothing, to the bit; what is patched must change
something; cells that went from the middle are run whole as well, and must agree.
Source: the wall study, "No localized circuit exists" (phase 2a of the auxiliary-causal experiment); on prompts, Meng et al. (2022,
arXiv 2202.05262) and Wang et al. (2022, arXiv 2211.00593).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe import models
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.hooks.attach import remote, resume
from wallprobe.hooks.attach import sites as of_block
from wallprobe.hooks.attach.interventions import Intervention, NormMatched, OtherDonor, Swap
from wallprobe.hooks.interchange import alignment, budget, places, sides, subspaces
from wallprobe.hooks.interchange.batches import MORE, Batched
from wallprobe.hooks.interchange.engines import AGREEMENT, Looped, Resumed
from wallprobe.hooks.interchange.pairs import PROGRAMS, TEXTS, Pairs
from wallprobe.hooks.interchange.places import At, Place
from wallprobe.hooks.interchange.reads import Reader, chances
from wallprobe.hooks.interchange.reports import Report, report_of
from wallprobe.hooks.interchange.request import Request
from wallprobe.hooks.interchange.sides import Side
from wallprobe.hooks.interchange.texts import read_pairs
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch
from wallprobe.store.memory import GIB
from wallprobe.store.results import Result

FIT_SEQUENCES, FIT_BATCH = 4000, 1024
CHECKED = 3  # cells run whole beside
CLOSE = 1e-4  # log-probability by which a run's two ways may differ
ARMS = 4  # the treatment and its controls

OnCell = Callable[[int, int], None]


@dataclass(frozen=True)
class Plan:
    """What an interchange comes to, before anything is computed.

    Attributes:
        request: with its defaults filled in.
        src, dst: the models.
        pairs: sequences and answers.
        places: every cell that can matter, in the order they are walked.
        quick: do passes go from the middle?
    """

    request: Request
    src: Side
    dst: Side
    pairs: Pairs
    places: Sequence[Place]
    quick: bool

    @property
    def arms(self) -> int:
        """The treatment and its controls, in one cell."""
        return ARMS + (self.request.align != "none") + 2 * (self.request.subspace is not None)

    def cost(self, device: str = "cpu") -> dict[str, Any]:
        """What it would take: cells, arms, whole passes, minutes (by a clean pass of dst now), GiB beside the weights."""
        with torch.no_grad():
            engine = self.dst.engine(self.quick, self.request, device)
            bases = Batched(engine, self.pairs, "base", device)
            bases.run(self.places[:1])  # once before, for what is read and made at first use
            started = time.perf_counter()
            bases.run(self.places[:1])
            taken = time.perf_counter() - started
        passes = bases.passes(self.places, self.arms)
        groups = bases.groups(self.places, self.arms, self.request.budget)
        return {
            "kind": "plan",
            "src": self.src.name,
            "dst": self.dst.name,
            "cells": len(self.places),
            "pairs": len(self.pairs),
            "arms": self.arms,
            "groups": len(groups),
            "how": engine.how,
            "passes": passes,
            "minutes": passes * taken / 60,
            "gib": self.request.budget if self.quick else 4 * len(self.places) * len(self.pairs) * self.dst.d_model / GIB,
        }


def interchange(request: Request, *, root: Path | None = None, device: str = "cpu", on_cell: OnCell | None = None) -> Result:
    """Every cell of a pair of models, with controls; src is freed before dst is loaded.

    Args:
        request: what to interchange.
        root: run store.
        device: torch device.
        on_cell: called with (cells done, cells in all).

    Returns:
        Result of kind "interchange", table over layer x index, of runs at one site; "sweep", over site x layer x index, at several;
        "prompts", the same, of prompts; "patches", the same, of pairs of the user's own.

    Raises:
        UnknownNameError, CheckpointError: for a model, file, site or read that is not there, or is damaged.
        ConfigError: for what cannot be interchanged, or does not fit the budget.
        InstrumentError: if a hook did not fire exactly once, a patch changed nothing, a self-patch something, or the quick pass differs
            from the model's own.
    """
    watch = Stopwatch()
    with torch.no_grad():
        made = plan(request, root=root, device=device)
        if request.capable:
            made = _among_capable(made, device)
        return _run(made, device, on_cell, watch)


def plan(request: Request, *, root: Path | None = None, device: str = "cpu") -> Plan:
    """The cells, both models held to the request before anything is computed.

    Raises:
        UnknownNameError, CheckpointError, ConfigError, InstrumentError: as `interchange`.
    """
    remote.check(request.backend, request.remote)
    models.hook_name(0, of_block.module_site(request.sites[0]) if request.sites[0] != of_block.HEADS else "z")
    if request.subspace is not None:
        subspaces.parse(request.subspace)
    if request.align not in alignment.ALIGNMENTS:
        raise ConfigError(f"--align {request.align} is none of {', '.join(alignment.ALIGNMENTS)}")
    src, dst = sides.pair(request, root, device)
    pairs = _pairs(request, src, dst)
    if len(pairs) < 2:
        raise ConfigError(f"{len(pairs)} pair: give at least 2, for the random donor is another pair's")
    sides.check_fit(request, src, dst, pairs)
    both = src.blocks, dst.blocks
    request = replace(request, sites=of_block.expand(request.sites, min(one.n_heads for one in both)))
    quick = request.backend == "hooks" and request.window == 1 and (request.sweep or pairs.kind != PROGRAMS) and src.steps and dst.steps
    return Plan(request, src, dst, pairs, _places(request, both, pairs, f"{src.name} and {dst.name}", src_is_dst=src is dst), bool(quick))


def _pairs(request: Request, src: Side, dst: Side) -> Pairs:
    """The pairs asked for, in the direction asked for."""
    given = request.pairs
    if isinstance(given, Pairs):
        pairs = given
    elif isinstance(given, str | Path):
        pairs = read_pairs(Path(given), src.tokenizer)
    else:
        task, horizon = sides.task_of(src, dst)
        pairs = Pairs.programs(task, given, horizon=horizon, seed=request.seed)
    for side in (src, dst):
        pairs.check(side.name, side.limits)
    return pairs.flipped() if request.direction == "noise" else pairs


def _places(request: Request, both: tuple[places.Blocks, places.Blocks], pairs: Pairs, names: str, *, src_is_dst: bool) -> list[Place]:
    """Every cell that can matter.

    Raises:
        ConfigError: for a layer, index or slot that is not there, or if no cell can change the answer.
    """
    stack, depth = both[1], min(blocks.n_layers for blocks in both)
    for site in request.sites:
        models.hook_name(0, of_block.module_site(site))
        if of_block.head_of(site) is not None and request.backend == "nnsight":
            raise ConfigError(f"site {site} is part of a module's output, which --backend nnsight patches whole; give z")
    layers = places.chosen_layers(request.layers, depth, names, request.window)
    at, read = _indices(request, pairs)
    late = [name for name in at if isinstance(name, str) and any(one.base_at[name] == one.base.shape[1] - 1 for one in pairs.buckets)]
    last = stack.n_layers
    found = places.lay_out(layers, at, request.sites, last, read, request.window, late=late)
    one_cell = request.indices is None and len(layers) == 1
    if not found or (pairs.kind == PROGRAMS and not request.sweep and len(found) < len(layers) * len(at) and not one_cell):
        raise ConfigError(
            f"site {request.sites[0]} of the last layer, {last - 1}, cannot be read from another index: a patch there before index {read} "
            f"changes nothing; give --index {read}, or site resid_pre"
        )
    if src_is_dst and pairs.kind != PROGRAMS and all(isinstance(place.index, int) for place in found):
        found = _differing(found, pairs, stack)
    if not found:
        raise ConfigError(
            "no cell can change the answer there: clean and corrupt are the same up to these indices, or the site is too late"
        )
    return found


def _indices(request: Request, pairs: Pairs) -> tuple[tuple[At, ...], int]:
    """Indices and slots asked for, and the index that is read."""
    donors, bases = pairs.lengths
    read, slots = bases[0] - 1, sorted(pairs.slots)
    differ = len(bases) > 1 or len(donors) > 1 or (pairs.kind == TEXTS and donors != bases)
    if differ:
        wrong = next((one for one in request.indices or () if isinstance(one, int)), None)
        if wrong is not None or not slots:
            given = f"index {wrong}" if wrong is not None else "all indices"
            raise ConfigError(
                f"{given}: the sequences differ in length, where an index means nothing; give a slot: {', '.join(slots) or 'none'}"
            )
    if request.indices is None:
        if differ:
            return tuple(slots), -1
        if pairs.kind == PROGRAMS and not request.sweep:
            return (read - 1, read), read
        return tuple(range(min(read + 1, donors[0]))), read
    found: list[At] = []
    for one in request.indices:
        if isinstance(one, str):
            if one not in pairs.slots:
                raise ConfigError(f"no slot named '{one}' in these pairs; there are: {', '.join(slots) or 'none'}")
            found.append(one)
        elif pairs.kind == PROGRAMS and not 0 <= one <= read:
            raise ConfigError(f"index {one} cannot matter: the answer is read at index {read}; give 0 to {read}")
        elif not -read - 1 <= one <= read:
            raise ConfigError(f"index {one} does not exist; the prompts have {read + 1} tokens; give indices from 0 to {read}, or all")
        else:
            found.append(one % (read + 1))
    return tuple(sorted(dict.fromkeys(found), key=lambda one: (isinstance(one, str), one))), read


def _differing(found: list[Place], pairs: Pairs, stack: places.Blocks) -> list[Place]:
    """Within one model: where both sequences are still one and the same there is nothing to swap."""
    if len(pairs.lengths[0]) > 1 or pairs.lengths[0] != pairs.lengths[1]:
        return found
    same = torch.stack(list(pairs.donor)) == torch.stack(list(pairs.base))

    def alone(place: Place) -> bool:
        return place.layer == 0 and (place.site == "resid_pre" or (place.site == "mlp_out" and stack.parallel))

    return [
        place
        for place in found
        if not bool(same[:, : int(place.index) + 1].all()) and not (alone(place) and bool(same[:, int(place.index)].all()))
    ]


@dataclass(frozen=True)
class Fits:
    """What is fitted on other sequences: maps from src's basis, and spans in dst's."""

    tokens: Int[Tensor, "sequence index"] | None = None
    src: Mapping[Place, Tensor] | None = None
    dst: Mapping[Place, Tensor] | None = None
    spans: Mapping[tuple[int, At], subspaces.Fitted] | None = None

    def swap(self, kind: str, place: Place) -> alignment.Alignment | None:
        """The map at a place."""
        if self.src is None or self.dst is None:
            return None
        return alignment.fit(kind, self.src[place].cpu(), self.dst[place].cpu())

    def span(self, place: Place) -> subspaces.Fitted | None:
        """The span at a place."""
        return None if self.spans is None else self.spans[place.layer, place.index]


def _values(engine: Looped, tokens: Int[Tensor, "sequence index"], wanted: Sequence[Place]) -> dict[Place, Tensor]:
    """What stands at places on further sequences."""
    if isinstance(engine, Resumed):
        clean = resume.observe(engine.steps, tokens)
        return {place: of_block.value_at(engine.steps, clean, place.layer, int(place.index), place.site).clone() for place in wanted}
    parts = [engine.whole.look(part, wanted)[0] for part in torch.split(tokens, FIT_BATCH)]
    return {place: torch.cat([part[place] for part in parts]) for place in wanted}


def _run(made: Plan, device: str, on_cell: OnCell | None, watch: Stopwatch) -> Result:
    request, pairs, cells = made.request, made.pairs, made.places
    fits = Fits()
    if request.align != "none":
        task, horizon = sides.task_of(made.src, made.dst)
        fits = replace(fits, tokens=task.sample(FIT_SEQUENCES, generator(request.seed, "alignment")).tokens[:, :horizon].to(device))
    engine = made.src.engine(made.quick, request, device)
    _hold(engine, made, fits)
    donors = Batched(engine, pairs, "donor", device)
    if made.quick:
        donors.groups(cells, made.arms, request.budget)  # what does not fit is refused before anything is computed
    said = donors.run(cells)
    given = {place: donors.value(place).clone() for place in cells}
    if fits.tokens is not None:
        fits = replace(fits, src=_values(engine, fits.tokens, cells))
    more_of_src = donors.more()
    del engine, donors
    made.src.close()
    engine = made.dst.engine(made.quick, request, device)
    _hold(engine, made, fits)
    bases = Batched(engine, pairs, "base", device)
    base = bases.run(cells)
    if fits.tokens is not None:
        fits = replace(fits, dst=_values(engine, fits.tokens, cells))
    if request.subspace is not None:
        fits = replace(fits, spans=_spans(request, made.dst, cells, device))
    pairs = replace(pairs, donor_logits=said, base_logits=base)
    ceiling = _ceiling(engine, pairs, device) if pairs.kind == TEXTS else (said, more_of_src)
    more = bases.more()
    report = report_of(request, (made.src, made.dst), pairs, ceiling, more)
    report.n_capable = int(((_margin(pairs, said, more_of_src) > 0) & (_margin(pairs, base, more) < 0)).sum())
    if bases.alone and pairs.kind == TEXTS:  # what dst says on the donors took the place of its bases
        bases.run(cells)
    selves = _checked_selves(made.dst.name, bases.self_patches(cells))
    cells = _swappable(made, bases, given)
    return _walk(made, bases, cells, given, fits, selves, report, on_cell).result(device, watch)


def _among_capable(made: Plan, device: str) -> Plan:
    """The same on the pairs whose donor src answers rightly, and whose base dst answers otherwise.

    Raises:
        ConfigError: if fewer than 2 are left.
    """
    margins: list[Tensor] = []
    for side, which in ((made.src, "donor"), (made.dst, "base")):
        batched = Batched(side.engine(made.quick, made.request, device), made.pairs, which, device)
        margins.append(_margin(made.pairs, batched.run([]), batched.more()))
        side.close()
    kept = ((margins[0] > 0) & (margins[1] < 0)).nonzero()[:, 0]
    if len(kept) < 2:
        raise ConfigError(f"the models answer {len(kept)} of {len(made.pairs)} pairs rightly; leave --capable out, or give other pairs")
    return replace(made, pairs=made.pairs.take(kept))


def _margin(pairs: Pairs, logits: Float[Tensor, "pair vocab"], more: Mapping[str, Tensor]) -> Float[Tensor, " pair"]:
    """Log-probability of the donor's whole answer less that of the base's own: `own` of runs, the other one of two."""
    first = pairs.donors_answer
    other = "own" if "own" in pairs.answers else next((name for name in pairs.answers if name != first), first)
    donors, bases = (chances(logits, pairs, name).cpu() + more.get(f"{MORE}{name}", 0.0) for name in (first, other))
    return donors - bases


def _hold(engine: Looped, made: Plan, fits: Fits) -> None:
    """Tell a quick engine what lies beside it all the while: the values that maps are fitted on."""
    if isinstance(engine, Resumed) and fits.tokens is not None:
        engine.held = 2 * budget.values_bytes(engine.steps, made.places, FIT_SEQUENCES)
        engine.held += budget.clean_bytes(engine.steps, FIT_SEQUENCES, fits.tokens.shape[1])


def _ceiling(engine: Looped, pairs: Pairs, device: str) -> tuple[Tensor, dict[str, Tensor]]:
    """What dst itself says on the donors: of prompts, the most that a patch can restore."""
    clean = Batched(engine, pairs, "donor", device)
    return clean.run([]), clean.more()


def _spans(request: Request, dst: Side, cells: Sequence[Place], device: str) -> dict[tuple[int, At], subspaces.Fitted]:
    """The subspace at every cell, in dst's basis."""
    assert request.subspace is not None
    task, _ = sides.task_of(dst, dst)
    drawn = subspaces.draw(task, request.seed)
    layers, indices = sorted({place.layer for place in cells}), sorted({int(place.index) for place in cells})
    states = subspaces.observe(dst.loaded(device), drawn, layers, indices, request.sites[0])
    made: dict[tuple[int, At], subspaces.Fitted] = {}
    made.update(subspaces.fit(subspaces.parse(request.subspace), states, drawn, task, request.seed))  # type: ignore[arg-type]
    return made


def _checked_selves(name: str, changes: dict[Place, float]) -> dict[Place, float]:
    """The changes that self-patches made.

    Raises:
        InstrumentError: if one is not zero, to the bit.
    """
    for place, change in changes.items():
        if change != 0.0:
            raise InstrumentError(
                f"{place}: putting {name}'s own activation back changed the answer by {change}; the hook is not what it seems"
            )
    return changes


def _swappable(made: Plan, bases: Batched, given: Mapping[Place, Tensor]) -> list[Place]:
    """The cells with something to swap: on prompts, src and dst may share their embeddings, and clean and corrupt the token there.

    Raises:
        InstrumentError: if that leaves none.
    """
    if made.pairs.kind == PROGRAMS:
        return list(made.places)
    found = [place for place in made.places if not _same(bases.value(place), given[place])]
    if not found:
        raise InstrumentError("the patches change nothing: src and dst hold the same there, and so do clean and corrupt prompts")
    return found


def _same(there: Tensor, source: Tensor) -> bool:
    return there.shape == source.shape and torch.equal(there, source.to(there))


def arms_of(
    made: Plan,
    there: Float[Tensor, "pair d_dst"],
    source: Float[Tensor, "pair d_src"],
    fitted: alignment.Alignment | None,
    span: subspaces.Fitted | None,
    orders: tuple[Tensor, Tensor],
) -> dict[str, Float[Tensor, "pair d_dst"]]:
    """What goes into a cell: the treatment, then its controls, by name; of a window, layer by layer."""
    seed = made.request.seed
    whole: Intervention = made.request.treatment if fitted is None else fitted.swap
    treatment: Intervention = whole if span is None else subspaces.InSubspace(whole, span.axes)
    named: dict[str, Intervention] = {
        "treated": treatment,
        "random": OtherDonor(treatment, orders[0]),
        "mismatched": OtherDonor(treatment, orders[1]),
        "norm": NormMatched(whole, seed) if span is None else subspaces.NormMatchedInside(whole, span.axes, seed),
    }
    if fitted is not None and source.shape == there.shape:
        named["raw"] = Swap() if span is None else subspaces.InSubspace(Swap(), span.axes)
    if span is not None:
        named |= {"span": subspaces.InSubspace(whole, span.control), "whole": whole}
    window = made.request.window
    parts = list(zip(there.chunk(window, -1), source.to(there).chunk(window, -1), strict=True))
    return {name: torch.cat([intervention(here, given) for here, given in parts], -1) for name, intervention in named.items()}


def _walk(
    made: Plan,
    bases: Batched,
    cells: Sequence[Place],
    given: Mapping[Place, Tensor],
    fits: Fits,
    selves: Mapping[Place, float],
    report: Report,
    on_cell: OnCell | None,
) -> Report:
    """Every cell, group by group."""
    reader: Reader = report.reader
    groups, orders = bases.groups(cells, made.arms, made.request.budget), report.pairs.other_donors(made.request.seed)
    order = torch.randperm(
        len(cells), generator=generator(made.request.seed, "checked" if made.pairs.kind == PROGRAMS else "prompts checked")
    )
    checked = {cells[int(place)] for place in order[: CHECKED if made.quick else 0]}
    apart, done = 0.0, 0
    for group in groups:
        fitted = {place: fits.swap(made.request.align, place) for place in group}
        arms = {place: arms_of(made, bases.value(place), given[place], fitted[place], fits.span(place), orders) for place in group}
        changes = {place: float((arms[place]["treated"] - bases.value(place)).abs().max()) for place in group}
        rows = iter(bases.patched([(place, value) for place in group for value in arms[place].values()], reader))
        for place in group:
            found = {arm: next(rows) for arm in arms[place]}
            if place in checked:
                apart = max(apart, _check(bases, place, arms[place]["treated"], found["treated"], report, made.pairs.kind == PROGRAMS))
            fit, span = fitted[place], fits.span(place)
            r2 = {} if made.request.align == "none" or fit is None else {"alignment_r2": fit.held_out_r2}
            report.cell(place, found, changes[place], selves[place], r2 | ({} if span is None else span.figures()))
            done += 1
        if on_cell is not None:
            on_cell(done, len(cells))
    report.engine = {
        "backend": made.request.backend,
        "passes": bases.engine.how,
        "checked_cells": len(checked),
        "largest_difference": apart,
    }
    return report


def _check(bases: Batched, place: Place, value: Tensor, quick: Mapping[str, Tensor], report: Report, close: bool) -> float:
    """By how much the quick pass differs from a whole pass of the model with one patch, in what is read.

    Raises:
        InstrumentError: if by more than rounding explains.
    """
    whole, rows, largest = bases.whole(place, value, report.reader)
    apart = max(float((whole[name] - quick[name][rows]).abs().max()) for name in whole if not name.startswith("rank"))
    if not apart <= (CLOSE if close else AGREEMENT * max(1.0, largest)):
        raise InstrumentError(
            f"{place}: the quick pass is {apart:g} off {bases.engine.whole.name}'s own; use --backend nnsight, and tell us"
        )
    return apart
