"""Where a sweep's runs are trained: each engine takes tasks and tells what becomes of them. `local` and `ray`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from wallprobe.store.runs import RunName
from wallprobe.training.wall.jobs import Job
from wallprobe.training.wall.loop import Progress

INSIDE = "WALLPROBE_WORKER"  # in a worker's environment: its parent's process id
Kind = Literal["progress", "done", "failed", "stopped", "lost"]


@dataclass(frozen=True)
class Task:
    """One run to complete.

    Attributes:
        job: what to train.
        root: run store, absolute; on a cluster, a folder that every machine sees.
        device: torch device.
        compile: compile the step.
        threads: CPU threads.
        argv: the command line, for the manifest.
    """

    job: Job
    root: Path
    device: str
    compile: bool
    threads: int
    argv: tuple[str, ...]


@dataclass(frozen=True)
class Event:
    """What became of a task.

    Attributes:
        name: its run.
        kind: "progress"; "done" (with `record`); "failed" (with `message`, one line; another try would fail too); "stopped" (asked to,
            checkpoint saved); "lost" (its worker died; `message` tells how).
    """

    name: RunName
    kind: Kind
    progress: Progress | None = None
    record: dict[str, Any] | None = None
    message: str = ""


@runtime_checkable
class Engine(Protocol):
    """What `sweep` needs of an engine.

    Attributes:
        slots: tasks it can run at once.
        retries: times that a lost task is worth another try; 0 where the engine itself retries.
    """

    slots: int
    retries: int

    def submit(self, task: Task) -> None:
        """Start a task."""

    def events(self, timeout: float) -> Sequence[Event]:
        """What happened since, waiting at most `timeout` seconds for something."""

    def stop(self, grace: float) -> None:
        """Ask every task to save a checkpoint and end; return when they have, after `grace` seconds at the latest."""

    def close(self) -> None:
        """End the workers, whatever they do."""


def perform(task: Task, tell: Callable[[Progress], None]) -> dict[str, Any]:
    """What a worker does with a task.

    Args:
        task: the task.
        tell: called with the progress now and then; may raise `StopTraining`.

    Returns:
        The finished run's record (see `work.Done`).
    """
    import sys

    import torch

    from wallprobe.training.wall.work import WAIT, complete

    sys.argv = list(task.argv)
    torch.set_num_threads(task.threads)
    # A worker that died a moment ago may still hold the lock, and the command that started it is already run again.
    done = complete(task.job, task.root, device=task.device, compile=task.compile, wait=WAIT, on_progress=tell)
    return done.record()
