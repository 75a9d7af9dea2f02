"""The exhibits of kinds "gains_models" and "gains_training": gains of several models over depth, and of one over its training."""

import math
from typing import Any

import numpy as np

from wallprobe.findings import foremost
from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Frame, Glance, Panel, Table, chart
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result

CELLS = {
    "mlp_gain": "MLP, all tokens",
    "mlp_gain_no_sink": "MLP, without sinks",
    "attn_gain": "attention, all tokens",
    "attn_gain_no_sink": "attention, without sinks",
}
TICKS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
ROW = 34  # pixels


def models(result: Result) -> Exhibit:
    """A heatmap over models and depth, a step a branch, and the last MLP's gain as a table."""
    title = headline(result, "Gains of several models")
    if not charts.has(result, *CELLS, "final_mlp_gain"):
        return Exhibit(title, tables(result))
    data = result.data
    names = [charts.text(_short(name)) for name in data["model"].values.tolist()]
    caption = (
        f"Definition {result.summary.get('definition')}; layer l of L spans the depth from l/L to (l + 1)/L, so that every layer is there. "
        "Logarithmic colours; grey is 1 or less: the branch contracts."
    )
    at = np.unravel_index(foremost(data["mlp_gain"].values.astype(float).ravel().tolist()) or 0, data["mlp_gain"].shape)
    loudest, layer = (charts.number(data[name].values[at].item()) for name in ("mlp_gain", "layer"))
    clean = charts.number(data["mlp_gain_no_sink"].values[at].item())
    found = f"The loudest of all is {_short(data['model'].values[at[0]])}'s MLP of layer {layer}: {loudest}, without sinks {clean}"
    heat = _heat(result, "depth", names, "fraction of the depth", caption, found, first_above=True)
    columns = ("model", "parameters", "last MLP", "95 % from", "to", "without sinks")
    keys = ("n_params", "final_mlp_gain", "final_mlp_gain_low", "final_mlp_gain_high", "final_mlp_gain_no_sink")
    rows = [
        [str(name), *(_cell(data[key].values[at], whole=key == "n_params") for key in keys)] for at, name in enumerate(data["model"].values)
    ]
    return Exhibit(title, (heat, Table("The last MLP's gain", columns, rows)), _glance(result))


def training(result: Result) -> Exhibit:
    """The last MLP's gain by step, and heatmaps over step and layer."""
    title = headline(result, "Gains over training")
    if not charts.has(result, *CELLS, "final_mlp_gain"):
        return Exhibit(title, tables(result))
    data, steps = result.data, result.data["step"].values.tolist()
    arms = {"final_mlp_gain": ("all tokens", "@series-1", "solid", "circle")}
    if any(
        one != other
        for one, other in zip(charts.values(data["final_mlp_gain"]), charts.values(data["final_mlp_gain_no_sink"]), strict=True)
    ):
        arms["final_mlp_gain_no_sink"] = ("without sinks", "@series-2", "dash", "diamond")
    traces = [part for name, (_, color, _, _) in arms.items() for part in charts.band(data, name, steps, color)]
    traces += [
        charts.line(data, name, steps, label=words, color=color, dash=dash, symbol=mark)
        for name, (words, color, dash, mark) in arms.items()
    ]
    kind = charts.scale(*(charts.values(data[name]) for name in arms))
    layout: Spec = {
        "xaxis": charts.axis("training step", showgrid=False),
        "yaxis": charts.axis("gain of the last MLP", "ratio of norms", **(kind if kind["type"] == "log" else {"rangemode": "tozero"})),
        "shapes": [charts.rule_line(1.0, "1: neither louder nor quieter")],
        "hovermode": "x unified",
    }
    first, last = (charts.number(value) for value in (charts.values(data["final_mlp_gain"])[0], charts.values(data["final_mlp_gain"])[-1]))
    found = f"The last MLP's gain goes from {first} at step {steps[0]:,} to {last} at step {steps[-1]:,}"
    caption = f"Definition {result.summary.get('definition')}. Bands: 95 % bootstrap interval over prompts."
    line = chart(found, {"data": traces, "layout": layout}, alt=f"Lines over training steps. {found}.", caption=caption)
    told = "Rows are steps, first at the bottom. Logarithmic colours; grey is 1 or less: the branch contracts."
    heat = _heat(result, "layer", [f"{step:,}" for step in steps], "layer", told, f"Every layer's gain at {len(steps)} steps")
    return Exhibit(title, (line, heat), _glance(result))


def _heat(result: Result, along: str, rows: list[str], label: str, caption: str, title: str, *, first_above: bool = False) -> Figure:
    """Log gains, one colour scale for all steps, so that they can be told against each other."""
    data = result.data
    seen = [value for name in CELLS for value in data[name].values.ravel().tolist() if math.isfinite(value) and value > 0]
    low, high = min([*seen, 1.0]), max([*seen, 2.0])
    bottom, top = math.log10(low), math.log10(high)
    ticks = [tick for tick in TICKS if low <= tick <= high]
    bar = {
        "tickvals": [math.log10(tick) for tick in ticks],
        "ticktext": [f"{tick:g}" for tick in ticks],
        "title": {"text": "gain"},
        "thickness": 12,
    }
    frames = []
    for name, words in CELLS.items():
        cells = data[name].values.astype(float)
        heat: Spec = {
            "type": "heatmap",
            "x": data[along].values.tolist(),
            "y": rows,
            "z": [[math.log10(value) if math.isfinite(value) and value > 0 else None for value in row] for row in cells.tolist()],
            "customdata": [[charts.number(value) for value in row] for row in cells.tolist()],
            "coloraxis": "coloraxis",
            "hovertemplate": f"%{{y}}, {along} %{{x}}: %{{customdata}}<extra></extra>",
            "ygap": 1,
        }
        layout = {
            "xaxis": charts.axis(label, showgrid=False, zeroline=False, dtick=1 if along == "layer" and data.sizes[along] <= 16 else None),
            "yaxis": {"type": "category", "showgrid": False, "zeroline": False, "automargin": True}
            | ({"autorange": "reversed"} if first_above else {}),
            "coloraxis": {"colorscale": f"@anchored:{-bottom / (top - bottom):.6f}", "cmin": bottom, "cmax": top, "colorbar": bar},
        }
        frames.append(Frame((Panel(PLOTLY, {"data": [heat], "layout": layout}),), words))
    alt = f"Heatmaps of gain, rows {', '.join(rows)}. {title}"
    return Figure(title, tuple(frames), alt, caption, stepper="branch", height=max(220, ROW * len(rows) + 110))


def _glance(result: Result) -> Glance:
    rows = [
        [math.log10(value) if math.isfinite(value) and value > 0 else None for value in row]
        for row in result.data["mlp_gain"].values.tolist()
    ]
    return Glance("cells", tuple(tuple(row) for row in rows), 0.0)


def _short(name: Any) -> str:
    return str(name).rstrip("/").rpartition("/")[2] or str(name)


def _cell(value: float, whole: bool) -> float | int | None:
    return None if not math.isfinite(value) else int(value) if whole else float(value)
