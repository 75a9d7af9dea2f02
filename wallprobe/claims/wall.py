"""The first seed's published figures (three-seed means, seed 000), to print beside what is measured here.

The ledger with its predicates and verdicts is built on these facts.
"""

from collections.abc import Mapping
from types import MappingProxyType

# condition -> summary key of `wallprobe eval` -> the essay's figure
PUBLISHED: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "c0": MappingProxyType({"untrained_mae": 1.54, "kl_nats": 0.80, "class_posterior_mae": 0.64, "wall_ratio": 76.0}),
        "c1": MappingProxyType({"untrained_mae": 0.008, "kl_nats": 3.23, "class_posterior_mae": 0.78, "wall_ratio": 0.22}),
        "p1": MappingProxyType({"untrained_mae": 2.09, "kl_nats": 0.92, "class_posterior_mae": 0.81, "wall_ratio": 64.8}),
        "p5": MappingProxyType({"untrained_mae": 0.025, "kl_nats": 2.69, "class_posterior_mae": 0.74, "wall_ratio": 0.75}),
    }
)


def published(run: str, key: str) -> float | None:
    """The essay's figure for a run's condition, None where it gives none.

    Args:
        run: run name, with or without seed.
        key: summary key of an eval Result.
    """
    return PUBLISHED.get(run.partition("@")[0], {}).get(key)
