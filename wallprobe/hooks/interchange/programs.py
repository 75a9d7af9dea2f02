"""The report on runs of one task: whose answer comes out, dst's own, the donor's rule on dst's operand, or the donor's own prediction.

At one site it is of kind "interchange", over layer x index, with the first pairs one by one; of a sweep of kind "sweep", over site x
layer x index, with p- and q-values.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wallprobe import stats
from wallprobe.errors import InstrumentError
from wallprobe.findings import beyond, difference, foremost
from wallprobe.hooks.interchange import subspaces
from wallprobe.hooks.interchange.pairs import Pairs
from wallprobe.hooks.interchange.places import Place
from wallprobe.hooks.interchange.report import CONTROLS, FALSE, TABLE, Found, Grid, Report, p_value
from wallprobe.store.manifest import Stopwatch
from wallprobe.store.results import Result, dataset
from wallprobe.store.runs import Run
from wallprobe.tasks.recurrence import RecurrenceTask

ANSWERS = ("rule", "import", "own")
LONG = {
    "rule": "probability of a_A x_B + b_A, the donor's rule on dst's operand",
    "import": "probability of a_A x_A + b_A, the donor's own prediction",
    "own": "probability of a_B x_B + b_B, dst's own answer",
}
EXAMPLES = 8
MARGIN = 0.01  # probability
Q_VALUES = {"import": "q_value", "rule": "q_value_rule"}
OWN = {
    "p_value_import": "chance of the import's lead over a random donor without one",
    "p_value_rule": "chance of the rule's lead over a random donor without one",
    "q_value": "the import's p-value among all cells, Benjamini-Hochberg",
    "q_value_rule": "the rule's p-value among all cells, Benjamini-Hochberg",
    "ci_low": "95 % interval of p_import, lower bound",
    "ci_high": "95 % interval of p_import, upper bound",
}
FIXED = {
    "kl_to_donor": ("nats", "KL(src's prediction on A || patched prediction)"),
    "base_kl_to_donor": ("nats", "the same without a patch"),
    "self_patch_max_change": ("log-probability", "largest change when dst's own activation is put back"),
    "change_at_hook": ("activation", "largest change at the hook"),
    "change_at_logits": ("log-probability", "largest change of the answer's log-probabilities"),
    "alignment_r2": ("R^2", "held-out R^2 of the alignment"),
} | subspaces.LONG
TOKEN = "token_"


@dataclass(frozen=True)
class Answers:
    """Log-probability (fp64) of the three answers and of every token, KL to the donor's prediction, and the largest change.

    Attributes:
        tokens: also of every token, for the examples.
    """

    tokens: bool
    name: str = "programs"
    units: str = "nats"

    def __call__(self, logits: Float[Tensor, "*entry pair vocab"], pairs: Pairs) -> Mapping[str, Float[Tensor, "*entry pair"]]:
        """By answer; see the class."""
        assert pairs.donor_logits is not None
        assert pairs.base_logits is not None
        log, donor, base = (values.double().log_softmax(-1).cpu() for values in (logits, pairs.donor_logits, pairs.base_logits))
        made = {name: log.gather(-1, ids.expand(log.shape[:-1])[..., None])[..., 0] for name, ids in pairs.answers.items()}
        made |= {"kl": (donor.exp() * (donor - log)).sum(-1), "change": (log - base).abs().amax(-1)}
        return made | ({f"{TOKEN}{token}": log[..., token] for token in range(log.shape[-1])} if self.tokens else {})


class Programs(Report):
    """See the module."""

    bootstrap = "interchange bootstrap"

    def __init__(self, request: Any, *rest: Any) -> None:
        self.sweep, self.built_in = request.sweep or len(request.sites) > 1, (Answers(not request.sweep and len(request.sites) == 1),)
        self.examples: dict[Place, Found] = {}
        super().__init__(request, *rest)

    def own(self, place: Place, arms: Mapping[str, Found]) -> dict[str, float]:
        """Every figure of one cell.

        Raises:
            InstrumentError: if the answer did not change.
        """
        treated, change = arms["treated"], float(arms["treated"]["programs_change"].max())
        if change == 0.0:
            raise InstrumentError(f"{place} changed nothing at the answer; are src, dst and the sequences the same?")
        figures: dict[str, float] = {}
        for name in ANSWERS:
            probs = treated[f"programs_{name}"].exp()
            low, high = stats.interval(self.weights @ probs)
            figures |= {f"p_{name}": float(probs.mean()), f"p_{name}_low": float(low), f"p_{name}_high": float(high)}
            figures[f"base_p_{name}"] = float(self.base[f"programs_{name}"].exp().mean())
            figures |= {f"p_{name}_{arm}": float(arms[arm][f"programs_{name}"].exp().mean()) for arm in CONTROLS if arm in arms}
        for name in ("rule", "import"):
            key = f"programs_{name}"
            moved, room = treated[key] - self.base[key], self.ceiling["programs_import"] - self.base[key]
            low, high = stats.interval((self.weights @ moved) / (self.weights @ room))
            figures |= {
                f"shift_{name}": float(moved.mean() / room.mean()),
                f"shift_{name}_low": float(low),
                f"shift_{name}_high": float(high),
            }
            # Breaking dst's own answer alone moves both logs up to the floor: the control says how much of a shift that is.
            figures[f"shift_{name}_random"] = float((arms["random"][key] - self.base[key]).mean() / room.mean())
        figures["kl_to_donor"], figures["base_kl_to_donor"] = float(treated["programs_kl"].mean()), float(self.base["programs_kl"].mean())
        figures["change_at_logits"] = change
        if self.sweep:
            figures |= {"ci_low": figures["p_import_low"], "ci_high": figures["p_import_high"]}
            for name in ("rule", "import"):
                key = f"programs_{name}"
                figures[f"p_value_{name}"] = p_value(treated[key].exp() - arms["random"][key].exp(), self.signs)
        else:
            self.examples[place] = {name: values[:EXAMPLES] for name, values in treated.items()}
        return figures | ({} if "raw" in arms or self.request.align != "none" else {"alignment_r2": math.nan})

    def q_name(self, key: str) -> str:
        """See `Report`."""
        return Q_VALUES.get(key.removeprefix("p_value_"), "q" + key[1:])

    def describe(self, name: str) -> tuple[str, str]:
        """See `Report`."""
        return describe(name) or super().describe(name)

    def result(self, device: str, watch: Stopwatch) -> Result:
        """See `Report`."""
        assert self.src.run is not None
        assert self.dst.run is not None
        self.adjust()
        return (
            self._sweep(self.src.run, self.dst.run, device, watch)
            if self.sweep
            else self._single(self.src.run, self.dst.run, device, watch)
        )

    def _single(self, src: Run, dst: Run, device: str, watch: Stopwatch) -> Result:
        task, horizon = RecurrenceTask.from_manifest(dst.manifest["task"]), int(dst.manifest["horizon"])
        grid, coords = self.grid(table=TABLE[1:])
        shown, (site,) = min(EXAMPLES, len(self.pairs)), self.request.sites
        grid |= self._examples(shown, site, coords)
        shared = shares_initialisation(src, dst)
        names = {"src": self.src.name, "dst": self.dst.name}
        attrs: dict[str, Any] = names | {"site": site, "align": self.request.align, "noise_floor": 1.0 / task.modulus}
        attrs |= {"subspace": self.request.subspace} if self.request.subspace else {}
        attrs |= {"intervention": str(self.request.config()["intervention"])} if self.request.intervention is not None else {}
        coords |= {"example": list(range(shown)), "token_index": list(range(horizon))}
        assert self.pairs.base_logits is not None
        coords["answer"] = list(range(self.pairs.base_logits.shape[1]))
        data = dataset(coords, grid, **attrs, modulus=task.modulus, read_index=horizon - 1, shared_initialisation=int(shared))
        kept = self.request.config("align", "pairs", "seed", "subspace", "backend")
        config = {**names, "layers": coords["layer"], "indices": coords["index"], "site": site} | kept
        manifest = self._manifest(
            device, watch, f"{src.name} to {dst.name} {site}", config | {"task": task.config(), "horizon": horizon}, shared
        )
        summary = _summary(self.figures, attrs, coords["layer"], len(self.pairs), shared)
        return Result("interchange", data, TABLE[1:], summary, manifest)

    def _sweep(self, src: Run, dst: Run, device: str, watch: Stopwatch) -> Result:
        grid, coords = self.grid()
        floor, shared = 1.0 / int(dst.manifest["task"]["modulus"]), shares_initialisation(src, dst)
        names = {"src": self.src.name, "dst": self.dst.name}
        attrs: dict[str, Any] = names | {"align": self.request.align, "noise_floor": floor, "shared_initialisation": int(shared)}
        data = dataset(coords, grid, **attrs, read_index=max(coords["index"]))
        config = self.request.config("layers", "indices", "sites", "align", "pairs", "seed", "budget") | names
        manifest = self._manifest(device, watch, f"{src.name} to {dst.name}", config, shared, engine=self.engine)
        summary: dict[str, Any] = names | {
            "align": self.request.align,
            "n_cells": len(self.figures),
            "n_pairs": len(self.pairs),
            "seconds": manifest["wall_time_s"],
            "peak_gib": manifest["peak_memory_mib"] / 1024,
            "noise_floor": floor,
            "shared_initialisation": shared,
            "self_patch_max_change": max(cell["self_patch_max_change"] for cell in self.figures.values()),
        }
        for name in ("rule", "import"):
            best = list(self.figures)[foremost([cell[f"p_{name}"] for cell in self.figures.values()]) or 0]
            summary |= {f"max_p_{name}": self.figures[best][f"p_{name}"], f"{name}_at": str(best)}
            summary[f"{name}_cells"] = sum(_crosses(cell, name, floor) for cell in self.figures.values())
        return Result("sweep", data, TABLE, summary | {"finding": _swept_finding(summary)}, manifest)

    def _manifest(
        self, device: str, watch: Stopwatch, subject: str, config: Mapping[str, Any], shared: bool, **more: Any
    ) -> dict[str, Any]:
        more |= {"dtype": "float32 models, float64 figures", "shared_initialisation": shared, "seeds": {"pairs": self.request.seed}}
        return self.provenance(device, watch, subject, config, **more)

    def _examples(self, shown: int, site: str, coords: Mapping[str, list[Any]]) -> Grid:
        """Of the first pairs their sequences, their three answers, and what is said before, at every cell, and by the donor."""
        cells = [[self.examples[Place(site, layer, index, self.request.window)] for index in coords["index"]] for layer in coords["layer"]]
        grid: Grid = {}
        for name in ANSWERS:
            probs = np.array([[cell[f"programs_{name}"].exp().numpy() for cell in row] for row in cells])
            grid[f"example_p_{name}"] = (("example", "layer", "index"), probs.transpose(2, 0, 1), "probability", LONG[name])
        for name, tokens in (("src", self.pairs.donor), ("dst", self.pairs.base)):
            drawn = torch.stack(list(tokens[:shown])).numpy().astype("int32")
            grid[f"example_{name}_token"] = (("example", "token_index"), drawn, "token", f"sequence run in {name}")
        for name in ANSWERS:
            answer = self.pairs.answers[name][:shown].numpy().astype("int32")
            grid[f"example_{name}_answer"] = (("example",), answer, "token", LONG[name].removeprefix("probability of "))

        def every(found: Found) -> Any:
            tokens = [name for name in found if name.startswith(f"programs_{TOKEN}")]
            return torch.stack([found[name][:shown] for name in tokens], -1).exp().numpy().astype("float32")

        after = np.array([[every(cell) for cell in row] for row in cells]).transpose(2, 0, 1, 3)
        grid["example_after"] = (("example", "layer", "index", "answer"), after, "probability", "dst's prediction on B, patched")
        said = {"before": (self.base, "dst's prediction on B without a patch"), "donor": (self.ceiling, "src's own prediction on A")}
        return grid | {
            f"example_{name}": (("example", "answer"), every(found), "probability", words) for name, (found, words) in said.items()
        }


def describe(name: str) -> tuple[str, str] | None:
    """Units and long name of a figure; None for one that is not of this report."""
    if name in FIXED:
        return FIXED[name]
    if name in OWN:
        return "probability", OWN[name]
    if name.startswith("shift_"):
        ending = " (random donor)" if name.endswith("_random") else ""
        return "fraction", "(log p patched - log p base) / (log p donor - log p base)" + ending
    parts = name.removeprefix("base_").removesuffix("_low").removesuffix("_high").split("_")
    if parts[0] != "p" or parts[1] not in ANSWERS:
        return None
    control = CONTROLS.get(parts[-1]) if len(parts) == 3 else "no patch" if name.startswith("base_") else None
    return "probability", LONG[parts[1]] + (f" ({control})" if control else "")


def shares_initialisation(src: Run, dst: Run) -> bool:
    """True if both trainings started from the same parameters: same seed, shape and initialisation."""
    keys = (src.manifest["seed"], src.manifest["shape"], src.manifest["config"]["recipe"]["embedding_std"])
    return bool(keys == (dst.manifest["seed"], dst.manifest["shape"], dst.manifest["config"]["recipe"]["embedding_std"]))


def _summary(
    figures: Mapping[Place, dict[str, float]], attrs: Mapping[str, Any], layers: list[int], n_pairs: int, shared: bool
) -> dict[str, Any]:
    """The flat summary: each answer's probability at the cell where it is highest (rule, import) or lowest (own)."""
    rule_at, import_at = (_most(figures, name) for name in ("p_rule", "p_import"))
    own_at = min(figures, key=lambda place: figures[place]["p_own"])
    summary = {
        "src": attrs["src"],
        "dst": attrs["dst"],
        "layer": layers[0] if len(layers) == 1 else None,
        "site": attrs["site"],
        "align": attrs["align"],
        "p_rule": figures[rule_at]["p_rule"],
        "p_import": figures[import_at]["p_import"],
        "p_own": figures[own_at]["p_own"],
        "noise_floor": attrs["noise_floor"],
        "self_patch_max_change": max(cell["self_patch_max_change"] for cell in figures.values()),
        "n_pairs": n_pairs,
        "shared_initialisation": shared,
        "rule_layer": rule_at.layer,
        "rule_index": rule_at.index,
        "import_layer": import_at.layer,
        "import_index": import_at.index,
        "subspace": attrs.get("subspace"),
    }
    return summary | {"finding": finding(figures, attrs, rule_at, import_at)}


