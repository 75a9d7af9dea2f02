"""`wallprobe calibration`: as sure as it should be, and sure of the right token?"""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, options
from wallprobe.cli.packed import empty

if TYPE_CHECKING:
    from wallprobe.store.results import Result


def calibration(
    names: options.RunNames,
    bins: Annotated[int, typer.Option(help="Equal bins of confidence.", min=2)] = 10,
    sequences: options.Sequences = 2000,
    seed: options.Seed = 0,
    *,
    place: options.Place,
) -> None:
    """Calibration beside correctness: what agreement in entropy cannot see."""
    from wallprobe.hooks.wall import calibration as instrument

    measured = common.measure_runs(
        names,
        "calibration",
        lambda run, device, bar: instrument.calibration(run, bins=bins, sequences=sequences, seed=seed, device=device),
        place,
    )
    above = [] if place.json else [_table(measured)]
    common.finish_each(measured, "run", place, common.printing(_reliability), above=above)


ROWS = {
    "entropy_mae": "entropy error, bits",
    "confidence": "confidence max Q",
    "exact_confidence": "  due: max P",
    "accuracy": "first choice right",
    "best_mass_geomean": "Bayes-best mass, geomean",
    "best_posterior": "  due",
    "ece_confidence": "ECE against max P",
    "ece_exact": "ECE against P(first choice)",
    "ece_drawn": "ECE against the token",
}


def _figure(value: float) -> str:
    """Three decimals; powers of ten for what they would hide, 0 for what is rounding or nothing."""
    return "0" if value < 1e-9 else f"{value:.1e}" if value < 1e-3 else f"{value:.3f}"


def _table(measured: "list[Result]") -> Any:
    """Figures down; for each run the supervised and the unsupervised side; last, the exact answer with its tokens moved by one."""
    title = "Calibration and correctness (supervised | unsupervised positions)"
    table = empty(title)
    table.add_column("", no_wrap=True)
    for result in measured:
        table.add_column(str(result.summary["run"]), justify="right")
    table.add_column("exact answer,\ntokens moved", justify="right", no_wrap=True)
    for key, label in ROWS.items():
        sides = [[_figure(result.summary[f"{key}_{side}"]) for side in ("trained", "unsupervised")] for result in measured]
        moved = float(measured[0].data[f"reference_{key}"].sel(predictor="relabelled", side="unsupervised"))
        table.add_row(label, *(f"{left} | [bold]{right}[/bold]" for left, right in sides), _figure(moved))
    return table


def _reliability(result: "Result") -> Any:
    """The unsupervised side's reliability diagram, empty bins left out."""
    title = f"{result.summary['run']}, unsupervised positions, by confidence"
    table = empty(title)
    for head in ("bin", "share", "confidence", "due", "right", "Bayes-best mass", "due"):
        table.add_column(head, justify="right", no_wrap=True)
    at, width = result.data.sel(side="unsupervised"), 0.5 / result.data.sizes["bin"]
    columns = ("share", "confidence", "exact_confidence", "accuracy", "best_mass", "best_posterior")
    for middle in at["bin"].values:
        cells = [float(at[f"bin_{name}"].sel(bin=middle)) for name in columns]
        if cells[0] > 0:
            figures = ["-" if value != value else f"{value:.3f}" for value in cells]
            table.add_row(f"{middle - width:.2f}-{middle + width:.2f}", *figures)
    return table
