"""Interchange between language models on pairs of prompts: how much of the clean answer does one activation restore?

src reads the clean prompts, dst the corrupt ones; src's activation at (layer, index, site) goes into dst, and the answer's logit minus the
wrong answer's is read at the last index. 0 is dst left alone, 1 is dst on the clean prompt.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe import models, stats
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.hooks.attach import remote, sites, stacks
from wallprobe.hooks.attach.interventions import Intervention, NormMatched, OtherDonor, Swap
from wallprobe.hooks.interchange.prompts.engines import Engine, Looped, Reads, Resumed, Traced, layout
from wallprobe.hooks.interchange.prompts.pairs import PromptPairs, read_pairs
from wallprobe.hooks.interchange.prompts.report import Measured, PromptRequest, Read, figures_of, make_result
from wallprobe.hooks.interchange.sweep_report import Place, adjusted, sign_flips
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch
from wallprobe.store.results import Result

Blocks = stacks.Native | stacks.Modules
CHECKED = 3  # cells run whole beside
AGREEMENT = 1e-3  # of the largest logit, by which the two ways may differ
LATE = ("resid_post", "attn_out", "mlp_out", "z")


@dataclass(frozen=True)
class Donors:
    """What src gives, and whose donor each pair gets in the controls."""

    values: Mapping[Place, Float[Tensor, "pair width"]]
    random: Int[Tensor, " pair"]
    mismatched: Int[Tensor, " pair"]
    seed: int

    def arms(self, place: Place, there: Float[Tensor, "pair width"]) -> dict[str, Float[Tensor, "pair width"]]:
        """What goes into a cell: the treatment and its controls, by name."""
        named: dict[str, Intervention] = {
            "treated": Swap(),
            "random": OtherDonor(Swap(), self.random),
            "mismatched": OtherDonor(Swap(), self.mismatched),
            "norm": NormMatched(Swap(), self.seed),
        }
        return {name: intervention(there, self.values[place]) for name, intervention in named.items()}


def prompt_interchange(request: PromptRequest, *, device: str = "cpu", on_cell: Callable[[int, int], None] | None = None) -> Result:
    """Every cell of a pair of language models, with controls; src is freed before dst is loaded.

    Args:
        request: what to interchange.
        device: torch device.
        on_cell: called with (cells done, cells in all).

    Returns:
        Result of kind "prompts", table over site x layer x index.

    Raises:
        UnknownNameError, CheckpointError: for a model or file that is not there, or is damaged.
        ConfigError: for models or prompts that do not go together, or do not fit the budget.
        InstrumentError: if a patch changed nothing, a self-patch something, or the quick pass differs from the model's own.
    """
    watch = Stopwatch()
    remote.check(request.backend, request.remote)
    plain = models.load_plain(request.src, device)
    pairs = read_pairs(Path(request.prompts), plain.tokenizer)
    request, places = plan(request, plain, pairs)
    with torch.no_grad():
        engine = _engine(request, plain)
        src_hash = plain.weight_hash
        engine.groups(places, pairs.clean, request.budget)
        engine.run(pairs.clean.to(device), places)
        donors = Donors({place: engine.value(place).clone() for place in places}, *other_pairs(pairs, request.seed), request.seed)
        if request.dst != request.src:
            del plain, engine
            plain = models.load_plain(request.dst, device)
            engine = _engine(request, plain)
        measured = _measure(request, engine, plain.name, places, pairs, donors, device, on_cell)
    return make_result(request, pairs, measured, (src_hash, plain.weight_hash), device, watch)


def _engine(request: PromptRequest, plain: models.Plain) -> Engine:
    if request.backend == "nnsight":
        return Traced(plain, request.remote)
    stack = layout(plain)
    return Resumed(plain, stack) if isinstance(stack, stacks.Native) else Looped(plain, stack)


def _measure(
    request: PromptRequest,
    engine: Engine,
    name: str,
    places: Sequence[Place],
    pairs: PromptPairs,
    donors: Donors,
    device: str,
    on_cell: Callable[[int, int], None] | None,
) -> Measured:
    """Every cell of dst, its figures and what the examples show."""
    reads, corrupt = _reader(pairs, device), pairs.corrupt.to(device)
    ceiling = reads(engine.run(pairs.clean.to(device), [])[None])[0]
    selves = engine.self_patches(places, corrupt)
    base = reads(engine.run(corrupt, places)[None])[0]
    places = _swappable(engine, places, pairs, donors)
    groups = engine.groups(places, pairs.corrupt, request.budget)
    weights = stats.resamples(len(pairs.answer), generator(request.seed, "prompts bootstrap"))
    signs = sign_flips(len(pairs.answer), request.seed)
    order = torch.randperm(len(places), generator=generator(request.seed, "prompts checked"))
    checked = {places[int(place)] for place in order[:CHECKED]}
    figures: dict[Place, dict[str, float]] = {}
    treated: dict[Place, Read] = {}
    apart = 0.0
    for group in groups:
        arms = [donors.arms(place, engine.value(place)) for place in group]
        entries = [(place, value) for place, by_name in zip(group, arms, strict=True) for value in by_name.values()]
        rows = iter(engine.patched(entries, reads))
        for place, by_name in zip(group, arms, strict=True):
            found = {arm: next(rows) for arm in by_name}
            if place in checked:
                apart = max(apart, _check(engine, place, by_name["treated"], found["treated"], reads, name))
            change = float((by_name["treated"] - engine.value(place)).abs().max())
            figures[place] = figures_of(place, change, found, base, ceiling, selves[place], weights, signs)
            treated[place] = found["treated"]
        if on_cell is not None:
            on_cell(len(figures), len(places))
    for place, q_value in zip(figures, adjusted(torch.tensor([cell["p_value"] for cell in figures.values()])), strict=True):
        figures[place]["q_value"] = float(q_value)
    passes = "from the middle" if isinstance(engine, Resumed) else "whole"
    how = {"backend": request.backend, "passes": passes, "checked_cells": len(checked), "largest_difference": apart}
    return Measured(figures, treated, base, ceiling, how)


def _swappable(engine: Engine, places: Sequence[Place], pairs: PromptPairs, donors: Donors) -> list[Place]:
    """The cells with something to swap: src and dst may share their embeddings, and clean and corrupt the token there.

    Raises:
        InstrumentError: if that leaves none.
    """
    same = (pairs.clean == pairs.corrupt).all(0)
    found = [place for place in places if not (bool(same[place.index]) and torch.equal(engine.value(place), donors.values[place]))]
    if not found:
        raise InstrumentError("the patches change nothing: src and dst hold the same there, and so do clean and corrupt prompts")
    return found


def _check(engine: Engine, place: Place, value: Tensor, quick: Read, reads: Reads, name: str) -> float:
    """By how many logits the quick pass differs from a whole pass of the model with one patch.

    Raises:
        InstrumentError: if by more than rounding explains.
    """
    whole = engine.whole(place, value)
    apart = float((reads(whole[None])[0].difference - quick.difference).abs().max())
    if not apart <= AGREEMENT * max(1.0, float(whole.abs().max())):
        raise InstrumentError(f"{place}: the quick pass is {apart:g} logits off {name}'s own; use --backend nnsight, and tell us")
    return apart


def plan(request: PromptRequest, plain: models.Plain, pairs: PromptPairs) -> tuple[PromptRequest, list[Place]]:
    """The request with its sites written out, and every cell that can matter; both models are held to it before anything is computed.

    Raises:
        UnknownNameError, CheckpointError: for a dst that is not there.
        ConfigError, InstrumentError: for models, prompts or sites that do not go together.
    """
    dst = plain if request.dst == request.src else models.load_plain(request.dst, weights=False)
    if dst.tokenizer.get_vocab() != plain.tokenizer.get_vocab():
        raise ConfigError(
            f"{request.src} and {request.dst} have other tokenizers; an index would not mean the same place; give two with one"
        )
    widths = plain.model.config.hidden_size, dst.model.config.hidden_size
    if widths[0] != widths[1]:
        raise ConfigError(f"{request.src} is {widths[0]} wide and {request.dst} {widths[1]}: their residual streams do not fit")
    both = (layout(plain), layout(dst))
    request = replace(request, sites=sites.expand(request.sites, min(stack.n_heads for stack in both)))
    if any(sites.module_site(site) == "z" for site in request.sites) and both[0].d_heads != both[1].d_heads:
        wide = f"{both[0].d_heads} and {both[1].d_heads}"
        raise ConfigError(f"the heads of {request.src} and {request.dst} are {wide} wide; leave out site z")
    for model in (plain, dst):
        pairs.check(model.name, models.limits(model))
    return request, _places(request, both, pairs)


def _places(request: PromptRequest, both: tuple[Blocks, Blocks], pairs: PromptPairs) -> list[Place]:
    length, depth = pairs.clean.shape[1], min(stack.n_layers for stack in both)
    for site in request.sites:
        models.hook_name(0, sites.module_site(site))
        for stack in both:
            stack.point(0, sites.module_site(site))
            if request.backend == "nnsight" and sites.head_of(site) is not None:
                raise ConfigError(f"site {site} is part of a module's output, which --backend nnsight patches whole; give z")
    layers = tuple(range(depth)) if request.layers is None else request.layers
    wrong = [layer for layer in layers if not 0 <= layer < depth]
    if wrong:
        raise ConfigError(f"layer {wrong[0]} does not exist; give 0 to {depth - 1}, or all")
    asked = tuple(range(length)) if request.indices is None else request.indices
    outside = [index for index in asked if not -length <= index < length]
    if outside:
        raise ConfigError(
            f"index {outside[0]} does not exist; the prompts have {length} tokens; give indices from 0 to {length - 1}, or all"
        )
    stack = both[1]
    places = [
        Place(site, layer, index)
        for index in sorted({index % length for index in asked})
        for layer in layers
        for site in request.sites
        if not (sites.module_site(site) in LATE and layer == stack.n_layers - 1 and index < length - 1)
    ]
    if request.src == request.dst:
        # Where both prompts are still one and the same there is nothing to swap.
        same = pairs.clean == pairs.corrupt
        places = [
            place
            for place in places
            if not bool(same[:, : place.index + 1].all()) and not (_alone(place, stack) and bool(same[:, place.index].all()))
        ]
    if not places:
        raise ConfigError(
            "no cell can change the answer there: clean and corrupt are the same up to these indices, or the site is too late"
        )
    return places


def _alone(place: Place, stack: Blocks) -> bool:
    """Does what stands there depend on that index's token alone?"""
    return place.layer == 0 and (place.site == "resid_pre" or (place.site == "mlp_out" and stack.parallel))


def other_pairs(pairs: PromptPairs, seed: int) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """For each pair another one: any, and one with another answer."""
    count = len(pairs.answer)
    order = torch.randperm(count, generator=generator(seed, "prompts donors"))
    following = torch.empty_like(order)
    following[order] = order.roll(1)
    chosen = following.clone()
    for _ in range(count):
        clash = pairs.answer[chosen] == pairs.answer
        chosen[clash] = following[chosen[clash]]
    return following, chosen


def _reader(pairs: PromptPairs, device: str) -> Reads:
    answer, wrong = pairs.answer.to(device), pairs.wrong.to(device)

    def reads(logits: Float[Tensor, "entry pair vocab"]) -> list[Read]:
        count = len(logits)
        right = logits.gather(2, answer.expand(count, -1)[..., None])[..., 0]
        other = logits.gather(2, wrong.expand(count, -1)[..., None])[..., 0]
        difference, probability = (right - other).double().cpu(), (right - logits.logsumexp(-1)).exp().double().cpu()
        return [Read(*row) for row in zip(difference, probability, strict=True)]

    return reads
