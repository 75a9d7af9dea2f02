"""Plotly specs as plain dicts, without plotly: the bundle in the page draws them, and colours are names of the page's theme.

"@series-1" .. "@series-4", "@ink", "@muted", "@line", "@shade" are resolved by gallery.js, so that a chart follows light and dark.
"""

import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from wallprobe.gallery.render import number as number
from wallprobe.store.results import Result

Spec = dict[str, Any]
DIMENSIONLESS = {"", "1", "none", "dimensionless"}


def text(value: object) -> str:
    """Any text as plotly shows it literally: plotly reads a small HTML of its own."""
    return html.escape(str(value), quote=False)


def chance(value: float | None) -> str:
    """A probability for people, three decimals."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.3f}"


def axis(label: str, units: str = "", **more: Any) -> Spec:
    """An axis with its units in the title."""
    title = label if units in DIMENSIONLESS or units in label else f"{label} ({units})"
    return {"title": {"text": text(title)}} | more


def units(result: Result, name: str) -> str:
    """Units of a variable, empty when it has none."""
    return str(result.data[name].attrs.get("units", "")) if name in result.data else ""


def values(array: xr.DataArray) -> list[float | None]:
    """A one-dimensional array as JSON numbers, None where it is not finite."""
    return [float(value) if math.isfinite(value) else None for value in np.asarray(array.values, dtype=float)]


def has(result: Result, *names: str) -> bool:
    """Whether the Result has all these variables."""
    return all(name in result.data for name in names)


def error_bars(data: xr.Dataset, name: str) -> Spec:
    """Whiskers from `name_low` to `name_high`, or nothing when the Result has no interval."""
    if f"{name}_low" not in data or f"{name}_high" not in data:
        return {}
    middle, low, high = (np.atleast_1d(np.asarray(data[name + suffix].values, dtype=float)) for suffix in ("", "_low", "_high"))
    up, down = (np.nan_to_num(np.maximum(gap, 0.0)).tolist() for gap in (high - middle, middle - low))
    whisker = {"type": "data", "symmetric": False, "array": up, "arrayminus": down}
    return {"error_y": whisker | {"thickness": 1.2, "width": 3, "color": "@ink"}}


def band(data: xr.Dataset, name: str, x: Sequence[Any], color: str) -> list[Spec]:
    """The interval of `name` as a filled band under a line; empty when there is none."""
    if f"{name}_low" not in data or f"{name}_high" not in data:
        return []
    edge = {"type": "scatter", "mode": "lines", "x": list(x), "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    return [
        edge | {"y": values(data[f"{name}_low"])},
        edge | {"y": values(data[f"{name}_high"]), "fill": "tonexty", "fillcolor": f"{color}-soft"},
    ]


def line(data: xr.Dataset, name: str, x: Sequence[Any], *, label: str, color: str, dash: str = "solid", symbol: str = "circle") -> Spec:
    """One variable as a line with markers; its dash and symbol tell it apart without colour."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": text(label),
        "x": list(x),
        "y": values(data[name]),
        "line": {"color": color, "width": 2, "dash": dash},
        "marker": {"color": color, "size": 6, "symbol": symbol},
    }


def rule_line(y: float, label: str) -> Spec:
    """A dotted rule across the plot, named in the legend, where no bar can cover its name."""
    drawn = {"color": "@ink", "width": 1.2, "dash": "dot"}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": y, "y1": y, "line": drawn, "name": text(label), "showlegend": True}


def wall(horizon: float, first: float) -> tuple[list[Spec], list[Spec]]:
    """The wall between positions K and K+1 with the supervised side shaded, as (shapes, annotations)."""
    at = horizon + 0.5
    side = {"type": "rect", "yref": "paper", "y0": 0, "y1": 1, "x0": first - 0.5, "x1": at, "fillcolor": "@shade", "line": {"width": 0}}
    edge = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": at, "x1": at, "line": {"color": "@ink", "width": 1.5}}
    small = {"yref": "paper", "y": 1, "yanchor": "bottom", "showarrow": False, "font": {"size": 11, "color": "@muted"}}
    notes = [
        small | {"x": at, "xanchor": "right", "text": "supervised", "xshift": -6},
        small | {"x": at, "xanchor": "left", "text": "unsupervised", "xshift": 6},
    ]
    return [side | {"layer": "below"}, edge], notes


def position_layout(data: xr.Dataset, wording: str, units: str) -> Spec:
    """The layout of lines over positions: both axes, and the wall where the Dataset has a horizon."""
    positions = data["position"].values.tolist()
    layout: Spec = {
        "xaxis": axis("position", "prediction of token t", dtick=1 if len(positions) <= 20 else None, showgrid=False),
        "yaxis": axis(wording, units, rangemode="tozero"),
        "hovermode": "x unified",
    }
    if data.attrs.get("horizon") is not None:
        layout["shapes"], layout["annotations"] = wall(float(data.attrs["horizon"]), float(positions[0]))
    return layout


def wall_place(data: xr.Dataset) -> float | None:
    """Between which two points of a line over positions the wall is, in places of the line."""
    horizon = data.attrs.get("horizon")
    return None if horizon is None else float(horizon) + 0.5 - float(data["position"].values[0])


def scale(*series: Sequence[float | None]) -> Spec:
    """A y axis' type: logarithmic, ticked by powers of ten, where `log_range`."""
    return {"type": "log", "dtick": 1} if log_range(*series) else {"type": "linear"}


def log_range(*series: Sequence[float | None]) -> bool:
    """Whether positive values span more than a factor of 30, where a linear axis would hide the small ones."""
    seen = [value for row in series for value in row if value is not None and value > 0]
    return bool(seen) and max(seen) > 30 * min(seen)
