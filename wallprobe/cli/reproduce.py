"""`wallprobe reproduce`: a whole seed, from nothing to its ledger."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, options

if TYPE_CHECKING:
    from wallprobe.claims.ledger.claim import Area
    from wallprobe.store.runs import RunName


def reproduce(
    area: Annotated[str, typer.Argument(help="What to reproduce: wall or audit.", metavar="AREA")],
    preset: Annotated[
        str | None, typer.Option(help="Recipe: small (a laptop) or paper (the published one).", show_default="the area's")
    ] = None,
    seeds: options.Seeds = "1",
    axes: Annotated[bool, typer.Option("--axes", help="Also the further axes (masks, schedules, ...), on the first seed.")] = False,
    jobs: options.Jobs = None,
    engine: options.Engine = "local",
    markdown: options.Markdown = False,
    *,
    place: options.Place,
) -> None:
    """Train what is missing, measure what is missing, print the ledger. Killed anywhere, the same command goes on."""
    from wallprobe.claims.ledger import reproduce as plan
    from wallprobe.claims.ledger.claim import get_area, judge_all
    from wallprobe.claims.ledger.measurements import read_measurements
    from wallprobe.cli.claims import show
    from wallprobe.errors import ConfigError
    from wallprobe.training.engines.sweep import parse_seeds
    from wallprobe.training.wall.compiler import wants_compile

    chosen, device = get_area(area), place.pick()
    if chosen.from_results:
        raise ConfigError(f"'{area}' trains nothing; measure models (wallprobe gains MODEL...), then: wallprobe claims {area}")
    preset = preset or chosen.preset
    if preset == "tiny":
        raise ConfigError(
            "preset tiny is over before anything is learnt, no study's figure can be held to it; give --preset small or paper"
        )
    if chosen.audits is not None:
        _audit(chosen, parse_seeds(seeds), place.runs, jobs)
        found = chosen.read(preset, place.runs, bundled=False)
        show(chosen, found, judge_all(chosen, found), place, markdown=markdown)
        return
    wanted = plan.wanted_runs(chosen, parse_seeds(seeds), axes=axes)
    measurements = read_measurements(preset, place.runs, bundled=False)
    if plan.missing_runs(wanted, measurements):
        settings = {"workers": jobs, "device": device, "compile": wants_compile("auto"), "engine": engine}
        _train(wanted, preset, place.runs, settings)
        measurements = read_measurements(preset, place.runs, bundled=False)
    if plan.missing_steps(chosen, wanted, measurements):
        _measure(chosen, preset, wanted, place.runs, device)
        measurements = read_measurements(preset, place.runs, bundled=False)
    show(chosen, measurements, judge_all(chosen, measurements), place, markdown=markdown)


def _audit(area: "Area", seeds: tuple[int, ...], root: Path | None, jobs: int | None) -> None:
    """The audits that are not there yet."""
    from wallprobe.cli.audit import complete

    assert area.audits is not None
    complete(area.audits(seeds), root, baseline=False, workers=jobs, force=False)


def _train(wanted: "list[RunName]", preset: str, root: Path | None, settings: dict[str, Any]) -> None:
    """The runs under the sweep's view; those that are there are passed over."""
    from wallprobe.claims.ledger.reproduce import train
    from wallprobe.cli.sweeping import view

    with view(len(wanted)) as show:
        train(wanted, preset, root, on_progress=show, **settings)


def _measure(area: "Area", preset: str, wanted: "list[RunName]", root: Path | None, device: str) -> None:
    """The missing measurements under one progress bar; where there is no terminal, a line each."""
    from wallprobe.claims.ledger.reproduce import measure_missing

    with common.progress() as view:
        bar = view.add_task("measure", total=None)

        def follow(done: int, total: int, words: str) -> None:
            view.update(bar, completed=done, total=total, description=f"measure {words}")
            if not view.console.is_terminal:
                view.console.print(f"measure {words} ({done + 1} of {total})", soft_wrap=True, markup=False)

        measure_missing(area, preset, wanted, root, device=device, on_step=follow)
