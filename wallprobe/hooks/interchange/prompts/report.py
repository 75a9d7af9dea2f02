"""From what an interchange on prompts read to its Result: every cell's figures, intervals and q-values, one sentence."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from wallprobe import stats
from wallprobe.errors import InstrumentError
from wallprobe.findings import beyond, foremost, rounding
from wallprobe.hooks.interchange.prompts.pairs import PromptPairs
from wallprobe.hooks.interchange.sweep_report import BUDGET, FALSE, Place, p_value
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset

ARMS = ("treated", "random", "mismatched", "norm")
TEXT_SITES = ("resid_pre", "resid_post", "attn_out", "mlp_out", "z")
EXAMPLES = 4  # pairs kept one by one
ENOUGH = 6  # pairs from which sign flips can show anything at 5 %


@dataclass(frozen=True)
class PromptRequest:
    """What to interchange.

    Attributes:
        src: donor: a Hugging Face folder, a .gguf file or a hub id.
        dst: receiver, the same kinds; may be src.
        prompts: JSON Lines file of pairs.
        layers: None for all.
        indices: None for all.
        sites: of resid_pre, resid_post, attn_out, mlp_out, z.
        seed: of controls, bootstrap and permutations.
        budget: GiB that tensors may take beside the weights.
        backend: "hooks" (passes from the middle), or "nnsight".
        remote: with nnsight "none", or "local": as it would go to NDIF, run here.
    """

    src: str
    dst: str
    prompts: str
    layers: tuple[int, ...] | None = None
    indices: tuple[int, ...] | None = None
    sites: tuple[str, ...] = ("resid_pre",)
    seed: int = 0
    budget: float = BUDGET
    backend: str = "hooks"
    remote: str = "none"


@dataclass(frozen=True)
class Read:
    """What is read of the answer, for each pair: the answer's logit minus the wrong one's, and the answer's probability."""

    difference: Float[Tensor, " pair"]
    probability: Float[Tensor, " pair"]


@dataclass(frozen=True)
class Measured:
    """What came out of dst.

    Attributes:
        figures: of every cell.
        treated: what was read in every cell.
        base: what is read on the corrupt prompts without a patch.
        ceiling: what is read on the clean prompts.
        engine: how it was computed, and how far that is from whole passes.
    """

    figures: Mapping[Place, Mapping[str, float]]
    treated: Mapping[Place, Read]
    base: Read
    ceiling: Read
    engine: Mapping[str, Any]


def figures_of(
    place: Place,
    change: float,
    arms: Mapping[str, Read],
    base: Read,
    ceiling: Read,
    self_change: float,
    weights: Float[Tensor, "draws pair"],
    signs: Float[Tensor, "flip pair"],
) -> dict[str, float]:
    """Every figure of a cell.

    Raises:
        InstrumentError: if the patch changed nothing.
    """
    treated = arms["treated"]
    if change == 0.0:
        raise InstrumentError(f"{place}: the patch changed nothing; are clean and corrupt the same up to there?")
    room = ceiling.difference - base.difference
    moved = treated.difference - base.difference
    draws = (weights @ moved) / (weights @ room)
    figures = {"restored": float(moved.mean() / room.mean()), "logit_difference": float(treated.difference.mean())}
    for name, values in (
        ("restored", draws),
        ("logit_difference", weights @ treated.difference),
        ("p_answer", weights @ treated.probability),
    ):
        low, high = stats.interval(values)
        figures |= {f"{name}_low": float(low), f"{name}_high": float(high)}
    figures["p_answer"] = float(treated.probability.mean())
    for arm in ARMS[1:]:
        figures[f"restored_{arm}"] = float((arms[arm].difference - base.difference).mean() / room.mean())
        figures[f"p_answer_{arm}"] = float(arms[arm].probability.mean())
    figures["p_value"] = p_value(treated.difference - arms["random"].difference, signs)
    return figures | {"self_patch_max_change": self_change, "change_at_hook": change}


WORDS = {
    "restored": ("fraction", "share of the clean prompt's logit difference that the patch restores"),
    "logit_difference": ("logits", "logit of the answer minus logit of the wrong answer"),
    "p_answer": ("probability", "probability of the answer"),
    "p_value": ("probability", "chance of the lead over a random donor without one"),
    "q_value": ("probability", "the same over all cells, Benjamini-Hochberg"),
    "self_patch_max_change": ("logits", "largest change when dst's own activation is put back"),
    "change_at_hook": ("activation", "largest change at the site"),
}


ENDINGS = {
    "low": "95 % interval, lower bound",
    "high": "95 % interval, upper bound",
    "random": "random donor",
    "mismatched": "donor with another answer",
    "norm": "random vector of the same norm",
}


def _words(name: str) -> tuple[str, str]:
    if name in WORDS:
        return WORDS[name]
    stem, _, ending = name.rpartition("_")
    units, long_name = WORDS[stem]
    return units, f"{long_name} ({ENDINGS[ending]})"


