"""When a claim counts as reproduced: by kind of quantity, never by claim; written before the ledger was first filled in."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

EPOCHS, MAGNITUDE = 1.0, 10.0**0.5
RELATIVE, RESOLUTION, FRACTION, FACTOR, REFERENCE = 0.25, 0.02, 0.05, 1.25**2, 0.13
WALL, LEARNT, CROSSING, RECOVERED = 3.0, 0.3, 0.01, 0.9

# kind of quantity -> its rule and why; printed with the ledger
RULES: Mapping[str, str] = MappingProxyType(
    {
        "error": "a figure in bits or nats: within a quarter either way, and never less than 0.02, the error of the study's own best "
        "model where it was trained; below it the reference resolves nothing",
        "fraction": "an accuracy, probability or cosine: within a quarter of the figure, and never more than 0.05, for a fraction near "
        "one half is known better than to a quarter",
        "ratio": "a ratio of two errors: within a factor of 1.25 squared, for each of the two may be a quarter off",
        "reference": "a mean of the exact entropy, which no training touches: within 0.13 bits. H(P) of a sequence is near 0 or near "
        "log2 17, half of the time each, so that a mean over 2,000 has a standard error of 0.046, and two differ by 1.96 x 1.41 x that",
        "wall": "the wall is kept where the ratio exceeds 3 and gone below it, as wallprobe eval words it; gone counts only in a run that "
        "has learnt the task (supervised error at most 0.3 bits), for an untrained network has no wall either",
        "order": "which of two is the larger, by the sign of their difference; two fractions are apart beyond 0.05 and level within it, "
        "the band of the fractions above",
        "crossing": "an answer crosses in an interchange if it beats its control by more than 0.01, as wallprobe interchange words it",
        "seeds": "a share of seeds: of those that were measured, how many do what the statement says; all of them unless it says how many",
        "norm": "a norm, or how much one has grown: within a factor of the square root of 10 either way, its order of magnitude, for the "
        "data and the length of the training here are not the study's",
        "epoch": "the epoch at which something first happens: within one epoch of the published one",
        "recovery": "a temperature recovers Bayes if it takes away 0.9 of a uniform guess's KL, as wallprobe temperature words it",
        "printed figure": "derived from published measurements: recomputed from them, it must round to what is printed, half a unit "
        "of the last digit either way",
        "rough figure": "given as about (~): within a tenth",
        "literal inequality": "as the text words it: every layer, every model, below 1, p below 0.05",
    }
)


@dataclass(frozen=True)
class Interval:
    """Accepted values from `low` to `high`; an open one leaves its ends out."""

    low: float = -math.inf
    high: float = math.inf
    open: bool = False

    def __contains__(self, value: float) -> bool:
        return self.low < value < self.high if self.open else self.low <= value <= self.high


def above(bound: float) -> Interval:
    """Strictly more than a bound."""
    return Interval(low=bound, open=True)


def below(bound: float) -> Interval:
    """Strictly less than a bound."""
    return Interval(high=bound, open=True)


def error(low: float, high: float | None = None) -> Interval:
    """Band of an error in bits or nats, given as a figure or a range."""
    top = low if high is None else high
    return Interval(max(low - max(RELATIVE * low, RESOLUTION), 0.0), top + max(RELATIVE * top, RESOLUTION))


def fraction(low: float, high: float | None = None) -> Interval:
    """Band of an accuracy, probability or cosine, given as a figure or a range."""
    top = low if high is None else high
    return Interval(low - min(RELATIVE * low, FRACTION), top + min(RELATIVE * top, FRACTION))


def ratio(low: float, high: float | None = None) -> Interval:
    """Band of a ratio of two errors, given as a figure or a range."""
    return Interval(low / FACTOR, (low if high is None else high) * FACTOR)


def printed(value: float, digit: float) -> Interval:
    """What rounds to a printed value; `digit` is one unit of its last digit."""
    slack = 1e-9 * digit  # a half in binary
    return Interval(value - digit / 2 - slack, value + digit / 2 + slack)


def about(value: float) -> Interval:
    """Within a tenth."""
    return Interval(0.9 * value, 1.1 * value)


def reference(low: float, high: float | None = None) -> Interval:
    """Band of a mean of the exact entropy, bits."""
    return Interval(low - REFERENCE, (low if high is None else high) + REFERENCE)


def norm(low: float, high: float | None = None) -> Interval:
    """Band of a norm, or of its growth, given as a figure or a range."""
    return Interval(low / MAGNITUDE, (low if high is None else high) * MAGNITUDE)


def epoch(low: float, high: float | None = None) -> Interval:
    """Band of a first epoch, given as a figure or a range."""
    return Interval(low - EPOCHS, (low if high is None else high) + EPOCHS)
