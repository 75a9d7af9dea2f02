"""What each condition's signal is, and that its gradient enters where it says."""

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from wallprobe.errors import ConfigError, UnknownNameError
from wallprobe.rng import generator
from wallprobe.store import runs
from wallprobe.store.runs import RunName
from wallprobe.store.storage import read_json
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.tasks.registry import get_task
from wallprobe.training.wall import lean
from wallprobe.training.wall.conditions import AXES, Condition, Schedule, built_in, conditions, get_condition, matrix, teachers_first
from wallprobe.training.wall.jobs import Job, Teacher
from wallprobe.training.wall.loop import Trainer
from wallprobe.training.wall.recipes import RECIPES, Recipe, get_recipe
from wallprobe.training.wall.signals import INTROSPECTIVE, Output, StepData, entropy_bits, routes, signals

TINY = Recipe(preset="tiny", n_layers=2, d_model=16, n_heads=2, steps=8, batch=16, muon_lr=0.01, adam_lr=1e-3, warmup=2)
NOWHERE = Path("never-written")
THIRTEEN = ["c0", "c1", "c2", "c3", "c4", "c5", "p1", "p2", "p3", "p4", "p5", "p6", "s1"]


AXIS_MEMBERS = {
    "wrong-entropy": ["c1", "c2", "entropy-0p5", "entropy-1", "entropy-2p08", "entropy-3", "entropy-random"],
    "mask": ["c1", "mask-6", "mask-10", "mask-14", "mask-alternate"],
    "schedule": ["c1", "late-1-3", "late-2-3", "removed-1-3", "pulse", "pulse-short"],
    "introspection": ["c0", "self-entropy", "self-perturbation"],
    "endogenous": ["c0", "temperature", "forget-gate"],
}
WITH_SIGNAL = [name for name, condition in built_in().items() if condition.needs_full_length]


def step_data(count=64, seed=0, **changes):
    task = RecurrenceTask()
    drawn = task.sample(count, generator(seed, "signal test"))
    posterior = task.posterior(drawn.tokens, torch.float32)
    logits = torch.randn(count, 15, 17, generator=generator(seed, "teacher"))
    return StepData(drawn.tokens, drawn.is_program.float(), posterior, logits, generator(seed, "signal"), symbols=17, **changes)


def test_every_condition_is_registered_and_composes_known_parts():
    known = conditions()
    assert list(known)[:13] == THIRTEEN
    for name, condition in known.items():
        assert condition.signal in signals()
        assert condition.route in routes()
        assert condition.summary
        assert str(RunName.parse(name)) == name
        assert set(condition.axes) <= set(AXES)
    parts = [{key: value for key, value in condition.config().items() if key not in ("name", "summary")} for condition in known.values()]
    assert all(parts.count(part) == 1 for part in parts)


def test_matrices_select_by_axis():
    assert [condition.name for condition in matrix("wall")] == THIRTEEN == [condition.name for condition in matrix("grid")]
    assert {axis: [condition.name for condition in matrix(axis)] for axis in AXIS_MEMBERS} == AXIS_MEMBERS
    assert {condition.name for condition in matrix("axes")} == {name for members in AXIS_MEMBERS.values() for name in members}
    assert {condition.name for condition in matrix("all")} == set(conditions())
    with pytest.raises(UnknownNameError, match=r"no matrix named 'x'; there are: wall, axes, all, wrong-entropy, mask"):
        matrix("x")


def test_teachers_come_before_their_students():
    backwards = [get_condition(name) for name in ("p5", "c5", "c4", "c3", "c0")]
    assert [condition.name for condition in teachers_first(backwards)] == ["p5", "c5", "c3", "c4", "c0"]
    pupil = Condition("x", "teacher", "softmax_kl", teacher="c4@7")
    assert [condition.name for condition in teachers_first([pupil, *backwards])] == ["c3", "c4", "x", "p5", "c5", "c0"]


@pytest.mark.parametrize("name", ["c0", "c1", "p1", "p5"])
def test_conditions_are_still_those_of_the_bundled_runs(name):
    """Fields that came later are absent at their default, and which axis lists a condition is no part of its training."""
    manifest = read_json(runs.BUNDLED / f"{name}@42" / runs.MANIFEST)
    assert Job(get_condition(name), TINY).config()["condition"] == manifest["config"]["condition"]


def test_what_cannot_be_composed_is_named():
    with pytest.raises(ConfigError, match="condition x: no mechanism named warp; there are: temperature, gate"):
        Condition("x", "none", "none", endogenous=("warp",))
    for fields in ({"signal": "constant_entropy"}, {"signal": "entropy", "constant": 1.0}):
        with pytest.raises(ConfigError, match="signal 'constant_entropy' and the field `constant`"):
            Condition("x", route="softmax_entropy", **fields)


