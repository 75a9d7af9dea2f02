"""The report on pairs of prompts: how much of the clean answer does one activation restore? 0 is dst left alone, 1 is dst on the clean
prompt; read is the answer's logit less the wrong one's (of answers of several tokens, their log-probabilities')."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wallprobe import stats
from wallprobe.findings import beyond, foremost, rounding
from wallprobe.hooks.interchange.pairs import Pairs
from wallprobe.hooks.interchange.places import Place
from wallprobe.hooks.interchange.report import ENDINGS, FALSE, GUARDS, TABLE, Found, Grid, Report, p_value
from wallprobe.store.manifest import Stopwatch
from wallprobe.store.results import Result, dataset

EXAMPLES = 4  # pairs kept one by one
ENOUGH = 6  # pairs from which sign flips can show anything at 5 %
ARMS = ("random", "mismatched", "norm")
WORDS = {
    "restored": ("fraction", "share of the clean prompt's logit difference that the patch restores"),
    "logit_difference": ("logits", "logit of the answer minus logit of the wrong answer"),
    "p_answer": ("probability", "probability of the answer"),
    "p_value": ("probability", "chance of the lead over a random donor without one"),
    "q_value": ("probability", "the same over all cells, Benjamini-Hochberg"),
} | GUARDS


@dataclass(frozen=True)
class Restored:
    """Logit difference and probability of the answer, in the logits' own precision."""

    name: str = ""
    units: str = ""

    def __call__(self, logits: Float[Tensor, "*entry pair vocab"], pairs: Pairs) -> Mapping[str, Float[Tensor, "*entry pair"]]:
        """`logit_difference` and `p_answer`."""
        right, other = (self._logit(logits, pairs, name) for name in ("answer", "wrong"))
        return {"logit_difference": (right - other).double(), "p_answer": (right - logits.logsumexp(-1)).exp().double()}

    @staticmethod
    def _logit(logits: Float[Tensor, "*entry pair vocab"], pairs: Pairs, name: str) -> Float[Tensor, "*entry pair"]:
        """Of an answer; of several that are as right, of them together."""
        rows = [[int(first), *more] for first, more in zip(pairs.answers[name], pairs.also.get(name, [()] * len(pairs)), strict=True)]
        most = max(len(row) for row in rows)
        ids = torch.tensor([row + [row[0]] * (most - len(row)) for row in rows], device=logits.device)
        found = logits.gather(-1, ids.expand(*logits.shape[:-1], most))
        if most == 1:
            return found[..., 0]
        there = torch.tensor([[at < len(row) for at in range(most)] for row in rows], device=logits.device)
        return found.masked_fill(~there, -torch.inf).logsumexp(-1)


