"""The signal `peak`: how far the exact answer's likeliest token stands out, from 0 (uniform) to 1 (certain)."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from wallprobe.training.wall.signals import Signal, StepData


def peak(data: StepData) -> Float[Tensor, "batch position"]:
    """(max P - 1/p) / (1 - 1/p), what route `softmax_peak` makes of the network's own output."""
    floor = 1 / data.symbols
    return (data.posterior.predictive.amax(-1) - floor) / (1 - floor)


def signals() -> Mapping[str, Signal]:
    """By name."""
    return {"peak": peak}
