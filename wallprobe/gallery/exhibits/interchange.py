"""The exhibit of kind "interchange": did the receiving model adopt the donor's rule, import its answer, or keep its own?"""

import math
from collections.abc import Sequence

import numpy as np
import xarray as xr

from wallprobe.findings import beyond, foremost
from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Frame, Glance, Panel, Table, chart
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result

ANSWERS = {"import": "imported prediction", "rule": "donor's rule", "own": "own answer"}
ON_AXIS = {key: words.replace(" ", "<br>") for key, words in ANSWERS.items()}
# name -> (legend, colour, pattern): the treatment is solid, controls are told apart by hatching as well as by colour.
ARMS = {
    "{}": ("donor's state", "@series-1", ""),
    "{}_raw": ("raw swap, not aligned", "@series-4", ""),
    "base_{}": ("no patch", "@series-3", ""),
    "{}_random": ("random donor", "@series-3", "/"),
    "{}_mismatched": ("mismatched donor", "@series-3", "x"),
    "{}_norm": ("norm-matched noise", "@series-3", "."),
    "{}_span": ("random span", "@series-3", "\\"),
    "{}_whole": ("whole state", "@series-2", ""),
}
CELLS = 60
WRITTEN = 4  # indices up to which there is room for figures in a heatmap's cells on a phone
ACCENT = "#0b5fa5"


def exhibit(result: Result) -> Exhibit:
    """Heatmaps over layer and index, the answers against their controls, and example tokens to step through."""
    src, dst = (str(result.data.attrs.get(key) or result.summary.get(key) or key) for key in ("src", "dst"))
    otherwise = f"Interchange from {src} to {dst}"
    if not charts.has(result, "p_import", "p_rule") or result.data["p_import"].dims != ("layer", "index"):
        return Exhibit(headline(result, otherwise), tables(result))
    layer, index = strongest(result)
    sections: list[Figure | Table] = [heatmaps(result, src, dst), answers(result, layer, index)]
    if charts.has(result, "shift_import", "shift_rule") and result.data.sizes["layer"] > 1:
        sections.append(_shift(result, index))
    if charts.has(result, "example_src_token", "example_dst_token", "example_p_import"):
        sections.append(_examples(result, layer, src, dst))
    if charts.has(result, "example_before", "example_after", "example_donor", "example_own_answer"):
        sections.append(_before_after(result, layer, index, src, dst))
    grid = result.data["p_import"].values.astype(float)
    glance = Glance("cells", tuple(tuple(None if math.isnan(cell) else float(cell) for cell in row) for row in grid), floor(result))
    return Exhibit(headline(result, otherwise), tuple(sections), glance)


def floor(result: Result) -> float | None:
    """Noise floor: the probability that chance gives a token."""
    value = result.data.attrs.get("noise_floor", result.summary.get("noise_floor"))
    return None if value is None else float(value)


def _inside(result: Result) -> str:
    """In which subspace, where not the whole state is patched."""
    subspace = result.data.attrs.get("subspace")
    return f" in the span {subspace}" if subspace else ""


def strongest(result: Result) -> tuple[int, int]:
    """Places (layer, index) of the cell with the largest imported probability."""
    grid = result.data["p_import"].values.astype(float)
    layer, index = np.unravel_index(foremost(grid.ravel().tolist()) or 0, grid.shape)
    return int(layer), int(index)


