"""Metrics on predictions whose figures are known, and a run measured end to end."""

import math

import numpy
import pytest
import torch

from wallprobe.errors import ConfigError
from wallprobe.rng import generator
from wallprobe.store.results import load_result
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.training.wall import evaluate as ev
from wallprobe.training.wall import loop
from wallprobe.training.wall.conditions import get_condition
from wallprobe.training.wall.recipes import Recipe

TASK = RecurrenceTask()


def metrics(log_probs_of):
    drawn = TASK.sample(600, generator("metrics"))
    exact = TASK.posterior(drawn.tokens)
    return ev.sequence_metrics(log_probs_of(exact, drawn), drawn.tokens, drawn.is_program, exact), drawn, exact


def test_the_exact_answer_scores_perfectly():
    found, drawn, _ = metrics(lambda exact, drawn: exact.predictive.clamp(min=1e-300).log())
    for name in ("mae", "kl", "total_variation"):
        assert found[name].abs().max().item() < 1e-9
    torch.testing.assert_close(found["best_mass"], found["best_posterior"], rtol=0, atol=1e-12, equal_nan=True)
    late = found["class_posterior_mae"][:, 3:]
    assert late.nanmean().item() < 0.02  # only where two answers tie can the mass not show the class
    decided = ~found["mean_rank"].isnan()
    assert found["mean_rank"][decided].eq(1).all()
    assert found["miss_margin"].isnan().all()
    assert found["top1"][drawn.is_program][:, 4:].mean().item() == 1.0


def test_a_uniform_answer_scores_as_worked_out_by_hand():
    found, _, exact = metrics(lambda exact, drawn: torch.full_like(exact.predictive, -math.log(17)))
    torch.testing.assert_close(found["mae"], math.log2(17) - exact.entropy, rtol=0, atol=1e-9)
    torch.testing.assert_close(found["kl"], (math.log2(17) - exact.entropy) * math.log(2), rtol=0, atol=1e-9)
    decided = ~found["best_mass"].isnan()
    torch.testing.assert_close(
        found["best_mass"][decided], torch.full((int(decided.sum()),), 1 / 17, dtype=torch.float64), rtol=0, atol=1e-12
    )
    torch.testing.assert_close(found["class_posterior_mae"], exact.program_weight, rtol=0, atol=1e-12)


def test_calibrated_and_wrong_is_seen():
    """Right entropy, mass on the wrong token: MAE 0 while the Bayes-best token gets next to nothing."""
    found, _, _ = metrics(lambda exact, drawn: exact.predictive.roll(1, dims=-1).clamp(min=1e-300).log())
    assert found["mae"].abs().max().item() < 1e-9
    assert found["best_mass"].nanmean().item() < 0.05
    assert found["best_posterior"].nanmean().item() > 0.9
    ranks = found["mean_rank"]
    assert ranks[~ranks.isnan()].eq(2).all()
    assert found["miss_margin"].nanmean().item() > 3


def test_mode_concentration_sees_a_constant_answer():
    same = torch.zeros(50, 3, 17, dtype=torch.float64)
    same[:, 0, 5] = 1
    same[torch.arange(50), 1, torch.arange(50) % 10] = 1
    concentration = ev.mode_concentration(same)
    assert concentration[0].item() == 1.0
    assert concentration[1].item() == pytest.approx(0.1)


def test_every_metric_is_there_with_its_interval(run):
    data = ev.evaluate(run, sequences=100).data
    for name in (*ev.METRICS, "mode_concentration"):
        low, middle, high = (data[f"{name}{suffix}"].values for suffix in ("_low", "", "_high"))
        seen = ~numpy.isnan(middle)
        assert seen[5:].all(), name
        assert (low[seen] <= high[seen]).all(), name
        assert (low[seen] <= middle[seen] + 1e-12).mean() > 0.9, name  # a maximum over tokens is above its resamples now and then


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = Recipe(preset="tiny", n_layers=2, d_model=16, n_heads=2, steps=20, batch=8, adam_lr=1e-3)
    return loop.train(loop.Job(get_condition("c0"), recipe), tmp_path_factory.mktemp("runs"))


def test_evaluation_of_a_run(run, tmp_path):
    result = ev.evaluate(run, sequences=300)
    summary = result.summary
    for key in ("run", "trained_mae", "untrained_mae", "wall_ratio", "wall_sharpness", "kl_nats", "class_posterior_mae", "bayes_best_mass"):
        assert key in summary
    mae = result.data["mae"].values
    assert summary["trained_mae"] == pytest.approx(mae[:5].mean())
    assert summary["untrained_mae"] == pytest.approx(mae[5:].mean())
    assert summary["wall_ratio"] == pytest.approx(summary["untrained_mae"] / summary["trained_mae"])
    assert summary["wall_sharpness"] == pytest.approx(mae[5] - mae[4])
    assert 0 < summary["bayes_best_mass_geomean"] < summary["bayes_best_mass"]
    assert summary["wall_ratio_low"] < summary["wall_ratio"] < summary["wall_ratio_high"]
    assert [record["position"] for record in result.values] == list(range(1, 16))
    assert "has not learnt the task" in summary["finding"]
    again = load_result(result.save(tmp_path))
    assert again.values == result.values
    assert ev.evaluate(run, sequences=300).values == result.values


def test_too_few_sequences_are_refused(run):
    with pytest.raises(ConfigError, match="1 sequences give no interval"):
        ev.evaluate(run, sequences=1)
