"""Claims on the thirteen conditions: the wall, the wall study's table, and what calibration leaves wrong."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

from wallprobe.claims.ledger import rules
from wallprobe.claims.ledger.claim import Claim
from wallprobe.claims.ledger.quantities import Quantity, cell, summary
from wallprobe.claims.ledger.wording import apart, figure, gone, kept, more, pattern, wall_ratio

CONDITIONS = ("c0", "c1", "c2", "c3", "c4", "c5", "p1", "p2", "p3", "p4", "p5", "p6", "s1")

# condition -> summary key of `wallprobe eval` -> the published figure (means of three seeds)
PUBLISHED: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "c0": MappingProxyType({"untrained_mae": 1.54, "kl_nats": 0.80, "class_posterior_mae": 0.64, "wall_ratio": 76.0}),
        "c1": MappingProxyType({"untrained_mae": 0.008, "kl_nats": 3.23, "class_posterior_mae": 0.78, "wall_ratio": 0.22}),
        "p1": MappingProxyType({"untrained_mae": 2.09, "kl_nats": 0.92, "class_posterior_mae": 0.81, "wall_ratio": 64.8}),
        "p5": MappingProxyType({"untrained_mae": 0.025, "kl_nats": 2.69, "class_posterior_mae": 0.74, "wall_ratio": 0.75}),
    }
)

# key -> (what the statement calls it, rule, units)
KEYS = {
    "untrained_mae": ("mean entropy error at unsupervised positions", "error", "bits"),
    "kl_nats": ("KL from the exact predictive, mean over all positions,", "error", "nats"),
    "class_posterior_mae": ("class-posterior error at t >= 4", "fraction", "probability"),
    "wall_ratio": ("wall ratio", "ratio", "ratio"),
}
# condition -> (what it is, the pattern its figures belong to)
NAMED = {
    "c0": ("the baseline", "c0.wall"),
    "c1": ("full entropy through the softmax", "c1.gone"),
    "p1": ("the class posterior through a scalar head", "p1.wall"),
    "p5": ("the class posterior through the softmax", "p5.gone"),
}
AT_10K = "the published figure is at 10,000 steps of its recipe"


def claims() -> Iterator[Claim]:
    """Every claim of this file, in reading order."""
    yield from _baseline()
    yield from _table()
    yield from _second_reading()
    yield from _grid()
    yield from _delivery()
    yield from _calibrated_and_wrong()


def _baseline() -> Iterator[Claim]:
    topic = "The wall"
    near, beyond = cell("c0", "eval", "mae", position=5), cell("c0", "eval", "mae", position=6)
    yield kept("c0.wall", topic, "Trained on positions 1 to 5 alone, a network is off by far more beyond them.", "c0", published=76.0)
    yield figure(
        "c0.wall_ratio_original", topic, "The wall ratio in Misra's essay.", 83.0, wall_ratio("c0"), "ratio", "ratio", pattern="c0.wall"
    )
    yield figure("c0.mae_at_5", topic, "The last supervised position is near Bayes.", 0.020, near, "error", "bits")
    yield pattern(
        "c0.sharp",
        topic,
        "The wall stands at once: position 6 is far worse than position 5.",
        beyond / near,
        "wall",
        rules.above(rules.WALL),
        "ratio",
    )
    yield figure(
        "c0.untrained_mae_original",
        topic,
        "Mean entropy error at unsupervised positions in Misra's essay.",
        1.63,
        summary("c0", "eval", "untrained_mae"),
        "error",
        "bits",
        pattern="c0.wall",
    )
    yield pattern(
        "c0.scale",
        topic,
        "Growing from 3 to 300 million parameters does not move the wall.",
        None,
        "wall",
        rules.above(rules.WALL),
        note="no preset trains a large network",
    )


def _table() -> Iterator[Claim]:
    topic = "The wall study's table"
    for condition, figures in PUBLISHED.items():
        what, belongs = NAMED[condition]
        for key, value in figures.items():
            words, rule, units = KEYS[key]
            pattern_of = belongs if key in ("untrained_mae", "wall_ratio") else None
            yield figure(
                f"{condition}.{key}",
                topic,
                f"{condition}, {what}: {words} is {value:g}{'' if units in ('ratio', 'probability') else f' {units}'}.",
                value,
                summary(condition, "eval", key),
                rule,
                units,
                pattern=pattern_of,
            )


def _second_reading() -> Iterator[Claim]:
    """The published class-posterior errors against another mean, beside the first reading and not instead of it."""
    topic = "The wall study's table, a second reading"
    note = "read so after the mean over all sequences did not give the published figure; the study does not say which sequences it takes"
    for condition, figures in PUBLISHED.items():
        value = figures["class_posterior_mae"]
        yield figure(
            f"{condition}.class_posterior_mae_program",
            topic,
            f"{condition}: class-posterior error at t >= 4 over program sequences alone is {value:g}.",
            value,
            summary(condition, "eval", "class_posterior_mae_program"),
            "fraction",
            "probability",
            note=note,
        )


def _grid() -> Iterator[Claim]:
    topic = "Signals and routes"
    mae = {name: summary(name, "eval", "untrained_mae") for name in CONDITIONS}
    yield from _targets(topic, mae)
    yield from _teachers(topic, mae)
    yield from _heads(topic)
    yield kept("p4.wall", topic, "The exact entropy through a scalar head keeps the wall: same information as c1, wrong account.", "p4")
    yield kept("p6.wall", topic, "Control: another sequence's class posterior through the softmax keeps the wall.", "p6")
    yield figure("s1.untrained_mae", topic, "s1, smooth hidden states: unsupervised entropy error.", 2.07, mae["s1"], "error", "bits")
    smoothed, plain = (summary(name, "eval", "trained_mae") for name in ("s1", "c0"))
    yield more("s1.harm", topic, "Smoothing hidden states harms the supervised side.", smoothed, plain, "bits")


def _targets(topic: str, mae: Mapping[str, Quantity]) -> Iterator[Claim]:
    yield gone("c1.gone", topic, "The exact entropy through the softmax removes the wall.", "c1", published=0.22)
    yield kept(
        "c2.wall", topic, "Control: the entropy of the uniform distribution through the softmax keeps the wall.", "c2", published=63.0
    )
    yield figure(
        "c2.wall_ratio", topic, "c2, uniform entropy: wall ratio.", (63.0, 63.2), wall_ratio("c2"), "ratio", "ratio", pattern="c2.wall"
    )
    yield gone("c3.gone", topic, "Cross-entropy at every position leaves no wall.", "c3")
    yield figure(
        "c3.untrained_mae",
        topic,
        "c3, tokens everywhere: entropy error at positions 6 to 15.",
        0.014,
        mae["c3"],
        "error",
        "bits",
        pattern="c3.gone",
    )


def _teachers(topic: str, mae: Mapping[str, Quantity]) -> Iterator[Claim]:
    yield gone("c4.gone", topic, "A trained teacher's predictions remove the wall.", "c4", published=0.20)
    yield figure(
        "c4.wall_ratio",
        topic,
        "c4, a trained teacher: wall ratio.",
        0.20,
        wall_ratio("c4"),
        "ratio",
        "ratio",
        pattern="c4.gone",
        note=AT_10K,
    )
    yield figure(
        "c4.untrained_mae",
        topic,
        "c4, a trained teacher: unsupervised entropy error.",
        0.045,
        mae["c4"],
        "error",
        "bits",
        pattern="c4.gone",
        note=AT_10K,
    )
    yield kept("c5.wall", topic, "Control: an untrained teacher keeps the wall.", "c5", published=11.0)
    yield figure(
        "c5.wall_ratio",
        topic,
        "c5, an untrained teacher: wall ratio.",
        11.0,
        wall_ratio("c5"),
        "ratio",
        "ratio",
        pattern="c5.wall",
        note=AT_10K,
    )


def _heads(topic: str) -> Iterator[Claim]:
    yield more(
        "p2.modest",
        topic,
        "The hard class label through a scalar head lowers the wall ratio below the baseline's.",
        wall_ratio("c0"),
        wall_ratio("p2"),
        "ratio",
        published=7.1 - 6.0,
        note=AT_10K,
    )
    yield figure(
        "p2.share",
        topic,
        "p2's wall ratio as a share of the baseline's: only a modest gain.",
        6.0 / 7.1,
        wall_ratio("p2") / wall_ratio("c0"),
        "ratio",
        "ratio",
        pattern="p2.modest",
        note=AT_10K,
    )
    yield kept("p3.wall", topic, "Control: a random label through a scalar head keeps the wall.", "p3", published=7.7)
    yield figure(
        "p3.wall_ratio", topic, "p3, a random label: wall ratio.", 7.7, wall_ratio("p3"), "ratio", "ratio", pattern="p3.wall", note=AT_10K
    )


def _delivery() -> Iterator[Claim]:
    topic = "Same information, three regimes"
    p1, p5, c0 = (summary(name, "eval", "untrained_mae") for name in ("p1", "p5", "c0"))
    yield kept("p1.wall", topic, "The class posterior through a scalar head keeps the wall.", "p1", published=64.8)
    yield gone("p5.gone", topic, "The same class posterior through the softmax removes the wall.", "p5", published=0.75)
    yield more(
        "p1.worse",
        topic,
        "Through the scalar head, entropy beyond the wall is worse than with no signal.",
        p1,
        c0,
        "bits",
        published=2.09 - 1.54,
    )
    yield more(
        "p5.over_c1",
        topic,
        "The full entropy erodes the wall further than the class posterior.",
        wall_ratio("p5"),
        wall_ratio("c1"),
        "ratio",
        published=0.75 - 0.22,
    )
    yield figure(
        "p1.spread",
        topic,
        "p1's unsupervised entropy error over p5's, at the same information.",
        83.0,
        p1 / p5,
        "ratio",
        "ratio",
        pattern="p5.gone",
    )
    class_error = {name: summary(name, "eval", "class_posterior_mae") for name in ("c0", "c1", "p1", "p5")}
    for name, value in (("c1", 0.78), ("p1", 0.81), ("p5", 0.74)):
        yield apart(
            f"{name}.class_error",
            topic,
            f"{name} reads the class off the Bayes-best token worse than the baseline does.",
            class_error[name],
            class_error["c0"],
            "probability",
            published=value - 0.64,
        )


def _mass(topic: str) -> Iterator[Claim]:
    typical = summary("p5", "eval", "bayes_best_mass_geomean")
    span = (1 / 14_000, 1 / 3_000)
    reading = "the study does not say which mean over sequences it takes; this is the {} one"
    yield figure(
        "p5.mass_typical",
        topic,
        "p5's mass on the Bayes-best token beyond the wall is 1/14,000 to 1/3,000.",
        span,
        typical,
        "fraction",
        "probability",
        pattern="p5.off_support",
        note=reading.format("geometric"),
    )
    yield figure(
        "p5.mass_mean",
        topic,
        "p5's mass on the Bayes-best token beyond the wall is 1/14,000 to 1/3,000.",
        span,
        summary("p5", "eval", "bayes_best_mass"),
        "fraction",
        "probability",
        pattern="p5.off_support",
        note=reading.format("arithmetic"),
    )


def _calibrated_and_wrong() -> Iterator[Claim]:
    topic = "Calibrated and wrong"
    kl = {name: summary(name, "eval", "kl_nats") for name in ("c0", "c1", "p1", "p5")}
    for name, value in (("c1", 3.23), ("p5", 2.69)):
        yield more(
            f"{name}.kl_worse",
            topic,
            f"{name} matches the exact entropy and is further from the exact answer in KL than the baseline.",
            kl[name],
            kl["c0"],
            "nats",
            published=value - 0.80,
        )
    yield more(
        "c1.kl_worst",
        topic,
        "Of the two, the better calibrated is the further off: c1's KL exceeds p5's.",
        kl["c1"],
        kl["p5"],
        "nats",
        published=3.23 - 2.69,
    )
    yield more("p1.kl_worse", topic, "p1's KL exceeds the baseline's.", kl["p1"], kl["c0"], "nats", published=0.92 - 0.80)
    yield from _mass(topic)
    for name in ("p5", "c1"):
        deserved, given = (summary(name, "eval", key) for key in ("bayes_best_posterior", "bayes_best_mass"))
        yield apart(
            f"{name}.off_support",
            topic,
            f"{name} puts far less on the Bayes-best token than the exact answer does: right entropy, wrong support.",
            deserved,
            given,
            "probability",
        )
        sure, true = (summary(name, "calibration", f"ece_{key}_unsupervised") for key in ("confidence", "exact"))
        yield apart(
            f"{name}.blind",
            topic,
            f"{name} passes an audit of how sure it is beyond the wall and fails the one of whether it is right.",
            true,
            sure,
            "probability",
        )
