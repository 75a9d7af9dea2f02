"""The exhibit of kind "lr_sweep": what one step along each gradient buys, at every learning rate."""

import math
from typing import Any

from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import Exhibit, Figure, Glance, Table, chart
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.gallery.exhibits.triangulate import LOOKS
from wallprobe.store.results import Result


def exhibit(result: Result) -> Exhibit:
    """The fall of the loss by learning rate, with the straight line of the first order; the footer as a table."""
    data = result.data
    if not charts.has(result, "delta", "diverged", "cos", "k") or data["delta"].dims != ("gradient", "lr"):
        return Exhibit(headline(result, "A sweep of learning rates"), tables(result))
    best = [
        min((value for value in charts.values(data["delta"].sel(gradient=name)) if value is not None), default=None) for name in _all(data)
    ]
    sections: list[Figure | Table] = [_falls(result), _footer(result, best), _table(result)]
    glance = Glance("bars", (tuple(None if value is None else -value for value in best),), 0.0)
    return Exhibit(headline(result, "A sweep of learning rates"), tuple(sections), glance)


def _all(data: Any) -> list[str]:
    return [str(name) for name in data["gradient"].values]


def _falls(result: Result) -> Figure:
    data, lrs = result.data, result.data["lr"].values.tolist()
    traces: list[Spec] = []
    for place, name in enumerate(_all(data)):
        color, symbol, dash = LOOKS[place % len(LOOKS)]
        falls = [None if value is None or value >= 0 else -value for value in charts.values(data["delta"].sel(gradient=name))]
        trace = charts.line(data.sel(gradient=name), "delta", lrs, label=name, color=color, dash=dash, symbol=symbol)
        traces.append(trace | {"y": falls, "hovertemplate": "lr %{x:.1e}: falls by %{y:.3e}<extra>" + charts.text(name) + "</extra>"})
    reference = str(data.attrs["reference"])
    straight = [None if value is None or value >= 0 else -value for value in charts.values(data["first_order"].sel(gradient=reference))]
    drawn = {"type": "scatter", "mode": "lines", "name": f"{charts.text(reference)} if the loss were straight", "x": lrs, "y": straight}
    traces.append(drawn | {"line": {"color": "@muted", "width": 1.2, "dash": "dot"}, "hoverinfo": "skip"})
    layout = {
        "xaxis": charts.axis("learning rate", type="log", dtick=1),
        "yaxis": charts.axis("fall of the loss", "nats", type="log", exponentformat="power"),
        "hovermode": "x unified",
    }
    gone = [
        name
        for name in _all(data)
        if bool((data["diverged"].sel(gradient=name).values > 0).any()) and not str(data["reason"].sel(gradient=name).values)
    ]
    told = f"Diverging within the grid: {', '.join(gone)}" if gone else "No gradient diverges within the grid"
    where = "the same batch" if data.attrs["evaluate"] == "same" else "held-out sequences"
    caption = (
        f"One step w − lr g, the loss of {where}, gradients normalised: {data.attrs['normalise']}. A step that raises the loss has no "
        "mark. A gradient at right angles to the reference buys nothing at any learning rate."
    )
    return chart(told, {"data": traces, "layout": layout}, alt=f"Lines of the loss's fall by learning rate. {told}.", caption=caption)


def _footer(result: Result, best: list[float | None]) -> Table:
    data, rows = result.data, []
    for name, change in zip(_all(data), best, strict=True):
        seen = charts.values(data["delta"].sel(gradient=name))
        lr = None if change is None else float(data["lr"].values[seen.index(change)])
        lost = data["lr"].values[data["diverged"].sel(gradient=name).values > 0]
        cos, k = (charts.values(data[key].sel(gradient=[name]))[0] for key in ("cos", "k"))
        why = str(data["reason"].sel(gradient=name).values)
        rows.append([name, change, lr, None if why or not len(lost) else float(lost.min()), cos, k, why])
    columns = ("gradient", "best change", "at lr", "diverges from", f"cosine to {data.attrs['reference']}", "k", "n/a because")
    return Table(
        "The best step along each gradient", columns, rows, "Change of the loss in nats, negative is better; cosine and k over the blocks."
    )


def _table(result: Result) -> Table:
    data, rows = result.data, []
    for lr in data["lr"].values.tolist():
        at = data.sel(lr=lr)
        cells = []
        for name in _all(data):
            value = float(at["delta"].sel(gradient=name))
            missing = "n/a" if str(data["reason"].sel(gradient=name).values) else "div"
            cells.append(missing if not math.isfinite(value) else f"{value:+.2e}")
        rows.append([f"{lr:.1e}", *cells])
    return Table("Change of the loss by one step, nats", ("lr", *_all(data)), rows, "div: it rose by more than 1 nat or is not finite.")
