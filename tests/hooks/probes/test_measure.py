"""What a probe is asked for, against an enumeration of all rules; and probes of states built by hand, where the answer is known."""

import itertools
import math

import numpy as np
import pytest
import torch

from wallprobe.errors import ConfigError, UnknownNameError
from wallprobe.hooks.probes import measure as probes
from wallprobe.hooks.probes.targets import TARGETS, check_targets, classification, rule_known
from wallprobe.rng import generator
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.tasks.registry import get_task
from wallprobe.training.wall import lean

TASK = RecurrenceTask(modulus=5, length=8)
SHAPE = lean.Shape(n_layers=2, d_model=16, n_heads=2, n_ctx=8, vocabulary=5)


def every_program(task):
    """All p^3 programs as the instrument draws them."""
    slope, offset, start = (axis.flatten() for axis in torch.meshgrid(*[torch.arange(task.modulus)] * 3, indexing="ij"))
    drawn = task.sample_programs(len(slope), generator("unused"))
    tokens = [start]
    for _ in range(task.length - 1):
        tokens.append((slope * tokens[-1] + offset) % task.modulus)
    return type(drawn)(torch.stack(tokens, dim=1), torch.ones(len(slope), dtype=torch.bool), slope, offset)


@pytest.mark.parametrize("modulus", [2, 3, 5])
def test_what_a_prefix_tells_of_a_and_b_by_enumeration(modulus):
    task = RecurrenceTask(modulus=modulus, length=6)
    drawn = every_program(task)
    slopes, offsets = rule_known(drawn.tokens)
    for row, tokens in enumerate(drawn.tokens.tolist()):
        for index in range(task.length - 1):
            prefix = tokens[: index + 1]
            rules = [
                (a, b)
                for a in range(modulus)
                for b in range(modulus)
                if all(after == (a * before + b) % modulus for before, after in itertools.pairwise(prefix))
            ]
            for place, known in enumerate((slopes, offsets)):
                left = [rule[place] for rule in rules]
                best = max(left.count(value) for value in left) / len(left)
                assert best == pytest.approx(1.0 if known[row, index] else 1 / modulus)


def test_labels_and_ceilings():
    drawn = TASK.sample(500, generator("labels"))
    exact = TASK.posterior(drawn.tokens)
    token = classification(TASK, drawn, exact, "token")
    known = exact.forced >= 0
    assert torch.equal(token.label[known], exact.forced[known])
    assert torch.equal(token.label[~known], drawn.tokens[:, 1:][~known])
    assert set(token.ceiling[known].tolist()) == {1.0}
    torch.testing.assert_close(token.ceiling[~known], torch.full_like(token.ceiling[~known], 0.2), rtol=0, atol=1e-12)
    kind = classification(TASK, drawn, exact, "class")
    torch.testing.assert_close(kind.ceiling[:, -1], torch.maximum(exact.program_weight, 1 - exact.program_weight)[:, -1])
    assert (kind.label[:, 3] == drawn.is_program.long()).all()
    slope = classification(TASK, drawn, exact, "a")
    assert torch.equal(slope.sequences, drawn.is_program)
    assert (slope.label == drawn.slope[:, None]).all()
    assert not bool(slope.identified[:, :2].any())


def test_targets_are_those_the_task_has():
    drawn = TASK.sample(4, generator("targets"))
    assert check_targets(None, drawn, TASK) == TARGETS
    assert check_targets(("entropy", "token", "token"), drawn, TASK) == ("token", "entropy")
    with pytest.raises(UnknownNameError, match="no probe target 'next'; there are: token, a, b, class, entropy"):
        check_targets(("next",), drawn, TASK)
    quadratic = get_task("quadratic")
    other = quadratic.sample(4, generator("targets"))
    assert check_targets(None, other, quadratic) == ("token", "class", "entropy")
    with pytest.raises(ConfigError, match="no slope a and offset b"):
        check_targets(("a",), other, quadratic)


def test_split_is_fixed_and_keeps_sequences_apart():
    split = probes.Split.of(160)
    assert (len(split.train), len(split.validation), len(split.test)) == (100, 20, 40)
    assert sorted(split.order.tolist()) == list(range(160))
    some = split.among(torch.arange(160) % 2 == 0)
    assert set(some.train.tolist()) == {row for row in split.train.tolist() if row % 2 == 0}
    assert set(some.test.tolist()) <= set(split.test.tolist())


@pytest.fixture(scope="module")
def planted():
    """Scores of states that hold token, slope, class and entropy at layer 1 and only noise at layer 0."""
    drawn = TASK.sample(1200, generator("planted"))
    exact = TASK.posterior(drawn.tokens)
    labels = {name: classification(TASK, drawn, exact, name) for name in ("token", "a", "b", "class")}
    rng = generator("planted noise")
    states = torch.randn(2, 7, 1200, 24, generator=rng)
    states[1, :, :, :5] += 8 * torch.nn.functional.one_hot(labels["token"].label, 5).transpose(0, 1)
    states[1, :, :, 5:10] += 8 * torch.nn.functional.one_hot(drawn.slope, 5)
    states[1, :, :, 10] += 8 * drawn.is_program
    states[1, :, :, 11] = exact.entropy.T.float()
    scores = probes.all_scores(states, probes.Split.of(1200), labels, exact.entropy, seed=0)
    return {one.target: one for one in scores}


