"""A sweep: many runs, as many at once as the cores carry, teachers before their students. Killed anywhere, the same call goes on.

What is finished is never touched again; what was interrupted resumes from its checkpoint; a run that fails is told, the others go on.
"""

import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from wallprobe.errors import ConfigError, WallprobeError
from wallprobe.store import runs
from wallprobe.store.manifest import source_commit
from wallprobe.training.engines import INSIDE, Engine, Event, Task
from wallprobe.training.wall import work
from wallprobe.training.wall.jobs import Job, teacher_name
from wallprobe.training.wall.loop import checkpoint_step

SEEDS = (42, 1337, 2024, 7, 2718)  # `--seeds 3` are the first three; the first is every command's default
ENGINES = ("local", "ray")
GRACE = 20.0  # seconds that an interrupted sweep waits for its workers' checkpoints
POLL = 0.5

State = Literal["queued", "running", "trained", "skipped", "failed", "blocked"]


@dataclass(frozen=True)
class Update:
    """Where one run of a sweep is, told to `on_progress` whenever that changes.

    Attributes:
        name: the run.
        state: "queued", "running", "trained" (by this sweep), "skipped" (was there), "failed", "blocked" (its teacher failed).
        step: optimiser steps done, those of earlier attempts included.
        steps: in all.
        cross_entropy: supervised loss, nats; None before the first report.
        signal: the signal's loss.
        error: why it failed or is blocked, or what its worker died of before it was tried again.
    """

    name: runs.RunName
    state: State
    step: int
    steps: int
    cross_entropy: float | None = None
    signal: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Outcome:
    """How one run of a sweep ended.

    Attributes:
        name: the run.
        state: "trained", "skipped", "failed" or "blocked".
        path: its folder; None unless it is finished.
        steps: of its recipe.
        seconds: it took to train, over all attempts; None unless it is finished.
        weight_hash: SHA-256 of the weights; None unless it is finished.
        trained_mae: bits (see `training.wall.evaluate`).
        wall_ratio: untrained over trained MAE.
        error: one line, empty unless it failed or is blocked.
    """

    name: runs.RunName
    state: State
    path: Path | None = None
    steps: int = 0
    seconds: float | None = None
    weight_hash: str | None = None
    trained_mae: float | None = None
    wall_ratio: float | None = None
    error: str = ""

    @property
    def ok(self) -> bool:
        """The run is there, finished and evaluated."""
        return self.state in ("trained", "skipped")

    def record(self) -> dict[str, Any]:
        """Flat and plain, for tables and JSON."""
        fields = {"name": str(self.name), "condition": self.name.condition, "seed": self.name.seed, "state": self.state}
        fields |= {"path": None if self.path is None else str(self.path), "steps": self.steps, "wall_time_s": self.seconds}
        return fields | {key: getattr(self, key) for key in ("weight_hash", "trained_mae", "wall_ratio", "error")}