def test_unknown_condition_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"no condition named 'c9'.*c0, c1"):
        get_condition("c9")


def test_position_masks():
    assert sum(Condition("x", "entropy", "softmax_entropy").position_mask(16, 5)) == 10
    assert Condition("x", "entropy", "softmax_entropy").position_mask(16, 5)[:6] == [False] * 5 + [True]
    assert Condition("x", "entropy", "softmax_entropy", positions=(6, 14)).position_mask(16, 5).index(True) == 5
    assert all(Condition("x", "entropy", "softmax_entropy", positions="all").position_mask(16, 5))
    alternate = get_condition("mask-alternate").position_mask(16, 5)
    assert [position for position, reached in enumerate(alternate, start=1) if reached] == [6, 8, 10, 12, 14]
    with pytest.raises(ConfigError, match="positions 'odd' is none of 'all', 'unsupervised', 'alternate'"):
        Condition("x", "entropy", "softmax_entropy", positions="odd").position_mask(16, 5)
    with pytest.raises(ConfigError, match=r"\[16\] lie outside 1..15"):
        Condition("x", "entropy", "softmax_entropy", positions=(16,)).position_mask(16, 5)


def test_schedule_is_half_open():
    schedule = Schedule(0.25, 0.5)
    assert [schedule.factor(step, 8) for step in range(8)] == [0, 0, 1, 1, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("name", "on"),
    [
        ("c1", range(150)),
        ("late-1-3", range(50, 150)),
        ("late-2-3", range(100, 150)),
        ("removed-1-3", range(50)),
        ("pulse", range(50, 100)),
        ("pulse-short", range(50, 60)),
        ("c0", range(0)),
    ],
)
def test_schedules_of_the_axis(name, on):
    """The published run has 150,000 steps: 1/3 is 50,000."""
    condition = get_condition(name)
    for scale in (1, 1000):
        steps = [step for step in range(0, 150 * scale, scale) if condition.is_on(step, 150 * scale)]
        assert steps == [step * scale for step in on]


def test_signals_carry_the_information_they_name():
    data = step_data()
    exact = data.posterior
    assert torch.equal(signals()["entropy"](data), exact.entropy)
    assert torch.equal(signals()["program_weight"](data), exact.program_weight)
    assert torch.equal(signals()["token"](data), data.tokens[:, 1:])
    assert signals()["uniform_entropy"](data).unique().tolist() == pytest.approx([math.log2(17)])
    assert torch.equal(signals()["program_label"](data)[:, 3], data.label)
    shuffled = signals()["shuffled_weight"](step_data())
    assert not torch.equal(shuffled, exact.program_weight)
    torch.testing.assert_close(shuffled.sort(0).values, exact.program_weight.sort(0).values, rtol=0, atol=0)
    labels = signals()["random_label"](step_data(2000))
    assert set(labels.unique().tolist()) == {0.0, 1.0}
    assert abs(torch.corrcoef(torch.stack([labels[:, 0], step_data(2000).label]))[0, 1].item()) < 0.1


@pytest.mark.parametrize(("name", "bits"), [("entropy-0p5", 0.5), ("entropy-1", 1.0), ("entropy-2p08", 2.08), ("entropy-3", 3.0)])
def test_constant_entropy_is_that_many_bits_everywhere(name, bits):
    condition = get_condition(name)
    target = signals()[condition.signal](step_data(constant=condition.constant))
    assert target.shape == (64, 15)
    assert target.unique().tolist() == pytest.approx([bits])


def test_random_entropy_is_uniform_and_drawn_for_each_position():
    target = signals()["random_entropy"](step_data(2000))
    assert torch.equal(target, signals()["random_entropy"](step_data(2000)))
    assert 0 <= target.min().item() < 0.01
    assert math.log2(17) - 0.01 < target.max().item() <= math.log2(17)
    assert target.mean().item() == pytest.approx(math.log2(17) / 2, abs=0.03)
    assert target.std().item() == pytest.approx(math.log2(17) / 12**0.5, abs=0.03)
    assert torch.corrcoef(target.T).fill_diagonal_(0).abs().max().item() < 0.1


