"""Temperature: optima known in closed form, against scipy's minimiser, and a run measured end to end beside its evaluation."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from wallprobe import stats
from wallprobe.errors import ConfigError
from wallprobe.hooks.wall import temperature as temp
from wallprobe.rng import generator
from wallprobe.store.results import load_result
from wallprobe.training.wall import evaluate, lean

SHAPE = lean.Shape(n_layers=2, d_model=12, n_heads=2, n_ctx=16, vocabulary=17)


@pytest.fixture(scope="module")
def run(tmp_path_factory, write_run):
    return write_run(tmp_path_factory.mktemp("runs"), "c0", lean.init_params(SHAPE, 1), SHAPE)


def logs(probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_two_tokens_by_hand():
    """P = (3/4, 1/4), Q = (9/10, 1/10): odds 3 against 9, so beta = log 3 / log 9 = 1/2, T* = 2, and KL there is 0."""
    readout = temp.Readout.of(logs([[[0.9, 0.1]]]), torch.tensor([[[0.75, 0.25]]], dtype=torch.float64))
    inverse = temp.best_inverse(readout)
    assert inverse.item() == pytest.approx(0.5, abs=1e-12)
    assert readout.kl(inverse).item() == pytest.approx(0, abs=1e-12)
    assert readout.kl(torch.ones(1, dtype=torch.float64)).item() == pytest.approx(
        0.75 * math.log(0.75 / 0.9) + 0.25 * math.log(0.25 / 0.1), abs=1e-12
    )
    slope, curvature = readout.derivatives(torch.ones(1, dtype=torch.float64))
    gap = math.log(9)  # d KL = (Q - P)(first) x gap, and its derivative Q (1 - Q) gap^2
    assert slope.item() == pytest.approx((0.9 - 0.75) * gap)
    assert curvature.item() == pytest.approx(0.9 * 0.1 * gap**2)


def test_logits_that_point_away_are_best_forgotten():
    readout = temp.Readout.of(logs([[[0.1, 0.9]]]), torch.tensor([[[0.75, 0.25]]], dtype=torch.float64))
    assert temp.best_inverse(readout).item() == 0
    assert readout.kl(torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))


def test_the_right_order_without_doubt_wants_all_the_sharpness_there_is():
    readout = temp.Readout.of(logs([[[0.51, 0.49]]]), torch.tensor([[[1.0, 0.0]]], dtype=torch.float64))
    assert temp.best_inverse(readout).item() == temp.HIGHEST_INVERSE


def random_readout(sequences=40, positions=3):
    rng = generator("temperature test")
    log_probs = (3 * torch.randn(sequences, positions, 7, generator=rng, dtype=torch.float64)).log_softmax(-1)
    tilted = log_probs / torch.tensor([0.5, 2.0, 8.0], dtype=torch.float64)[:, None]
    noise = torch.randn(sequences, positions, 7, generator=rng, dtype=torch.float64)
    return temp.Readout.of(log_probs, (tilted + noise).softmax(-1))


def test_optima_are_those_of_scipy():
    readout = random_readout()
    found = temp.best_inverse(readout)
    for position in range(3):
        one = readout.part(slice(position, position + 1))
        oracle = minimize_scalar(
            lambda beta, one=one: one.kl(torch.full((1,), beta, dtype=torch.float64)).mean().item(), bounds=(0, 100), method="bounded"
        )
        assert found[position].item() == pytest.approx(oracle.x, abs=1e-4)
    pooled = temp.best_inverse(readout, pooled=True)
    oracle = minimize_scalar(
        lambda beta: readout.kl(torch.full((3,), beta, dtype=torch.float64)).mean().item(), bounds=(0, 100), method="bounded"
    )
    assert pooled.tolist() == pytest.approx([oracle.x] * 3, abs=1e-4)
    assert found.std() > 0.1  # one for all is not each one's own


def test_a_resample_is_minimised_anew():
    """The Newton step of each bootstrap draw lands where minimising that draw does."""
    readout = random_readout(sequences=400)
    weights = stats.resamples(400, generator("temperature draws"), draws=5)
    found = temp.optimum(readout, weights)
    for draw, row in enumerate(weights):
        again = torch.repeat_interleave(torch.arange(400), (row * 400).round().long())
        part = temp.Readout(readout.logits[again], readout.expected[again], readout.negentropy[again])
        exact = part.kl(temp.best_inverse(part)).mean(0)
        torch.testing.assert_close(found.kl_draws[draw], exact, rtol=0, atol=1e-3)


def test_a_run_beside_its_evaluation(run, tmp_path):
    result, beside = temp.temperature(run, sequences=100), evaluate.evaluate(run, sequences=100)
    bits = beside.data["kl"].values / math.log(2)
    assert result.data["kl_at_one_bits"].values == pytest.approx(bits, abs=1e-9)
    assert result.data["kl_bits"].sel(temperature=1.0).values == pytest.approx(bits, abs=1e-9)
    assert result.data["top1"].values == pytest.approx(beside.data["top1"].values)
    assert result.summary["top1_unsupervised"] == pytest.approx(beside.summary["untrained_top1"])
    best, swept = result.data["kl_at_t_star_bits"].values, result.data["kl_bits"].values
    assert (best <= swept.min(axis=1) + 1e-9).all()
    assert (best <= result.data["kl_uniform_bits"].values + 1e-9).all()
    summary = result.summary
    assert summary["kl_best_bits_unsupervised"] == pytest.approx(best[5:].mean())
    assert summary["kl_best_bits_unsupervised"] <= summary["kl_single_t_bits_unsupervised"] + 1e-9
    assert summary["recovered_unsupervised"] == pytest.approx(1 - best[5:].mean() / result.data["kl_uniform_bits"].values[5:].mean())
    assert "no temperature recovers Bayes" in summary["finding"]
    again = load_result(result.save(tmp_path))
    assert again.values == result.values
    assert temp.temperature(run, sequences=100).values == result.values


def test_the_exact_answer_sharpened_is_recovered(run, monkeypatch):
    """A run whose logits are twice those of the exact answer needs T = 2 and then has nothing left to lose."""
    exact = evaluate.fresh(run, 100).exact.predictive
    monkeypatch.setattr(evaluate, "predict", lambda *_: (2 * exact.clamp(min=1e-30).log()).log_softmax(-1))
    result = temp.temperature(run, sequences=100)
    assert result.summary["t_star_unsupervised"] == pytest.approx(2, abs=1e-3)
    assert result.summary["kl_best_bits_unsupervised"] < 1e-6
    assert "a temperature recovers Bayes" in result.summary["finding"]


@pytest.mark.parametrize("text", ["0", "1,-2", "inf", "nan", "warm", ""])
def test_temperatures_that_cannot_be_swept_are_named(text):
    with pytest.raises(ConfigError, match="give finite"):
        temp.parse_temperatures(text)
