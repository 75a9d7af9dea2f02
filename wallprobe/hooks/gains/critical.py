"""The critical size N*, beyond which a unit of gain buys less: of Q = Q_inf - c N^-b and F ~ N^a, where d(Q / F) / dN = 0.

N* = (c (a + b) / (a Q_inf))^(1 / b). Quality Q = ln V - loss must level off for it: of two pure power laws the ratio is monotone, and there
is none. Reported only where the bootstrap over models bounds it. Source: the gains study, 6.3.3.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from wallprobe.findings import beyond, rounding

Array = npt.NDArray[np.float64]
LEAST = 5  # models: three figures are fitted, and a resample needs four sizes of its own
RATES = np.geomspace(0.01, 4.0, 600)  # of b; at the least of them N^-b is a logarithm over any range of sizes there is
TAIL = 0.025  # of the resamples may be without N*; with more, the interval has no end


@dataclass(frozen=True)
class Saturation:
    """Fits of Q = limit - drop (N / centre)^-rate and log F = growth log N + const, one for each set of models.

    Attributes:
        limit, drop, rate: of quality; nats, nats, exponent.
        growth: a, of the gain.
        at: N*, NaN where there is none.
        free: whether the rate is inside `RATES`, no edge of them.
    """

    limit: Array
    drop: Array
    rate: Array
    growth: Array
    at: Array
    free: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Critical:
    """N* of several models, or why there is none.

    Attributes:
        n_star, low, high: parameters, with the 95 % bootstrap interval over models; NaN where the interval is not finite.
        limit, rate, growth: Q_inf in nats, b and a of the fit to all models; limit and rate NaN where quality does not level off.
        unbounded: share of the resamples that have no N*.
        reason: why there is no N*, empty where there is one.
    """

    n_star: float
    low: float
    high: float
    limit: float
    rate: float
    growth: float
    unbounded: float
    reason: str

    @classmethod
    def none(cls, reason: str, growth: float = math.nan) -> "Critical":
        """No N*, and nothing fitted of quality."""
        return cls(math.nan, math.nan, math.nan, math.nan, math.nan, growth, math.nan, reason)


def saturations(sizes: Array, quality: Array, gain: Array) -> Saturation:
    """Least squares of every row: quality over a grid of rates, with limit and drop by their normal equations at each.

    Args:
        sizes, quality, gain: `[set, model]`; parameters, nats, and gains above 0.
    """
    across = np.log(sizes)
    centre = across.mean(axis=1, keepdims=True)
    x, up = across - centre, np.log(gain)
    growth = (x * (up - up.mean(axis=1, keepdims=True))).sum(axis=1) / (x**2).sum(axis=1)
    rest = quality - quality.mean(axis=1, keepdims=True)
    best, shape = np.full(len(x), np.inf), np.zeros((3, len(x)))  # limit, drop, place of the rate
    for place, tried in enumerate(RATES):
        z = np.exp(-tried * x)
        mean = z.mean(axis=1, keepdims=True)
        slope = ((z - mean) * rest).sum(axis=1) / ((z - mean) ** 2).sum(axis=1)
        left = ((rest - slope[:, None] * (z - mean)) ** 2).sum(axis=1)
        better = left < best
        best = np.where(better, left, best)
        shape = np.where(better, np.stack([quality.mean(axis=1) - slope * mean[:, 0], -slope, np.full(len(x), float(place))]), shape)
    limit, drop, places = shape
    rate, free = RATES[places.astype(int)], np.asarray((places > 0) & (places < len(RATES) - 1))
    sound = free & (limit > 0) & (drop > 0) & (growth > 0)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        log_at = centre[:, 0] + np.log(drop * (growth + rate) / (growth * limit)) / rate
        at = np.where(sound, np.exp(np.minimum(log_at, 700.0)), np.nan)
    return Saturation(limit, drop, rate, growth, at, free)


def critical_size(
    sizes: Sequence[float], quality: Sequence[float], gain: Sequence[float], rng: torch.Generator, draws: int = 2000
) -> Critical:
    """N* with its interval over models; none, and why, where the models do not bound it.

    Args:
        sizes: parameters.
        quality: ln V - loss of each, nats, on the same tokens.
        gain: the last MLP's.
        rng: of the resamples.
        draws: how many resamples, those kept that hold four distinct sizes or more.
    """
    n, q, f = (np.asarray([values], dtype=float) for values in (sizes, quality, gain))
    if n.shape[1] < LEAST or len(set(sizes)) < LEAST:
        return Critical.none(f"Q = Q_inf - c N^-b and its interval need at least {LEAST} models of different sizes, here {len(set(sizes))}")
    if not all(math.isfinite(value) for value in quality):
        return Critical.none("a model here has no loss")
    whole = saturations(n, q, f)
    growth = float(whole.growth[0])
    reason = _monotone(whole)
    if reason:
        return Critical.none(reason, growth)
    limit, rate = float(whole.limit[0]), float(whole.rate[0])
    picks = _resamples(n[0], rng, draws)
    drawn = saturations(n[0][picks], q[0][picks], f[0][picks]).at
    missing = float(np.isnan(drawn).mean())
    if missing > TAIL:
        told = f"{missing:.0%} of the resamples of these models have no critical size, so its interval has no end"
        return Critical(math.nan, math.nan, math.nan, limit, rate, growth, missing, told)
    # A resample without N* may lie beyond either end.
    low, high = (float(np.quantile(np.nan_to_num(drawn, nan=end), level)) for end, level in ((0.0, TAIL), (np.inf, 1 - TAIL)))
    if not (low > 0 and math.isfinite(high)):
        return Critical(
            math.nan, math.nan, math.nan, limit, rate, growth, missing, "its bootstrap interval over these models is not finite"
        )
    return Critical(float(whole.at[0]), low, high, limit, rate, growth, missing, "")


def _monotone(fit: Saturation) -> str:
    """Why Q / F of one fit has no greatest value, empty where it has."""
    growth, drop, limit = (float(values[0]) for values in (fit.growth, fit.drop, fit.limit))
    if not beyond(growth, 0.0, noise=rounding(1.0)):
        return f"the last MLP's gain does not grow with size (exponent {growth:.3f}), so there is nothing that efficiency falls by"
    if not beyond(drop, 0.0, noise=rounding(limit)):
        return "quality does not grow with size, so efficiency only falls"
    if not fit.free[0] and fit.rate[0] < 1:
        return "quality does not level off over these sizes: with a pure power law eta is monotone, there is no critical size"
    if not fit.free[0]:
        return "quality rises from the smallest model alone, so nothing says how fast it levels off"
    return "" if beyond(limit, 0.0, noise=rounding(drop)) else "quality levels off below a uniform guess"


def _resamples(sizes: Array, rng: torch.Generator, draws: int) -> npt.NDArray[np.int64]:
    kept: list[npt.NDArray[np.int64]] = []
    while sum(map(len, kept)) < draws:
        picks = torch.randint(len(sizes), (draws, len(sizes)), generator=rng).numpy()
        ordered = np.sort(sizes[picks], axis=1)
        kept.append(picks[1 + (np.diff(ordered, axis=1) != 0).sum(axis=1) >= LEAST - 1])
    return np.concatenate(kept)[:draws]
