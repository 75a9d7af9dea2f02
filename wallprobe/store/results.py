"""Result: labelled arrays with units, controls beside the treatment, and the manifest of what made them.

A stored Result is a folder `kind-slug-hash` with result.json (`kind`, `summary`, `values`, `manifest`; what `--json` prints)
and arrays.nc (netCDF-3, the xarray.Dataset).
"""

import hashlib
import io
import json
import math
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from wallprobe.errors import StoreError
from wallprobe.plugins import PICTURES, load_group
from wallprobe.store.reading import ARRAY_BYTES, entries, is_folder, read_file, told
from wallprobe.store.staging import recover
from wallprobe.store.storage import as_json, atomic_directory, read_json, sha256_file, write_atomic, write_within

if TYPE_CHECKING:
    import pandas

RECORD, ARRAYS = "result.json", "arrays.nc"
DECIDES = ("threads", "device", "dtype")  # of the last digits, beside the packages' versions; none of them is in a Result's name


class OtherBytesWarning(UserWarning):
    """A Result replaced one of the same name whose bytes are others."""


def default_root() -> Path:
    """`$WALLPROBE_RESULTS`, else `./results`."""
    return Path(os.environ.get("WALLPROBE_RESULTS", "results"))


def plain(value: Any) -> Any:
    """The value as JSON: numpy scalars unwrapped, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass(frozen=True)
class Picture:
    """HTML that a notebook shows.

    Attributes:
        html: a frame that carries all it needs.
    """

    html: str

    def _repr_html_(self) -> str:
        return self.html

    def save(self, path: str | Path) -> Path:
        """Write it as a page of its own.

        Raises:
            StoreError: if it cannot be written.
        """
        write_atomic(Path(path), f'<!doctype html><meta charset="utf-8">{self.html}\n'.encode())
        return Path(path)


@dataclass(frozen=True)
class Result:
    """One measurement.

    Attributes:
        kind: what it is of, for instance "interchange"; chooses the exhibit.
        data: arrays with named dims; every variable has attrs `units` and `long_name`. Variables whose dims are exactly
            `table` make the long table `values`; others (per pair, per sequence) stay in the arrays alone.
        table: dims of the long table, in order.
        summary: flat, JSON values only; its keys never change meaning.
        manifest: see `wallprobe.store.manifest`.
    """

    kind: str
    data: xr.Dataset
    table: tuple[str, ...]
    summary: dict[str, Any]
    manifest: dict[str, Any]

    @property
    def values(self) -> list[dict[str, Any]]:
        """The long table: one record a cell, a column a dim and a variable."""
        chosen = [name for name, array in self.data.data_vars.items() if array.dims == self.table]
        coords = [self.data[dim].values for dim in self.table]
        columns = {str(name): self.data[name].values for name in chosen}
        records = []
        for cell in np.ndindex(*(len(coord) for coord in coords)):
            record = {dim: plain(coord[place]) for dim, coord, place in zip(self.table, coords, cell, strict=True)}
            record |= {name: plain(column[cell]) for name, column in columns.items()}
            records.append(record)
        return records

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints: `kind`, `summary`, `values`, `manifest`."""
        return {"kind": self.kind, "summary": plain(self.summary), "values": self.values, "manifest": plain(self.manifest)}

    def _repr_html_(self) -> str | None:
        """Its picture in a notebook: the gallery's page in a frame that needs no network, found by entry point."""
        picture = next(iter(load_group(PICTURES).values()), None)
        return None if picture is None else str(picture(self))

    def plot(self) -> Any:
        """Its picture, to be shown by a notebook: the gallery's page in a frame that needs no network.

        Raises:
            StoreError: if nothing here draws pictures.
        """
        text = self._repr_html_()
        if text is None:
            raise StoreError("nothing here draws pictures: the gallery's entry point is missing; install wallprobe again")
        return Picture(text)

    def to_dataframe(self) -> "pandas.DataFrame":
        """The long table as a pandas DataFrame: one row a cell, a column a dim and a variable; missing figures are NaN."""
        chosen = [name for name, array in self.data.data_vars.items() if array.dims == self.table]
        return self.data[chosen].to_dataframe(dim_order=list(self.table)).reset_index()

    @property
    def slug(self) -> str:
        """A readable, file-safe stem from the manifest's `subject`."""
        subject = str(self.manifest.get("subject", "result"))
        return re.sub(r"[^a-z0-9@.]+", "-", subject.lower()).strip("-.")[:60] or "result"

    @property
    def identity(self) -> str:
        """Folder name in a store: kind, slug and a hash of the configuration, so that the same command replaces its own Result."""
        key = json.dumps([self.kind, self.slug, plain(self.manifest.get("config"))], sort_keys=True)
        return f"{self.kind}-{self.slug}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"

    def save(self, root: str | Path | None = None) -> Path:
        """Store it under `root` (default `default_root()`), whole or not at all.

        Returns:
            Its folder.

        Raises:
            StoreError: if the store cannot be written.
        """
        return self.save_at((default_root() if root is None else Path(root)) / self.identity)

    def save_at(self, folder: Path, store: Path | None = None) -> Path:
        """Store it as that very folder, whole or not at all; one of that name is there until this one is.

        Args:
            folder: where.
            store: the store it lies in, where that is not the folder above.
        """
        with atomic_directory(folder, store) as staged:
            write_within(staged / ARRAYS, bytes(self.data.to_netcdf(engine="scipy")))
            record = self.to_json() | {"table": list(self.table), "arrays_hash": sha256_file(staged / ARRAYS)}
            write_within(staged / RECORD, as_json(record))
            _tell_other_bytes(folder, record)
        return folder