def test_probes_find_what_was_planted_and_nothing_else(planted):
    means = {name: one.treated.double().mean(2) for name, one in planted.items() if name != "entropy"}
    for name in ("token", "a", "class"):
        assert means[name][1].min() > 0.97
    assert max(means[name][0].max() for name in ("a", "b")) < 0.35
    token = planted["token"]
    assert means["token"][0, 1:].max() < 0.35
    assert token.treated.shape == (2, 7, 300)
    assert planted["a"].treated.shape[2] < 200
    for name in ("token", "a", "b"):
        control = planted[name].control.double().mean(2)
        assert 0.1 < float(control.mean()) < 0.3
    assert 0.4 < float(planted["class"].control.double().mean()) < 0.6


def test_ridge_finds_the_planted_entropy(planted):
    entropy = planted["entropy"]
    errors, spread = entropy.treated.square().mean(2), entropy.truth[:, :, 0].var(2)
    assert float((1 - errors[1, 1:] / spread[1, 1:]).min()) > 0.99
    assert float((1 - errors[0, 1:] / spread[0, 1:]).max()) < 0.1
    assert float(spread[:, 0].max()) < 1e-12


def test_probe_of_a_run(write_run, tmp_path):
    run = write_run(tmp_path, "c0", lean.init_params(SHAPE, 0), SHAPE, TASK)
    told = []
    result = probes.probe(run, n=400, on_progress=told.append)
    assert result.kind == "probe"
    assert result.data["accuracy"].dims == ("layer", "index", "target")
    assert dict(result.data.sizes) == {"layer": 2, "index": 7, "target": 5}
    record = result.values[0]
    assert {"run", "target", "layer", "index", "accuracy", "selectivity", "r2"} <= set(record)
    assert (record["run"], record["layer"], record["index"], record["target"]) == ("c0", 0, 0, "token")
    for row in result.values:
        assert (row["accuracy"] is None) == (row["target"] == "entropy")
        if row["target"] == "entropy":
            assert (row["r2"] is None) == (row["index"] == 0)
            continue
        assert row["r2"] is None
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert row["selectivity"] == pytest.approx(row["accuracy"] - row["control_accuracy"])
        assert row["chance"] == pytest.approx(0.5 if row["target"] == "class" else 0.2)
    at_start = {row["target"]: row for row in result.values if row["index"] == 0}
    assert at_start["a"]["ceiling"] == pytest.approx(0.2)
    assert at_start["a"]["accuracy_identified"] is None
    assert told[0] == "load"
    summary = result.summary
    assert (summary["n_train"], summary["n_test"]) == (250, 100)
    last = result.data["accuracy"].sel(target="token", layer=1)
    assert summary["token_accuracy_5"] == pytest.approx(float(last.sel(index=4)))
    assert summary["token_accuracy_10"] is None
    horizon = int(run.manifest["horizon"])
    drop = float(last.sel(index=horizon - 1) - last.sel(index=horizon))
    assert summary["drop_after_horizon"] == pytest.approx(drop)


def test_probe_is_repeatable_takes_a_loaded_model_and_some_layers(write_run, tmp_path):
    from wallprobe import models

    run = write_run(tmp_path, "c0", lean.init_params(SHAPE, 0), SHAPE, TASK)
    given = {"layers": (1,), "site": "attn_out", "targets": ("class",), "n": 200}
    first, second = probes.probe(run, **given), probes.probe(models.load_run(run), **given)
    np.testing.assert_array_equal(first.data["accuracy"].values, second.data["accuracy"].values)
    assert first.data["layer"].values.tolist() == [1]
    assert first.summary["token_accuracy_5"] is None
    assert first.summary["site"] == "attn_out"


def test_what_cannot_be_probed_is_refused(write_run, tmp_path):
    run = write_run(tmp_path, "c0", lean.init_params(SHAPE, 0), SHAPE, TASK)
    with pytest.raises(ConfigError, match="layer 2 does not exist in c0; give 0 to 1, or 'all'"):
        probes.probe(run, layers=(2,))
    with pytest.raises(ConfigError, match="10 sequences are too few"):
        probes.probe(run, n=10)
    with pytest.raises(UnknownNameError, match="no site named 'mlp'"):
        probes.probe(run, site="mlp")


def test_resampled_r2_by_hand():
    from wallprobe.hooks.probes.report import Scores, figures

    truth = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
    errors = torch.tensor([0.5, -0.5, 0.5, -0.5], dtype=torch.float64)
    one = Scores(
        "entropy",
        treated=errors[None, None],
        control=(truth.mean() - truth)[None, None],
        strength=torch.ones(1, 1),
        chance=0.0,
        ceiling=torch.full((1, 4), math.nan, dtype=torch.float64),
        identified=torch.zeros(1, 4, dtype=torch.bool),
        train=4,
        truth=torch.stack([truth, truth])[None, None],
    )
    found = figures(one, 0)
    assert float(found["r2"]) == pytest.approx(1 - 0.25 / 1.25)
    assert float(found["control_r2"]) == pytest.approx(0.0)
    assert float(found["selectivity"]) == pytest.approx(0.8)
    assert float(found["r2_low"]) <= 0.8 <= float(found["r2_high"])
    assert "accuracy" not in found
