"""While a model that somebody else made is read: no process, no network, no question, no pickle, and no code from its folder.

transformers and transformer-lens are told so by their own options; this holds them to it, those of their next versions too. Python
reports such events to audit hooks, which may refuse them. A hook stays for as long as the process does: it is added with the first
reading, and outside one it returns at once.
"""

import contextlib
import os
import sys
import sysconfig
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wallprobe.errors import CheckpointError

ADDED = frozenset({"transformers_modules", "datasets_modules"})  # packages under which the libraries import files of a model or data set
INSTALLED = ("site-packages", "dist-packages")


def _command(given: Any) -> str:
    words = given if isinstance(given, (list, tuple)) else [given]
    return " ".join(os.fsdecode(word) if isinstance(word, (str, bytes, os.PathLike)) else str(word) for word in words)[:120]


Words = Callable[[tuple[Any, ...]], str]
PROCESSES: Mapping[str, Words] = MappingProxyType(
    {
        "subprocess.Popen": lambda given: f"start a process ({_command(given[1] if len(given) > 1 else given[:1])})",
        "os.system": lambda given: f"start a process ({_command(given[:1])})",
        **dict.fromkeys(
            ("os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.forkpty", "os.startfile", "pty.spawn"),
            lambda given: f"start a process ({_command([one for one in given if isinstance(one, (str, bytes))][:1])})",
        ),
    }
)
QUESTIONS: Mapping[str, Words] = MappingProxyType({"builtins.input": lambda given: "ask a question on the terminal"})
PICKLES: Mapping[str, Words] = MappingProxyType({"pickle.find_class": lambda given: f"unpickle {'.'.join(map(str, given[:2]))[:120]}"})
NETWORK: Mapping[str, Words] = MappingProxyType(
    dict.fromkeys(
        (
            "socket.connect",
            "socket.bind",
            "socket.getaddrinfo",
            "socket.gethostbyname",
            "socket.gethostbyaddr",
            "socket.sendto",
            "socket.sendmsg",
        ),
        lambda given: f"use the network ({', '.join(str(one) for one in given if isinstance(one, (str, bytes, int, tuple)))[:120]})",
    )
)


class _Reading:
    """One block under guard: whose model, its folder, and what was refused."""

    def __init__(self, source: str, folder: Path | None, *, network: bool) -> None:
        self.source, self.network, self.tried = source, network, list[str]()
        self.refused = MappingProxyType({**PROCESSES, **QUESTIONS, **PICKLES, **({} if network else NETWORK)})
        places = () if folder is None else (os.path.abspath(folder), os.path.realpath(folder))
        self.places = tuple({place.rstrip(os.sep) + os.sep for place in places})

    def of_the_folder(self, path: Any) -> bool:
        """Whether a file is one of the model's own, or transformers' copy of one; what is installed inside the folder is not."""
        if not isinstance(path, (str, bytes)) or not (text := os.fsdecode(path)) or (text[0] == "<" and text[-1] == ">"):
            return False  # the last are names of what stands in no file: <string>, <frozen importlib>
        parts = Path(text).parts
        if ADDED.intersection(parts):
            return True
        inside = text.startswith(self.places) if os.path.isabs(text) else os.path.abspath(text).startswith(self.places)
        return bool(self.places) and inside and not any(name in parts for name in INSTALLED) and not text.startswith(_trusted())

    def judge(self, event: str, given: tuple[Any, ...]) -> str | None:
        """What the event would do, if that is refused."""
        if event in self.refused:
            return self.refused[event](given)
        if event == "exec" and given and self.of_the_folder(getattr(given[0], "co_filename", None)):
            return f"run {given[0].co_filename}"
        if event == "import" and (str(given[0]).partition(".")[0] in ADDED or self.of_the_folder(given[1])):
            return f"import {given[0]}"
        if event == "ctypes.dlopen" and self.of_the_folder(given[0]):
            return f"load {given[0]}"
        if event == "open" and given[0] == "/dev/tty":
            return "ask a question on the terminal"
        return None


