"""Whether one figure lies above another, or is only not told apart from it: what every word of a finding turns on.

A sentence that says "more than", "rises" or "contracts" states a difference. It may do so only where the difference lies outside its
interval and is more than rounding: the same model on another processor moves every figure in its last digits. Plain floats, no torch,
so that every room may ask.
"""

import math
from collections.abc import Sequence
from typing import Literal

Side = Literal["above", "below", "level"]
Bounds = tuple[float, float]

EPS = 2.0**-23  # of float32, relative: models run in it, also where figures are summed in float64
# Errors of a sum of n terms grow as the square root of n; a figure at the end of a model stands behind some 16,000 of them.
TIMES = 128


def rounding(*values: float) -> float:
    """What figures of this size may differ by through rounding alone.

    Args:
        values: figures in one unit; those that are not finite are left out.

    Returns:
        `TIMES` float32 epsilons (1.5e-5) of the largest magnitude, in the figures' unit. Give it the figures that were subtracted, not
        their difference: the rounding of a difference is as large as that of its parts.
    """
    return TIMES * EPS * max((abs(value) for value in values if math.isfinite(value)), default=0.0)


def difference(a: Bounds, b: Bounds | float) -> Bounds:
    """Bounds of a - b where only those of each are there: wider than the interval of paired differences would be.

    Args:
        a: lower and upper bound of the first.
        b: those of the second, or a number that is known.

    Returns:
        Lower and upper bound, NaN where one that is needed is.
    """
    low, high = (b, b) if isinstance(b, (int, float)) else b
    return a[0] - high, a[1] - low


def side(a: float, b: float, interval: Bounds | None = None, noise: float | None = None) -> Side:
    """On which side of `b` does `a` lie, if they can be told apart?

    Args:
        a, b: two figures in one unit.
        interval: bounds of a - b, in the same unit, such as a bootstrap's 95 %; None, or NaN in it, where there is none. Of a figure held
            to a known number `difference(bounds, number)`.
        noise: what the two may differ by through rounding, in the same unit; None for `rounding(a, b)`.

    Returns:
        "above" if a - b and the lower bound are both more than the noise, "below" if both are less than minus it, else "level": within
        the interval, within the noise, or NaN. `side(b, a, (-high, -low))` is the other way round.
    """
    slack = rounding(a, b) if noise is None else noise
    low, high = (a - b, a - b) if interval is None or any(map(math.isnan, interval)) else interval
    if min(a - b, low) > slack:
        return "above"
    return "below" if max(a - b, high) < -slack else "level"


def beyond(a: float, b: float, interval: Bounds | None = None, noise: float | None = None) -> bool:
    """Whether `a` lies above `b` by more than its interval and by more than rounding; arguments as `side`'s. Never so for NaN."""
    return side(a, b, interval, noise) == "above"


def foremost(values: Sequence[float], noise: float | None = None) -> int | None:
    """The first place that no other is above: among places that differ by rounding the choice does not depend on it.

    Args:
        values: figures in one unit, NaN where there is none. For the least give them with the other sign.
        noise: as `side`'s; None for `rounding` of each against the largest.

    Returns:
        The first place within the noise of the largest figure; None if all are NaN.
    """
    most = max((value for value in values if not math.isnan(value)), default=math.nan)
    near = (place for place, value in enumerate(values) if not math.isnan(value) and not beyond(most, value, noise=noise))
    return next(near, None)
