"""`wallprobe temperature`: whether any rescaling of the logits recovers the exact answer."""

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, options
from wallprobe.cli.packed import empty

if TYPE_CHECKING:
    from wallprobe.store.results import Result


def temperature(
    names: options.RunNames,
    temperatures: Annotated[
        str | None, typer.Option(help="Temperatures of the sweep, such as 0.5,1,2.", show_default="31 from 0.1 to 100")
    ] = None,
    sequences: options.Sequences = 2000,
    seed: options.Seed = 0,
    *,
    place: options.Place,
) -> None:
    """KL from the exact answer over softmax temperatures, and the best one of each position: can a temperature recover Bayes?"""
    from wallprobe.hooks.wall import temperature as instrument

    grid = instrument.GRID if temperatures is None else instrument.parse_temperatures(temperatures)
    measured = common.measure_runs(
        names,
        "temperature",
        lambda run, device, bar: instrument.temperature(run, temperatures=grid, sequences=sequences, seed=seed, device=device),
        place,
    )
    common.finish_each(measured, "run", place, common.printing(_table))


def _temperature(value: float) -> str:
    return "inf" if math.isinf(value) else f"{value:.0f}" if value >= 100 else f"{value:.2f}"


def _table(result: "Result") -> Any:
    """Positions down, the wall drawn as a line."""
    data, horizon = result.data, int(result.data.attrs["horizon"])
    title = f"{result.summary['run']}: KL(P || Q_T) in bits, ±half the 95 % interval (the line is the wall)"
    table = empty(title)
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
