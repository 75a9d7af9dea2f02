"""The exhibit of kind "eval": where the wall stands, and whether the mass behind it is on the right token."""

from collections.abc import Iterator

from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import Exhibit, Figure, Glance, Table, chart
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result

SUMMARY = {
    "trained_mae": ("Entropy error, supervised positions", "bits"),
    "untrained_mae": ("Entropy error, unsupervised positions", "bits"),
    "wall_ratio": ("Wall ratio, untrained / trained", "ratio"),
    "wall_sharpness": ("Wall sharpness, error at K+1 minus error at K", "bits"),
    "kl_nats": ("KL from the exact predictive", "nats"),
    "class_posterior_mae": ("Class-posterior error", "probability"),
    "bayes_best_mass": ("Mass on the Bayes-best token", "probability"),
    "bayes_best_posterior": ("Its exact posterior", "probability"),
}


def exhibit(result: Result) -> Exhibit:
    """Entropy error with the wall drawn, both entropies, mass against posterior, and the summary with intervals."""
    run = result.data.attrs.get("run", result.manifest.get("subject", "a run"))
    sections: list[Figure | Table] = list(_figures(result))
    rows = _summary_rows(result)
    if rows:
        sections.append(
            Table("In figures", ("measure", "value", "low", "high", "units"), rows, "Low and high are a 95 % bootstrap interval.")
        )
    glance = None
    if charts.has(result, "mae"):
        glance = Glance("line", (tuple(charts.values(result.data["mae"])),), _wall_place(result))
    return Exhibit(headline(result, f"Evaluation of {run}"), tuple(sections) or tables(result), glance)


def _figures(result: Result) -> Iterator[Figure]:
    horizon = result.data.attrs.get("horizon")
    if charts.has(result, "mae"):
        yield _error(result, horizon)
    if charts.has(result, "entropy_exact", "entropy_model"):
        yield _pair(
            result,
            ("entropy_exact", "entropy_model"),
            ("exact H(P)", "model H(Q)"),
            "Entropy of the next token: the exact answer and the model's",
            "Agreement here says that the model is as sure as it should be, not that it is sure of the right token.",
        )
    if charts.has(result, "best_mass", "best_posterior"):
        yield _pair(
            result,
            ("best_posterior", "best_mass"),
            ("exact posterior", "model's mass"),
            "Probability on the Bayes-best token: deserved and given",
            "A model that is calibrated and wrong stays far below the exact line while its entropy agrees.",
        )


def _error(result: Result, horizon: object) -> Figure:
    data, x = result.data, result.data["position"].values.tolist()
    traces = [*charts.band(data, "mae", x, "@series-1"), charts.line(data, "mae", x, label="mean |H(P) − H(Q)|", color="@series-1")]
    spec = {"data": traces, "layout": _layout(result, "mean entropy error", "mae") | {"showlegend": False}}
    summary = result.summary
    trained, untrained, ratio = (charts.number(summary.get(key)) for key in ("trained_mae", "untrained_mae", "wall_ratio"))
    title = f"Entropy error is {trained} bits where supervised and {untrained} beyond" + (f": a ratio of {ratio}" if ratio != "–" else "")
    alt = f"Line of mean absolute entropy error in bits by position, with the wall after position {horizon}. {title}."
    return chart(title, spec, alt=alt, caption=f"Mean over {_sequences(result)}; band: 95 % bootstrap interval; vertical line: the wall.")


def _sequences(result: Result) -> str:
    config = result.manifest.get("config")
    count = config.get("sequences") if isinstance(config, dict) else None
    return f"{count:,} sequences" if isinstance(count, int) else "sequences"


def _pair(result: Result, names: tuple[str, str], labels: tuple[str, str], title: str, caption: str) -> Figure:
    data, x = result.data, result.data["position"].values.tolist()
    traces: list[Spec] = []
    for name, color in zip(names, ("@series-3", "@series-1"), strict=True):
        traces += charts.band(data, name, x, color)
    exact = charts.line(data, names[0], x, label=labels[0], color="@series-3", dash="dash", symbol="square")
    given = charts.line(data, names[1], x, label=labels[1], color="@series-1")
    wording = "entropy of the next token" if charts.units(result, names[0]) == "bits" else "probability"
    spec = {"data": [*traces, exact, given], "layout": _layout(result, wording, names[0])}
    return chart(title, spec, alt=f"Two lines by position. {title}. {_ends(result, names, labels)}", caption=caption)


def _ends(result: Result, names: tuple[str, str], labels: tuple[str, str]) -> str:
    last = [f"{label} {charts.number(charts.values(result.data[name])[-1])}" for name, label in zip(names, labels, strict=True)]
    return f"At the last position: {', '.join(last)}."


def _layout(result: Result, wording: str, name: str) -> Spec:
    layout: Spec = {
        "xaxis": charts.axis("position", "prediction of token t", dtick=1 if result.data.sizes["position"] <= 20 else None, showgrid=False),
        "yaxis": charts.axis(wording, charts.units(result, name), rangemode="tozero"),
        "hovermode": "x unified",
    }
    horizon = result.data.attrs.get("horizon")
    if horizon is not None:
        layout["shapes"], layout["annotations"] = charts.wall(float(horizon), float(result.data["position"].values[0]))
    return layout


def _wall_place(result: Result) -> float | None:
    """Between which two points of the line the wall is, in places of the line."""
    horizon = result.data.attrs.get("horizon")
    return None if horizon is None else float(horizon) + 0.5 - float(result.data["position"].values[0])


def _summary_rows(result: Result) -> list[list[object]]:
    summary = result.summary
    return [
        [label, summary[key], summary.get(f"{key}_low"), summary.get(f"{key}_high"), units]
        for key, (label, units) in SUMMARY.items()
        if summary.get(key) is not None
    ]