class Prompts(Report):
    """See the module."""

    kind, bootstrap = "prompts", "prompts bootstrap"
    built_in = (Restored(),)

    def own(self, place: Place, arms: Mapping[str, Found]) -> dict[str, float]:
        """Every figure of a cell."""
        treated, key, p = arms["treated"], "logit_difference", "p_answer"
        room, moved = self.ceiling[key] - self.base[key], treated[key] - self.base[key]
        draws = (self.weights @ moved) / (self.weights @ room)
        figures = {"restored": float(moved.mean() / room.mean()), key: float(treated[key].mean())}
        for name, values in (("restored", draws), (key, self.weights @ treated[key]), (p, self.weights @ treated[p])):
            low, high = stats.interval(values)
            figures |= {f"{name}_low": float(low), f"{name}_high": float(high)}
        figures[p] = float(treated[p].mean())
        for arm in ARMS:
            figures[f"restored_{arm}"] = float((arms[arm][key] - self.base[key]).mean() / room.mean())
            figures[f"p_answer_{arm}"] = float(arms[arm][p].mean())
        figures["p_value"] = p_value(treated[key] - arms["random"][key], self.signs)
        self.first[place] = {name: values[:EXAMPLES] for name, values in treated.items()}
        return figures

    def __init__(self, *given: Any) -> None:
        self.first: dict[Place, Found] = {}
        super().__init__(*given)

    def describe(self, name: str) -> tuple[str, str]:
        """See `Report`."""
        if name in WORDS:
            return WORDS[name]
        stem, _, ending = name.rpartition("_")
        return (WORDS[stem][0], f"{WORDS[stem][1]} ({ENDINGS[ending]})") if stem in WORDS and ending in ENDINGS else super().describe(name)

    def result(self, device: str, watch: Stopwatch) -> Result:
        """See `Report`."""
        self.adjust()
        grid, coords = self.grid()
        grid |= self._examples(coords)
        src, dst = self.src.name, self.dst.name
        side = ("clean", "corrupt") if self.request.direction == "denoise" else ("corrupt", "clean")
        within = self.src is self.dst
        longest = max(len(row) for row in (*self.pairs.donor, *self.pairs.base))
        coords |= {"example": list(range(self.shown)), "token_index": list(range(longest))}
        subject = f"{src}, {side[0]} -> {side[1]}" if within else f"{src} -> {dst}"
        read = max(self.pairs.lengths[1]) - 1
        data = dataset(coords, grid, src=src, dst=dst, subject=subject, read_index=read)
        best = list(self.figures)[foremost([cell["restored"] for cell in self.figures.values()], noise=rounding(1.0)) or 0]
        config = self.request.config("layers", "indices", "sites", "seed", "budget", "backend", "remote")
        config |= {"src": str(self.request.src) if isinstance(self.request.src, str) else src, "prompts_hash": self.pairs.data_hash}
        config |= {"dst": str(self.request.dst) if isinstance(self.request.dst, str) else dst}
        seeds, more = {"controls": self.request.seed}, {"dtype": "float32", "data_hash": self.pairs.data_hash, "engine": self.engine}
        manifest = self.provenance(device, watch, f"{src} to {dst} prompts", config, seeds=seeds, **more)
        summary = {"src": src, "dst": dst} | self._summary(best, manifest)
        whence = f"Within {src}" if within else f"From {src} to {dst}"
        return Result(self.kind, data, TABLE, summary | {"finding": _finding(whence, side[0], best, self.figures[best], summary)}, manifest)

    @property
    def shown(self) -> int:
        """How many pairs are kept one by one."""
        return min(EXAMPLES, len(self.pairs))

    def _summary(self, best: Place, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """The flat summary."""
        figures, base, ceiling = self.figures, self.base, self.ceiling
        return {
            "n_cells": len(figures),
            "n_pairs": len(self.pairs),
            "n_capable": self.n_capable,
            "seconds": manifest["wall_time_s"],
            "peak_gib": manifest["peak_memory_mib"] / 1024,
            "base_logit_difference": float(base["logit_difference"].mean()),
            "clean_logit_difference": float(ceiling["logit_difference"].mean()),
            "base_p_answer": float(base["p_answer"].mean()),
            "clean_p_answer": float(ceiling["p_answer"].mean()),
            "max_restored": figures[best]["restored"],
            "restored_at": str(best),
            "max_p_answer": max(cell["p_answer"] for cell in figures.values()),
            "restoring_cells": sum(_restores(cell) for cell in figures.values()),
            "self_patch_max_change": max(cell["self_patch_max_change"] for cell in figures.values()),
        }

    def _examples(self, coords: Mapping[str, list[Any]]) -> Grid:
        """The first pairs, one by one: their tokens, and what is read before and after each patch."""
        made: Grid = {}
        empty = {name: torch.full((self.shown,), math.nan) for name in ("logit_difference", "p_answer")}
        names = {str(place.index): place.index for place in self.figures}
        for name in empty:
            cells = [
                [
                    [self.first.get(Place(s, k, names.get(str(i), i), self.request.window), empty)[name].numpy() for i in coords["index"]]
                    for k in coords["layer"]
                ]
                for s in coords["site"]
            ]
            units, long_name = WORDS[name]
            made[f"example_{name}"] = (("example", *TABLE), np.moveaxis(np.array(cells), -1, 0), units, long_name)
            for start, read, where in (("base", self.base, "corrupt"), ("clean", self.ceiling, "clean")):
                made[f"example_{start}_{name}"] = (("example",), read[name][: self.shown].numpy(), units, f"{long_name}, {where} prompt")
        longest = max(len(row) for row in (*self.pairs.donor, *self.pairs.base))
        for name in ("clean", "corrupt"):
            pieces = [[*row, *[""] * (longest - len(row))] for row in self._pieces(name)]
            made[f"example_{name}_token"] = (("example", "token_index"), np.array(pieces), "token", f"tokens of the {name} prompt")
        for name in ("answer", "wrong"):
            made[f"example_{name}"] = (("example",), np.array(self.pairs.words[name][: self.shown]), "token", f"the {name}")
        return made

    def _pieces(self, name: str) -> Sequence[Sequence[str]]:
        found: Sequence[Sequence[str]] = self.pairs.words[name][: self.shown]
        return found


def _restores(cell: Mapping[str, float]) -> bool:
    """More than a random donor at a false discovery rate of 5 %, and more than nothing; 1 is the whole clean answer."""
    bounds = cell["restored_low"], cell["restored_high"]
    return cell["q_value"] <= FALSE and beyond(cell["restored"], 0.0, bounds, rounding(1.0))


def _finding(whence: str, side: str, best: Place, cell: Mapping[str, float], summary: Mapping[str, Any]) -> str:
    """One sentence: where the answer comes back, and in how many cells."""
    moved = f"p(answer) {summary['base_p_answer']:.3f} to {cell['p_answer']:.3f}"
    control = f"random donor {cell['restored_random']:.2f}"
    return f"{whence}: {best} restores {cell['restored']:.2f} of the {side} answer ({control}; {moved}); {_verdict(summary)}."


def _verdict(summary: Mapping[str, Any]) -> str:
    """In how many cells the clean answer comes back, beyond what a random donor does; of too few pairs no p-value can fall far enough."""
    if summary["n_pairs"] < ENOUGH:
        return f"{summary['n_pairs']} pairs are too few to tell that from chance (no p-value below 1/{2 ** summary['n_pairs']})"
    return f"{summary['restoring_cells']} of {summary['n_cells']} cells restore more than a random donor"
