"""The critical size: where it is known, where an interval has no end, and where two laws can have none."""

import math
from collections.abc import Sequence

import numpy as np
import pytest

from wallprobe.hooks.gains.critical import RATES, critical_size, saturations
from wallprobe.rng import generator

SIZES = np.geomspace(1e7, 1e11, 9)


def known(sizes: Sequence[float], at: float, a: float = 0.25, b: float = 0.3, limit: float = 8.0) -> tuple[list[float], list[float]]:
    """Quality and gain of laws whose N* is `at`: c = a Q_inf at^b / (a + b)."""
    c = a * limit * at**b / (a + b)
    return [limit - c * n**-b for n in sizes], [0.02 * n**a for n in sizes]


@pytest.mark.parametrize("at", [3e7, 1e9, 3e10])
def test_a_known_size_is_found_and_is_where_efficiency_is_greatest(at: float) -> None:
    quality, gain = known(SIZES.tolist(), at)
    found = critical_size(SIZES.tolist(), quality, gain, generator("t"), 300)
    assert found.n_star == pytest.approx(at, rel=0.02)  # the grid of rates is 1 % fine
    assert (found.limit, found.rate, found.growth) == (
        pytest.approx(8.0, rel=0.01),
        pytest.approx(0.3, rel=0.01),
        pytest.approx(0.25),
    )
    assert (found.reason, found.unbounded) == ("", 0.0)
    fine = np.geomspace(1e6, 1e12, 20_001)
    curve_quality, curve_gain = known(fine.tolist(), at)
    assert fine[int((np.array(curve_quality) / np.array(curve_gain)).argmax())] == pytest.approx(at, rel=1e-3)


def test_noise_widens_the_interval_about_the_known_size() -> None:
    quality, gain = known(SIZES.tolist(), 1e9)
    rng = np.random.default_rng(5)
    noisy = (np.array(quality) + rng.normal(0, 0.03, 9)).tolist(), (np.array(gain) * np.exp(rng.normal(0, 0.05, 9))).tolist()
    found = critical_size(SIZES.tolist(), *noisy, generator("t"), 1000)
    assert found.low < 1e9 < found.high
    assert 1.05 < found.high / found.low < 30
    assert found.reason == ""


def test_two_pure_power_laws_have_none() -> None:
    """Q = k N^q over F ~ N^a is N^(q - a): monotone, whichever is larger."""
    for q, a in ((0.05, 0.25), (0.3, 0.1)):
        found = critical_size(SIZES.tolist(), (0.9 * SIZES**q).tolist(), (SIZES**a).tolist(), generator("t"), 300)
        assert math.isnan(found.n_star)
        assert "with a pure power law eta is monotone, there is no critical size" in found.reason


@pytest.mark.parametrize(
    ("quality", "gain", "words"),
    [
        (lambda n: 8 - 900 * n**-0.3, lambda n: n**-0.1, "does not grow with size (exponent -0.100)"),
        (lambda n: 2 + 900 * n**-0.3, lambda n: n**0.2, "quality does not grow with size"),
    ],
)
def test_laws_that_go_one_way_say_so(quality, gain, words) -> None:
    found = critical_size(SIZES.tolist(), quality(SIZES).tolist(), gain(SIZES).tolist(), generator("t"), 100)
    assert math.isnan(found.n_star)
    assert words in found.reason


def test_noise_that_hides_the_levelling_off_leaves_no_interval() -> None:
    sizes = SIZES[:6]
    rng = np.random.default_rng(1)
    quality = np.log(sizes) / 3 - 0.004 * np.log(sizes / sizes[0]) ** 2 + rng.normal(0, 0.25, 6)
    found = critical_size(sizes.tolist(), quality.tolist(), (sizes**0.2).tolist(), generator("t"), 500)
    assert math.isnan(found.n_star)
    assert found.reason != ""


def test_too_few_models_and_missing_losses() -> None:
    quality, gain = known(SIZES.tolist(), 1e9)
    assert (
        "need at least 5 models of different sizes, here 4"
        in critical_size(SIZES[:4].tolist(), quality[:4], gain[:4], generator("t")).reason
    )
    assert critical_size(SIZES.tolist(), [math.nan, *quality[1:]], gain, generator("t")).reason == "a model here has no loss"


def test_the_grid_is_no_coarser_than_stated_and_rows_are_fitted_alike() -> None:
    assert float((RATES[1:] / RATES[:-1]).max()) < 1.0101
    quality, gain = known(SIZES.tolist(), 1e9)
    both = saturations(np.stack([SIZES, SIZES[::-1]]), np.array([quality, quality[::-1]]), np.array([gain, gain[::-1]]))
    assert both.at[0] == pytest.approx(both.at[1])
    # The normal equations against numpy's least squares at the rate chosen.
    design = np.stack([np.ones(9), (SIZES / np.exp(np.log(SIZES).mean())) ** -both.rate[0]], axis=1)
    (limit, drop), *_ = np.linalg.lstsq(design, np.array(quality), rcond=None)
    assert (both.limit[0], -both.drop[0]) == (pytest.approx(limit), pytest.approx(drop))
