"""What changed in a store since the last build. Parses no Result: what stands in a folder is told by its files' content alone.

The memory of a build lies in the site (`MEMORY`) and is only believed where the pages it tells of still lie there untouched.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from wallprobe.errors import StoreError
from wallprobe.store.reading import ARRAY_BYTES, entries, file_size, is_folder
from wallprobe.store.staging import recover
from wallprobe.store.storage import read_json, sha256_file

MEMORY = ".wallprobe-gallery-memory.json"
VERSION = 1
PARTS = ("result.json", "arrays.nc")


def stamp(path: Path) -> list[int] | None:
    """Size, times and place of a file, as version controls use them to tell that nothing has been written; None without a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def content(paths: Iterable[Path]) -> str:
    """SHA-256 over files, one that is missing or unreadable counted as such."""
    digest = hashlib.sha256()
    for path in paths:
        # Only what can be a part of a Result is read: a pipe would never end, and no memory holds a file of any size.
        try:
            size: int | str = file_size(path, ARRAY_BYTES)
            digest.update(sha256_file(path).encode())
        except (StoreError, OSError):
            size = "missing"
        digest.update(f"{path.name} {size};".encode())
    return digest.hexdigest()


def folders(root: Path) -> Iterator[Path]:
    """The folders of a store that hold Results, by name, with links that should lead to one."""
    recover(root)
    yield from (path for path in entries(root) if is_folder(path) or path.is_symlink())


def code() -> str:
    """A hash of everything that shapes a page beside the Result: this package's files, and the plugins that there are."""
    here = Path(__file__).parent
    files = sorted(path for path in here.rglob("*") if path.is_file() and path.suffix in (".py", ".html", ".css", ".js"))
    shared = [here.parent / "store" / name for name in ("results.py", "schema.py", "reading.py")]
    digest = hashlib.sha256(content([*files, *shared]).encode())
    for entry in sorted(metadata.entry_points(group="wallprobe.exhibits"), key=lambda entry: (entry.name, entry.value)):
        owner = f"{entry.dist.name} {entry.dist.version}" if entry.dist else ""
        digest.update(f"{entry.name} {entry.value} {owner};".encode())
        if not entry.value.startswith("wallprobe."):
            digest.update(content(_sources(entry)).encode())
    return digest.hexdigest()


def _sources(entry: metadata.EntryPoint) -> list[Path]:
    """The Python files of a plugin, found without importing it."""
    import importlib.util

    found = None
    with contextlib.suppress(ImportError, ValueError):
        found = importlib.util.find_spec(entry.value.split(":")[0].split(".")[0])
    if found is None:
        return []
    within = [Path(place) for place in found.submodule_search_locations or []]
    return sorted(path for place in within for path in place.rglob("*.py")) or [Path(found.origin or "")]


@dataclass(frozen=True)
class Known:
    """What a build remembers of one source.

    Attributes:
        stamps: of the source's files.
        digest: of their content, and of what else the page shows.
        card: the card on the index; None for a damaged source.
        reason: why it is damaged; empty for a sound one.
        files: names of the files made of it -> their stamp.
    """

    stamps: list[list[int] | None]
    digest: str
    card: dict[str, Any] | None
    reason: str
    files: dict[str, list[int] | None]

    def is_sound(self) -> bool:
        """Whether the parts are of the types that a build writes; the memory is a file in a folder of the user's."""
        types = (self.stamps, list), (self.digest, str), (self.card, (dict, type(None))), (self.reason, str), (self.files, dict)
        return all(isinstance(value, kind) for value, kind in types)

    def stands(self, out: Path) -> bool:
        """Whether the files made of it still lie there as they were written."""
        return all(stamp(out / name) == seen for name, seen in self.files.items())


def remembered(out: Path, fingerprint: str) -> dict[str, Known]:
    """Source -> what the last build into that folder knew of it; nothing where other code made it."""
    try:
        told: Any = read_json(out / MEMORY)
        if told["version"] != VERSION or told["code"] != fingerprint:
            return {}
        known = {str(name): Known(**fields) for name, fields in told["known"].items()}
        return known if all(item.is_sound() for item in known.values()) else {}
    except (StoreError, AttributeError, KeyError, TypeError):
        return {}


def memory_bytes(fingerprint: str, known: Mapping[str, Known]) -> bytes:
    """What `remembered` reads."""
    told = {"version": VERSION, "code": fingerprint, "known": {name: vars(item) for name, item in known.items()}}
    return json.dumps(told, allow_nan=False, separators=(",", ":")).encode()
