"""From a sweep's log-probabilities to its Result: every cell's figures, p- and q-values, one sentence."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wallprobe import models
from wallprobe.errors import InstrumentError
from wallprobe.findings import beyond, difference, foremost
from wallprobe.hooks.attach import sites
from wallprobe.hooks.interchange.pairs import Pairs
from wallprobe.hooks.interchange.report import Cell, answer_logs, cell_figures, describe, shares_initialisation
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset
from wallprobe.store.runs import Run

BUDGET = 1.0  # GiB
FLIPS = 2000  # sign flips of the permutation test
FALSE = 0.05  # share of false discoveries allowed
Q_VALUES = {"import": "q_value", "rule": "q_value_rule"}
OWN = {
    "p_value_import": "chance of the import's lead over a random donor without one",
    "p_value_rule": "chance of the rule's lead over a random donor without one",
    "q_value": "the import's p-value among all cells, Benjamini-Hochberg",
    "q_value_rule": "the rule's p-value among all cells, Benjamini-Hochberg",
    "ci_low": "95 % interval of p_import, lower bound",
    "ci_high": "95 % interval of p_import, upper bound",
}


@dataclass(frozen=True)
class SweepRequest:
    """What to sweep.

    Attributes:
        src: donor run.
        dst: receiving run.
        layers: None for all.
        indices: None for all up to the read.
        sites: of `models.SITES`; `z.3` is head 3's part of `z`, and `heads` every head's.
        align: "none", "procrustes" or "ridge".
        pairs: pairs drawn.
        seed: of pairs, controls, bootstrap and permutations.
        budget: GiB that tensors may take beside the weights.
    """

    src: str
    dst: str
    layers: tuple[int, ...] | None = None
    indices: tuple[int, ...] | None = None
    sites: tuple[str, ...] = ("resid_pre",)
    align: str = "none"
    pairs: int = 1000
    seed: int = 0
    budget: float = BUDGET


@dataclass(frozen=True)
class Place:
    """A cell of the sweep."""

    site: str
    layer: int
    index: int

    @property
    def hook(self) -> str:
        """Its hook's name."""
        return models.hook_name(self.layer, sites.module_site(self.site))

    def __str__(self) -> str:
        return f"{self.site} of layer {self.layer}, index {self.index}"


def sign_flips(pairs: int, seed: int) -> Float[Tensor, "flip pair"]:
    """Signs of `FLIPS` permutations, the same in every cell."""
    return torch.randint(2, (FLIPS, pairs), generator=generator(seed, "sign flips")).double().mul_(2).sub_(1)


def figures_of(
    place: Place,
    cell: Cell,
    pairs: Pairs,
    base_log: Float[Tensor, "pair vocab"],
    donor_log: Float[Tensor, "pair vocab"],
    weights: Tensor,
    signs: Float[Tensor, "flip pair"],
) -> dict[str, float]:
    """Every figure of a cell. The p-value of an answer: is it likelier with its own donor than with a random one? (one-sided sign
    flips of the pairs' differences).

    Raises:
        InstrumentError: if the patch changed nothing.
    """
    if cell.change_at_hook == 0.0 or cell.change_at_logits == 0.0:
        raise InstrumentError(
            f"{place}: the patch changed nothing (at the hook {cell.change_at_hook}, at the answer {cell.change_at_logits}); "
            "are src, dst and the sequences the same?"
        )
    figures = cell_figures(cell, pairs, base_log, donor_log, weights)
    figures |= {"ci_low": figures["p_import_low"], "ci_high": figures["p_import_high"]}
    treated, other = (answer_logs(log, pairs) for log in (cell.treated, cell.random))
    for name in ("rule", "import"):
        figures[f"p_value_{name}"] = p_value(treated[name].exp() - other[name].exp(), signs)
    return figures


def p_value(gained: Float[Tensor, " pair"], signs: Float[Tensor, "flip pair"]) -> float:
    """How often a sum of differences of random sign is as large as the sum that was found (itself counted, so never 0)."""
    reached = int((signs @ gained >= gained.sum() - 1e-12).sum())
    return (1 + reached) / (1 + len(signs))


def adjusted(p_values: Float[Tensor, " cell"]) -> Float[Tensor, " cell"]:
    """Benjamini-Hochberg q-values."""
    count = len(p_values)
    order = p_values.argsort()
    scaled = p_values[order] * count / torch.arange(1, count + 1)
    least = scaled.flip(0).cummin(0).values.flip(0).clamp(max=1.0)
    return torch.empty_like(least).scatter_(0, order, least)


