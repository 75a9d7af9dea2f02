"""The exhibit of kind "gains": how loud each layer is, with contraction below the line at 1 and amplification above it."""

import math

from wallprobe.findings import difference, foremost, side
from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import Exhibit, Figure, Frame, Glance, Panel, Table, chart
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result

BRANCHES = {"attn": ("Attention", "@series-1"), "mlp": ("MLP", "@series-2")}
NORMS = {
    "resid_pre_norm": ("residual stream entering", "@series-3", "solid", "circle"),
    "attn_out_norm": ("attention writes", "@series-1", "dash", "square"),
    "mlp_out_norm": ("MLP writes", "@series-2", "dot", "diamond"),
}


def exhibit(result: Result) -> Exhibit:
    """Gains per layer of both branches, with and without sink tokens, then the norms behind them."""
    model = result.data.attrs.get("model", result.manifest.get("subject", "a model"))
    sections: list[Figure | Table] = [_bars(result, branch) for branch in BRANCHES if charts.has(result, f"{branch}_gain")]
    norms = [name for name in NORMS if charts.has(result, name)]
    if norms:
        sections.append(_norms(result, norms))
    if result.summary.get("n_sinks") and result.manifest.get("peaks"):
        sections.append(_tokens(result))
    glance = None
    if charts.has(result, "mlp_gain"):
        # In powers of ten, or one sink-reading layer would flatten all others.
        seen = [math.log10(value) if value is not None and value > 0 else None for value in charts.values(result.data["mlp_gain"])]
        glance = Glance("bars", (tuple(seen),), 0.0)
    return Exhibit(headline(result, f"Layer gains of {model}"), tuple(sections) or tables(result), glance)


def _bars(result: Result, branch: str) -> Figure:
    wording, color = BRANCHES[branch]
    data, layers = result.data, result.data["layer"].values.tolist()
    shown = [name for name in (f"{branch}_gain", f"{branch}_gain_no_sink") if name in data]
    kind = charts.scale(*(charts.values(data[name]) for name in shown))
    traces = [_bar(result, name, color, quiet=place > 0) for place, name in enumerate(shown)]
    spec = {
        "data": traces,
        "layout": {
            "barmode": "group",
            "bargap": 0.25,
            "xaxis": charts.axis("layer", showgrid=False, dtick=1 if len(layers) <= 16 else None),
            "yaxis": charts.axis("gain", "ratio of norms", **kind),
            "shapes": [charts.rule_line(1.0, "1: neither louder nor quieter")],
        },
    }
    title = f"{wording} contracts in {_contracting(result, shown[0])} of {len(layers)} layers"
    gains = data[shown[0]].values.astype(float).tolist()
    at = foremost(gains)
    if at is not None:
        title += f"; its loudest is layer {layers[at]}, {charts.number(gains[at])}"
        clean = charts.values(data[shown[1]])[at] if len(shown) > 1 and result.summary.get("n_sinks") else None
        title += f" ({charts.number(clean)} without sinks)" if clean is not None else ""
    definition = result.data.attrs.get("definition") or result.summary.get("definition") or "not named"
    formula = result.manifest.get("formula")
    caption = (
        f"Definition {definition}{f': {formula}' if formula else ''}. Bars start at 1; below it the branch contracts. {_prompts(result)}"
    )
    caption += " Logarithmic scale." if kind["type"] == "log" else ""
    return chart(title, spec, alt=f"Bars per layer of {wording} gain against a line at 1. {title}.", caption=caption)


def _contracting(result: Result, name: str) -> int:
    """In how many layers a gain lies below 1 by more than its interval and rounding."""
    ends = [name if f"{name}{end}" not in result.data else f"{name}{end}" for end in ("", "_low", "_high")]
    columns = [result.data[end].values.astype(float).tolist() for end in ends]
    return sum(side(gain, 1.0, difference((low, high), 1.0)) == "below" for gain, low, high in zip(*columns, strict=True))


def _tokens(result: Result) -> Figure:
    """Each prompt's tokens by circuitsvis, the deeper the louder its residual gets at some layer; a sink is above 10 times the median."""
    frames = []
    for number, one in enumerate(result.manifest["peaks"]):
        peaks = [math.log10(max(float(value), 1.0)) for value in one["times_median"]]
        props = {"tokens": [str(token) for token in one["tokens"]], "values": peaks, "minValue": 0.0, "maxValue": max([*peaks, 1.0])}
        loudest = max(range(len(peaks)), key=lambda place: peaks[place])
        label = f"loudest: {one['tokens'][loudest]!r}, {charts.number(float(one['times_median'][loudest]))} times the median"
        frames.append(Frame((Panel("ColoredTokens", props, label),), f"prompt {number}"))
    title = f"The sinks: {result.summary['n_sinks']} tokens whose residual passes 10 times the median"
    caption = (
        "Depth of colour: logarithm of the residual's norm over the prompt's median, at the layer where it is largest. Hover for the value."
    )
    return Figure(title, tuple(frames), f"{title}. {result.summary.get('sinks', '')}", caption, stepper="prompt", height=120)


def _prompts(result: Result) -> str:
    """What the whiskers are over."""
    prompts, tokens = (result.summary.get(key) for key in ("n_prompts", "n_tokens"))
    n = f"{prompts:,} prompts, {tokens:,} tokens" if isinstance(prompts, int) and isinstance(tokens, int) else "prompts"
    return f"Whiskers: 95 % bootstrap interval over {n}."


def _bar(result: Result, name: str, color: str, *, quiet: bool) -> Spec:
    seen = charts.values(result.data[name])
    drawn: Spec = {
        "type": "bar",
        "name": "without sink tokens" if quiet else "all tokens",
        "x": result.data["layer"].values.tolist(),
        "y": [None if value is None else value - 1 for value in seen],
        "base": 1,
        "customdata": seen,
        "hovertemplate": "layer %{x}: %{customdata:.4g}<extra></extra>",
        "marker": {"color": color, "line": {"color": color, "width": 1.2}},
    }
    if quiet:
        drawn["marker"] |= {"color": f"{color}-soft", "pattern": {"shape": "/", "size": 5, "fgcolor": color, "bgcolor": "@surface"}}
    return drawn | charts.error_bars(result.data, name)


def _norms(result: Result, names: list[str]) -> Figure:
    layers = result.data["layer"].values.tolist()
    traces = []
    for name in names:
        label, color, dash, symbol = NORMS[name]
        traces.append(charts.line(result.data, name, layers, label=label, color=color, dash=dash, symbol=symbol))
    kind = charts.scale(*(charts.values(result.data[name]) for name in names))
    spec = {
        "data": traces,
        "layout": {
            "xaxis": charts.axis("layer", showgrid=False, dtick=1 if len(layers) <= 16 else None),
            "yaxis": charts.axis("mean norm", charts.units(result, names[0]) or "L2", **kind),
            "hovermode": "x unified",
        },
    }
    first, last = charts.values(result.data[names[0]])[0], charts.values(result.data[names[0]])[-1]
    title = "The norms behind the gains"
    if names[0] == "resid_pre_norm" and first and last:
        title = f"The residual stream goes from a norm of {charts.number(first)} to {charts.number(last)}"
    return chart(title, spec, alt=f"Lines of mean norms by layer. {title}.", caption="Mean L2 norm over tokens, as the model computes it.")