def heatmaps(result: Result, src: str, dst: str) -> Figure:
    """Probability of the imported prediction and of the donor's rule over layer and index."""
    data, low = result.data, floor(result)
    names = ("p_import", "p_rule")
    top = max([float(np.nanmax(data[name].values)) for name in names] + ([2 * low] if low else [1e-6]))
    traces = [_heat(result, name, place) for place, name in enumerate(names)]
    layers, indices = data["layer"].values.tolist(), data["index"].values.tolist()
    ticks = {"tickvals": layers, "showgrid": False, "zeroline": False}
    across = {"type": "category", "showgrid": False}
    bar_ticks = [low, (low + top) / 2, top] if low else [0.0, top]
    bar = {"tickvals": bar_ticks, "ticktext": [_tick(value, low) for value in bar_ticks], "title": {"text": "probability"}, "thickness": 12}
    heading = {
        "xref": "paper",
        "yref": "paper",
        "y": 1,
        "yanchor": "bottom",
        "xanchor": "center",
        "showarrow": False,
        "font": {"size": 13, "color": "@ink"},
    }
    layout = {
        "xaxis": charts.axis("patched index") | across | {"domain": [0, 0.47]},
        "xaxis2": charts.axis("patched index") | across | {"domain": [0.53, 1], "anchor": "y2"},
        "yaxis": charts.axis("layer") | ticks,
        "yaxis2": ticks | {"showticklabels": False, "anchor": "x2", "matches": "y"},
        "coloraxis": {"colorscale": f"@anchored:{(low or 0) / top:.6f}", "cmin": 0, "cmax": top, "colorbar": bar},
        "annotations": [heading | {"x": x, "text": text} for x, text in ((0.235, "imported prediction"), (0.765, "donor's rule"))],
    }
    best, rule = (charts.chance(float(np.nanmax(data[name].values))) for name in names)
    title = f"At most {best} on the donor's prediction, {rule} on the donor's rule" + (
        f"; chance gives {charts.chance(low)}" if low else ""
    )
    where = f"{len(layers)} layers by indices {', '.join(map(str, indices))}"
    put = f"State of {src}{_inside(result)} put into {dst}."
    caption = f"{put} Mean probability over pairs; grey is the noise floor or less. Bold: the 95 % interval excludes it."
    alt = f"Two heatmaps, {where}: probability of the imported prediction and of the donor's rule. {title}."
    height = max(230, 34 * len(layers) + 130)
    return Figure(title, (Frame((Panel(PLOTLY, {"data": traces, "layout": layout}),)),), alt, caption, height=height)


def _tick(value: float, low: float | None) -> str:
    return f"{value:.3f} chance" if value == low else f"{value:.2f}"


def _heat(result: Result, name: str, place: int) -> Spec:
    data, low = result.data, floor(result) or 0.0
    cells = data[name].values.astype(float)
    lower = data[f"{name}_low"].values.astype(float) if f"{name}_low" in data else np.full_like(cells, -np.inf)
    words = [
        [f"<b>{value:.3f}</b>" if beyond(under, low) else f"{value:.3f}" for value, under in zip(*rows, strict=True)]
        for rows in zip(cells, lower, strict=True)
    ]
    suffix = "" if place == 0 else "2"
    heat: Spec = {
        "type": "heatmap",
        "x": [str(index) for index in data["index"].values.tolist()],
        "y": data["layer"].values.tolist(),
        "z": [[None if math.isnan(value) else value for value in row] for row in cells.tolist()],
        "coloraxis": "coloraxis",
        "xaxis": f"x{suffix}",
        "yaxis": f"y{suffix}",
        "xgap": 2,
        "ygap": 2,
        "hovertemplate": "layer %{y}, index %{x}: %{z:.4f}<extra></extra>",
    }
    return heat | ({"text": words, "texttemplate": "%{text}"} if cells.shape[1] <= WRITTEN else {})


def answers(result: Result, layer: int, index: int) -> Figure:
    """Bars of the three answers against the controls, one step a cell, opened at the strongest."""
    layers, indices = result.data["layer"].values.tolist(), result.data["index"].values.tolist()
    cells = [(a, b) for a in range(len(layers)) for b in range(len(indices))]
    if len(cells) > CELLS:
        cells = [(a, index) for a in range(len(layers))]
    top = _tallest(result)
    frames = tuple(
        Frame((Panel(PLOTLY, _bars(result, result.data.isel(layer=a, index=b), top)),), f"layer {layers[a]}, index {indices[b]}")
        for a, b in cells
    )
    at = result.data.isel(layer=layer, index=index)
    told = {key: charts.chance(float(at[f"p_{key}"].item())) for key in ANSWERS if f"p_{key}" in at}
    words = ", ".join(f"{ANSWERS[key]} {value}" for key, value in told.items())
    control = f"; a random donor gives {charts.chance(float(at['p_import_random'].item()))}" if "p_import_random" in at else ""
    title = f"Where it is strongest (layer {layers[layer]}, index {indices[index]}): {words}"
    pairs = result.summary.get("n_pairs")
    caption = (
        f"Whiskers: 95 % bootstrap interval over {f'{pairs:,} pairs' if isinstance(pairs, int) else 'pairs'}. Dotted: the noise floor."
    )
    alt = f"Grouped bars of three probabilities for the donor's state and its controls. {title}{control}."
    return Figure(title, frames, alt, caption, stepper="cell", first=cells.index((layer, index)), height=380)


