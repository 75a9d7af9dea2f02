"""Expressions over measurements: values, bounds, what is missing and what is not defined."""

import math

import pytest

from wallprobe.claims.ledger.quantities import Reading, cell, highest, largest_cell, mean, number, summary

STORE = {
    ("a", "eval"): {
        "summary": {"x": 6.0, "x_low": 5.0, "x_high": 7.0, "bare": 2.0, "nothing": None, "zero": 0.0},
        "values": [{"position": 5, "m": 1.0, "m_low": 0.5, "m_high": 1.5}, {"position": 6, "m": 3.0, "m_low": 2.0, "m_high": 5.0}],
    },
    ("b", "eval"): {"summary": {"x": 2.0, "x_low": 1.0, "x_high": 4.0}, "values": []},
}
A, B = summary("a", "eval", "x"), summary("b", "eval", "x")


def lookup(condition, instrument):
    return STORE.get((condition, instrument))


def test_a_key_and_a_cell_come_with_their_bounds():
    assert A.read(lookup) == Reading(6.0, 5.0, 7.0)
    assert cell("a", "eval", "m", position=6).read(lookup) == Reading(3.0, 2.0, 5.0)
    assert A.needs == (("a", "eval"),)
    assert A.how == "x of a (eval)"


def test_bounds_of_combinations_by_hand():
    assert (A - B).read(lookup) == Reading(4.0, 1.0, 6.0)
    assert (A / B).read(lookup) == Reading(3.0, 1.25, 7.0)
    assert mean(A, B, how="").read(lookup) == Reading(4.0, 3.0, 5.5)
    assert highest(A, B, how="").read(lookup) == Reading(6.0, 5.0, 7.0)
    assert (A - B).needs == (("a", "eval"), ("b", "eval"))
    assert (A - B).how == "x of a (eval) minus x of b (eval)"


def test_what_is_missing_is_none_and_what_is_undefined_is_nan():
    absent = summary("c", "eval", "x")
    assert absent.read(lookup) is None
    assert (A - absent).read(lookup) is None
    assert cell("c", "eval", "m", position=6).read(lookup) is None
    for undefined in (summary("a", "eval", "nothing"), summary("a", "eval", "no such key"), cell("a", "eval", "m", position=9)):
        assert math.isnan(undefined.read(lookup).value)
    assert math.isnan((A / summary("a", "eval", "zero")).read(lookup).value)
    assert math.isnan(highest(A, summary("a", "eval", "nothing"), how="").read(lookup).value)


def test_a_bare_figure_has_no_bounds_and_neither_has_what_is_made_of_it():
    reading = (A - summary("a", "eval", "bare")).read(lookup)
    assert reading.value == 4.0
    assert math.isnan(reading.low)
    assert math.isnan(reading.high)


def test_the_largest_cell_of_those_that_count():
    def of(record):
        return Reading(number(record["m"]))

    assert largest_cell("a", "eval", of, "").read(lookup).value == 3.0
    first = largest_cell("a", "eval", of, "", lambda record, records: record["position"] == min(each["position"] for each in records))
    assert first.read(lookup).value == 1.0
    assert math.isnan(largest_cell("b", "eval", of, "").read(lookup).value)
    assert largest_cell("c", "eval", of, "").read(lookup) is None


@pytest.mark.parametrize(("value", "expected"), [(2, 2.0), (2.5, 2.5), (True, math.nan), (None, math.nan), ("2", math.nan)])
def test_only_numbers_are_numbers(value, expected):
    assert number(value) == pytest.approx(expected, nan_ok=True)
