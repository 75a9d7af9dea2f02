"""Training conditions: a signal, the route by which its gradient enters, positions, a schedule and a weight.

The loss is cross-entropy at supervised positions 1..K plus weight x route(signal) at the chosen positions. The thirteen of
spec wall.md section 4 are compositions; nothing here is a function of its own per condition.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from wallprobe.errors import ConfigError, UnknownNameError
from wallprobe.plugins import load_group


@dataclass(frozen=True)
class Schedule:
    """When the signal is on, as fractions of the run: from `start` (inclusive) to `stop` (exclusive)."""

    start: float = 0.0
    stop: float = 1.0

    def factor(self, step: int, steps: int) -> float:
        """1.0 while the signal is on at `step` of `steps`, else 0.0."""
        return 1.0 if self.start * steps <= step < self.stop * steps else 0.0


@dataclass(frozen=True)
class Condition:
    """One cell of the grid signal x route x positions x schedule x weight.

    Attributes:
        name: as typed on the command line.
        signal: a name in `training.signals.SIGNALS`; "none" leaves only the supervised cross-entropy.
        route: a name in `training.signals.ROUTES`.
        positions: "unsupervised" (K+1..), "all" (1..), or explicit positions.
        schedule: when the signal is on.
        weight: its weight in the loss; None takes the recipe's.
        teacher: condition whose run of the same seed is the frozen teacher, or "untrained".
        summary: one line for tables.
    """

    name: str
    signal: str
    route: str
    positions: str | tuple[int, ...] = "unsupervised"
    schedule: Schedule = Schedule()
    weight: float | None = None
    teacher: str | None = None
    summary: str = ""

    @property
    def needs_full_length(self) -> bool:
        """False if the loss never looks past index K-1, so that training may stop there."""
        return self.signal != "none"

    def position_mask(self, length: int, horizon: int) -> list[bool]:
        """Which of positions 1..length-1 the signal reaches.

        Raises:
            ConfigError: for a position outside 1..length-1 or an unknown word.
        """
        if self.positions == "all":
            return [True] * (length - 1)
        if self.positions == "unsupervised":
            return [position > horizon for position in range(1, length)]
        if isinstance(self.positions, str):
            raise ConfigError(f"positions '{self.positions}' is neither 'all', 'unsupervised' nor a tuple of positions")
        outside = [position for position in self.positions if not 1 <= position < length]
        if outside:
            raise ConfigError(f"positions {outside} lie outside 1..{length - 1}")
        return [position in self.positions for position in range(1, length)]

    def config(self) -> dict[str, Any]:
        """Plain JSON fields."""
        return asdict(self)


def built_in() -> Mapping[str, Condition]:
    """The thirteen named conditions of the published study, by name."""
    table = (
        Condition("c0", "none", "none", summary="no signal: cross-entropy at positions 1..K only"),
        Condition("c1", "entropy", "softmax_entropy", summary="Bayesian entropy, through the softmax"),
        Condition("c2", "uniform_entropy", "softmax_entropy", summary="control: entropy of the uniform distribution, through the softmax"),
        Condition("c3", "token", "softmax_ce", weight=1.0, summary="the tokens themselves: cross-entropy at every position"),
        Condition("c4", "teacher", "softmax_kl", teacher="c3", summary="a trained c3 teacher's predictions (KL at temperature 2)"),
        Condition("c5", "teacher", "softmax_kl", teacher="untrained", summary="control: an untrained teacher's predictions"),
        Condition("p1", "program_weight", "scalar_mse", summary="class posterior, through a scalar head"),
        Condition("p2", "program_label", "scalar_bce", positions="all", summary="hard class label, through a scalar head"),
        Condition("p3", "random_label", "scalar_bce", positions="all", summary="control: random label, through a scalar head"),
        Condition("p4", "entropy", "scalar_mse", summary="Bayesian entropy, through a scalar head"),
        Condition("p5", "program_weight", "softmax_peak", summary="class posterior, through the softmax's peak"),
        Condition(
            "p6", "shuffled_weight", "softmax_peak", summary="control: class posterior of another sequence, through the softmax's peak"
        ),
        Condition("s1", "smoothness", "residual_jump", summary="no information: smooth final residual"),
    )
    return {condition.name: condition for condition in table}


def conditions() -> Mapping[str, Condition]:
    """Every registered condition by name; the built-in ones come through the same entry-point group and win a clash."""
    groups = load_group("wallprobe.conditions")
    known: dict[str, Condition] = {}
    for name in sorted(groups, key=lambda name: name != "builtin"):
        value = groups[name]
        for condition in (value,) if isinstance(value, Condition) else value().values():
            known.setdefault(condition.name, condition)
    return known


def get_condition(name: str) -> Condition:
    """The condition of that name.

    Raises:
        UnknownNameError: if there is none; the message lists those there are.
    """
    known = conditions()
    if name not in known:
        raise UnknownNameError(f"no condition named '{name}'; there are: {', '.join(known)}")
    return known[name]