def _tallest(result: Result) -> float:
    """One scale for all steps, so that stepping compares."""
    names = [arm.format(f"p_{key}") for arm in ARMS for key in ANSWERS]
    names += [f"{name}_high" for name in names]
    seen = [
        float(np.nanmax(result.data[name].values)) for name in names if name in result.data and np.isfinite(result.data[name].values).any()
    ]
    return min(1.0, max([*seen, 1e-6]) * 1.08)


def _bars(result: Result, cell: xr.Dataset, top: float) -> Spec:
    answers = [key for key in ANSWERS if f"p_{key}" in cell]
    traces = []
    for arm, (label, color, pattern) in ARMS.items():
        names = [arm.format(f"p_{key}") for key in answers]
        if not all(name in cell and np.isfinite(cell[name].values).all() for name in names):
            continue
        marker: Spec = {"color": color, "line": {"color": color, "width": 1}}
        if pattern:
            marker |= {"pattern": {"shape": pattern, "size": 5, "solidity": 0.35, "fgcolor": color, "bgcolor": "@surface"}}
        bar: Spec = {
            "type": "bar",
            "name": f"{label}{charts.text(_inside(result)) if arm == '{}' else ''}",
            "x": [ON_AXIS[key] for key in answers],
            "marker": marker,
        }
        bar |= {"y": [float(cell[name].item()) for name in names], "hovertemplate": "%{x}: %{y:.4f}"} | _whiskers(cell, names)
        traces.append(bar)
    layout: Spec = {
        "barmode": "group",
        "xaxis": {"showgrid": False},
        "yaxis": charts.axis("probability", "mean over pairs", range=[0, top]),
    }
    low = floor(result)
    if low is not None:
        layout["shapes"] = [charts.rule_line(low, f"chance {low:.3f}")]
    return {"data": traces, "layout": layout}


def _whiskers(cell: xr.Dataset, names: Sequence[str]) -> Spec:
    if not all(f"{name}{end}" in cell for name in names for end in ("_low", "_high")):
        return {}
    up = [max(0.0, float(cell[f"{name}_high"].item() - cell[name].item())) for name in names]
    down = [max(0.0, float(cell[name].item() - cell[f"{name}_low"].item())) for name in names]
    return {"error_y": {"type": "data", "symmetric": False, "array": up, "arrayminus": down, "thickness": 1.2, "width": 3, "color": "@ink"}}


def _shift(result: Result, index: int) -> Figure:
    """How far the patch moved the log-probability towards the donor, by layer, at the strongest index."""
    data = result.data.isel(index=index)
    layers, at = data["layer"].values.tolist(), result.data["index"].values.tolist()[index]
    traces: list[Spec] = []
    styles = {"shift_import": ("@series-1", "solid", "circle"), "shift_rule": ("@series-2", "dash", "square")}
    for name, (color, dash, symbol) in styles.items():
        wording = ANSWERS[name.removeprefix("shift_")]
        traces += charts.band(data, name, layers, color)
        traces.append(charts.line(data, name, layers, label=wording, color=color, dash=dash, symbol=symbol))
        if f"{name}_random" in data:
            control = f"{wording}, random donor"
            traces.append(
                charts.line(data, f"{name}_random", layers, label=control, color="@series-3", dash="dot", symbol=f"{symbol}-open")
            )
    layout = {
        "xaxis": charts.axis("layer", showgrid=False, dtick=1 if len(layers) <= 16 else None),
        "yaxis": charts.axis("shift", "fraction of the way to the donor"),
        "hovermode": "x unified",
    }
    best = max((value for value in charts.values(data["shift_import"]) if value is not None), default=None)
    share = "–" if best is None else f"{best:.0%}"
    title = f"Patching index {at} moves the log-probability of the donor's prediction {share} of the way at most"
    caption = "(log p patched − log p base) / (log p donor − log p base). Breaking the own answer alone moves it too: see the random donor."
    spec = {"data": traces, "layout": layout}
    return chart(title, spec, alt=f"Lines of the shift fraction by layer. {title}.", caption=caption)


