"""The exhibit of kind "probe": what a linear reader finds at every layer and index, and what it finds on shuffled labels."""

import math
from typing import Any

import numpy as np

from wallprobe.findings import foremost
from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Frame, Glance, Panel, Table
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result

WORDS = {
    "token": "the next token",
    "a": "the rule's slope a",
    "b": "the rule's offset b",
    "class": "program or noise",
    "entropy": "the entropy of the next token",
}
CELL = 26  # pixels a layer
NOTHING = 0.01  # selectivity below which a cell is grey
SHORT = 12  # indices up to which the cells carry their figures


def exhibit(result: Result) -> Exhibit:
    """Heatmaps over layer and index for each target, then the last layer against its control and the exact answer."""
    run = str(result.data.attrs.get("run") or result.summary.get("run") or "a run")
    otherwise = f"Linear probes of {run}"
    if not charts.has(result, "accuracy", "selectivity") or result.data["accuracy"].dims != ("layer", "index", "target"):
        return Exhibit(headline(result, otherwise), tables(result))
    sections: list[Figure | Table] = [_maps(result, run), _lines(result, run)]
    note = "A probe finds what is there, not what the network uses."
    return Exhibit(headline(result, otherwise), tuple(sections), _glance(result), note)


def targets(result: Result) -> list[str]:
    """The targets probed, in order."""
    return [str(target) for target in result.data["target"].values.tolist()]


def score(result: Result, target: str) -> str:
    """The variable that scores a target: accuracy, or R^2 where there is no accuracy."""
    accuracy = result.data["accuracy"].sel(target=target).values.astype(float)
    return "accuracy" if np.isfinite(accuracy).any() or "r2" not in result.data else "r2"


def _glance(result: Result) -> Glance:
    target = targets(result)[0]
    grid = result.data[score(result, target)].sel(target=target).values.astype(float)
    base = (
        max(0.0, float(np.nan_to_num(result.data["chance"].sel(target=target).values.astype(float)).max()))
        if "chance" in result.data
        else 0.0
    )
    return Glance("cells", tuple(tuple(None if math.isnan(cell) else float(cell) for cell in row) for row in grid), base)


def _wall(result: Result) -> float | None:
    """Last supervised index: position K, counted from the end of a header, is predicted one index earlier."""
    horizon = result.data.attrs.get("horizon")
    return None if horizon is None else float(result.data.attrs.get("start", 0)) + float(horizon) - 1


def _maps(result: Result, run: str) -> Figure:
    """One step a target; three panels: the probe, shuffled labels, their difference, on one scale."""
    names = targets(result)
    frames, told = [], []
    for target in names:
        main = score(result, target)
        shown = {"accuracy" if main == "accuracy" else "R²": main, "shuffled labels": f"control_{main}", "selectivity": "selectivity"}
        panels = [Panel(PLOTLY, _map(result, target, name), label) for label, name in shown.items() if name in result.data]
        frames.append(Frame(tuple(panels), WORDS.get(target, target)))
        grid = result.data[main].sel(target=target).values.astype(float)
        if np.isfinite(grid).any():
            layer, index = np.unravel_index(foremost(grid.ravel().tolist()) or 0, grid.shape)
            at = f"layer {result.data['layer'].values[layer]}, index {result.data['index'].values[index]}"
            told.append(f"{WORDS.get(target, target)}: at most {charts.chance(float(grid[layer, index]))} ({at})")
    title = f"What a linear probe of {run} finds, layer by layer and index by index"
    caption = "Share of test sequences told right, R² for the entropy; selectivity is the probe minus the same probe on shuffled labels. "
    caption += "Index t − 1 predicts position t. Vertical line: the wall, supervised indices left of it. Grey: chance or less."
    height = CELL * result.data.sizes["layer"] + 110
    return Figure(title, tuple(frames), f"Heatmaps by target. {'; '.join(told)}.", caption, stepper="target", height=height)


