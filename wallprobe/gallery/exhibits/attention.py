"""The exhibit of kind "attention": where each head looks on one example, by circuitsvis, and how likely each token was."""

import numpy as np
import numpy.typing as npt

from wallprobe.findings import foremost
from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Frame, Glance, Panel, Table, chart
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result

TOKENS, HEADS, LETTERS = 64, 32, 14
ACCENT, WARM = "#0b5fa5", "#b8470b"


def exhibit(result: Result) -> Exhibit:
    """One step a layer of circuitsvis attention heads, token log-probabilities, and a map of how far heads look back."""
    run = result.data.attrs.get("run", result.manifest.get("subject", "a run"))
    if not charts.has(result, "pattern"):
        return Exhibit(headline(result, f"Attention of {run}"), tables(result))
    tokens = token_texts(result)
    sections: list[Figure | Table] = []
    if charts.has(result, "token_log_prob"):
        sections.append(_surprise(result, tokens))
    sections += [_heads(result, tokens), _lookback(result)]
    if charts.has(result, "entropy_model", "entropy_exact"):
        sections.append(_entropy(result, tokens))
    return Exhibit(headline(result, f"Where {run} looks"), tuple(sections), _glance(result))


def token_texts(result: Result) -> list[str]:
    """The example's tokens as text, or their places when the Result does not name them."""
    if charts.has(result, "token"):
        return [str(value) for value in result.data["token"].values.tolist()]
    return [str(value) for value in result.data["query"].values.tolist()]


def clip(token: str) -> str:
    """A token short enough for an axis."""
    return token if len(token) <= LETTERS else f"{token[: LETTERS - 1]}…"


def _heads(result: Result, tokens: list[str]) -> Figure:
    pattern = result.data["pattern"].transpose("layer", "head", "query", "key")
    layers, heads, length = pattern.shape[0], min(pattern.shape[1], HEADS), min(pattern.shape[2], TOKENS)
    frames = []
    for place, layer in enumerate(result.data["layer"].values.tolist()):
        shown = np.nan_to_num(pattern.values[place, :heads, :length, :length].astype(float))
        props = {
            "attention": np.round(shown, 4).tolist(),
            "tokens": [clip(token) for token in tokens[:length]],
            "attentionHeadNames": [f"{layer}.{head}" for head in result.data["head"].values.tolist()[:heads]],
            "positiveColor": ACCENT,
            "minValue": 0,
            "maxValue": 1,
            "maskUpperTri": False,
        }
        frames.append(Frame((Panel("AttentionHeads", props),), f"layer {layer}"))
    cut = [f"the first {length} of {len(tokens)} tokens"] if length < len(tokens) else []
    cut += [f"the first {heads} of {pattern.shape[1]} heads"] if heads < pattern.shape[1] else []
    caption = "Rows are the token that looks, columns what it looks at; depth of blue is probability, 0 to 1. Hover a head to enlarge it."
    caption += f" Shown: {', '.join(cut)}; the CSV has all." if cut else ""
    title = f"Attention patterns of {pattern.shape[1]} heads in {layers} layers, on one example"
    alt = f"{title}. Tokens: {' '.join(tokens[:length])}. The map of mean distance below says the same in figures."
    return Figure(title, tuple(frames), alt, caption, stepper="layer", first=layers - 1)