def _row_label(result: Result, end: str, run: str, number: int) -> str:
    """Whose sequence it is, and what that model would answer on it."""
    who, answer = ("donor", "import") if end == "src" else ("base", "own")
    name = f"example_{answer}_answer"
    says = f", next {result.data[name].values[number]}" if name in result.data else ""
    return f"{who}, in {run}{says}"


def _examples(result: Result, layer: int, src: str, dst: str) -> Figure:
    """Donor and base sequences, each token coloured by what patching its index did; indices that were not patched stay plain."""
    data = result.data
    effect = np.nan_to_num(data["example_p_import"].isel(layer=layer).values.astype(float))
    patched = {int(value): place for place, value in enumerate(data["index"].values.tolist())}
    places = data["token_index"].values.tolist() if "token_index" in data.coords else list(range(data.sizes["token_index"]))
    # Not stretched to the data: a token at chance must look like chance.
    top = max(float(effect.max(initial=0.0)), 0.5)
    frames, told = [], []
    for number in range(effect.shape[0]):
        colors = [round(float(effect[number, patched[at]]), 4) if at in patched else 0.0 for at in places]
        common = {"values": colors, "minValue": -1, "maxValue": top, "positiveColor": ACCENT}
        rows = {"src": (src, "example_src_token"), "dst": (dst, "example_dst_token")}
        panels = [
            Panel(
                "ColoredTokens",
                common | {"tokens": [str(token) for token in data[name].values[number].tolist()]},
                _row_label(result, end, run, number),
            )
            for end, (run, name) in rows.items()
        ]
        frames.append(Frame(tuple(panels), f"example {number + 1} of {effect.shape[0]}"))
        told.append(f"example {number + 1} {charts.chance(max(colors))}")
    name = data["layer"].values.tolist()[layer]
    title = f"Token by token: what patching each index of layer {name} imports"
    caption = f"Depth of blue: probability of the donor's prediction when that index alone is patched, 0 to {charts.chance(top)}."
    caption += " Plain tokens were not patched."
    return Figure(title, tuple(frames), f"{title}. Largest per example: {', '.join(told)}.", caption, stepper="example")


def _before_after(result: Result, layer: int, index: int, src: str, dst: str) -> Figure:
    """One pair's distribution over answers before the patch, after it, and the donor's; the three answers are named."""
    data = result.data
    frames, told = [], []
    for number in range(data.sizes["example"]):
        at = data.isel(example=number)
        named = {int(at[f"example_{key}_answer"].item()): words for key, words in (("own", "own"), ("rule", "rule"), ("import", "donor's"))}
        tokens = [f" {value} {named[value]} " if value in named else f" {value} " for value in data["answer"].values.tolist()]
        rows = {
            f"before, {dst} on its own sequence": at["example_before"],
            "after the patch": at["example_after"].isel(layer=layer, index=index),
            f"the donor, {src} on its own sequence": at["example_donor"],
        }
        panels = []
        for label, probabilities in rows.items():
            values = [round(value, 4) for value in probabilities.values.astype(float).tolist()]
            best = int(np.argmax(values))
            says = f"{label}: {best} with {charts.chance(values[best])}"
            panels.append(
                Panel("ColoredTokens", {"tokens": tokens, "values": values, "minValue": -1, "maxValue": 1, "positiveColor": ACCENT}, says)
            )
        frames.append(Frame(tuple(panels), f"pair {number + 1} of {data.sizes['example']}"))
        own, imported = (int(at[f"example_{key}_answer"].item()) for key in ("own", "import"))
        moved = [charts.chance(float(at["example_after"][layer, index, answer].item())) for answer in (own, imported)]
        told.append(f"pair {number + 1}: own answer {moved[0]}, donor's {moved[1]} after")
    where = f"layer {data['layer'].values.tolist()[layer]}, index {data['index'].values.tolist()[index]}"
    title = f"Before and after: what {dst} answers when {where} is {src}'s"
    caption = (
        "Every token that could come next; depth of blue: its probability, 0 to 1. own, rule and donor's are the three answers told apart."
    )
    return Figure(title, tuple(frames), f"{title}. {'; '.join(told)}.", caption, stepper="pair")
