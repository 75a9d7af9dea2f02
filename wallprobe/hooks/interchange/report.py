"""From what an interchange read to its Result: every cell's figures with intervals and controls, p- and q-values; what all kinds share."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wallprobe import stats
from wallprobe.errors import InstrumentError
from wallprobe.findings import beyond, difference, foremost, rounding
from wallprobe.hooks.interchange.batches import MORE
from wallprobe.hooks.interchange.budget import FLIPS
from wallprobe.hooks.interchange.pairs import Pairs
from wallprobe.hooks.interchange.places import At, Place
from wallprobe.hooks.interchange.reads import Probability, Read, Reader
from wallprobe.hooks.interchange.request import Request
from wallprobe.hooks.interchange.sides import Side
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset

FALSE = 0.05  # share of false discoveries allowed
CONTROLS = {
    "random": "random donor",
    "mismatched": "donor with another answer",
    "norm": "random vector of the same norm",
    "raw": "no alignment",
    "span": "random span of as many dimensions",
    "whole": "the whole state",
}
ENDINGS = {"low": "95 % interval, lower bound", "high": "95 % interval, upper bound"} | CONTROLS
TABLE = ("site", "layer", "index")
GUARDS = {
    "self_patch_max_change": ("logits", "largest change when dst's own activation is put back"),
    "change_at_hook": ("activation", "largest change at the site"),
    "alignment_r2": ("R^2", "held-out R^2 of the alignment"),
}

Found = Mapping[str, Float[Tensor, " pair"]]
Grid = dict[str, tuple[tuple[str, ...], Any, str, str]]


def sign_flips(pairs: int, seed: int) -> Float[Tensor, "flip pair"]:
    """Signs of `FLIPS` permutations, the same in every cell."""
    return torch.randint(2, (FLIPS, pairs), generator=generator(seed, "sign flips")).double().mul_(2).sub_(1)


def p_value(gained: Float[Tensor, " pair"], signs: Float[Tensor, "flip pair"], *, two_sided: bool = False) -> float:
    """How often a sum of differences of random sign is as large as the sum that was found (itself counted, so never 0)."""
    drawn, found = signs @ gained, gained.sum()
    reached = drawn.abs() >= found.abs() - 1e-12 if two_sided else drawn >= found - 1e-12
    return (1 + int(reached.sum())) / (1 + len(signs))


def adjusted(p_values: Float[Tensor, " cell"]) -> Float[Tensor, " cell"]:
    """Benjamini-Hochberg q-values."""
    count = len(p_values)
    order = p_values.argsort()
    scaled = p_values[order] * count / torch.arange(1, count + 1)
    least = scaled.flip(0).cummin(0).values.flip(0).clamp(max=1.0)
    return torch.empty_like(least).scatter_(0, order, least)


def whole_answers(found: Mapping[str, Tensor], pairs: Pairs) -> dict[str, Tensor]:
    """What was read, answers of several tokens whole: their further tokens' log-probabilities added."""
    more = {name: found[f"{MORE}{name}"] for name in pairs.rest if f"{MORE}{name}" in found}
    made = {name: values for name, values in found.items() if not name.startswith(MORE)}
    for answer, log in more.items():
        if f"p_{answer}" in made:
            made[f"p_{answer}"] = made[f"p_{answer}"] * log.exp()
        if f"log_p_{answer}" in made:
            made[f"log_p_{answer}"] = made[f"log_p_{answer}"] + log
        if "logit_difference" in made:
            sign = 1 if answer == pairs.donors_answer else -1
            made["logit_difference"] = made["logit_difference"] + sign * log
    return made


