"""Many audits side by side in worker processes, what is stored of them, and the fixed campaign of the ledger."""

import functools
import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wallprobe.errors import CheckpointError, WallprobeError
from wallprobe.store import runs
from wallprobe.store.reading import entries, is_folder, is_there, told
from wallprobe.store.results import Result, load_result
from wallprobe.store.storage import scratch
from wallprobe.tasks.images import Images, load_images
from wallprobe.training.audit.job import AuditJob, make_job
from wallprobe.training.audit.loop import AUDIT, FOLDER, Progress, at, audit, finished, folder_of
from wallprobe.training.audit.quantities import Lens
from wallprobe.training.audit.record import judged
from wallprobe.training.audit.thresholds import Thresholds
from wallprobe.training.audit.wall import ARCH
from wallprobe.training.engines.allocator import keep_freed
from wallprobe.training.engines.orphans import end_with_parent
from wallprobe.training.engines.sweep import share_cores
from wallprobe.training.estimators.nets import Sizes
from wallprobe.training.wall.loop import CHECKPOINT

METHODS = ("bp", "fa", "dfa", "frozen")
# Where a pass is dear. Of 256 samples a true gradient's nudge was 240 to 370 times the bound along random directions (medians).
FEW = Lens(nudge_samples=128)
# architecture -> what the campaign sets beside the data's usual: sized so that all 48 runs take half an hour on two cores
CAMPAIGN: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "resmlp": MappingProxyType({}),
        "vit": MappingProxyType({"samples": 12_800, "batch": 64, "sizes": Sizes(patch=8), "lens": FEW}),
        "student": MappingProxyType({}),
        "bncnn": MappingProxyType({"samples": 12_800, "lens": FEW}),
    }
)
POLL = 1.0  # seconds


@dataclass(frozen=True)
class Failure:
    """A job that is not done, and why."""

    job: AuditJob
    error: str


def campaign(seeds: Sequence[int], data: str = "fashion_mnist") -> list[AuditJob]:
    """Four architectures by four methods by these seeds.

    The slow ones come first, so that workers end together; neighbours are of different seeds, so that no two measure the same start.
    """
    order = ("vit", "bncnn", "resmlp", "student")
    return [make_job(arch, method, data, seed, **CAMPAIGN[arch]) for arch in order for method in METHODS for seed in seeds]


def job_from(config: Mapping[str, Any]) -> AuditJob:
    """The job of a manifest's `config`."""
    given = dict(config)
    limits = given.pop("thresholds")
    given |= {"sizes": Sizes(**given["sizes"]), "lens": Lens(**given["lens"]), "options": tuple(given["options"].items())}
    given |= {"thresholds": Thresholds(**limits)} if limits else {}
    return AuditJob(**given)


def stored(root: Path | None = None) -> tuple[list[tuple[AuditJob, Result]], list[tuple[str, str]]]:
    """Every finished audit in a run store, and the damaged ones with what is wrong."""
    folder = (root or runs.default_root()) / FOLDER
    found, damaged = [], []
    for path in entries(folder):
        if not (is_there(path / runs.MANIFEST) if is_folder(path) else path.is_symlink()):
            continue
        try:
            found.append((job_in(path), load_result(path / AUDIT)))
        except WallprobeError as error:
            damaged.append((str(path), str(error)))
    return found, damaged


