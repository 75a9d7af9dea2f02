"""`wallprobe flow`: what a model would say after each layer, and how many directions its states take."""

from typing import TYPE_CHECKING, Any

import typer

from wallprobe.cli import common, reading

if TYPE_CHECKING:
    from wallprobe.results import Result


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="flow")(flow)


def flow(
    models: reading.Models,
    prompts: reading.Prompts = None,
    column: reading.Column = None,
    limit: reading.Limit = None,
    device: common.Device = "auto",
    runs: common.Runs = None,
    results: common.Results = None,
    json: common.Json = False,
) -> None:
    """Logit-lens entropy and loss, effective rank and participation ratio after every layer, and nats per unit of gain."""
    from wallprobe.hooks.flow import flow as instrument

    measured = reading.measure(
        models,
        "flow",
        lambda loaded, chosen, follow: instrument(loaded, chosen, on_progress=follow),
        (prompts, column, limit),
        device=device,
        runs=runs,
        results=results,
    )
    reading.show(measured, json, _table)


def _table(result: "Result") -> Any:
    from rich.markup import escape

    from wallprobe.cli.gains_tables import empty, figure

    summary = result.summary
    caption = (
        f"{summary['n_prompts']} prompts ({escape(summary['prompts'])}), {summary['n_states']} states; ± half the 95 % interval; "
        f"eta {figure(summary['eta'])} nats per unit of gain, {figure(summary['eta_no_sink'])} without sinks"
    )
    table = empty(f"Flow of {escape(result.manifest['subject'])}: the logit lens, and the rank of centred states", caption)
    heads = (
        "layer",
        "entropy,\nlast token",
        "entropy,\nno sinks",
        "loss",
        "top-1",
        "effective\nrank",
        "  no sinks",
        "participation",
        "  no sinks",
    )
    for head in heads:
        table.add_column(head, justify="right", no_wrap=True)
    for row in result.values:
        half = "" if row["lens_entropy_low"] is None else f" [dim]±{figure((row['lens_entropy_high'] - row['lens_entropy_low']) / 2)}[/dim]"
        names = ("lens_entropy_mean", "lens_nll", "lens_top1", "erank", "erank_no_sink", "participation", "participation_no_sink")
        table.add_row(str(row["layer"]), figure(row["lens_entropy"]) + half, *(figure(row[name]) for name in names))
    return table
