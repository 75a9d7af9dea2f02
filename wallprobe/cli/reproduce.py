"""`wallprobe reproduce`: a whole seed, from nothing to its ledger."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common

if TYPE_CHECKING:
    from wallprobe.claims.ledger import Area
    from wallprobe.runs import RunName


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(reproduce)


def reproduce(
    area: Annotated[str, typer.Argument(help="What to reproduce: wall.", metavar="AREA")],
    preset: Annotated[str, typer.Option(help="Recipe: small (a laptop) or paper (the published one).")] = "small",
    seeds: Annotated[int, typer.Option(help="How many seeds: 42, 43, ...", min=1)] = 1,
    axes: Annotated[bool, typer.Option("--axes", help="Also the further axes (masks, schedules, ...), on the first seed.")] = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print a Markdown page.")] = False,
    device: common.Device = "auto",
    runs: common.Runs = None,
    results: common.Results = None,
    json: common.Json = False,
) -> None:
    """Train what is missing, measure what is missing, print the ledger. Killed anywhere, the same command goes on."""
    from wallprobe.claims import reproduce as plan
    from wallprobe.claims.ledger import get_area, judge_all
    from wallprobe.claims.measurements import read_measurements
    from wallprobe.cli.claims import show

    chosen = get_area(area)
    wanted = plan.wanted_runs(chosen, plan.seeds_of(seeds), axes=axes)
    measurements = read_measurements(preset, runs, bundled=False)
    absent = plan.missing_runs(wanted, measurements)
    if absent:
        _train(absent, preset, runs, device)
        measurements = read_measurements(preset, runs, bundled=False)
    if plan.missing_steps(chosen, wanted, measurements):
        _measure(chosen, preset, wanted, runs, device)
        measurements = read_measurements(preset, runs, bundled=False)
    show(chosen, measurements, judge_all(chosen, measurements), results=results, wanted=None, markdown=markdown, json=json)


def _train(absent: "list[RunName]", preset: str, root: Path | None, device: str) -> None:
    """The missing runs under one progress view."""
    from wallprobe import models
    from wallprobe.claims.reproduce import train_missing
    from wallprobe.training.compiler import wants_compile

    with common.progress() as view:
        bars: dict[str, Any] = {}

        def follow(name: "RunName", step: int, steps: int) -> None:
            if str(name) not in bars:
                bars[str(name)] = view.add_task(f"train {name} ({len(bars) + 1} of {len(absent)})", total=steps)
            view.update(bars[str(name)], completed=step)

        train_missing(absent, preset, root, device=models.pick_device(device), compile=wants_compile("auto"), on_progress=follow)


def _measure(area: "Area", preset: str, wanted: "list[RunName]", root: Path | None, device: str) -> None:
    """The missing measurements under one progress bar."""
    from wallprobe import models
    from wallprobe.claims.reproduce import measure_missing

    with common.progress() as view:
        bar = view.add_task("measure", total=None)

        def follow(done: int, total: int, words: str) -> None:
            view.update(bar, completed=done, total=total, description=f"measure {words}")

        measure_missing(area, preset, wanted, root, device=models.pick_device(device), on_step=follow)