def usable_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_cores(runs_in_all: int, workers: int | None = None, threads: int | None = None, device: str = "cpu") -> tuple[int, int]:
    """Workers, and threads for each, so that together they fill the cores and no more.

    At these sizes two trainings of one thread do more than one of two threads, so there are as many workers as cores, or as runs.
    The number of threads can change a run's last bits: it depends on the sweep as a whole, never on what is left of it.

    Args:
        runs_in_all: runs of the sweep, finished ones included.
        workers: runs at once; default as above, or 1 where the device is no CPU.
        threads: CPU threads of each; default cores // workers, at least 1.
        device: torch device.

    Raises:
        ConfigError: for fewer than one.
    """
    for name, value in (("workers", workers), ("threads", threads)):
        if value is not None and value < 1:
            raise ConfigError(f"{value} {name} train nothing; give 1 or more")
    cores = usable_cores()
    if workers is None:
        workers = max(1, min(runs_in_all, cores // (threads or 1))) if device == "cpu" else 1
    return workers, threads or max(1, cores // workers)


def sweep(
    jobs: Sequence[Job],
    root: Path | None = None,
    *,
    workers: int | None = None,
    threads: int | None = None,
    device: str = "cpu",
    compile: bool = False,
    force: bool = False,
    engine: str | Engine = "local",
    on_progress: Callable[[Update], None] | None = None,
) -> list[Outcome]:
    """Train and evaluate runs side by side; skip those that are finished, resume those that were interrupted.

    Args:
        jobs: what to train, in order of preference; a run whose teacher is among them waits for it.
        root: run store; default as `runs.default_root`.
        workers: runs at once; see `share_cores`.
        threads: CPU threads of each.
        device: torch device.
        compile: compile the step.
        force: throw away runs and unfinished trainings of these names, each as its turn comes.
        engine: "local", "ray" (see `engines.cluster`), or an Engine of your own.
        on_progress: told what changes, and every finished, failed or blocked run once.

    Returns:
        One Outcome a job, in the order given. Failures are among them and raise nothing.

    Raises:
        ConfigError: for an unknown engine, two different jobs of one name, fewer than one worker, or inside a worker.
        KeyboardInterrupt: goes on after the workers have saved their checkpoints.
    """
    store = (root or runs.default_root()).resolve()
    sizes = share_cores(len(jobs), workers, threads, device)
    if os.environ.get(INSIDE):
        raise ConfigError("a worker of a sweep has started a sweep: put the call of your script under if __name__ == '__main__':")
    if isinstance(engine, str) and engine not in ENGINES:
        raise ConfigError(f"no engine named '{engine}'; there are: {', '.join(ENGINES)}")
    source_commit()  # remembered now: the checkout may move on meanwhile
    scheduler = _Scheduler(jobs, store, on_progress or (lambda update: None))
    scheduler.look(force)
    if scheduler.unfinished:
        chosen = make_engine(engine, *sizes) if isinstance(engine, str) else engine
        template = Task(jobs[0], store, device, compile, sizes[1], tuple(sys.argv))
        try:
            scheduler.run(chosen, template, force)
        except KeyboardInterrupt:
            chosen.stop(GRACE)
            raise
        finally:
            chosen.close()
    return [scheduler.outcomes[job.name] for job in jobs]


def parse_seeds(text: str) -> tuple[int, ...]:
    """Seeds from `3` (the first three of `SEEDS`) or `42,7` (these; a list of one ends with a comma).

    Raises:
        ConfigError: for anything else.
    """
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0:
        raise ConfigError(f"--seeds '{text}' is neither how many (3) nor which ones (42,7)")
    if "," in text:
        return tuple(dict.fromkeys(numbers))
    if not 1 <= numbers[0] <= len(SEEDS):
        raise ConfigError(f"--seeds {text} asks for {text} seeds; give 1 to {len(SEEDS)}, or a list of your own: --seeds {text},")
    return SEEDS[: numbers[0]]


def make_engine(name: str, workers: int, threads: int) -> Engine:
    """The engine of that name, for so many workers of so many threads."""
    if name == "ray":
        from wallprobe.training.engines.cluster import RayEngine

        return RayEngine(workers, threads)
    from wallprobe.training.engines.local import LocalEngine

    return LocalEngine(workers, threads)


def teacher_of(job: Job) -> runs.RunName | None:
    """The run it learns from, if that has a name: a folder is there or is not, and nobody waits for it."""
    name = teacher_name(job)
    return None if name is None or runs.NAME.match(name) is None else runs.RunName.parse(name)


def unique(jobs: Iterable[Job]) -> dict[runs.RunName, Job]:
    """The jobs by name.

    Raises:
        ConfigError: if two of one name differ.
    """
    found: dict[runs.RunName, Job] = {}
    for job in jobs:
        if found.setdefault(job.name, job).config() != job.config():
            raise ConfigError(f"two different trainings are called {job.name}; give them to two sweeps with two run stores")
    return found


class _Scheduler:
    """Which run is where, and which one may start."""

    def __init__(self, jobs: Sequence[Job], store: Path, tell: Callable[[Update], None]) -> None:
        self.jobs, self.store, self.tell = unique(jobs), store, tell
        self.outcomes: dict[runs.RunName, Outcome] = {}
        self.waiting: list[runs.RunName] = []
        self.running: set[runs.RunName] = set()
        self.lost: dict[runs.RunName, int] = {}
        self.steps: dict[runs.RunName, int] = {}

    @property
    def unfinished(self) -> bool:
        """Is there anything left to do?"""
        return bool(self.waiting or self.running)

    def look(self, force: bool) -> None:
        """Sort the jobs into what is there, what cannot be, and what is to be trained."""
        for name, job in self.jobs.items():
            self.steps[name] = 0
            try:
                done = None if force else work.finished(job, self.store)
            except WallprobeError as error:
                self._fail(name, "failed", str(error))
                continue
            if done is not None:
                self._finish(name, "skipped", done.record())
                continue
            self.steps[name] = 0 if force else checkpoint_step(self.store / job.name.folder)
            self.waiting.append(name)
            self._update(name, "queued")

    def run(self, engine: Engine, template: Task, force: bool) -> None:
        """Start runs as places come free, until none is left."""
        while self.unfinished:
            for name in self._startable()[: engine.slots - len(self.running)]:
                self._start(name, engine, template, force)
            if not self.running:
                for name in list(self.waiting):  # each waits for another of them
                    self._fail(name, "blocked", f"{name} waits for a teacher that waits for it")
                continue
            for event in engine.events(POLL):
                self._hear(event, engine.retries)

    def _startable(self) -> list[runs.RunName]:
        """The waiting runs whose teacher is there; those whose teacher failed are given up."""
        ready = []
        for name in list(self.waiting):
            teacher = teacher_of(self.jobs[name])
            if teacher not in self.jobs or teacher is None or (teacher in self.outcomes and self.outcomes[teacher].ok):
                ready.append(name)
            elif teacher in self.outcomes:
                self._fail(name, "blocked", f"its teacher {teacher} is {self.outcomes[teacher].state}")
        return ready

    def _start(self, name: runs.RunName, engine: Engine, template: Task, force: bool) -> None:
        try:
            if force and name not in self.lost:
                work.discard(self.jobs[name], self.store)
        except WallprobeError as error:
            self._fail(name, "failed", str(error))
            return
        self.waiting.remove(name)
        self.running.add(name)
        self._update(name, "running")
        engine.submit(replace(template, job=self.jobs[name]))

    def _hear(self, event: Event, retries: int) -> None:
        name = event.name
        if event.kind == "progress" and event.progress is not None:
            at = event.progress
            self.steps[name] = at.step
            self.tell(Update(name, "running", at.step, at.steps, at.cross_entropy, at.signal))
            return
        self.running.discard(name)
        if event.kind == "done" and event.record is not None:
            self._finish(name, "trained", event.record)
        elif event.kind == "lost" and self.lost.get(name, 0) < retries:
            self.lost[name] = self.lost.get(name, 0) + 1
            self.steps[name] = checkpoint_step(self.store / name.folder)
            self.waiting.insert(0, name)
            self._update(name, "queued", f"its worker died ({event.message}) and it is tried again")
        elif event.kind == "lost":
            self._fail(name, "failed", f"its worker died ({event.message}), and so did those that tried again before")
        else:
            self._fail(name, "failed", event.message or "it was stopped")

    def _finish(self, name: runs.RunName, state: State, record: dict[str, Any]) -> None:
        self.steps[name] = record["steps"]
        self.outcomes[name] = Outcome(
            name,
            state,
            Path(record["path"]),
            record["steps"],
            record["wall_time_s"],
            record["weight_hash"],
            record["trained_mae"],
            record["wall_ratio"],
        )
        self._update(name, state)

    def _fail(self, name: runs.RunName, state: State, error: str) -> None:
        if name in self.waiting:
            self.waiting.remove(name)
        line = " ".join(error.split())
        self.outcomes[name] = Outcome(name, state, steps=self.jobs[name].recipe.steps, error=line)
        self._update(name, state, line)

    def _update(self, name: runs.RunName, state: State, error: str = "") -> None:
        self.tell(Update(name, state, self.steps[name], self.jobs[name].recipe.steps, error=error))