def make_result(
    request: PromptRequest,
    pairs: PromptPairs,
    measured: Measured,
    hashes: tuple[str | None, str | None],
    device: str,
    watch: Stopwatch,
) -> Result:
    """The Result of an interchange on prompts; see `measure.prompt_interchange` for what goes in."""
    figures = measured.figures
    asked = [site for site in request.sites if any(place.site == site for place in figures)]
    layers, indices = sorted({place.layer for place in figures}), sorted({place.index for place in figures})
    empty = dict.fromkeys(next(iter(figures.values())), math.nan)
    grid: dict[str, tuple[tuple[str, ...], Any, str, str]] = {
        name: (
            ("site", "layer", "index"),
            np.array([[[figures.get(Place(site, layer, index), empty)[name] for index in indices] for layer in layers] for site in asked]),
            *_words(name),
        )
        for name in empty
    }
    grid |= _examples(pairs, measured, asked, layers, indices)
    src, dst = (Path(name).name or name for name in (request.src, request.dst))
    length = pairs.clean.shape[1]
    coords = {"site": asked, "layer": layers, "index": indices, "example": list(range(shown(pairs))), "token_index": list(range(length))}
    subject = f"{src} -> {dst}" if request.src != request.dst else f"{src}, clean -> corrupt"
    data = dataset(coords, grid, src=src, dst=dst, subject=subject, read_index=length - 1)
    best = list(figures)[foremost([cell["restored"] for cell in figures.values()], noise=rounding(1.0)) or 0]
    manifest = provenance(
        config=asdict(request) | {"prompts_hash": pairs.data_hash, "weights": list(hashes)},
        device=device,
        dtype="float32",
        watch=watch,
        subject=f"{src} to {dst} prompts",
        weight_hash={"src": hashes[0], "dst": hashes[1]},
        data_hash=pairs.data_hash,
        weight_processing="none",
        seeds={"controls": request.seed},
        engine=dict(measured.engine),
    )
    summary = {"src": src, "dst": dst} | _summary(measured, best, len(pairs.answer), manifest)
    whence = f"From {src} to {dst}" if request.src != request.dst else f"Within {src}"
    return Result(
        "prompts", data, ("site", "layer", "index"), summary | {"finding": _finding(whence, best, figures[best], summary)}, manifest
    )


def _summary(measured: Measured, best: Place, pairs: int, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The flat summary."""
    figures, base, ceiling = measured.figures, measured.base, measured.ceiling
    return {
        "n_cells": len(figures),
        "n_pairs": pairs,
        "seconds": manifest["wall_time_s"],
        "peak_gib": manifest["peak_memory_mib"] / 1024,
        "base_logit_difference": float(base.difference.mean()),
        "clean_logit_difference": float(ceiling.difference.mean()),
        "base_p_answer": float(base.probability.mean()),
        "clean_p_answer": float(ceiling.probability.mean()),
        "max_restored": figures[best]["restored"],
        "restored_at": str(best),
        "max_p_answer": max(cell["p_answer"] for cell in figures.values()),
        "restoring_cells": sum(_restores(cell) for cell in figures.values()),
        "self_patch_max_change": max(cell["self_patch_max_change"] for cell in figures.values()),
    }


def _restores(cell: Mapping[str, float]) -> bool:
    """More than a random donor at a false discovery rate of 5 %, and more than nothing; 1 is the whole clean answer."""
    bounds = cell["restored_low"], cell["restored_high"]
    return cell["q_value"] <= FALSE and beyond(cell["restored"], 0.0, bounds, rounding(1.0))


def _finding(whence: str, best: Place, cell: Mapping[str, float], summary: Mapping[str, Any]) -> str:
    """One sentence: where the answer comes back, and in how many cells."""
    moved = f"p(answer) {summary['base_p_answer']:.3f} to {cell['p_answer']:.3f}"
    control = f"random donor {cell['restored_random']:.2f}"
    return f"{whence}: {best} restores {cell['restored']:.2f} of the clean answer ({control}; {moved}); {_verdict(summary)}."


def shown(pairs: PromptPairs) -> int:
    """How many pairs are kept one by one."""
    return min(EXAMPLES, len(pairs.answer))


def _examples(
    pairs: PromptPairs, measured: Measured, asked: Sequence[str], layers: Sequence[int], indices: Sequence[int]
) -> dict[str, tuple[tuple[str, ...], Any, str, str]]:
    """The first pairs, one by one: their tokens, and what is read before and after each patch."""
    count, cells = shown(pairs), ("example", "site", "layer", "index")
    made: dict[str, tuple[tuple[str, ...], Any, str, str]] = {}
    for name, words in (("difference", "logit_difference"), ("probability", "p_answer")):
        empty = np.full(count, math.nan)
        kept = {place: getattr(read, name)[:count].numpy() for place, read in measured.treated.items()}
        grid = np.array([[[kept.get(Place(site, layer, index), empty) for index in indices] for layer in layers] for site in asked])
        units, long_name = WORDS[words]
        made[f"example_{words}"] = (cells, np.moveaxis(grid, -1, 0), units, long_name)
        for start, read, where in (("base", measured.base, "corrupt"), ("clean", measured.ceiling, "clean")):
            made[f"example_{start}_{words}"] = (("example",), getattr(read, name)[:count].numpy(), units, f"{long_name}, {where} prompt")
    for name, pieces in (("clean", pairs.pieces), ("corrupt", pairs.corrupt_pieces)):
        made[f"example_{name}_token"] = (("example", "token_index"), np.array(pieces[:count]), "token", f"tokens of the {name} prompt")
    for place, name in enumerate(("answer", "wrong")):
        made[f"example_{name}"] = (("example",), np.array([both[place] for both in pairs.answers[:count]]), "token", f"the {name}")
    return made


def _verdict(summary: Mapping[str, Any]) -> str:
    """In how many cells the clean answer comes back, beyond what a random donor does; of too few pairs no p-value can fall far enough."""
    if summary["n_pairs"] < ENOUGH:
        return f"{summary['n_pairs']} pairs are too few to tell that from chance (no p-value below 1/{2 ** summary['n_pairs']})"
    return f"{summary['restoring_cells']} of {summary['n_cells']} cells restore more than a random donor"
