"""Calibration: errors counted by hand, references whose figures are known, and a run beside its evaluation."""

import math

import pytest
import torch

from wallprobe.errors import ConfigError
from wallprobe.hooks.wall import calibration as cal
from wallprobe.store.results import load_result
from wallprobe.training.wall import evaluate, lean

SHAPE = lean.Shape(n_layers=2, d_model=12, n_heads=2, n_ctx=16, vocabulary=17)


@pytest.fixture(scope="module")
def run(tmp_path_factory, write_run):
    return write_run(tmp_path_factory.mktemp("runs"), "c0", lean.init_params(SHAPE, 1), SHAPE)


def hand_made():
    """Four predictions at one position: two in the bin of 0.6 to 0.8, two in the bin of 0.8 to 1."""
    column = lambda *values: torch.tensor(values, dtype=torch.float64)[:, None]  # noqa: E731
    return {
        "entropy_mae": column(0.1, 0.2, 0.3, 0.4),
        "confidence": column(0.6, 0.7, 0.9, 1.0),
        "exact_confidence": column(0.5, 0.8, 0.9, 0.8),
        "accuracy": column(1, 0, 1, 1),
        "exact_accuracy": column(0.2, 0.2, 0.9, 0.9),
        "best_mass": column(math.nan, 0.01, 0.9, 1.0),
        "best_log_mass": column(math.nan, math.log(0.01), math.log(0.9), 0.0),
        "best_posterior": column(math.nan, 0.8, 0.9, 0.8),
        "count": column(1, 1, 1, 1),
        "decided": column(0, 1, 1, 1),
    }


def test_errors_are_those_counted_by_hand():
    weights = torch.full((1, 4), 0.25, dtype=torch.float64)
    found = cal.moments(hand_made(), weights, bins=5)
    made = {name: value.item() for name, value in cal.figures(found).items()}
    # sums of confidence 1.3 and 1.9; of max P 1.3 and 1.7; of hits 1 and 2; of P(chosen) 0.4 and 1.8; over 4 predictions
    assert made["ece_confidence"] == pytest.approx((0.0 + 0.2) / 4)
    assert made["ece_drawn"] == pytest.approx((0.3 + 0.1) / 4)
    assert made["ece_exact"] == pytest.approx((0.9 + 0.1) / 4)
    assert made["best_mass_geomean"] == pytest.approx((0.01 * 0.9 * 1.0) ** (1 / 3))
    assert made["best_mass"] == pytest.approx(1.91 / 3)
    diagram = {name: values[0].tolist() for name, values in cal.reliability(found).items()}
    assert diagram["share"] == pytest.approx([0, 0, 0, 0.5, 0.5])
    assert diagram["confidence"][3:] == pytest.approx([0.65, 0.95])
    assert diagram["accuracy"][3:] == pytest.approx([0.5, 1.0])
    assert diagram["best_mass"][3:] == pytest.approx([0.01, 0.95])
    assert all(math.isnan(value) for value in diagram["accuracy"][:3])


def test_a_confidence_of_one_falls_in_the_last_bin():
    sums = cal.moments(hand_made(), torch.full((1, 4), 0.25, dtype=torch.float64), bins=2).sums["count"]
    assert sums[0, 0].tolist() == [0, 1]


@pytest.fixture(scope="module")
def references(run):
    data = cal.calibration(run, sequences=600).data

    def at(name, predictor, side="unsupervised"):
        return float(data[f"reference_{name}"].sel(side=side, predictor=predictor))

    return at


def test_the_exact_answer_is_calibrated_and_right(references):
    for name in ("entropy_mae", "ece_confidence", "ece_exact"):
        assert references(name, "exact") == pytest.approx(0, abs=1e-9)
    assert references("ece_drawn", "exact") < 0.03  # what a finite sample leaves
    assert references("best_mass_geomean", "exact") > 0.99


def test_moved_tokens_are_calibrated_and_wrong(references):
    """Entropy and confidence agree to the last digit; only being held to the tokens tells."""
    for name in ("entropy_mae", "ece_confidence"):
        assert references(name, "relabelled") == pytest.approx(0, abs=1e-9)
    assert references("ece_exact", "relabelled") > 0.4
    assert references("ece_drawn", "relabelled") > 0.4
    assert references("best_mass_geomean", "relabelled") < 1e-6


def test_a_uniform_guess_is_right_as_often_as_it_is_sure(references):
    assert references("confidence", "uniform") == pytest.approx(1 / 17)
    assert references("best_mass_geomean", "uniform") == pytest.approx(1 / 17)
    assert references("ece_exact", "uniform") < 0.01
    assert references("ece_confidence", "uniform") > 0.4


def test_a_run_beside_its_evaluation(run, tmp_path):
    result, beside = cal.calibration(run, sequences=200), evaluate.evaluate(run, sequences=200).summary
    summary = result.summary
    for ours, theirs in (
        ("entropy_mae_trained", "trained_mae"),
        ("entropy_mae_unsupervised", "untrained_mae"),
        ("best_mass_unsupervised", "bayes_best_mass"),
        ("best_mass_geomean_unsupervised", "bayes_best_mass_geomean"),
        ("best_posterior_unsupervised", "bayes_best_posterior"),
        ("accuracy_unsupervised", "untrained_top1"),
    ):
        assert summary[ours] == pytest.approx(beside[theirs], rel=1e-9), ours
    assert summary["entropy_mae_unsupervised_low"] < summary["entropy_mae_unsupervised"] < summary["entropy_mae_unsupervised_high"]
    assert summary["verdict"] == "entropy off and wrong"
    shares = result.data["bin_share"].sum("bin").values
    assert shares == pytest.approx([1, 1])
    assert [record["position"] for record in result.values] == list(range(1, 16))
    again = load_result(result.save(tmp_path))
    assert again.values == result.values
    assert cal.calibration(run, sequences=200).values == result.values


@pytest.mark.parametrize(("moved", "verdict"), [(0, "calibrated and right"), (1, "calibrated and wrong")])
def test_verdicts(run, monkeypatch, moved, verdict):
    """A predictor that is exact at supervised positions, and exact or moved by one token beyond."""
    sample = evaluate.fresh(run, 200)
    logs = sample.exact.predictive.clamp(min=1e-300).log()
    logs = torch.cat([logs[:, :5], logs[:, 5:].roll(moved, dims=-1)], dim=1)
    off = 0.99 * logs.exp() + 0.01 / 17  # so that no error is nought and the ratio exists
    monkeypatch.setattr(evaluate, "predict", lambda *_: off.log())
    summary = cal.calibration(run, sequences=200).summary
    assert summary["verdict"] == verdict
    assert verdict in summary["finding"]


def test_bad_input_is_named(run):
    with pytest.raises(ConfigError, match="1 bins show no reliability; give at least 2"):
        cal.calibration(run, bins=1)
