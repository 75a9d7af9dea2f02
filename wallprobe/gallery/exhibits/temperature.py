"""The exhibit of kind "temperature": KL from the exact answer over softmax temperatures, and what the best one leaves."""

import numpy as np

from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import Exhibit, Figure, Glance, Table, chart
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result


def exhibit(result: Result) -> Exhibit:
    """The sweep on both sides of the wall, then KL by position at T = 1, at the best T and for a uniform guess."""
    run = result.data.attrs.get("run", result.manifest.get("subject", "a run"))
    otherwise = f"Temperature sweep of {run}"
    if not charts.has(result, "kl_at_t_star_bits", "kl_at_one_bits", "kl_uniform_bits"):
        return Exhibit(headline(result, otherwise), tables(result))
    sections: list[Figure | Table] = []
    if charts.has(result, "kl_bits"):
        sections.append(_sweep(result))
    sections.append(_positions(result))
    if charts.has(result, "inverse_t_star"):
        sections.append(_best(result))
    if charts.has(result, "top1", "top1_exact"):
        sections.append(_top1(result))
    glance = Glance("line", (tuple(charts.values(result.data["kl_at_t_star_bits"])),), charts.wall_place(result.data))
    return Exhibit(headline(result, otherwise), tuple(sections), glance)


def _sweep(result: Result) -> Figure:
    """Mean KL over temperature on each side, each position a thin line behind."""
    data, horizon = result.data, float(result.data.attrs.get("horizon", 0))
    kl, x = data["kl_bits"].transpose("position", "temperature"), data["temperature"].values.tolist()
    traces: list[Spec] = []
    lowest = {}
    for side, color, dash, mask in (
        ("supervised positions", "@series-3", "dash", data["position"].values <= horizon),
        ("unsupervised positions", "@series-1", "solid", data["position"].values > horizon),
    ):
        rows = kl.values[mask]
        if not len(rows):
            continue
        for position, row in zip(data["position"].values[mask].tolist(), rows.tolist(), strict=True):
            thin = {"type": "scatter", "mode": "lines", "x": x, "y": row, "line": {"color": f"{color}-soft", "width": 1}}
            traces.append(thin | {"name": f"position {position}", "showlegend": False, "hoverinfo": "skip"})
        mean = rows.mean(0)
        lowest[side] = float(mean.min())
        label = {"name": side, "hovertemplate": "T %{x:.3g}: %{y:.3f} bits<extra></extra>"}
        drawn = {"color": color, "width": 2.5, "dash": dash}
        traces.append({"type": "scatter", "mode": "lines", "x": x, "y": mean.tolist(), "line": drawn} | label)
    top = float(max(np.nanmax(data["kl_uniform_bits"].values), np.nanmax(data["kl_at_one_bits"].values)))
    layout: Spec = {
        "xaxis": charts.axis("temperature", type="log", dtick=1),
        "yaxis": charts.axis("KL(P || Q_T)", "bits", range=[0, 1.15 * top]),
        "shapes": [
            {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": 1, "x1": 1, "line": {"color": "@ink", "width": 1, "dash": "dot"}}
        ],
    }
    words = ", ".join(f"{value:.2f} at {side}" for side, value in lowest.items())
    title = f"The best single temperature of the sweep leaves {words} (bits)"
    caption = "Bold: mean over the positions of a side; thin: each position. Dotted: T = 1. Far right: the uniform guess."
    return chart(title, {"data": traces, "layout": layout}, alt=f"Lines of KL over temperature. {title}.", caption=caption, height=400)


def _positions(result: Result) -> Figure:
    data, x = result.data, result.data["position"].values.tolist()
    arms = (
        ("kl_uniform_bits", "uniform guess", "@series-3", "dot", "square"),
        ("kl_at_one_bits", "T = 1", "@series-2", "dash", "diamond"),
        ("kl_at_t_star_bits", "best T of the position", "@series-1", "solid", "circle"),
    )
    traces = [part for name, _, color, _, _ in arms for part in charts.band(data, name, x, color)]
    traces += [charts.line(data, name, x, label=label, color=color, dash=dash, symbol=mark) for name, label, color, dash, mark in arms]
    best, uniform = (charts.chance(result.summary.get(f"{key}_unsupervised")) for key in ("kl_best_bits", "kl_uniform_bits"))
    title = f"A best temperature for each position leaves {best} bits beyond the wall; a uniform guess, {uniform}"
    spec = {"data": traces, "layout": charts.position_layout(result.data, "KL from the exact answer", "bits")}
    caption = "Each temperature is fitted on the sequences it is measured on: a bound in the run's favour. Band: 95 % bootstrap interval."
    return chart(title, spec, alt=f"Three lines of KL by position. {title}.", caption=caption)


def _best(result: Result) -> Figure:
    data, x = result.data, result.data["position"].values.tolist()
    traces = [
        *charts.band(data, "inverse_t_star", x, "@series-1"),
        charts.line(data, "inverse_t_star", x, label="1/T*", color="@series-1"),
    ]
    layout = charts.position_layout(result.data, "1/T*", "") | {"showlegend": False}
    layout["shapes"] = [*layout.get("shapes", []), charts.rule_line(1.0, "1: as trained") | {"showlegend": False}]
    title = "The best inverse temperature of each position"
    caption = "Dotted: 1, the logits as they are. 0 is the uniform guess: the logits say nothing of the answer. Band: 95 % interval."
    spec = {"data": traces, "layout": layout}
    return chart(title, spec, alt=f"Line of the best inverse temperature by position. {title}.", caption=caption, height=300)


def _top1(result: Result) -> Figure:
    data, x = result.data, result.data["position"].values.tolist()
    traces = [part for name, color in (("top1_exact", "@series-3"), ("top1", "@series-1")) for part in charts.band(data, name, x, color)]
    traces += [
        charts.line(data, "top1_exact", x, label="exact answer", color="@series-3", dash="dash", symbol="square"),
        charts.line(data, "top1", x, label="run", color="@series-1"),
    ]
    own, exact = (charts.chance(result.summary.get(f"{key}_unsupervised")) for key in ("top1", "top1_exact"))
    title = f"No temperature changes the first choice: right {own} of the time beyond the wall, the exact answer's {exact}"
    spec = {"data": traces, "layout": charts.position_layout(result.data, "first choice is the next token", "fraction")}
    return chart(
        title, spec, alt=f"Two lines of top-1 accuracy by position. {title}.", caption="Band: 95 % bootstrap interval.", height=320
    )
