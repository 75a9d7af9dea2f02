"""Claims measured by instruments: probes, geometry, temperature, interchange, the exact answer itself."""

import math
from collections.abc import Iterator

from wallprobe.claims.ledger import rules
from wallprobe.claims.ledger.claim import Claim
from wallprobe.claims.ledger.measurements import PAIR
from wallprobe.claims.ledger.quantities import Quantity, Reading, Record, cell, highest, largest_cell, mean, number, summary
from wallprobe.claims.ledger.wording import apart, figure, level, pattern
from wallprobe.claims.wall import transfer

PROBED = {"c0": (0.548, 0.235, 0.213, 0.169), "c1": (0.552, 0.547, 0.543, 0.540)}
POSITIONS = (5, 6, 10, 15)
CHANCE = 1 / 17
PAIRS = (("p5", "c0"), ("c1", "c0"), ("p1", "c0"))
DEEP = 3  # the layer from which the wall study's deep patches start
EXACT = {1: 4.087, 2: 4.008, 3: 2.837, 4: 2.131, 5: 2.008, 6: 1.996}
BEYOND = (1.995, tuple(range(7, 16)))


def claims() -> Iterator[Claim]:
    """Every claim of this file, in reading order."""
    yield from _probes()
    yield from _geometry()
    yield from _temperature()
    yield from _interchange()
    yield from transfer.claims()
    yield from _reference()


def _probed(condition: str, position: int) -> Quantity:
    return summary(condition, "probe", f"token_accuracy_{position}")


def _probed_figures(topic: str) -> Iterator[Claim]:
    names = {"c0": "the baseline's", "c1": "the entropy-regularised network's"}
    for condition, values in PROBED.items():
        for position, value in zip(POSITIONS, values, strict=True):
            yield figure(
                f"probe.{condition}.{position}",
                topic,
                f"A linear probe of {names[condition]} last layer finds the token of position {position} with accuracy {value:g}.",
                value,
                _probed(condition, position),
                "fraction",
                "accuracy",
                pattern="probe.c0.drop" if condition == "c0" else "probe.c1.level",
            )


def _probes() -> Iterator[Claim]:
    topic = "Probes"
    yield from _probed_figures(topic)
    yield apart(
        "probe.c0.drop",
        topic,
        "In the baseline the probe loses the token right beyond the wall.",
        _probed("c0", 5),
        _probed("c0", 6),
        "accuracy",
        published=0.548 - 0.235,
    )
    yield level(
        "probe.c1.level",
        topic,
        "In the entropy-regularised network it finds it as well at position 15 as at 5.",
        _probed("c1", 15),
        _probed("c1", 5),
        "accuracy",
        published=0.540 - 0.552,
    )
    yield apart(
        "probe.c1.over_c0",
        topic,
        "At position 15 it finds more in the entropy-regularised network than in the baseline.",
        _probed("c1", 15),
        _probed("c0", 15),
        "accuracy",
        published=0.540 - 0.169,
    )
    yield pattern(
        "probe.c0.substrate",
        topic,
        "Even the baseline's states far beyond the wall hold more than chance about the next token.",
        _probed("c0", 15),
        "order",
        rules.above(CHANCE + rules.FRACTION),
        "accuracy",
        published=0.169,
    )
    spoken = summary("c1", "temperature", "top1_unsupervised")
    found = mean(*(_probed("c1", position) for position in POSITIONS[1:]), how="mean token accuracy of c1 at positions 6, 10, 15 (probe)")
    yield apart(
        "probe.c1.encodes",
        topic,
        "The entropy-regularised network encodes more than it says: the probe beats its own first choice.",
        found,
        spoken,
        "accuracy",
    )


def _geometry() -> Iterator[Claim]:
    topic = "Geometry"
    yield pattern(
        "geometry.rises",
        topic,
        "The cosine of unsupervised states with the last supervised one rises with depth.",
        summary("c0", "geometry", "rises_with_depth"),
        "order",
        rules.above(rules.FRACTION),
        "cosine",
    )
    yield figure(
        "geometry.cosine",
        topic,
        "At the last layer that cosine is 0.65 to 0.76.",
        (0.65, 0.76),
        summary("c0", "geometry", "cosine_last_layer"),
        "fraction",
        "cosine",
        pattern="geometry.rises",
    )
    yield pattern(
        "geometry.clusters",
        topic,
        "States cluster with depth: their mean pairwise cosine rises too.",
        summary("c0", "geometry", "pairwise_rises_with_depth"),
        "order",
        rules.above(rules.FRACTION),
        "cosine",
    )


