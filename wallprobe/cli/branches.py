"""`wallprobe branches`: how much each branch adds, and what attention does."""

from typing import TYPE_CHECKING, Any

import typer

from wallprobe.cli import common, diagnosing

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


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(branches)


def branches(
    models: diagnosing.Models,
    prompts: diagnosing.Prompts = None,
    text: diagnosing.Text = None,
    batches: diagnosing.Batches = 4,
    size: diagnosing.Size = None,
    length: diagnosing.Length = None,
    seed: diagnosing.Seed = 0,
    device: common.Device = "auto",
    runs: common.Runs = None,
    results: common.Results = None,
    json: common.Json = False,
) -> None:
    """How much do attention and MLP add to the stream they read, how large are their weights, how spread out is attention?"""
    from wallprobe.hooks.diagnostics import branches as instrument
    from wallprobe.store.manifest import Stopwatch

    watch, want = Stopwatch(), diagnosing.wanted(prompts, text, batches, size, length, seed)
    pairs = diagnosing.each(
        models, "branches", want, lambda found, follow: (found, instrument.measure(found, follow)), device=device, runs=runs
    )
    subjects, measured = [found for found, _ in pairs], [figures for _, figures in pairs]
    result = instrument.report(subjects, measured, watch, seed=seed)
    result.save(results)
    summaries = [instrument.summary_of(found, figures) for found, figures in pairs]
    if json:
        common.print_json(result.to_json() | ({"summary": summaries} if len(pairs) > 1 else {}))
        return
    out = common.out()
    out.print(_table(result))
    for summary in summaries:
        out.print(summary["finding"], style="bold", soft_wrap=True, markup=False)
    out.print("[dim]see it: wallprobe gallery --open[/dim]")


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
