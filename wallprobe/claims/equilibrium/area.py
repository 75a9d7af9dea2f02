"""The ledger of the equilibrium study: why an equilibrium transformer plateaus, and what the study's own tables say to that.

Two subjects: `published`, the figures that the study prints, held to each other; and `demo`, the campaign at CPU scale, which the study's
size (512 wide, TinyStories, 20,000 steps) is far from. Bounds at CPU scale are what was measured before this package had the model; first
results of the instruments, of the arms and of the gate had been seen when they were written down. None was moved since.
"""

import math
from collections.abc import Callable, Iterator, Sequence

from wallprobe.claims.equilibrium import measurements
from wallprobe.claims.equilibrium.measurements import DEMO, PUBLISHED
from wallprobe.claims.ledger import rules
from wallprobe.claims.ledger.claim import Area, Claim
from wallprobe.claims.ledger.quantities import Lookup, Quantity, Reading, Record, number
from wallprobe.claims.ledger.rules import Interval

PAPER = "at the study's scale (512 wide, TinyStories, 20,000 steps), which nothing here runs"
SCALE = "one seed at 64 wide; the published one is at 512"
CONVERGED = 1e-4  # residual below which estimates are held to the exact gradient


def area() -> Area:
    """The claims, in reading order."""
    title = "An equilibrium transformer's plateau (the equilibrium study)"
    claims = (*_tables(), *_faithful(), *_experiments(), *_unmeasured())
    made = measurements
    return Area("equilibrium", title, claims, (), preset=made.PRESET, read=made.read, from_results=True, pack=made.pack_all)


def _claim(
    name: str,
    topic: str,
    kind: str,
    statement: str,
    quantity: Quantity | None,
    rule: str,
    accepted: Interval,
    *,
    published: float | None = None,
    units: str = "",
    note: str = "",
) -> Claim:
    said = None if published is None else (published, published)
    return Claim(f"equilibrium.{name}", topic, kind, statement, said, quantity, rule, accepted, units, note=note)


def told(subject: str, kind: str, value: Callable[[Record], float], how: str) -> Quantity:
    """A figure of one experiment's record; NaN where it is not defined."""

    def read(lookup: Lookup) -> Reading | None:
        found = lookup(subject, kind)
        return None if found is None else Reading(value(found))

    return Quantity(read, f"{how} ({subject})", ((subject, kind),), over_seeds=False)


def _column(record: Record, name: str) -> list[float]:
    return [number(row.get(name)) for row in record["values"]]


def _tables() -> Iterator[Claim]:
    topic = "The study's tables against its sentences"
    rows = "triangulate"
    yield _claim(
        "horizon.same",
        topic,
        "figure",
        "BPTT over 150 and over 400 steps are the same gradient throughout (cosine 1.00), so that the horizon is no cause.",
        told(PUBLISHED, rows, lambda r: min(_column(r, "bptt_bptt")), "least cosine between the two over the five checkpoints"),
        "printed figure",
        rules.printed(1.0, 0.01),
        published=1.0,
    )
    yield _claim(
        "horizon.ceiling",
        topic,
        "pattern",
        "No cosine of EP to BPTT is above what two horizons of BPTT agree on, so that each of them can be told.",
        told(
            PUBLISHED,
            rows,
            lambda r: float(sum(ep > two for ep, two in zip(_column(r, "ep_bptt"), _column(r, "bptt_bptt"), strict=True))),
            "checkpoints at which EP agrees with BPTT-150 better than BPTT-400 does",
        ),
        "literal inequality",
        Interval(0.0, 0.0),
        units="checkpoints",
    )
    yield _claim(
        "plateau.optimum",
        topic,
        "pattern",
        "The plateau is an optimum: the true gradient has shrunk and agrees less from batch to batch than before.",
        told(
            PUBLISHED,
            rows,
            lambda r: _column(r, "bptt_self")[-1] - max(_column(r, "bptt_self")[:-1]),
            "BPTT's self-cosine there less its largest before",
        ),
        "literal inequality",
        rules.below(0.0),
        note="the same table's one-step sweep gains 0.161 nats along BPTT",
    )
    yield _claim(
        "k.stable",
        topic,
        "figure",
        "EP's norm over BPTT's at the plateau is the checkpoint's: two experiments on it agree.",
        told(PUBLISHED, rows, lambda r: _column(r, "k")[-1] / measurements.STEPS["k"], "k of experiment 1 over k of experiment 2"),
        "ratio",
        rules.ratio(1.0),
        published=1.0,
    )
    yield from _steps(topic)
    yield from _influence(topic)


def _steps(topic: str) -> Iterator[Claim]:
    yield _claim(
        "grid.beyond_noise",
        topic,
        "pattern",
        "A maximum of 8 for λ improves on the start by more than the unchanged settings move away from it.",
        told(
            PUBLISHED,
            "grid",
            lambda r: (r["summary"]["start"] - r["summary"]["jr_max_8"]) - abs(r["summary"]["base"] - r["summary"]["start"]),
            "gain of jr_max 8 less what the base arm moved by itself",
        ),
        "literal inequality",
        rules.above(0.0),
        units="nats",
    )
    yield _claim(
        "sweep.fourfold",
        topic,
        "figure",
        "EP's best one-step fall is four times below BPTT's.",
        told(PUBLISHED, "lr_sweep", lambda r: r["summary"]["best_bptt"] / r["summary"]["best_ep"], "BPTT's best fall over EP's"),
        "rough figure",
        rules.about(4.0),
        published=4.0,
    )


