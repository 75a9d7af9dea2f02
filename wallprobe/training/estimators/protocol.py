"""The estimator protocol: `estimator(model, batch) -> GradResult(grads, loss, aux)`, one for every rule that says how weights move.

Entry points of group `wallprobe.estimators` are functions that return a mapping name -> maker; a maker is called
`maker(model, seed, **options)` and returns an Estimator.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from wallprobe.errors import ConfigError, look_up
from wallprobe.plugins import collect


@dataclass(frozen=True)
class Batch:
    """Inputs and what is wanted of them.

    Attributes:
        x: inputs, samples first.
        y: labels, samples first.
        mask: true where a label counts, in the shape of `y`; None where all do.
    """

    x: Tensor
    y: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class GradResult:
    """What an estimator says.

    Attributes:
        grads: parameter name -> what an optimiser takes for its gradient (of the batch's mean loss); a parameter that is left out is
            not trained.
        loss: mean loss of the batch in nats, detached.
        aux: figures about the estimate itself.
    """

    grads: dict[str, Tensor]
    loss: Tensor
    aux: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Estimator(Protocol):
    """A rule that turns a batch into gradients."""

    def __call__(self, model: Any, batch: Batch) -> GradResult:
        """Estimate the gradient of the mean loss by every parameter that is trained."""


@runtime_checkable
class CreditEstimator(Estimator, Protocol):
    """An estimator that tells what it uses in the place of the loss's derivative by each state: what an audit looks at."""

    def credits(self, model: Any, batch: Batch) -> list[Tensor]:
        """a_0..a_L, each in its state's shape, of the summed loss (per sample, not divided by the batch)."""


@dataclass(frozen=True)
class Seen:
    """What an audit knows of a batch before it asks for credits.

    Attributes:
        states: h_0..h_L, detached.
        grads: derivatives of the summed loss by them.
        logits: detached.
    """

    states: list[Tensor]
    grads: list[Tensor]
    logits: Tensor


@runtime_checkable
class QuickCredits(Protocol):
    """An estimator whose credits follow from what an audit has at hand, without another pass through the model."""

    def credits_from(self, model: Any, batch: Batch, seen: Seen) -> list[Tensor]:
        """The same as `credits`."""


Maker = Callable[..., Estimator]


def makers() -> Mapping[str, Maker]:
    """Every registered estimator's maker by name; the built-in ones win a clash."""
    known: dict[str, Maker] = {}
    for name, maker in collect("wallprobe.estimators", lambda made: made().items()):
        known.setdefault(name, maker)
    return known


def make_estimator(name: str, model: nn.Module, seed: int, **options: Any) -> Estimator:
    """The estimator of that name for a model.

    Args:
        name: as registered.
        model: whose gradients it will estimate: random feedback is drawn in its shapes.
        seed: of whatever it draws once and for all.
        options: of its maker.

    Raises:
        UnknownNameError: if there is none; the message lists those there are.
        ConfigError: for an option it does not have.
    """
    check_options(name, options)
    return makers()[name](model, seed, **options)


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a training method does not have, before anything is made for it.

    Raises:
        UnknownNameError: if there is no such method; the message lists those there are.
        ConfigError: naming the options it has.
    """
    signature = inspect.signature(look_up("training method", name, makers()))
    try:
        signature.bind(None, 0, **options)
    except TypeError as error:
        known = ", ".join(list(signature.parameters)[2:]) or "none"
        raise ConfigError(
            f"training method {name} does not take {', '.join(options) or 'no options'} ({error}); it has: {known}"
        ) from error