def _most(figures: Mapping[Place, Mapping[str, float]], name: str) -> Place:
    """The first cell at which a figure is as high as anywhere, rounding aside."""
    return list(figures)[foremost([cell[name] for cell in figures.values()]) or 0]


def finding(figures: Mapping[Place, Mapping[str, float]], attrs: Mapping[str, Any], rule_at: Place, import_at: Place) -> str:
    """One plain sentence: did the rule cross, did the answer?

    An answer crosses when its interval lies above the noise floor, above what it was without a patch, and above the random-donor
    control (in a subspace also above the random span), by more than rounding; by less than `MARGIN` it crosses only slightly (the best of
    many cells is shown, which flatters it).
    """

    def crossing(place: Place, name: str) -> str:
        cell = figures[place]
        bars = [cell[f"base_p_{name}"], cell[f"p_{name}_random"], cell.get(f"p_{name}_span", 0.0)]
        bar, bounds = max(attrs["noise_floor"], *bars), (cell[f"p_{name}_low"], cell[f"p_{name}_high"])

        def passes(least: float) -> bool:
            return beyond(cell[f"p_{name}"], least, difference(bounds, least))

        return "clear" if passes(bar + MARGIN) else "slight" if passes(bar) else "none"

    def slot(place: Place) -> str:
        return f"layer {place.layer}, index {place.index}"

    aligned = "" if attrs["align"] == "none" else f"{attrs['align']}-aligned "
    rule, imported = figures[rule_at]["p_rule"], figures[import_at]["p_import"]
    floor = f"noise floor {attrs['noise_floor']:.3f}"
    moves, imports = crossing(rule_at, "rule"), crossing(import_at, "import")
    first = {
        "clear": f"moves the donor's rule: probability {rule:.3f} on it at {slot(rule_at)} ({floor})",
        "slight": f"moves the donor's rule only slightly (probability {rule:.3f} at {slot(rule_at)}; {floor})",
        "none": f"does not move the rule (at most {rule:.3f}, at {slot(rule_at)}; {floor})",
    }[moves]
    was, other = figures[import_at]["base_p_import"], figures[import_at]["p_import_random"]
    second = {
        "clear": f"imports the donor's answer (probability {imported:.3f} at {slot(import_at)}, {was:.3f} unpatched)",
        "slight": f"imports the donor's answer only slightly (probability {imported:.3f} at {slot(import_at)}, "
        f"{other:.3f} with a random donor)",
        "none": f"does not import the donor's answer (at most {imported:.3f}, at {slot(import_at)})",
    }[imports]
    joined = "and" if (moves == "none") == (imports == "none") else "but"
    part, beside = f" ({attrs['intervention']})" if "intervention" in attrs else "", ""
    if "subspace" in attrs:
        cell = figures[import_at]
        part = f" in the span {attrs['subspace']}"
        beside = (
            f"; {cell['subspace_dims']:.0f} random dimensions there give {cell['p_import_span']:.3f}, "
            f"the whole state {cell['p_import_whole']:.3f}"
        )
    return f"Patching {attrs['src']}'s {aligned}{attrs['site']}{part} into {attrs['dst']} {first} {joined} {second}{beside}."