def job_in(path: Path) -> AuditJob:
    """The job whose audit lies in a folder.

    Raises:
        CheckpointError: if its manifest is damaged, or describes no audit.
    """
    from wallprobe.store import schema

    manifest = runs.read_manifest(path)
    try:
        schema.check(schema.AuditManifest, manifest)
        return job_from(manifest["config"])
    except (WallprobeError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        why = error if isinstance(error, WallprobeError) else told(error)
        raise CheckpointError(f"{path / runs.MANIFEST} describes no audit ({why}); make it again with --force") from error


def judge_with_baseline(job: AuditJob, result: Result, limits: Thresholds, root: Path | None = None) -> Result:
    """A run's Result under these thresholds, beside the frozen baseline where that is stored."""
    frozen = None if job.method == "frozen" else finished(job.frozen(), root)
    return judged(result, limits, frozen)


def with_baselines(jobs: Sequence[AuditJob]) -> list[AuditJob]:
    """The jobs and the frozen baselines they are compared with, each once, baselines last."""
    whole = [*jobs, *(job.frozen() for job in jobs)]
    return list({job.name: job for job in whole}.values())


def run_all(
    jobs: Sequence[AuditJob],
    root: Path | None = None,
    *,
    workers: int | None = None,
    force: bool = False,
    on_progress: Callable[[Progress], None] | None = None,
) -> list[Failure]:
    """Train and audit what is not there yet, one thread a run; killed anywhere, the same call goes on.

    Args:
        jobs: in order of preference.
        root: run store; default as `runs.default_root`.
        workers: runs at once; default one a core. One job or one worker stays in this process.
        force: throw away what is there of them.
        on_progress: called after every epoch of any.

    Returns:
        Those that could not be done.
    """
    todo = [job for job in jobs if force or not (folder_of(job, root) / runs.MANIFEST).is_file()]
    count = share_cores(len(todo), workers, 1)[0] if todo else 1
    with scratch((root or runs.default_root()) / FOLDER, "starts") as starts:
        if count > 1:
            return _run_in_pool(todo, root, count, force, starts, on_progress)
        tried = [_try(job, root, force, starts, on_progress) for job in todo]
    return [failure for failure in tried if failure is not None]


def _try(job: AuditJob, root: Path | None, force: bool, shared: Path, on_progress: Callable[[Progress], None] | None) -> Failure | None:
    try:
        audit(job, root, force=force, shared=shared, on_progress=on_progress)
    except WallprobeError as error:
        return Failure(job, " ".join(str(error).split()))
    return None


def _run_in_pool(
    todo: Sequence[AuditJob],
    root: Path | None,
    count: int,
    force: bool,
    shared: Path,
    on_progress: Callable[[Progress], None] | None,
) -> list[Failure]:
    failures, looked = [], dict[str, int]()
    context = multiprocessing.get_context("spawn")
    seen: dict[str, int] = {}
    with ProcessPoolExecutor(count, mp_context=context, initializer=begin) as pool:
        waiting: dict[Future[None], AuditJob] = {pool.submit(_work, job, root, force, shared): job for job in todo}
        try:
            while waiting:
                done, _ = wait(waiting, timeout=POLL, return_when=FIRST_COMPLETED)
                for future, job in waiting.items():
                    failed = future in done and future.exception() is not None
                    told = None if failed or not _changed(job, root, looked) else at(job, root)
                    if on_progress is not None and told is not None and seen.get(job.name) != told.epoch:
                        seen[job.name] = told.epoch
                        on_progress(told)
                for future in done:
                    job, error = waiting.pop(future), future.exception()
                    if error is not None:
                        failures.append(Failure(job, " ".join(str(error).split()) or type(error).__name__))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return failures


def _changed(job: AuditJob, root: Path | None, looked: dict[str, int]) -> bool:
    """Whether a job has stored anything since it was last looked at: reading what it has stored takes far longer than asking when."""
    for name in (runs.MANIFEST, CHECKPOINT):
        try:
            stored = (folder_of(job, root) / name).stat().st_mtime_ns
        except OSError:
            continue
        if looked.get(job.name) == stored:
            return False
        looked[job.name] = stored
        return True
    return False


def begin() -> None:
    """Set a worker up: one thread, freed memory kept, and an end with its parent, however that ends."""
    import torch

    torch.set_num_threads(1)
    keep_freed()
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        end_with_parent(parent.pid)

    def follow() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _work(job: AuditJob, root: Path | None, force: bool, shared: Path) -> None:
    # Whoever was killed a moment ago may still hold the lock.
    audit(job, root, force=force, wait=30.0, images=None if job.arch == ARCH else _images(job.data), shared=shared)


@functools.lru_cache(maxsize=1)
def _images(data: str) -> Images:
    """A worker's data, read once: reading Fashion-MNIST takes 1.5 s."""
    return load_images(data)


def variant(job: AuditJob, **changes: Any) -> AuditJob:
    """The job with other settings; those of `Sizes` may be given directly."""
    inner = {key: changes.pop(key) for key in list(changes) if key in Sizes.__dataclass_fields__}
    return replace(job, sizes=replace(job.sizes, **inner), **changes)
