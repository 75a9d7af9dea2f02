"""`wallprobe eval`: runs against the exact Bayesian answer."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common

if TYPE_CHECKING:
    from wallprobe.results import Result


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="eval")(evaluate)


def evaluate(
    names: Annotated[list[str], typer.Argument(help="Runs: c0, p5@1337, or a run's folder.", metavar="RUN...")],
    sequences: Annotated[int, typer.Option(help="Fresh sequences to measure on.", min=2)] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of those sequences.")] = 0,
    device: common.Device = "auto",
    runs: common.Runs = None,
    results: common.Results = None,
    json: common.Json = False,
) -> None:
    """Measure runs against the exact Bayesian answer: the wall in entropy, and whether the mass is on the right token."""
    from pathlib import Path

    from wallprobe import models
    from wallprobe.runs import find_run, is_run_folder, open_run
    from wallprobe.training.evaluate import evaluate as measure

    place = models.pick_device(device)
    found = [open_run(Path(name)) if is_run_folder(Path(name)) else find_run(name, runs) for name in names]
    for run in found:
        run.verify()
    measured = []
    with common.progress() as view:
        bar = view.add_task("evaluate", total=len(found))
        for run in found:
            measured.append(measure(run, sequences=sequences, seed=seed, device=place))
            view.advance(bar)
    for result in measured:
        result.save(results)
    if json:
        common.print_json(common.together(measured, "run"))
        return
    common.out().print(_summary_table(measured))
    common.out().print(_position_table(measured))
    for result in measured:
        common.out().print(result.summary["finding"], soft_wrap=True)


def _summary_table(measured: "list[Result]") -> Any:
    from rich.table import Table

    from wallprobe.claims.wall import published

    table = Table(title="Against the exact Bayesian answer (95 % interval; [dim]seed's figure[/dim])", title_justify="left")
    columns = {
        "trained_mae": "trained MAE\nbits",
        "untrained_mae": "untrained MAE\nbits",
        "wall_ratio": "wall ratio",
        "kl_nats": "KL(P||Q)\nnats",
        "class_posterior_mae": "class-post. MAE\nt >= 4, all",
        "class_posterior_mae_program": "class-post. MAE\nprograms",
        "bayes_best_mass": "mass on Bayes-best\nunsupervised",
        "bayes_best_posterior": "exact\nmass",
    }
    table.add_column("run")
    for title in columns.values():
        table.add_column(title, justify="right")
    for result in measured:
        cells = []
        for key in columns:
            value, low, high = (result.summary[key + suffix] for suffix in ("", "_low", "_high"))
            digits = 4 if value < 0.01 else 3 if value < 10 else 1
            seen = published(result.summary["run"], key)
            note = "" if seen is None else f"\n[dim]seed {seen}[/dim]"
            cells.append(f"{value:.{digits}f}\n[{low:.{digits}f}, {high:.{digits}f}]".replace("[", r"\[") + note)
        table.add_row(str(result.summary["run"]), *cells)
        table.add_section()
    return table


def _position_table(measured: "list[Result]") -> Any:
    from rich.table import Table

    table = Table(title="Mean |H(P) - H(Q)| in bits by position (the wall is after K)", title_justify="left")
    table.add_column("run")
    positions = measured[0].data["position"].values
    for position in positions:
        horizon = int(measured[0].data.attrs["horizon"])
        table.add_column(f"{position}{' |' if position == horizon else ''}", justify="right")
    for result in measured:
        horizon = int(result.data.attrs["horizon"])
        cells = zip(result.data["position"].values, result.data["mae"].values, strict=True)
        table.add_row(str(result.summary["run"]), *(f"{value:.2f}" if at > horizon else f"[bold]{value:.2f}[/bold]" for at, value in cells))
    return table
