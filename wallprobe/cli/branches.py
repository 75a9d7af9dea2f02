"""`wallprobe branches`: how much each branch adds, and what attention does."""

from typing import TYPE_CHECKING, Any

from wallprobe.cli import diagnosing, options

if TYPE_CHECKING:
    from wallprobe.store.results import Result

COLUMNS = {
    "attn_xin": ("attn/xin", ".3f"),
    "ffn_xin": ("ffn/xin", ".3f"),
    "wo": ("|WO|", ".3g"),
    "pj": ("|pj|", ".3g"),
    "fc": ("|fc|", ".3g"),
    "h_attn": ("H_attn", ".2f"),
    "h_max": ("H_max", ".2f"),
    "qk_rms": ("qk_rms", ".3f"),
    "attn_logit_std": ("attn σ", ".3f"),
}


def branches(models: options.Checkpoints, *, sample: options.Sample, place: options.Place) -> None:
    """How much do attention and MLP add to the stream they read, how large are their weights, how spread out is attention?"""
    from wallprobe.hooks.diagnostics import branches as instrument
    from wallprobe.store.manifest import Stopwatch

    watch, want = Stopwatch(), sample.wanted()
    pairs = diagnosing.each(models, "branches", want, lambda found, follow: (found, instrument.measure(found, follow)), place)
    subjects, measured = [found for found, _ in pairs], [figures for _, figures in pairs]
    result = instrument.report(subjects, measured, watch, seed=sample.seed)
    summaries = [instrument.summary_of(found, figures) for found, figures in pairs]
    diagnosing.finish(result, summaries, place, map(_table, [result]))


def _table(result: "Result") -> Any:
    """A row a checkpoint and layer; the output logits' spread stands with the last layer."""
    table = diagnosing.narrow("Branches, means over tokens")
    table.add_column("ckpt", overflow="ellipsis", max_width=14)
    for head in ("layer", *(head for head, _ in COLUMNS.values()), "logit σ"):
        table.add_column(head, justify="right")
    for ckpt in result.data["ckpt"].values.tolist():
        rows = [cell for cell in result.values if cell["ckpt"] == ckpt and cell["attn_xin"] is not None]
        for place, cell in enumerate(rows):
            last = f"{float(result.data['logit_std'].sel(ckpt=ckpt)):.2f}" if place == len(rows) - 1 else ""
            figures = (diagnosing.figure(cell[name], form) for name, (_, form) in COLUMNS.items())
            table.add_row("" if place else ckpt, str(cell["layer"]), *figures, last)
    return table