def _at(record: Record, ckpt: str, distance: int) -> float:
    return next((number(row["influence"]) for row in record["values"] if (row["ckpt"], row["distance"]) == (ckpt, distance)), math.nan)


def _share(name: str, distance: int) -> Callable[[Record], float]:
    """Influence at a distance over that at 1."""
    return lambda record: _at(record, name, distance) / _at(record, name, 1)


def _influence(topic: str) -> Iterator[Claim]:
    yield _claim(
        "mixing.absolute",
        topic,
        "figure",
        "EP's influence at distance 1 is about 20 times weaker than the transformer's.",
        told(PUBLISHED, "mixing", lambda r: _at(r, "bp", 1) / _at(r, "ep", 1), "BP's influence at 1 over EP's"),
        "rough figure",
        rules.about(20.0),
        published=20.0,
    )
    printed: Sequence[tuple[str, int, float, float]] = (
        ("ep", 8, 0.43, 0.01),
        ("ep", 16, 0.30, 0.01),
        ("ep", 64, 0.080, 0.001),
        ("ep", 200, 0.025, 0.001),
        ("bp", 8, 0.34, 0.01),
        ("bp", 16, 0.16, 0.01),
        ("bp", 64, 0.029, 0.001),
        ("bp", 200, 0.0006, 0.0001),
    )
    for name, distance, value, digit in printed:
        yield _claim(
            f"mixing.{name}_{distance}",
            topic,
            "figure",
            f"{name.upper()}'s influence at {distance} over that at 1 is {value:g}.",
            told(
                PUBLISHED,
                "mixing",
                _share(name, distance),
                "of the printed influences",
            ),
            "printed figure",
            rules.printed(value, digit),
            published=value,
        )


def _converged(record: Record, value: Callable[[Record], float], name: str) -> float:
    """The least of a figure over checkpoints whose residual is below `CONVERGED`, of one estimator."""
    residuals = {row["ckpt"]: number(row.get("res")) for row in record["values"] if row["estimator"] == "eqprop"}
    rows = [row for row in record["values"] if row["estimator"] == name and residuals.get(row["ckpt"], math.nan) < CONVERGED]
    return min((value(row) for row in rows), default=math.nan)


def _estimator(record: Record, name: str, key: str) -> list[float]:
    return [number(row.get(key)) for row in record["values"] if row["estimator"] == name]


def _faithful() -> Iterator[Claim]:
    topic = "At CPU scale: is the estimate the gradient?"
    rows = "triangulate"
    yield _claim(
        "ep.faithful",
        topic,
        "pattern",
        "Where the residual is below 1e-4, EP's cosine to BPTT is above 0.99.",
        told(DEMO, rows, lambda r: _converged(r, lambda row: number(row["cos"]), "eqprop"), "least cosine over such checkpoints"),
        "literal inequality",
        rules.above(0.99),
    )
    yield _claim(
        "bptt.horizons",
        topic,
        "pattern",
        "Where the residual is below 1e-4, two horizons of BPTT agree above 0.99.",
        told(DEMO, rows, lambda r: _converged(r, lambda row: number(row["cos"]), "bptt160"), "least cosine over such checkpoints"),
        "literal inequality",
        rules.above(0.99),
    )
    yield _claim(
        "ep.corrected",
        topic,
        "pattern",
        "With the correction for a Jacobian that is not symmetric, EP is closer to BPTT than without, at every checkpoint.",
        told(
            DEMO,
            rows,
            lambda r: min(a - b for a, b in zip(_estimator(r, "eqprop", "cos"), _estimator(r, "eqprop-plain", "cos"), strict=True)),
            "least difference of the two cosines",
        ),
        "literal inequality",
        rules.above(0.0),
    )
    yield _claim(
        "ep.collapses",
        topic,
        "pattern",
        "At the last checkpoint EP has no direction in common with BPTT (cosine below one half).",
        told(DEMO, rows, lambda r: _estimator(r, "eqprop", "cos")[-1], "cosine at the last checkpoint"),
        "literal inequality",
        rules.below(0.5),
        published=-0.045,
        note=SCALE,
    )
    yield _claim(
        "ep.incoherent",
        topic,
        "pattern",
        "At the last checkpoint EP's gradients of two batches point apart (self-cosine below 0) while BPTT's agree.",
        told(DEMO, rows, lambda r: _estimator(r, "eqprop", "self_cos")[-1], "EP's self-cosine at the last checkpoint"),
        "literal inequality",
        rules.below(0.0),
        published=-0.273,
        note=SCALE,
    )