def _map(result: Result, target: str, name: str) -> Spec:
    data = result.data.sel(target=target)
    cells = data[name].values.astype(float)
    layers, indices = data["layer"].values.tolist(), data["index"].values.tolist()
    floor = 0.0
    if name != "selectivity" and "chance" in data:
        floor = float(np.nan_to_num(data["chance"].values.astype(float)).max())
    heat: Spec = {
        "type": "heatmap",
        "x": indices,
        "y": layers,
        "z": [[None if math.isnan(value) else round(value, 4) for value in row] for row in cells.tolist()],
        "coloraxis": "coloraxis",
        "xgap": 1,
        "ygap": 1,
        "hovertemplate": "layer %{y}, index %{x}: %{z:.3f}<extra></extra>",
    }
    if len(indices) <= SHORT:
        heat |= {"text": [[charts.chance(value) for value in row] for row in cells.tolist()], "texttemplate": "%{text}"}
    ticks = [floor, 0.5, 1.0] if 0 < floor < 0.4 else [0.0, 0.5, 1.0]
    bar = {"tickvals": ticks, "ticktext": [f"{tick:.2g}" for tick in ticks], "thickness": 12}
    colors: Spec = {"colorscale": f"@anchored:{max(floor, NOTHING):.6f}", "cmin": 0, "cmax": 1, "colorbar": bar}
    layout: Spec = {
        "xaxis": charts.axis("index", showgrid=False, zeroline=False, dtick=1 if len(indices) <= 20 else None),
        "yaxis": charts.axis("layer", showgrid=False, zeroline=False, tickvals=layers),
        "coloraxis": colors,
    }
    edge = _wall(result)
    if edge is not None:
        shapes, notes = charts.wall(edge, float(indices[0]))
        layout |= {"shapes": shapes[1:], "annotations": notes}
    return {"data": [heat], "layout": layout}


def _lines(result: Result, run: str) -> Figure:
    """The last layer probed, one step a target: the probe with its interval, shuffled labels, the exact answer."""
    last = result.data.isel(layer=-1)
    indices, layer = last["index"].values.tolist(), last["layer"].item()
    frames = []
    for target in targets(result):
        data, main = last.sel(target=target), score(result, target)
        traces = [*charts.band(data, main, indices, "@series-1"), charts.line(data, main, indices, label="probe", color="@series-1")]
        arms: list[tuple[str, str, str, str]] = [
            ("ceiling", "exact answer", "dash", "square"),
            (f"control_{main}", "shuffled labels", "dot", "x"),
        ]
        for name, label, dash, symbol in arms:
            if name in data and np.isfinite(data[name].values.astype(float)).any():
                traces.append(charts.line(data, name, indices, label=label, color="@series-3", dash=dash, symbol=symbol))
        layout: Spec = {
            "xaxis": charts.axis("index", dtick=1 if len(indices) <= 20 else None, showgrid=False),
            "yaxis": charts.axis("accuracy" if main == "accuracy" else "R²", rangemode="tozero"),
            "hovermode": "x unified",
        }
        edge = _wall(result)
        if edge is not None:
            layout["shapes"], layout["annotations"] = charts.wall(edge, float(indices[0]))
        frames.append(Frame((Panel(PLOTLY, {"data": traces, "layout": layout}),), WORDS.get(target, target)))
    title = f"Layer {layer} against the exact answer and against shuffled labels"
    tested = result.summary.get("n_test")
    count = f"{tested:,} test sequences" if isinstance(tested, int) else "test sequences"
    caption = f"Band: 95 % bootstrap interval over {count}; a and b over the programs among them. The exact answer knows the same prefix."
    return Figure(title, tuple(frames), f"{title}. {_told(last, targets(result))}", caption, stepper="target")


def _told(last: Any, names: list[str]) -> str:
    if "token" not in names:
        return f"Targets: {', '.join(names)}."
    token = charts.values(last["accuracy"].sel(target="token"))
    return f"Accuracy on the next token by index: {', '.join(charts.number(value) for value in token)}."
