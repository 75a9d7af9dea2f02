"""Bands by hand, and the thresholds against the words of the instruments that use the same ones."""

import math

import pytest

from wallprobe.claims.ledger import rules
from wallprobe.claims.ledger.rules import Interval


@pytest.mark.parametrize(
    ("band", "low", "high"),
    [
        (rules.error(1.6), 1.2, 2.0),
        (rules.error(0.008), 0.0, 0.028),
        (rules.error(1.3, 1.9), 0.975, 2.375),
        (rules.fraction(0.64), 0.59, 0.69),
        (rules.fraction(0.08), 0.06, 0.10),
        (rules.fraction(0.65, 0.76), 0.60, 0.81),
        (rules.ratio(76.0), 48.64, 118.75),
        (rules.reference(2.0), 1.87, 2.13),
    ],
)
def test_bands(band, low, high):
    assert (band.low, band.high) == (pytest.approx(low), pytest.approx(high))
    assert (low + 1e-9) in band
    assert (high - 1e-9) in band
    assert (high + 1e-6) not in band


def test_a_band_has_its_ends_and_an_order_has_not():
    assert 3.0 in Interval(1.0, 3.0)
    assert 3.0 not in rules.above(3.0)
    assert 3.0 not in rules.below(3.0)
    assert 3.0000001 in rules.above(3.0)
    assert math.nan not in Interval(1.0, 3.0)
    assert math.nan not in rules.above(0.0)


def test_the_wall_is_what_eval_calls_one():
    from wallprobe.training.wall.evaluate import _finding

    told = {"run": "c0", "untrained_mae": 1.0, "bayes_best_mass": 0.1, "bayes_best_posterior": 1.0}

    def sure(trained, ratio):  # intervals of no width: what is left is the rounding that no sentence turns on
        figures = {"trained_mae": trained, "wall_ratio": ratio, "untrained_mae": 1.0, "bayes_best_mass": 0.1, "bayes_best_posterior": 1.0}
        return _finding(told | figures | {f"{name}{end}": value for name, value in figures.items() for end in ("_low", "_high")})

    assert "shows the wall" in sure(rules.LEARNT / 2, rules.WALL + 1e-3)
    assert "no wall" in sure(rules.LEARNT / 2, rules.WALL - 1e-3)
    assert "not learnt" in sure(rules.LEARNT + 1e-3, 1.0)


def test_a_crossing_is_what_interchange_calls_one():
    from wallprobe.hooks.interchange.programs import MARGIN

    assert rules.CROSSING == MARGIN


def test_a_recovery_is_what_temperature_calls_one():
    assert pytest.importorskip("wallprobe.hooks.wall.temperature").RECOVERED == rules.RECOVERED
