"""Exhibits of what any model is measured on, text: probes of labels, heads, whole states ablated, the shape of states, edits."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Frame, Glance, Panel
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result

# legend, colour, dash, marker
Style = tuple[str, str, str, str]
PROBES: Mapping[str, Style] = {
    "accuracy": ("probe", "@series-1", "solid", "circle"),
    "control_accuracy": ("control labels", "@series-2", "dot", "square"),
    "bag_accuracy": ("bag of tokens", "@series-3", "dash", "diamond"),
    "token_type_accuracy": ("type of token", "@series-4", "dash", "triangle-up"),
    "majority_accuracy": ("majority label", "@series-3", "dot", "x"),
}
ABLATED: Mapping[str, Style] = {
    "kl": ("ablated", "@series-1", "solid", "circle"),
    "kl_moved": ("moved as much in a random direction", "@series-2", "dot", "square"),
    "kl_random": ("a random direction of its norm", "@series-3", "dash", "diamond"),
}
EDITED: Mapping[str, Style] = {
    "effect": ("what the probe reads", "@series-1", "solid", "circle"),
    "effect_random": ("as much in a random direction", "@series-2", "dot", "square"),
    "effect_shuffled": ("as much by shuffled labels", "@series-3", "dash", "diamond"),
}
SHAPES: Sequence[tuple[str, str, Mapping[str, Style]]] = (
    (
        "dimensions",
        "participation ratio",
        {
            "participation": ("all tokens", "@series-1", "solid", "circle"),
            "participation_no_first": ("without first tokens", "@series-2", "dash", "square"),
            "participation_isotropic": ("isotropic states", "@series-3", "dot", "x"),
        },
    ),
    (
        "anisotropy",
        "mean cosine between texts",
        {
            "anisotropy": ("all tokens", "@series-1", "solid", "circle"),
            "anisotropy_no_first": ("without first tokens", "@series-2", "dash", "square"),
            "anisotropy_centred": ("mean taken away", "@series-3", "dot", "x"),
        },
    ),
    (
        "labels",
        "between-class share of the variance",
        {
            "between_share": ("labels", "@series-1", "solid", "circle"),
            "between_share_permuted": ("permuted labels", "@series-2", "dot", "square"),
        },
    ),
)
STATISTICS = {
    "first": "attention to the first token",
    "previous": "attention to the token before",
    "itself": "attention to the token itself",
    "entropy": "entropy",
    "distance": "mean distance",
    "induction_excess": "induction score beyond its control",
}
BANDS = "Bands: 95 % interval over texts. Layer −1 is what enters the first block."


def probes(result: Result) -> Exhibit:
    """Accuracy by layer beside control labels and baselines."""
    dim = result.table[0]
    if not charts.has(result, "accuracy", "control_accuracy") or result.data["accuracy"].dims != (dim,):
        return Exhibit(headline(result, "Probes of labels"), tables(result))
    frame = Frame((Panel(PLOTLY, _lines(result.data, dim, PROBES, "held-out accuracy")),))
    return _exhibit(result, "Accuracy on texts that no probe was fitted on", (frame,), "accuracy", BANDS)


def heads(result: Result) -> Exhibit:
    """A heatmap of layers by heads for each statistic."""
    found = [name for name in STATISTICS if charts.has(result, name) and result.data[name].dims == ("layer", "head")]
    if not found:
        return Exhibit(headline(result, "Attention heads"), tables(result))
    frames = tuple(Frame((Panel(PLOTLY, _heat(result, name)),), STATISTICS[name]) for name in found)
    title = "Every head of every layer"
    caption = "Means over queries and prompts; intervals and the figures of uniform attention stand in the table."
    figure = Figure(title, frames, f"{title}. {headline(result, title)}", caption, stepper="statistic", height=420)
    return Exhibit(headline(result, title), (figure, *tables(result)), _cells(result.data[found[0]].values))


def ablated(result: Result) -> Exhibit:
    """KL by layer, a step a site and what is put in place, beside both controls."""
    if not charts.has(result, *ABLATED) or result.data["kl"].dims != ("site", "layer", "replacement"):
        return Exhibit(headline(result, "Whole states ablated"), tables(result))
    frames = tuple(
        Frame(
            (Panel(PLOTLY, _lines(result.data.sel(site=site, replacement=put), "layer", ABLATED, "KL to the intact model", "nats")),),
            f"{site}, {put}",
        )
        for site in result.data["site"].values.tolist()
        for put in result.data["replacement"].values.tolist()
    )
    caption = "KL(intact prediction || ablated prediction), one layer at a time. Bands: 95 % interval over prompts."
    return _exhibit(result, "What predictions lose with whole states", frames, "kl", caption, "site")


def shapes(result: Result) -> Exhibit:
    """Dimensions, anisotropy and what labels part, by layer."""
    frames = tuple(
        Frame((Panel(PLOTLY, _lines(result.data, "layer", styles, words)),), step)
        for step, words, styles in SHAPES
        if next(iter(styles)) in result.data and result.data[next(iter(styles))].dims == ("layer",)
    )
    if not frames:
        return Exhibit(headline(result, "The shape of states"), tables(result))
    return _exhibit(result, "The shape of states by layer", frames, "participation", BANDS, "figure")


def edited(result: Result) -> Exhibit:
    """How far the own answer's lead falls by layer, a step an edit."""
    if not charts.has(result, *EDITED) or result.data["effect"].dims != ("layer", "edit"):
        return Exhibit(headline(result, "What a probe reads, edited"), tables(result))
    frames = tuple(
        Frame((Panel(PLOTLY, _lines(result.data.sel(edit=edit), "layer", EDITED, "fall of the own answer's lead", "logits")),), str(edit))
        for edit in result.data["edit"].values.tolist()
    )
    return _exhibit(result, "How far the answer's lead falls when what a probe reads is edited", frames, "effect", BANDS, "edit")


