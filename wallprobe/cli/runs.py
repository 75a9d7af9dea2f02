"""`wallprobe runs`: what there is to measure."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, options
from wallprobe.cli.packed import empty

if TYPE_CHECKING:
    from wallprobe.store.runs import Run


def runs(
    check: Annotated[bool, typer.Option("--check", help="Read every run's weights too: hash, format, NaN and infinities.")] = False,
    runs: options.Runs = None,
    json: options.Json = False,
) -> None:
    """List the finished runs: those in ./runs, then the bundled ones. Damaged ones are named on stderr, a line each."""
    from wallprobe.store.runs import default_root, survey_runs

    found, damaged = survey_runs(runs)
    damaged += _unusable(found, whole=check)
    listed = common.tell_damaged(damaged)
    summary = [
        {
            "name": str(run.name),
            "condition": run.name.condition,
            "seed": run.name.seed,
            "preset": run.manifest.get("preset"),
            "steps": run.manifest.get("steps"),
            "weight_hash": run.manifest["weight_hash"],
            "bundled": run.bundled,
        }
        for run in found
    ]
    if json:
        told = {"kind": "runs", "summary": summary, "values": [], "manifest": {"store": str(runs or default_root())}, "damaged": listed}
        common.print_json(told)
        return
    _print(found, summary)


def _unusable(found: "Sequence[Run]", *, whole: bool) -> list[tuple[Path, str]]:
    """Listed runs whose weights nothing can be measured on; only their size is looked at unless asked for the whole."""
    from wallprobe.errors import CheckpointError

    def fault(run: "Run") -> str:
        try:
            run.verify() if whole else run.check_size()
        except CheckpointError as error:
            return str(error)
        return ""

    return [(run.path, why) for run in found if (why := fault(run))]


def _print(found: "Sequence[Run]", summary: "Sequence[dict[str, Any]]") -> None:
    from rich.markup import escape

    table = empty("Runs")
    for heading in ("run", "signal", "route", "preset", "steps", "minutes", "weights", "where"):
        table.add_column(heading, justify="right" if heading in ("steps", "minutes") else "left")
    for run, row in zip(found, summary, strict=True):
        # A run of text has a training method and a kind of model in the place of a condition.
        text = {"signal": run.manifest.get("method", "-"), "route": run.kind}
        condition = run.manifest.get("config", {}).get("condition", text)
        seconds, where = run.manifest.get("wall_time_s"), "bundled" if run.bundled else str(run.path)
        minutes = "-" if seconds is None else f"{seconds / 60:.1f}"
        signal, route = condition.get("signal", "-"), condition.get("route", "-")
        told = (signal, route, row["preset"], row["steps"], minutes, run.manifest["weight_hash"][:8], where)
        table.add_row(str(run.name), *(escape(common.one_line(cell)) for cell in told))
    common.out().print(table)
