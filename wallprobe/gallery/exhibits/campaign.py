"""Exhibits of the seven experiments together: kind "campaign", what each says, and kind "signs", numbers by kind of plateau."""

from typing import Any

from wallprobe.gallery import charts
from wallprobe.gallery.exhibit import Exhibit, Figure, Glance, Table, chart
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result

KINDS = {
    "triangulate": "1 triangulation",
    "lr_sweep": "2 learning rates",
    "matched": "3 matched arms",
    "gate": "4 validity gate",
    "grid": "5 controller grid",
    "branches": "6 branches",
    "mixing": "7 mixing",
}
MEANS = {
    "invalid": "the gate keeps the task out",
    "over-contracted": "valid, and held so tight that the architecture pays",
    "fight": "the estimate is not the gradient, or the controller works against it",
}


NUMBERS = {
    "plateau_skip_share": "share of steps gated",
    "plateau_at_most_share": "share of steps with λ at its maximum",
    "plateau_res_over_target": "median residual over its target",
    "plateau_flip_share": "share of steps at which λ turns round",
    "plateau_cos_task_jac": "cosine of task and penalty gradient",
}


def exhibit(result: Result) -> Exhibit:
    """What each experiment says, the plateau's numbers, and the row that the study prints."""
    if not charts.has(result, "says", "what"):
        return Exhibit(headline(result, "A campaign"), tables(result))
    said = [[cell["experiment"], cell["what"], cell["says"], cell.get("seconds")] for cell in result.values]
    numbers = [[words, result.summary.get(key)] for key, words in NUMBERS.items() if key in result.summary]
    others = [[key, value] for key, value in result.summary.items() if not isinstance(value, str) and key not in NUMBERS]
    label = result.summary.get("plateau")
    caption = f"Of the second half of the training. The label these give, by thresholds that are ours: {label}." if label else ""
    sections = (
        Table("What each experiment says", ("experiment", "question", "in figures", "s"), said),
        Table("The plateau in numbers", ("number", "value"), numbers, caption),
        Table("At the last checkpoint", ("figure", "value"), others),
    )
    return Exhibit(headline(result, "A campaign"), sections)


def signs(result: Result) -> Exhibit:
    """Shares of signs past their marks, what the experiments say, every sign with its mark."""
    if not charts.has(result, "value", "plateau", "mark", "past"):
        return Exhibit(headline(result, "A campaign"), tables(result))
    said = [[words, str(result.summary.get(f"finding_{kind}") or "not measured")] for kind, words in KINDS.items()]
    cells = result.values
    sections: list[Figure | Table] = [
        _shares(cells),
        Table("What each experiment says", ("experiment", "in one sentence"), said),
        *(_signs(cells, name) for name in MEANS),
    ]
    counts = tuple(float(sum(cell["past"] or 0 for cell in cells if cell["plateau"] == name)) for name in MEANS)
    note = (
        "A sign is a number beside a mark that is ours. Signs are not independent and not of equal weight; they name no cause, and one "
        "seed of one size stands behind each."
    )
    return Exhibit(headline(result, "A campaign"), tuple(sections), Glance("bars", (counts,), 0.0), note)


def _shares(cells: list[dict[str, Any]]) -> Figure:
    traces = []
    rows = {name: [cell["past"] for cell in cells if cell["plateau"] == name] for name in MEANS}
    bars = ((1.0, "past the mark", "@series-1"), (0.0, "short of it", "@series-1-soft"), (None, "not measured", "@line"))
    for value, words, color in bars:
        counts = [sum(past == value for past in seen) for seen in rows.values()]
        drawn = {"type": "bar", "orientation": "h", "name": words, "y": list(MEANS), "x": counts, "marker": {"color": color}}
        traces.append(drawn | {"text": [str(count) if count else "" for count in counts], "textposition": "inside"})
    layout = {"barmode": "stack", "xaxis": charts.axis("signs", dtick=1), "yaxis": {"autorange": "reversed", "automargin": True}}
    past = {name: f"{sum(value == 1.0 for value in seen)} of {sum(value is not None for value in seen)}" for name, seen in rows.items()}
    told = ", ".join(f"{name} {counts}" for name, counts in past.items())
    title = f"Signs past their mark: {told}"
    caption = "; ".join(f"{name}: {words}" for name, words in MEANS.items()) + "."
    return chart(title, {"data": traces, "layout": layout}, alt=f"Stacked bars by kind of plateau. {title}.", caption=caption, height=240)


def _signs(cells: list[dict[str, Any]], name: str) -> Table:
    rows = []
    for cell in cells:
        if cell["plateau"] == name:
            past = "not measured" if cell["past"] is None else "yes" if cell["past"] else "no"
            rows.append([cell["experiment"], cell["what"], cell["value"], f"{cell['side']} {charts.number(cell['mark'])}", past])
    return Table(f"Signs of: {name} ({MEANS[name]})", ("experiment", "number", "value", "its mark", "past it"), rows)
