"""Exhibits of equilibrium trainings: kinds "equilibrium" (one), "matched", "gate" and "grid"."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import Exhibit, Figure, Glance, Table, chart
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.gallery.exhibits.triangulate import LOOKS
from wallprobe.store.results import Result

MATCHED = {
    "best_val": "best val",
    "best_step": "@step",
    "final_val": "final val",
    "res": "res",
    "lam": "λ",
    "skips": "skips",
    "excursions": "excursions",
    "status": "status",
    "plateau": "plateau",
}
GAPS = {"architecture_gap": "architecture: BPTT with the controller − BP", "rule_gap": "rule: EP − BPTT with the controller"}
GATE = {
    "what": "begins with",
    "skip_share": "skipped",
    "first_valid": "first valid step",
    "res_0": "res @0",
    "res_20": "res @20",
    "res_60": "res @60",
    "cos_first_valid": "cos at first valid",
    "best_val": "best val",
    "best_step": "@step",
    "final_val": "final val",
    "excursions": "excursions",
    "status": "status",
}
GRID = {
    "floor": "floor",
    "target": "target",
    "jr_max": "jr_max",
    "best_val": "best val",
    "delta": "Δ from the start",
    "res": "res",
    "lam_end": "λ at the end",
    "at_most_share": "at its most",
    "skips": "skips",
    "status": "status",
}


def training(result: Result) -> Exhibit:
    """Validation loss, residual and λ of one training."""
    data = result.data
    if not charts.has(result, "step", "val", "res", "lam"):
        return Exhibit(headline(result, "An equilibrium training"), tables(result))
    steps = charts.values(data["step"])
    label = str(result.summary.get("run", "run"))
    sections: list[Figure | Table] = [_curve([(label, steps, charts.values(data["val"]))], "validation cross-entropy", "nats")]
    if charts.has(result, "step_res", "step_lam"):
        every = list(range(data.sizes["step_index"]))
        sections += [
            _curve([(label, every, charts.values(data["step_res"]))], "residual of the free phase", "relative step", log=True),
            _curve([(label, every, charts.values(data["step_lam"]))], "weight of the contraction penalty, λ", "", log=True),
        ]
    return Exhibit(headline(result, "An equilibrium training"), tuple(sections), Glance("line", (tuple(charts.values(data["val"])),)))


def matched(result: Result) -> Exhibit:
    """The arms' curves, the two gaps, and the rows."""
    if not charts.has(result, "best_val", "status"):
        return Exhibit(headline(result, "Matched arms"), tables(result))
    summary = result.summary
    rows = []
    for key, words in GAPS.items():
        reason = summary.get(f"{key}_reason")
        rows.append([words, f"n/a ({reason})" if reason else charts.number(summary.get(key))])
    gaps = Table("The two gaps, nats", ("gap", "difference of best val"), rows, "An arm that did not end well makes no gap.")
    sections: tuple[Figure | Table, ...] = (
        *_arms(result),
        gaps,
        _rows(result, "The arms", "arm", MATCHED, "val: validation cross-entropy in nats."),
    )
    return Exhibit(headline(result, "Matched arms"), sections, _glance(result, "best_val"))


def gate(result: Result) -> Exhibit:
    """The arms' curves with their residuals against the gate, and the rows at matched steps."""
    if not charts.has(result, "skip_share", "first_valid"):
        return Exhibit(headline(result, "A gate study"), tables(result))
    caption = "Skipped: share of steps whose task gradient the gate left out. An arm without a valid step has none. val: at matched steps."
    sections: tuple[Figure | Table, ...] = (*_arms(result), _rows(result, "The arms", "arm", GATE, caption))
    return Exhibit(headline(result, "A gate study"), sections, _glance(result, "skip_share"))


