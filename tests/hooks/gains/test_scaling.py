"""The scaling law: the published figures to their printed digits, numpy's own least squares, laws known beforehand, and refusals."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from wallprobe.cli.scaling import critical
from wallprobe.errors import ConfigError
from wallprobe.gallery.charts import number
from wallprobe.hooks.gains.published import PYTHIA
from wallprobe.hooks.gains.scaling import Point, bootstrap, fit, published_points, scaling, size_text
from wallprobe.rng import generator
from wallprobe.store.results import Result, load_result


@pytest.fixture(scope="module")
def law() -> Result:
    return scaling(published_points(), source="published")


def rows(result: Result, part: str) -> dict[str, dict[str, float]]:
    return {row["label"]: row for row in result.values if row["part"] == part}


def test_the_published_law(law: Result) -> None:
    """The author's own fit has 0.26500 +- 0.07885, intercept -1.8906, R^2 0.65311, p 0.015210 (the gains study)."""
    expected = {"alpha": 0.26500, "alpha_se": 0.07885, "intercept": -1.89060, "r2": 0.65311, "p": 0.015210}
    for name, value in expected.items():
        assert law.summary[name] == pytest.approx(value, rel=0, abs=6e-6), name
    assert law.summary["coefficient"] == pytest.approx(0.01286, rel=0, abs=6e-6)
    for name, value in {"ci_low": 0.072, "ci_high": 0.458, "theil_sen": 0.291, "theil_sen_low": 0.086, "theil_sen_high": 0.447}.items():
        assert law.summary[name] == pytest.approx(value, rel=0, abs=6e-4), name
    assert (law.summary["spearman"], law.summary["spearman_p"]) == (pytest.approx(0.786, abs=6e-4), pytest.approx(0.021, abs=6e-4))
    assert (law.summary["bootstrap_low"], law.summary["bootstrap_high"]) == (pytest.approx(0.062, abs=0.01), pytest.approx(0.412, abs=0.01))
    assert (law.summary["small_alpha"], law.summary["small_alpha_se"]) == (pytest.approx(0.133, abs=6e-4), pytest.approx(0.117, abs=6e-4))


def test_the_published_law_without_each_model_and_on_other_sizes(law: Result) -> None:
    without = rows(law, "without")
    assert [round(row["p"], 3) for row in without.values()] == [0.065, 0.013, 0.029, 0.026, 0.028, 0.002, 0.047, 0.072]
    assert (law.summary["loo_alpha_low"], law.summary["loo_alpha_high"]) == (
        pytest.approx(0.220, abs=6e-4),
        pytest.approx(0.310, abs=6e-4),
    )
    assert law.summary["loo_significant"] == "6/8"
    others = rows(law, "fit")
    assert [round(others[name]["alpha"], 3) for name in ("n_params_non_embedding", "d_model", "n_layers")] == [0.213, 0.605, 0.571]
    assert [round(others[name]["p"], 4) for name in ("n_params_non_embedding", "d_model", "n_layers")] == [0.0192, 0.0096, 0.1168]
    assert "lifts p to as much as 0.0721, above 0.05 for 2 of 8" in law.summary["finding"]


def test_extrapolation_has_formula_anchor_interval_and_the_seeds_figure(law: Result) -> None:
    ahead = rows(law, "extrapolation")
    assert [round(row["formula"], 1) for row in ahead.values()] == [6.0, 9.6, 12.3, 22.8, 35.8]
    assert [row["seed_says"] for row in ahead.values()] == [7.7, 13.0, 18.0, 30.0, 50.0]
    assert [row["beyond"] for row in ahead.values()] == [0.0, 0.0, 1.0, 1.0, 1.0]
    assert (ahead["70B"]["low"], ahead["70B"]["high"]) == (pytest.approx(2.7, abs=0.05), pytest.approx(33.9, abs=0.05))
    assert (ahead["10T"]["low"], ahead["10T"]["high"]) == (pytest.approx(4.8, abs=0.05), pytest.approx(268, abs=0.5))
    assert ahead["11.8B"]["anchored"] == pytest.approx(7.714583)


def test_sizes_follow_from_the_shape() -> None:
    sizes = [one.n_params_non_embedding for one in PYTHIA]
    assert (sizes[0], sizes[-1]) == (18915328, 11327027200)
    assert sum(one.net_contracting for one in PYTHIA) == 174
    assert sum(one.attn_contracting for one in PYTHIA) == 180
    assert sum(one.n_layers for one in PYTHIA) == 182


def test_against_numpys_least_squares() -> None:
    rng = np.random.default_rng(3)
    x, noise = np.geomspace(1e6, 1e10, 7), rng.normal(0, 0.2, 7)
    y = 10 ** (0.4 * np.log10(x) - 2 + noise)
    found = fit(x.tolist(), y.tolist())
    (slope, constant), covariance = np.polyfit(np.log10(x), np.log10(y), 1, cov="unscaled")
    rest = np.log10(y) - slope * np.log10(x) - constant
    sd = math.sqrt((rest**2).sum() / 5)
    assert (found.alpha, found.intercept, found.residual) == (pytest.approx(slope), pytest.approx(constant), pytest.approx(sd))
    assert found.alpha_se == pytest.approx(sd * math.sqrt(covariance[0, 0]))
    t975 = 2.5705818366147395  # Student's t, 5 degrees of freedom
    assert found.ci_high - found.alpha == pytest.approx(t975 * found.alpha_se)
    at = np.array([math.log10(3e11), 1.0])
    value, low, high = found.predict(3e11)
    half = t975 * sd * math.sqrt(1 + at @ covariance @ at)
    assert (math.log10(value), math.log10(high) - math.log10(value)) == (pytest.approx(at @ [slope, constant]), pytest.approx(half))
    assert math.log10(value) - math.log10(low) == pytest.approx(half)


