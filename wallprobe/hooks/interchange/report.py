"""From an interchange's log-probabilities to its Result: probabilities of the three answers, intervals, shift, one sentence."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe import stats
from wallprobe.findings import beyond, difference, foremost
from wallprobe.hooks.interchange import subspaces
from wallprobe.hooks.interchange.pairs import Pairs
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset
from wallprobe.store.runs import Run
from wallprobe.tasks.recurrence import RecurrenceTask

ANSWERS = ("rule", "import", "own")
LONG = {
    "rule": "probability of a_A x_B + b_A, the donor's rule on dst's operand",
    "import": "probability of a_A x_A + b_A, the donor's own prediction",
    "own": "probability of a_B x_B + b_B, dst's own answer",
}
CONTROLS = {
    "random": "random donor",
    "mismatched": "donor with another answer",
    "norm": "random vector of the same norm",
    "raw": "no alignment",
    "span": "random span of as many dimensions",
    "whole": "the whole state",
}
EXAMPLES = 8
MARGIN = 0.01  # probability


@dataclass(frozen=True)
class Cell:
    """Log-probabilities at the read index for one (layer, index): the treatment, its controls, and the guards' readings.

    `span`, `whole` and `more` (figures of the subspace) are of a patch that is confined to a subspace.
    """

    treated: Float[Tensor, "pair vocab"]
    random: Float[Tensor, "pair vocab"]
    mismatched: Float[Tensor, "pair vocab"]
    norm: Float[Tensor, "pair vocab"]
    raw: Float[Tensor, "pair vocab"] | None
    self_patch_max_change: float
    change_at_hook: float
    change_at_logits: float
    alignment_r2: float | None
    span: Float[Tensor, "pair vocab"] | None = None
    whole: Float[Tensor, "pair vocab"] | None = None
    more: Mapping[str, float] = field(default_factory=dict)


def answer_logs(log: Float[Tensor, "pair vocab"], pairs: Pairs) -> dict[str, Float[Tensor, " pair"]]:
    """Log-probability of each pair's three answers."""
    targets: dict[str, Int[Tensor, " pair"]] = {"rule": pairs.rule, "import": pairs.imported, "own": pairs.own}
    return {name: log.gather(1, target[:, None])[:, 0] for name, target in targets.items()}


def cell_figures(
    cell: Cell, pairs: Pairs, base_log: Float[Tensor, "pair vocab"], donor_log: Float[Tensor, "pair vocab"], weights: Tensor
) -> dict[str, float]:
    """Every figure of one cell.

    Args:
        cell: its readings.
        pairs: the sequences and answers.
        base_log: dst on B without a patch.
        donor_log: src on A.
        weights: bootstrap resamples [draws, pair].
    """
    figures: dict[str, float] = {}
    treated, base = answer_logs(cell.treated, pairs), answer_logs(base_log, pairs)
    donor_confidence = answer_logs(donor_log, pairs)["import"]
    for name in ANSWERS:
        probs = treated[name].exp()
        low, high = stats.interval(weights @ probs)
        figures |= {f"p_{name}": float(probs.mean()), f"p_{name}_low": float(low), f"p_{name}_high": float(high)}
        figures[f"base_p_{name}"] = float(base[name].exp().mean())
        for control in CONTROLS:
            log = getattr(cell, control)
            if log is not None:
                figures[f"p_{name}_{control}"] = float(answer_logs(log, pairs)[name].exp().mean())
    for name in ("rule", "import"):
        moved, room = treated[name] - base[name], donor_confidence - base[name]
        draws = (weights @ moved) / (weights @ room)
        low, high = stats.interval(draws)
        figures |= {f"shift_{name}": float(moved.mean() / room.mean()), f"shift_{name}_low": float(low), f"shift_{name}_high": float(high)}
        # Breaking dst's own answer alone moves both logs up to the floor: the control says how much of a shift that is.
        broken = answer_logs(cell.random, pairs)[name] - base[name]
        figures[f"shift_{name}_random"] = float(broken.mean() / room.mean())
    figures["kl_to_donor"] = float((donor_log.exp() * (donor_log - cell.treated)).sum(-1).mean())
    figures["base_kl_to_donor"] = float((donor_log.exp() * (donor_log - base_log)).sum(-1).mean())
    figures["self_patch_max_change"] = cell.self_patch_max_change
    figures["change_at_hook"] = cell.change_at_hook
    figures["change_at_logits"] = cell.change_at_logits
    figures["alignment_r2"] = math.nan if cell.alignment_r2 is None else cell.alignment_r2
    return figures | dict(cell.more)


