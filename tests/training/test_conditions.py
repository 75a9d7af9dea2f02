"""What each condition's signal is, and that its gradient enters where it says."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from wallprobe.errors import ConfigError, UnknownNameError
from wallprobe.rng import generator
from wallprobe.runs import RunName
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.training import lean
from wallprobe.training.conditions import Condition, Schedule, conditions, get_condition
from wallprobe.training.loop import Job, Trainer
from wallprobe.training.recipes import RECIPES, Recipe, get_recipe
from wallprobe.training.signals import ROUTES, SIGNALS, Output, StepData, entropy_bits

TINY = Recipe(preset="tiny", n_layers=2, d_model=16, n_heads=2, steps=8, batch=16, muon_lr=0.01, adam_lr=1e-3, warmup=2)
NOWHERE = Path("never-written")
THIRTEEN = ["c0", "c1", "c2", "c3", "c4", "c5", "p1", "p2", "p3", "p4", "p5", "p6", "s1"]


def step_data(count=64, seed=0):
    task = RecurrenceTask()
    drawn = task.sample(count, generator(seed, "signal test"))
    posterior = task.posterior(drawn.tokens, torch.float32)
    logits = torch.randn(count, 15, 17, generator=generator(seed, "teacher"))
    return StepData(drawn.tokens, drawn.is_program.float(), posterior, logits, generator(seed, "signal"))


def test_all_thirteen_are_registered_and_compose_known_parts():
    known = conditions()
    assert list(known) == THIRTEEN
    for condition in known.values():
        assert condition.signal in SIGNALS
        assert condition.route in ROUTES
        assert condition.summary


def test_unknown_condition_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"no condition named 'c9'.*c0, c1"):
        get_condition("c9")


def test_position_masks():
    assert sum(Condition("x", "entropy", "softmax_entropy").position_mask(16, 5)) == 10
    assert Condition("x", "entropy", "softmax_entropy").position_mask(16, 5)[:6] == [False] * 5 + [True]
    assert Condition("x", "entropy", "softmax_entropy", positions=(6, 14)).position_mask(16, 5).index(True) == 5
    assert all(Condition("x", "entropy", "softmax_entropy", positions="all").position_mask(16, 5))
    with pytest.raises(ConfigError, match=r"\[16\] lie outside 1..15"):
        Condition("x", "entropy", "softmax_entropy", positions=(16,)).position_mask(16, 5)


def test_schedule_is_half_open():
    schedule = Schedule(0.25, 0.5)
    assert [schedule.factor(step, 8) for step in range(8)] == [0, 0, 1, 1, 0, 0, 0, 0]


def test_signals_carry_the_information_they_name():
    data = step_data()
    exact = data.posterior
    assert torch.equal(SIGNALS["entropy"](data), exact.entropy)
    assert torch.equal(SIGNALS["program_weight"](data), exact.program_weight)
    assert torch.equal(SIGNALS["token"](data), data.tokens[:, 1:])
    assert SIGNALS["uniform_entropy"](data).unique().tolist() == pytest.approx([math.log2(17)])
    assert torch.equal(SIGNALS["program_label"](data)[:, 3], data.label)
    shuffled = SIGNALS["shuffled_weight"](step_data())
    assert not torch.equal(shuffled, exact.program_weight)
    torch.testing.assert_close(shuffled.sort(0).values, exact.program_weight.sort(0).values, rtol=0, atol=0)
    labels = SIGNALS["random_label"](step_data(2000))
    assert set(labels.unique().tolist()) == {0.0, 1.0}
    assert abs(torch.corrcoef(torch.stack([labels[:, 0], step_data(2000).label]))[0, 1].item()) < 0.1


def test_routes_are_zero_at_their_target():
    data = step_data()
    probs = data.posterior.predictive
    logits = probs.clamp(min=1e-30).log()
    output = Output(logits, torch.zeros(64, 15, 4), SIGNALS["program_weight"](data))
    assert ROUTES["softmax_entropy"](output, data.posterior.entropy).max().item() < 1e-8
    assert ROUTES["scalar_mse"](output, data.posterior.program_weight).max().item() == 0
    assert ROUTES["residual_jump"](output, torch.zeros(64, 15)).max().item() == 0
    teacher = (logits / 2).softmax(-1)
    assert ROUTES["softmax_kl"](output, teacher).abs().max().item() < 1e-5
    # The peak of the exact answer stands for w wherever a program forces a token.
    forced = data.posterior.forced >= 0
    assert ROUTES["softmax_peak"](output, data.posterior.program_weight)[forced].max().item() < 1e-8
    torch.testing.assert_close(entropy_bits(logits), data.posterior.entropy, rtol=0, atol=1e-4)


def gradients(name, teacher=None):
    """Gradient of the signal's loss alone, by parameter."""
    trainer = Trainer(Job(get_condition(name), TINY), folder=NOWHERE, teacher=teacher)
    rng = generator("shake")
    trainer.params = {key: tensor + 0.1 * torch.randn(tensor.shape, generator=rng) for key, tensor in trainer.params.items()}
    tokens, target = trainer._batch()
    leaves = {key: tensor.requires_grad_(True) for key, tensor in trainer.params.items()}
    _, signal = trainer._losses(leaves, tokens, target)
    grads = torch.autograd.grad(signal, list(leaves.values()), allow_unused=True)
    return {key: 0.0 if grad is None else float(grad.abs().max()) for key, grad in zip(leaves, grads, strict=True)}


