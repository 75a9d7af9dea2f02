"""The bootstrap against what is known of it."""

import torch

from wallprobe import stats
from wallprobe.rng import generator


def test_resamples_are_weights_and_depend_on_the_generator_alone():
    weights = stats.resamples(7, generator("stats"), draws=50)
    torch.testing.assert_close(weights.sum(-1), torch.ones(50, dtype=torch.float64), rtol=0, atol=1e-12)
    counts = weights * 7
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-12)
    assert torch.equal(weights, stats.resamples(7, generator("stats"), draws=50))


def test_the_interval_of_a_mean_has_its_textbook_width():
    """1.96 standard errors either side, within the Monte-Carlo error of 4,000 draws."""
    values = torch.randn(900, generator=generator("values"), dtype=torch.float64)
    draws = stats.masked_means(stats.resamples(900, generator("stats"), 4000), values[:, None])
    low, high = stats.interval(draws)
    error = values.std() / 30
    assert abs((high - low).item() / (2 * 1.96 * error.item()) - 1) < 0.06
    assert low.item() < values.mean().item() < high.item()


def test_missing_values_are_left_out():
    values = torch.tensor([[1.0, torch.nan], [3.0, torch.nan], [torch.nan, torch.nan]], dtype=torch.float64)
    plain = torch.full((1, 3), 1 / 3, dtype=torch.float64)
    means = stats.masked_means(plain, values)
    assert abs(means[0, 0].item() - 2.0) < 1e-12
    assert means[0, 1].isnan()
