"""Writing that never leaves half a file: staged, flushed to disk, renamed; every failure becomes one StoreError.

And a lock, so that two processes never write the same thing.
"""

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wallprobe.errors import BusyError, StoreError
from wallprobe.store.reading import RECORD_BYTES, parse_json, read_file
from wallprobe.store.staging import HIDDEN, LOCK, OLD, TRIES, place, remove, stage, sync, tidy

ASKED = 8 << 20  # bytes of a file asked for at a time


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in 1 MiB pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while piece := handle.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def explain(error: OSError, path: Path) -> StoreError:
    """The StoreError that says in one line why `path` could not be written."""
    if error.errno == errno.ENOSPC:
        why = "the disk is full; free some space or choose another folder"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        why = "the folder is not writable; choose another with --runs / --results, or change its permissions"
    else:
        why = f"{error.strerror or error}"
    return StoreError(f"cannot write {path}: {why}")


def ensure_directory(path: Path) -> Path:
    """Make a folder and its parents, and check that it can be written to.

    Raises:
        StoreError: if it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise explain(error, path) from error
    return path


def read_ahead(path: Path, start: int, size: int) -> None:
    """Ask the system to read these bytes of a file soon, while something else is computed; without effect where it cannot."""
    if not hasattr(os, "posix_fadvise"):
        return
    with path.open("rb") as handle:
        for low in range(start, start + size, ASKED):
            os.posix_fadvise(handle.fileno(), low, min(ASKED, start + size - low), os.POSIX_FADV_WILLNEED)


def write_atomic(path: Path, data: bytes, store: Path | None = None, *, flush: bool = True) -> None:
    """Write a file whole or not at all.

    Args:
        path: the file.
        data: its bytes.
        store: folder whose hidden one holds the temporary; default the file's own.
        flush: wait for the disk; without it a power cut may take the file, a kill never.

    Raises:
        StoreError: if the disk is full or the folder unwritable; an existing file is then untouched.
    """
    root, temporary = store or path.parent, None
    if path.exists() and not path.is_file():  # a rename would put a plain file in the place of a device or a pipe
        raise StoreError(f"cannot write {path}: it is there and no plain file; give another path")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = stage(root, path.name)
        _fill(temporary, data, flush)
        os.replace(temporary, path)
        if flush:
            sync(path.parent)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        if temporary is not None:
            remove(temporary)
        tidy(root)


def _fill(path: Path, data: bytes, flush: bool) -> None:
    with path.open("wb") as handle:
        handle.write(data)
        if flush:
            handle.flush()
            os.fsync(handle.fileno())


def write_within(path: Path, data: bytes) -> None:
    """Write a file of a folder that `atomic_directory` has staged: to the disk, and without a temporary of its own.

    Raises:
        StoreError: if it cannot be written.
    """
    try:
        _fill(path, data, flush=True)
    except OSError as error:
        raise explain(error, path) from error


def as_json(value: Any) -> bytes:
    """JSON as every store has it: indented, NaN refused."""
    return (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()


def write_json(path: Path, value: Any, store: Path | None = None) -> None:
    """Write JSON (indented, NaN refused) whole or not at all."""
    write_atomic(path, as_json(value), store)


def read_json(path: Path) -> Any:
    """Read JSON, of a bounded size and depth.

    Raises:
        StoreError: if the file is missing, no regular file, too large, or not JSON.
    """
    return parse_json(read_file(path, RECORD_BYTES), path)


@contextlib.contextmanager
def atomic_directory(path: Path, store: Path | None = None) -> Iterator[Path]:
    """A staged folder that takes the place of `path` in one step when the block ends well, and vanishes when it does not.

    Args:
        path: the folder.
        store: folder whose hidden one holds the staged one; default that in which `path` lies.
    """
    root, staged = store or path.parent, None
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            staged = stage(root, path.name, folder=True)
        except OSError as error:
            raise explain(error, path) from error
        yield staged
        try:
            sync(staged)
            place(root, staged, path)
        except OSError as error:
            raise explain(error, path) from error
    finally:
        if staged is not None:
            remove(staged)
        tidy(root)


@contextlib.contextmanager
def scratch(store: Path, name: str) -> Iterator[Path]:
    """A folder for what is needed while the block runs; a killed process's is swept like every temporary.

    Raises:
        StoreError: if it cannot be made.
    """
    try:
        folder = stage(store, name, folder=True)
    except OSError as error:
        raise explain(error, store) from error
    try:
        yield folder
    finally:
        remove(folder)
        tidy(store)


def discard(path: Path, store: Path | None = None) -> None:
    """Throw a folder away: gone in one step, so that no half of it is ever seen.

    Raises:
        StoreError: if it cannot be removed.
    """
    root = store or path.parent
    try:
        if os.path.lexists(path):
            away = stage(root, path.name, OLD, folder=path.is_dir())
            os.replace(path, away)
            remove(away)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        tidy(root)


def lock_path(folder: Path) -> Path:
    """Where the lock of whoever writes in that folder lies: beside it, in the hidden folder, since the folder may be replaced."""
    return folder.parent / HIDDEN / f"{folder.name}.{LOCK}"


@contextlib.contextmanager
def exclusive(path: Path, busy: str, wait: float = 0.0) -> Iterator[None]:
    """Hold the advisory lock of that file while the block runs; no other process, or thread, gets it meanwhile.

    The lock is the operating system's, held by the open file: it ends with the process, killed or not, and no file that is left
    behind can be stale. The file itself is removed with the lock.

    Args:
        path: the lock's own file, in a folder that is there.
        busy: the error's message where another holds it.
        wait: seconds to wait for it first.

    Raises:
        BusyError: if another process holds it.
        StoreError: if the file cannot be made, or the file system knows no locks.
    """
    from filelock import FileLock, Timeout

    # The soft fallback is a file that outlives a killed process.
    lock = FileLock(path, timeout=wait, poll_interval=0.02, fallback_to_soft=False)
    for left in reversed(range(TRIES)):
        try:
            path.parent.mkdir(exist_ok=True)
            lock.acquire()
            break
        except Timeout:
            raise BusyError(busy) from None
        except (
            FileNotFoundError,
            FileExistsError,
        ) as error:  # the hidden folder was empty, and another process tidied it away
            if not left or path.parent.name != HIDDEN:
                raise explain(error, path) from error
        except OSError as error:
            raise explain(error, path) from error
    try:
        yield
    finally:
        # While it is still held: whoever waits then sees that its file has no name any more, and opens a new one.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()
        if path.parent.name == HIDDEN:
            tidy(path.parent.parent)
