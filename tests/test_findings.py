"""When one figure is said to be more than another: properties of the comparison, whatever the figures."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wallprobe.findings import beyond, difference, foremost, rounding, side

FIGURES = st.floats(-1e6, 1e6)
ANY = st.floats(allow_nan=True, allow_infinity=True)
NOISES = st.none() | st.floats(0, 1e3)
INTERVALS = st.none() | st.tuples(FIGURES, FIGURES).map(lambda ends: (min(ends), max(ends)))
OTHER = {"above": "below", "below": "above", "level": "level"}


@given(FIGURES, FIGURES, INTERVALS, NOISES)
def test_the_other_way_round_it_is_the_other_side(a, b, interval, noise):
    turned = None if interval is None else (-interval[1], -interval[0])
    assert side(b, a, turned, noise) == OTHER[side(a, b, interval, noise)]


@given(ANY, INTERVALS, NOISES)
def test_a_figure_is_never_beyond_itself(a, interval, noise):
    assert side(a, a, interval, noise) == "level"


@given(FIGURES, st.sampled_from([1 - 1e-7, 1 + 1e-7, 1 - 1e-6, 1 + 1e-6]), INTERVALS)
def test_a_figure_is_never_beyond_what_differs_by_rounding(a, factor, interval):
    assert side(a * factor, a, interval) == "level"


@given(ANY, INTERVALS, NOISES)
def test_nothing_is_told_of_nan(a, interval, noise):
    assert side(a, math.nan, interval, noise) == side(math.nan, a, interval, noise) == "level"
    assert not beyond(math.nan, a, interval, noise)


@given(FIGURES, FIGURES, st.floats(0, 1e6), INTERVALS, NOISES)
def test_more_is_never_less_beyond(a, b, more, interval, noise):
    noise = rounding(a + more, b) if noise is None else noise  # left out, it grows with the figure: held at its larger value
    if beyond(a, b, interval, noise):
        moved = None if interval is None else (interval[0] + more, interval[1] + more)
        assert beyond(a + more, b, moved, noise)
        assert beyond(a + more, b, interval, noise)


@given(FIGURES, FIGURES, NOISES)
def test_an_interval_around_nothing_tells_nothing_apart(a, b, noise):
    assert side(a, b, (-1e7, 1e7), noise) == "level"


@given(FIGURES, FIGURES, INTERVALS, st.floats(0, 1e3), st.floats(0, 1e3))
def test_more_noise_tells_no_more_apart(a, b, interval, noise, more):
    if side(a, b, interval, noise + more) != "level":
        assert side(a, b, interval, noise) == side(a, b, interval, noise + more)


@pytest.mark.parametrize(
    ("a", "b", "interval", "noise", "told"),
    [
        (0.5, 0.4, None, None, "above"),
        (0.4, 0.5, None, None, "below"),
        (0.5, 0.4, (0.05, 0.15), None, "above"),
        (0.5, 0.4, (-0.01, 0.21), None, "level"),
        (0.4, 0.5, (-0.15, -0.05), None, "below"),
        (0.5, 0.4, (math.nan, math.nan), None, "above"),  # one sample has no interval
        (0.5, 0.5 * (1 - 1e-7), (1e-9, 9e-8), None, "level"),  # an interval of rounding errors
        (0.5, 0.4, None, 0.2, "level"),
        (math.inf, 1.0, None, None, "above"),
        (-math.inf, math.inf, None, None, "below"),
    ],
)
def test_by_hand(a, b, interval, noise, told):
    assert side(a, b, interval, noise) == told
    assert beyond(a, b, interval, noise) == (told == "above")


def test_bounds_of_a_difference_are_as_far_apart_as_they_can_be():
    assert difference((3.0, 5.0), (1.0, 2.0)) == (1.0, 4.0)
    assert difference((3.0, 5.0), 1.0) == (2.0, 4.0)
    assert math.isnan(difference((math.nan, 5.0), 1.0)[0])


def test_rounding_is_of_the_largest_finite_figure():
    assert rounding() == rounding(math.nan, math.inf) == 0.0
    assert rounding(-2.0, 1.0, math.inf) == pytest.approx(2 * 2.0**-16, rel=1e-12)


@given(st.lists(FIGURES, min_size=1, max_size=8))
def test_the_foremost_place_is_not_beaten_and_no_earlier_one_is_as_good(values):
    place = foremost(values)
    assert place is not None
    assert not any(beyond(value, values[place]) for value in values)
    assert all(beyond(max(values), value) for value in values[:place])


def test_the_foremost_place_does_not_depend_on_rounding():
    assert foremost([0.1, 0.5, 0.5 * (1 + 1e-7), 0.3]) == foremost([0.1, 0.5 * (1 + 1e-7), 0.5, 0.3]) == 1
    assert foremost([math.nan, 0.2, 0.9]) == 2
    assert foremost([math.nan]) is None
    assert foremost([]) is None
    assert foremost([1.0, math.inf]) == 1
