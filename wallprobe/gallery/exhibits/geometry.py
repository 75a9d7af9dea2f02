"""The exhibit of kind "geometry": how near the states behind the wall are to the supervised one, and whose nearness it is."""

import numpy as np

from wallprobe.findings import side
from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Frame, Glance, Panel, Table, chart
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result

# name -> (legend, colour, dash, marker)
ARMS = {
    "cosine_to_supervised": ("same sequence", "@series-1", "solid", "circle"),
    "cosine_program": ("programs only", "@series-1", "dot", "triangle-up"),
    "cosine_noise": ("noise only", "@series-1", "dash", "triangle-down"),
    "cosine_same_class": ("another of its class", "@series-2", "dash", "diamond"),
    "cosine_control": ("another sequence", "@series-3", "dot", "square"),
    "cosine_untrained": ("before training", "@series-4", "dash", "x"),
}
CENTRED = {
    "cosine_centred": ("same sequence", "@series-1", "solid", "circle"),
    "cosine_centred_same_class": ("another of its class", "@series-2", "dash", "diamond"),
    "cosine_centred_control": ("another sequence", "@series-3", "dot", "square"),
}
PAIRWISE = {
    "mean_pairwise_cosine": ("one sequence", "@series-1", "solid", "circle"),
    "pairwise_control": ("between two sequences", "@series-3", "dot", "square"),
    "pairwise_centred": ("one sequence, mean taken away", "@series-2", "dash", "diamond"),
    "pairwise_untrained": ("before training", "@series-4", "dash", "x"),
}


def exhibit(result: Result) -> Exhibit:
    """The cosine by layer beside its controls, the map over layer and index, and clustering by layer."""
    run = result.data.attrs.get("run", result.manifest.get("subject", "a run"))
    otherwise = f"Geometry of {run}"
    if not charts.has(result, "cosine_to_supervised") or result.data["cosine_to_supervised"].dims != ("layer", "index"):
        return Exhibit(headline(result, otherwise), tables(result))
    sections: list[Figure | Table] = [_by_layer(result), _map(result)]
    if charts.has(result, "cosine_centred"):
        sections.append(_centred(result))
    if charts.has(result, "mean_pairwise_cosine"):
        sections.append(_pairwise(result))
    grid = result.data["cosine_to_supervised"].values.astype(float)
    rows = tuple(tuple(None if np.isnan(cell) else float(cell) for cell in row) for row in grid)
    return Exhibit(headline(result, otherwise), tuple(sections), Glance("cells", rows, 0.0))


def _unsupervised(result: Result, arms: dict[str, tuple[str, str, str, str]]) -> list[Spec]:
    """Mean over unsupervised indices by layer, a line an arm."""
    data, horizon = result.data, float(result.data.attrs.get("horizon", 0))
    beyond = data.sel(index=data["index"] >= horizon)
    made = beyond[[name for name in arms if name in data]].mean("index")
    layers = data["layer"].values.tolist()
    return [
        charts.line(made, name, layers, label=label, color=color, dash=dash, symbol=symbol)
        for name, (label, color, dash, symbol) in arms.items()
        if name in made
    ]


def _layout() -> Spec:
    return {
        "xaxis": charts.axis("layer", dtick=1, showgrid=False),
        "yaxis": charts.axis("mean cosine", zeroline=True),
        "hovermode": "x unified",
    }


def _by_layer(result: Result) -> Figure:
    own, other, first = (
        charts.chance(result.summary.get(f"cosine_{key}")) for key in ("last_layer", "same_class_last_layer", "first_layer")
    )
    title = f"The cosine goes from {first} to {own} with depth; another sequence of the same class has {other}"
    caption = (
        "Cosine of states at unsupervised indices with the state at the last supervised one, mean over these indices. What another "
        "sequence's state has too is not about this sequence."
    )
    spec = {"data": _unsupervised(result, ARMS), "layout": _layout()}
    return chart(title, spec, alt=f"Lines of mean cosine by layer. {title}.", caption=caption, height=420)