@pytest.mark.parametrize("name", [name for name in THIRTEEN if name != "c0"])
def test_the_gradient_enters_where_the_route_says(name):
    teacher = lean.init_params(Job(get_condition("c3"), TINY).shape, 9) if name == "c4" else None
    grads = gradients(name, teacher)
    assert grads["W_Q"] > 0
    assert grads["W_E"] > 0
    through_softmax = get_condition(name).route.startswith("softmax")
    assert (grads["W_U"] > 0) is through_softmax
    if get_condition(name).route.startswith("scalar"):
        assert grads["head_w"] > 0


def test_c0_never_looks_past_the_horizon():
    """The same gradient from the supervised prefix as from whole sequences under a full-length condition of weight 0."""
    short = Trainer(Job(get_condition("c0"), TINY), folder=NOWHERE)
    silent = dataclasses.replace(get_condition("c1"), weight=0.0)
    long = Trainer(Job(silent, TINY), folder=NOWHERE)
    assert short._batch()[0].shape == (16, 6)
    assert long._batch()[0].shape == (16, 16)
    short.step(), long.step()
    for name, tensor in short.params.items():
        torch.testing.assert_close(tensor, long.params[name], rtol=0, atol=2e-4)


def test_a_trained_teacher_is_asked_for():
    with pytest.raises(ConfigError, match="c4 needs a teacher"):
        Trainer(Job(get_condition("c4"), TINY), folder=NOWHERE)


def test_recipes_and_names():
    assert get_recipe("small", steps=7).steps == 7
    assert RECIPES["small"].factor(0) < RECIPES["small"].factor(300) == 1.0 > RECIPES["small"].factor(9_000)
    assert RECIPES["paper"].factor(75_000) == pytest.approx(0.5)
    with pytest.raises(UnknownNameError, match="no preset named 'huge'; there are: small, paper"):
        get_recipe("huge")
    with pytest.raises(ConfigError, match="d_model 10 is not a multiple of n_heads 4"):
        dataclasses.replace(TINY, d_model=10, n_heads=4)
    assert str(RunName.parse("p5@42")) == "p5"
    assert RunName.parse("p5@1337").folder == "p5@1337"
    for text in ("P5", "p5@", "p5@x", "../p5", ""):
        with pytest.raises(UnknownNameError):
            RunName.parse(text)
