"""Quantities: small expressions over the stored measurements of one seed, each with its interval and a sentence on how it is measured.

Every operation is monotonic in its arguments, so that bounds follow from bounds; of two intervals the combined one is too wide
rather than too narrow.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]
# (condition, instrument) -> what the instrument's result.json holds for the seed in question, None where it was not measured
Lookup = Callable[[str, str], Record | None]


@dataclass(frozen=True)
class Reading:
    """One seed's value with the bounds of its 95 % bootstrap interval, NaN where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Quantity:
    """Something measured on the runs of one seed.

    Attributes:
        read: its reading for a seed, None where a measurement is missing; NaN where it is not defined.
        how: what is read, in words.
        needs: the (condition, instrument) pairs it reads.
        over_seeds: False if the runs' seeds do not enter it (the exact answer), so that no interval over seeds means anything.
    """

    read: Callable[[Lookup], Reading | None]
    how: str
    needs: tuple[tuple[str, str], ...]
    over_seeds: bool = True

    def __sub__(self, other: "Quantity") -> "Quantity":
        return _join(
            (self, other),
            f"{self.how} minus {other.how}",
            lambda a, b: Reading(a.value - b.value, a.low - b.high, a.high - b.low),
        )

    def __truediv__(self, other: "Quantity") -> "Quantity":
        """Quotient of two that are not negative; NaN over zero."""
        return _join(
            (self, other),
            f"{self.how} over {other.how}",
            lambda a, b: Reading(_over(a.value, b.value), _over(a.low, b.high), _over(a.high, b.low)),
        )

    def scaled(self, factor: float, how: str) -> "Quantity":
        """Times a positive factor."""
        return _join((self,), how, lambda a: Reading(a.value * factor, a.low * factor, a.high * factor))


def number(value: object) -> float:
    """A JSON number as float; NaN for what is none."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def summary(condition: str, instrument: str, key: str) -> Quantity:
    """A key of an instrument's summary, with the bounds that stand beside it."""

    def read(lookup: Lookup) -> Reading | None:
        found = lookup(condition, instrument)
        return None if found is None else _reading(found["summary"], key)

    return Quantity(read, f"{key} of {condition} ({instrument})", ((condition, instrument),))


def cell(condition: str, instrument: str, key: str, **at: int) -> Quantity:
    """A cell of an instrument's long table; NaN if the table has no such cell."""
    where = ", ".join(f"{dim} {place}" for dim, place in at.items())

    def read(lookup: Lookup) -> Reading | None:
        found = lookup(condition, instrument)
        if found is None:
            return None
        rows = [record for record in found["values"] if all(record.get(dim) == place for dim, place in at.items())]
        return _reading(rows[0], key) if len(rows) == 1 else Reading(math.nan)

    return Quantity(read, f"{key} of {condition} at {where} ({instrument})", ((condition, instrument),))


def largest_cell(
    condition: str,
    instrument: str,
    of: Callable[[Record], Reading],
    how: str,
    keep: Callable[[Record, tuple[Record, ...]], bool] | None = None,
) -> Quantity:
    """The largest of a figure over the cells of a long table.

    Args:
        condition, instrument: whose table.
        of: the figure of one cell.
        how: the same in words.
        keep: told (cell, all cells), which count; all by default.
    """

    def read(lookup: Lookup) -> Reading | None:
        found = lookup(condition, instrument)
        if found is None:
            return None
        records = tuple(found["values"])
        readings = [of(record) for record in records if keep is None or keep(record, records)]
        defined = tuple(reading for reading in readings if math.isfinite(reading.value))
        return _largest(defined) if defined else Reading(math.nan)

    return Quantity(read, how, ((condition, instrument),))


def mean(*parts: Quantity, how: str) -> Quantity:
    """The plain mean of several."""

    def combine(*readings: Reading) -> Reading:
        columns = zip(*((reading.value, reading.low, reading.high) for reading in readings), strict=True)
        return Reading(*(sum(column) / len(readings) for column in columns))

    return _join(parts, how, combine)


def highest(*parts: Quantity, how: str) -> Quantity:
    """The largest of several."""
    return _join(parts, how, lambda *readings: _largest(readings))


def _largest(readings: tuple[Reading, ...]) -> Reading:
    columns = zip(*((reading.value, reading.low, reading.high) for reading in readings), strict=True)
    return Reading(*(math.nan if any(map(math.isnan, column)) else max(column) for column in columns))


def _join(parts: tuple[Quantity, ...], how: str, combine: Callable[..., Reading]) -> Quantity:
    def read(lookup: Lookup) -> Reading | None:
        readings = [part.read(lookup) for part in parts]
        return None if any(reading is None for reading in readings) else combine(*readings)

    needs = tuple(dict.fromkeys(need for part in parts for need in part.needs))
    return Quantity(read, how, needs, any(part.over_seeds for part in parts))


def _reading(record: Record, key: str) -> Reading:
    return Reading(*(number(record.get(name)) for name in (key, f"{key}_low", f"{key}_high")))


def _over(top: float, bottom: float) -> float:
    return top / bottom if bottom else math.nan
