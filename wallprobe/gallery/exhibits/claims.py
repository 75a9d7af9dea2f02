"""The exhibit of kind "claims": the ledger, measured figures against the published ones, what did not reproduce first."""

import math
from collections.abc import Sequence
from typing import Any

from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Frame, Glance, Panel, Table
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result

VERDICTS = ("not reproduced", "reproduced", "not measured")
# verdict -> (colour of the theme, symbol)
MARKS = {"not reproduced": ("@series-2", "x"), "reproduced": ("@series-1", "circle")}
NEEDED = ("statement", "kind", "verdict", "seed_value", "measured", "accepted_low", "accepted_high")
ROW, FURTHEST = 20, 20.0  # pixels a claim; the factor from the published figure beyond which a mark stands at the edge
COLUMNS = ("claim", "kind", "published", "measured", "95 % interval", "reproduced if", "id")


def exhibit(result: Result) -> Exhibit:
    """Figures against the published ones as a forest plot that steps through the verdicts, then every claim by verdict."""
    if not charts.has(result, *NEEDED):
        return Exhibit(headline(result, "Claims"), tables(result))
    records = result.values
    sections: list[Figure | Table] = []
    drawn = [record for record in records if _drawable(record)]
    if drawn:
        sections.append(_forest(drawn, str(result.data.attrs.get("area", ""))))
    sections += [_table(records, verdict) for verdict in VERDICTS if any(record["verdict"] == verdict for record in records)]
    counts = tuple(float(sum(record["verdict"] == verdict for record in records)) for verdict in VERDICTS)
    note = (
        "A pattern is an inequality, a figure a number with a band. A pattern may hold where its figure differs; the rules go by kind of "
        "quantity and are in the manifest below."
    )
    return Exhibit(headline(result, "The ledger"), tuple(sections), Glance("bars", (counts,)), note)


def _drawable(record: dict[str, Any]) -> bool:
    """Measured figures that have a place on an axis of shares of the published figure."""
    return record["kind"] == "figure" and all(_positive(record[name]) for name in ("measured", "seed_value"))


def _positive(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value) and value > 0


def _short(record: dict[str, Any], area: str) -> str:
    return str(record["id"]).removeprefix(f"{area}.")


def _forest(records: Sequence[dict[str, Any]], area: str) -> Figure:
    shown = {verdict: [record for record in records if record["verdict"] == verdict] for verdict in MARKS}
    most = max(map(len, shown.values()))
    frames = [Frame((Panel(PLOTLY, _spec(found, most, area)),), f"{verdict} ({len(found)})") for verdict, found in shown.items() if found]
    off, held = (len(shown[verdict]) for verdict in MARKS)
    title = f"{held} of {off + held} measured figures lie in the band around the published figure"
    listed = ", ".join(_short(record, area) for record in shown["not reproduced"])
    alt = f"Measured value over the published figure, one row a claim, on a logarithmic axis. {title}. Outside it: {listed or 'none'}."
    caption = (
        "Measured value over the published figure (of a range, its middle); whiskers: 95 % interval; bar: the accepted band; "
        f"dotted line: published. What is further off than a factor of {FURTHEST:g} stands at the edge. Choose the verdict above."
    )
    return Figure(title, tuple(frames), alt, caption, stepper="verdict", height=110 + ROW * most)


def _spec(records: Sequence[dict[str, Any]], most: int, area: str) -> Spec:
    """Rows from the top; a verdict with fewer claims leaves room below, so that rows stay as tall."""
    rows = list(range(len(records)))
    share = [
        {name: _share(record, name) for name in ("measured", "measured_low", "measured_high", "accepted_low", "accepted_high")}
        for record in records
    ]
    band = {
        "type": "bar",
        "orientation": "h",
        "name": "accepted",
        "y": rows,
        "base": [item["accepted_low"] for item in share],
        "x": [item["accepted_high"] - item["accepted_low"] for item in share],
        "width": 0.66,
        "marker": {"color": "@series-3-soft", "line": {"color": "@line", "width": 1}},
        "hoverinfo": "skip",
    }
    color, symbol = MARKS[str(records[0]["verdict"])]
    whisker = {
        "type": "data",
        "symmetric": False,
        "array": [max(item["measured_high"] - item["measured"], 0.0) for item in share],
        "arrayminus": [max(item["measured"] - item["measured_low"], 0.0) for item in share],
        "thickness": 1.2,
        "width": 3,
        "color": "@ink",
    }
    points = {
        "type": "scatter",
        "mode": "markers",
        "name": charts.text(records[0]["verdict"]),
        "y": rows,
        "x": [item["measured"] for item in share],
        "error_x": whisker,
        "marker": {"color": color, "size": 9, "symbol": symbol},
        "text": [charts.text(f"{_short(record, area)}: {_told(record)}") for record in records],
        "hovertemplate": "%{text}<extra></extra>",
    }
    told = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": 1, "x1": 1, "line": {"color": "@ink", "width": 1.2, "dash": "dot"}}
    labels = [charts.text(_short(record, area)) for record in records]
    edge = math.log10(1.2 * FURTHEST)
    layout = {
        "xaxis": charts.axis("measured / published", type="log", tickvals=[0.1, 0.5, 1, 2, 10], range=[-edge, edge]),
        "yaxis": {
            "tickvals": rows,
            "ticktext": labels,
            "range": [most - 0.5, -0.5],
            "zeroline": False,
            "showgrid": False,
            "tickfont": {"size": 11},
        },
        "shapes": [told],
        "barmode": "overlay",
        "hovermode": "closest",
    }
    return {"data": [band, points], "layout": layout}


def _share(record: dict[str, Any], name: str) -> float:
    """A value over the published figure; what is missing lies on the measured value, and nothing beyond `FURTHEST`."""
    value = record.get(name)
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        value = record["measured"]
    return min(max(float(value) / float(record["seed_value"]), 1 / FURTHEST), FURTHEST)


def _told(record: dict[str, Any]) -> str:
    interval = f" ({record['ci']})" if record.get("ci") else ""
    return f"{charts.number(record['measured'])}{interval}, published {record.get('seed_says') or charts.number(record['seed_value'])}"


def _table(records: Sequence[dict[str, Any]], verdict: str) -> Table:
    """Every claim of one verdict, patterns first."""
    chosen = sorted((record for record in records if record["verdict"] == verdict), key=lambda record: record["kind"] != "pattern")
    patterns = sum(record["kind"] == "pattern" for record in chosen)
    rows = []
    for record in chosen:
        doubt = "unsettled: the interval does not lie on one side" if record.get("settled") == "no" else ""
        notes = "; ".join(part for part in (doubt, record.get("note")) if part)
        statement = f"{record['statement']} ({notes})" if notes else record["statement"]
        interval = f"{record['ci']} ({record['ci_kind']})" if record.get("ci") else ""
        told = "" if record["measured"] is None else charts.number(record["measured"])
        rows.append([statement, record["kind"], record.get("seed_says", ""), told, interval, record.get("accepted", ""), record["id"]])
    title = f"{verdict[:1].upper()}{verdict[1:]}: {patterns} patterns, {len(chosen) - patterns} figures"
    return Table(title, COLUMNS, rows, "Units stand in the CSV below.")