def _trusted() -> tuple[str, ...]:
    """Where this Python's own files and wallprobe's are."""
    paths = {sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}
    return tuple(path.rstrip(os.sep) + os.sep for path in paths if path)


class _Guard:
    """The process's readings by thread. Audit hooks belong to the process, so there is one of these."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._stacks: dict[int, list[_Reading]] = {}
        # Libraries read with threads of their own, and before Python 3.12 no event says who started one: whatever starts while
        # something is read is held to it, then and in later readings (a library's pool may stay). What was there before is free.
        self._free: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._held: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._hooked, self._stdin, self._empty = False, sys.stdin, sys.stdin
        self._local, self._was_offline = 0, False

    def hear(self, event: str, given: tuple[Any, ...]) -> None:
        """The audit hook.

        Raises:
            CheckpointError: where the event is refused, and of a thread that reads or that started while something was read.
        """
        if not self._stacks:
            return
        stack = self._stacks.get(threading.get_ident())
        found = stack[-1] if stack else next((stack[-1] for stack in list(self._stacks.values()) if stack), None)
        what = found.judge(event, given) if found else None
        if found is None or what is None or (not stack and threading.current_thread() in self._free):
            return
        found.tried.append(what)
        raise CheckpointError(refusal(found))

    def enter(self, reading: _Reading) -> None:
        """Arm it for this thread."""
        with self._lock:
            if not self._hooked:
                sys.addaudithook(self.hear)
                self._hooked = True
            if not self._stacks:
                self._free = weakref.WeakSet(set(threading.enumerate()) - set(self._held))
                self._stdin, self._empty = sys.stdin, open(os.devnull, encoding="utf-8")  # noqa: SIM115
                sys.stdin = self._empty
            if not reading.network:
                self._offline(+1)
            self._stacks.setdefault(threading.get_ident(), []).append(reading)

    def leave(self) -> None:
        """Disarm what this thread armed last."""
        with self._lock:
            stack = self._stacks[threading.get_ident()]
            if not stack.pop().network:
                self._offline(-1)
            if not stack:
                del self._stacks[threading.get_ident()]
            if not self._stacks:
                self._held = weakref.WeakSet(set(threading.enumerate()) - set(self._free))
                if sys.stdin is self._empty:
                    sys.stdin = self._stdin
                self._empty.close()

    def _offline(self, step: int) -> None:
        """One reading without network more or less: the hub's own switch, so that libraries do not even try."""
        import huggingface_hub.constants

        hub: Any = huggingface_hub.constants
        if not self._local:
            self._was_offline = hub.HF_HUB_OFFLINE
        self._local += step
        hub.HF_HUB_OFFLINE = True if self._local else self._was_offline


_GUARD = _Guard()


def refusal(reading: _Reading) -> str:
    """What is said of a model whose reading tried something."""
    return (
        f"reading {reading.source} would {reading.tried[0]}; it was not done, for wallprobe runs no model's code, starts no process and "
        "asks nothing while it reads one: give a checkpoint that is read without"
    )


@contextlib.contextmanager
def reading(source: str, folder: Path | None = None, *, network: bool = False) -> Iterator[None]:
    """Hold the block to reading: starting a process, the network, a question or a pickle is an error, and so is code of the folder.

    It is one also where a library swallows it. Threads that start meanwhile are held to the same; those that were there are not.

    Args:
        source: how the user called the model.
        folder: where its files are.
        network: the block may use the network (it fetches the files).

    Raises:
        CheckpointError: if any of these was tried; it did not happen.
    """
    current = _Reading(source, folder, network=network)
    _GUARD.enter(current)
    try:
        yield
    except Exception as error:
        if current.tried:
            raise CheckpointError(refusal(current)) from error
        raise
    finally:
        _GUARD.leave()
    if current.tried:
        raise CheckpointError(refusal(current))
