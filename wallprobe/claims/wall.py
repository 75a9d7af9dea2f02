"""The first seed's ledger (seed 000 and the two experiments behind it): its claims, and the runs and instruments they need."""

from collections.abc import Mapping
from types import MappingProxyType

from wallprobe.claims import wall_axes, wall_conditions, wall_instruments, wall_transfer
from wallprobe.claims.ledger import Area
from wallprobe.claims.wall_conditions import CONDITIONS, PUBLISHED

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
    """The essay's figure for a run's condition, None where it gives none.

    Args:
        run: run name, with or without seed.
        key: summary key of an eval Result.
    """
    return PUBLISHED.get(run.partition("@")[0], {}).get(key)


def area() -> Area:
    """The claims, in reading order, and what it takes to measure them."""
    claims = (*wall_conditions.claims(), *wall_axes.claims(), *wall_instruments.claims())
    title = "The wall between supervised and unsupervised positions (seed 000)"
    return Area("wall", title, claims, CONDITIONS, wall_axes.AXES, wall_instruments.PAIRS, INSTRUMENTS, wall_transfer.PAIRS)
