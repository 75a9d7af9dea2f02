"""When an audit's diagnostics fire, as one frozen dataclass; its fields say which options of the command line they are.

Nothing here imports numpy or torch: `wallprobe audit --help` shows these defaults.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any

from wallprobe.errors import ConfigError

# statistic of (a') -> its limit
GROWTHS: Mapping[str, float] = MappingProxyType({"block_ratio": 100.0, "weight_delta": 100.0, "weight_product": 1e4})


def _option(default: Any, option: str, help: str, **more: str) -> Any:
    return field(default=default, metadata={"option": option, "help": help, **more})


@dataclass(frozen=True)
class Thresholds:
    """When a diagnostic fires. The audit study has (a), (b) and a growth detector; which statistic and which limits it does not say.

    Attributes:
        inflation: (a), |h_L| over |h_L| at initialisation.
        growth: (a'), one of `GROWTHS`.
        growth_limit: (a'), None for that statistic's own.
        floor: (b), in units of the clamp's eps.
        below_share: (b'), share of samples with a reference shorter than eps.
        bias: (b'), distance of clamped and exact cosine.
        elasticity: (c), factor by which |h_L| |g_L| may differ from its initial value in a unit collapse.
        slope_low, slope_high: (c), of log |g_L| on log |h_L|.
        patience: whole epochs for which (b) or (a') must go on holding before an early stop.
    """

    inflation: float = _option(100.0, "--tau-inflation", "(a) fires where |h_L| has grown by more than this.")
    growth: str = _option("block_ratio", "--growth", "Statistic of (a'): block_ratio, weight_delta or weight_product.")
    growth_limit: float | None = _option(None, "--tau-growth", "(a') fires above this.", show_default="100; weight_product 1e4")
    floor: float = _option(10.0, "--tau-floor", "(b) fires where mean |g_L| is below this many times eps.")
    below_share: float = _option(0.05, "--tau-share", "(b') fires where more than this share of samples is below eps.")
    bias: float = _option(0.01, "--tau-bias", "(b') fires where clamped and exact cosine differ by more.")
    elasticity: float = _option(30.0, "--tau-elasticity", "(c) factor within which |h_L| |g_L| stays in a unit collapse.")
    slope_low: float = -1.15
    slope_high: float = -0.75
    patience: int = 1

    def __post_init__(self) -> None:
        if self.growth not in GROWTHS:
            raise ConfigError(f"growth statistic '{self.growth}' is none of {', '.join(GROWTHS)}")
        for name in ("inflation", "growth_limit", "floor", "below_share", "bias", "elasticity"):
            if (getattr(self, name) or 0.0) < 0:
                raise ConfigError(f"threshold {name} {getattr(self, name):g} is negative; give 0 or more")
        if self.patience < 0:
            raise ConfigError(f"patience {self.patience} is negative; give 0 or more epochs")

    @property
    def limit(self) -> float:
        """Of the growth statistic."""
        return GROWTHS[self.growth] if self.growth_limit is None else self.growth_limit

    def config(self) -> dict[str, Any]:
        """Plain JSON."""
        return asdict(self) | {"growth_limit": self.limit}
