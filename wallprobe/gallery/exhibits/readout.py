"""The exhibit of kind "readout": the donor's answer in the receiver by depth, raw and aligned, a step a pair of runs."""

import numpy as np

from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Frame, Glance, Panel, Table, chart
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result

# basis -> (legend, colour, dash, marker)
BASES = {
    "none": ("raw", "@series-1", "solid", "circle"),
    "procrustes": ("rotated", "@series-4", "dash", "diamond"),
    "ridge": ("ridge-aligned", "@series-2", "dot", "square"),
}
STARTS = {1: "one initialisation", 0: "two initialisations"}
MARKS = ("circle", "square", "diamond", "cross")  # of a few pairs, one each; more share the legend's lines


def exhibit(result: Result) -> Exhibit:
    """By depth: the donor's answer and its rule for each pair, the alignments' R^2, and every pair's best in a table."""
    otherwise = f"Readout import by depth: {result.summary.get('pairs', 'pairs of runs')}"
    if not charts.has(result, "p_import", "p_rule", "alignment_r2") or result.data["p_import"].dims != ("pair", "align", "index", "depth"):
        return Exhibit(headline(result, otherwise), tables(result))
    sections: list[Figure | Table] = [_answers(result), _answers(result, "rule"), _fit(result), _best(result)]
    raw = result.data["p_import"].isel(align=0, index=-1)
    glance = Glance("line", (tuple(charts.values(raw.isel(pair=_strongest(result)))),))
    note = (
        "A fitted map carries what a state says into another basis, but it is itself a reader of the donor: raw and aligned are told apart."
    )
    return Exhibit(headline(result, otherwise), tuple(sections), glance, note)


def pairs(result: Result) -> list[str]:
    """Each pair's name with whether it shares an initialisation."""
    shared = result.data["shared_initialisation"].values.tolist() if "shared_initialisation" in result.data else []
    names = [str(name) for name in result.data["pair"].values.tolist()]
    return [f"{name}, {STARTS[same]}" for name, same in zip(names, shared, strict=True)] if shared else names


def _strongest(result: Result) -> int:
    return int(np.nan_to_num(result.data["p_import"].isel(index=-1).values.astype(float)).max(axis=(1, 2)).argmax())


def _answers(result: Result, name: str = "import") -> Figure:
    """Lines by depth of one answer, a step a pair; the rule at the index where it is largest."""
    data = result.data
    floor = float(data.attrs["noise_floor"])
    seen = data[f"p_{name}"].values.astype(float)
    high = data[f"p_{name}_high"].values.astype(float) if f"p_{name}_high" in data else seen
    top = min(1.0, max(1.15 * float(np.nanmax(high)), 2 * floor))
    frames = tuple(Frame((Panel(PLOTLY, _lines(result, name, place, top, floor)),), label) for place, label in enumerate(pairs(result)))
    best = [charts.chance(float(np.nanmax(seen[:, at]))) for at in range(len(BASES))]
    what = "The donor's answer gets" if name == "import" else "The donor's rule gets"
    title = f"{what} at most {best[0]} raw, {best[1]} rotated, {best[2]} ridge-aligned; chance gives {charts.chance(floor)}"
    indices = data["index"].values.tolist()
    place = f"index {indices[-1]}" if name == "import" else f"index {indices[0]} or {indices[-1]}, whichever gives more"
    caption = (
        f"The donor's state in the receiver at {place}. Mean over pairs of sequences; bands: 95 % bootstrap interval; thin: a random donor."
    )
    return Figure(title, frames, f"Lines by depth. {title}.", caption, stepper="pair", first=_strongest(result), height=400)


def _lines(result: Result, name: str, pair: int, top: float, floor: float) -> Spec:
    cut = result.data.isel(pair=pair)
    depths = cut["depth"].values.tolist()
    bands: list[Spec] = []
    lines: list[Spec] = []
    for align, (label, color, dash, symbol) in BASES.items():
        both = cut.sel(align=align)
        largest = -1 if name == "import" else int(np.nan_to_num(both[f"p_{name}"].values.astype(float)).max(axis=1).argmax())
        at = both.isel(index=largest)
        bands += charts.band(at, f"p_{name}", depths, color)
        lines.append(charts.line(at, f"p_{name}", depths, label=label, color=color, dash=dash, symbol=symbol))
        if f"p_{name}_random" in at:
            control = f"{label}, random donor"
            thin = charts.line(at, f"p_{name}_random", depths, label=control, color=color, dash=dash, symbol=f"{symbol}-open")
            lines.append(thin | {"line": {"color": color, "width": 1, "dash": dash}, "opacity": 0.6})
    layout: Spec = {
        "xaxis": charts.axis("blocks passed", dtick=1, showgrid=False),
        "yaxis": charts.axis("probability", "mean over pairs", range=[0, top]),
        "hovermode": "x unified",
        "shapes": [charts.rule_line(floor, f"chance {floor:.3f}")],
    }
    return {"data": [*bands, *lines], "layout": layout}


def _fit(result: Result) -> Figure:
    """Held-out R^2 of the maps by depth, all pairs: solid where the initialisation is shared."""
    data = result.data.isel(index=-1)
    depths, labels = data["depth"].values.tolist(), pairs(result)
    names, few = data["pair"].values.tolist(), len(labels) <= len(MARKS)
    shared = data["shared_initialisation"].values.tolist() if "shared_initialisation" in data else [1] * len(labels)
    traces: list[Spec] = []
    for align in ("procrustes", "ridge"):
        words, color, _, symbol = BASES[align]
        for place, label in enumerate(labels):
            group = f"{words}, {names[place] if few else STARTS[shared[place]]}"
            at, dash = data.isel(pair=place).sel(align=align), "solid" if shared[place] else "dot"
            mark = MARKS[place] if few else symbol
            drawn = charts.line(at, "alignment_r2", depths, label=group, color=color, dash=dash, symbol=mark)
            hover = {"hovertemplate": f"{charts.text(label)}: %{{y:.2f}}<extra></extra>"}
            traces.append(drawn | hover | {"legendgroup": group, "showlegend": all(trace["legendgroup"] != group for trace in traces)})
    values = data["alignment_r2"].sel(align="ridge").values.astype(float)
    least, most = (charts.chance(float(edge(values))) for edge in (np.nanmin, np.nanmax))
    title = f"A ridge map explains {least} to {most} of the receiver's states"
    layout: Spec = {
        "xaxis": charts.axis("blocks passed", dtick=1, showgrid=False),
        "yaxis": charts.axis("held-out R²"),
        "hovermode": "closest",
    }
    caption = "Fitted on sequences that are not patched, scored on others again. Solid: one initialisation, dotted: two."
    return chart(title, {"data": traces, "layout": layout}, alt=f"Lines of R² by depth. {title}.", caption=caption, height=420)


def _best(result: Result) -> Table:
    """Each pair's largest probability of the donor's answer, by basis, and of its rule in any."""
    data = result.data
    rows: list[list[str]] = []
    for place, label in enumerate(pairs(result)):
        cut = data.isel(pair=place)
        answers = [float(np.nanmax(cut["p_import"].sel(align=align).isel(index=-1).values.astype(float))) for align in BASES]
        rows.append([label, *(charts.chance(value) for value in (*answers, float(np.nanmax(cut["p_rule"].values.astype(float)))))])
    columns = ("pair", *(words[0] for words in BASES.values()), "rule")
    caption = "Raw, rotated, ridge-aligned: the donor's answer at the last index. Rule: in any basis, at either index."
    return Table("Largest probability over depths, pair by pair", columns, rows, caption)
