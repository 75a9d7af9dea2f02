"""The exhibit of kind "collapse": how a few sequences carry a nudged estimate away, and what tells it beforehand."""

from typing import Any

from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Frame, Glance, Panel, Table, chart
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result


def exhibit(result: Result) -> Exhibit:
    """Cosine and size against the radius, each sequence's credit, the predictors with their gates, and all as a table."""
    data = result.data
    if not charts.has(result, "cos", "k", "norm_ratio", "amp", "lin", "outlier", "cos_kept"):
        return Exhibit(headline(result, "A collapse"), tables(result))
    sections: list[Figure | Table] = [_cosines(result), _sizes(result), _sequences(result), _predictors(result), _table(result)]
    return Exhibit(headline(result, "A collapse"), tuple(sections), Glance("bars", (tuple(charts.values(data["cos"])),), 0.0))


def _across(result: Result) -> tuple[list[float], Spec]:
    radii = [float(r) for r in result.data["radius"].values]
    return radii, charts.axis("radius of the nudge, r", type="log", tickvals=radii, ticktext=[f"{r:g}" for r in radii])


def _cosines(result: Result) -> Figure:
    data = result.data
    x, across = _across(result)
    traces = [
        charts.line(data, "cos", x, label="all sequences", color="@series-1"),
        charts.line(data, "cos_kept", x, label="without outliers", color="@series-3", dash="dash", symbol="square"),
    ]
    layout = {"xaxis": across, "yaxis": charts.axis("cosine to the implicit gradient", range=[-1.08, 1.08]), "hovermode": "x unified"}
    last, kept = (charts.values(data[name])[-1] for name in ("cos", "cos_kept"))
    title = f"At the largest nudge the cosine is {charts.number(last)}; without the outliers {charts.number(kept)}"
    caption = (
        "Over the block's parameters. The state has converged and the implicit gradient is the same at every radius: only the nudge "
        "changes. Outliers are sequences whose credit is above 5 times the median."
    )
    return chart(title, {"data": traces, "layout": layout}, alt=f"Lines of cosine over the radius. {title}.", caption=caption)


def _sizes(result: Result) -> Figure:
    x, across = _across(result)
    trace = charts.line(result.data, "k", x, label="k", color="@series-2", symbol="diamond")
    kind = charts.scale(trace["y"])
    layout = {"xaxis": across, "yaxis": charts.axis("norm over the implicit gradient's, k", **kind), "hovermode": "x unified"}
    last = charts.number(charts.values(result.data["k"])[-1])
    title = f"Its norm ends {last} times the gradient's"
    return chart(title, {"data": [trace], "layout": layout}, alt=f"A line of k over the radius. {title}.", height=280)


def _sequences(result: Result) -> Figure:
    """Norm of each sequence's credit over the exact one's, a frame a radius."""
    data, frames = result.data, []
    for r in data["radius"].values.tolist():
        seen = charts.values(data["norm_ratio"].sel(radius=r))
        drawn: Spec = {
            "type": "scatter",
            "mode": "markers",
            "x": data["sequence"].values.tolist(),
            "y": seen,
            "marker": {"color": "@series-1", "size": 9},
            "hovertemplate": "sequence %{x}: %{y:.4g}<extra></extra>",
        }
        kind = charts.scale([*seen, 1.0])
        layout = {
            "xaxis": charts.axis("sequence of the batch", showgrid=False),
            "yaxis": charts.axis("credit over the exact one", "ratio of norms", **kind),
            "shapes": [charts.rule_line(1.0, "1: as large as it should be")],
        }
        frames.append(Frame((Panel(PLOTLY, {"data": [drawn], "layout": layout}),), f"r = {r:g}"))
    last = [value for value in charts.values(data["norm_ratio"].isel(radius=-1)) if value is not None]
    off = sum(not 0.5 <= value <= 2 for value in last)
    worst = charts.number(max(last)) if last else "nothing"
    title = f"At the largest nudge {off} of {data.sizes['sequence']} sequences are off by more than a factor of 2, the worst by {worst}"
    caption = "Each mark is a sequence of the batch: its credit from the nudge over the implicit one."
    return Figure(title, tuple(frames), f"Points by sequence. {title}.", caption, stepper="radius", first=len(frames) - 1, height=320)


def _predictors(result: Result) -> Figure:
    data = result.data
    x, across = _across(result)
    looks: dict[str, tuple[str, str, str, str]] = {
        "amp": ("amp: the nudge's size", "@series-1", "circle", "solid"),
        "lin": ("lin: off the straight line", "@series-2", "diamond", "dash"),
        "outlier": ("outlier: largest over median", "@series-4", "triangle-up", "dot"),
    }
    traces = [charts.line(data, name, x, label=look[0], color=look[1], symbol=look[2], dash=look[3]) for name, look in looks.items()]
    marks = {"lin_gate": "gate of lin", "outlier_gate": "gate of outlier"}
    gates = [(float(data.attrs[key]), words) for key, words in marks.items() if key in data.attrs]
    layout: dict[str, Any] = {
        "xaxis": across,
        "yaxis": charts.axis("predictor", type="log", dtick=1, exponentformat="power"),
        "shapes": [charts.rule_line(value, f"{words}, {value:g}") for value, words in gates],
        "hovermode": "x unified",
    }
    gated = result.summary.get("gated_at")
    title = f"The gates close at r = {gated:g}" if isinstance(gated, float) else "The gates never close on this range"
    caption = "None of these needs the exact gradient: they can be read in training, before the estimate is used."
    return chart(title, {"data": traces, "layout": layout}, alt=f"Lines of predictors over the radius. {title}.", caption=caption)


def _table(result: Result) -> Table:
    names = ("cos", "k", "cos_kept", "dropped", "amp", "lin", "outlier")
    rows = [[cell["radius"], *(cell[name] for name in names)] for cell in result.values]
    columns = ("r", "cos", "k", "cos without outliers", "outliers", "amp", "lin", "largest over median")
    caption = f"Nudged steps: {result.data.attrs.get('steps', '')}; residual of the free state: {charts.number(result.summary.get('res'))}."
    return Table("Every radius", columns, rows, caption)
