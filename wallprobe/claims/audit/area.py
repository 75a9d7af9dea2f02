"""The ledger of the audit study: what collapses under direct feedback alignment, where, when, and what the controls say.

The study trains on CIFAR-10 for 100 epochs; here it is Fashion-MNIST with 0.7 of the labels redrawn, for six epochs. Our bounds and the
published figures were written down before the campaign was first run.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from wallprobe.claims.audit import measurements
from wallprobe.claims.audit.measurements import AUDIT
from wallprobe.claims.ledger import rules
from wallprobe.claims.ledger.claim import Area, Claim
from wallprobe.claims.ledger.quantities import Lookup, Quantity, Reading, Record, number, summary
from wallprobe.claims.ledger.rules import Interval

ALL = Interval(low=1.0, high=1.0)
PAPER = "at the study's scale (CIFAR-10, 100 epochs), which no campaign here runs"
OTHER = "the published one is of CIFAR-10"
Test = Callable[[Mapping[str, Any]], bool]


def area() -> Area:
    """The claims, in reading order, and the audits they need."""
    claims = (*_collapse(), *_detectors(), *_controls(), *_architectures(), *_figures())
    return Area(
        "audit",
        "Measurement degeneracy in feedback alignment (the audit study)",
        claims,
        tuple(measurements.JOBS),
        preset=measurements.PRESET,
        read=measurements.read,
        audits=measurements.audits,
        pack=measurements.pack_all,
    )


def _claim(
    name: str,
    topic: str,
    kind: str,
    statement: str,
    quantity: Quantity | None,
    rule: str,
    accepted: Interval,
    *,
    published: tuple[float, float] | None = None,
    units: str = "",
    pattern: str | None = None,
    note: str = "",
) -> Claim:
    belongs = None if pattern is None else f"audit.{pattern}"
    return Claim(f"audit.{name}", topic, kind, statement, published, quantity, rule, accepted, units, pattern=belongs, note=note)


def _seeds(name: str, topic: str, statement: str, quantity: Quantity, accepted: Interval = ALL, note: str = "") -> Claim:
    """A pattern of so many seeds."""
    return _claim(name, topic, "pattern", statement, quantity, "seeds", accepted, units="share of seeds", note=note)


def at(condition: str, key: str, epoch: int) -> Quantity:
    """A figure of h_L after so many epochs."""

    def read(lookup: Lookup) -> Reading | None:
        found = lookup(condition, AUDIT)
        return None if found is None else Reading(_cell(found, key, epoch))

    return Quantity(read, f"{key} of {condition} at h_L after {epoch} epochs (audit)", ((condition, AUDIT),))


def _cell(record: Record, key: str, epoch: int) -> float:
    top = max(row["layer"] for row in record["values"])
    values = [row.get(key) for row in record["values"] if row["layer"] == top and row["epoch"] == epoch]
    return number(values[0]) if values else math.nan


def _whole(record: Record) -> list[Mapping[str, Any]]:
    """The top state's rows after whole epochs."""
    top = max(row["layer"] for row in record["values"])
    return [row for row in record["values"] if row["layer"] == top and row["epoch"] == int(row["epoch"])]


def holds(condition: str, test: Callable[[Record], bool], how: str) -> Quantity:
    """1 for a seed whose audit passes a test, 0 for one that does not: over seeds, the share that does."""

    def read(lookup: Lookup) -> Reading | None:
        found = lookup(condition, AUDIT)
        return None if found is None else Reading(float(test(found)))

    return Quantity(read, how, ((condition, AUDIT),))


def never(condition: str, *diagnostics: str) -> Quantity:
    """That none of some diagnostics fires."""
    told = " or ".join(f"({name.replace('_prime', chr(0x2032))})" for name in diagnostics)
    return holds(
        condition,
        lambda record: all(record["summary"][f"first_firing_{name}"] is None for name in diagnostics),
        f"{condition} never fires {told}",
    )


def _ratio(record: Record, key: str, epoch: int) -> float:
    start = _cell(record, key, 0)
    return _cell(record, key, epoch) / start if start else math.nan