def _surprise(result: Result, tokens: list[str]) -> Figure:
    given = charts.values(result.data["token_log_prob"])[:TOKENS]
    seen = [value for value in given if value is not None]
    props = {
        "tokens": tokens[:TOKENS],
        "values": [0.0 if value is None else round(value, 4) for value in given],
        "minValue": min([*seen, -1e-6]),
        "maxValue": 1.0,
        "negativeColor": WARM,
        "positiveColor": ACCENT,
    }
    panels = [Panel("ColoredTokens", props)]
    x = list(range(len(given)))
    bars = {
        "type": "bar",
        "x": x,
        "y": given,
        "marker": {"color": "@series-2"},
        "hovertemplate": "index %{x}: %{y:.3f} nats<extra></extra>",
    }
    ticks = {"tickvals": x, "ticktext": [charts.text(clip(token)) for token in tokens[:TOKENS]], "showgrid": False}
    layout = {"xaxis": charts.axis("token") | ticks, "yaxis": charts.axis("log-probability", "nats"), "showlegend": False}
    panels.append(Panel(PLOTLY, {"data": [bars], "layout": layout}))
    best, worst = (f"{pick(seen, default=0.0):.2f}" for pick in (max, min))
    title = f"How expected each token was: from {best} down to {worst} nats"
    listed = ", ".join(f"{token}: {charts.number(value)}" for token, value in zip(tokens, given, strict=False))
    caption = "Log-probability of each token given those before it; deeper orange is more surprising. The first token has none."
    return Figure(title, (Frame(tuple(panels)),), f"{title}. {listed}.", caption, height=240)


def _distance(result: Result) -> npt.NDArray[np.float64]:
    """Mean tokens looked back, [layer head], averaged over queries."""
    pattern = np.nan_to_num(result.data["pattern"].transpose("layer", "head", "query", "key").values.astype(float))
    gap = np.subtract.outer(np.arange(pattern.shape[2]), np.arange(pattern.shape[3]))
    return np.asarray((pattern * gap).sum(-1).mean(-1))


def _lookback(result: Result) -> Figure:
    distance = _distance(result)
    layers, heads = result.data["layer"].values.tolist(), result.data["head"].values.tolist()
    heat = {
        "type": "heatmap",
        "x": heads,
        "y": layers,
        "z": np.round(distance, 3).tolist(),
        "texttemplate": "%{z:.1f}",
        "xgap": 2,
        "ygap": 2,
    }
    heat |= {
        "colorscale": "@ramp",
        "zmin": 0,
        "zmax": float(distance.max()),
        "colorbar": {"title": {"text": "tokens"}},
        "hovertemplate": "layer %{y}, head %{x}: %{z}<extra></extra>",
    }
    if len(heads) > 16:
        heat.pop("texttemplate")
    layout = {"xaxis": charts.axis("head", dtick=1, showgrid=False), "yaxis": charts.axis("layer", dtick=1, showgrid=False)}
    layer, head = np.unravel_index(foremost(distance.ravel().tolist()) or 0, distance.shape)
    title = f"Head {layers[layer]}.{heads[head]} looks furthest back: {distance.max():.1f} tokens on average"
    caption = "Mean distance from a token to what it attends to, in tokens, over the queries of this example."
    spec = {"data": [heat], "layout": layout}
    return chart(title, spec, alt=f"Heatmap, layer by head. {title}.", caption=caption, height=max(240, 40 * len(layers) + 110))


def _entropy(result: Result, tokens: list[str]) -> Figure:
    x = list(range(len(tokens)))
    lines = [
        charts.line(result.data, "entropy_exact", x, label="exact", color="@series-3", dash="dash", symbol="square"),
        charts.line(result.data, "entropy_model", x, label="model", color="@series-1"),
    ]
    ticks = {"tickvals": x, "ticktext": [charts.text(clip(token)) for token in tokens], "showgrid": False}
    across = charts.axis("token") | (ticks if len(tokens) <= TOKENS else {})
    layout: Spec = {"xaxis": across, "yaxis": charts.axis("entropy before the token", "bits", rangemode="tozero"), "hovermode": "x unified"}
    horizon = result.data.attrs.get("horizon")
    if horizon is not None:
        layout["shapes"], layout["annotations"] = charts.wall(float(horizon), 1.0)
    title = "How unsure the run was before each token, and how unsure it should have been"
    alt = f"Two lines of entropy in bits by token. {title}."
    return chart(
        title, {"data": lines, "layout": layout}, alt=alt, caption="One sequence: no interval. Vertical line: the wall.", height=300
    )


def _glance(result: Result) -> Glance:
    pattern = result.data["pattern"].transpose("layer", "head", "query", "key").values[-1, 0, :16, :16]
    rows = np.nan_to_num(pattern.astype(float))
    return Glance("cells", tuple(tuple(float(value) for value in row) for row in rows))
