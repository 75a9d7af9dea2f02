"""The ray engine: the same tasks on a Ray cluster (extra `ray`). Ray itself tries a run again whose worker or machine died.

With $RAY_ADDRESS set it joins that cluster, else it starts a Ray of its own on this machine. The run store must be a folder that
every machine sees under the same path, on a file system with locks (NFS 4, Lustre, ...): checkpoints, results and the lock that
keeps two tasks from one run are there. The weights' last bits are those of the machine they were trained on.
"""

import contextlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Any

from wallprobe.errors import ConfigError, WallprobeError, one_line
from wallprobe.store.runs import RunName
from wallprobe.training.engines import Event, Task, perform
from wallprobe.training.wall.loop import Progress, StopTraining

RETRIES = 2


class Board:
    """The actor through which tasks tell how far they are, and learn that they should stop."""

    def __init__(self) -> None:
        self._told: list[tuple[str, Progress]] = []
        self._stop = False

    def tell(self, folder: str, at: Progress) -> bool:
        """Note a run's progress; True if it should stop."""
        self._told.append((folder, at))
        return self._stop

    def read(self) -> list[tuple[str, Progress]]:
        """What was noted since."""
        told, self._told = self._told, []
        return told

    def stop(self) -> None:
        """Answer True from now on."""
        self._stop = True


def remote_task(task: Task, board: Any) -> tuple[str, dict[str, Any] | None, str]:
    """What Ray runs. Errors that another try would not mend are values, so that Ray tries again only what was lost.

    Returns:
        Kind of the event, the run's record, a message.
    """
    import ray

    def tell(at: Progress) -> None:
        if ray.get(board.tell.remote(task.job.name.folder, at)):
            raise StopTraining

    try:
        return "done", perform(task, tell), ""
    except StopTraining:
        return "stopped", None, ""
    except WallprobeError as error:
        return "failed", None, str(error)


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Whatever Ray and its children print while it starts or ends must not be taken for our JSON."""
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


class RayEngine:
    """Tasks on Ray.

    Args:
        workers: tasks at once.
        threads: CPU threads of each; Ray reserves as many CPUs.

    Raises:
        ConfigError: if Ray is not installed or its cluster cannot be reached.
    """

    retries = 0

    def __init__(self, workers: int, threads: int) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--engine ray needs Ray; install it: pip install 'wallprobe[ray]'") from error
        self.slots, self._ray = workers, ray
        self._ours = not ray.is_initialized()
        if self._ours:
            self._start(workers * threads)
        self._board: Any = ray.remote(num_cpus=0)(Board).remote()
        self._remote: Any = ray.remote(num_cpus=threads, max_retries=RETRIES)(remote_task)
        self._running: dict[Any, RunName] = {}

    def _start(self, cpus: int) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        address = os.environ.get("RAY_ADDRESS")
        if not address:
            os.environ.setdefault("RAY_worker_niceness", "0")  # as the local engine; its default is 15
        where = {"address": address} if address else {"address": "local", "num_cpus": cpus, "include_dashboard": False}
        try:
            with _stdout_to_stderr():
                self._ray.init(**where, **quiet)
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise ConfigError(f"Ray cannot be reached ({one_line(error)}); check $RAY_ADDRESS, or unset it to start a Ray here") from error

    def submit(self, task: Task) -> None:
        """Hand the task to Ray."""
        self._running[self._remote.remote(task, self._board)] = task.job.name

    def events(self, timeout: float) -> Sequence[Event]:
        """What the board and the finished tasks tell."""
        ready, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout)
        by_folder = {name.folder: name for name in self._running.values()}
        found = [Event(by_folder[folder], "progress", at) for folder, at in self._ray.get(self._board.read.remote()) if folder in by_folder]
        return found + [self._ended(reference) for reference in ready]

    def _ended(self, reference: Any) -> Event:
        name = self._running.pop(reference)
        try:
            kind, record, message = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            return Event(name, "failed", message=str(error.cause) or type(error.cause).__name__)
        except self._ray.exceptions.RayError as error:
            return Event(name, "lost", message=one_line(error))
        return Event(name, kind, record=record, message=message)

    def stop(self, grace: float) -> None:
        """Ask for checkpoints, and wait for them."""
        self._ray.get(self._board.stop.remote())
        deadline = time.monotonic() + grace
        while self._running and time.monotonic() < deadline:
            self.events(0.5)

    def close(self) -> None:
        """End what still runs, and the Ray that was started here."""
        for reference in self._running:
            self._ray.cancel(reference, force=True)
        self._ray.kill(self._board)
        if self._ours:
            with _stdout_to_stderr():
                self._ray.shutdown()
