"""The exhibit of kind "rescue": a supervised state moved beyond the wall, by depth, beside states that should not help."""

import math

from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Frame, Glance, Panel, Table, chart
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result

# name -> (legend, colour, dash, marker)
RESCUED = {
    "accuracy": ("its own matched state", "@series-1", "solid", "circle"),
    "accuracy_before": ("nothing moved", "@series-3", "solid", "circle-open"),
    "accuracy_redirect_own": ("another program's state", "@series-3", "dash", "diamond"),
    "accuracy_random": ("a noise sequence's state", "@series-3", "dot", "square"),
    "accuracy_norm": ("a random vector", "@series-3", "dot", "x"),
}
REDIRECTED = {
    "accuracy_redirect": ("that program's next token", "@series-1", "solid", "circle"),
    "accuracy_redirect_rule": ("its rule on the token there", "@series-2", "dash", "diamond"),
    "accuracy_redirect_own": ("the sequence's own next token", "@series-3", "dot", "square"),
}


def exhibit(result: Result) -> Exhibit:
    """Accuracy by depth with its controls, the redirects, and accuracy by unsupervised index."""
    run = str(result.data.attrs.get("run") or result.summary.get("run") or "a run")
    otherwise = f"Writer-state rescue in {run}"
    if not charts.has(result, "accuracy", "accuracy_before", "accuracy_redirect") or result.data["accuracy"].dims != ("block",):
        return Exhibit(headline(result, otherwise), tables(result))
    sections: list[Figure | Table] = [_rescued(result), _redirected(result)]
    if charts.has(result, "accuracy_by_index", "accuracy_before_by_index"):
        sections.append(_by_index(result))
    glance = Glance("line", (tuple(charts.values(result.data["accuracy"])),))
    note = "After the last block nothing follows but the readout: there the answer is the donor's by construction."
    return Exhibit(headline(result, otherwise), tuple(sections), glance, note)


def stages(result: Result) -> list[str]:
    """Names of the depths: how many blocks a state has passed."""
    return [str(block) for block in result.data["block"].values.tolist()]


def _lines(result: Result, arms: dict[str, tuple[str, str, str, str]], wording: str) -> Spec:
    data, x = result.data, stages(result)
    shown = {name: style for name, style in arms.items() if name in data}
    traces = [part for name, (_, color, _, _) in shown.items() for part in charts.band(data, name, x, color)]
    traces += [
        charts.line(data, name, x, label=label, color=color, dash=dash, symbol=symbol)
        for name, (label, color, dash, symbol) in shown.items()
    ]
    layout: Spec = {
        "xaxis": charts.axis("moved after block (0: the embedding)", type="category", showgrid=False),
        "yaxis": charts.axis(wording, "share of sequences", range=[0, 1.03]),
        "hovermode": "x unified",
    }
    chance = data.attrs.get("chance")
    if chance is not None:
        layout["shapes"] = [charts.rule_line(float(chance), f"chance {float(chance):.3f}")]
    return {"data": traces, "layout": layout}


def _rescued(result: Result) -> Figure:
    moved, before = (charts.values(result.data[name]) for name in ("accuracy", "accuracy_before"))
    told = ", ".join(charts.chance(value) for value in moved[:3])
    title = f"Moved beyond the wall, the matched state is right {told} at depths 0, 1, 2; with nothing moved {charts.chance(before[0])}"
    caption = (
        "First choice is the correct next token, at an unsupervised index whose token, and so whose next token, is that of the supervised "
        "index which the state comes from. Bands: 95 % bootstrap interval."
    )
    return chart(title, _lines(result, RESCUED, "right"), alt=f"Lines of accuracy by depth. {title}.", caption=caption, height=420)


def _redirected(result: Result) -> Figure:
    turned, rule = (charts.values(result.data[name]) for name in ("accuracy_redirect", "accuracy_redirect_rule"))
    inner = [value for value in turned[:-1] if value is not None]
    best, most = max(inner, default=None), max((value for value in rule if value is not None), default=None)
    title = (
        f"Another program's state brings that program's next token (up to {charts.chance(best)} before the last block), its rule "
        f"{charts.chance(most)} at most"
    )
    caption = "First choice after a state of another program was moved there. Its rule is counted where it gives a third answer."
    spec = _lines(result, REDIRECTED, "first choice")
    return chart(title, spec, alt=f"Lines of shares by depth. {title}.", caption=caption, height=400)


def _by_index(result: Result) -> Figure:
    data = result.data
    indices = data["index"].values.tolist()
    counts = data["sequences_by_index"].values.tolist() if "sequences_by_index" in data else []
    frames = []
    for place, name in enumerate(stages(result)):
        cut = data[["accuracy_by_index", "accuracy_before_by_index"]].isel(block=place)
        traces = [
            charts.line(cut, "accuracy_by_index", indices, label="its own matched state", color="@series-1"),
            charts.line(cut, "accuracy_before_by_index", indices, label="nothing moved", color="@series-3", dash="dot", symbol="square"),
        ]
        layout: Spec = {
            "xaxis": charts.axis("unsupervised index", dtick=1, showgrid=False),
            "yaxis": charts.axis("right", "share of sequences", range=[0, 1.03]),
            "hovermode": "x unified",
        }
        label = "moved at the embedding" if name == "0" else f"moved after block {name}"
        frames.append(Frame((Panel(PLOTLY, {"data": traces, "layout": layout}),), label))
    first = min(1, len(frames) - 1)
    seen = [value for value in charts.values(data["accuracy_by_index"].isel(block=first)) if value is not None and math.isfinite(value)]
    low, high = (charts.chance(edge(seen)) if seen else "–" for edge in (min, max))
    title = f"Index by index: from {low} to {high} right with the state moved {frames[first].label.removeprefix('moved ')}"
    listed = ", ".join(f"{index}: {count}" for index, count in zip(indices, counts, strict=False))
    period = "An index is matched by one that lies a whole number of the sequence's periods before it."
    caption = f"{period} Sequences by index: {listed}." if listed else period
    alt = f"Lines of accuracy by unsupervised index. {title}."
    return Figure(title, tuple(frames), alt, caption, stepper="depth", first=first, height=360)