def _temperature() -> Iterator[Claim]:
    topic = "Temperature"
    reading = "the study gives the range without naming the run; its size fits the baseline"
    for condition in ("c0", "c1", "p5"):
        yield pattern(
            f"temperature.{condition}.unrecovered",
            topic,
            f"No temperature turns {condition}'s logits beyond the wall into the exact answer.",
            summary(condition, "temperature", "recovered_unsupervised"),
            "recovery",
            rules.below(rules.RECOVERED),
            "share of the KL",
        )
    yield figure(
        "temperature.kl",
        topic,
        "At the best temperature, KL beyond the wall is still 1.5 to 1.8 bits.",
        (1.5, 1.8),
        summary("c0", "temperature", "kl_best_bits_unsupervised"),
        "error",
        "bits",
        pattern="temperature.c0.unrecovered",
        note=reading,
    )
    yield figure(
        "temperature.top1",
        topic,
        "Beyond the wall the network's first choice is right 15 to 25 % of the time.",
        (0.15, 0.25),
        summary("c0", "temperature", "top1_unsupervised"),
        "fraction",
        "accuracy",
        note=reading,
    )


def _patched(src: str, dst: str, name: str, words: str, *, deep: bool = False) -> Quantity:
    """The largest probability of an answer over the patched cells."""

    def of(record: Record) -> Reading:
        return Reading(*(number(record.get(f"p_{name}{suffix}")) for suffix in ("", "_low", "_high")))

    where = f"layers {DEEP} and above, last patched index" if deep else "all layers and both indices"
    return largest_cell(
        src, f"{PAIR}{dst}", of, f"largest probability of {words} over {where} ({src} into {dst})", _deep_last if deep else None
    )


def _gained(src: str, dst: str, name: str, words: str, *, deep: bool = False) -> Quantity:
    """The largest excess of an answer over what it has without a patch, with a random donor, and by chance."""

    def of(record: Record) -> Reading:
        bars = [number(record.get(key)) for key in (f"base_p_{name}", f"p_{name}_random")]
        bar = math.nan if any(map(math.isnan, bars)) else max(*bars, CHANCE)
        return Reading(*(number(record.get(f"p_{name}{suffix}")) - bar for suffix in ("", "_low", "_high")))

    how = f"largest gain of {words} over chance, no patch and a random donor ({src} into {dst})"
    return largest_cell(src, f"{PAIR}{dst}", of, how, _deep_last if deep else None)


def _deep_last(record: Record, records: tuple[Record, ...]) -> bool:
    """Cells of the deep layers at the last patched index."""
    return bool(record["layer"] >= DEEP and record["index"] == max(other["index"] for other in records))


def _interchange() -> Iterator[Claim]:
    topic = "Interchange"
    rule, answer = "the donor's rule on the receiver's operand", "the donor's own prediction"
    for src, dst in PAIRS:
        name = f"interchange.{src}_{dst}"
        yield pattern(
            f"{name}.no_rule",
            topic,
            f"No single residual state of {src} brings its rule to {dst}.",
            _gained(src, dst, "rule", rule),
            "crossing",
            rules.below(rules.CROSSING),
            "probability",
        )
        yield figure(
            f"{name}.rule",
            topic,
            f"From {src} to {dst}, the rule's answer gets at most 0.060 to 0.062, at the floor of 1/17.",
            (0.060, 0.062),
            _patched(src, dst, "rule", rule),
            "fraction",
            "probability",
            pattern=f"{name}.no_rule",
        )
        yield pattern(
            f"{name}.answer",
            topic,
            f"Deep in the network, {src}'s prediction does cross into {dst}.",
            _gained(src, dst, "import", answer, deep=True),
            "crossing",
            rules.above(rules.CROSSING),
            "probability",
        )
    best = highest(
        *(_patched(src, dst, "import", answer, deep=True) for src, dst in PAIRS), how=f"largest probability of {answer} over the pairs"
    )
    yield figure(
        "interchange.import",
        topic,
        "The donor's prediction is imported with a probability of up to 0.40.",
        0.40,
        best,
        "fraction",
        "probability",
    )


def _reference() -> Iterator[Claim]:
    topic = "The exact answer"
    cells = {position: cell("c0", "eval", "entropy_exact", position=position) for position in range(1, 16)}
    for position, value in EXACT.items():
        yield figure(
            f"exact.{position}",
            topic,
            f"Mean exact entropy H(P) at position {position}.",
            value,
            _exact(cells[position]),
            "reference",
            "bits",
        )
    value, positions = BEYOND
    beyond = mean(
        *(cells[position] for position in positions), how=f"mean entropy_exact over positions {positions[0]} to {positions[-1]} (eval)"
    )
    yield figure("exact.beyond", topic, "Mean exact entropy H(P) at positions 7 to 15.", value, _exact(beyond), "reference", "bits")


def _exact(quantity: Quantity) -> Quantity:
    """Marked as no matter of the runs' seeds."""
    return Quantity(quantity.read, quantity.how, quantity.needs, over_seeds=False)
