"""A worker process of the local engine: tasks come in on stdin, one line each, events leave on stdout as JSON lines.

When stdin ends, the parent has closed it or is dead, by whatever signal, and the worker ends at once: no orphans.
"""

import base64
import json
import os
import pickle
import queue
import signal
import sys
import threading
import traceback
from typing import Any, TextIO

from wallprobe.errors import WallprobeError
from wallprobe.training.engines import INSIDE
from wallprobe.training.engines.orphans import end_with_parent

STOP = b"stop\n"


def encode(task: Any) -> bytes:
    """A task as one line. Whoever may write to a worker's stdin started it: pickle is safe here."""
    return base64.b64encode(pickle.dumps(task)) + b"\n"


def main() -> None:
    """Perform tasks until stdin ends."""
    end_with_parent(int(os.environ[INSIDE]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not look like an event
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    stop = threading.Event()

    def listen() -> None:
        for line in sys.stdin.buffer:
            if line == STOP:
                stop.set()
            else:
                stop.clear()
                lines.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        _answer(channel, lines.get(), stop)


def _answer(channel: TextIO, line: bytes, stop: threading.Event) -> None:
    """Perform one task and send its events."""
    from dataclasses import asdict

    from wallprobe.training.engines import perform
    from wallprobe.training.wall.loop import Progress, StopTraining

    def send(kind: str, **rest: Any) -> None:
        try:
            channel.write(json.dumps({"kind": kind, **rest}) + "\n")
            channel.flush()
        except OSError:
            os._exit(1)

    def tell(at: Progress) -> None:
        send("progress", progress=asdict(at))
        if stop.is_set():
            raise StopTraining

    try:
        record = perform(pickle.loads(base64.b64decode(line)), tell)
    except StopTraining:
        send("stopped")
    except WallprobeError as error:
        send("failed", message=str(error))
    except Exception as error:
        traceback.print_exc()
        last = traceback.extract_tb(error.__traceback__)[-1]
        send("failed", message=f"{type(error).__name__} at {os.path.basename(last.filename)}:{last.lineno}: {error}")
    else:
        send("done", record=record)
