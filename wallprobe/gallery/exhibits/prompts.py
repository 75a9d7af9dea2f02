"""The exhibit of kind "prompts": where in the network, and on which token, the clean answer lies."""

import math

import numpy as np

from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Frame, Glance, Panel
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.results import Result


def exhibit(result: Result) -> Exhibit:
    """A heatmap over layer and token for every site, and the strongest token's way up the layers beside its controls."""
    src, dst = (str(result.data.attrs.get(key) or key) for key in ("src", "dst"))
    otherwise = f"Interchange from {src} to {dst} on pairs of prompts"
    if not charts.has(result, "restored", "example_token") or result.data["restored"].dims != ("site", "layer", "index"):
        return Exhibit(headline(result, otherwise), tables(result))
    sites = [str(site) for site in result.data["site"].values.tolist()]
    peak = {site: float(np.nanmax(result.data["restored"].isel(site=place).values)) for place, site in enumerate(sites)}
    sites.sort(key=lambda site: -peak[site])
    labels = _labels(result)
    frames = tuple(Frame((Panel(PLOTLY, _heat(result, site, labels)),), f"{site}: at most {peak[site]:.2f}") for site in sites)
    title = f"One activation restores at most {peak[sites[0]]:.2f} of the clean answer (site {sites[0]})"
    caption = (
        "Share of the difference in logits between corrupt (0) and clean prompt (1) that src's activation restores in dst; mean over "
        "pairs. Tokens are the first clean prompt's. Grey is 0 or less."
    )
    alt = f"Heatmap of {result.data.sizes['layer']} layers by {len(labels)} tokens. {title}."
    height = max(260, 18 * result.data.sizes["layer"] + 140)
    heat = Figure(title, frames, alt, caption, stepper="site", height=height)
    grid = result.data["restored"].sel(site=sites[0]).values.astype(float)
    glance = Glance("cells", tuple(tuple(None if math.isnan(cell) else float(cell) for cell in row) for row in grid), 0.0)
    return Exhibit(headline(result, otherwise), (heat, _layers(result, sites[0], labels)), glance)


def _labels(result: Result) -> list[str]:
    """Index and token: plotly would merge two tokens that read alike."""
    words = [str(word) for word in result.data["example_token"].values.tolist()]
    return [
        charts.text(f"{index} {word.strip() or repr(word)}")
        for index, word in zip(result.data["index"].values.tolist(), words, strict=True)
    ]


def _heat(result: Result, site: str, labels: list[str]) -> Spec:
    cells = result.data["restored"].sel(site=site).values.astype(float)
    heat: Spec = {
        "type": "heatmap",
        "x": labels,
        "y": result.data["layer"].values.tolist(),
        "z": [[None if math.isnan(value) else value for value in row] for row in cells.tolist()],
        "coloraxis": "coloraxis",
        "xgap": 1,
        "ygap": 1,
        "hovertemplate": "layer %{y}, %{x}: %{z:.3f}<extra></extra>",
    }
    layout = {
        "xaxis": charts.axis("index and token") | {"type": "category", "showgrid": False},
        "yaxis": charts.axis("layer") | {"showgrid": False, "zeroline": False},
        "coloraxis": {"colorscale": "@anchored:0", "cmin": 0, "cmax": 1, "colorbar": {"title": {"text": "restored"}, "thickness": 12}},
    }
    return {"data": [heat], "layout": layout}


def _layers(result: Result, site: str, labels: list[str]) -> Figure:
    """One token's restored share by layer, a step a token, opened at the one that restores most."""
    data = result.data.sel(site=site)
    first = int(np.nanargmax(np.nanmax(data["restored"].values.astype(float), axis=0)))
    layers, frames = data["layer"].values.tolist(), []
    for place, label in enumerate(labels):
        at = data.isel(index=place)
        traces = [
            *charts.band(at, "restored", layers, "@series-1"),
            charts.line(at, "restored", layers, label="donor's state", color="@series-1"),
            charts.line(at, "restored_random", layers, label="random donor", color="@series-3", dash="dash", symbol="square"),
            charts.line(at, "restored_norm", layers, label="random vector", color="@series-4", dash="dot", symbol="diamond"),
        ]
        layout = {"xaxis": charts.axis("layer"), "yaxis": charts.axis("restored share", "fraction")}
        frames.append(Frame((Panel(PLOTLY, {"data": traces, "layout": layout}),), label))
    title = f"By layer, at the token that restores most ({labels[first]}, site {site})"
    caption = "Band: 95 % interval over pairs. A random donor is another pair's clean prompt; a random vector has the donor's norm."
    return Figure(title, tuple(frames), f"Line chart. {title}.", caption, stepper="token", first=first)
