"""The exhibit of kind "scaling": the models, the line through them with its band for a new model, and the fit without each of them."""

import math
from collections.abc import Mapping
from typing import Any

from wallprobe.findings import side
from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import Exhibit, Figure, Glance, Table, chart
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result

FITS = ("label", "alpha", "alpha_se", "r2", "p", "low", "high")
SIZES = {
    "n_params": "parameters",
    "n_params_non_embedding": "parameters without embeddings",
    "d_model": "width of the stream",
    "n_layers": "layers",
}
FIT_COLUMNS = ("size", "alpha", "standard error", "R²", "p", "95 % from", "to")


def exhibit(result: Result) -> Exhibit:
    """The law with its band, leave-one-out slopes, the fits as tables, and the extrapolations."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for record in result.values:
        parts.setdefault(str(record.get("part")), []).append(record)
    if not parts.get("model") or not parts.get("extrapolation"):
        return Exhibit(headline(result, "A scaling law"), tables(result))
    sections: list[Figure | Table] = [_law(result, parts)]
    if parts.get("without"):
        sections.append(_without(result, parts["without"]))
    rows = [[SIZES.get(str(record["label"]), record["label"]), *(record[name] for name in FITS[1:])] for record in parts.get("fit", [])]
    sections.append(
        Table("The same fit on other measures of size", FIT_COLUMNS, rows, "Ordinary least squares in log10; interval: Student's t.")
    )
    columns = ("parameters", "formula", "95 % from", "to", "anchored at the largest model", "published")
    names = ("label", "formula", "low", "high", "anchored", "seed_says")
    rows = [[record[name] for name in names] for record in parts["extrapolation"]]
    sections.append(Table("Extrapolated gain", columns, rows, "The interval is of one new model, not of the line."))
    if any(record.get("quality") is not None for record in parts["model"]):
        sections.append(_efficiency(result, parts["model"]))
    gains = [math.log10(record["gain"]) for record in parts["model"] if record["gain"]]
    return Exhibit(headline(result, "A scaling law"), tuple(sections), Glance("bars", (tuple(gains),), 0.0))


def _short(record: Mapping[str, Any]) -> str:
    """A model's name without organisation or folders, as there is room for beside a point."""
    return charts.text(str(record["label"]).rstrip("/").rpartition("/")[2].removeprefix("pythia-"))


