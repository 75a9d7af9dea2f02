"""Each task variant's closed-form posterior against enumeration of everything it could have drawn; exact fractions, no engine."""

import importlib.util
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from wallprobe.errors import ConfigError
from wallprobe.rng import generator
from wallprobe.tasks.backward import BackwardTask
from wallprobe.tasks.heldout import HeldoutTask
from wallprobe.tasks.opaque import OpaqueTask
from wallprobe.tasks.quadratic import QuadraticTask
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.tasks.registry import tasks
from wallprobe.tasks.shuffled import ShuffledTask
from wallprobe.tasks.sized import LengthTask, ModulusTask

spec = importlib.util.spec_from_file_location("oracles", Path(__file__).with_name("oracles.py"))
oracles = importlib.util.module_from_spec(spec)
spec.loader.exec_module(oracles)

PRIORS = [Fraction(1, 2), Fraction(1, 5)]


def awkward(task, rows=10, seed=0):
    """Draws of the task, the same with a late token changed, constant ones, and ones that leave their constant."""
    p, start = task.modulus, task.start
    drawn = task.sample(rows, generator(seed, "awkward")).tokens
    broken = drawn.clone()
    place = torch.randint(start + 1, task.length, (rows, 1), generator=generator(seed, "place"))
    broken.scatter_(1, place, (broken.gather(1, place) + 1) % p)
    constant = drawn[: min(3, p)].clone()
    constant[:, start:] = torch.arange(len(constant))[:, None]
    bent = constant.repeat(task.length - start - 1, 1)
    for row, index in enumerate(range(start + 1, task.length)):
        span = slice(row * len(constant), (row + 1) * len(constant))
        bent[span, index] = (bent[span, index] + 1) % p
    return torch.cat([drawn, broken, constant, bent])


CASES = [
    (RecurrenceTask, oracles.recurrence, 3, 6),
    (QuadraticTask, oracles.quadratic, 2, 5),
    (QuadraticTask, oracles.quadratic, 3, 7),
    (QuadraticTask, oracles.quadratic, 7, 5),
    (BackwardTask, oracles.backward, 2, 5),
    (BackwardTask, oracles.backward, 3, 3),
    (BackwardTask, oracles.backward, 3, 7),
    (BackwardTask, oracles.backward, 5, 5),
    (OpaqueTask, oracles.opaque, 2, 8),
    (OpaqueTask, oracles.opaque, 3, 9),
    (OpaqueTask, oracles.opaque, 5, 9),
    (ShuffledTask, oracles.shuffled, 2, 9),
    (ShuffledTask, oracles.shuffled, 3, 6),
    (ShuffledTask, oracles.shuffled, 3, 9),
    (ShuffledTask, oracles.shuffled, 5, 6),
]


@pytest.mark.parametrize(("kind", "listed", "p", "length"), CASES, ids=[f"{kind.name}-{p}-{length}" for kind, _, p, length in CASES])
@pytest.mark.parametrize("prior", PRIORS)
def test_posterior_equals_enumeration_of_rules_noise_and_latents(kind, listed, p, length, prior):
    task = kind(modulus=p, length=length, program_prior=float(prior))
    programs, noise = (torch.tensor(rows) for rows in listed(p, length))
    tokens = awkward(task)
    oracles.check(task.posterior(tokens), tokens, programs, noise, prior, task.vocabulary, p, header=task.start)


WIDE = [(QuadraticTask, oracles.quadratic, 16), (BackwardTask, oracles.backward, 16), (ShuffledTask, oracles.shuffled, 9)]


@pytest.mark.parametrize(("kind", "listed", "length"), WIDE, ids=[kind.name for kind, _, _ in WIDE])
def test_posterior_equals_enumeration_of_rules_at_p_17(kind, listed, length, monkeypatch):
    """The noise is too much to list there; its probability p^-k is put in."""
    monkeypatch.setattr(oracles, "uniform", lambda p, length: None)
    task = kind(length=length)
    programs = torch.tensor(listed(17, length)[0])
    tokens = awkward(task, rows=8)
    oracles.check(task.posterior(tokens), tokens, programs, None, Fraction(1, 2), 17, 17)


@pytest.mark.parametrize(("p", "bucket"), [(3, 2), (5, 0), (5, 4)])
def test_heldout_training_posterior_equals_enumeration_of_what_training_draws(p, bucket):
    task = HeldoutTask(modulus=p, length=6, bucket=bucket)
    programs, noise = (torch.tensor(rows) for rows in oracles.heldout(p, 6, bucket))
    tokens = awkward(task, rows=30)
    possible = (noise[None, :, :3] == tokens[:, None, :3]).all(-1).any(1)
    tokens = tokens[possible]
    assert len(tokens) > 40
    oracles.check(task.posterior(tokens), tokens, programs, noise, Fraction(1, 2), p, p)