def describe(name: str) -> tuple[str, str]:
    """Units and long name of a figure."""
    fixed = {
        "kl_to_donor": ("nats", "KL(src's prediction on A || patched prediction)"),
        "base_kl_to_donor": ("nats", "the same without a patch"),
        "self_patch_max_change": ("log-probability", "largest change when dst's own activation is put back"),
        "change_at_hook": ("activation", "largest change at the hook"),
        "change_at_logits": ("log-probability", "largest change of the answer's log-probabilities"),
        "alignment_r2": ("R^2", "held-out R^2 of the alignment"),
    } | subspaces.LONG
    if name in fixed:
        return fixed[name]
    if name.startswith("shift_"):
        return "fraction", "(log p patched - log p base) / (log p donor - log p base)" + (
            " (random donor)" if name.endswith("_random") else ""
        )
    stem = name.removeprefix("base_").removesuffix("_low").removesuffix("_high")
    parts = stem.split("_")
    control = CONTROLS.get(parts[-1]) if len(parts) == 3 else "no patch" if name.startswith("base_") else None
    return "probability", LONG[parts[1]] + (f" ({control})" if control else "")


def make_result(
    request: dict[str, Any],
    runs: tuple[Run, Run],
    task: RecurrenceTask,
    horizon: int,
    pairs: Pairs,
    cells: Mapping[tuple[int, int], Cell],
    base_log: Float[Tensor, "pair vocab"],
    donor_log: Float[Tensor, "pair vocab"],
    device: str,
    watch: Stopwatch,
) -> Result:
    """The Result of an interchange; see `single.interchange` for what goes in."""
    src, dst = runs
    layers, indices = list(request["layers"]), list(request["indices"])
    weights = stats.resamples(len(pairs.own), generator(request["seed"], "interchange bootstrap"))
    figures = {place: cell_figures(cell, pairs, base_log, donor_log, weights) for place, cell in cells.items()}
    grid: dict[str, tuple[tuple[str, ...], Any, str, str]] = {}
    for name in next(iter(figures.values())):
        values = np.array([[figures[layer, index][name] for index in indices] for layer in layers])
        grid[name] = (("layer", "index"), values, *describe(name))
    shown = min(EXAMPLES, len(pairs.own))
    grid |= _examples(cells, layers, indices, pairs, shown) | _example_answers(cells, layers, indices, base_log[:shown], donor_log[:shown])
    shared, weight_hashes = shares_initialisation(src, dst), [src.manifest["weight_hash"], dst.manifest["weight_hash"]]
    attrs = {"src": str(src.name), "dst": str(dst.name), "site": request["site"], "align": request["align"]}
    attrs |= {"noise_floor": 1.0 / task.modulus} | ({"subspace": request["subspace"]} if request["subspace"] else {})
    coords = {"layer": layers, "index": indices, "example": list(range(shown)), "token_index": list(range(horizon))}
    coords["answer"] = list(range(base_log.shape[1]))
    data = dataset(coords, grid, **attrs, modulus=task.modulus, read_index=horizon - 1, shared_initialisation=int(shared))
    summary = _summary(figures, attrs, layers, len(pairs.own), shared)
    manifest = provenance(
        config=request | {"src": str(src.name), "dst": str(dst.name), "task": task.config(), "horizon": horizon, "weights": weight_hashes},
        device=device,
        dtype="float32 models, float64 figures",
        watch=watch,
        subject=f"{src.name} to {dst.name} {request['site']}",
        weight_hash={"src": src.manifest["weight_hash"], "dst": dst.manifest["weight_hash"]},
        weight_processing="none",
        shared_initialisation=shared,
        seeds={"pairs": request["seed"]},
    )
    return Result("interchange", data, ("layer", "index"), summary, manifest)


def _examples(
    cells: Mapping[tuple[int, int], Cell], layers: list[int], indices: list[int], pairs: Pairs, shown: int
) -> dict[str, tuple[tuple[str, ...], Any, str, str]]:
    """Of the first pairs their sequences, their three answers, and the probability of each at every cell."""
    grid: dict[str, tuple[tuple[str, ...], Any, str, str]] = {}
    for name in ANSWERS:
        probs = np.array(
            [[answer_logs(cells[layer, index].treated, pairs)[name][:shown].exp().numpy() for index in indices] for layer in layers]
        )
        grid[f"example_p_{name}"] = (("example", "layer", "index"), probs.transpose(2, 0, 1), "probability", LONG[name])
    for name, tokens in (("src", pairs.donor), ("dst", pairs.base)):
        grid[f"example_{name}_token"] = (
            ("example", "token_index"),
            tokens[:shown].numpy().astype("int32"),
            "token",
            f"sequence run in {name}",
        )
    for name, answer in (("rule", pairs.rule), ("import", pairs.imported), ("own", pairs.own)):
        grid[f"example_{name}_answer"] = (
            ("example",),
            answer[:shown].numpy().astype("int32"),
            "token",
            LONG[name].removeprefix("probability of "),
        )
    return grid


