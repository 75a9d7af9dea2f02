"""`wallprobe temperature`: whether any rescaling of the logits recovers the exact answer."""

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common

if TYPE_CHECKING:
    from wallprobe.store.results import Result


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(temperature)


def temperature(
    names: Annotated[list[str], typer.Argument(help="Runs: c0, p5@1337, or a run's folder.", metavar="RUN...")],
    temperatures: Annotated[
        str | None, typer.Option(help="Temperatures of the sweep, such as 0.5,1,2.", show_default="31 from 0.1 to 100")
    ] = None,
    sequences: Annotated[int, typer.Option(help="Fresh sequences to measure on.", min=2)] = 2000,
    seed: Annotated[int, typer.Option(help="Seed of those sequences.")] = 0,
    device: common.Device = "auto",
    runs: common.Runs = None,
    results: common.Results = None,
    json: common.Json = False,
) -> None:
    """KL from the exact answer over softmax temperatures, and the best one of each position: can a temperature recover Bayes?"""
    from wallprobe.hooks.wall import temperature as instrument

    grid = instrument.GRID if temperatures is None else instrument.parse_temperatures(temperatures)
    measured = common.measure_runs(
        names,
        "temperature",
        lambda run, place: instrument.temperature(run, temperatures=grid, sequences=sequences, seed=seed, device=place),
        device=device,
        runs=runs,
        results=results,
    )
    common.print_measured(measured, json, _table)


def _temperature(value: float) -> str:
    return "inf" if math.isinf(value) else f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def _table(result: "Result") -> Any:
    """Positions down, the wall drawn as a line."""
    from rich import box
    from rich.table import Table

    data, horizon = result.data, int(result.data.attrs["horizon"])
    title = f"{result.summary['run']}: KL(P || Q_T) in bits, ±half the 95 % interval (the line is the wall)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("position", "T = 1", "best T", "KL at best T", "uniform guess", "top-1", "exact top-1"):
        table.add_column(head, justify="right", no_wrap=True)
    for position in data["position"].values:
        at = {str(name): float(array) for name, array in data.drop_dims("temperature").sel(position=position).data_vars.items()}
        half = (at["kl_at_t_star_bits_high"] - at["kl_at_t_star_bits_low"]) / 2
        table.add_row(
            str(position),
            f"{at['kl_at_one_bits']:.3f}",
            _temperature(at["t_star"]),
            f"{at['kl_at_t_star_bits']:.3f} [dim]±{half:.3f}[/dim]",
            f"{at['kl_uniform_bits']:.3f}",
            f"{at['top1']:.3f}",
            f"{at['top1_exact']:.3f}",
            end_section=bool(position == horizon),
        )
    return table
