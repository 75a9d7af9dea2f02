"""What an adapter of the user's returns: a network, its credits and the samples to look at."""

from dataclasses import dataclass

from torch import Tensor

from wallprobe.training.estimators.nets import Net
from wallprobe.training.estimators.protocol import CreditEstimator


@dataclass(frozen=True)
class Subject:
    """What an adapter returns.

    Attributes:
        net: the model as `nets.Net(embed, blocks, readout, widths, classes)`, made of your own torch modules.
        start: the same at its initialisation: what growth is measured against. None takes the model itself.
        method: a registered method's name, whose credits are audited, or an estimator of your own with a `credits` method.
        x, y: samples to look at, with their labels; held-out ones.
        name: what to call it.
        seed: of feedback, nulls and random directions.
    """

    net: Net
    x: Tensor
    y: Tensor
    method: str | CreditEstimator = "bp"
    start: Net | None = None
    name: str = "model"
    seed: int = 0
