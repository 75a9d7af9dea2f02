"""`wallprobe eval`: runs against the exact Bayesian answer."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, options
from wallprobe.cli.packed import empty

if TYPE_CHECKING:
    from wallprobe.store.results import Result


def evaluate(
    names: options.RunNames,
    task: Annotated[
        str | None,
        typer.Option(help="Another task, or other fields of its own: quadratic, heldout-prefix:split=held.", show_default="its own"),
    ] = None,
    length: Annotated[int | None, typer.Option(help="Tokens a sequence.", show_default="the task's")] = None,
    modulus: Annotated[int | None, typer.Option(help="p of the task.", show_default="the task's")] = None,
    sequences: options.Sequences = 2000,
    seed: options.Seed = 0,
    *,
    place: options.Place,
) -> None:
    """Measure runs against the exact Bayesian answer: the wall in entropy, and whether the mass is on the right token."""
    from wallprobe.training.wall.asked import asked_task
    from wallprobe.training.wall.asked import evaluate as measure

    measured = common.measure_runs(
        names,
        "evaluate",
        lambda run, device, bar: measure(run, task=task, length=length, modulus=modulus, sequences=sequences, seed=seed, device=device),
        place,
        check=lambda run: asked_task(run, task, length, modulus),
    )
    for result in measured:
        result.save(place.results)
    if place.json:
        common.print_json(common.together(measured, "run"))
        return
    common.out().print(_summary_table(measured))
    common.out().print(_position_table(measured))
    for result in measured:
        common.out().print(result.summary["finding"], soft_wrap=True)


ROWS = {
    "trained_mae": "MAE supervised, bits",
    "untrained_mae": "MAE unsupervised",
    "wall_ratio": "wall ratio",
    "kl_nats": "KL(P||Q), nats",
    "class_posterior_mae": "class-posterior MAE",
    "class_posterior_mae_program": "  programs only",
    "bayes_best_mass": "Bayes-best mass",
    "bayes_best_mass_geomean": "  geometric mean",
    "bayes_best_posterior": "  exact answer's",
}


def _with_interval(summary: "dict[str, Any]", key: str) -> str:
    """Three significant digits and half the 95 % interval (the interval itself is in --json)."""
    value, half = summary[key], (summary[f"{key}_high"] - summary[f"{key}_low"]) / 2
    if value < 0.001:
        return f"[bold]{value:.1e}[/bold]"
    decimals = 4 if value < 0.01 else 3 if value < 1 else 2 if value < 10 else 1
    spread = f"{half:.{decimals}f}".removeprefix("0" if half < 1 else "")
    return f"[bold]{value:.{decimals}f}[/bold] [dim]±{spread}[/dim]"


def _summary_table(measured: "list[Result]") -> Any:
    """Figures down, runs across."""

    from wallprobe.claims.wall.area import published

    title = "Against the exact answer (95 % interval; published figure in brackets)"
    table = empty(title)
    table.add_column("", no_wrap=True)
    for result in measured:
        table.add_column(str(result.summary["run"]), justify="right")
    for key, label in ROWS.items():
        # The published figures are of the recurrence as published.
        seen = [published(result.summary["run"], key) if result.summary["task"] == "recurrence" else None for result in measured]
        cells = [_with_interval(result.summary, key) for result in measured]
        if any(figure is not None for figure in seen):
            cells = [f"{cell}\n{'' if figure is None else f'({figure:g})'}" for cell, figure in zip(cells, seen, strict=True)]
        table.add_row(label, *cells)
    return table


def _position_table(measured: "list[Result]") -> Any:
    """Positions down, runs across, the wall drawn as a line."""
    from rich.table import Table

    table = Table(title="Mean |H(P) - H(Q)| in bits\n(the line is the wall)", title_justify="left")
    table.add_column("position", justify="right")
    for result in measured:
        table.add_column(str(result.summary["run"]), justify="right")
    horizon = int(measured[0].data.attrs["horizon"])
    for position in measured[0].data["position"].values:
        cells = [f"{float(result.data['mae'].sel(position=position)):.3f}" for result in measured]
        table.add_row(str(position), *cells, end_section=bool(position == horizon))
    return table