def grid(result: Result) -> Exhibit:
    """Every setting's change with the spread of its seeds, beside the noise of the seeds."""
    data = result.data
    if not charts.has(result, "best_val", "best_val_low", "best_val_high", "delta"):
        return Exhibit(headline(result, "A grid of controllers"), tables(result))
    names = [charts.text(name) for name in data["setting"].values]
    low, middle, high = (np.asarray(data[f"best_val{end}"].values, dtype=float) for end in ("_low", "", "_high"))
    bars = {"type": "data", "symmetric": False, "array": (high - middle).tolist(), "arrayminus": (middle - low).tolist(), "color": "@ink"}
    drawn: Spec = {
        "type": "scatter",
        "mode": "markers",
        "x": names,
        "y": charts.values(data["best_val"]),
        "error_y": bars | {"thickness": 1.2, "width": 3},
        "marker": {"color": "@series-1", "size": 9},
        "name": "best val",
    }
    start, noise = result.summary.get("start_val"), result.summary.get("noise_sd")
    shapes = [charts.rule_line(float(start), f"the start, {charts.number(start)}")] if isinstance(start, float) else []
    layout = {
        "xaxis": charts.axis("floor / target / jr_max", type="category", showgrid=False),
        "yaxis": charts.axis("best validation cross-entropy", "nats"),
        "shapes": shapes,
    }
    title = f"Settings spread over {charts.number(result.summary.get('spread'))} nats, seeds of one setting by {charts.number(noise)}"
    caption = "Marks: mean over seeds; whiskers: least and largest seed. A difference within the whiskers is no effect."
    figure = chart(title, {"data": [drawn], "layout": layout}, alt=f"Points by setting. {title}.", caption=caption)
    sections = (figure, _rows(result, "The settings", "setting", GRID, "Each goes on from one trained state, its optimiser restored."))
    return Exhibit(headline(result, "A grid of controllers"), sections, Glance("bars", (tuple(charts.values(-data["delta"])),), 0.0))


def _glance(result: Result, name: str) -> Glance:
    return Glance("bars", (tuple(charts.values(result.data[name])),), 0.0)


def _arms(result: Result) -> tuple[Figure, ...]:
    """Curves of all arms: validation loss; residual and λ where there are any."""
    data = result.data
    made: list[Figure] = []
    arms = [str(arm) for arm in data["arm"].values]
    if charts.has(result, "log_step", "log_val"):
        lines = [(arm, charts.values(data["log_step"].sel(arm=arm)), charts.values(data["log_val"].sel(arm=arm))) for arm in arms]
        made.append(_curve(lines, "validation cross-entropy", "nats"))
    fixed = {arm for arm in arms if "step_res" in data and any(charts.values(data["step_res"].sel(arm=arm)))}
    every_step = {"step_res": ("residual of the free phase", "relative step"), "step_lam": ("weight of the contraction penalty, λ", "")}
    for name, (words, unit) in every_step.items():
        if name in data:
            every = list(range(data.sizes["step"]))
            steps = [(arm, every, charts.values(data[name].sel(arm=arm))) for arm in arms]
            made.append(_curve([line for line in steps if line[0] in fixed], words, unit, log=True))
    return tuple(made)


# On an axis, where a chart is low.
SHORT = {"residual of the free phase": "residual", "weight of the contraction penalty, λ": "λ"}


def _curve(lines: Sequence[tuple[str, Sequence[Any], Sequence[float | None]]], words: str, unit: str, *, log: bool = False) -> Figure:
    traces: list[Spec] = []
    for place, (name, x, y) in enumerate(lines):
        color, _, dash = LOOKS[place % len(LOOKS)]
        drawn = {"type": "scatter", "mode": "lines", "name": charts.text(name), "x": list(x)}
        shown = [None if log and value is not None and value <= 0 else value for value in y]
        traces.append(drawn | {"y": shown, "line": {"color": color, "width": 2, "dash": dash}})
    kind = {"type": "log", "dtick": 1, "exponentformat": "power"} if log else {}
    layout = {
        "xaxis": charts.axis("step", showgrid=False),
        "yaxis": charts.axis(SHORT.get(words, words), unit, **kind),
        "hovermode": "x unified",
    }
    ends = [f"{name} {charts.number(seen[-1])}" for name, _, y in lines if (seen := [value for value in y if value is not None])]
    title = f"{words[:1].upper()}{words[1:]} at the end: {', '.join(ends) or 'none'}"
    return chart(title, {"data": traces, "layout": layout}, alt=f"Lines over steps. {title}.", height=300)


def _rows(result: Result, title: str, dim: str, columns: dict[str, str], caption: str) -> Table:
    shown = {name: head for name, head in columns.items() if name in result.data}
    rows = [[cell[dim], *(_cell(name, cell[name]) for name in shown)] for cell in result.values]
    return Table(title, (dim, *shown.values()), rows, caption)


def _cell(name: str, value: Any) -> Any:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "never" if name == "first_valid" else None
    return int(value) if isinstance(value, float) and name in ("best_step", "first_valid", "skips", "excursions") else value
