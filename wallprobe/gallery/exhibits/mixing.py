"""The exhibit of kind "mixing": how far back a token still matters, and the loss by position."""

from typing import Any

from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Frame, Glance, Panel, Table, chart
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.gallery.exhibits.triangulate import LOOKS
from wallprobe.store.results import Result

SCALES = {
    "influence": ("as measured", "movement of the query a unit of the nudge"),
    "over_d1": ("over distance 1", "influence over that at distance 1"),
    "rel": ("both scales out", "influence × |x| / |h|"),
}


def exhibit(result: Result) -> Exhibit:
    """Influence over distance on three scales, loss over position, the table with each row's standing."""
    if not charts.has(result, *SCALES, "ce", "status") or result.data["influence"].dims != ("ckpt", "distance"):
        return Exhibit(headline(result, "Mixing"), tables(result))
    sections: list[Figure | Table] = [_influence(result), _losses(result), _table(result)]
    shown = charts.values(result.data["influence"].isel(ckpt=-1))
    return Exhibit(headline(result, "Mixing"), tuple(sections), Glance("line", (tuple(shown),)))


def _influence(result: Result) -> Figure:
    frames = tuple(Frame((Panel(PLOTLY, _lines(result, name)),), label) for name, (label, _) in SCALES.items())
    data = result.data
    reach = []
    for name in data["ckpt"].values.tolist():
        over = [value for value in charts.values(data["over_d1"].sel(ckpt=name)) if value is not None]
        reach.append(f"{name} {charts.number(over[-1])}" if over else f"{name} nothing")
    title = f"Influence at the longest distance over that at 1: {', '.join(reach)}"
    caption = (
        "The embedding is nudged along random directions at d positions before the query, and the query's last residual stream is read. "
        "Open marks do not count: half of the nudge says something else by more than 10 %, or a relaxation did not converge. Between "
        "models only the last two scales compare: states have no common unit."
    )
    return Figure(title, frames, f"Lines of influence over distance. {title}.", caption, stepper="scale", height=360)


def _lines(result: Result, name: str) -> Spec:
    data, x = result.data, result.data["distance"].values.tolist()
    traces = []
    for place, ckpt in enumerate(data["ckpt"].values.tolist()):
        color, symbol, dash = LOOKS[place % len(LOOKS)]
        trace = charts.line(data.sel(ckpt=ckpt), name, x, label=ckpt, color=color, dash=dash, symbol=symbol)
        stands = [str(text) == "ok" for text in data["status"].sel(ckpt=ckpt).values]
        trace["marker"]["symbol"] = [symbol if sound else f"{symbol}-open" for sound in stands]
        traces.append(trace)
    kind = charts.scale(*(trace["y"] for trace in traces))
    across = charts.axis("distance d", "tokens", type="log", tickvals=x, ticktext=[str(d) for d in x])
    return {"data": traces, "layout": {"xaxis": across, "yaxis": charts.axis(SCALES[name][1], **kind), "hovermode": "x unified"}}


def _losses(result: Result) -> Figure:
    data, x = result.data, result.data["position"].values.tolist()
    traces = []
    for place, ckpt in enumerate(data["ckpt"].values.tolist()):
        color, symbol, dash = LOOKS[place % len(LOOKS)]
        traces.append(charts.line(data.sel(ckpt=ckpt), "ce", x, label=ckpt, color=color, dash=dash, symbol=symbol))
    means = [f"{ckpt} {charts.number(_mean(result, ckpt))}" for ckpt in data["ckpt"].values.tolist()]
    title = f"Mean cross-entropy over all positions: {', '.join(means)} nats"
    caption = "Over the positions that count in its evaluation, the mean is the evaluation's own: checked before this is shown."
    layout = charts.position_layout(data, "cross-entropy", "nats")
    return chart(title, {"data": traces, "layout": layout}, alt=f"Lines of loss by position. {title}.", caption=caption, height=320)


def _mean(result: Result, ckpt: str) -> float | None:
    at = result.data.sel(ckpt=ckpt)
    weights, losses = at["labels"].values, at["ce"].values
    there = weights > 0
    return float((losses[there] * weights[there]).sum() / weights[there].sum()) if there.any() else None


def _table(result: Result) -> Table:
    rows: list[list[Any]] = [
        [cell["ckpt"], cell["distance"], *(cell[name] for name in (*SCALES, "influence_half")), cell["status"]]
        for cell in result.values
        if not str(cell["status"]).startswith("n/a")
    ]
    columns = ("ckpt", "d", "influence", "÷ d1", "rel", "with half of δ", "stands")
    return Table("Influence", columns, rows, "rel: influence × |x| / |h|, the mean norms of embedding and of what is read.")
