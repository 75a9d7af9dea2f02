"""The exhibit of kind "prompts": where in the network, and on which token, the clean answer lies."""

import math
from collections.abc import Sequence

import numpy as np

from wallprobe.findings import foremost
from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Frame, Glance, Panel, Table
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result

ACCENT, WARM = "#0b5fa5", "#b8470b"


def exhibit(result: Result) -> Exhibit:
    """A heatmap over layer and token for every site, and the strongest token's way up the layers beside its controls."""
    src, dst = (str(result.data.attrs.get(key) or key) for key in ("src", "dst"))
    otherwise = f"Interchange from {src} to {dst} on pairs of prompts"
    if not charts.has(result, "restored", "example_clean_token") or result.data["restored"].dims != ("site", "layer", "index"):
        return Exhibit(headline(result, otherwise), tables(result))
    sites = [str(site) for site in result.data["site"].values.tolist()]
    peak = {site: float(np.nanmax(result.data["restored"].isel(site=place).values)) for place, site in enumerate(sites)}
    most = sites[foremost([peak[site] for site in sites]) or 0]
    sites.sort(key=lambda site: (site != most, -peak[site]))
    labels = _labels(result)
    frames = tuple(Frame((Panel(PLOTLY, _heat(result, site, labels)),), f"{site}: at most {peak[site]:.2f}") for site in sites)
    title = f"One activation restores at most {peak[sites[0]]:.2f} of the clean answer (site {sites[0]})"
    caption = (
        "Share of the difference in logits between corrupt (0) and clean prompt (1) that src's activation restores in dst; mean over "
        "pairs. Tokens are the first clean prompt's. The palest is 0 or less."
    )
    alt = f"Heatmap of {result.data.sizes['layer']} layers by {len(labels)} tokens. {title}."
    height = max(260, 18 * result.data.sizes["layer"] + 140)
    heat = Figure(title, frames, alt, caption, stepper="site", height=height)
    grid = result.data["restored"].sel(site=sites[0]).values.astype(float)
    glance = Glance("cells", tuple(tuple(None if math.isnan(cell) else float(cell) for cell in row) for row in grid), 0.0)
    sections: list[Figure | Table] = [heat, _layers(result, sites[0], labels)]
    if charts.has(result, "example_corrupt_token", "example_p_answer", "example_base_p_answer", "example_answer"):
        sections.insert(1, _examples(result, sites[0]))
    return Exhibit(headline(result, otherwise), tuple(sections), glance)


def _labels(result: Result) -> list[str]:
    """Index and token: plotly would merge two tokens that read alike."""
    words = [str(word) for word in result.data["example_clean_token"].values[0].tolist()]
    return [charts.text(f"{index} {words[index].strip() or repr(words[index])}") for index in result.data["index"].values.tolist()]


def _heat(result: Result, site: str, labels: list[str]) -> Spec:
    cells = result.data["restored"].sel(site=site).values.astype(float)
    layers = result.data["layer"].values.tolist()
    heat: Spec = {
        "type": "heatmap",
        "x": labels,
        "y": layers,
        "z": [[None if math.isnan(value) else value for value in row] for row in cells.tolist()],
        "coloraxis": "coloraxis",
        "xgap": 1,
        "ygap": 1,
        "hovertemplate": "layer %{y}, %{x}: %{z:.3f}<extra></extra>",
    }
    layout = {
        "xaxis": charts.axis("index and token") | {"type": "category", "showgrid": False},
        "yaxis": charts.axis("layer", dtick=1 if len(layers) <= 16 else None) | {"showgrid": False, "zeroline": False},
        "coloraxis": {"colorscale": "@anchored:0", "cmin": 0, "cmax": 1, "colorbar": {"title": {"text": "restored"}, "thickness": 12}},
    }
    return {"data": [heat], "layout": layout}


