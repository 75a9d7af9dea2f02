"""Training conditions: a signal, the route by which its gradient enters, positions, a schedule and a weight.

The loss is cross-entropy at supervised positions 1..K plus weight x route(signal) at the chosen positions. The thirteen
and the further axes are compositions, none a function of its own. Source: the wall study, "How the tax gets paid", which names four of
them (c0, c1, p1, p5); c2 to c5, p2, p3 and s1 are the wall-erosion experiment's; p4 and p6 are ours.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from wallprobe.errors import ConfigError, UnknownNameError, look_up
from wallprobe.plugins import collect, first_of_name, one_or_several

AXES = ("grid", "wrong-entropy", "mask", "schedule", "introspection", "endogenous")
MECHANISMS = ("temperature", "gate")


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
        signal: a name in `training.wall.signals.signals()`; "none" leaves only the supervised cross-entropy.
        route: a name in `training.wall.signals.routes()`.
        positions: "unsupervised" (K+1..), "alternate" (K+1, K+3, ...), "all" (1..), or explicit positions.
        schedule: when the signal is on.
        weight: its weight in the loss; None takes the recipe's.
        teacher: the frozen teacher: a condition (its run of the same seed), a run name with a seed, or "untrained".
        summary: one line for tables.
        constant: the target of signal "constant_entropy", in bits.
        endogenous: mechanisms of `MECHANISMS` added to the network itself.
        axes: the families (`AXES`) it belongs to, as member or as their reference; none for others' conditions.
    """

    name: str
    signal: str
    route: str
    positions: str | tuple[int, ...] = "unsupervised"
    schedule: Schedule = Schedule()
    weight: float | None = None
    teacher: str | None = None
    summary: str = ""
    constant: float | None = None
    endogenous: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        unknown = [name for name in self.endogenous if name not in MECHANISMS]
        if unknown:
            raise ConfigError(f"condition {self.name}: no mechanism named {', '.join(unknown)}; there are: {', '.join(MECHANISMS)}")
        if (self.signal == "constant_entropy") is (self.constant is None):
            raise ConfigError(f"condition {self.name}: signal 'constant_entropy' and the field `constant` (bits) go together")

    @property
    def needs_full_length(self) -> bool:
        """False if the loss never looks past index K-1, so that training may stop there."""
        return self.signal != "none"

    def is_on(self, step: int, steps: int) -> bool:
        """Does the signal act at `step` of `steps`? While it does not, training may stop at index K-1 as without a signal."""
        return self.needs_full_length and self.schedule.factor(step, steps) != 0.0

    def position_mask(self, length: int, horizon: int) -> list[bool]:
        """Which of positions 1..length-1 the signal reaches.

        Raises:
            ConfigError: for a position outside 1..length-1 or an unknown word.
        """
        if self.positions == "all":
            return [True] * (length - 1)
        if self.positions == "unsupervised":
            return [position > horizon for position in range(1, length)]
        if self.positions == "alternate":
            return [position > horizon and (position - horizon) % 2 == 1 for position in range(1, length)]
        if isinstance(self.positions, str):
            raise ConfigError(f"positions '{self.positions}' is none of 'all', 'unsupervised', 'alternate' and no tuple of positions")
        outside = [position for position in self.positions if not 1 <= position < length]
        if outside:
            raise ConfigError(f"positions {outside} lie outside 1..{length - 1}")
        return [position in self.positions for position in range(1, length)]

    def config(self) -> dict[str, Any]:
        """Plain JSON fields. `axes` says where it is listed, not how it trains, and is left out; so is a later field at its default,
        so that a run made before that field existed still agrees."""
        config = asdict(self)
        del config["axes"]
        later = {field.name: field.default for field in fields(self) if field.name in ("constant", "endogenous")}
        return {name: value for name, value in config.items() if name not in later or value != later[name]}


def built_in() -> Mapping[str, Condition]:
    """The named conditions, by name: the thirteen of the wall study and its relatives, then the further axes."""
    return {condition.name: condition for condition in (*_grid(), *_further())}


def _grid() -> tuple[Condition, ...]:
    """The thirteen. Those that an axis is read against carry that axis too."""
    grid, wrong, mask, schedule = ("grid",), "wrong-entropy", "mask", "schedule"
    return (
        Condition(
            "c0", "none", "none", summary="no signal: cross-entropy at positions 1..K only", axes=(*grid, "introspection", "endogenous")
        ),
        Condition("c1", "entropy", "softmax_entropy", summary="Bayesian entropy, through the softmax", axes=(*grid, wrong, mask, schedule)),
        Condition(
            "c2",
            "uniform_entropy",
            "softmax_entropy",
            summary="control: entropy of the uniform distribution, through the softmax",
            axes=(*grid, wrong),
        ),
        Condition("c3", "token", "softmax_ce", weight=1.0, summary="the tokens themselves: cross-entropy at every position", axes=grid),
        Condition(
            "c4", "teacher", "softmax_kl", teacher="c3", summary="a trained c3 teacher's predictions (KL at temperature 2)", axes=grid
        ),
        Condition("c5", "teacher", "softmax_kl", teacher="untrained", summary="control: an untrained teacher's predictions", axes=grid),
        Condition("p1", "program_weight", "scalar_mse", summary="class posterior, through a scalar head", axes=grid),
        Condition("p2", "program_label", "scalar_bce", positions="all", summary="hard class label, through a scalar head", axes=grid),
        Condition("p3", "random_label", "scalar_bce", positions="all", summary="control: random label, through a scalar head", axes=grid),
        Condition("p4", "entropy", "scalar_mse", summary="Bayesian entropy, through a scalar head", axes=grid),
        Condition("p5", "program_weight", "softmax_peak", summary="class posterior, through the softmax's peak", axes=grid),
        Condition(
            "p6",
            "shuffled_weight",
            "softmax_peak",
            summary="control: class posterior of another sequence, through the softmax's peak",
            axes=grid,
        ),
        Condition("s1", "smoothness", "residual_jump", summary="no information: smooth final residual", axes=grid),
    )


