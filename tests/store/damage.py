"""Ways to damage what is stored: a manifest's or record's keys one by one, and whole files; each ending in a store that must go on."""

import copy
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

MISSING = object()


def nested(depth: int) -> list[Any]:
    """Lists in lists."""
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


VALUES: dict[str, Any] = {
    "missing": MISSING,
    "null": None,
    "list": [1],
    "object": {"a": {"b": 1}},
    "text": "../x",
    "control": "a\x00\x1b[31m\nb",
    "NaN": math.nan,
    "infinity": math.inf,
    "huge": 10**12,
    "beyond 64 bits": 10**25,
    "negative": -1,
    "float for int": 6.0,
    "true": True,
    "deep": nested(60),
    "too deep": nested(500),
}


def keys(record: dict[str, Any], depth: int = 2, before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key, those of inner objects down to a depth."""
    for key, value in record.items():
        yield (*before, key)
        if isinstance(value, dict) and len(before) + 1 < depth:
            yield from keys(value, depth, (*before, key))


def changed(record: dict[str, Any], place: tuple[str, ...], value: Any) -> dict[str, Any]:
    """The record with another value there."""
    made = copy.deepcopy(record)
    inner = made
    for key in place[:-1]:
        inner = inner[key]
    if value is MISSING:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return made


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(change(path.read_bytes())) and None


def _replaced(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        path.unlink()
        make(path)

    return damage


def _unreadable(path: Path) -> None:
    # A file that opens and gives an error on reading, to root as well.
    path.unlink()
    path.symlink_to("/proc/self/mem")


# What may happen to a file, whatever it holds.
FILES: dict[str, Callable[[Path], None]] = {
    "truncated": _bytes(lambda data: data[: len(data) // 2]),
    "flipped": _bytes(lambda data: data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 0xFF]) + data[len(data) // 2 + 1 :]),
    "empty": _bytes(lambda data: b""),
    "junk": _bytes(lambda data: b"\x00\xff junk" * 20),
    "folder": _replaced(lambda path: path.mkdir()),
    "loop": _replaced(lambda path: path.symlink_to(path.name)),
    "leads nowhere": _replaced(lambda path: path.symlink_to("nothing")),
    "pipe": _replaced(os.mkfifo),
    "unreadable": _unreadable,
    "sparse": _replaced(lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_WRONLY), 1 << 40)),
}


def edit(name: str, **fields: Any) -> Callable[[Path], None]:
    """Damage that gives a JSON file in a folder other top-level values."""

    def damage(folder: Path) -> None:
        record = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({key: value for key, value in (record | fields).items() if value is not MISSING}))

    return damage


def whole(name: str, text: str) -> Callable[[Path], None]:
    """Damage that gives a file in a folder another text."""
    return lambda folder: (folder / name).write_text(text) and None


def in_file(name: str, kind: str) -> Callable[[Path], None]:
    """Damage of `FILES` to a file in a folder."""
    return lambda folder: FILES[kind](folder / name)


def _shape(**sizes: Any) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        shape = json.loads((folder / "manifest.json").read_text())["shape"]
        edit("manifest.json", shape=shape | sizes)(folder)

    return damage


# Each makes a run that no listing may take for sound.
RUNS: dict[str, Callable[[Path], None]] = {
    **{f"manifest {kind}": in_file("manifest.json", kind) for kind in FILES if kind != "flipped"},
    "config null": edit("manifest.json", config=None),
    "config a list": edit("manifest.json", config=[1]),
    "seed infinite": edit("manifest.json", seed=math.inf),
    "seed of another": edit("manifest.json", seed=11),
    "task null": edit("manifest.json", task=None),
    "horizon -1": edit("manifest.json", horizon=-1),
    "kind unknown": edit("manifest.json", kind="poem"),
    "n_layers text": _shape(n_layers="6"),
    "n_layers 6.5": _shape(n_layers=6.5),
    "n_layers NaN": _shape(n_layers=math.nan),
    "n_layers 1e9": _shape(n_layers=10**9),
    "n_ctx 1e12": _shape(n_ctx=10**12),
    "heads that do not divide": _shape(n_heads=3),
    "weight_hash a number": edit("manifest.json", weight_hash=3),
    "shape missing": edit("manifest.json", shape=MISSING),
    "condition with ..": edit("manifest.json", condition="../../etc", config={}),
    "condition with control": edit("manifest.json", condition="c0\n\x1b", config={}),
    "deep": whole("manifest.json", "[" * 100_000 + "]" * 100_000),
    "deep object": whole("manifest.json", '{"a":' * 2_000 + "1" + "}" * 2_000),
    "a list": whole("manifest.json", "[]"),
    "null": whole("manifest.json", "null"),
    "a lone surrogate": edit("manifest.json", preset="\ud800"),
}

HDF5 = b"\x89HDF\r\n\x1a\n" + bytes(500)
# One dim of 2^31 - 1, no variable: as many bytes of memory as are counted through.
VAST = b"CDF\x01" + bytes(4) + (10).to_bytes(4, "big") + (1).to_bytes(4, "big") + (5).to_bytes(4, "big") + b"layer\0\0\0"
VAST += (2**31 - 1).to_bytes(4, "big") + bytes(16)


def _arrays(make: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Other arrays with the hash that belongs to them."""

    def damage(folder: Path) -> None:
        data = make((folder / "arrays.nc").read_bytes())
        (folder / "arrays.nc").write_bytes(data)
        edit("result.json", arrays_hash=hashlib.sha256(data).hexdigest())(folder)

    return damage


RESULTS: dict[str, Callable[[Path], None]] = {
    **{f"record {kind}": in_file("result.json", kind) for kind in FILES if kind != "flipped"},
    **{f"arrays {kind}": in_file("arrays.nc", kind) for kind in FILES},
    "arrays junk, hash right": _arrays(lambda data: b"junk" * 100),
    "arrays HDF5, hash right": _arrays(lambda data: HDF5),
    "arrays empty, hash right": _arrays(lambda data: b""),
    "arrays cut, hash right": _arrays(lambda data: data[:-40]),
    "arrays vast, hash right": _arrays(lambda data: VAST),
    "unknown dims": edit("result.json", table=["nose", "mouth"]),
    "table missing": edit("result.json", table=MISSING),
    "summary not flat": edit("result.json", summary={"a": {"b": 1}}),
    "summary a list": edit("result.json", summary=[1]),
    "manifest null": edit("result.json", manifest=None),
    "kind a number": edit("result.json", kind=3),
    "kind with control": edit("result.json", kind="e\nval\x1b"),
    "hash a number": edit("result.json", arrays_hash=3),
    "deep": whole("result.json", "[" * 100_000 + "]" * 100_000),
    "a list": whole("result.json", "[]"),
}


def some(kinds: dict[str, Any], every: int) -> list[Any]:
    """Each of them as a parameter, all but every so many left to the slow form."""
    return [pytest.param(kind, marks=() if place % every == 0 else pytest.mark.slow) for place, kind in enumerate(kinds)]
