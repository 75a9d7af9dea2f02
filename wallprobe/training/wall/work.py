"""One run to its very end: trained and evaluated, the evaluation stored beside it. What `wallprobe train` and every worker do."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wallprobe.errors import StoreError
from wallprobe.store import runs, storage
from wallprobe.store.results import ARRAYS, RECORD, plain
from wallprobe.store.storage import read_json, sha256_file
from wallprobe.training.wall.jobs import Job
from wallprobe.training.wall.loop import CHECKPOINT, Progress, own, train

WAIT = 30.0  # seconds for another process's evaluation, or for a killed one to vanish


@dataclass(frozen=True)
class Done:
    """A finished run and the summary of its evaluation."""

    run: runs.Run
    summary: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """Its line in a table: name, path, steps, wall_time_s, weight_hash, trained_mae (bits), wall_ratio."""
        row = {"name": str(self.run.name), "path": str(self.run.path)}
        row |= {key: self.run.manifest[key] for key in ("steps", "wall_time_s", "weight_hash")}
        return row | {key: self.summary[key] for key in ("trained_mae", "wall_ratio")}


def finished(job: Job, root: Path) -> Done | None:
    """The run, if it is there, whole and evaluated; None if there is something left to do.

    Raises:
        CheckpointError: if a run of that name is damaged or has another configuration.
    """
    if not (root / job.name.folder / runs.MANIFEST).exists():
        return None
    run = train(job, root)
    summary = _stored_summary(run)
    return None if summary is None else Done(run, summary)


def complete(
    job: Job,
    root: Path,
    *,
    device: str = "cpu",
    compile: bool = False,
    force: bool = False,
    wait: float = 0.0,
    on_progress: Callable[[Progress], None] | None = None,
) -> Done:
    """Train a run (see `loop.train`) and evaluate it, each only if that has not been done.

    Raises:
        WallprobeError: as `loop.train` and `evaluate.evaluate`.
    """
    run = train(job, root, device=device, compile=compile, force=force, wait=wait, on_progress=on_progress)
    summary = _stored_summary(run)
    if summary is None:
        with own(run.path, WAIT):
            _sweep_up(run.path)
            summary = _evaluate(run, device)
    return Done(run, summary)


def discard(job: Job, root: Path) -> None:
    """Throw away a run or an unfinished training.

    Raises:
        BusyError: if another process is training it.
        StoreError: if it cannot be removed.
    """
    folder = root / job.name.folder
    if folder.exists():
        with own(folder):
            storage.discard(folder)


def _evaluate(run: runs.Run, device: str) -> dict[str, Any]:
    from wallprobe.training.wall.evaluate import evaluate

    result = evaluate(run, device=device)
    result.save_at(run.path / runs.EVALUATION, run.path.parent)
    return dict(plain(result.summary))


def _stored_summary(run: runs.Run) -> dict[str, Any] | None:
    """The summary of the evaluation beside the run; None if there is none, or not of these weights, or not whole."""
    folder = run.path / runs.EVALUATION
    try:
        record = read_json(folder / RECORD)
        same = record["manifest"]["weight_hash"] == run.manifest["weight_hash"] and record["arrays_hash"] == sha256_file(folder / ARRAYS)
        summary = dict(record["summary"])
    except (StoreError, OSError, KeyError, TypeError, ValueError):
        return None
    return summary if same and {"trained_mae", "wall_ratio", "finding"} <= summary.keys() else None


def _sweep_up(folder: Path) -> None:
    """Remove the checkpoint that a kill -9 left in a finished run."""
    (folder / CHECKPOINT).unlink(missing_ok=True)