def test_heldout_splits_draw_what_they_say():
    """p = 17: train never shows the held bucket, held shows nothing else, each class half of the time."""
    train, held, full = (HeldoutTask(split=split) for split in ("train", "held", "full"))
    prefixes = {}
    for task in (train, held, full):
        drawn = task.sample(20_000, generator("heldout", task.split))
        assert abs(drawn.is_program.double().mean().item() - 0.5) < 0.02
        steps = (drawn.tokens[:, 1:] - drawn.tokens[:, :-1]) % 17
        cross = (steps[:, 1:2] * steps[:, 1:-1] - steps[:, :1] * steps[:, 2:]) % 17  # zero where d_{i+1} : d_i is constant
        assert cross[drawn.is_program].eq(0).all()
        assert cross[~drawn.is_program].ne(0).any()
        prefixes[task.split] = {tuple(row) for row in drawn.tokens[:, :3].tolist()}
    assert prefixes["train"].isdisjoint(prefixes["held"])
    assert not prefixes["full"].isdisjoint(prefixes["held"])
    assert all(first != second for first, second, _ in prefixes["held"])
    assert {prefix[:2] for prefix in prefixes["train"]} == {(first, second) for first in range(17) for second in range(17)}
    assert 0.17 * 4624 < len(prefixes["held"]) < 0.23 * 4624
    tokens = held.sample(200, generator("held")).tokens
    plain = RecurrenceTask().posterior(tokens)
    torch.testing.assert_close(held.posterior(tokens).predictive, plain.predictive, rtol=0, atol=0)
    torch.testing.assert_close(train.posterior(tokens).predictive[:, 2:], plain.predictive[:, 2:], rtol=0, atol=0)
    torch.testing.assert_close(train.posterior(tokens).program_weight, plain.program_weight, rtol=0, atol=0)


def test_opaque_at_p_17_is_the_recurrence_decoded():
    """With the header given, one relabelling is left: rules are enumerated on the sequence decoded by a dictionary."""
    task = OpaqueTask()
    tokens = awkward(task, rows=6)
    posterior = task.posterior(tokens)
    programs = torch.tensor(oracles.linear(17, 16))
    for row, sequence in enumerate(tokens.tolist()):
        code = {symbol: number for number, symbol in enumerate(sequence[:17])}
        body = [code[symbol] for symbol in sequence[18:]]
        for place, (weight, predictive, _) in enumerate(oracles.answers(programs, None, body, Fraction(1, 2), 17, 17), start=18):
            assert abs(posterior.program_weight[row, place].item() - float(weight)) < 1e-12
            expected = torch.tensor([float(predictive[code[symbol]]) for symbol in range(17)] + [0.0], dtype=torch.float64)
            assert (posterior.predictive[row, place] - expected).abs().max().item() < 1e-12


def test_length_and_modulus_are_the_recurrence_within_larger_limits():
    for length in (8, 16, 32, 50):
        task = LengthTask(length=length)
        drawn = task.sample(100, generator("length"))
        plain = RecurrenceTask(length=length)
        assert torch.equal(drawn.tokens, plain.sample(100, generator("length")).tokens)
        torch.testing.assert_close(task.posterior(drawn.tokens).predictive, plain.posterior(drawn.tokens).predictive, rtol=0, atol=0)
        assert (task.context, task.vocabulary) == (50, 17)
    for p in (17, 19):
        task = ModulusTask(modulus=p)
        tokens = task.sample(100, generator("modulus")).tokens
        found, plain = task.posterior(tokens), RecurrenceTask(modulus=p).posterior(tokens)
        torch.testing.assert_close(found.predictive[..., :p], plain.predictive, rtol=0, atol=0)
        torch.testing.assert_close(found.entropy, plain.entropy, rtol=0, atol=0)
        assert found.predictive[..., p:].eq(0).all()
        assert (task.vocabulary, int(tokens.max())) == (19, p - 1)


def test_long_sequences_neither_overflow_nor_underflow():
    """At 400 tokens p^k is beyond fp64; the class is then certain, not undefined."""
    for dtype in (torch.float32, torch.float64):
        task = RecurrenceTask(length=400)
        drawn = task.sample(40, generator("long"))
        posterior = task.posterior(drawn.tokens, dtype)
        assert torch.equal(posterior.program_weight[:, -1] == 1, drawn.is_program)
        assert posterior.entropy.isfinite().all()


SMALL = st.sampled_from(sorted(tasks()))


