"""Interchange over every layer, index and site of a pair of runs, with controls in every cell.

Passes from the middle (`resume`) make it cheap; `CHECKED` cells of every sweep are also run whole, through the model's own hooks, and
must agree. Self-patches go through the hooks too, all cells folded into one batch, and must change nothing, to the bit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe import models, stats
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.hooks.attach import cache, resume, sites, stacks
from wallprobe.hooks.attach.interventions import Intervention, NormMatched, OtherDonor, Swap
from wallprobe.hooks.interchange import alignment, budget, single
from wallprobe.hooks.interchange.pairs import Pairs, draw_pairs
from wallprobe.hooks.interchange.report import Cell
from wallprobe.hooks.interchange.single import FIT_SEQUENCES, LATE_SITES
from wallprobe.hooks.interchange.sweep_report import Place, SweepRequest, adjust, figures_of, make_result, sign_flips
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch
from wallprobe.store.results import Result
from wallprobe.store.runs import Run, resolve_run
from wallprobe.training.wall import lean

CHECKED = 3  # cells run whole beside
AGREEMENT = 1e-4  # log-probability by which the two ways may differ
SELF_BATCH = 512  # cells whose self-patches share one pass


@dataclass(frozen=True)
class Arms:
    """What goes into one cell: the treatment, then its controls, by name."""

    place: Place
    patched: Mapping[str, Float[Tensor, "pair width"]]
    change_at_hook: float
    alignment_r2: float | None


def sweep(
    request: SweepRequest, *, root: Path | None = None, device: str = "cpu", on_cell: Callable[[int, int], None] | None = None
) -> Result:
    """Every cell of a pair of runs, with controls; src is freed before dst is loaded.

    Args:
        request: what to sweep.
        root: run store.
        device: torch device.
        on_cell: called with (cells done, cells in all).

    Returns:
        Result of kind "sweep", table over site x layer x index.

    Raises:
        UnknownNameError, CheckpointError: for a run or site that is not there, or is damaged.
        ConfigError: for what cannot be interchanged, or does not fit the budget.
        InstrumentError: if a patch changed nothing, a self-patch something, or the quick pass differs from the model's own.
    """
    watch = Stopwatch()
    runs = resolve_run(request.src, root), resolve_run(request.dst, root)
    request, places, task, horizon = _plan(request, runs)
    pairs = draw_pairs(task, horizon, request.pairs, request.seed)
    fit = task.sample(FIT_SEQUENCES, generator(request.seed, "alignment")).tokens[:, :horizon] if request.align != "none" else None
    with torch.no_grad():
        stack = _stack(runs[1], device)
        groups = _groups(stack, places, len(pairs.own), horizon, request)
        del stack
        donor, fit_src, donor_log = _donors(runs[0], places, pairs.donor, fit, device)
        stack = _stack(runs[1], device)
        clean = resume.observe(stack, pairs.base.to(device))
        fit_dst = _values(stack, resume.observe(stack, fit.to(device)), places) if fit is not None else {}
        loaded = models.load_run(runs[1], device)
        selves = self_patches(loaded, places, pairs.base)
        base_log = _read(stack.read(clean.residual[-1][:, -1]))
        weights = stats.resamples(len(pairs.own), generator(request.seed, "interchange bootstrap"))
        signs = sign_flips(len(pairs.own), request.seed)
        checked = {places[int(place)] for place in torch.randperm(len(places), generator=generator(request.seed, "checked"))[:CHECKED]}
        figures: dict[Place, dict[str, float]] = {}
        apart = 0.0
        for group in groups:
            arms = [_arms(stack, clean, place, donor, pairs, request, fit_src, fit_dst) for place in group]
            logs = _walk(stack, clean, arms)
            for arm, by_name in zip(arms, logs, strict=True):
                if arm.place in checked:
                    place = arm.place
                    there = sites.whole(stack, clean, place.layer, place.index, place.site, arm.patched["treated"])
                    apart = max(apart, _check(loaded, pairs.base, place, there, by_name["treated"], base_log, horizon))
                cell = _cell(arm, by_name, selves[arm.place], base_log)
                figures[arm.place] = figures_of(arm.place, cell, pairs, base_log, donor_log, weights, signs)
            if on_cell is not None:
                on_cell(len(figures), len(places))
    adjust(figures)
    engine = {"checked_cells": len(checked), "largest_difference": apart}
    return make_result(request, runs, places, figures, len(pairs.own), engine, device, watch)


def check(request: SweepRequest, root: Path | None = None) -> None:
    """Raise what `sweep` would raise for a request that cannot be met, before anything is computed."""
    _plan(request, (resolve_run(request.src, root), resolve_run(request.dst, root)))


def _plan(request: SweepRequest, runs: tuple[Run, Run]) -> tuple[SweepRequest, list[Place], Any, int]:
    """The request with its sites written out, and every cell that can matter, in the order of indices, then layers."""
    request = replace(request, sites=sites.expand(request.sites, min(int(run.manifest["shape"]["n_heads"]) for run in runs)))
    first = single.Request(
        request.src, request.dst, request.layers, request.indices, "resid_pre", request.align, request.pairs, request.seed
    )
    resolved, task, horizon = single.resolve(first, *runs)
    assert resolved.layers is not None
    indices = tuple(range(horizon)) if request.indices is None else request.indices
    depth = int(runs[1].manifest["shape"]["n_layers"])
    for site in request.sites:
        models.hook_name(0, sites.module_site(site))
    places = [
        Place(site, layer, index)
        for index in indices
        for layer in resolved.layers
        for site in request.sites
        if not (sites.module_site(site) in LATE_SITES and layer == depth - 1 and index < horizon - 1)
    ]
    if not places:
        raise ConfigError(f"site {request.sites[0]} of the last layer is read at index {horizon - 1} alone; give --index {horizon - 1}")
    return request, places, task, horizon


def _stack(run: Run, device: str) -> stacks.Stack:
    state = {name: tensor.to(device) for name, tensor in run.tensors().items()}
    stack = stacks.of_run(state, lean.Shape(**run.manifest["shape"]))
    if stack is None:
        raise ConfigError(f"{run.name} has a learned temperature or forget gates, which a sweep cannot resume; use --layer and --index")
    return stack


def _read(logits: Float[Tensor, "*rows vocab"]) -> Float[Tensor, "*rows vocab"]:
    return logits.double().log_softmax(-1).cpu()


def _donors(
    run: Run, places: Sequence[Place], tokens: Int[Tensor, "pair index"], fit: Int[Tensor, "sequence index"] | None, device: str
) -> tuple[dict[Place, Tensor], dict[Place, Tensor], Float[Tensor, "pair vocab"]]:
    """What src has to give at every cell, the same on the sequences that alignments are fitted on, and its own answers."""
    stack = _stack(run, device)
    clean = resume.observe(stack, tokens.to(device))
    given, answers = _values(stack, clean, places), _read(stack.read(clean.residual[-1][:, -1]))
    del clean  # before the sequences that alignments are fitted on
    return given, {} if fit is None else _values(stack, resume.observe(stack, fit.to(device)), places), answers


def _values(stack: stacks.Stack, clean: resume.Clean, places: Sequence[Place]) -> dict[Place, Float[Tensor, "pair width"]]:
    return {place: sites.value_at(stack, clean, place.layer, place.index, place.site).clone() for place in places}


def _groups(stack: stacks.Stack, places: Sequence[Place], pairs: int, length: int, request: SweepRequest) -> list[list[Place]]:
    """Cells walked together within the budget.

    Raises:
        ConfigError: if not even one cell fits.
    """
    aligned = request.align != "none"
    held = budget.clean_bytes(stack, pairs, length) + budget.values_bytes(stack, places, pairs) + budget.statistics_bytes(pairs)
    held += budget.block_bytes(stack)
    if aligned:
        held += 2 * budget.values_bytes(stack, places, FIT_SEQUENCES) + budget.clean_bytes(stack, FIT_SEQUENCES, length)
    arms, vocabulary = 5 if aligned else 4, int(stack.read(torch.zeros(1, stack.d_model)).shape[-1])
    # A logit in fp32 and fp64, and its log-probability.
    each = {i: budget.cell_bytes(stack, pairs, length, i, arms, vocabulary, 24) for i in {place.index for place in places}}
    return budget.groups(places, each, held, request.budget, f"one cell of {pairs} pairs")


def _arms(
    stack: stacks.Stack,
    clean: resume.Clean,
    place: Place,
    donor: Mapping[Place, Tensor],
    pairs: Pairs,
    request: SweepRequest,
    fit_src: Mapping[Place, Tensor],
    fit_dst: Mapping[Place, Tensor],
) -> Arms:
    there, source = sites.value_at(stack, clean, place.layer, place.index, place.site), donor[place]
    fitted = alignment.fit(request.align, fit_src[place].cpu(), fit_dst[place].cpu()) if fit_src else None
    treatment: Intervention = Swap() if fitted is None else fitted.swap
    named: dict[str, Intervention] = {
        "treated": treatment,
        "random": OtherDonor(treatment, pairs.shuffled),
        "mismatched": OtherDonor(treatment, pairs.mismatched),
        "norm": NormMatched(treatment, request.seed),
    }
    if fitted is not None and source.shape == there.shape:
        named["raw"] = Swap()
    patched = {name: intervention(there, source) for name, intervention in named.items()}
    change = float((patched["treated"] - there).abs().max())
    return Arms(place, patched, change, None if fitted is None else fitted.held_out_r2)


def _walk(stack: stacks.Stack, clean: resume.Clean, arms: Sequence[Arms]) -> list[dict[str, Float[Tensor, "pair vocab"]]]:
    """Log-probabilities at the read for every arm of cells of one index."""
    index = arms[0].place.index
    entries = [sites.enter(stack, clean, arm.place.layer, index, arm.place.site, value) for arm in arms for value in arm.patched.values()]
    rows = iter(resume.walk(stack, clean, index, entries, _read))
    return [{name: next(rows) for name in arm.patched} for arm in arms]


def _cell(arm: Arms, logs: Mapping[str, Float[Tensor, "pair vocab"]], self_change: float, base_log: Float[Tensor, "pair vocab"]) -> Cell:
    return Cell(
        treated=logs["treated"],
        random=logs["random"],
        mismatched=logs["mismatched"],
        norm=logs["norm"],
        raw=logs.get("raw"),
        self_patch_max_change=self_change,
        change_at_hook=arm.change_at_hook,
        change_at_logits=float((logs["treated"] - base_log).abs().max()),
        alignment_r2=arm.alignment_r2,
    )


def self_patches(loaded: models.Loaded, places: Sequence[Place], tokens: Int[Tensor, "pair index"]) -> dict[Place, float]:
    """The largest change of an answer's log-probability when a cell is given its own activation, through the model's own hooks.

    One sequence a cell, all cells of a batch in one pass, beside a pass of the very same batch without a patch.

    Raises:
        InstrumentError: if a hook does not fire exactly once, or a self-patch changes anything.
    """
    changes: dict[Place, float] = {}
    batch = min(SELF_BATCH, len(tokens))
    for start in range(0, len(places), batch):
        some = places[start : start + batch]
        rows = tokens[torch.arange(len(some)) % len(tokens)]
        slots: dict[str, dict[int, int]] = {}
        for row, place in enumerate(some):
            slots.setdefault(place.hook, {})[row] = place.index
        seen: dict[str, Tensor] = {}
        untouched = cache.run(loaded, rows, {name: cache.recorder(seen, name, partial(_at, at)) for name, at in slots.items()})
        cache.check_fired(loaded, list(slots), seen)
        again = cache.run(loaded, rows, {name: _restorer(seen[name], at) for name, at in slots.items()})
        moved = (_read(again[:, -1]) - _read(untouched[:, -1])).abs().amax(-1)
        changes |= {place: float(change) for place, change in zip(some, moved, strict=True)}
    for place, change in changes.items():
        if change != 0.0:
            raise InstrumentError(
                f"{place}: putting {loaded.name}'s own activation back changed the answer by {change}; the hook is not what it seems"
            )
    return changes


def _at(slots: Mapping[int, int], value: Tensor) -> Tensor:
    """What stands in each of these rows at its index."""
    return value[list(slots), list(slots.values())]


def _restorer(seen: Tensor, slots: Mapping[int, int]) -> Callable[..., Tensor]:
    """A hook that puts it back."""

    def put(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[list(slots), list(slots.values())] = seen.to(value)
        return value

    return put


def _check(
    loaded: models.Loaded,
    tokens: Int[Tensor, "pair index"],
    place: Place,
    there: Float[Tensor, "pair width"],
    log: Float[Tensor, "pair vocab"],
    base_log: Float[Tensor, "pair vocab"],
    horizon: int,
) -> float:
    """By how much the quick pass differs from a whole pass of the model with one hook.

    Raises:
        InstrumentError: if by more than rounding explains.
    """
    patcher = single.Patcher(loaded, tokens, place.hook, place.index, there, base_log, horizon)
    whole = patcher(Swap(), there)[0]
    apart = float((whole - log).abs().max())
    if apart > AGREEMENT:
        raise InstrumentError(f"{place}: the quick pass is {apart:g} off the model's own; leave --sweep out, and tell us")
    return apart