def _collapse() -> Iterator[Claim]:
    topic = "The collapse: ResMLP by DFA"
    dfa = "resmlp-dfa"
    yield _seeds(
        "dfa.inflates",
        topic,
        "|h_L| grows at least 300-fold within 4 epochs.",
        holds(dfa, lambda r: _ratio(r, "h_norm", 4) >= 300, "|h_L| x 300"),
    )
    yield _seeds(
        "dfa.sinks",
        topic,
        "The reference |g_L| falls at least 300-fold within 4 epochs.",
        holds(dfa, lambda r: _ratio(r, "g_norm", 4) <= 1 / 300, "|g_L| / 300"),
    )
    yield _seeds(
        "dfa.slope",
        topic,
        "log |g_L| falls with log |h_L| at a slope of -1.15 to -0.75: the LN Jacobian, 1 / |h|.",
        holds(dfa, lambda r: -1.15 <= number(r["summary"]["slope"]) <= -0.75, "slope over all moments"),
    )
    yield _seeds(
        "dfa.elastic",
        topic,
        "|h_L| |g_L| stays within a factor of 10 of its initial value: a change of units, no loss of signal.",
        holds(dfa, lambda r: 0.1 <= _ratio(r, "elasticity", 4) <= 10, "elasticity after 4 epochs over its initial value"),
    )
    for method in ("bp", "frozen"):
        yield _seeds(
            f"{method}.small",
            topic,
            f"By {method}, |h_L| ends at most 30 times its initial value: the data alone force no collapse.",
            holds(f"resmlp-{method}", lambda r: r["summary"]["h_ratio"] <= 30, "|h_L| at the end over its initial value"),
        )
    yield _seeds(
        "bp.small_at_2",
        topic,
        "By bp, |h_L| is at most 30 times its initial value after 2 epochs.",
        holds("resmlp-bp", lambda r: _ratio(r, "h_norm", 2) <= 30, "|h_L| after 2 epochs over its initial value"),
        note="read so after the ratio at the end had come out above 30; the measurement behind that bound stops at 2 epochs",
    )
    yield _seeds(
        "clamp.idle",
        topic,
        "Where no sample's reference is shorter than eps, clamped and exact cosine are the same (to 1e-9).",
        holds(dfa, lambda r: all(row["clamp_bias"] < 1e-9 for row in _whole(r) if row["below_eps"] == 0), "clamp bias at such moments"),
    )


def _detectors() -> Iterator[Claim]:
    topic = "The detectors"
    first_b = summary("resmlp-dfa", AUDIT, "first_firing_b")
    yield _seeds(
        "b.fires",
        topic,
        "Diagnostic (b) fires within 6 epochs on at least one of three seeds.",
        holds("resmlp-dfa", lambda r: r["summary"]["first_firing_b"] is not None, "(b) fires"),
        Interval(low=1 / 3 - 1e-9, high=1.0),
        note="our bound; published: on all three",
    )
    yield _seeds(
        "b.fires_all",
        topic,
        "Diagnostic (b) fires on every seed.",
        holds("resmlp-dfa", lambda r: r["summary"]["first_firing_b"] is not None, "(b) fires"),
    )
    for method in ("bp", "frozen"):
        yield _seeds(f"{method}.quiet", topic, f"{method} never fires (a′) or (b).", never(f"resmlp-{method}", "a_prime", "b"))
    order = summary("resmlp-dfa", AUDIT, "first_firing_a_prime") - first_b
    yield _claim(
        "a_prime.later",
        topic,
        "pattern",
        "The growth detector fires after (b).",
        order,
        "order",
        rules.above(0.0),
        published=(5.0, 7.0),
        units="epochs",
        note="the study names neither its statistic nor its threshold; ours is the largest block ratio above 100",
    )
    yield from _first_firings(topic, first_b)


def _first_firings(topic: str, first_b: Quantity) -> Iterator[Claim]:
    yield _claim(
        "b.first_epoch",
        topic,
        "figure",
        "(b) first fires at epoch 3 to 4.",
        first_b,
        "epoch",
        rules.epoch(3.0, 4.0),
        published=(3.0, 4.0),
        pattern="b.fires",
        note=OTHER,
    )
    yield _claim(
        "a_prime.first_epoch",
        topic,
        "figure",
        "The growth detector first fires at epoch 8 to 11.",
        summary("resmlp-dfa", AUDIT, "first_firing_a_prime"),
        "epoch",
        rules.epoch(8.0, 11.0),
        published=(8.0, 11.0),
        note=OTHER,
    )
    gain = at("resmlp-dfa", "accuracy", 6) - summary("resmlp-dfa-stop", AUDIT, "accuracy")
    yield _claim(
        "stop.free",
        topic,
        "pattern",
        "Stopping when (b) or (a′) goes on holding costs no accuracy: the rest of the training adds at most 0.05.",
        gain,
        "order",
        Interval(high=rules.FRACTION),
        published=(-0.002, -0.002),
        units="fraction",
    )


def _controls() -> Iterator[Claim]:
    topic = "Controls"
    yield _seeds(
        "noln.keeps",
        topic,
        "Without the terminal layer norm, DFA keeps |g_L| above 1e-4 throughout.",
        holds("resmlp-dfa-noln", lambda r: all(row["g_norm"] > 1e-4 for row in _whole(r)), "|g_L| at every epoch"),
    )
    penalty = at("resmlp-dfa", "h_norm", 6) / at("resmlp-dfa-penalty", "h_norm", 6)
    yield _claim(
        "penalty.holds",
        topic,
        "pattern",
        "A penalty of 0.01 on the states' mean squares keeps |h_L| at least ten times smaller.",
        penalty,
        "order",
        rules.above(10.0),
        units="ratio",
    )
    slow = at("resmlp-dfa-slow", "accuracy", 3) - at("resmlp-frozen-slow", "accuracy", 3)
    yield _claim(
        "frozen.as_good",
        topic,
        "pattern",
        "At learning rate 0.001 and 3 epochs, frozen blocks do at least as well as DFA.",
        slow,
        "order",
        Interval(high=0.0),
        units="fraction",
    )
    matched = at("resmlp-dfa", "accuracy", 6) - at("resmlp-frozen", "accuracy", 6)
    yield _claim(
        "frozen.as_good_fast",
        topic,
        "pattern",
        "In the campaign, too, frozen blocks do at least as well as DFA.",
        matched,
        "order",
        Interval(high=0.0),
        units="fraction",
    )
    ep, bp, dfa = (summary(f"resmlp-{name}", AUDIT, "h_norm") for name in ("ep", "bp", "dfa"))
    yield _claim(
        "ep.between_low",
        topic,
        "pattern",
        "EP's |h_L| is larger than BP's.",
        ep - bp,
        "order",
        rules.above(0.0),
        published=(4800.0, 4800.0),
        note=OTHER,
    )
    yield _claim("ep.between_high", topic, "pattern", "EP's |h_L| is smaller than DFA's.", dfa - ep, "order", rules.above(0.0), note=OTHER)
    yield _seeds("ep.quiet", topic, "EP never fires (b).", never("resmlp-ep", "b"))