def _law(result: Result, parts: dict[str, list[dict[str, Any]]]) -> Figure:
    models, ahead = parts["model"], sorted(parts["extrapolation"], key=lambda record: float(record["x"]))
    largest = max(record["x"] for record in models)
    line = sorted([*models, *ahead], key=lambda record: float(record["x"]))
    points = {
        "type": "scatter",
        "mode": "markers+text",
        "name": "measured",
        "x": [record["x"] for record in models],
        "y": [record["gain"] for record in models],
        "text": [_short(record) for record in models],
        "textposition": ["top center" if place % 2 else "bottom center" for place in range(len(models))],
        "marker": {"color": "@series-2", "size": 9},
        "hovertemplate": "%{text}: %{y:.3g} at %{x:.3g}<extra></extra>",
    }
    edge = {"type": "scatter", "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    x = [record["x"] for record in line]
    band = [
        edge | {"x": x, "y": [record["low"] for record in line]},
        edge
        | {"x": x, "y": [record["high"] for record in line], "fill": "tonexty", "fillcolor": "@series-1-soft", "showlegend": True}
        | {"name": "95 % of a new model"},
    ]
    fitted = {
        "type": "scatter",
        "mode": "lines",
        "name": "fitted",
        "x": [record["x"] for record in line],
        "y": [record["formula"] for record in line],
        "line": {"color": "@series-1", "width": 2},
    }
    told = [record for record in ahead if record["seed_says"] is not None and record["x"] > largest]
    said = {
        "type": "scatter",
        "mode": "markers",
        "name": "published extrapolation",
        "x": [record["x"] for record in told],
        "y": [record["seed_says"] for record in told],
        "marker": {"color": "@ink", "size": 9, "symbol": "x"},
    }
    layout: Spec = {
        "xaxis": charts.axis("parameters", type="log", dtick=1, showgrid=False),
        "yaxis": charts.axis("gain of the last MLP", type="log", dtick=1),
        "shapes": [
            {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": largest, "x1": largest}
            | {"line": {"color": "@ink", "width": 1.2, "dash": "dot"}, "name": "largest model measured", "showlegend": True}
        ],
    }
    summary = result.summary
    title = f"{growth(summary)} {summary['alpha']:.3f} ± {summary['alpha_se']:.3f}, over {summary['n_models']} models"
    caption = f"Both axes logarithmic. R² {summary['r2']:.2f}, p {summary['p']:.3g}. Right of the dotted line nothing was measured."
    spec = {"data": [*band, fitted, points, *([said] if told else [])], "layout": layout}
    return chart(title, spec, alt=f"Points of gain against parameters with a line and a band. {title}.", caption=caption, height=420)


def growth(summary: Mapping[str, Any]) -> str:
    """Whether gain grows or falls with size, if the exponent's interval lies on one side of 0."""
    low, high = (math.nan if (value := summary.get(key)) is None else float(value) for key in ("ci_low", "ci_high"))
    told = side(float(summary["alpha"]), 0.0, (low, high))
    words = {"above": "Gain grows as parameters to the", "below": "Gain falls as parameters to the"}
    return words.get(told, "Whether gain grows with parameters cannot be told: exponent")


def _efficiency(result: Result, records: list[dict[str, Any]]) -> Figure:
    """Nats per unit of gain by size, with the critical size and its interval where there is one."""
    summary = result.summary
    points = {
        "type": "scatter",
        "mode": "markers+text",
        "x": [record["x"] for record in records],
        "y": [record["eta"] for record in records],
        "text": [_short(record) for record in records],
        "textposition": ["top center" if place % 2 else "bottom center" for place in range(len(records))],
        "marker": {"color": "@series-2", "size": 9},
        "hovertemplate": "%{text}: %{y:.3g} at %{x:.3g}<extra></extra>",
        "showlegend": False,
    }
    layout: Spec = {
        "xaxis": charts.axis("parameters", type="log", dtick=1, showgrid=False),
        "yaxis": charts.axis("eta", "nats per unit of gain", rangemode="tozero"),
    }
    at, reason = summary.get("n_star"), summary.get("n_star_reason")
    if reason is None and at is not None:
        low, high = summary["n_star_low"], summary["n_star_high"]
        whole = {"yref": "paper", "y0": 0, "y1": 1}
        layout["shapes"] = [
            {"type": "rect", "x0": low, "x1": high, "line": {"width": 0}, "fillcolor": "@series-1-soft", "layer": "below"} | whole,
            {"type": "line", "x0": at, "x1": at, "line": {"color": "@series-1", "width": 1.5, "dash": "dot"}} | whole,
        ]
        title = f"A unit of gain buys most at {at:.2g} parameters (95 % {low:.2g} to {high:.2g})"
    else:
        title = "No critical size: eta over these models"
    told = f"No N*: {reason}." if reason else "Dotted: N*, its band the bootstrap over models."
    caption = f"ln V - loss over the gain of the last MLP. {told}"
    listed = ", ".join(f"{record['label']} {charts.number(record['eta'])}" for record in records)
    return chart(title, {"data": [points], "layout": layout}, alt=f"{title}. {listed}.", caption=caption, height=340)


def _without(result: Result, records: list[dict[str, Any]]) -> Figure:
    """Slope and p of the fit without each model."""
    half = [(record["high"] - record["low"]) / 2 for record in records]
    colors = ["@series-2" if record["p"] >= 0.05 else "@series-1" for record in records]
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": [_short(record) for record in records],
        "y": [record["alpha"] for record in records],
        "customdata": [record["p"] for record in records],
        "error_y": {"type": "data", "array": half, "thickness": 1.2, "width": 3, "color": "@ink"},
        "marker": {"color": colors, "size": 9},
        "hovertemplate": "without %{x}: %{y:.3f}, p %{customdata:.3f}<extra></extra>",
        "showlegend": False,
    }
    lost = sum(record["p"] >= 0.05 for record in records)
    span = f"{result.summary['loo_alpha_low']:.3f} to {result.summary['loo_alpha_high']:.3f}"
    title = f"Without one model the exponent is {span}; p exceeds 0.05 for {lost}"
    layout: Spec = {
        "xaxis": charts.axis("model left out", showgrid=False, type="category"),
        "yaxis": charts.axis("exponent", rangemode="tozero"),
        "shapes": [charts.rule_line(result.summary["alpha"], "all models")],
    }
    caption = "Whiskers: 95 % t interval. Orange: p at or above 0.05."
    listed = ", ".join(f"{record['label']} {record['alpha']:.3f} (p {record['p']:.3f})" for record in records)
    return chart(title, {"data": [points], "layout": layout}, alt=f"{title}. {listed}.", caption=caption, height=300)
