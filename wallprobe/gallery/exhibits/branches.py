"""The exhibit of kind "branches": what attention and MLP add to the stream, how large their weights are, how wide attention looks."""

from typing import Any

from wallprobe.gallery import charts
from wallprobe.gallery.charts import Spec
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Frame, Glance, Panel, Table
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result

RATIOS = {"attn_xin": ("attention", "@series-1", "circle", "solid"), "ffn_xin": ("MLP", "@series-2", "diamond", "dash")}
ENTROPY = {"h_attn": ("attention entropy", "@series-1", "circle", "solid"), "h_max": ("uniform attention", "@muted", "square", "dot")}
COLUMNS = {
    "attn_xin": "attn/xin",
    "ffn_xin": "ffn/xin",
    "wo": "|WO|",
    "pj": "|pj|",
    "fc": "|fc|",
    "h_attn": "H_attn",
    "h_max": "H_max",
    "qk_rms": "qk_rms",
    "attn_logit_std": "attn logit σ",
}


def exhibit(result: Result) -> Exhibit:
    """Ratios and entropy by layer, or by checkpoint where there is one layer; every figure as a table."""
    data = result.data
    if not charts.has(result, *RATIOS, *ENTROPY) or data["attn_xin"].dims != ("ckpt", "layer"):
        return Exhibit(headline(result, "Branches"), tables(result))
    sections = (
        _figure(result, RATIOS, "Branch over stream", "ratio of mean norms"),
        _figure(result, ENTROPY, "Attention entropy", "nats"),
        _table(result),
    )
    glance = charts.values(data["attn_xin"].isel(ckpt=-1) if data.sizes["layer"] > 1 else data["attn_xin"].isel(layer=0))
    return Exhibit(headline(result, "Branches"), sections, Glance("line", (tuple(glance),)))


def _figure(result: Result, shown: dict[str, tuple[str, str, str, str]], what: str, unit: str) -> Figure:
    """Over layers, a frame a checkpoint; over checkpoints where no model has a second layer."""
    data = result.data
    alone = data.sizes["layer"] == 1
    frames = []
    for name in ["all checkpoints"] if alone else data["ckpt"].values.tolist():
        at = data.isel(layer=0) if alone else data.sel(ckpt=name)
        x: list[Any] = [charts.text(ckpt) for ckpt in data["ckpt"].values] if alone else data["layer"].values.tolist()
        traces = [
            charts.line(at, key, x, label=label, color=color, symbol=mark, dash=dash) for key, (label, color, mark, dash) in shown.items()
        ]
        kind = charts.scale(*(trace["y"] for trace in traces)) if unit != "nats" else {"rangemode": "tozero"}
        across = (
            charts.axis("checkpoint", type="category") if alone else charts.axis("layer", showgrid=False, dtick=1 if len(x) <= 16 else None)
        )
        spec: Spec = {
            "data": traces,
            "layout": {"xaxis": across, "yaxis": charts.axis(what.lower(), unit, **kind), "hovermode": "x unified"},
        }
        frames.append(Frame((Panel(PLOTLY, spec),), str(name)))
    key = next(iter(shown))
    last = [value for value in charts.values((data.isel(layer=0) if alone else data.isel(ckpt=-1))[key]) if value is not None]
    told = f"{shown[key][0]} from {charts.number(min(last))} to {charts.number(max(last))}" if last else "nothing to show"
    title = f"{what}: {told}"
    words = {
        "nats": "Mean over heads and queries; uniform attention over the keys each query may see is the most there can be.",
    }
    caption = words.get(unit, "Mean norm of what a branch adds over the mean norm of the stream entering the block; means over tokens.")
    return Figure(title, tuple(frames), f"Lines. {title}.", caption, stepper="checkpoint", first=len(frames) - 1, height=320)


def _table(result: Result) -> Table:
    data, rows = result.data, []
    for cell in result.values:
        if cell["attn_xin"] is None:
            continue
        logit = float(data["logit_std"].sel(ckpt=cell["ckpt"])) if "logit_std" in data else None
        rows.append([cell["ckpt"], cell["layer"], *(cell.get(name) for name in COLUMNS), logit])
    caption = "Weights: Frobenius norms (pj writes, fc reads, the MLP). qk_rms: of queries and keys. σ: spread over keys, over tokens."
    return Table("Every figure", ("ckpt", "layer", *COLUMNS.values(), "logit σ"), rows, caption)
