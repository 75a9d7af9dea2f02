"""The exhibit of kind "triangulate": does an estimate point the way of the gradient, how large is it, does it agree with itself?"""

import math
from typing import Any

import numpy as np

from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import Exhibit, Figure, Glance, Table, chart
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result

LOOKS = (
    ("@series-1", "circle", "solid"),
    ("@series-2", "diamond", "dash"),
    ("@series-3", "square", "dot"),
    ("@series-4", "triangle-up", "dashdot"),
    ("@muted", "cross", "longdash"),
    ("@ink", "x", "solid"),
)
MORE = ("k", "projection", "self_cos", "snr", "norm", "nudge_res", "amp", "lin", "outlier", "seconds")
HEADS = {"projection": "k cos", "self_cos": "self-cosine", "nudge_res": "nudge res", "seconds": "s a batch"}


def exhibit(result: Result) -> Exhibit:
    """The published table's row for each checkpoint, cosines with their range, cosine against size, self-cosines, cosines by group."""
    data = result.data
    if not charts.has(result, "cos", "k", "self_cos", "batch_cos") or data["cos"].dims != ("ckpt", "estimator"):
        return Exhibit(headline(result, f"Triangulation of {result.manifest.get('subject', 'a model')}"), tables(result))
    sections: list[Figure | Table] = [_rows(result), _cosines(result), _bias(result), _self(result)]
    if charts.has(result, "group_cos"):
        sections.append(_groups(result))
    sections.append(_all(result))
    shown = data["cos"].sel(estimator=data.attrs["tested"])
    seen = charts.values(shown) if data.sizes["ckpt"] > 1 else charts.values(data["cos"].isel(ckpt=0))
    return Exhibit(headline(result, "A triangulation"), tuple(sections), Glance("bars", (tuple(seen),), 0.0))


def names(result: Result) -> list[str]:
    """Estimators other than the reference, as the Result has them."""
    return [str(name) for name in result.data["estimator"].values if name != result.data.attrs["reference"]]


def look(result: Result, name: str) -> tuple[str, str, str]:
    """Colour, symbol and dash of an estimator, the same in every figure."""
    place = [str(other) for other in result.data["estimator"].values].index(name)
    return LOOKS[place % len(LOOKS)]


def _rows(result: Result) -> Table:
    data = result.data
    tested, reference, ceiling = (str(data.attrs[role]) for role in ("tested", "reference", "ceiling"))
    columns = ["ckpt", "val", *(["res"] if "res" in data else []), f"{tested}·{reference}"]
    columns += [f"{reference}·{ceiling}"] if ceiling else []
    columns += ["k", f"{tested} self", f"{reference} self"]
    rows: list[list[Any]] = []
    for name in data["ckpt"].values.tolist():
        at = data.sel(ckpt=name)

        def cell(key: str, estimator: str, at: Any = at) -> float | None:
            return charts.values(at[key].sel(estimator=[estimator]))[0]

        row: list[Any] = [name, charts.values(at["val"].expand_dims("one"))[0], *([cell("res", tested)] if "res" in data else [])]
        row += [cell("cos", tested), *([cell("cos", ceiling)] if ceiling else []), cell("k", tested)]
        rows.append([*row, cell("self_cos", tested), cell("self_cos", reference)])
    caption = (
        f"Over the {data.attrs['scope']} parameters; medians over {data.sizes['batch']} batches. {reference}·{ceiling or 'ceiling'} says "
        "how well the reference itself is known: no cosine to it means more than that."
    )
    return Table("A row for each checkpoint", tuple(columns), rows, caption)


def _cosines(result: Result) -> Figure:
    data, several = result.data, result.data.sizes["ckpt"] > 1
    reference, tested = str(data.attrs["reference"]), str(data.attrs["tested"])
    traces = []
    for name in names(result):
        color, symbol, dash = look(result, name)
        at = data.sel(estimator=name)
        trace = charts.line(
            at, "cos", [charts.text(ckpt) for ckpt in data["ckpt"].values], label=name, color=color, dash=dash, symbol=symbol
        )
        trace["mode"] = "lines+markers" if several else "markers"
        trace["marker"]["size"] = 8 if several else 12
        traces.append(trace | charts.error_bars(at, "cos"))
    layout = {
        "xaxis": charts.axis("checkpoint" if several else "", type="category", showgrid=False),
        "yaxis": charts.axis(f"cosine to {reference}", range=[-1.08, 1.08]),
        "shapes": [charts.rule_line(0.0, "0: no direction in common")],
    }
    seen = [value for value in charts.values(data["cos"].sel(estimator=tested)) if value is not None]
    told = f"{tested} is at {charts.number(seen[-1])} to {reference}" if seen else f"{tested} gives no cosine"
    title = f"{told}{' at the last checkpoint' if several and seen else ''}"
    caption = "Median over batches; whiskers: least and largest batch."
    return chart(title, {"data": traces, "layout": layout}, alt=f"Cosines to {reference} by checkpoint. {title}.", caption=caption)


