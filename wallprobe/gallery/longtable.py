"""The long table of a Result, by columns: an attention map has a quarter of a million cells, too many for a record each."""

import csv
import io
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from wallprobe.store.results import Result


def columns(result: Result) -> dict[str, list[Any]]:
    """A column a dim of the table and a variable over exactly these dims; missing figures are None."""
    shape = tuple(result.data.sizes[dim] for dim in result.table)
    found: dict[str, list[Any]] = {}
    for place, dim in enumerate(result.table):
        along = [1] * len(shape)
        along[place] = shape[place]
        found[dim] = _plain(np.broadcast_to(result.data[dim].values.reshape(along), shape))
    for name, array in result.data.data_vars.items():
        if array.dims == result.table:
            found[str(name)] = _plain(array.values)
    return found


def _plain(values: npt.NDArray[Any]) -> list[Any]:
    listed: list[Any] = values.ravel().tolist()
    if values.dtype.kind != "f" or np.isfinite(values).all():
        return listed
    return [value if math.isfinite(value) else None for value in listed]


def as_csv(table: dict[str, list[Any]]) -> str:
    """The columns as CSV; a missing figure is an empty cell."""
    handle = io.StringIO()
    writer = csv.writer(handle, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    return handle.getvalue()
