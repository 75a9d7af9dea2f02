"""Makers of the usual claims, so that each claim is a line: figures by their rule, walls kept or gone, orders, level fractions."""

from wallprobe.claims.ledger import rules
from wallprobe.claims.ledger.claim import Claim
from wallprobe.claims.ledger.quantities import Quantity, summary
from wallprobe.claims.ledger.rules import Interval

BANDS = {"error": rules.error, "fraction": rules.fraction, "ratio": rules.ratio, "reference": rules.reference}


def figure(
    name: str,
    topic: str,
    statement: str,
    published: float | tuple[float, float],
    quantity: Quantity | None,
    rule: str,
    units: str = "",
    *,
    pattern: str | None = None,
    note: str = "",
) -> Claim:
    """A published number, or a range, within its rule's band.

    Args:
        name: id without the area.
        topic, statement, quantity, units, note: as in `Claim`.
        published: published figure or (low, high).
        rule: a key of `BANDS`.
        pattern: id, without the area, of the pattern it belongs to.
    """
    low, high = published if isinstance(published, tuple) else (published, published)
    belongs = None if pattern is None else f"wall.{pattern}"
    band = BANDS[rule](low, high)
    return Claim(f"wall.{name}", topic, "figure", statement, (low, high), quantity, rule, band, units, pattern=belongs, note=note)


def pattern(
    name: str,
    topic: str,
    statement: str,
    quantity: Quantity | None,
    rule: str,
    accepted: Interval,
    units: str = "",
    *,
    published: float | None = None,
    requires: tuple[Quantity, Interval] | None = None,
    note: str = "",
) -> Claim:
    """An inequality; `published` is the published value of the same quantity, where there is one."""
    given = None if published is None else (published, published)
    return Claim(f"wall.{name}", topic, "pattern", statement, given, quantity, rule, accepted, units, requires, note=note)


def wall_ratio(condition: str) -> Quantity:
    """Untrained over trained entropy error of a run."""
    return summary(condition, "eval", "wall_ratio")


def learnt(condition: str) -> tuple[Quantity, Interval]:
    """That a run has learnt the task."""
    return summary(condition, "eval", "trained_mae"), Interval(high=rules.LEARNT)


def kept(name: str, topic: str, statement: str, condition: str, published: float | None = None) -> Claim:
    """The wall stands."""
    return pattern(
        name,
        topic,
        statement,
        wall_ratio(condition),
        "wall",
        rules.above(rules.WALL),
        "ratio",
        published=published,
        requires=learnt(condition),
    )


def gone(name: str, topic: str, statement: str, condition: str, published: float | None = None) -> Claim:
    """The wall is gone, in a run that has learnt the task."""
    return pattern(
        name,
        topic,
        statement,
        wall_ratio(condition),
        "wall",
        rules.below(rules.WALL),
        "ratio",
        published=published,
        requires=learnt(condition),
    )


def more(
    name: str, topic: str, statement: str, quantity: Quantity, than: Quantity, units: str, *, published: float | None = None, note: str = ""
) -> Claim:
    """One error or ratio is larger than another; `published` is the published difference."""
    return pattern(name, topic, statement, quantity - than, "order", rules.above(0.0), units, published=published, note=note)


def apart(
    name: str, topic: str, statement: str, quantity: Quantity, than: Quantity, units: str, *, published: float | None = None, note: str = ""
) -> Claim:
    """One fraction exceeds another by more than the band of fractions."""
    return pattern(name, topic, statement, quantity - than, "order", rules.above(rules.FRACTION), units, published=published, note=note)


def level(
    name: str,
    topic: str,
    statement: str,
    quantity: Quantity,
    with_: Quantity,
    units: str,
    *,
    published: float | None = None,
    note: str = "",
) -> Claim:
    """Two fractions lie within the band of fractions."""
    band = Interval(-rules.FRACTION, rules.FRACTION)
    return pattern(name, topic, statement, quantity - with_, "order", band, units, published=published, note=note)