def _wrong_entropies() -> tuple[Condition, ...]:
    constants = (("0p5", 0.5), ("1", 1.0), ("2p08", 2.08), ("3", 3.0))
    return (
        *(
            Condition(
                f"entropy-{label}",
                "constant_entropy",
                "softmax_entropy",
                constant=bits,
                summary=f"wrong target: an entropy of {bits:g} bits everywhere, through the softmax",
                axes=("wrong-entropy",),
            )
            for label, bits in constants
        ),
        Condition(
            "entropy-random",
            "random_entropy",
            "softmax_entropy",
            summary="wrong target: an entropy drawn afresh for each step, sequence and position, through the softmax",
            axes=("wrong-entropy",),
        ),
    )


def _further() -> tuple[Condition, ...]:
    """The axes beyond the grid: c1 with one thing changed, or c0 with one thing added."""
    entropy = ("entropy", "softmax_entropy")
    masks = (("6", (6,)), ("10", (10,)), ("14", (14,)))
    schedules = (
        ("late-1-3", Schedule(start=1 / 3), "Bayesian entropy from one third of the run on"),
        ("late-2-3", Schedule(start=2 / 3), "Bayesian entropy from two thirds of the run on"),
        ("removed-1-3", Schedule(stop=1 / 3), "Bayesian entropy until one third of the run, then none"),
        ("pulse", Schedule(1 / 3, 2 / 3), "Bayesian entropy in the middle third of the run"),
        ("pulse-short", Schedule(1 / 3, 2 / 5), "Bayesian entropy from 1/3 to 2/5 of the run, the published pulse"),
    )
    endogenous = (
        ("temperature", ("temperature",), "no signal; a head that reads the residual sets the softmax's temperature"),
        ("forget-gate", ("gate",), "no signal; learned gates on what each head sees of positions"),
    )
    return (
        *_wrong_entropies(),
        *(
            Condition(f"mask-{label}", *entropy, positions=at, summary=f"Bayesian entropy at position {label} only", axes=("mask",))
            for label, at in masks
        ),
        Condition(
            "mask-alternate",
            *entropy,
            positions="alternate",
            summary="Bayesian entropy at every other position: K+1, K+3, ...",
            axes=("mask",),
        ),
        *(Condition(name, *entropy, schedule=when, summary=summary, axes=("schedule",)) for name, when, summary in schedules),
        Condition(
            "self-entropy",
            "self_entropy",
            "scalar_mse",
            summary="the network's own entropy, through a scalar head",
            axes=("introspection",),
        ),
        Condition(
            "self-perturbation",
            "self_perturbation",
            "scalar_mse",
            summary="how much its own entropy changes when its residual stream is nudged, through a scalar head",
            axes=("introspection",),
        ),
        *(Condition(name, "none", "none", endogenous=parts, summary=summary, axes=("endogenous",)) for name, parts, summary in endogenous),
    )


def conditions() -> Mapping[str, Condition]:
    """Every registered condition by name; the built-in ones come through the same entry-point group and win a clash."""
    return first_of_name(collect("wallprobe.conditions", one_or_several(Condition)))


def get_condition(name: str) -> Condition:
    """The condition of that name.

    Raises:
        UnknownNameError: if there is none; the message lists those there are.
    """
    return look_up("condition", name, conditions())


def matrix(name: str) -> tuple[Condition, ...]:
    """A named set of conditions, teachers before their students.

    Args:
        name: "wall" (the thirteen of the grid), "axes" (every further axis with the conditions it is read against), "all" (every
            registered condition, plugins' too), or one of `AXES`.

    Raises:
        UnknownNameError: for another name.
    """
    known = conditions().values()
    if name == "all":
        return teachers_first(known)
    if name == "axes":
        return teachers_first(condition for condition in known if set(condition.axes) - {"grid"})
    axis = "grid" if name == "wall" else name
    if axis not in AXES:
        raise UnknownNameError(f"no matrix named '{name}'; there are: wall, axes, all, {', '.join(AXES[1:])}")
    return teachers_first(condition for condition in known if axis in condition.axes)


def teachers_first(chosen: Iterable[Condition]) -> tuple[Condition, ...]:
    """The same conditions, each after the one whose run is its teacher; otherwise in the order given."""
    waiting, ordered = {condition.name: condition for condition in chosen}, dict[str, Condition]()

    def place(condition: Condition) -> None:
        if waiting.pop(condition.name, None) is None:
            return
        teacher = (condition.teacher or "").partition("@")[0]
        if teacher in waiting:
            place(waiting[teacher])
        ordered[condition.name] = condition

    for condition in tuple(waiting.values()):
        place(condition)
    return tuple(ordered.values())
