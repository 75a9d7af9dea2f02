"""The exhibit of kind "calibration": is a run as sure as it should be, and is it sure of the right token?"""

import math

from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Frame, Glance, Panel, Table, chart
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result

SIDES = {"trained": "supervised positions", "unsupervised": "unsupervised positions"}
# reliability against three references: what a bin's confidence is held to
REFERENCES = {
    "exact_confidence": ("as sure as it should be (max P)", "@series-3", "square"),
    "exact_accuracy": ("P of the token it chose", "@series-2", "diamond"),
    "accuracy": ("drawn token is the one it chose", "@series-1", "circle"),
}
ROWS = {
    "entropy_mae": "Entropy error, bits",
    "confidence": "Confidence, mean max Q",
    "exact_confidence": "Confidence due, mean max P",
    "accuracy": "First choice is the drawn token",
    "best_mass": "Mass on the Bayes-best token",
    "best_mass_geomean": "Its geometric mean",
    "best_posterior": "Mass due",
    "ece_confidence": "Calibration error against max P",
    "ece_exact": "Calibration error against P of the chosen token",
    "ece_drawn": "Calibration error against the drawn token",
}
PREDICTORS = {"run": "run", "exact": "exact", "relabelled": "tokens moved", "uniform": "uniform"}


def exhibit(result: Result) -> Exhibit:
    """Reliability on both sides, mass given and due, calibration errors by position, and the references beside."""
    run = result.data.attrs.get("run", result.manifest.get("subject", "a run"))
    otherwise = f"Calibration and correctness of {run}"
    if not charts.has(result, "best_mass_geomean", "best_posterior"):
        return Exhibit(headline(result, otherwise), tables(result))
    sections: list[Figure | Table] = []
    if charts.has(result, "bin_confidence", "bin_share", *(f"bin_{name}" for name in REFERENCES)):
        sections.append(_reliability(result))
    sections.append(_mass(result))
    if charts.has(result, "ece_confidence", "ece_drawn"):
        sections.append(_errors(result))
    sections += [_references(result, side) for side in SIDES if charts.has(result, "reference_entropy_mae")]
    mass = tuple(charts.values(result.data["best_mass_geomean"]))
    return Exhibit(headline(result, otherwise), tuple(sections), Glance("line", (mass,), charts.wall_place(result.data)))


def _reliability(result: Result) -> Figure:
    """Reliability diagrams, a step a side, opened at the unsupervised one."""
    frames = tuple(
        Frame((Panel(PLOTLY, _diagram(result, side)),), words) for side, words in SIDES.items() if side in result.data["side"].values
    )
    due, token = (charts.chance(result.summary.get(f"ece_{key}_unsupervised")) for key in ("confidence", "drawn"))
    title = f"Beyond the wall, confidence misses what is due by {due} and what comes true by {token}"
    caption = (
        "Each mark is a bin of confidence, its size the share of predictions in it; a calibrated run lies on the diagonal. "
        "Squares ask whether it is as sure as the exact answer, circles whether it is right as often as it is sure. Whiskers: 95 %."
    )
    alt = f"Reliability diagram with a diagonal. {title}."
    return Figure(title, frames, alt, caption, stepper="side", first=len(frames) - 1, height=440)


def _diagram(result: Result, side: str) -> Spec:
    at = result.data.sel(side=side)
    shares, x = charts.values(at["bin_share"]), charts.values(at["bin_confidence"])
    sizes = [7 + 23 * math.sqrt(share or 0.0) for share in shares]
    diagonal = {"type": "scatter", "mode": "lines", "x": [0, 1], "y": [0, 1], "line": {"color": "@muted", "width": 1, "dash": "dot"}}
    traces: list[Spec] = [diagonal | {"hoverinfo": "skip", "showlegend": False}]
    for name, (label, color, symbol) in REFERENCES.items():
        marks = {
            "type": "scatter",
            "mode": "markers",
            "name": label,
            "x": x,
            "y": charts.values(at[f"bin_{name}"]),
            "customdata": shares,
            "hovertemplate": "confidence %{x:.3f}: %{y:.3f}, share %{customdata:.3f}<extra></extra>",
            "marker": {"color": f"{color}-soft", "size": sizes, "symbol": symbol, "line": {"color": color, "width": 2}},
        }
        traces.append(marks | charts.error_bars(at, f"bin_{name}"))
    full = [-0.04, 1.04]
    layout = {
        "xaxis": charts.axis("confidence, max Q", "probability", range=full),
        "yaxis": charts.axis("probability or fraction", range=full),
    }
    return {"data": traces, "layout": layout}


def _mass(result: Result) -> Figure:
    data, x = result.data, result.data["position"].values.tolist()
    traces = [*charts.band(data, "best_mass_geomean", x, "@series-1")]
    traces.append(charts.line(data, "best_posterior", x, label="due: the exact posterior", color="@series-3", dash="dash", symbol="square"))
    if charts.has(result, "best_mass"):
        traces.append(charts.line(data, "best_mass", x, label="given, mean", color="@series-2", dash="dot", symbol="diamond"))
    traces.append(charts.line(data, "best_mass_geomean", x, label="given, geometric mean", color="@series-1"))
    kind = charts.scale(*(charts.values(data[name]) for name in ("best_mass_geomean", "best_posterior")))
    layout = charts.position_layout(result.data, "mass on the Bayes-best token", "probability")
    layout["yaxis"] = charts.axis("mass on the Bayes-best token", "probability", **kind)
    given, due = (charts.number(result.summary.get(f"{key}_unsupervised")) for key in ("best_mass_geomean", "best_posterior"))
    title = f"Beyond the wall the Bayes-best token usually gets {given} where {due} is due"
    caption = "Where a rule is at least as likely as noise. A confident miss is right once in p, which the mean hides."
    return chart(title, {"data": traces, "layout": layout}, alt=f"Lines of mass by position. {title}.", caption=caption)


def _errors(result: Result) -> Figure:
    data, x = result.data, result.data["position"].values.tolist()
    arms = (
        ("ece_confidence", "against max P: as sure as it should be?", "@series-3", "dash", "square"),
        ("ece_drawn", "against the drawn token: right as often?", "@series-1", "solid", "circle"),
    )
    traces = [part for name, _, color, _, _ in arms for part in charts.band(data, name, x, color)]
    traces += [charts.line(data, name, x, label=label, color=color, dash=dash, symbol=mark) for name, label, color, dash, mark in arms]
    spec = {"data": traces, "layout": charts.position_layout(result.data, "expected calibration error", "probability")}
    title = "Two calibration errors by position: of how sure, and of how right"
    caption = f"Over {data.sizes.get('bin', '')} equal bins of confidence. Band: 95 % bootstrap interval."
    return chart(title, spec, alt=f"Two lines of calibration error by position. {title}.", caption=caption, height=320)


def _references(result: Result, side: str) -> Table:
    names = [name for name in PREDICTORS if name in result.data["predictor"].values]
    at = result.data.sel(side=side)
    rows = [
        [label, *(round(float(at[f"reference_{key}"].sel(predictor=name)), 9) for name in names)]
        for key, label in ROWS.items()
        if f"reference_{key}" in at
    ]
    caption = (
        "Exact: the Bayesian answer. Tokens moved: the same with every token moved on by one, exactly as sure as it should be and sure of "
        "the wrong token: what agreement in entropy allows."
    )
    return Table(f"Beside the references, {SIDES[side]}", ("measure", *(PREDICTORS[name] for name in names)), rows, caption)