def test_introspective_targets_by_hand():
    """Entropies 1.75 and 2 bits of distributions over four tokens; a head reading 2.75 misses the first by one bit. A nudge of a tenth
    that moves entropy by a quarter of a bit is 2.5 bits a unit."""
    peaked, flat = torch.tensor([0.5, 0.25, 0.125, 0.125]).log(), torch.zeros(4)
    logits = torch.stack([peaked, flat])[None].requires_grad_(True)
    head = torch.tensor([[2.75, 2.75]], requires_grad=True)
    output = Output(logits, torch.zeros(1, 2, 3), head, plain=flat.expand(1, 2, 4), nudged=torch.stack([peaked, flat])[None], symbols=4)
    own = INTROSPECTIVE["self_entropy"](output)
    torch.testing.assert_close(own, torch.tensor([[1.75, 2.0]]), rtol=0, atol=1e-6)
    loss = routes()["scalar_mse"](output, own)
    torch.testing.assert_close(loss, torch.tensor([[1.0, 0.5625]]), rtol=0, atol=1e-6)
    by_head, by_logits = torch.autograd.grad(loss.sum(), [head, logits], allow_unused=True)
    torch.testing.assert_close(by_head, torch.tensor([[2.0, 1.5]]), rtol=0, atol=1e-6)
    assert by_logits is None
    torch.testing.assert_close(INTROSPECTIVE["self_perturbation"](output), torch.tensor([[2.5, 0.0]]), rtol=0, atol=1e-5)


def test_uniform_means_over_the_symbols_not_over_the_vocabulary():
    """A vocabulary of 18 with 17 symbols: log2 17 bits; a peak of 1/17 says certainly noise."""
    task = get_task("opaque")
    drawn = task.sample(4, generator("opaque signals"))
    posterior = task.posterior(drawn.tokens, torch.float32)
    data = StepData(drawn.tokens, drawn.is_program.float(), posterior, None, generator("draws"), symbols=task.modulus)
    assert posterior.predictive.shape[-1] == 18
    torch.testing.assert_close(signals()["uniform_entropy"](data), torch.full_like(posterior.entropy, 4.087463), rtol=0, atol=1e-5)
    even = torch.zeros(1, 1, 18)
    even[..., 17] = -torch.inf
    output = Output(even, torch.zeros(1, 1, 3), None, symbols=17)
    assert routes()["softmax_peak"](output, torch.zeros(1, 1)).item() < 1e-12


def test_the_nudge_is_a_unit_vector_for_each_index():
    nudge = signals()["self_perturbation"](step_data(d_model=8))
    assert nudge.shape == (64, 15, 8)
    torch.testing.assert_close(nudge.norm(dim=-1), torch.ones(64, 15), rtol=0, atol=1e-6)
    assert nudge.mean().abs().item() < 0.02


def test_routes_are_zero_at_their_target():
    data = step_data()
    probs = data.posterior.predictive
    logits = probs.clamp(min=1e-30).log()
    output = Output(logits, torch.zeros(64, 15, 4), signals()["program_weight"](data), symbols=17)
    assert routes()["softmax_entropy"](output, data.posterior.entropy).max().item() < 1e-8
    assert routes()["scalar_mse"](output, data.posterior.program_weight).max().item() == 0
    assert routes()["residual_jump"](output, torch.zeros(64, 15)).max().item() == 0
    teacher = (logits / 2).softmax(-1)
    assert routes()["softmax_kl"](output, teacher).abs().max().item() < 1e-5
    # The peak of the exact answer stands for w wherever a program forces a token.
    forced = data.posterior.forced >= 0
    assert routes()["softmax_peak"](output, data.posterior.program_weight)[forced].max().item() < 1e-8
    torch.testing.assert_close(entropy_bits(logits), data.posterior.entropy, rtol=0, atol=1e-4)


def on_trainer(name):
    """A trainer at a step where the signal is on, its parameters away from their initial zeros and ones."""
    job = Job(get_condition(name), TINY)
    teacher = Teacher("c3", lean.init_params(job.shape, 9), job.shape) if name == "c4" else None
    trainer = Trainer(job, folder=NOWHERE, teacher=teacher)
    trainer.step_number = next(step for step in range(TINY.steps) if job.condition.is_on(step, TINY.steps))
    rng = generator("shake")
    trainer.params = {key: tensor + 0.1 * torch.randn(tensor.shape, generator=rng) for key, tensor in trainer.params.items()}
    return trainer


@pytest.mark.parametrize("name", WITH_SIGNAL)
def test_the_gradient_enters_where_the_route_says_and_nowhere_else(name, monkeypatch):
    """Through the logits or past them, and at the asked positions alone: zero, not small, at every other."""
    condition, outputs = get_condition(name), []

    def forward(*args, **kwargs):
        result = original(*args, **kwargs)
        outputs.append(result)
        return result

    trainer, original = on_trainer(name), lean.forward
    leaves = {key: tensor.requires_grad_(True) for key, tensor in trainer.params.items()}
    tokens, target, _ = trainer._batch()
    monkeypatch.setattr(lean, "forward", forward)
    _, signal = trainer._losses(leaves, tokens, target)
    logits, residual = outputs[0]
    assert all(not other.requires_grad for pair in outputs[1:] for other in pair)
    grads = torch.autograd.grad(signal, [logits, residual, *leaves.values()], allow_unused=True)
    by_logits, by_residual = grads[:2]
    size = {key: 0.0 if grad is None else float(grad.abs().max()) for key, grad in zip(leaves, grads[2:], strict=True)}

    mask = torch.tensor(condition.position_mask(16, 5))
    if condition.route == "residual_jump":  # a jump has two ends
        mask = mask | mask.roll(-1)
    assert torch.equal(by_residual.abs().sum((0, 2)) > 0, mask)
    through_softmax = condition.route.startswith("softmax")
    assert (by_logits is not None) is through_softmax
    if through_softmax:
        assert torch.equal(by_logits.abs().sum((0, 2)) > 0, mask)
    assert min(size["W_Q"], size["W_E"]) > 0
    assert (size["W_U"] > 0) is through_softmax
    assert ("head_w" in size) is condition.route.startswith("scalar")
    assert "head_w" not in size or size["head_w"] > 0


