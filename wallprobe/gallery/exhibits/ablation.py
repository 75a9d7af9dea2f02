"""The exhibit of kind "ablation": what a run's answer loses with a subspace, beside random spans of as many dimensions."""

from wallprobe.findings import foremost, rounding
from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Frame, Glance, Panel
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result

# suffix -> (legend, colour, dash, marker)
ARMS = {
    "_base": ("nothing ablated", "@series-3", "solid", "circle-open"),
    "": ("subspace", "@series-1", "solid", "circle"),
    "_span": ("random spans", "@series-3", "dot", "square"),
    "_whole": ("whole state", "@series-2", "dash", "diamond"),
}
METRICS = {
    "p_answer": ("probability of the correct token", ""),
    "accuracy": ("accuracy", "fraction"),
    "entropy": ("entropy of the prediction", "bits"),
    "kl": ("KL from the unablated prediction", "nats"),
}


def exhibit(result: Result) -> Exhibit:
    """By layer, a step a metric and index: the subspace against nothing, random spans and the whole state."""
    attrs = result.data.attrs
    run, subspace = (str(attrs.get(key) or key) for key in ("run", "subspace"))
    otherwise = f"Ablation of {subspace} in {run}"
    if not charts.has(result, "p_answer", "p_answer_span", "p_answer_base") or result.data["p_answer"].dims != ("layer", "index"):
        return Exhibit(headline(result, otherwise), tables(result))
    indices = result.data["index"].values.tolist()
    best = len(indices) - 1
    if "excess" in result.data:
        noise = rounding(*result.data["p_answer_base"].values.astype(float).ravel().tolist())
        best = foremost(result.data["excess"].max("layer").values.astype(float).tolist(), noise) or 0
    order = [
        (metric, place) for metric in METRICS if metric in result.data for place in sorted(range(len(indices)), key=lambda i: i != best)
    ]
    frames = tuple(
        Frame((Panel(PLOTLY, _lines(result, metric, place)),), f"{METRICS[metric][0]}, index {indices[place]}") for metric, place in order
    )
    at = result.data.isel(index=best)
    lost = at["p_answer"].values.astype(float)
    title = (
        f"Without {charts.text(subspace)} at index {indices[best]}, the correct token keeps {charts.chance(float(lost.min()))} at least, "
        f"without as many random dimensions {charts.chance(float(at['p_answer_span'].values.astype(float).min()))}"
    )
    dims, share = (charts.values(at[name]) for name in ("subspace_dims", "subspace_variance"))
    told = ", ".join(f"{size:.0f} ({part:.0%})" for size, part in zip(dims, share, strict=True) if size is not None and part is not None)
    caption = (
        f"Component {attrs.get('method', 'mean')}-ablated at one layer and index, mean over program sequences. Bands: 95 % bootstrap "
        f"interval. Dimensions (and share of the variance) by layer: {told}."
    )
    figure = Figure(title, frames, f"Lines by layer. {title}.", caption, stepper="metric", height=400)
    glance = Glance("line", (tuple(charts.values(at["p_answer"])),))
    note = "A random span holds less variance than principal axes of as many dimensions: read the loss beside the share of the variance."
    return Exhibit(headline(result, otherwise), (figure,), glance, note)


def _lines(result: Result, metric: str, place: int) -> Spec:
    data = result.data.isel(index=place)
    layers = data["layer"].values.tolist()
    shown = {f"{metric}{arm}": style for arm, style in ARMS.items() if f"{metric}{arm}" in data and (metric, arm) != ("kl", "_base")}
    traces = [part for name, (_, color, _, _) in shown.items() for part in charts.band(data, name, layers, color)]
    traces += [
        charts.line(data, name, layers, label=label, color=color, dash=dash, symbol=symbol)
        for name, (label, color, dash, symbol) in shown.items()
    ]
    wording, units = METRICS[metric]
    layout: Spec = {
        "xaxis": charts.axis("layer", dtick=1 if len(layers) <= 16 else None, showgrid=False),
        "yaxis": charts.axis(wording, units, rangemode="tozero"),
        "hovermode": "x unified",
    }
    chance = result.data.attrs.get("chance")
    if chance is not None and metric in ("p_answer", "accuracy"):
        layout["shapes"] = [charts.rule_line(float(chance), f"chance {float(chance):.3f}")]
    return {"data": traces, "layout": layout}
