"""The exhibit of kind "hello": one chart with the wall in it, and the plain values below."""

from wallprobe.gallery import Exhibit, Glance, chart, charts
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result

LINES = {"program": ("sequence alternates", "@series-1", "circle"), "noise": ("noise, the control", "@series-2", "diamond")}


def exhibit(result: Result) -> Exhibit:
    """The probability of the token two back by position, given and due."""
    data, places = result.data, result.data["position"].values.tolist()
    traces = []
    for side, (label, color, symbol) in LINES.items():
        traces += charts.band(data, side, places, color)
        traces.append(charts.line(data, side, places, label=label, color=color, symbol=symbol))
        traces.append(charts.line(data, f"{side}_due", places, label=f"{label}: due", color=color, dash="dot", symbol=f"{symbol}-open"))
    finding = headline(result, "Does the run answer?")
    figure = chart(
        "The probability of the token two back, by position",
        {"data": traces, "layout": charts.position_layout(data, "probability of the token two back", "probability")},
        alt=f"Four lines by position, two for alternating sequences and two for noise. {finding}",
        caption="Bands: 95 % bootstrap interval over sequences. Dotted: what the exact answer gives. Vertical line: the wall.",
    )
    glance = Glance("line", (tuple(charts.values(data["program"])),), charts.wall_place(data))
    return Exhibit(finding, (figure, *tables(result)), glance)
