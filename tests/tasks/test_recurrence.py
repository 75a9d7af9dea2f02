"""The closed-form posterior against enumeration of every rule; the oracle imports nothing of the engine's arithmetic."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wallprobe.errors import ConfigError
from wallprobe.rng import generator
from wallprobe.tasks.recurrence import RecurrenceTask


def oracle(prefix, p, prior):
    """(program weight, predictive) after a prefix, by enumerating all p^2 rules in exact fractions."""
    program = Fraction(0)
    following = [Fraction(0)] * p
    for a, b in itertools.product(range(p), repeat=2):
        if all((a * x + b) % p == y for x, y in itertools.pairwise(prefix)):
            program += Fraction(1, p * p) * Fraction(1, p)
            following[(a * prefix[-1] + b) % p] += Fraction(1, p**3)
    noise = Fraction(1, p ** len(prefix))
    weight = prior * program / (prior * program + (1 - prior) * noise)
    by_program = [value / program if program else Fraction(1, p) for value in following]
    return weight, [weight * value + (1 - weight) * Fraction(1, p) for value in by_program]


def interesting_sequences(p, length):
    """Programs, constant ones, programs broken late, and noise."""
    rng = generator(p, length, "oracle test")
    task = RecurrenceTask(modulus=p, length=length)
    programs = task.sample_programs(12, rng).tokens
    broken = programs.clone()
    broken[:, -2] = (broken[:, -2] + 1) % p
    constant = torch.arange(min(p, 3))[:, None].expand(-1, length)
    bent = constant.clone()
    bent[:, length // 2] = (bent[:, length // 2] + 1) % p
    return torch.cat([programs, broken, constant, bent, torch.randint(p, (12, length), generator=rng)])


@pytest.mark.parametrize(("p", "length"), [(2, 5), (3, 7), (5, 8), (7, 7), (17, 6)])
@pytest.mark.parametrize("prior", [Fraction(1, 2), Fraction(1, 5)])
def test_posterior_equals_enumeration(p, length, prior):
    task = RecurrenceTask(modulus=p, length=length, program_prior=float(prior))
    tokens = interesting_sequences(p, length)
    posterior = task.posterior(tokens)
    for row, sequence in enumerate(tokens.tolist()):
        for position in range(1, length):
            weight, predictive = oracle(sequence[:position], p, prior)
            assert abs(posterior.program_weight[row, position - 1].item() - float(weight)) < 1e-12
            expected = torch.tensor([float(value) for value in predictive], dtype=torch.float64)
            torch.testing.assert_close(posterior.predictive[row, position - 1], expected, rtol=0, atol=1e-12)
            entropy = -sum(float(value) * math.log2(value) for value in predictive if value)
            assert abs(posterior.entropy[row, position - 1].item() - entropy) < 1e-11


def test_noise_likelihood_by_enumeration_of_every_sequence():
    """For p = 3 the mixture's marginal over all 3^5 sequences is 1, and Bayes' rule on it gives the same weights."""
    p, length = 3, 5
    task = RecurrenceTask(modulus=p, length=length + 1)
    programs: dict[tuple[int, ...], Fraction] = {}
    for a, b, start in itertools.product(range(p), repeat=3):
        sequence = [start]
        for _ in range(length - 1):
            sequence.append((a * sequence[-1] + b) % p)
        programs[tuple(sequence)] = programs.get(tuple(sequence), Fraction(0)) + Fraction(1, p**3)
    every = list(itertools.product(range(p), repeat=length))
    noise = Fraction(1, p**length)
    assert sum((programs.get(sequence, Fraction(0)) + noise) / 2 for sequence in every) == 1
    padded = torch.tensor([[*sequence, 0] for sequence in every])
    weights = task.posterior(padded).program_weight[:, length - 1]
    expected = [float(programs.get(sequence, Fraction(0)) / (programs.get(sequence, Fraction(0)) + noise)) for sequence in every]
    torch.testing.assert_close(weights, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(p=st.sampled_from([2, 3, 5, 7, 17]), seed=st.integers(0, 2**32), shift=st.integers(0, 16))
def test_probabilities_and_relabelling(p, seed, shift):
    """P sums to 1, w stays in [0, 1], and x -> x + c permutes the predictive."""
    task = RecurrenceTask(modulus=p, length=9)
    tokens = task.sample(16, generator(seed)).tokens
    posterior = task.posterior(tokens)
    torch.testing.assert_close(posterior.predictive.sum(-1), torch.ones(16, 8, dtype=torch.float64), rtol=0, atol=1e-12)
    assert bool(((posterior.program_weight >= 0) & (posterior.program_weight <= 1)).all())
    moved = task.posterior((tokens + shift) % p)
    torch.testing.assert_close(moved.predictive, posterior.predictive.roll(shift, dims=-1), rtol=0, atol=1e-12)
    torch.testing.assert_close(moved.program_weight, posterior.program_weight, rtol=0, atol=1e-12)


def test_single_precision_and_short_prefixes_agree_with_double():
    task = RecurrenceTask()
    tokens = task.sample(200, generator("precision")).tokens
    exact, single = task.posterior(tokens), task.posterior(tokens, torch.float32)
    torch.testing.assert_close(single.predictive.double(), exact.predictive, rtol=0, atol=1e-6)
    for length in (2, 3, 7):
        part = task.posterior(tokens[:, :length])
        torch.testing.assert_close(part.predictive, exact.predictive[:, : length - 1], rtol=0, atol=0)


def test_published_mean_entropies():
    """Mean H(P) by position, from 2,000 sequences of another sampler (their standard error is 0.04)."""
    reference = [4.087, 4.008, 2.837, 2.131, 2.008, 1.996] + [1.995] * 9
    tokens = RecurrenceTask().sample(40_000, generator("entropy")).tokens
    measured = RecurrenceTask().posterior(tokens).entropy.mean(0)
    torch.testing.assert_close(measured, torch.tensor(reference, dtype=torch.float64), rtol=0, atol=0.12)
    assert measured[0].item() == pytest.approx(math.log2(17), abs=1e-12)


def test_sampling_follows_the_mixture_and_its_generator():
    task = RecurrenceTask()
    drawn = task.sample(4000, generator(1, "sample"))
    again = task.sample(4000, generator(1, "sample"))
    assert torch.equal(drawn.tokens, again.tokens)
    assert not torch.equal(drawn.tokens, task.sample(4000, generator(2, "sample")).tokens)
    assert abs(drawn.is_program.double().mean().item() - 0.5) < 0.04
    programs = drawn.tokens[drawn.is_program]
    slope, offset = drawn.slope[drawn.is_program], drawn.offset[drawn.is_program]
    assert torch.equal(programs[:, 1:], (slope[:, None] * programs[:, :-1] + offset[:, None]) % 17)
    assert set(drawn.tokens.unique().tolist()) == set(range(17))


@pytest.mark.parametrize("settings_", [{"modulus": 16}, {"modulus": 1}, {"length": 2}, {"program_prior": 0.0}, {"program_prior": 1.0}])
def test_bad_settings_are_named(settings_):
    with pytest.raises(ConfigError, match=str(next(iter(settings_.values())))):
        RecurrenceTask(**settings_)
