"""Interchange between language models on pairs of prompts: how much of the clean answer does one activation restore?

src reads the clean prompts, dst the corrupt ones; src's activation at (layer, index, site) goes into dst, and the answer's logit minus the
wrong answer's is read at the last index. 0 is dst left alone, 1 is dst on the clean prompt.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe import models, stats
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.hooks import cache, resume, sites, stacks
from wallprobe.hooks.interventions import NormMatched, OtherDonor, Swap
from wallprobe.hooks.prompt_pairs import PromptPairs, read_pairs
from wallprobe.hooks.prompt_report import ARMS, PromptRequest, Read, figures_of, make_result
from wallprobe.hooks.sweep_report import Place, adjusted, sign_flips
from wallprobe.manifest import Stopwatch
from wallprobe.results import Result
from wallprobe.rng import generator

AGREEMENT = 1e-3  # logits by which the model taken apart may differ from the model
SELF_BATCH = 64  # cells whose self-patches share one pass
LATE = ("resid_post", "attn_out", "mlp_out", "z")


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
        ConfigError: for models or prompts that do not go together.
        InstrumentError: if a patch changed nothing, a self-patch something, or the model taken apart is not the model.
    """
    watch = Stopwatch()
    plain = models.load_plain(request.src, device)
    pairs = read_pairs(Path(request.prompts), plain.tokenizer)
    with torch.no_grad():
        stack = taken_apart(plain, pairs.clean.to(device))
        places = _plan(request, stack, pairs)
        clean = resume.observe(stack, pairs.clean.to(device))
        donor = {place: sites.value_at(stack, clean, place.layer, place.index, place.site).clone() for place in places}
        src_width, src_hash, src_vocabulary = stack.d_model, plain.weight_hash, plain.tokenizer.get_vocab()
        if request.dst != request.src:
            del plain, stack, clean
            plain = models.load_plain(request.dst, device)
            _check_together(request, plain, src_vocabulary, src_width)
            stack = taken_apart(plain, pairs.corrupt.to(device))
            _plan(request, stack, pairs)
        reads = _reader(pairs, device)
        ceiling = reads(stack.read(resume.observe(stack, pairs.clean.to(device)).residual[-1][:, -1])[None])[0]
        clean = resume.observe(stack, pairs.corrupt.to(device))
        base = reads(stack.read(clean.residual[-1][:, -1])[None])[0]
        selves = self_patches(plain, stack, places, pairs.corrupt.to(device))
        weights = stats.resamples(len(pairs.answer), generator(request.seed, "prompts bootstrap"))
        signs, order = sign_flips(len(pairs.answer), request.seed), _others(pairs, request.seed)
        figures: dict[Place, dict[str, float]] = {}
        for group in _groups(stack, places, pairs, request.budget):
            read = _walk(stack, clean, group, donor, order, request.seed, reads)
            for place, (change, arms) in zip(group, read, strict=True):
                figures[place] = figures_of(place, change, arms, base, ceiling, selves[place], weights, signs)
            if on_cell is not None:
                on_cell(len(figures), len(places))
    for place, q_value in zip(figures, adjusted(torch.tensor([cell["p_value"] for cell in figures.values()])), strict=True):
        figures[place]["q_value"] = float(q_value)
    return make_result(request, places, figures, pairs, base, ceiling, (src_hash, plain.weight_hash), device, watch)


def taken_apart(plain: models.Plain, tokens: Int[Tensor, "pair index"]) -> stacks.Native:
    """The model in steps, held to the model itself.

    Raises:
        ConfigError: if its layout is not known, or the prompts are longer than it reads.
        InstrumentError: if the steps give other logits than the model.
    """
    stack = stacks.of_transformers(plain.model)
    if stack is None:
        raise ConfigError(
            f"{plain.name} is a {plain.model.config.model_type}, whose passes cannot be resumed from the middle; "
            f"known are {', '.join(stacks.LAYOUTS)}"
        )
    longest = getattr(plain.model.config, "max_position_embeddings", tokens.shape[1])
    if tokens.shape[1] > longest:
        raise ConfigError(f"{plain.name} reads {longest} tokens, the prompts have {tokens.shape[1]}; give shorter ones")
    ours = stack.read(resume.observe(stack, tokens[:2]).residual[-1][:, -1])
    apart = float((ours - plain.model(tokens[:2]).logits[:, -1]).abs().max())
    if not apart <= AGREEMENT * max(1.0, float(ours.abs().max())):
        raise InstrumentError(f"{plain.name} taken apart gives logits {apart:g} off its own; its layout is not what its config says")
    return stack