class Report:
    """Takes in cells, gives the Result. This one is of pairs of the user's own; runs and prompts add what their answers mean.

    Args:
        request: what was asked for.
        sides: src and dst.
        pairs: with what the models say without a patch.
        ceiling: logits of the donors, and the log-probabilities of their answers' further tokens.
        more: these of the bases.
    """

    kind = "patches"
    built_in: tuple[Read, ...] = (Probability(),)

    def __init__(
        self,
        request: Request,
        sides: tuple[Side, Side],
        pairs: Pairs,
        ceiling: tuple[Tensor, Mapping[str, Tensor]],
        more: Mapping[str, Tensor],
    ) -> None:
        self.request, self.src, self.dst, self.pairs = request, *sides, pairs
        self.figures: dict[Place, dict[str, float]] = {}
        self.engine: dict[str, Any] = {}
        self.n_capable = 0  # pairs whose donor src answers rightly and whose base dst answers otherwise
        own = Reader(self.built_in, pairs)
        assert pairs.base_logits is not None
        own.on(None)(pairs.base_logits[None, :])
        self.own_names = set(own.names)
        self.reader = Reader((*self.built_in, *request.read), pairs)
        self.base = self._clean(pairs.base_logits, more)
        self.ceiling = self._clean(*ceiling)
        self.weights = stats.resamples(len(pairs), generator(request.seed, self.bootstrap))
        self.signs = sign_flips(len(pairs), request.seed)

    bootstrap = "patches bootstrap"

    def _clean(self, logits: Float[Tensor, "pair vocab"], more: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return whole_answers(self.reader.named(self.reader.on(None)(logits[None])[0]) | dict(more), self.pairs)

    def cell(self, place: Place, arms: Mapping[str, Found], change: float, self_change: float, more: Mapping[str, float]) -> None:
        """Take in a cell.

        Args:
            place: which.
            arms: what was read under the treatment and each control.
            change: largest change at the site.
            self_change: that of the self-patch.
            more: figures of its alignment and subspace.

        Raises:
            InstrumentError: if the patch changed nothing.
        """
        if change == 0.0:
            raise InstrumentError(f"{place} changed nothing; are clean and corrupt, or src and dst, the same up to there?")
        whole = {arm: whole_answers(found, self.pairs) for arm, found in arms.items()}
        figures = self.own(place, whole)
        for name in sorted(set(whole["treated"]) - self.own_names):
            figures |= self.plain(name, whole)
        self.figures[place] = figures | {"self_patch_max_change": self_change, "change_at_hook": change} | dict(more)

    def own(self, place: Place, arms: Mapping[str, Found]) -> dict[str, float]:
        """The figures of what this kind reads by itself."""
        return {key: value for name in sorted(self.own_names) for key, value in self.plain(name, arms).items()}

    def plain(self, name: str, arms: Mapping[str, Found]) -> dict[str, float]:
        """A read's mean with its interval, without a patch and under each control, and the chance of its distance from a random donor."""
        treated = arms["treated"][name]
        low, high = stats.interval(self.weights @ treated)
        figures = {name: float(treated.mean()), f"{name}_low": float(low), f"{name}_high": float(high)}
        figures[f"base_{name}"] = float(self.base[name].mean())
        figures |= {f"{name}_{arm}": float(found[name].mean()) for arm, found in arms.items() if arm != "treated"}
        figures[f"p_value_{name}"] = p_value(treated - arms["random"][name], self.signs, two_sided=True)
        return figures

    def adjust(self) -> None:
        """Add to every cell the q-values that its p-values are among all."""
        for key in [key for key in next(iter(self.figures.values())) if key.startswith("p_value")]:
            found = torch.tensor([cell[key] for cell in self.figures.values()], dtype=torch.float64)
            for cell, q_value in zip(self.figures.values(), adjusted(found), strict=True):
                cell[self.q_name(key)] = float(q_value)

    def q_name(self, key: str) -> str:
        """Name of a p-value's q-value."""
        return "q" + key[1:]

    def describe(self, name: str) -> tuple[str, str]:
        """Units and long name of a figure."""
        if name in GUARDS:
            return GUARDS[name]
        for start, words in (
            ("p_value_", "chance of the distance from a random donor without one"),
            ("q_value_", "the same, Benjamini-Hochberg"),
        ):
            if name.startswith(start):
                return "probability", f"{name.removeprefix(start)}: {words}"
        stem = name.removeprefix("base_")
        ending = next((one for one in ENDINGS if stem.endswith(f"_{one}")), None)
        stem = stem if ending is None else stem.removesuffix(f"_{ending}")
        read = next(
            (one for one in sorted((*self.built_in, *self.request.read), key=lambda one: -len(one.name)) if stem.startswith(one.name)), None
        )
        said = "no patch" if name.startswith("base_") else ENDINGS.get(ending or "", "")
        return getattr(read, "units", ""), stem.replace("_", " ") + (f" ({said})" if said else "")

    def grid(self, *, table: Sequence[str] = TABLE) -> tuple[Grid, dict[str, list[Any]]]:
        """The figures as arrays, NaN where no cell is, and their coordinates."""
        coords = self.coords()
        empty = dict.fromkeys(next(iter(self.figures.values())), math.nan)
        made: Grid = {}
        for name in empty:
            values = np.array(
                [[[self._at(s, k, i, empty)[name] for i in coords["index"]] for k in coords["layer"]] for s in coords["site"]]
            )
            made[name] = (tuple(table), values if len(table) == len(TABLE) else values[0], *self.describe(name))
        return made, {name: coords[name] for name in table}

    def coords(self) -> dict[str, list[Any]]:
        """Sites as asked for, layers and indices in order; slots by name."""
        named = sorted({place.index for place in self.figures}, key=lambda one: (isinstance(one, str), one))
        indices: list[At] = [str(one) for one in named] if any(isinstance(one, str) for one in named) else list(named)
        asked = [site for site in self.request.sites if any(place.site == site for place in self.figures)]
        return {"site": asked, "layer": sorted({place.layer for place in self.figures}), "index": indices}

    def _at(self, site: str, layer: int, index: At, empty: Mapping[str, float]) -> Mapping[str, float]:
        for one in (index, int(index)) if isinstance(index, str) and index.isdecimal() else (index,):
            found = self.figures.get(Place(site, layer, one, self.request.window))
            if found is not None:
                return found
        return empty

    def provenance(self, device: str, watch: Stopwatch, subject: str, config: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """The manifest."""
        hashes = [self.src.weight_hash, self.dst.weight_hash]
        return provenance(
            config=dict(config) | {"weights": hashes},
            device=device,
            watch=watch,
            subject=subject,
            weight_hash=dict(zip(("src", "dst"), hashes, strict=True)),
            weight_processing="none",
            **more,
        )

    def result(self, device: str, watch: Stopwatch) -> Result:
        """The Result."""
        self.adjust()
        grid, coords = self.grid()
        src, dst = self.src.name, self.dst.name
        config = self.request.config("layers", "indices", "sites", "seed", "budget", "backend", "remote") | {"src": src, "dst": dst}
        manifest = self.provenance(
            device, watch, f"{src} to {dst} patches", config, dtype="float32", engine=self.engine, seeds={"controls": self.request.seed}
        )
        first = f"p_{self.pairs.donors_answer}"
        best = list(self.figures)[foremost([cell[first] for cell in self.figures.values()], noise=rounding(1.0)) or 0]
        cell = self.figures[best]
        summary = {
            "src": src,
            "dst": dst,
            "n_cells": len(self.figures),
            "n_pairs": len(self.pairs),
            f"max_{first}": cell[first],
            "at": str(best),
            "self_patch_max_change": max(one["self_patch_max_change"] for one in self.figures.values()),
            "finding": finding(src, dst, self.pairs.donors_answer, best, cell),
        }
        data = dataset(coords, grid, src=src, dst=dst, subject=f"{src} -> {dst}")
        return Result(self.kind, data, TABLE, summary, manifest)


def finding(src: str, dst: str, answer: str, best: Place, cell: Mapping[str, float]) -> str:
    """One sentence: how likely the donor's answer becomes where it does most, and whether its strongest control leaves that to it."""
    first = f"p_{answer}"
    bars = {CONTROLS[arm]: cell[f"{first}_{arm}"] for arm in ("random", "mismatched", "norm")} | {"no patch": cell[f"base_{first}"]}
    strongest = max(bars, key=lambda name: bars[name])
    more = beyond(cell[first], bars[strongest], difference((cell[f"{first}_low"], cell[f"{first}_high"]), bars[strongest]))
    return (
        f"From {src} to {dst}: the donor's answer ({answer}) has probability {cell[first]:.3f} at {best}, "
        f"{'more' if more else 'no more'} than its strongest control ({strongest}: {bars[strongest]:.3f})."
    )
