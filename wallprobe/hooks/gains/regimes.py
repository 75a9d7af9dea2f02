"""Shapes of a model's gains over depth: the regime by a stated rule, and where the bottleneck L* lies by each of its readings.

The gains study (6.4.2) names regimes and L* without rules; these are ours. They hold for definition `sublayer` only.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wallprobe.findings import foremost

MIDDLE, EARLY = 0.85, 0.5  # geometric means of the MLP's gain, fitted to the study's eight labels
UNCLASSIFIED, VASE, HOUR_GLASS, FUNNEL = "UNCLASSIFIED", "VASE", "HOUR-GLASS", "FUNNEL"
L_STAR = ("argmin_net", "argmin_attn", "argmin_lens_entropy", "argmin_erank", "trace_peak")


@dataclass(frozen=True)
class Regime:
    """A label and how far each quantity is from its threshold.

    Attributes:
        name: FUNNEL, HOUR-GLASS, VASE or UNCLASSIFIED.
        early, middle, final: geometric mean of the MLP's gain in the first quarter and in the middle half, and the last layer's.
        margins: early - 0.5, middle - 0.85, final - 1.
    """

    name: str
    early: float
    middle: float
    final: float

    @property
    def margins(self) -> Mapping[str, float]:
        """Signed distances to the thresholds."""
        return {"early": self.early - EARLY, "middle": self.middle - MIDDLE, "final": self.final - 1.0}


def regime(early: float, middle: float, final: float) -> Regime:
    """The label: F <= 1 is UNCLASSIFIED, M >= 0.85 VASE, else E >= 0.5 HOUR-GLASS, else FUNNEL; NaN is UNCLASSIFIED."""
    if not final > 1.0 or math.isnan(early) or math.isnan(middle):
        name = UNCLASSIFIED
    elif middle >= MIDDLE:
        name = VASE
    else:
        name = HOUR_GLASS if early >= EARLY else FUNNEL
    return Regime(name, early, middle, final)


def regime_of(mlp_gain: Sequence[float]) -> Regime:
    """The regime of a model's MLP gains by layer; q = max(1, round(L / 4)) layers are early, those up to L - q the middle."""
    count = len(mlp_gain)
    quarter = max(1, round(count / 4))
    return regime(_geomean(mlp_gain[:quarter]), _geomean(mlp_gain[quarter : count - quarter]), mlp_gain[-1])


def _geomean(values: Sequence[float]) -> float:
    if not values or not all(value > 0 for value in values):
        return math.nan
    return math.exp(sum(map(math.log, values)) / len(values))


def argmin(values: Sequence[float]) -> int | None:
    """The first place of the least finite value, rounding aside; None if there is none."""
    return foremost([-value if math.isfinite(value) else math.nan for value in values])


def argmax(values: Sequence[float]) -> int | None:
    """The first place of the greatest finite value, rounding aside; None if there is none."""
    return argmin([-value for value in values])
