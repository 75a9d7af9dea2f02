"""Writing that never leaves half a file: temporary sibling, flush to disk, rename; every failure becomes one StoreError.

And a lock, so that two processes never write the same thing.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wallprobe.errors import BusyError, StoreError
from wallprobe.store.reading import RECORD_BYTES, parse_json, read_file

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


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        StoreError: if the disk is full or the folder unwritable; an existing file is then untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write JSON (indented, NaN refused) whole or not at all."""
    write_atomic(path, (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON, of a bounded size and depth.

    Raises:
        StoreError: if the file is missing, no regular file, too large, or not JSON.
    """
    return parse_json(read_file(path, RECORD_BYTES), path)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A temporary sibling folder that becomes `path` when the block ends well and vanishes when it does not."""
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{ending}") for ending in ("tmp", "old"))
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
        except OSError as error:
            raise explain(error, path) from error
        yield temporary
        try:
            if path.exists():
                os.replace(path, old)
            os.replace(temporary, path)
        except OSError as error:
            if old.exists():
                os.replace(old, path)
            raise explain(error, path) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


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
    try:
        lock.acquire()
    except Timeout:
        raise BusyError(busy) from None
    except OSError as error:
        raise explain(error, path) from error
    try:
        yield
    finally:
        # While it is still held: whoever waits then sees that its file has no name any more, and opens a new one.
        with contextlib.suppress(OSError):
            path.unlink()
        lock.release()