def _example_answers(
    cells: Mapping[tuple[int, int], Cell],
    layers: list[int],
    indices: list[int],
    base_log: Float[Tensor, "example vocab"],
    donor_log: Float[Tensor, "example vocab"],
) -> dict[str, tuple[tuple[str, ...], Any, str, str]]:
    """Of the first pairs the whole distribution over answers: before the patch, after it at every cell, and the donor's."""
    after = np.array([[cells[layer, index].treated[: len(base_log)].exp().numpy() for index in indices] for layer in layers])
    said = {"before": base_log.exp().numpy(), "donor": donor_log.exp().numpy()}
    words = {"before": "dst's prediction on B without a patch", "donor": "src's own prediction on A"}
    return {
        "example_after": (
            ("example", "layer", "index", "answer"),
            after.transpose(2, 0, 1, 3).astype("float32"),
            "probability",
            "dst's prediction on B, patched",
        ),
        **{f"example_{name}": (("example", "answer"), probs.astype("float32"), "probability", words[name]) for name, probs in said.items()},
    }


def shares_initialisation(src: Run, dst: Run) -> bool:
    """True if both trainings started from the same parameters: same seed, shape and initialisation."""
    keys = (src.manifest["seed"], src.manifest["shape"], src.manifest["config"]["recipe"]["embedding_std"])
    return bool(keys == (dst.manifest["seed"], dst.manifest["shape"], dst.manifest["config"]["recipe"]["embedding_std"]))


def _summary(
    figures: Mapping[tuple[int, int], dict[str, float]], attrs: Mapping[str, Any], layers: list[int], n_pairs: int, shared: bool
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
        "rule_layer": rule_at[0],
        "rule_index": rule_at[1],
        "import_layer": import_at[0],
        "import_index": import_at[1],
        "subspace": attrs.get("subspace"),
    }
    return summary | {"finding": finding(figures, attrs, rule_at, import_at)}


def _most(figures: Mapping[tuple[int, int], Mapping[str, float]], name: str) -> tuple[int, int]:
    """The first cell at which a figure is as high as anywhere, rounding aside."""
    return list(figures)[foremost([cell[name] for cell in figures.values()]) or 0]


def finding(
    figures: Mapping[tuple[int, int], Mapping[str, float]], attrs: Mapping[str, Any], rule_at: tuple[int, int], import_at: tuple[int, int]
) -> str:
    """One plain sentence: did the rule cross, did the answer?

    An answer crosses when its interval lies above the noise floor, above what it was without a patch, and above the random-donor
    control (in a subspace also above the random span), by more than rounding; by less than `MARGIN` it crosses only slightly (the best of
    many cells is shown, which flatters it).
    """

    def crossing(place: tuple[int, int], name: str) -> str:
        cell = figures[place]
        bars = [cell[f"base_p_{name}"], cell[f"p_{name}_random"], cell.get(f"p_{name}_span", 0.0)]
        bar, bounds = max(attrs["noise_floor"], *bars), (cell[f"p_{name}_low"], cell[f"p_{name}_high"])

        def passes(least: float) -> bool:
            return beyond(cell[f"p_{name}"], least, difference(bounds, least))

        return "clear" if passes(bar + MARGIN) else "slight" if passes(bar) else "none"

    def slot(place: tuple[int, int]) -> str:
        return f"layer {place[0]}, index {place[1]}"

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
    part, beside = "", ""
    if "subspace" in attrs:
        cell = figures[import_at]
        part = f" in the span {attrs['subspace']}"
        beside = (
            f"; {cell['subspace_dims']:.0f} random dimensions there give {cell['p_import_span']:.3f}, "
            f"the whole state {cell['p_import_whole']:.3f}"
        )
    return f"Patching {attrs['src']}'s {aligned}{attrs['site']}{part} into {attrs['dst']} {first} {joined} {second}{beside}."