def _bias(result: Result) -> Figure:
    """Every batch as a point: cosine across, size up, beside the curve of an unbiased estimator with noise."""
    data = result.data
    traces: list[Spec] = []
    for name in names(result):
        color, symbol, _ = look(result, name)
        at = data.sel(estimator=name)
        if "reason" in data:
            at = at.where(at["reason"] == "")  # what did not converge has a size that says nothing
        x, y = (charts.values(at[key].stack(all=("ckpt", "batch"))) for key in ("batch_cos", "batch_k"))
        words = [charts.text(f"{name}, {ckpt}, batch {batch}") for ckpt in data["ckpt"].values for batch in data["batch"].values]
        mark = {"color": f"{color}-soft", "size": 10, "symbol": symbol, "line": {"color": color, "width": 2}}
        drawn = {"type": "scatter", "mode": "markers", "name": charts.text(name), "x": x, "y": y, "text": words, "marker": mark}
        traces.append(drawn | {"hovertemplate": "%{text}: cos %{x:.4f}, k %{y:.4g}<extra></extra>"})
    sizes = [value for trace in traces for value in trace["y"] if value]
    top = max([1.0, *sizes]) * 2
    curve = [float(value) for value in np.geomspace(1 / top, 1, 60)]
    noise = {"type": "scatter", "mode": "lines", "name": "unbiased with noise: k cos = 1", "x": curve, "y": [1 / value for value in curve]}
    traces.insert(0, noise | {"line": {"color": "@muted", "width": 1.5, "dash": "dot"}, "hoverinfo": "skip"})
    layout = {
        "xaxis": charts.axis("cosine to the reference", range=[-1.08, 1.08]),
        "yaxis": charts.axis("norm over the reference's, k", type="log", nticks=8, exponentformat="power"),
    }
    tested = str(data.attrs["tested"])
    left = [value for value in charts.values(data["projection"].sel(estimator=tested)) if value is not None]
    title = f"{tested} keeps {charts.number(left[-1])} of the reference in it (k cos)" if left else f"{tested} has no size"
    caption = (
        "Every mark is a batch. On the dotted curve an estimate is the gradient plus noise at right angles to it: averaging helps. Above "
        "it and to the left the gradient is not in it; below, it is only short."
    )
    return chart(title, {"data": traces, "layout": layout}, alt=f"Scatter of size against cosine. {title}.", caption=caption, height=420)


def _self(result: Result) -> Figure:
    data = result.data
    labels = [charts.text(name) for name in data["ckpt"].values]
    traces: list[Spec] = []
    for name in data["estimator"].values.tolist():
        color, symbol, dash = look(result, name)
        trace = charts.line(data.sel(estimator=name), "self_cos", labels, label=name, color=color, dash=dash, symbol=symbol)
        traces.append(trace if data.sizes["ckpt"] > 1 else trace | {"mode": "markers", "marker": trace["marker"] | {"size": 12}})
    layout = {
        "xaxis": charts.axis("checkpoint" if data.sizes["ckpt"] > 1 else "", type="category", showgrid=False),
        "yaxis": charts.axis("cosine between batches", range=[-1.08, 1.08]),
        "shapes": [charts.rule_line(0.0, "0: nothing in common")],
    }
    tested, reference = (str(data.attrs[role]) for role in ("tested", "reference"))
    last = [charts.values(data["self_cos"].sel(estimator=[name]).isel(ckpt=-1))[0] for name in (tested, reference)]
    title = f"Between batches {tested} agrees with itself by {charts.number(last[0])}, {reference} by {charts.number(last[1])}"
    caption = (
        "Mean cosine over pairs of batches of one estimator. Where the reference itself agrees little, the batches are small for the loss."
    )
    return chart(title, {"data": traces, "layout": layout}, alt=f"Self-cosines. {title}.", caption=caption, height=300)


def _groups(result: Result) -> Table:
    data = result.data
    groups = [str(group) for group in data["group"].values]
    rows: list[list[Any]] = []
    for ckpt in data["ckpt"].values.tolist():
        for name in names(result):
            cells = charts.values(data["group_cos"].sel(ckpt=ckpt, estimator=name))
            rows.append([ckpt, name, *(None if cell is None else round(cell, 4) for cell in cells)])
    caption = "The unembedding's gradient does not pass through a block; of estimators that read the logits it is exact."
    return Table(f"Cosine to {data.attrs['reference']} by group of parameters", ("ckpt", "estimator", *groups), rows, caption)


def _all(result: Result) -> Table:
    shown = [name for name in MORE if name in result.data]
    rows = []
    for cell in result.values:
        why = cell.get("reason") or ""
        rows.append([cell["ckpt"], cell["estimator"], *(_short(cell[name]) for name in shown), why])
    columns = ("ckpt", "estimator", *(HEADS.get(name, name) for name in shown), "but")
    batches = result.data.sizes["batch"]
    floor = f" Independent noise has snr {1 / (batches - 1):.3g} on {batches} batches." if batches > 1 else ""
    caption = f"k: norm over the reference's. snr: squared mean over the mean squared distance from it.{floor}"
    if not any(row[-1] for row in rows):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return Table("Every estimator", columns, rows, caption)


def _short(value: Any) -> float | None:
    return float(f"{value:.4g}") if isinstance(value, float) and math.isfinite(value) else None