def points(sizes: Sequence[float], gains: Sequence[float], by_prompt: Sequence[tuple[float, ...]] | None = None) -> list[Point]:
    each = by_prompt or [()] * len(sizes)
    return [Point(f"m{n}", n, n, n, n, gain, some) for n, gain, some in zip(sizes, gains, each, strict=True)]


def test_an_exact_law_is_found_and_leaves_no_spread() -> None:
    sizes = [1e6, 1e7, 1e8, 1e9, 1e10]
    found = scaling(points(sizes, [0.5 * size**0.3 for size in sizes]), draws=500).summary
    for name in ("alpha", "ci_low", "ci_high", "bootstrap_low", "bootstrap_high", "loo_alpha_low", "theil_sen"):
        assert found[name] == pytest.approx(0.3, abs=1e-6), name
    assert (found["coefficient"], found["r2"], found["spearman"]) == (pytest.approx(0.5), pytest.approx(1.0), pytest.approx(1.0))


def test_the_bootstrap_over_models_by_hand_and_prompts_widen_it() -> None:
    sizes, gains = [1e6, 1e7, 1e8, 1e9], [1.0, 2.0, 1.5, 4.0]
    low, high = bootstrap(sizes, [[gain] for gain in gains], generator("t"), 4000)
    resamples = [list(picks) for picks in np.ndindex(4, 4, 4, 4) if len(set(picks)) >= 3]
    slopes = [np.polyfit(np.log10(sizes)[picks], np.log10(gains)[picks], 1)[0] for picks in resamples]
    exact = np.quantile(slopes, [0.025, 0.975])
    assert (low, high) == (pytest.approx(exact[0], abs=0.02), pytest.approx(exact[1], abs=0.02))
    noisy = [(gain / 3, gain * 5 / 3) for gain in gains]
    wide_low, wide_high = bootstrap(sizes, noisy, generator("t"), 4000)
    assert wide_high - wide_low > 1.2 * (high - low)
    found = scaling(points(sizes, gains, noisy), draws=500).summary
    assert found["bootstrap_prompts_high"] - found["bootstrap_prompts_low"] > found["bootstrap_high"] - found["bootstrap_low"]


def test_losses_give_the_critical_size_and_without_them_it_says_what_is_missing(law: Result, tmp_path) -> None:
    sizes = np.geomspace(1e7, 1e11, 8).tolist()
    a, b, limit, at = 0.25, 0.3, 8.0, 2e9
    drop = a * limit * at**b / (a + b)
    made = [replace(point, quality=limit - drop * point.n_params**-b) for point in points(sizes, [0.02 * n**a for n in sizes])]
    found = scaling(made, draws=200)
    assert found.summary["n_star"] == pytest.approx(at, rel=0.02)
    assert found.summary["n_star_low"] < found.summary["n_star_high"] * (1 + 1e-9)
    assert found.summary["n_star_reason"] is None
    assert [row["eta"] for row in rows(found, "model").values()] == pytest.approx([one.quality / one.gain for one in made])
    assert critical(found.summary).startswith("critical size N*: 2B parameters, 95 % over models ")
    assert load_result(found.save(tmp_path)).to_json() == found.to_json()
    assert law.to_json()["summary"]["n_star"] is None
    assert law.summary["n_star_reason"].startswith("no losses here; measure them: wallprobe flow MODEL")


def test_three_models_have_no_leave_one_out_and_no_bootstrap() -> None:
    found = scaling(points([1e6, 1e7, 1e8], [1.0, 2.0, 3.0])).to_json()["summary"]
    assert found["bootstrap_low"] is None
    assert found["loo_significant"] is None
    assert "three points say little" in found["finding"]


@pytest.mark.parametrize(
    ("sizes", "gains", "words"),
    [
        ([1e6, 1e7], [1.0, 2.0], "needs at least 3 models, got 2"),
        ([1e6] * 4, [1.0, 2.0, 3.0, 4.0], "all 4 models have the same size"),
        ([1e6, 1e7, 1e8], [1.0, math.nan, 2.0], "unknown or not positive"),
    ],
)
def test_refusals(sizes: list[float], gains: list[float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        scaling(points(sizes, gains))


def test_stored_and_again(law: Result, tmp_path) -> None:
    stored = load_result(law.save(tmp_path))
    assert stored.to_json() == law.to_json()
    again = scaling(published_points(), source="published")
    assert json.dumps(again.to_json()["values"]) == json.dumps(law.to_json()["values"])
    assert number(law.summary["alpha"]) == "0.265"


def test_sizes_are_written_as_people_write_them() -> None:
    assert [size_text(size) for size in (70426624.0, 1011781632.0, 999.9e6, 1.8e12, 512.0)] == ["70.4M", "1.01B", "1B", "1.8T", "512"]