def _layers(result: Result, site: str, labels: list[str]) -> Figure:
    """One token's restored share by layer, a step a token, opened at the one that restores most."""
    data = result.data.sel(site=site)
    first = foremost(np.nanmax(data["restored"].values.astype(float), axis=0).tolist()) or 0
    layers, frames = data["layer"].values.tolist(), []
    for place, label in enumerate(labels):
        at = data.isel(index=place)
        traces = [
            *charts.band(at, "restored", layers, "@series-1"),
            charts.line(at, "restored", layers, label="donor's state", color="@series-1"),
            charts.line(at, "restored_random", layers, label="random donor", color="@series-3", dash="dash", symbol="square"),
            charts.line(at, "restored_mismatched", layers, label="other answer's donor", color="@series-2", dash="dashdot", symbol="x"),
            charts.line(at, "restored_norm", layers, label="random vector", color="@series-4", dash="dot", symbol="diamond"),
        ]
        layout = {"xaxis": charts.axis("layer", dtick=1 if len(layers) <= 16 else None), "yaxis": charts.axis("restored share", "fraction")}
        frames.append(Frame((Panel(PLOTLY, {"data": traces, "layout": layout}),), label))
    pairs = result.summary.get("n_pairs", "the")
    best = float(np.nanmax(data["restored"].values.astype(float)))
    title = f"By layer, at the token that restores most, {best:.2f} ({labels[first]}, site {site})"
    caption = (
        f"Band: 95 % interval over {pairs} pairs. Random donor: another pair's clean prompt; other answer's donor: one that must have "
        "another answer; random vector: of the donor's norm."
    )
    return Figure(title, tuple(frames), f"Line chart. {title}.", caption, stepper="token", first=first)


def _examples(result: Result, site: str) -> Figure:
    """Clean and corrupt prompt before the patch, and the corrupt one after it, each token coloured by what patching it alone does."""
    data = result.data.sel(site=site)
    grid = np.nan_to_num(data["restored"].values.astype(float), nan=-math.inf)
    layer = int(np.unravel_index(int(grid.argmax()), grid.shape)[0])
    name, indices = data["layer"].values.tolist()[layer], data["index"].values.tolist()
    places = data["token_index"].values.tolist()
    frames, told = [], []
    for number in range(data.sizes["example"]):
        at = data.isel(example=number)
        answer, wrong = (str(at[f"example_{which}"].item()) for which in ("answer", "wrong"))
        word = answer.strip() or repr(answer)
        before, clean = (float(at[f"example_{which}_p_answer"].item()) for which in ("base", "clean"))
        found = dict(zip(indices, at["example_p_answer"].isel(layer=layer).values.astype(float).tolist(), strict=True))
        after = max((value for value in found.values() if not math.isnan(value)), default=before)
        clean_tokens, corrupt_tokens = (
            [str(token) for token in at[f"example_{which}_token"].values.tolist()] for which in ("clean", "corrupt")
        )
        gained = [found[place] - before if place in found and not math.isnan(found[place]) else 0.0 for place in places]
        # Coloured against what the clean prompt itself gains, so that two examples compare.
        top = max(clean - before, *map(abs, gained), 0.05)
        differ = [float(one != other) for one, other in zip(clean_tokens, corrupt_tokens, strict=True)]
        panels = (
            _tokens(clean_tokens, [0.45 * mark for mark in differ], 1.0, f"clean: p({word}) = {charts.chance(clean)}"),
            _tokens(corrupt_tokens, [-0.45 * mark for mark in differ], 1.0, f"corrupt, before: p({word}) = {charts.chance(before)}"),
            _tokens(corrupt_tokens, gained, top, f"corrupt, after one token's patch: p({word}) up to {charts.chance(after)}"),
        )
        frames.append(Frame(panels, f"pair {number + 1}: {answer.strip()} or {wrong.strip()}"))
        told.append(f"{' '.join(token.strip() for token in corrupt_tokens)}: {charts.chance(before)} before, {charts.chance(after)} after")
    title = f"Token by token: what patching each one at layer {name} ({site}) does to an example's answer"
    caption = (
        "First two rows: dst on both prompts; coloured where they differ. Third row: blue, patching that token alone raises the "
        "probability of the clean answer; "
        "orange, it lowers it. Full colour is as high as on the clean prompt."
    )
    return Figure(title, tuple(frames), f"{title}. {'; '.join(told)}.", caption, stepper="pair")


def _tokens(tokens: Sequence[str], values: Sequence[float], top: float, label: str) -> Panel:
    props = {"tokens": list(tokens), "values": [round(value, 4) for value in values], "minValue": -top, "maxValue": top}
    return Panel("ColoredTokens", props | {"positiveColor": ACCENT, "negativeColor": WARM}, label)
