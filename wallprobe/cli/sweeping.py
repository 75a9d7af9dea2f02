"""What `wallprobe train` does with more than one run: which ones, one view of them all, and the table at the end."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from wallprobe.cli import common
from wallprobe.cli.packed import empty

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from wallprobe.store.runs import RunName
    from wallprobe.tasks.task import Task
    from wallprobe.training.engines.sweep import Outcome, Update
    from wallprobe.training.wall.jobs import Job
    from wallprobe.training.wall.recipes import Recipe

LOG_SECONDS = 30.0  # between two lines where there is no terminal
DOING = {"trained": "trained", "skipped": "there already", "failed": "failed", "blocked": "not trained"}


def chosen_names(names: Sequence[str] | None, matrix: str | None, seeds: str | None, seed: int | None) -> "list[RunName]":
    """The runs that were asked for: every condition on every seed, seed by seed; a name with a seed is one run.

    Raises:
        ConfigError: if nothing was asked for, or the seeds are none.
        UnknownNameError: for a name or matrix that is none.
    """
    from wallprobe.errors import ConfigError
    from wallprobe.store.runs import DEFAULT_SEED, RunName
    from wallprobe.training.engines.sweep import parse_seeds
    from wallprobe.training.wall import conditions

    if not names and matrix is None:
        raise ConfigError("nothing to train: give conditions (wallprobe train c0 c1) or --matrix wall")
    if seeds is not None and seed is not None:
        raise ConfigError("--seed and --seeds exclude each other; give --seeds 42,7 for two seeds of your own")
    wanted = parse_seeds(seeds) if seeds is not None else (DEFAULT_SEED if seed is None else seed,)
    stems = [] if matrix is None else [condition.name for condition in conditions.matrix(matrix)]
    stems += [name for name in names or () if "@" not in name]
    found = [RunName.parse(f"{stem}@{one}") for one in wanted for stem in stems]
    found += [RunName.parse(name) for name in names or () if "@" in name]
    return list(dict.fromkeys(found))


def chosen_jobs(names: "Sequence[RunName]", recipe: "Recipe", task: "Task") -> "list[Job]":
    """The trainings of these names; one with a task in it (`c0-quadratic`) has that task instead.

    Raises:
        UnknownNameError, ConfigError: for a condition that is none, or a name that disagrees with the task.
    """
    from wallprobe.tasks.registry import split_name
    from wallprobe.training.wall.conditions import conditions, get_condition
    from wallprobe.training.wall.jobs import Job

    known = conditions()
    found = [(name.seed, *split_name(name.condition, known, task)) for name in names]
    return [Job(get_condition(condition), recipe, seed, own) for seed, condition, own in found]


def run_sweep(jobs: "Sequence[Job]", runs: Path | None, *, json: bool, manifest: dict[str, Any], **settings: Any) -> None:
    """Train them all and print what became of them; exit code 2 if a run is not there at the end.

    Args:
        jobs: what to train.
        runs: run store.
        json: print one JSON object instead of the table.
        manifest: further fields of its manifest's config.
        settings: of `training.engines.sweep.sweep`.
    """
    from wallprobe.store.manifest import Stopwatch, provenance
    from wallprobe.training.engines.sweep import share_cores, sweep

    watch, device = Stopwatch(), settings["device"]
    workers, threads = share_cores(len(jobs), settings["workers"], settings["threads"], device)
    # Ray prints what befalls its workers to stdout, from a thread of its own.
    with redirect_stdout(sys.stderr), view(len(jobs)) as show:
        outcomes = sweep(jobs, runs, on_progress=show, **settings)
    if json:
        config = manifest | {"engine": settings["engine"], "workers": workers, "threads": threads, "compiled": settings["compile"]}
        told = provenance(config=config, device=device, dtype=f"weights fp32, products {jobs[0].recipe.precision}", watch=watch)
        summary = [outcome.record() for outcome in outcomes]
        common.print_json({"kind": "sweep", "summary": summary, "values": [], "manifest": told})
    else:
        _print_table(outcomes)
    missing = [outcome for outcome in outcomes if not outcome.ok]
    for outcome in missing:
        common.err().print(f"wallprobe: {outcome.name} {DOING[outcome.state]}: {outcome.error}", soft_wrap=True, markup=False)
    if missing:
        raise typer.Exit(2)


def _print_table(outcomes: "Sequence[Outcome]") -> None:

    def told(value: float | None, form: str) -> str:
        return "" if value is None else f"{value:{form}}"

    done = sum(outcome.ok for outcome in outcomes)
    table = empty(f"{done} of {len(outcomes)} runs finished")
    for heading in ("run", "state", "seconds", "trained MAE", "wall ratio"):
        table.add_column(heading, justify="left" if heading in ("run", "state") else "right")
    for outcome in outcomes:
        figures = told(outcome.seconds, ".0f"), told(outcome.trained_mae, ".3f"), told(outcome.wall_ratio, ".2f")
        table.add_row(str(outcome.name), DOING[outcome.state], *figures)
    common.out().print(table)


class View:
    """One line a running run and one bar for all the steps that are left; without a terminal, a line now and then."""

    def __init__(self, progress: "Progress", runs: int) -> None:
        self.progress, self.runs = progress, runs
        self.latest: dict[RunName, Update] = {}
        self.before: dict[RunName, int] = {}
        self.lines: dict[RunName, TaskID] = {}
        self.whole = progress.add_task("all", total=None)
        self.printed = time.monotonic()

    def __call__(self, update: "Update") -> None:
        """Show an update."""
        self.latest[update.name] = update
        self.before.setdefault(update.name, update.step)
        if update.state == "running":
            self._show(update)
        elif update.name in self.lines:
            self.progress.remove_task(self.lines.pop(update.name))
        if update.state == "queued" and update.error:
            self._print(f"{update.name} {update.error}")
        if update.state in ("trained", "failed", "blocked"):
            self._print(f"{update.name} {DOING[update.state]}{': ' + update.error if update.error else ''}  ({self._overall()})")
        left = [self.latest[name] for name in self.latest if self.latest[name].state in ("queued", "running", "trained")]
        total = sum(one.steps - self.before[one.name] for one in left)
        done = sum(one.step - self.before[one.name] for one in left)
        self.progress.update(self.whole, total=total, completed=done, description=self._overall())
        if not self.progress.console.is_terminal and time.monotonic() - self.printed > LOG_SECONDS:
            active = [self._told(one) + f" step {one.step} of {one.steps}" for one in self.latest.values() if one.state == "running"]
            self._print("; ".join([self._overall(), *active]))

    def _show(self, update: "Update") -> None:
        if update.name not in self.lines:
            self.lines[update.name] = self.progress.add_task(str(update.name), total=update.steps)
        self.progress.update(self.lines[update.name], completed=update.step, description=self._told(update))

    def _told(self, update: "Update") -> str:
        if update.cross_entropy is None or update.signal is None:
            return f"{update.name}  starting"
        return f"{update.name}  CE {update.cross_entropy:.3f} nats  signal {update.signal:.3f}"

    def _overall(self) -> str:
        done = sum(one.state in ("trained", "skipped") for one in self.latest.values())
        return f"{done} of {self.runs} runs"

    def _print(self, line: str) -> None:
        self.progress.console.print(line, soft_wrap=True, markup=False)
        self.printed = time.monotonic()


@contextmanager
def view(runs: int) -> Iterator[View]:
    """A view of so many runs on stderr, to be given to a sweep as its `on_progress`."""
    with common.progress() as progress:
        yield View(progress, runs)
