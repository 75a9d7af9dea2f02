"""A Result's figures as a script of data that the compare page loads from a folder, where file:// lets no page fetch."""

import math
from collections.abc import Hashable
from typing import Any

import numpy as np
import xarray as xr

from wallprobe.gallery.render import sealed
from wallprobe.store.results import Result, plain

CELLS = 20_000  # of one Result, over all its variables


def payload(result: Result, stem: str) -> dict[str, Any]:
    """Coordinates, numeric variables with their bounds, summary and configuration; `left_out` names what was too large."""
    room, variables, left_out = CELLS, [], []
    for name in _compared(result):
        array = result.data[name].transpose(*(dim for dim in result.table if dim in result.data[name].dims))
        bounds = [bound for bound in ("low", "high") if _alike(result, f"{name}_{bound}", array)]
        size = array.size * (1 + len(bounds))
        if size > room:
            left_out.append(str(name))
            continue
        room -= size
        variable = {
            "name": str(name),
            "label": str(array.attrs.get("long_name", "") or name),
            "units": str(array.attrs.get("units", "")),
            "dims": [str(dim) for dim in array.dims],
            "values": _numbers(array),
        }
        for bound in bounds:
            variable[bound] = _numbers(result.data[f"{name}_{bound}"].transpose(*array.dims))
        variables.append(variable)
    dims = {dim: plain(result.data[dim].values) for dim in result.table}
    return {
        "stem": stem,
        "kind": result.kind,
        "title": "",
        "subject": str(result.manifest.get("subject", "")),
        "created": str(result.manifest.get("created", "")),
        "command": str(result.manifest.get("command", "")),
        "dims": dims,
        "variables": variables,
        "summary": {key: value for key, value in plain(result.summary).items() if not isinstance(value, (dict, list))},
        "config": _flat(plain(result.manifest.get("config"))),
        "left_out": left_out,
    }


def script(found: dict[str, Any]) -> str:
    """The payload as a classic script."""
    return f"wallprobeData({sealed(found)});\n"


def _compared(result: Result) -> list[Hashable]:
    """Numeric variables along dims of the table, bounds left out: each stands with what it bounds."""
    names = [
        name
        for name, array in result.data.data_vars.items()
        if array.dims and set(array.dims) <= set(result.table) and array.dtype.kind in "fiu"
    ]
    bounds = {f"{name}_{bound}" for name in names for bound in ("low", "high")}
    return [name for name in names if name not in bounds]


def _alike(result: Result, name: str, array: xr.DataArray) -> bool:
    return name in result.data and set(result.data[name].dims) == set(array.dims)


def _numbers(array: xr.DataArray) -> list[float | None]:
    """Six digits, row after row; None where it is not finite."""
    return [float(f"{value:.6g}") if math.isfinite(value) else None for value in np.asarray(array.values, dtype=float).ravel().tolist()]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """A configuration as `a.b` -> value, lists as text."""
    if isinstance(value, dict):
        return {key: item for inner, within in value.items() for key, item in _flat(within, f"{name}.{inner}" if name else inner).items()}
    return {name: ", ".join(map(str, value)) if isinstance(value, list) else value} if name else {}
