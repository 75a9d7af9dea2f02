"""The local engine: worker processes on this machine, one run each at a time, that die with their parent."""

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import IO, Any

from wallprobe.store.runs import RunName
from wallprobe.training.engines import INSIDE, Event, Task
from wallprobe.training.engines.worker import STOP, encode
from wallprobe.training.wall.loop import Progress

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS")
BOOT = "import sys; sys.path[:] = {path!r}; from wallprobe.training.engines.worker import main; main()"


class _Worker:
    """One process and the thread that reads from it. It ends when our end of its stdin is closed, by us or by our death."""

    def __init__(self, threads: int, inbox: "queue.SimpleQueue[tuple[_Worker, bytes]]") -> None:
        self.task: Task | None = None
        self.threads = threads
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-c", BOOT.format(path=sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads)) | {INSIDE: str(os.getpid())},
            # Ctrl-C in a terminal goes to the whole foreground group; these are told by us.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._listen, args=(inbox,), daemon=True)
        self._reader.start()

    def _listen(self, inbox: "queue.SimpleQueue[tuple[_Worker, bytes]]") -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            inbox.put((self, line))
        inbox.put((self, b""))

    def write(self, line: bytes) -> bool:
        """Send a line; False if nobody is there to read it."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(line)
            self.process.stdin.flush()
        except OSError:
            return False
        return True

    def why(self) -> str:
        """How it ended, with the last line it left on stderr."""
        code = self.process.wait()
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 2000))
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"{how}; its last words: {lines[-1]}" if lines and code >= 0 else how

    def end(self, grace: float) -> None:
        """Close its stdin, wait, then kill."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(grace)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join()
        self.process.stdout.close()
        self._errors.close()


class LocalEngine:
    """Worker processes, started when first needed and kept for the runs that follow (imports are paid once a worker).

    Args:
        workers: processes at once.
        threads: CPU threads of each.
    """

    retries = 2

    def __init__(self, workers: int, threads: int) -> None:
        self.slots, self._threads = workers, threads
        self._workers: list[_Worker] = []
        self._inbox: queue.SimpleQueue[tuple[_Worker, bytes]] = queue.SimpleQueue()

    def submit(self, task: Task) -> None:
        """Give the task to an idle worker, or to a new one."""
        for worker in [worker for worker in self._workers if worker.task is None]:
            if worker.write(encode(task)):
                worker.task = task
                return
        worker = _Worker(self._threads, self._inbox)
        self._workers.append(worker)
        worker.task = task
        worker.write(encode(task))  # one that dies at once is noticed by its reader

    def events(self, timeout: float) -> Sequence[Event]:
        """What the workers told since."""
        found: list[Event] = []
        with contextlib.suppress(queue.Empty):
            found += self._read(*self._inbox.get(timeout=timeout))
            while True:
                found += self._read(*self._inbox.get_nowait())
        return found

    def _read(self, worker: _Worker, line: bytes) -> list[Event]:
        task = worker.task
        if not line:
            self._workers.remove(worker)
            message = worker.why()
            worker.end(0.0)
            return [] if task is None else [Event(task.job.name, "lost", message=message)]
        if task is None or not line.endswith(b"\n"):  # the last words of one that was killed in the middle of them
            return []
        told: dict[str, Any] = json.loads(line)
        name: RunName = task.job.name
        if told["kind"] == "progress":
            return [Event(name, "progress", Progress(**told["progress"]))]
        worker.task = None
        return [Event(name, told["kind"], record=told.get("record"), message=told.get("message", ""))]

    def stop(self, grace: float) -> None:
        """Ask for checkpoints, and wait for them."""
        for worker in self._workers:
            if worker.task is not None:
                worker.write(STOP)
        deadline = time.monotonic() + grace
        while any(worker.task is not None for worker in self._workers) and time.monotonic() < deadline:
            self.events(0.1)

    def close(self) -> None:
        """End the workers."""
        for worker in self._workers:
            worker.end(2.0)
        self._workers.clear()