@pytest.mark.parametrize("name", ["c1", "late-1-3", "p1", "self-perturbation"])
def test_a_step_without_signal_has_the_gradient_of_the_whole_sequences(name):
    """Attention is causal: the supervised loss of whole sequences has the prefix's gradient, to rounding."""
    trainer = on_trainer(name)
    leaves = {key: tensor.requires_grad_(True) for key, tensor in trainer.params.items()}
    found = {}
    for whole in (True, False):
        tokens, target, _ = trainer._batch(whole)
        assert tokens.shape == (16, 16 if whole else 6)
        assert (target is None) is not whole
        loss = trainer._losses(leaves, tokens, target)[0]
        found[whole] = (loss, *torch.autograd.grad(loss, list(leaves.values()), allow_unused=True))
    for one, other in zip(found[True], found[False], strict=True):
        assert (one is None) is (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_c0_and_a_mechanism_alone_never_look_past_the_horizon():
    for name in ("c0", "temperature", "forget-gate"):
        trainer = Trainer(Job(get_condition(name), TINY), folder=NOWHERE)
        tokens, target, _ = trainer._batch(get_condition(name).is_on(0, TINY.steps))
        assert tokens.shape == (16, 6)
        assert target is None


@pytest.mark.parametrize(("name", "other", "same_until"), [("late-1-3", "c0", 3), ("removed-1-3", "c1", 3), ("pulse-short", "c0", 3)])
def test_a_schedule_is_bit_for_bit_another_condition_until_it_departs(name, other, same_until):
    recipe = dataclasses.replace(TINY, steps=9)
    one, two = (Trainer(Job(get_condition(which), recipe), folder=NOWHERE) for which in (name, other))
    for step in range(1, 6):
        one.step(), two.step()
        same = all(torch.equal(tensor, two.params[key]) for key, tensor in one.params.items())
        assert same is (step <= same_until)


def test_mechanisms_start_from_the_same_network():
    plain, temperature, gate = (Trainer(Job(get_condition(name), TINY), folder=NOWHERE) for name in ("c0", "temperature", "forget-gate"))
    for other in (temperature, gate):
        assert all(torch.equal(tensor, other.params[key]) for key, tensor in plain.params.items())
    tokens = plain._batch(False)[0][:, :-1]
    logits = lean.forward(plain.params, tokens, plain.job.shape)[0]
    torch.testing.assert_close(lean.forward(temperature.params, tokens, plain.job.shape)[0], logits, rtol=1e-6, atol=1e-6)
    for trainer in (temperature, gate):
        before = {key: tensor.clone() for key, tensor in trainer.params.items()}
        for _ in range(3):
            trainer.step()
        added = trainer.params.keys() - plain.params.keys()
        assert added
        assert all(not torch.equal(trainer.params[key], before[key]) for key in added)


def test_a_trained_teacher_is_asked_for():
    with pytest.raises(ConfigError, match="c4 needs a teacher"):
        Trainer(Job(get_condition("c4"), TINY), folder=NOWHERE)


def test_recipes_and_names():
    assert get_recipe("small", steps=7).steps == 7
    assert RECIPES["small"].factor(0) < RECIPES["small"].factor(300) == 1.0 > RECIPES["small"].factor(9_000)
    assert RECIPES["paper"].factor(75_000) == pytest.approx(0.5)
    with pytest.raises(UnknownNameError, match="no preset named 'huge'; there are: small, paper, tiny"):
        get_recipe("huge")
    with pytest.raises(ConfigError, match="d_model 10 is not a multiple of n_heads 4"):
        dataclasses.replace(TINY, d_model=10, n_heads=4)
    assert str(RunName.parse("p5@42")) == "p5"
    assert RunName.parse("p5@1337").folder == "p5@1337"
    for text in ("P5", "p5@", "p5@x", "../p5", ""):
        with pytest.raises(UnknownNameError):
            RunName.parse(text)
