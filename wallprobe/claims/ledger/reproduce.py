"""Reproduction: train what a ledger needs and measure what is missing, each Result beside its run; the second time there is nothing to do.

Only local runs count: what came with the package is somebody else's measurement.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wallprobe.claims.ledger.claim import Area
from wallprobe.claims.ledger.measurements import PAIR, READOUT, Measurements, read_measurements
from wallprobe.errors import CheckpointError
from wallprobe.store.results import Result
from wallprobe.store.runs import Run, RunName, default_root, open_run
from wallprobe.training.engines.sweep import Update, sweep
from wallprobe.training.wall.conditions import get_condition
from wallprobe.training.wall.jobs import Job
from wallprobe.training.wall.recipes import get_recipe

# instrument -> module and function, imported when used: (run, device=..., settings) -> Result
INSTRUMENTS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = MappingProxyType(
    {
        "eval": ("wallprobe.training.wall.evaluate", "evaluate", {}),
        # The other targets take minutes a run and no claim reads them.
        "probe": ("wallprobe.hooks.probes.measure", "probe", {"targets": ("token",)}),
        "geometry": ("wallprobe.hooks.wall.geometry", "geometry", {}),
        "temperature": ("wallprobe.hooks.wall.temperature", "temperature", {}),
        "calibration": ("wallprobe.hooks.wall.calibration", "calibration", {}),
        "rescue": ("wallprobe.hooks.interchange.rescue", "rescue", {}),
    }
)


@dataclass(frozen=True)
class Step:
    """One measurement to make.

    Attributes:
        name: the run (of an interchange or readout, the donor).
        instrument: as stored, such as "eval" or "interchange-c0".
        partner: the receiver of an interchange or readout.
    """

    name: RunName
    instrument: str
    partner: RunName | None = None

    def __str__(self) -> str:
        return f"{self.instrument.partition('-')[0]} of {self.name}" + (f" into {self.partner}" if self.partner else "")


def wanted_runs(area: Area, seeds: tuple[int, ...], *, axes: bool) -> list[RunName]:
    """Every run that the ledger needs: the conditions on each seed, and the axes on the first."""
    names = [RunName(condition, seed) for seed in seeds for condition in area.conditions]
    return names + [RunName(condition, seeds[0]) for condition in (area.axes if axes else ())]


def missing_runs(wanted: list[RunName], measurements: Measurements) -> list[RunName]:
    """Those of the wanted runs that are not there, or were trained otherwise than the preset says."""
    return [name for name in wanted if (name.condition, name.seed) not in measurements.sources]


def train(
    names: Sequence[RunName],
    preset: str,
    root: Path | None = None,
    *,
    on_progress: Callable[[Update], None] | None = None,
    **settings: Any,
) -> None:
    """Train and evaluate runs side by side; those that are there are passed over, interrupted ones resumed.

    Args:
        names: all the runs of the reproduction: how cores are shared among them depends on how many they are.
        preset: recipe.
        root: run store.
        on_progress: told what changes.
        settings: of `training.engines.sweep.sweep`.

    Raises:
        CheckpointError: if some run is not there at the end, naming each with why; the others are kept.
    """
    recipe = get_recipe(preset)
    outcomes = sweep([Job(get_condition(name.condition), recipe, name.seed) for name in names], root, on_progress=on_progress, **settings)
    missing = [outcome for outcome in outcomes if not outcome.ok]
    if missing:
        why = "; ".join(f"{outcome.name} {outcome.state}: {outcome.error}" for outcome in missing)
        raise CheckpointError(f"{len(missing)} of {len(outcomes)} runs are not there ({why}); run the same command again to go on")


def missing_steps(area: Area, wanted: list[RunName], measurements: Measurements) -> list[Step]:
    """The measurements that are not there for these very weights."""
    return [step for step in _steps(area, wanted) if measurements.lookup(step.name.seed)(step.name.condition, step.instrument) is None]


def _steps(area: Area, wanted: list[RunName]) -> Iterator[Step]:
    trained = {(name.condition, name.seed) for name in wanted}
    for name in wanted:
        for instrument, conditions in area.instruments.items():
            if "*" in conditions or name.condition in conditions:
                yield Step(name, instrument)
        for src, dst in area.pairs:
            if src == name.condition and (dst, name.seed) in trained:
                yield Step(name, f"{PAIR}{dst}", RunName(dst, name.seed))
        for src, dst in area.readouts:
            if src == name.condition:
                yield from _readouts(name, [RunName(condition, seed) for condition, seed in trained if condition == dst])


def _readouts(donor: RunName, receivers: list[RunName]) -> Iterator[Step]:
    """Into the receiver of the donor's own seed, and into that of the next seed, after the last the first."""
    for receiver in receivers:
        if receiver.seed == donor.seed:
            yield Step(donor, f"{READOUT}{receiver.condition}", receiver)
    others = sorted((receiver for receiver in receivers if receiver.seed != donor.seed), key=lambda run: (run.seed < donor.seed, run.seed))
    if others:
        yield Step(donor, f"{READOUT}{others[0].condition}@{others[0].seed}", others[0])


def measure(step: Step, root: Path | None = None, device: str = "cpu") -> Path:
    """Make one measurement and store it beside its run.

    Returns:
        Its folder.

    Raises:
        UnknownNameError, CheckpointError: if the run is not there or is damaged.
    """
    store = root or default_root()
    run = open_run(store / step.name.folder)
    if step.partner is not None:
        pair = _readout if step.instrument.startswith(READOUT) else _interchange
        result = pair(run, open_run(store / step.partner.folder), device)
    else:
        module, function, settings = INSTRUMENTS[step.instrument]
        instrument: Callable[..., Result] = getattr(importlib.import_module(module), function)
        result = instrument(run, device=device, **settings)
    return result.save_at(run.path / step.instrument, run.path.parent)


def _interchange(src: Run, dst: Run, device: str) -> Result:
    """Every layer, the last two indices, resid_pre."""
    from wallprobe.hooks.interchange.request import Request
    from wallprobe.hooks.interchange.run import interchange

    return interchange(Request(str(src.path), str(dst.path), None), device=device)


def _readout(src: Run, dst: Run, device: str) -> Result:
    """Every depth, the last two indices, raw and aligned."""
    from wallprobe.hooks.interchange.readout import Pair, readout

    return readout([Pair(str(src.path), str(dst.path))], device=device)


def measure_missing(
    area: Area,
    preset: str,
    wanted: list[RunName],
    root: Path | None = None,
    *,
    device: str = "cpu",
    on_step: Callable[[int, int, str], None] | None = None,
) -> int:
    """Every missing measurement of the wanted runs, one after the other; killed anywhere, the next call goes on.

    Args:
        area: whose ledger.
        preset: recipe of the runs.
        wanted: the runs, all trained.
        root: run store.
        device: torch device.
        on_step: told (done, in all, the next one in words).

    Returns:
        How many were made.
    """
    steps = missing_steps(area, wanted, read_measurements(preset, root, bundled=False))
    for done, step in enumerate(steps):
        if on_step is not None:
            on_step(done, len(steps), str(step))
        measure(step, root, device)
    return len(steps)
