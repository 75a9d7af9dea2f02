"""Every task variant through training and evaluation; a run measured on another task than its own."""

import json

import pytest
import torch

from wallprobe.errors import ConfigError
from wallprobe.rng import generator
from wallprobe.store import runs
from wallprobe.tasks.registry import change, get_task, tasks
from wallprobe.training.wall import batches, lean, loop
from wallprobe.training.wall.conditions import get_condition
from wallprobe.training.wall.evaluate import evaluate
from wallprobe.training.wall.recipes import Recipe

TINY = Recipe(preset="tiny", n_layers=1, d_model=8, n_heads=2, steps=20, batch=4, adam_lr=1e-3)


def trained(root, name, condition="c0"):
    return loop.train(loop.Job(get_condition(condition), TINY, task=get_task(name)), root)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("condition", ["c0", "p5"])
@pytest.mark.parametrize("name", sorted(tasks()))
def test_every_variant_trains_and_is_measured(store, name, condition):
    run, task = trained(store, name, condition), get_task(name)
    assert str(run.name) == condition + ("" if name == "recurrence" else f"-{name}")
    assert runs.find_run(str(run.name), store).manifest == run.manifest
    assert (run.manifest["condition"], run.manifest["horizon"]) == (condition, task.start + 5)
    result = evaluate(run, sequences=40)
    json.dumps(result.to_json(), allow_nan=False)
    assert result.summary["task"] == name
    assert result.data["position"].values.tolist() == list(range(task.start + 1, task.length))
    mae = result.data["mae"].values
    assert result.summary["trained_mae"] == pytest.approx(mae[:5].mean())
    assert result.summary["untrained_mae"] == pytest.approx(mae[5:].mean())


def test_the_header_is_not_supervised(store):
    """c0 on opaque: the loss is the cross-entropy at the body's first K positions alone."""
    trainer = loop.Trainer(loop.Job(get_condition("c0"), TINY, task=get_task("opaque")), store / "unused")
    tokens = get_task("opaque").sample(batches.DRAW * 4, generator(42, "data", 0)).tokens[:4]
    logits = lean.forward(trainer.params, tokens[:, :-1], trainer.job.shape)[0]
    by_hand = -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[:, 18:23].mean()
    torch.testing.assert_close(trainer.step()[0], by_hand, rtol=0, atol=1e-5)


def test_a_distilled_variant_learns_from_a_teacher_of_its_task(store):
    with pytest.raises(ConfigError, match="learns from run c3-quadratic, which is not there"):
        trained(store, "quadratic", "c4")


def test_measured_on_longer_sequences_other_moduli_and_held_prefixes(store):
    run = trained(store, "length")
    assert run.manifest["shape"]["n_ctx"] == 50
    for length in (16, 32, 50):
        result = evaluate(run, task=get_task("length", length=length), sequences=20)
        assert result.data.sizes["position"] == length - 1
        assert result.summary["task"] == f"length-length-{length}"
        assert result.summary["finding"].startswith(f"c0-length on length-length-{length} ")
    run = trained(store, "modulus")
    result = evaluate(run, task=get_task("modulus", modulus=19), sequences=20)
    assert result.data["entropy_exact"].values[0] == pytest.approx(torch.tensor(19.0).log2().item())
    run = trained(store, "heldout-prefix")
    own = evaluate(run, sequences=200)
    held = evaluate(run, task=change(get_task("heldout-prefix"), split="held"), sequences=200)
    assert held.data["entropy_exact"].values[1] > own.data["entropy_exact"].values[1]
    assert held.manifest["config"]["task"]["split"] == "held"


def test_a_task_that_does_not_fit_the_network_is_refused(store):
    run = trained(store, "recurrence")
    for name, options, message in (
        ("modulus", {}, r"run c0 knows 17 tokens, task modulus has 19; .*symbols=N"),
        ("length", {"length": 32}, r"run c0 has positions for 16 tokens, task length-length-32 has 32; .*room=N"),
        ("recurrence", {"length": 6}, r"task recurrence-length-6 has no position beyond 5"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate(run, task=get_task(name, **options), sequences=20)
    assert evaluate(run, task=get_task("quadratic"), sequences=20).manifest["subject"] == "c0 on quadratic"
