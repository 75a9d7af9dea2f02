"""The exhibits of kinds "flow", "maps" and "rescale": lines by layer, and what scaling a sub-layer does to the loss."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from wallprobe.findings import beyond, foremost
from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Frame, Glance, Panel, Table, chart
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result

Arms = dict[str, tuple[str, str, str, str]]
ENTROPY: Arms = {
    "lens_entropy": ("last token", "@series-1", "solid", "circle"),
    "lens_entropy_mean": ("mean over tokens, no sinks", "@series-3", "dash", "square"),
}
LOSS: Arms = {"lens_nll": ("loss on the next token", "@series-2", "solid", "circle")}
FIRST: Arms = {"lens_top1": ("next tokens that the lens puts first", "@series-3", "solid", "circle")}
RANKS: Arms = {
    "erank": ("effective rank", "@series-1", "solid", "circle"),
    "erank_no_sink": ("effective rank, without sinks", "@series-1", "dash", "square"),
    "participation": ("participation ratio", "@series-2", "solid", "diamond"),
    "participation_no_sink": ("participation ratio, without sinks", "@series-2", "dash", "x"),
}
MAPS: Arms = {
    "mean_sqrt_a": ("mean √A", "@series-3", "dot", "square"),
    "map_v": ("√A σ(W_V)", "@series-1", "solid", "circle"),
    "map_ov": ("√A σ(W_O W_V)", "@series-2", "dash", "diamond"),
}
ENERGY: Arms = {
    "energy": ("all tokens", "@series-1", "solid", "circle"),
    "energy_no_sink": ("without sinks", "@series-2", "dash", "square"),
}
PLACES = {"all": ("all tokens", "@series-1"), "sink": ("sinks alone", "@series-2"), "non_sink": ("other tokens", "@series-3")}


def _distinct(data: xr.Dataset, arms: Arms) -> Arms:
    """The arms there are, those without sinks left out where no token is one: they would lie on the others."""

    def same(name: str) -> bool:
        other = name.removesuffix("_no_sink")
        return name != other and other in data and bool(np.array_equal(data[name].values, data[other].values, equal_nan=True))

    return {name: arm for name, arm in arms.items() if name in data and not same(name)}


def _lines(result: Result, arms: Arms, title: str, label: str, units: str, caption: str, *, x: str = "layer", **axis: Any) -> Figure:
    data, layers = result.data, result.data["layer"].values.tolist()
    shown = _distinct(data, arms)
    if len(shown) < len(arms):
        caption += " No token is a sink."
    traces = [part for name, (_, color, _, _) in shown.items() for part in charts.band(data, name, layers, color)]
    traces += [
        charts.line(data, name, layers, label=words, color=color, dash=dash, symbol=symbol)
        for name, (words, color, dash, symbol) in shown.items()
    ]
    kind = charts.scale(*(charts.values(data[name]) for name in shown))
    layout: Spec = {
        "xaxis": charts.axis(x, showgrid=False, dtick=1 if len(layers) <= 16 else None),
        "yaxis": charts.axis(label, units, **(kind if kind["type"] == "log" else {"rangemode": "tozero"}), **axis),
        "hovermode": "x unified",
        "showlegend": len(shown) > 1,
    }
    caption += " Logarithmic scale." if kind["type"] == "log" else ""
    return chart(title, {"data": traces, "layout": layout}, alt=f"Lines by layer. {title}.", caption=caption, height=340)


def _ends(result: Result, name: str) -> tuple[str, str]:
    """A variable at the first and at the last layer, for people."""
    values = charts.values(result.data[name])
    return charts.number(values[0]), charts.number(values[-1])


def flow(result: Result) -> Exhibit:
    """Entropy and loss of the logit lens, and the rank of states, by layer."""
    title = headline(result, f"Flow of {result.data.attrs.get('model', 'a model')}")
    if not charts.has(result, *ENTROPY, *LOSS, *RANKS):
        return Exhibit(title, tables(result))
    entropy = charts.values(result.data["lens_entropy"])
    least = foremost([math.nan if value is None else -value for value in entropy]) or 0
    prompts = f"{result.summary.get('n_prompts')} prompts"
    loss, rank, clean = (_ends(result, name) for name in ("lens_nll", "erank", "erank_no_sink"))
    lowest = [min((v for v in charts.values(result.data[name]) if v is not None), default=None) for name in ("erank", "erank_no_sink")]
    spread = f"The states' effective rank goes from {rank[0]} to {rank[1]}"
    if len(_distinct(result.data, RANKS)) == len(RANKS):
        spread = f"With sinks the states take as few as {charts.number(lowest[0])} directions, without them {charts.number(lowest[1])}"
        spread += f" at least and {clean[1]} at the end"
    sections = (
        _lines(
            result,
            ENTROPY,
            f"The lens is surest after layer {least}, at {charts.number(entropy[least])} nats",
            "entropy",
            "nats",
            f"Final norm and unembedding on the residual after each block. Band: 95 % over {prompts}. Sure is not right: see the loss.",
            x="after layer",
        ),
        _lines(
            result,
            LOSS,
            f"The lens's loss goes from {loss[0]} nats after the first layer to {loss[1]} after the last",
            "loss on the next token",
            "nats",
            f"Mean over next tokens; band: 95 % over {prompts}.",
            x="after layer",
        ),
        *([_first(result, prompts)] if charts.has(result, *FIRST) else ()),
        _lines(result, RANKS, spread, "directions", "", f"Centred states of {prompts}, pooled.", x="after layer"),
        *([_efficiency(result)] if "eta_low" in result.summary else ()),
    )
    return Exhibit(title, sections, Glance("line", (tuple(entropy),)))


def _first(result: Result, prompts: str) -> Figure:
    first, last = (float(result.data["lens_top1"][place]) for place in (0, -1))
    title = f"The lens puts {first:.1%} of next tokens first after the first layer, {last:.1%} after the last"
    caption = f"Share of next tokens; band: 95 % over {prompts}."
    return _lines(result, FIRST, title, "share of next tokens", "", caption, x="after layer")


def _efficiency(result: Result) -> Table:
    """Both efficiencies with their intervals."""
    summary = result.summary
    rows = [
        [words, where, *(summary[f"{name}{suffix}{end}"] for end in ("", "_low", "_high"))]
        for name, words in (("eta", "eta, nats per unit of gain"), ("eta_ppl", "PPL unigram / PPL, per unit of gain"))
        for suffix, where in (("", "all tokens"), ("_no_sink", "without sinks"))
        if name == "eta" or not summary["unigram_reason"]
    ]
    said = f"Unigram model {result.manifest.get('unigram', 'not told')}. Intervals over prompts, loss and gain resampled together."
    return Table("What a unit of the last MLP's gain buys", ("efficiency", "tokens", "value", "95 % from", "to"), rows, said)


def maps(result: Result) -> Exhibit:
    """Restriction maps and energies by layer."""
    title = headline(result, f"Restriction maps of {result.data.attrs.get('model', 'a model')}")
    if not charts.has(result, *MAPS, *ENERGY):
        return Exhibit(title, tables(result))
    caption = "Means over heads and prompts. √A is at most 1 whatever the weights; a map shrinks only where √A σ is below 1."
    seen = [value for value in charts.values(result.data["map_v"]) if value is not None]
    below = sum(beyond(1.0, value) for value in seen)
    found = f"√A σ(W_V) is below 1 in {below} of {len(seen)} layers" + (
        f" ({charts.number(min(seen))} to {charts.number(max(seen))})" if seen else ""
    )
    drawn = _lines(result, MAPS, found, "size", "", caption)
    spec = dict(drawn.frames[0].panels[0].spec)
    spec["layout"] = dict(spec["layout"]) | {"shapes": [charts.rule_line(1.0, "1: neither shrinks nor stretches")]}
    first = Figure(drawn.title, (Frame((Panel(PLOTLY, spec),)),), drawn.alt, drawn.caption, height=drawn.height)
    energy = _lines(
        result,
        ENERGY,
        "The Dirichlet energy goes from {} in the first layer to {} in the last".format(*_ends(result, "energy")),
        "energy over the states' own size",
        "",
        "0 is consensus: all tokens alike under W_V. Means over heads and prompts.",
    )
    names = ("layer", "sigma_v", "sigma_ov", "contracting_share", "trace", "gap", "harmonic_share")
    rows = [[row[name] for name in names] for row in result.values if all(name in row for name in names)]
    columns = ("layer", "σ(W_V)", "σ(W_O W_V)", "share of heads below 1", "trace", "graph gap", "harmonic share")
    values = tuple(charts.values(result.data["map_v"]))
    told = "Largest singular values, means over heads; the share is of heads whose √A σ(W_V) is below 1."
    return Exhibit(title, (first, energy, Table("By layer", columns, rows, told)), Glance("line", (values,)))


def rescale(result: Result) -> Exhibit:
    """Bars of the loss's change by layer and place, a step a factor, and the same as a table."""
    title = headline(result, "Scaled sub-layers")
    if not charts.has(result, "delta_nll", "is_control"):
        return Exhibit(title, tables(result))
    data = result.data["delta_nll"]
    controls = {int(layer) for layer in data["layer"].values if float(result.data["is_control"].sel(layer=layer).max()) > 0}
    labels = [f"{layer} (control)" if layer in controls else str(layer) for layer in data["layer"].values.tolist()]
    factors = [value for value in data["scale"].values.tolist() if value != 1.0]
    if not factors:
        return Exhibit(title, tables(result))
    places = {place: arm for place, arm in PLACES.items() if not bool(data.sel(place=place).isnull().all())}
    frames = []
    for factor in factors:
        bars = [
            {"type": "bar", "name": words, "x": labels, "y": charts.values(data.sel(scale=factor, place=place)), "marker": {"color": color}}
            | charts.error_bars(result.data.sel(scale=factor, place=place), "delta_nll")
            for place, (words, color) in places.items()
        ]
        layout: Spec = {
            "barmode": "group",
            "xaxis": charts.axis("layer", type="category", showgrid=False),
            "yaxis": charts.axis("change of loss", "nats"),
        }
        frames.append(Frame((Panel(PLOTLY, {"data": bars, "layout": layout}),), f"times {factor:g}"))
    branch = "MLP" if result.summary.get("branch") == "mlp" else "attention"
    prompts = f"{result.summary.get('n_prompts')} prompts"
    caption = f"Mean over next tokens of {prompts}; whiskers: 95 % over prompts. Controls are layers drawn at random."
    caption += " A scale of 1 changed nothing, to the bit."
    if "sink" not in places:
        caption += " No token is a sink."
    figure = Figure(f"What the loss does when the {branch}'s output is scaled", tuple(frames), title, caption, stepper="factor")
    shown = tuple(charts.values(data.sel(scale=float(factors[0]), place="all")))
    return Exhibit(title, (figure, _scaled(result, labels, factors, places)), Glance("bars", (shown,), 0.0))


def _scaled(result: Result, labels: list[str], factors: list[float], places: Mapping[str, tuple[str, str]]) -> Table:
    """A row a layer and factor; entropy and accuracy for all tokens."""
    data = result.data
    more = [name for name in ("delta_entropy", "delta_top1") if name in data]
    rows = []
    for label, layer in zip(labels, data["layer"].values.tolist(), strict=True):
        for factor in factors:
            at = data.sel(layer=layer, scale=factor)
            loss = [float(at["delta_nll"].sel(place=place)) for place in places]
            rows.append([label, f"{factor:g}", *loss, *(float(at[name].sel(place="all")) for name in more)])
    heads = {"delta_entropy": "Δentropy, nats", "delta_top1": "Δtop-1"}
    columns = ("layer", "times", *(f"ΔNLL, {words}" for words, _ in places.values()), *(heads[name] for name in more))
    return Table("Changes against the model as it is", columns, rows, "ΔNLL in nats; entropy and top-1 with all tokens scaled.")
