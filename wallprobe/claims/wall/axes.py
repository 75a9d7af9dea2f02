"""Claims on the further axes: wrong targets, position masks, schedules, introspection, endogenous signals.

The wall study, "The shield does not propagate" and "Connection to the Causal Hierarchy Theorem"; the roof experiment, 3 to 5.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from wallprobe.claims.ledger import rules
from wallprobe.claims.ledger.claim import Claim
from wallprobe.claims.ledger.quantities import Quantity, cell, mean
from wallprobe.claims.ledger.wording import figure, gone, kept, more, pattern, wall_ratio


@dataclass(frozen=True)
class Mask:
    """A position mask: which positions the signal reaches, and the next ones that it does not."""

    condition: str
    words: str
    reached: tuple[int, ...]
    beside: tuple[int, ...]


# condition -> (target in words, the published wall ratio)
WRONG = {
    "entropy-0p5": ("a constant 0.5 bits", 63.5),
    "entropy-1": ("a constant 1 bit", 42.1),
    "entropy-2p08": ("a constant 2.08 bits", 32.9),
    "entropy-3": ("a constant 3 bits", 48.8),
    "entropy-random": ("a random number each step", 63.6),
}
MASKS = (
    Mask("mask-6", "position 6 only", (6,), (7,)),
    Mask("mask-10", "position 10 only", (10,), (11,)),
    Mask("mask-14", "position 14 only", (14,), (15,)),
    Mask("mask-alternate", "every other position", (6, 8, 10, 12, 14), (7, 9, 11, 13, 15)),
)
LATE, REMOVED = ("late-1-3", "late-2-3"), "removed-1-3"
INTROSPECTION = {
    "self-entropy": ("its own entropy fed back", 106.0),
    "self-perturbation": ("its entropy's change under a small push", 69.0),
}
ENDOGENOUS = {"temperature": "a learned temperature", "forget-gate": "a positional forget gate"}

AXES = (*WRONG, *(mask.condition for mask in MASKS), *LATE, REMOVED, *INTROSPECTION, *ENDOGENOUS)


def claims() -> Iterator[Claim]:
    """Every claim of this file, in reading order."""
    yield from _wrong_targets()
    yield from _masks()
    yield from _schedules()
    yield from _introspection()


def _wrong_targets() -> Iterator[Claim]:
    topic = "Wrong entropy targets"
    for name, (words, value) in WRONG.items():
        yield kept(f"{name}.wall", topic, f"Driven to {words}, entropy keeps the wall.", name, published=value)
        yield figure(
            f"{name}.wall_ratio",
            topic,
            f"Wall ratio with a target of {words}.",
            value,
            wall_ratio(name),
            "ratio",
            "ratio",
            pattern=f"{name}.wall",
        )
    yield figure(
        "c1.wall_ratio_original",
        topic,
        "Wall ratio with the correct target, in the study of wrong ones.",
        0.16,
        wall_ratio("c1"),
        "ratio",
        "ratio",
        pattern="c1.gone",
    )


def _error_at(condition: str, positions: tuple[int, ...]) -> Quantity:
    cells = [cell(condition, "eval", "mae", position=position) for position in positions]
    where = f"position {positions[0]}" if len(positions) == 1 else f"positions {', '.join(map(str, positions))}"
    return cells[0] if len(cells) == 1 else mean(*cells, how=f"mean mae of {condition} over {where} (eval)")


def _masks() -> Iterator[Claim]:
    topic = "The shield does not propagate"
    for mask in MASKS:
        reached, beside = _error_at(mask.condition, mask.reached), _error_at(mask.condition, mask.beside)
        name = mask.condition
        at = "there" if len(mask.reached) > 1 else f"at position {mask.reached[0]}"
        next_to = "between" if len(mask.reached) > 1 else f"at position {mask.beside[0]}"
        yield pattern(
            f"{name}.local",
            topic,
            f"The entropy signal at {mask.words} leaves its neighbour behind the wall.",
            beside / reached,
            "wall",
            rules.above(rules.WALL),
            "ratio",
        )
        yield figure(
            f"{name}.reached",
            topic,
            f"Signal at {mask.words}: entropy error {at}.",
            (0.003, 0.007),
            reached,
            "error",
            "bits",
            pattern=f"{name}.local",
        )
        yield figure(
            f"{name}.beside",
            topic,
            f"Signal at {mask.words}: entropy error {next_to}.",
            (1.3, 1.9),
            beside,
            "error",
            "bits",
            pattern=f"{name}.local",
        )


def _schedules() -> Iterator[Claim]:
    topic = "Schedules"
    for condition, share in zip(LATE, ("one third", "two thirds"), strict=True):
        yield gone(
            f"{condition}.gone",
            topic,
            f"Brought in after {share} of the run, the entropy signal still removes the wall.",
            condition,
            published=0.07,
        )
    yield figure(
        f"{LATE[0]}.wall_ratio",
        topic,
        "Wall ratio with the signal from one third of the run on.",
        0.07,
        wall_ratio(LATE[0]),
        "ratio",
        "ratio",
        pattern=f"{LATE[0]}.gone",
        note="the study gives one figure for late introduction and does not say for which of two late starts",
    )
    yield kept(
        "removed-1-3.wall",
        topic,
        "Taken away after one third, the signal's effect is lost: the wall is back at the end.",
        REMOVED,
        published=19.4,
    )
    yield figure(
        "removed-1-3.wall_ratio",
        topic,
        "Wall ratio at the end, the signal taken away after one third.",
        19.4,
        wall_ratio(REMOVED),
        "ratio",
        "ratio",
        pattern="removed-1-3.wall",
    )
    yield more(
        "removed-1-3.slow",
        topic,
        "Forgetting is slow: at the end the wall is still lower than it was without the signal.",
        wall_ratio("c0"),
        wall_ratio(REMOVED),
        "ratio",
        published=76.0 - 19.4,
    )
    yield pattern(
        "removed-1-3.monotone",
        topic,
        "After removal the wall ratio climbs without turning back.",
        None,
        "order",
        rules.above(0.0),
        note="needs evaluations along the run, which no run stores",
    )


def _introspection() -> Iterator[Claim]:
    topic = "Introspection and endogenous signals"
    for name, (words, value) in INTROSPECTION.items():
        yield kept(f"{name}.wall", topic, f"A network told {words} keeps the wall.", name, published=value)
        yield figure(
            f"{name}.wall_ratio",
            topic,
            f"Wall ratio of a network told {words}.",
            value,
            wall_ratio(name),
            "ratio",
            "ratio",
            pattern=f"{name}.wall",
        )
    for condition, words in ENDOGENOUS.items():
        yield more(
            f"{condition}.worse",
            topic,
            f"With {words} the wall is higher than without.",
            wall_ratio(condition),
            wall_ratio("c0"),
            "ratio",
        )
