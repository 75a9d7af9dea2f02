"""From an audit's series to what fires, when, with which evidence, and a verdict (the audit study). Nothing here trains or measures.

A diagnostic is looked at after whole epochs only, as the study does; moments between them are for the figures.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from wallprobe.findings import beyond
from wallprobe.training.audit.thresholds import Thresholds

Row = npt.NDArray[np.float64]
VERDICTS = ("SOUND", "NO_DEEP_CREDIT", "INFLATED", "DEGENERATE")  # from good to bad
MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        "a": "inflation: |h_L| over its initial value",
        "a_prime": "growth within one block",
        "b": "reference floor: mean |g_L|, loss over n_ref",
        "b_prime": "clamp bias: samples below eps, distance of the cosines, or a sign flip",
        "d": "functional nudge: against the credit, the loss falls no more than along random directions",
        "e": "null: exact cosine within that of fresh random feedback",
        "f": "frozen blocks do as well",
    }
)


@dataclass(frozen=True)
class Series:
    """What was seen, moment by moment.

    Attributes:
        epochs: of each moment, a fraction within an epoch.
        layered: quantity -> [moment, layer].
        deep_null: [moment, 2], the null's band for the mean cosine over layers 1..L.
        accuracy: [moment], of the test part.
        eps: clamp of the usual cosine.
    """

    epochs: Row
    layered: Mapping[str, Row]
    deep_null: Row
    accuracy: Row
    eps: float

    @property
    def whole(self) -> npt.NDArray[np.bool_]:
        """Which moments end an epoch (the initialisation among them)."""
        ends: npt.NDArray[np.bool_] = self.epochs == np.floor(self.epochs)
        return ends

    def top(self, name: str) -> Row:
        """A quantity at h_L."""
        return self.layered[name][:, -1]


@dataclass(frozen=True)
class Baseline:
    """Accuracy less that of frozen blocks, same seed and epochs, with its 95 % interval."""

    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Diagnosis:
    """What an audit concludes.

    Attributes:
        verdict: the worst of `VERDICTS` that holds.
        first: diagnostic -> first epoch at which it fires, None if it never does.
        evidence: diagnostic -> the figures against the threshold, one line.
        cause: of a reference below the floor: (c)'s label; empty where nothing is below.
        slope: of log |g_L| on log |h_L| over all moments; NaN where |h_L| hardly moves.
        reason: why the verdict, one line.
    """

    verdict: str
    first: Mapping[str, int | None]
    evidence: Mapping[str, str]
    cause: str
    slope: float
    reason: str = field(default="")


def slope(series: Series) -> float:
    """Least-squares slope of log |g_L| on log |h_L|; NaN where |h_L| spans less than a factor of 3."""
    h, g = series.top("h_norm"), series.top("g_norm")
    sound = (h > 0) & (g > 0) & np.isfinite(h) & np.isfinite(g)
    if sound.sum() < 3 or h[sound].max() < 3 * h[sound].min():
        return math.nan
    return float(np.polyfit(np.log(h[sound]), np.log(g[sound]), 1)[0])


def fires(series: Series, limits: Thresholds) -> dict[str, npt.NDArray[np.bool_]]:
    """Diagnostic -> at which moments it fires; those that were not measured then do not."""
    at = {name: values[:, 1:] for name, values in series.layered.items()}
    h, g = series.top("h_norm"), series.top("g_norm")
    gamma = at["gamma_exact"].mean(1)
    nudged = [_as_random(at[name].mean(1), at[f"{name}_low"].mean(1)) for name in ("nudge_1e-3", "nudge_1e-2")]
    return {
        "a": h / h[0] > limits.inflation,
        "a_prime": at[limits.growth].max(1) > limits.limit,
        "b": g < limits.floor * series.eps,
        "b_prime": ((at["below_eps"] > limits.below_share) | (at["clamp_bias"] > limits.bias) | (at["sign_flip"] > 0)).any(1),
        "d": nudged[0] & nudged[1],
        "e": (gamma >= series.deep_null[:, 0]) & (gamma <= series.deep_null[:, 1]),
    }


def _as_random(credit: Row, random: Row) -> npt.NDArray[np.bool_]:
    """At which moments the loss falls no more against the credit than along the best random direction, rounding aside; not where unseen."""
    pairs = zip(credit.tolist(), random.tolist(), strict=True)
    return np.asarray([not (math.isnan(own) or math.isnan(other) or beyond(other, own)) for own, other in pairs])


def first_epochs(series: Series, fired: Mapping[str, npt.NDArray[np.bool_]]) -> dict[str, int | None]:
    """First whole epoch at which each fires."""
    found: dict[str, int | None] = {}
    for name, flags in fired.items():
        places = np.flatnonzero(flags & series.whole)
        found[name] = int(series.epochs[places[0]]) if len(places) else None
    return found


def should_stop(series: Series, limits: Thresholds) -> bool:
    """Whether (b) or (a') has held for `patience` further whole epochs."""
    held = _held(series, limits)
    return len(held) > limits.patience and bool(held[-1 - limits.patience :].all())


def _held(series: Series, limits: Thresholds) -> npt.NDArray[np.bool_]:
    """After which whole epochs (b) or (a') fires."""
    fired = fires(series, limits)
    whole: npt.NDArray[np.bool_] = (fired["b"] | fired["a_prime"])[series.whole]
    return whole


def early_stop(series: Series, limits: Thresholds) -> tuple[int, float] | None:
    """The whole epoch after which an early stop ends the training, or would have ended it, with the accuracy there; None if nowhere.

    A training is decided by its seed, so what a full one shows at that epoch is what a stopped one ends with.
    """
    held = _held(series, limits)
    for place in range(limits.patience, len(held)):
        if held[place - limits.patience : place + 1].all():
            return int(series.epochs[series.whole][place]), float(series.accuracy[series.whole][place])
    return None


def diagnose(series: Series, limits: Thresholds, baseline: Baseline | None = None) -> Diagnosis:
    """Judge a series.

    Args:
        series: with its initialisation as first moment.
        limits: thresholds.
        baseline: the frozen blocks' comparison; without it (f) is not looked at.
    """
    fired = fires(series, limits)
    first = first_epochs(series, fired)
    last = _last_full(series)
    no_direction = last is not None and bool(fired["d"][last] and fired["e"][last])
    beaten = baseline is not None and baseline.difference <= 0
    first["f"] = int(series.epochs[series.whole][-1]) if beaten else None
    if first["b"] is not None or first["b_prime"] is not None:
        verdict = "DEGENERATE"
        reason = f"{_names(first, 'b', 'b_prime')} fired: the clamped cosine is no measurement from there on"
    elif first["a"] is not None or first["a_prime"] is not None:
        verdict, reason = "INFLATED", f"{_names(first, 'a', 'a_prime')} fired, the reference still stands above the clamp"
    elif no_direction or beaten:
        why = ["against the credit the loss falls no more than at random, and the cosine is a chance one"] if no_direction else []
        why += ["frozen blocks do as well"] if beaten else []
        verdict, reason = "NO_DEEP_CREDIT", "; ".join(why)
    else:
        verdict, reason = "SOUND", "nothing fired that would discredit the figure"
    steep = slope(series)
    return Diagnosis(verdict, first, _evidence(series, limits, baseline, last), _cause(series, limits, first, steep), steep, reason)


def _names(first: Mapping[str, int | None], *names: str) -> str:
    return " and ".join(f"({name.replace('_prime', chr(0x2032))}) at epoch {first[name]}" for name in names if first[name] is not None)


def _last_full(series: Series) -> int | None:
    """The last moment with nulls and nudges."""
    places = np.flatnonzero(np.isfinite(series.deep_null[:, 0]))
    return int(places[-1]) if len(places) else None


def _cause(series: Series, limits: Thresholds, first: Mapping[str, int | None], steep: float) -> str:
    """(c): did the reference shrink because the state grew?"""
    floored, clamped = first["b"], first["b_prime"]
    if floored is None:
        return "some samples are below the clamp while the mean is not" if clamped is not None else ""
    place = int(np.flatnonzero(series.epochs == floored)[0])
    elastic = series.top("elasticity")
    ratio = elastic[place] / elastic[0]
    kept = 1 / limits.elasticity <= ratio <= limits.elasticity
    return "unit collapse: LN Jacobian" if kept and limits.slope_low <= steep <= limits.slope_high else "true vanishing"


def _evidence(series: Series, limits: Thresholds, baseline: Baseline | None, last: int | None) -> dict[str, str]:
    """The most telling figure of each diagnostic beside its threshold."""
    h, g, elastic = (series.top(name) for name in ("h_norm", "g_norm", "elasticity"))
    at = {name: values[:, 1:] for name, values in series.layered.items()}
    flips = int(at["sign_flip"].any(1).sum())
    said = {
        "a": f"largest |h_L| / |h_L at 0| {np.nanmax(h / h[0]):.3g}; fires above {limits.inflation:g}",
        "a_prime": f"largest {limits.growth} {_peak(at[limits.growth]):.3g}; fires above {limits.limit:g}",
        "b": f"least mean |g_L| {np.nanmin(g):.3g}; fires below {limits.floor * series.eps:.3g} ({limits.floor:g} eps)",
        "b_prime": f"at most {_peak(at['below_eps']):.1%} of samples below eps {series.eps:g}, "
        f"cosines apart by {_peak(at['clamp_bias']):.3g}, "
        f"signs opposite at {flips} moments; fires above {limits.below_share:.0%}, {limits.bias:g} or 0",
        "c": f"|h_L| |g_L| {elastic[0]:.3g} at first, {elastic[-1]:.3g} at last (within x{limits.elasticity:g}), slope of log |g_L| on "
        f"log |h_L| {slope(series):.2f} ({limits.slope_low:g} to {limits.slope_high:g})",
    }
    if last is not None:
        moves = [
            f"{at[name].mean(1)[last]:.3g} (random at least {at[f'{name}_low'].mean(1)[last]:.3g})" for name in ("nudge_1e-3", "nudge_1e-2")
        ]
        low, high = series.deep_null[last]
        said["d"] = f"loss changes by {moves[0]} and {moves[1]} nats, mean over layers 1..L; fires if neither is below random"
        said["e"] = f"exact cosine {at['gamma_exact'].mean(1)[last]:.4f}, mean over layers 1..L; fires within {low:.4f} to {high:.4f}"
    if baseline is not None:
        bounds = f"95 % interval {baseline.low:+.3f} to {baseline.high:+.3f}"
        said["f"] = f"accuracy less frozen blocks' {baseline.difference:+.3f} ({bounds}); fires at 0 or below"
    return said


def _peak(values: Row) -> float:
    return float(np.nanmax(values)) if np.isfinite(values).any() else math.nan