def _check_together(request: PromptRequest, plain: models.Plain, vocabulary: Mapping[str, int], width: int) -> None:
    if plain.tokenizer.get_vocab() != vocabulary:
        raise ConfigError(
            f"{request.src} and {request.dst} have other tokenizers; an index would not mean the same place; give two with one"
        )
    if plain.model.config.hidden_size != width:
        raise ConfigError(
            f"{request.src} is {width} wide and {request.dst} {plain.model.config.hidden_size}: their residual streams do not fit"
        )


def _plan(request: PromptRequest, stack: stacks.Native, pairs: PromptPairs) -> list[Place]:
    length = pairs.clean.shape[1]
    for site in request.sites:
        models.hook_name(0, site)
        stack.point(0, site)
    layers = tuple(range(stack.n_layers)) if request.layers is None else request.layers
    indices = (
        tuple(range(length)) if request.indices is None else tuple(index % length for index in request.indices if -length <= index < length)
    )
    wrong = [layer for layer in layers if not 0 <= layer < stack.n_layers]
    if wrong:
        raise ConfigError(f"layer {wrong[0]} does not exist; give 0 to {stack.n_layers - 1}, or all")
    if request.indices is not None and len(indices) < len(request.indices):
        raise ConfigError(f"the prompts have {length} tokens; give indices from 0 to {length - 1}, or all")
    places = [
        Place(site, layer, index)
        for index in sorted(set(indices))
        for layer in layers
        for site in request.sites
        if not (site in LATE and layer == stack.n_layers - 1 and index < length - 1)
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


def _alone(place: Place, stack: stacks.Native) -> bool:
    """Does what stands there depend on that index's token alone?"""
    return place.layer == 0 and (place.site == "resid_pre" or (place.site == "mlp_out" and stack.parallel))


def _reader(pairs: PromptPairs, device: str) -> Callable[[Tensor], list[Read]]:
    answer, wrong = pairs.answer.to(device), pairs.wrong.to(device)

    def reads(logits: Float[Tensor, "entry pair vocab"]) -> list[Read]:
        count = len(logits)
        right = logits.gather(2, answer.expand(count, -1)[..., None])[..., 0]
        other = logits.gather(2, wrong.expand(count, -1)[..., None])[..., 0]
        difference, probability = (right - other).double().cpu(), (right - logits.logsumexp(-1)).exp().double().cpu()
        return [Read(*row) for row in zip(difference, probability, strict=True)]

    return reads


def _others(pairs: PromptPairs, seed: int) -> Int[Tensor, " pair"]:
    """For each pair another one, if possible with another answer."""
    count = len(pairs.answer)
    order = torch.randperm(count, generator=generator(seed, "prompts donors"))
    chosen = torch.empty_like(order)
    chosen[order] = order.roll(1)
    for _ in range(count):
        clash = (pairs.answer[chosen] == pairs.answer) | (chosen == torch.arange(count))
        if not bool(clash.any()):
            break
        following = torch.empty_like(order)
        following[order] = order.roll(1)
        chosen[clash] = following[chosen[clash]]
    return chosen


def _groups(stack: stacks.Native, places: Sequence[Place], pairs: PromptPairs, budget: float) -> Iterator[list[Place]]:
    count, length = pairs.clean.shape
    for index in sorted({place.index for place in places}):
        cell = len(ARMS) * (resume.predicted_bytes(stack, count, length, index) + 8 * count * stack.vocabulary)
        room = int(budget * cache.GIB / cell)
        if room < 1:
            raise ConfigError(
                f"one cell of {count} pairs takes {cell / cache.GIB:.2f} GiB, more than the budget of {budget:g}; "
                "give --budget more, or fewer pairs"
            )
        here = sorted((place for place in places if place.index == index), key=lambda place: place.layer + (place.site != "resid_pre"))
        for start in range(0, len(here), room):
            yield here[start : start + room]


def _walk(
    stack: stacks.Native,
    clean: resume.Clean,
    group: Sequence[Place],
    donor: Mapping[Place, Tensor],
    order: Int[Tensor, " pair"],
    seed: int,
    reads: Callable[[Tensor], list[Read]],
) -> list[tuple[float, dict[str, Read]]]:
    """For each cell the largest change at its site, and what is read in every arm."""
    changes, entries = [], []
    for place in group:
        there, source = sites.value_at(stack, clean, place.layer, place.index, place.site), donor[place]
        arms = (Swap()(there, source), OtherDonor(Swap(), order)(there, source), NormMatched(Swap(), seed)(there, source))
        changes.append(float((arms[0] - there).abs().max()))
        entries += [sites.enter(stack, clean, place.layer, place.index, place.site, patched) for patched in arms]
    found: list[Read] = []
    resume.walk(stack, clean, group[0].index, entries, lambda logits: _keep(found, reads, logits))
    rows = iter(found)
    return [(change, {arm: next(rows) for arm in ARMS}) for change in changes]


def _keep(found: list[Read], reads: Callable[[Tensor], list[Read]], logits: Tensor) -> Tensor:
    found += reads(logits)
    return torch.stack([read.difference for read in found])[..., None]


def self_patches(
    plain: models.Plain, stack: stacks.Native, places: Sequence[Place], tokens: Int[Tensor, "pair index"]
) -> dict[Place, float]:
    """The largest change of a logit when a cell is given its own activation, through hooks on the model's own modules; one prompt a cell.

    Raises:
        InstrumentError: if a module is not called exactly once, or a self-patch changes anything.
    """
    changes: dict[Place, float] = {}
    for start in range(0, len(places), SELF_BATCH):
        some = places[start : start + SELF_BATCH]
        rows = tokens[torch.arange(len(some)) % len(tokens)]
        by_point: dict[tuple[str, int], dict[int, int]] = {}
        for row, place in enumerate(some):
            by_point.setdefault((place.site, place.layer), {})[row] = place.index
        seen: dict[tuple[str, int], Tensor] = {}
        untouched = _hooked(plain, stack, rows, {point: _see(seen, point) for point in by_point})
        again = _hooked(plain, stack, rows, {point: _restore(seen[point], slots) for point, slots in by_point.items()})
        for place, change in zip(some, (again - untouched).abs().amax(-1), strict=True):
            changes[place] = float(change)
            if changes[place] != 0.0:
                raise InstrumentError(f"{place}: putting {plain.name}'s own activation back changed a logit by {changes[place]}")
    return changes


Edit = Callable[[Tensor], Tensor]


def _see(seen: dict[tuple[str, int], Tensor], point: tuple[str, int]) -> Edit:
    def see(value: Tensor) -> Tensor:
        if point in seen:
            raise InstrumentError(f"{point[0]} of layer {point[1]} was computed more than once in one forward pass")
        seen[point] = value.clone()
        return value

    return see


def _restore(kept: Tensor, slots: Mapping[int, int]) -> Edit:
    def restore(value: Tensor) -> Tensor:
        value = value.clone()
        for row, index in slots.items():
            value[row, index] = kept[row, index]
        return value

    return restore


def _hooked(
    plain: models.Plain, stack: stacks.Native, tokens: Int[Tensor, "row index"], edits: Mapping[tuple[str, int], Edit]
) -> Float[Tensor, "row vocab"]:
    """Logits at the last index with edits at points of the model's own modules."""
    handles = []
    for (site, layer), edit in edits.items():
        module, given = stack.point(layer, site)
        if given:
            handles.append(module.register_forward_pre_hook(lambda _, named, edit=edit: (edit(named[0]), *named[1:])))
        else:
            handles.append(module.register_forward_hook(lambda _, __, output, edit=edit: _on_first(output, edit)))
    try:
        logits: Tensor = plain.model(tokens).logits[:, -1]
    finally:
        for handle in handles:
            handle.remove()
    return logits


def _on_first(output: Any, edit: Edit) -> Any:
    return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)