def _architectures() -> Iterator[Claim]:
    topic = "Other architectures by DFA"
    for arch, name in (("student", "StudentNet"), ("bncnn", "The BatchNorm CNN")):
        yield _seeds(f"{arch}.quiet", topic, f"{name}, without a terminal layer norm, never fires (b).", never(f"{arch}-dfa", "b"))
        yield _claim(
            f"{arch}.g_norm",
            topic,
            "figure",
            f"{name} keeps |g_L| around 1e-4.",
            summary(f"{arch}-dfa", AUDIT, "g_norm"),
            "norm",
            rules.norm(1e-4),
            published=(1e-4, 1e-4),
            pattern=f"{arch}.quiet",
            note=OTHER,
        )
    yield _seeds(
        "vit.fires",
        topic,
        "ViT-Mini, with a terminal layer norm, fires (b).",
        holds("vit-dfa", lambda r: r["summary"]["first_firing_b"] is not None, "(b) fires"),
        note="1,200 steps of 64 in all here; two to three published epochs are some 800 to 1,200 of 128, if its batch is the usual one",
    )
    yield _claim(
        "vit.first_epoch",
        topic,
        "figure",
        "ViT-Mini first fires (b) at epoch 2 to 3.",
        summary("vit-dfa", AUDIT, "first_firing_b"),
        "epoch",
        rules.epoch(2.0, 3.0),
        published=(2.0, 3.0),
        pattern="vit.fires",
        note=OTHER,
    )


def _figures() -> Iterator[Claim]:
    topic = "The published figures"
    for epoch, value in enumerate((9.8e-4, 1.4e-6, 3.1e-7, 1.3e-7, 6.7e-8)):
        yield _claim(
            f"dfa.g_at_{epoch}",
            topic,
            "figure",
            f"DFA's |g_L| after {epoch} epochs.",
            at("resmlp-dfa", "g_norm", epoch),
            "norm",
            rules.norm(value),
            published=(value, value),
            pattern="dfa.sinks" if epoch else None,
            note=OTHER,
        )
    measured = (
        ("dfa.h_at_0", "|h_L| at initialisation.", at("resmlp-dfa", "h_norm", 0), 9.0, None),
        ("dfa.h_at_5", "DFA's |h_L| after 5 epochs.", at("resmlp-dfa", "h_norm", 5), 1e6, "dfa.inflates"),
        ("bp.h", "BP's |h_L| throughout.", summary("resmlp-bp", AUDIT, "h_norm"), 200.0, "bp.small"),
        ("bp.g", "BP's |g_L| throughout.", summary("resmlp-bp", AUDIT, "g_norm"), 4e-4, None),
        ("ep.h", "EP's |h_L|.", summary("resmlp-ep", AUDIT, "h_norm"), 5e3, None),
        ("ep.g", "EP's |g_L|.", summary("resmlp-ep", AUDIT, "g_norm"), 1.3e-4, None),
    )
    for name, statement, quantity, value, pattern in measured:
        yield _claim(
            name, topic, "figure", statement, quantity, "norm", rules.norm(value), published=(value, value), pattern=pattern, note=OTHER
        )
    unmeasured = (
        ("dfa.h_end", "DFA's |h_L| after 100 epochs.", 4e8, "norm"),
        ("dfa.g_end", "DFA's |g_L| after 100 epochs.", 5e-10, "norm"),
        ("dfa.w_growth", "Relative growth of w1 and w2 after 100 epochs.", 200.0, "norm"),
        ("dfa.w_product", "Product of the two weights' norms after 100 epochs.", 5e4, "norm"),
    )
    for name, statement, value, rule in unmeasured:
        yield _claim(name, topic, "figure", statement, None, rule, rules.norm(value), published=(value, value), note=PAPER)
    for name, statement, value in (
        ("dfa.acc_4", "DFA's accuracy after 4 epochs.", 0.308),
        ("dfa.acc_end", "DFA's accuracy after 100.", 0.306),
    ):
        yield _claim(name, topic, "figure", statement, None, "fraction", rules.fraction(value), published=(value, value), note=PAPER)
