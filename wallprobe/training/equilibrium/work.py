"""Several trainings side by side in worker processes, one thread each; killed anywhere, the same call goes on."""

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from wallprobe.errors import WallprobeError
from wallprobe.store import runs
from wallprobe.tasks.text import load_text
from wallprobe.training.audit.campaign import POLL, begin
from wallprobe.training.engines.sweep import share_cores
from wallprobe.training.equilibrium.job import EqJob
from wallprobe.training.equilibrium.loop import Progress, at, check, finished, train

Told = Callable[[str, int, int], None]  # run, steps behind it, steps in all


def train_all(
    jobs: Sequence[EqJob],
    root: Path | None = None,
    *,
    workers: int | None = None,
    force: bool = False,
    on_progress: Told | None = None,
) -> list[runs.Run]:
    """Train what is not there yet.

    Args:
        jobs: none of them warm-started from another of them.
        root: run store; default as `runs.default_root`.
        workers: trainings at once; default one a core. One stays in this process.
        force: train anew what is there.
        on_progress: told of every training how far it is.

    Returns:
        Their runs, in order.

    Raises:
        WallprobeError: the first that a training raised, once the others are done.
    """
    for job in jobs:
        check(job)
        load_text(job.recipe.text)
    todo = [job for job in jobs if force or finished(job, root) is None]
    count = share_cores(len(todo), workers, 1)[0] if todo else 1
    if count > 1:
        _in_pool(todo, root, count, force, on_progress)
    else:
        for job in todo:
            train(job, root, force=force, on_progress=_follow(job, on_progress))
    found = [finished(job, root) for job in jobs]
    return [run for run in found if run is not None]


def _follow(job: EqJob, on_progress: Told | None) -> Callable[[Progress], None] | None:
    if on_progress is None:
        return None
    return lambda told: on_progress(str(job.run_name), told.step, job.recipe.steps)


def _in_pool(todo: Sequence[EqJob], root: Path | None, count: int, force: bool, on_progress: Told | None) -> None:
    errors: list[BaseException] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, mp_context=context, initializer=begin) as pool:
        waiting: dict[Future[None], EqJob] = {pool.submit(_work, job, root, force): job for job in todo}
        try:
            while waiting:
                done, _ = wait(waiting, timeout=POLL, return_when=FIRST_COMPLETED)
                for job in waiting.values() if on_progress else ():
                    assert on_progress is not None
                    on_progress(str(job.run_name), at(job, root), job.recipe.steps)
                for future in done:
                    waiting.pop(future)
                    error = future.exception()
                    if error is not None:
                        errors.append(error)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if errors:
        raise next((error for error in errors if isinstance(error, WallprobeError)), errors[0])


def _work(job: EqJob, root: Path | None, force: bool) -> None:
    # Whoever was killed a moment ago may still hold the lock.
    train(job, root, force=force, wait=30.0)