def _tell_other_bytes(folder: Path, record: Mapping[str, Any]) -> None:
    """Say on one line that a Result takes the place of one whose bytes are others, where threads, device or versions explain it."""
    try:
        before = read_json(folder / RECORD)
        old, new = before["manifest"], record["manifest"]
        if before["arrays_hash"] == record["arrays_hash"]:
            return
        told = {key: (old.get(key), new.get(key)) for key in DECIDES} | {
            name: (old["versions"].get(name), version) for name, version in new["versions"].items()
        }
    except (StoreError, KeyError, TypeError, AttributeError):
        return  # nothing there, or nothing that can be compared
    others = [f"{key} {was} -> {now}" for key, (was, now) in told.items() if was != now]
    if others:
        warnings.warn(
            f"{folder.name} replaces one with other bytes, made with other settings: {', '.join(others)}", OtherBytesWarning, stacklevel=3
        )


def load_result(folder: Path) -> Result:
    """The Result in a folder.

    Raises:
        StoreError: if a part is missing, altered or unreadable.
    """
    from wallprobe.store import schema

    record = read_json(folder / RECORD)
    try:
        schema.check(schema.ResultRecord, record)
    except StoreError as error:
        raise StoreError(f"{folder / RECORD} is no record of a result ({error}); it is damaged or not ours, make it again") from error
    table, manifest = tuple(record["table"]), record["manifest"]
    again = f"make the result again: {' '.join(str(manifest.get('command', '')).split())[:300]}"
    arrays = folder / ARRAYS
    try:
        data = read_file(arrays, ARRAY_BYTES)
    except StoreError as error:
        raise StoreError(f"{arrays} cannot be read ({error}); {again}") from error
    found, expected = hashlib.sha256(data).hexdigest(), record["arrays_hash"]
    if found != expected:
        raise StoreError(f"{arrays} has SHA-256 {found[:12]}... where its record says {expected[:12]}...: it was altered; {again}")
    return Result(record["kind"], _arrays(data, table, arrays, again), table, record["summary"], manifest)


def _arrays(data: bytes, table: tuple[str, ...], path: Path, again: str) -> xr.Dataset:
    """The Dataset in a file's bytes. No header can make it larger than they are: they are all that there is to read.

    Raises:
        StoreError: if they are no netCDF-3, or do not have the table's dims.
    """
    try:
        with xr.open_dataset(io.BytesIO(data), engine="scipy") as found:
            sizes = {str(dim): size for dim, size in found.sizes.items()}
            # A dim without a variable along it takes no byte of the file, and all of memory as soon as it is counted through.
            if max([*sizes.values(), math.prod(sizes.get(dim, 0) for dim in table)]) > max(len(data), 1 << 20):
                raise ValueError(f"dims of {', '.join(f'{name} {size}' for name, size in sizes.items())} in {len(data)} bytes")
            absent = [dim for dim in table if dim not in sizes]
            if absent:
                raise ValueError(f"no dim {', '.join(absent)}, which the table has; there are: {', '.join(sizes) or 'none'}")
            return found.load()
    except Exception as error:
        # scipy and xarray raise whatever a damaged header makes of them, MemoryError among it.
        raise StoreError(f"{path} holds no readable arrays ({told(error)}); {again}") from error


def list_results(root: Path | None = None) -> tuple[list[tuple[Path, Result]], list[tuple[Path, str]]]:
    """Every Result in a store, and the damaged ones with what is wrong, both by folder name."""
    folder = root or default_root()
    recover(folder)
    sound: list[tuple[Path, Result]] = []
    damaged: list[tuple[Path, str]] = []
    for path in entries(folder):
        if not is_result_folder(path):
            continue
        try:
            sound.append((path, load_result(path)))
        except StoreError as error:
            damaged.append((path, str(error)))
    return sound, damaged


def is_result_folder(path: Path) -> bool:
    """Whether what lies in a store stands for a Result: a folder, or a link that should lead to one. Files beside them do not."""
    return is_folder(path) or path.is_symlink()


def dataset(
    coords: Mapping[str, Any], variables: Mapping[str, tuple[tuple[str, ...], Any, str, str]], **attrs: str | int | float
) -> xr.Dataset:
    """A Dataset from plain arrays.

    Args:
        coords: dim -> labels.
        variables: name -> (dims, array, units, long name).
        attrs: attributes of the whole.
    """
    data = xr.Dataset(coords={name: (name, np.asarray(labels)) for name, labels in coords.items()}, attrs=dict(attrs))
    for name, (dims, array, units, long_name) in variables.items():
        data[name] = (dims, np.asarray(array), {"units": units, "long_name": long_name})
    return data