def _crosses(cell: Mapping[str, float], name: str, floor: float) -> bool:
    """Likelier than chance, than without a patch and than with a random donor, at a false discovery rate of 5 %."""
    bar = max(floor, cell[f"base_p_{name}"], cell[f"p_{name}_random"])
    bounds = cell[f"p_{name}_low"], cell[f"p_{name}_high"]
    return cell[Q_VALUES[name]] <= FALSE and beyond(cell[f"p_{name}"], bar, difference(bounds, bar))


def _swept_finding(summary: Mapping[str, Any]) -> str:
    words = []
    for name, what in (("rule", "rule"), ("import", "answer")):
        cells, best, place = summary[f"{name}_cells"], summary[f"max_p_{name}"], summary[f"{name}_at"]
        crossed = f"crosses in {cells} of {summary['n_cells']} cells" if cells else "crosses nowhere"
        words.append(f"the donor's {what} {crossed} (at most {best:.3f}, {place})")
    joined = " and " if bool(summary["rule_cells"]) == bool(summary["import_cells"]) else ", but "
    aligned = "raw states" if summary["align"] == "none" else f"{summary['align']}-aligned states"
    return f"From {summary['src']} to {summary['dst']}, {aligned}: {joined.join(words)}; chance is {summary['noise_floor']:.3f}."