def _arm(record: Record, arm: str, key: str) -> float:
    return next((number(row.get(key)) for row in record["values"] if str(row["arm"]).lower() == arm), math.nan)


def _experiments() -> Iterator[Claim]:
    topic = "At CPU scale: the other experiments"
    yield _claim(
        "sweep.ep_weaker",
        topic,
        "pattern",
        "One step along EP buys at most half of what one along BPTT buys, at the best learning rate of each.",
        told(
            DEMO,
            "lr_sweep",
            lambda r: number(r["summary"].get("best_eqprop")) / number(r["summary"].get("best_bptt60")),
            "EP's best fall over BPTT's",
        ),
        "literal inequality",
        Interval(high=0.5),
        published=0.042 / 0.161,
        note=SCALE,
    )
    yield _claim(
        "matched.rule",
        topic,
        "pattern",
        "At the same recipe EP ends below BPTT with the controller.",
        told(DEMO, "matched", lambda r: number(r["summary"].get("rule_gap")), "EP's best validation loss less BPTT's"),
        "literal inequality",
        rules.below(0.0),
        published=2.40 - 3.85,
        units="nats",
        note=SCALE,
    )
    yield _claim(
        "matched.architecture",
        topic,
        "pattern",
        "BPTT with the controller ends above a transformer of the same shape.",
        told(DEMO, "matched", lambda r: number(r["summary"].get("architecture_gap")), "BPTT's best validation loss less the transformer's"),
        "literal inequality",
        rules.above(0.0),
        published=3.85 - 1.6953,
        units="nats",
        note=SCALE,
    )
    yield _claim(
        "gate.order",
        topic,
        "pattern",
        "The gate shuts out more steps with a warm-up than with contraction first, and least without a warm-up.",
        told(
            DEMO,
            "gate",
            lambda r: min(_arm(r, "a", "skip_share") - _arm(r, "b", "skip_share"), _arm(r, "b", "skip_share") - _arm(r, "c", "skip_share")),
            "smaller of the two steps down in gated share",
        ),
        "literal inequality",
        rules.above(0.0),
        note=SCALE,
    )
    yield from _inside(topic)


def _inside(topic: str) -> Iterator[Claim]:
    yield _claim(
        "branches.qk",
        topic,
        "pattern",
        "Normalised queries and keys stay at a root mean square of 1 (to 1e-3).",
        told(
            DEMO,
            "branches",
            lambda r: max(abs(number(row["qk_rms"]) - 1) for row in r["values"] if str(row["ckpt"]).startswith("eq-demo-ep")),
            "largest distance from 1 over checkpoints",
        ),
        "literal inequality",
        Interval(0.0, 1e-3),
    )
    yield _claim(
        "mixing.weaker",
        topic,
        "pattern",
        "In absolute units EP's influence at distance 1 is weaker than the transformer's.",
        told(DEMO, "mixing", lambda r: _of(r, "ep", 1, "influence") / _of(r, "bp", 1, "influence"), "EP's influence at 1 over BP's"),
        "literal inequality",
        rules.below(1.0),
        published=0.238 / 5.34,
        note=SCALE,
    )
    yield _claim(
        "mixing.farther",
        topic,
        "pattern",
        "Relative to distance 1, EP's influence at 16 is larger than the transformer's.",
        told(DEMO, "mixing", lambda r: _of(r, "ep", 16, "over_d1") / _of(r, "bp", 16, "over_d1"), "EP's share at 16 over BP's"),
        "literal inequality",
        rules.above(1.0),
        published=0.30 / 0.16,
        note=SCALE,
    )


def _of(record: Record, arm: str, distance: int, key: str) -> float:
    """A cell of the first checkpoint whose name has the arm in it."""
    rows = [row for row in record["values"] if arm in str(row["ckpt"]).split("@")[0].split("-") and row["distance"] == distance]
    return number(rows[0].get(key)) if rows else math.nan


def _unmeasured() -> Iterator[Claim]:
    topic = "At the study's scale"
    for name, statement, value in (
        ("val.ep", "EP's best validation loss is 2.4037.", 2.4037),
        ("val.bp", "The transformer's best validation loss is 1.6953.", 1.6953),
        ("val.bptt", "BPTT with the controller reaches 3.85 and then lodges.", 3.85),
        ("cos.plateau", "At the plateau EP's cosine to BPTT is -0.045.", -0.045),
        ("k.plateau", "At the plateau EP's norm is 4223 times BPTT's.", 4223.0),
        ("sweep.bptt", "The best step along BPTT changes the loss by -0.161.", -0.161),
        ("sweep.ep", "The best step along EP changes the loss by -0.042.", -0.042),
        ("grid.jr8", "A maximum of 8 for λ ends at 2.3648.", 2.3648),
        ("branches.pj", "At the plateau the MLP's output weights have norm 44.", 44.0),
        ("entropy.plateau", "At the plateau attention entropy is 3.62 nats.", 3.62),
    ):
        yield _claim(
            f"paper.{name}", topic, "figure", statement, None, "printed figure", rules.printed(value, 0.0001), published=value, note=PAPER
        )
