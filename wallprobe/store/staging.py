"""Temporaries of a store: in one hidden folder, named for the process that writes them, swept by the next writer once that is gone.

What replaces a folder is exchanged with it in one step where the system knows how (Linux: renameat2; macOS: renamex_np). Elsewhere a
journal says what was begun, and whoever reads the store next completes it: a kill at any moment hides neither the old nor the new.
"""

import contextlib
import ctypes
import errno
import json
import os
import secrets
import shutil
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HIDDEN = ".wallprobe"  # the folder of a store's temporaries, journals and locks; gone when it is empty
TEMPORARY, OLD, JOURNAL, LOCK = "tmp", "old", "journal", "lock"
FOREIGN = 86_400.0  # seconds after which what another machine has begun counts as given up
NAMED = 100  # characters of a name that stand in its temporary's
TRIES = 50  # a folder that another process tidies away at the same moment is made again


@dataclass(frozen=True)
class Owner:
    """Who writes a temporary.

    Attributes:
        host: machine.
        pid: process.
        started: when that process began, seconds since the epoch: another one may get its number later.
    """

    host: str
    pid: int
    started: int

    @classmethod
    def here(cls) -> "Owner":
        """This process."""
        return cls(_host(), os.getpid(), _started(os.getpid()) or 0)

    @classmethod
    def of(cls, name: str) -> "Owner | None":
        """Whose temporary has that name; None for a name that is none of ours."""
        parts = name.rsplit("~", 4)
        if len(parts) != 5 or not (parts[2].isdigit() and parts[3].isdigit()):
            return None
        return cls(parts[1], int(parts[2]), int(parts[3]))

    def gone(self, path: Path) -> bool:
        """Whether that process has ended; of another machine's, whether `path` is older than a day."""
        if self.host != _host():
            with contextlib.suppress(OSError):
                return time.time() - path.lstat().st_mtime > FOREIGN
            return False
        began = _started(self.pid)
        return began is None or abs(began - self.started) > 2


def _host() -> str:
    return "".join(letter for letter in socket.gethostname() if letter.isalnum() or letter == "-")[:40] or "host"


def _started(pid: int) -> int | None:
    """When a process began; None if there is no such process, or only its corpse."""
    import psutil

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else int(process.create_time())
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return 0


def stage(store: Path, name: str, ending: str = TEMPORARY, *, folder: bool = False) -> Path:
    """An empty file, or folder, for something that will be called `name`, in the store's hidden folder, which is swept first.

    Raises:
        OSError: if it cannot be made.
    """
    sweep(store)
    owner = Owner.here()
    path = store / HIDDEN / f"{name[:NAMED]}~{owner.host}~{owner.pid}~{owner.started}~{secrets.token_hex(4)}.{ending}"
    for _ in range(TRIES):
        # mkdir says "exists" of a folder that another process has removed before it looked again.
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir() if folder else path.touch(exist_ok=False)
            return path
    raise OSError(errno.EBUSY, "its hidden folder is removed again and again", str(path.parent))


def tidy(store: Path) -> None:
    """Remove the hidden folder if nothing is in it."""
    with contextlib.suppress(OSError):
        (store / HIDDEN).rmdir()


def sweep(store: Path) -> None:
    """Complete what killed processes had begun, and remove what they left; what a living process has there stays."""
    hidden = store / HIDDEN
    if not hidden.is_dir():
        return
    recover(store)
    for path in _entries(hidden):
        owner = Owner.of(path.name)
        if path.suffix == f".{LOCK}":
            _free(path)
        elif owner is not None and path.suffix != f".{JOURNAL}" and owner.gone(path):
            remove(path)
    tidy(store)


def recover(store: Path) -> None:
    """Complete the replacements that killed processes had begun. Readers call it first; a store that cannot be written is left."""
    hidden = store / HIDDEN
    if not hidden.is_dir():
        return
    for path in _entries(hidden):
        owner = Owner.of(path.name)
        if path.suffix == f".{JOURNAL}" and owner is not None and owner.gone(path):
            with contextlib.suppress(OSError):
                _complete(store, path)


def _entries(hidden: Path) -> list[Path]:
    try:
        return sorted(hidden.iterdir())
    except OSError:
        return []


def _free(path: Path) -> None:
    """Remove a lock's file if nobody holds it."""
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    with contextlib.suppress(Timeout, OSError):
        lock.acquire()
        path.unlink(missing_ok=True)  # while it is held: whoever waits opens a new one
        lock.release()


def remove(path: Path) -> None:
    """Remove a file or a folder, as far as that is possible."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


def sync(folder: Path) -> None:
    """Have the disk know of a folder's entries, where the system lets a folder be opened."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):  # a file system that knows no such thing
            raise
    finally:
        os.close(handle)


def place(store: Path, staged: Path, path: Path) -> None:
    """Put a staged folder in the place of `path`, in one step, or in two that a journal holds together.

    Raises:
        OSError: as renaming does; `path` is then what it was.
    """
    if not os.path.lexists(path):
        os.rename(staged, path)
    elif exchange(staged, path):
        sync(path.parent)
        remove(staged)  # which is the old one now
        return
    else:
        _with_journal(store, staged, path)
    sync(path.parent)


def exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; False where the system or the file system cannot.

    Raises:
        OSError: if it can and fails.
    """
    library: Any = ctypes.CDLL(None, use_errno=True) if sys.platform in ("linux", "darwin") else None
    names = os.fsencode(one), os.fsencode(other)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        here, swap = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        failed = library.renameat2(here, names[0], here, names[1], swap)
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(*names, 2)  # RENAME_SWAP
    else:
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(code, os.strerror(code), str(other))


def _with_journal(store: Path, staged: Path, path: Path) -> None:
    old, journal = stage(store, path.name, OLD, folder=True), stage(store, path.name, JOURNAL)
    old.rmdir()
    told = {"path": path.relative_to(store).as_posix(), "new": staged.name, "old": old.name}
    with journal.open("w", encoding="utf-8") as handle:
        json.dump(told, handle)
        handle.flush()
        os.fsync(handle.fileno())
    try:
        os.rename(path, old)
        os.rename(staged, path)
    except OSError:
        if old.exists() and not os.path.lexists(path):
            os.rename(old, path)
        remove(journal)
        raise
    remove(journal)
    remove(old)


def _complete(store: Path, journal: Path) -> None:
    """Put the new one where it belongs, or the old one back, as the journal says; whatever else it says is not believed."""
    try:
        told = json.loads(journal.read_text(encoding="utf-8"))
        target, new, old = (str(told[key]) for key in ("path", "new", "old"))
    except (ValueError, KeyError, TypeError):
        remove(journal)  # it was never whole, so nothing had been moved
        return
    inside = all(part not in ("", ".", "..") for part in target.split("/")) and not os.path.isabs(target)
    if inside and not any("/" in name or os.sep in name for name in (new, old)) and not os.path.lexists(store / target):
        for name in (new, old):
            if (store / HIDDEN / name).is_dir():
                os.rename(store / HIDDEN / name, store / target)
                break
    remove(journal)
