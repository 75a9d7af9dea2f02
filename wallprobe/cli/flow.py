"""`wallprobe flow`: what a model would say after each layer, and how many directions its states take."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import options, reading, streaming

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from wallprobe.hooks.attach.prompt_sets import PromptSet
    from wallprobe.models.streamed import Streamed
    from wallprobe.store.results import Result

HEADS = {
    "lens_entropy_mean": "entropy,\nno sinks",
    "lens_nll": "loss",
    "lens_top1": "top-1",
    "erank": "effective\nrank",
    "erank_no_sink": "  no sinks",
    "participation": "participation",
    "participation_no_sink": "  no sinks",
}


def flow(
    models: options.Models,
    *,
    sources: options.Sources,
    unigram: Annotated[
        Path | None, typer.Option(help="Text whose tokens make the unigram model of eta_ppl.", show_default="the other prompts")
    ] = None,
    memory: options.Memory,
    place: options.Place,
) -> None:
    """Logit-lens entropy and loss, effective rank and participation ratio after every layer, and nats per unit of gain."""
    from wallprobe.hooks.flow.lens import flow as instrument
    from wallprobe.hooks.flow.lens_strips import held_bytes
    from wallprobe.hooks.flow.streaming import stream_flow
    from wallprobe.hooks.gains.efficiency import read_text

    if unigram is not None:
        read_text(unigram)  # a bad file is told before half a minute of loading
    room = streaming.Room.of(memory.stream, memory, place)

    def work(model: "Streamed", chosen: "PromptSet", state: Path, follow: Callable[[int, int], None]) -> "Result":
        return stream_flow(model, chosen, unigram=unigram, state=state, max_ram=room.budget, device=room.device, on_progress=follow)

    def by_blocks(name: str, view: "Progress", bar: "TaskID") -> "Result | None":
        return streaming.run(name, sources, room, work, view, bar, held_bytes) if room.streams(name) else None

    reading.measure(
        models,
        "flow",
        lambda loaded, chosen, follow: instrument(loaded, chosen, unigram=unigram, on_progress=follow),
        sources,
        place,
        _table,
        by_blocks,
    )


def _table(result: "Result") -> Any:
    from rich.markup import escape

    from wallprobe.cli.gains_tables import figure, stamp
    from wallprobe.cli.packed import Packed

    rows = []
    for row in result.values:
        half = "" if row["lens_entropy_low"] is None else f" [dim]±{figure((row['lens_entropy_high'] - row['lens_entropy_low']) / 2)}[/dim]"
        rows.append([str(row["layer"]), figure(row["lens_entropy"]) + half, *(figure(row[name]) for name in HEADS)])
    heads = ("layer", "entropy,\nlast token", *HEADS.values())
    told = stamp(result, f"{result.summary['n_states']} states", "± half the 95 % interval over prompts")
    title = f"Flow of {escape(result.manifest['subject'])}: the logit lens, and the rank of centred states"
    return Packed(title, heads, rows, told), *_lines(result.summary)


def _lines(summary: "dict[str, Any]") -> tuple[str, ...]:
    """Efficiency by both readings, all positions and without sinks, and where the bottleneck lies."""
    from wallprobe.cli.gains_tables import figure

    def both(name: str) -> str:
        parts = []
        for suffix, words in (("", ""), ("_no_sink", ", without sinks ")):
            low, high = summary[f"{name}{suffix}_low"], summary[f"{name}{suffix}_high"]
            between = "" if low is None or not math.isfinite(low) else f" [{figure(low)}, {figure(high)}]"
            parts.append(f"{words}{figure(summary[f'{name}{suffix}'])}{between}")
        return "".join(parts)

    seen = f"{summary['unigram']}: {summary['unigram_tokens']:,} tokens, {summary['unigram_types']:,} types"
    seen += f", {summary['unigram_seen']:.0%} of what is scored among them"
    perplexity = f"{both('eta_ppl')} (unigram {figure(summary['ppl_unigram'])}, model {figure(summary['ppl'])}; {seen})"
    streamed = (
        (f"streamed:                     one block at a time, peak {figure(summary['peak_gib'])} GiB of anonymous memory",)
        if summary.get("streamed")
        else ()
    )
    return (
        *streamed,
        f"eta, (ln V - loss) / F:       {both('eta')} nats per unit of the last MLP's gain",
        f"eta, PPL unigram / PPL / F:   {f'none: {reason}' if (reason := summary['unigram_reason']) else perplexity}",
        f"F, the last MLP's gain:       {figure(summary['final_mlp_gain'])}, without sinks {figure(summary['final_mlp_gain_no_sink'])}",
        f"bottleneck L*:                layer {summary['l_star_argmin_lens_entropy']} by logit-lens entropy, "
        f"{summary['l_star_argmin_erank']} by effective rank, {summary['l_star_argmin_net']} by attention x MLP",
    )