def adjust(figures: Mapping[Place, dict[str, float]]) -> None:
    """Add to every cell the q-values that its p-values are among all of the sweep's."""
    for name in ("rule", "import"):
        found = torch.tensor([cell[f"p_value_{name}"] for cell in figures.values()], dtype=torch.float64)
        for cell, q_value in zip(figures.values(), adjusted(found), strict=True):
            cell[Q_VALUES[name]] = float(q_value)


def make_result(
    request: SweepRequest,
    runs: tuple[Run, Run],
    places: Sequence[Place],
    figures: Mapping[Place, dict[str, float]],
    pairs: int,
    engine: Mapping[str, Any],
    device: str,
    watch: Stopwatch,
) -> Result:
    """The Result of a sweep; see `sweep.sweep` for what goes in."""
    src, dst = runs
    asked = [site for site in request.sites if any(place.site == site for place in places)]
    layers, indices = sorted({place.layer for place in places}), sorted({place.index for place in places})
    empty = dict.fromkeys(next(iter(figures.values())), math.nan)
    grid: dict[str, tuple[tuple[str, ...], Any, str, str]] = {}
    for name in empty:
        values = np.array(
            [[[figures.get(Place(site, layer, index), empty)[name] for index in indices] for layer in layers] for site in asked]
        )
        grid[name] = (("site", "layer", "index"), values, *(("probability", OWN[name]) if name in OWN else describe(name)))
    floor, shared = 1.0 / int(dst.manifest["task"]["modulus"]), shares_initialisation(src, dst)
    attrs: dict[str, Any] = {
        "src": str(src.name),
        "dst": str(dst.name),
        "align": request.align,
        "noise_floor": floor,
        "shared_initialisation": int(shared),
    }
    data = dataset({"site": asked, "layer": layers, "index": indices}, grid, **attrs, read_index=max(indices))
    manifest = provenance(
        config=asdict(request)
        | {"src": str(src.name), "dst": str(dst.name), "weights": [src.manifest["weight_hash"], dst.manifest["weight_hash"]]},
        device=device,
        dtype="float32 models, float64 figures",
        watch=watch,
        subject=f"{src.name} to {dst.name}",
        weight_hash={"src": src.manifest["weight_hash"], "dst": dst.manifest["weight_hash"]},
        weight_processing="none",
        shared_initialisation=shared,
        seeds={"pairs": request.seed},
        engine=dict(engine),
    )
    summary: dict[str, Any] = {
        "src": str(src.name),
        "dst": str(dst.name),
        "align": request.align,
        "n_cells": len(places),
        "n_pairs": pairs,
        "seconds": manifest["wall_time_s"],
        "peak_gib": manifest["peak_memory_mib"] / 1024,
        "noise_floor": floor,
        "shared_initialisation": shared,
        "self_patch_max_change": max(cell["self_patch_max_change"] for cell in figures.values()),
    }
    for name in ("rule", "import"):
        best = list(figures)[foremost([cell[f"p_{name}"] for cell in figures.values()]) or 0]
        summary |= {f"max_p_{name}": figures[best][f"p_{name}"], f"{name}_at": str(best)}
        summary[f"{name}_cells"] = sum(_crosses(cell, name, floor) for cell in figures.values())
    return Result("sweep", data, ("site", "layer", "index"), summary | {"finding": _finding(summary)}, manifest)


def _crosses(cell: Mapping[str, float], name: str, floor: float) -> bool:
    """Likelier than chance, than without a patch and than with a random donor, at a false discovery rate of 5 %."""
    bar = max(floor, cell[f"base_p_{name}"], cell[f"p_{name}_random"])
    bounds = cell[f"p_{name}_low"], cell[f"p_{name}_high"]
    return cell[Q_VALUES[name]] <= FALSE and beyond(cell[f"p_{name}"], bar, difference(bounds, bar))


def _finding(summary: Mapping[str, Any]) -> str:
    words = []
    for name, what in (("rule", "rule"), ("import", "answer")):
        cells, best, place = summary[f"{name}_cells"], summary[f"max_p_{name}"], summary[f"{name}_at"]
        crossed = f"crosses in {cells} of {summary['n_cells']} cells" if cells else "crosses nowhere"
        words.append(f"the donor's {what} {crossed} (at most {best:.3f}, {place})")
    joined = " and " if bool(summary["rule_cells"]) == bool(summary["import_cells"]) else ", but "
    aligned = "raw states" if summary["align"] == "none" else f"{summary['align']}-aligned states"
    return f"From {summary['src']} to {summary['dst']}, {aligned}: {joined.join(words)}; chance is {summary['noise_floor']:.3f}."