def _exhibit(result: Result, title: str, frames: tuple[Frame, ...], main: str, caption: str, stepper: str = "step") -> Exhibit:
    figure = Figure(title, frames, f"{title}. {headline(result, title)}", caption, stepper=stepper, height=400)
    values = np.asarray(result.data[main].values, dtype=float) if main in result.data else np.empty(0)
    glance = (
        Glance("line", (tuple(float(one) if np.isfinite(one) else None for one in values),)) if values.ndim == 1 and values.size else None
    )
    return Exhibit(headline(result, title), (figure, *tables(result)), glance)


def _lines(data: Any, dim: str, styles: Mapping[str, Style], wording: str, units: str = "") -> Spec:
    x = data[dim].values.tolist()
    shown = {name: style for name, style in styles.items() if name in data}
    traces = [part for name, (_, color, _, _) in shown.items() for part in charts.band(data, name, x, color)]
    traces += [
        charts.line(data, name, x, label=label, color=color, dash=dash, symbol=symbol)
        for name, (label, color, dash, symbol) in shown.items()
    ]
    layout: Spec = {
        "xaxis": charts.axis(dim, dtick=1 if len(x) <= 16 else None, showgrid=False),
        "yaxis": charts.axis(wording, units, rangemode="tozero"),
        "hovermode": "x unified",
    }
    return {"data": traces, "layout": layout}


def _heat(result: Result, name: str) -> Spec:
    data = result.data[name]
    values = np.asarray(data.values, dtype=float)
    heat = {
        "type": "heatmap",
        "x": data["head"].values.tolist(),
        "y": data["layer"].values.tolist(),
        "z": [[round(float(one), 4) if np.isfinite(one) else None for one in row] for row in values],
        "xgap": 2,
        "ygap": 2,
        "colorscale": "@ramp",
        "colorbar": {"title": {"text": charts.text(charts.units(result, name))}},
        "hovertemplate": "layer %{y}, head %{x}: %{z}<extra></extra>",
    }
    layout = {"xaxis": charts.axis("head", dtick=1, showgrid=False), "yaxis": charts.axis("layer", dtick=1, showgrid=False)}
    return {"data": [heat], "layout": layout}


def _cells(values: Any) -> Glance:
    grid = np.asarray(values, dtype=float)
    return Glance("cells", tuple(tuple(float(one) if np.isfinite(one) else None for one in row) for row in grid))
