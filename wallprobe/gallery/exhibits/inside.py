"""The exhibits of kinds "flow", "maps" and "rescale": lines by layer, and what scaling a sub-layer does to the loss."""

from typing import Any

from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Frame, Glance, Panel, Table, chart
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.results import Result

Arms = dict[str, tuple[str, str, str, str]]
ENTROPY: Arms = {
    "lens_entropy": ("last token", "@series-1", "solid", "circle"),
    "lens_entropy_mean": ("mean over tokens, no sinks", "@series-3", "dash", "square"),
}
LOSS: Arms = {"lens_nll": ("loss on the next token", "@series-2", "solid", "circle")}
RANKS: Arms = {
    "erank": ("effective rank", "@series-1", "solid", "circle"),
    "erank_no_sink": ("without sinks", "@series-1", "dash", "square"),
    "participation": ("participation ratio", "@series-2", "solid", "diamond"),
    "participation_no_sink": ("without sinks", "@series-2", "dash", "x"),
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


def _lines(result: Result, arms: Arms, title: str, label: str, units: str, caption: str, **axis: Any) -> Figure:
    data, layers = result.data, result.data["layer"].values.tolist()
    shown = {name: arm for name, arm in arms.items() if name in data}
    traces = [part for name, (_, color, _, _) in shown.items() for part in charts.band(data, name, layers, color)]
    traces += [
        charts.line(data, name, layers, label=words, color=color, dash=dash, symbol=symbol)
        for name, (words, color, dash, symbol) in shown.items()
    ]
    kind = charts.scale(*(charts.values(data[name]) for name in shown))
    layout: Spec = {
        "xaxis": charts.axis("after layer", showgrid=False, dtick=1 if len(layers) <= 16 else None),
        "yaxis": charts.axis(label, units, **(kind if kind["type"] == "log" else {}), **axis),
        "hovermode": "x unified",
    }
    return chart(title, {"data": traces, "layout": layout}, alt=f"Lines by layer. {title}.", caption=caption, height=340)


def flow(result: Result) -> Exhibit:
    """Entropy and loss of the logit lens, and the rank of states, by layer."""
    title = headline(result, f"Flow of {result.data.attrs.get('model', 'a model')}")
    if not charts.has(result, *ENTROPY, *LOSS, *RANKS):
        return Exhibit(title, tables(result))
    entropy = charts.values(result.data["lens_entropy"])
    known = [value for value in entropy if value is not None]
    least = entropy.index(min(known)) if known else 0
    prompts = f"{result.summary.get('n_prompts')} prompts"
    sections = (
        _lines(
            result,
            ENTROPY,
            f"The lens is surest after layer {least}, at {charts.number(entropy[least])} nats",
            "entropy",
            "nats",
            f"Final norm and unembedding on the residual after each block. Band: 95 % over {prompts}. Sure is not right: see the loss.",
            rangemode="tozero",
        ),
        _lines(
            result,
            LOSS,
            "What the lens would lose after each layer",
            "loss",
            "nats",
            f"Mean over next tokens, {prompts}.",
            rangemode="tozero",
        ),
        _lines(
            result,
            RANKS,
            "How many directions the states take, with sinks and without",
            "directions",
            "",
            "Centred states of all prompts, pooled.",
        ),
    )
    return Exhibit(title, sections, Glance("line", (tuple(entropy),)))


def maps(result: Result) -> Exhibit:
    """Restriction maps and energies by layer."""
    title = headline(result, f"Restriction maps of {result.data.attrs.get('model', 'a model')}")
    if not charts.has(result, *MAPS, *ENERGY):
        return Exhibit(title, tables(result))
    caption = "Means over heads and prompts. √A is at most 1 whatever the weights; a map shrinks only where √A σ is below 1."
    drawn = _lines(result, MAPS, "√A is small, the maps are not", "size", "", caption)
    spec = dict(drawn.frames[0].panels[0].spec)
    spec["layout"] = dict(spec["layout"]) | {"shapes": [charts.rule_line(1.0, "1: neither shrinks nor stretches")]}
    first = Figure(drawn.title, (Frame((Panel(PLOTLY, spec),)),), drawn.alt, drawn.caption, height=drawn.height)
    energy = _lines(
        result,
        ENERGY,
        "Dirichlet energy over the states' own size",
        "energy",
        "",
        "0 is consensus: all tokens alike under W_V.",
        rangemode="tozero",
    )
    names = ("layer", "sigma_v", "sigma_ov", "contracting_share", "trace", "gap", "harmonic_share")
    rows = [[row[name] for name in names] for row in result.values if all(name in row for name in names)]
    columns = ("layer", "σ(W_V)", "σ(W_O W_V)", "share of heads below 1", "trace", "graph gap", "harmonic share")
    values = tuple(charts.values(result.data["map_v"]))
    return Exhibit(title, (first, energy, Table("By layer", columns, rows)), Glance("line", (values,)))


def rescale(result: Result) -> Exhibit:
    """Bars of the loss's change by layer and place, a step a factor."""
    title = headline(result, "Scaled sub-layers")
    if not charts.has(result, "delta_nll", "is_control"):
        return Exhibit(title, tables(result))
    data = result.data["delta_nll"]
    controls = {int(layer) for layer in data["layer"].values if float(result.data["is_control"].sel(layer=layer).max()) > 0}
    labels = [f"{layer} (control)" if layer in controls else str(layer) for layer in data["layer"].values.tolist()]
    frames = []
    for factor in [value for value in data["scale"].values.tolist() if value != 1.0]:
        bars = [
            {"type": "bar", "name": words, "x": labels, "y": charts.values(data.sel(scale=factor, place=place)), "marker": {"color": color}}
            for place, (words, color) in PLACES.items()
        ]
        layout: Spec = {
            "barmode": "group",
            "xaxis": charts.axis("layer", type="category", showgrid=False),
            "yaxis": charts.axis("change of loss", "nats"),
        }
        frames.append(Frame((Panel(PLOTLY, {"data": bars, "layout": layout}),), f"times {factor:g}"))
    if not frames:
        return Exhibit(title, tables(result))
    branch = "MLP" if result.summary.get("branch") == "mlp" else "attention"
    caption = "Mean over next tokens. Controls are layers drawn at random. A scale of 1 changed nothing, to the bit."
    figure = Figure(f"What the loss does when the {branch}'s output is scaled", tuple(frames), title, caption, stepper="factor")
    shown = tuple(charts.values(data.sel(scale=float(data["scale"].values[0]), place="all")))
    return Exhibit(title, (figure, *tables(result)), Glance("bars", (shown,), 0.0))