def _map(result: Result) -> Figure:
    """Heatmaps over layer and index, a step an arm."""
    data = result.data
    frames = tuple(
        Frame((Panel(PLOTLY, _heat(result, name)),), label) for name, (label, *_) in ARMS.items() if name in data and data[name].ndim == 2
    )
    horizon = data.attrs.get("horizon")
    title = "The cosine of each index and layer with the last supervised index"
    mark = f" The wall stands right of index {int(horizon) - 1}, which has 1 with itself." if horizon is not None else ""
    alt = f"Heatmap, layer by index. {title}."
    return Figure(title, frames, alt, f"Mean over sequences.{mark}", stepper="cosine", height=max(260, 36 * data.sizes["layer"] + 120))


def _heat(result: Result, name: str) -> Spec:
    data, horizon = result.data, result.data.attrs.get("horizon")
    cells = data[name].values.astype(float)
    heat = {
        "type": "heatmap",
        "x": data["index"].values.tolist(),
        "y": data["layer"].values.tolist(),
        "z": [[None if np.isnan(value) else round(value, 4) for value in row] for row in cells.tolist()],
        "colorscale": "@ramp",
        "zmin": 0,
        "zmax": 1,
        "xgap": 2,
        "ygap": 2,
        "colorbar": {"title": {"text": "cosine"}, "thickness": 12},
        "hovertemplate": "layer %{y}, index %{x}: %{z:.3f}<extra></extra>",
    }
    layout: Spec = {"xaxis": charts.axis("index", dtick=1, showgrid=False), "yaxis": charts.axis("layer", dtick=1, showgrid=False)}
    if horizon is not None:
        edge = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": {"color": "@ink", "width": 1.5}}
        layout["shapes"] = [edge | {"x0": float(horizon) - 0.5, "x1": float(horizon) - 0.5}]
    return {"data": [heat], "layout": layout}


def _centred(result: Result) -> Figure:
    own, other = (charts.chance(result.summary.get(f"cosine_centred{key}_last_layer")) for key in ("", "_same_class"))
    title = f"With the mean state taken away: {own} at the last layer, {other} for another sequence of the same class"
    caption = (
        "The mean over sequences at each index and layer is subtracted first. Where the two upper lines meet, what is left is the class."
    )
    spec = {"data": _unsupervised(result, CENTRED), "layout": _layout()}
    return chart(title, spec, alt=f"Lines of mean cosine by layer. {title}.", caption=caption, height=340)


def clustering(result: Result) -> str:
    """What the rise of the mean pairwise cosine from the first to the last layer says, held to its interval."""
    keys = [f"pairwise_{key}" for key in ("cosine_last_layer", "cosine_first_layer", "rises_with_depth_low", "rises_with_depth_high")]
    last, first, low, high = (float("nan") if (value := result.summary.get(key)) is None else float(value) for key in keys)
    words = {"above": "States cluster with depth", "below": "States spread with depth"}
    return words.get(side(last, first, (low, high)), "States cluster no more with depth, beyond the interval")


def _pairwise(result: Result) -> Figure:
    data, layers = result.data, result.data["layer"].values.tolist()
    shown = {name: arm for name, arm in PAIRWISE.items() if name in data}
    traces = [part for name, (_, color, _, _) in shown.items() for part in charts.band(data, name, layers, color)]
    traces += [
        charts.line(data, name, layers, label=label, color=color, dash=dash, symbol=symbol)
        for name, (label, color, dash, symbol) in shown.items()
    ]
    first, last, before = (
        charts.chance(result.summary.get(f"pairwise_{key}_layer")) for key in ("cosine_first", "cosine_last", "untrained_last")
    )
    title = f"{clustering(result)}: mean pairwise cosine from {first} to {last} ({before} before training)"
    caption = "Mean over all pairs of indices. Band: 95 % bootstrap interval over sequences."
    return chart(title, {"data": traces, "layout": _layout()}, alt=f"Lines by layer. {title}.", caption=caption, height=380)
