"""The ledger of the wall study and of the experiments behind it: its claims, and the runs and instruments they need."""

from collections.abc import Mapping
from types import MappingProxyType

from wallprobe.claims.ledger.claim import Area
from wallprobe.claims.wall import axes, conditions, instruments, transfer
from wallprobe.claims.wall.conditions import CONDITIONS, PUBLISHED

# instrument -> conditions it is used on; "*" for all that are trained
INSTRUMENTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "eval": ("*",),
        "probe": ("c0", "c1"),
        "geometry": ("c0",),
        "temperature": ("c0", "c1", "p5"),
        "calibration": ("c1", "p5"),
        "rescue": ("c0",),
    }
)


def published(run: str, key: str) -> float | None:
    """The wall study's figure for a run's condition, None where it gives none.

    Args:
        run: run name, with or without seed.
        key: summary key of an eval Result.
    """
    return PUBLISHED.get(run.partition("@")[0], {}).get(key)


def area() -> Area:
    """The claims, in reading order, and what it takes to measure them."""
    claims = (*conditions.claims(), *axes.claims(), *instruments.claims())
    title = "The wall between supervised and unsupervised positions (the wall study)"
    return Area("wall", title, claims, CONDITIONS, axes.AXES, instruments.PAIRS, INSTRUMENTS, transfer.PAIRS)