@settings(deadline=None, max_examples=40)
@given(name=SMALL, p=st.sampled_from([3, 5, 7, 17]), prior=st.sampled_from([0.02, 0.5, 0.9]), seed=st.integers(0, 2**32))
def test_probabilities(name, p, prior, seed):
    """P sums to 1 and is nowhere negative, w stays in [0, 1], fp32 agrees, prefixes agree; for draws and broken draws."""
    kind = tasks()[name]
    body = 9 if name != "opaque" else 9 + p + 1
    task = kind(modulus=p, length=body, program_prior=prior)
    tokens = awkward(task, rows=6, seed=seed)
    posterior = task.posterior(tokens)
    torch.testing.assert_close(posterior.predictive.sum(-1), torch.ones_like(posterior.entropy), rtol=0, atol=1e-12)
    assert posterior.predictive.min() >= 0
    assert bool(((posterior.program_weight >= 0) & (posterior.program_weight <= 1)).all())
    assert posterior.predictive.shape == (len(tokens), body - 1, task.vocabulary)
    torch.testing.assert_close(task.posterior(tokens, torch.float32).predictive.double(), posterior.predictive, rtol=0, atol=1e-6)
    for length in (2, 3, body - 5, body - 1):
        part = task.posterior(tokens[:, :length])
        for field in ("predictive", "program_weight", "forced", "entropy", "best"):
            torch.testing.assert_close(getattr(part, field), getattr(posterior, field)[:, : length - 1], rtol=0, atol=1e-14)


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(["recurrence", "backward", "shuffled", "length"]),
    p=st.sampled_from([3, 5, 17]),
    shift=st.integers(0, 16),
    scale=st.integers(1, 16),
    seed=st.integers(0, 2**32),
)
def test_an_affine_relabelling_permutes_the_predictive(name, p, shift, scale, seed):
    scale = scale % p or 1
    task = tasks()[name](modulus=p, length=9)
    tokens = awkward(task, rows=6, seed=seed)
    image = (scale * torch.arange(p) + shift) % p
    posterior, moved = task.posterior(tokens), task.posterior(image[tokens])
    torch.testing.assert_close(moved.predictive[..., image], posterior.predictive, rtol=0, atol=1e-12)
    torch.testing.assert_close(moved.program_weight, posterior.program_weight, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(p=st.sampled_from([2, 3, 5, 17]), seed=st.integers(0, 2**32))
def test_any_relabelling_of_an_opaque_sequence_permutes_the_predictive(p, seed):
    """Header and body together: no symbol means a number by itself."""
    task = OpaqueTask(modulus=p, length=p + 9)
    tokens = awkward(task, rows=6, seed=seed)
    image = torch.cat([torch.randperm(p, generator=generator(seed, "relabel")), torch.tensor([p])])
    posterior, moved = task.posterior(tokens), task.posterior(image[tokens])
    torch.testing.assert_close(moved.predictive[..., image], posterior.predictive, rtol=0, atol=1e-12)
    torch.testing.assert_close(moved.program_weight, posterior.program_weight, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(p=st.sampled_from([2, 3, 5, 17]), seed=st.integers(0, 2**32))
def test_the_order_of_whole_triples_does_not_change_the_class(p, seed):
    task = ShuffledTask(modulus=p, length=15)
    tokens = awkward(task, rows=6, seed=seed)
    order = torch.randperm(4, generator=generator(seed, "order"))
    moved = tokens.clone()
    moved[:, :12] = tokens[:, :12].view(-1, 4, 3)[:, order].flatten(1)
    left, right = (task.posterior(rows).program_weight[:, 11:13] for rows in (tokens, moved))
    torch.testing.assert_close(left, right, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(tasks()))
def test_draws_depend_on_the_generator_alone_and_follow_the_prior(name):
    task = tasks()[name](program_prior=0.3)
    first, again, other = (task.sample(3000, generator(seed, name)) for seed in (1, 1, 2))
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens, other.tokens)
    assert first.tokens.shape == (3000, task.length)
    assert abs(first.is_program.double().mean().item() - 0.3) < 0.035
    weight = task.posterior(first.tokens).program_weight[:, -1]
    assert weight[first.is_program].mean() > 0.99
    assert weight[~first.is_program].mean() < 0.02


REFUSED = [
    (QuadraticTask, {"modulus": 16}, "modulus 16 is not prime"),
    (BackwardTask, {"length": 2}, "length 2 is too short"),
    (ShuffledTask, {"length": 16}, "length 16 is no multiple of 3"),
    (OpaqueTask, {"length": 20}, "length 20 is too short"),
    (LengthTask, {"length": 51}, "length 51 exceeds room 50"),
    (ModulusTask, {"modulus": 23}, "modulus 23 exceeds symbols 19"),
    (HeldoutTask, {"bucket": 5}, "bucket 5 does not exist"),
    (HeldoutTask, {"split": "test"}, "split 'test' is none of train, held, full"),
    (HeldoutTask, {"modulus": 2, "bucket": 2}, "modulus 2 leaves bucket 2 empty"),
]


@pytest.mark.parametrize(("kind", "options", "message"), REFUSED, ids=[message for _, _, message in REFUSED])
def test_bad_settings_are_named(kind, options, message):
    with pytest.raises(ConfigError, match=message):
        kind(**options)


@pytest.mark.parametrize("damage", ["repeat", "separator", "symbol"])
def test_a_malformed_opaque_header_is_refused(damage):
    task = OpaqueTask(modulus=3, length=8)
    tokens = task.sample(4, generator("header")).tokens
    row, place = {"repeat": (1, 0), "separator": (2, 3), "symbol": (0, 5)}[damage]
    tokens[row, place] = tokens[row, 1] if damage != "symbol" else 3
    with pytest.raises(ConfigError, match=r"opens with each of 0\.\.2 once, then the separator 3"):
        task.posterior(tokens)
