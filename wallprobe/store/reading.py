"""Reading what may be damaged: the kind and size of a file before its bytes, the depth of JSON before its use.

Whatever lies in a file's place (a folder, a pipe, a link in a circle, 2 GB where 2 kB belong), what comes is one StoreError.
"""

import json
import re
import stat
from pathlib import Path
from typing import Any

from wallprobe.errors import StoreError

RECORD_BYTES, ARRAY_BYTES = 256 << 20, 4 << 30  # of JSON and of arrays; the largest that a command writes is far below
DEPTH = 64  # of nested lists and objects; ours have at most ten
LARGEST = 1 << 63  # what an integer may be; Python would take millions of digits
DIGITS, SURROGATE = re.compile(rb"\d{19}"), re.compile(rb"\\u[dD][89a-fA-F]")
KINDS = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"))


def file_size(path: Path, limit: int) -> int:
    """Bytes of a regular file.

    Raises:
        StoreError: if it is none, cannot be looked at, or is larger than `limit`.
    """
    try:
        found = path.stat()
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    if not stat.S_ISREG(found.st_mode):
        kind = next((name for is_kind, name in KINDS if is_kind(found.st_mode)), "a device")
        raise StoreError(f"cannot read {path}: it is {kind} where a file should be")
    if found.st_size > limit:
        raise StoreError(f"cannot read {path}: it has {found.st_size:,} bytes, and what belongs there has at most {limit:,}")
    return found.st_size


def read_file(path: Path, limit: int) -> bytes:
    """All of a regular file.

    Raises:
        StoreError: as `file_size`, or if it cannot be read or changes meanwhile.
    """
    size = file_size(path, limit)
    try:
        with path.open("rb") as handle:
            data = handle.read(size + 1)
    except (OSError, MemoryError) as error:
        raise StoreError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'no memory for it'}") from error
    if len(data) != size:
        raise StoreError(f"cannot read {path}: it changed while it was read; try again")
    return data


def parse_json(data: bytes, path: Path) -> Any:
    """JSON values of bounded depth and integers, text that can be written again.

    Raises:
        StoreError: if the bytes are anything else; `path` is named.
    """
    try:
        return json_value(data)
    except ValueError as error:
        raise StoreError(f"{path} is not readable JSON ({error}); it is damaged or not ours") from error


def json_value(data: bytes) -> Any:
    """JSON values of bounded depth and integers, text that can be written again.

    Raises:
        ValueError: if the bytes are anything else.
    """
    try:
        value = json.loads(data.decode("utf-8"))
        _check_nesting(value, numbers=DIGITS.search(data) is not None)
        if SURROGATE.search(data):
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError("half a character: a lone surrogate") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError(f"nested more than {DEPTH} deep") from error
    return value


def _check_nesting(value: Any, *, numbers: bool) -> None:
    """Level by level, so that no depth exhausts the stack; integers only where some have that many digits."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEPTH:
            raise RecursionError
        inner = [item for one in level for item in (one.values() if type(one) is dict else one if type(one) is list else ())]
        if numbers and any(type(item) is int and not -LARGEST <= item < 2 * LARGEST for item in (*level, *inner)):
            raise ValueError("an integer beyond 64 bits")
        level = [item for item in inner if type(item) in (dict, list)]


def is_there(path: Path) -> bool:
    """Whether anything at all has that name: a file, a folder, a link that leads nowhere."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return is_folder(path.parent)  # which may not be entered: what is there cannot be told, so it is not passed over
    return True


def is_folder(path: Path) -> bool:
    """Whether it is a folder, as far as that can be told; never raises."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def entries(folder: Path) -> list[Path]:
    """What lies in a store's folder by name, hidden names left out; nothing where there is no folder.

    Raises:
        StoreError: if it may not be listed.
    """
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith(".")) if folder.is_dir() else []
    except OSError as error:
        raise StoreError(f"cannot list {folder}: {error.strerror or error}; change its permissions or choose another") from error


def told(error: BaseException, most: int = 300) -> str:
    """An error on one line of bounded length, whatever its own text does."""
    try:
        text = repr(error)
    except Exception:
        text = type(error).__name__
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."
