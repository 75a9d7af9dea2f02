"""The trainer: the same bytes after an interruption, snapshots, warm starts, the controller, and the experiments at preset tiny."""

import dataclasses
import math

import pytest
import torch

from wallprobe import models
from wallprobe.errors import CheckpointError, ConfigError, UnknownNameError
from wallprobe.store import runs
from wallprobe.training.equilibrium import experiments
from wallprobe.training.equilibrium.control import Watch, classify, penalty, servo
from wallprobe.training.equilibrium.job import Control, EqJob, from_config, preset
from wallprobe.training.equilibrium.loop import STATE, finished, train
from wallprobe.training.wall.loop import CHECKPOINT

TINY = preset("tiny")


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", ["eqprop", "bp"])
def test_an_interrupted_training_ends_in_the_same_bytes(tmp_path, method):
    options = (("r", "auto"),) if method == "eqprop" else ()
    job = EqJob("once", TINY, method, options)
    whole = train(job, tmp_path / "a")

    def kill(told):
        if told.step == 8:
            raise Killed

    with pytest.raises(Killed):
        train(job, tmp_path / "b", on_progress=kill)
    assert (tmp_path / "b" / "once@42" / CHECKPOINT).is_file()
    assert finished(job, tmp_path / "b") is None
    again = train(job, tmp_path / "b")
    for name in ("once@42", "once-s6@42", "once-s12@42"):
        left, right = ((tmp_path / store / name / runs.WEIGHTS).read_bytes() for store in "ab")
        assert left == right, name
    for key in ("log", "series", "residuals", "weight_hash", "status"):
        assert whole.manifest[key] == again.manifest[key], key
    assert not (again.path / CHECKPOINT).exists()


def test_a_run_loads_by_name_as_what_it_is(tmp_path):
    train(EqJob("fixed", TINY), tmp_path)
    train(EqJob("plain", TINY, "bp"), tmp_path)
    fixed, plain = (models.load(name, root=tmp_path) for name in ("fixed", "plain"))
    assert (fixed.kind, plain.kind) == ("equilibrium", "run")
    assert (fixed.n_layers, fixed.d_model) == (plain.n_layers, plain.d_model) == (1, 16)
    idx = torch.arange(8)[None]
    assert fixed.model(idx).shape == plain.model(idx).shape == (1, 8, 37)
    assert plain.model.cfg.act_fn == "gelu_new"
    snapshot = models.load("fixed-s6", root=tmp_path)
    assert snapshot.run.manifest["steps"] == 6
    assert (snapshot.run.path / STATE).is_file()
    kinds = {str(run.name): run.kind for run in runs.list_runs(tmp_path)}
    assert (kinds["fixed"], kinds["plain"], kinds["c0"]) == ("equilibrium", "run", "run")


def test_validation_is_the_model_s_own_mean_cross_entropy(tmp_path):
    from wallprobe.tasks.text import from_manifest

    run = train(EqJob("fixed", TINY), tmp_path)
    text = from_manifest(run.manifest["task"])
    x, y = text.held_out(TINY.val_windows, 8)
    model = models.load_run(run).model
    loss = -model(x).double().log_softmax(-1).gather(-1, y[..., None]).mean()
    assert float(loss) == pytest.approx(run.manifest["best_val"], abs=1e-6)


def test_a_finished_run_is_returned_and_another_configuration_refused(tmp_path):
    job = EqJob("fixed", TINY)
    first = train(job, tmp_path)
    assert train(job, tmp_path).manifest == first.manifest
    with pytest.raises(CheckpointError, match="another training"):
        train(job.changed("fixed", lr=1e-4), tmp_path)
    assert from_config(first.manifest["config"]) == dataclasses.replace(job, recipe=dataclasses.replace(TINY, checkpoint_every=25))


def test_a_warm_start_takes_moments_average_and_lambda(tmp_path):
    base = EqJob("base", TINY)
    first = train(base, tmp_path)
    more = train(base.changed("more", warm="base", steps=1, warmup=0, snapshots=(), lr=1e-9), tmp_path)
    assert more.manifest["log"][0]["val"] == pytest.approx(first.manifest["log"][-1]["val"], abs=1e-6)
    assert more.manifest["log"][0]["lam"] == pytest.approx(first.manifest["lam"])
    from safetensors.torch import load_file

    before, after = (load_file(run.path / STATE) for run in (first, more))
    assert float(after["o.0.step"]) == float(before["o.0.step"]) + 1
    with pytest.raises(UnknownNameError):
        train(base.changed("none", warm="nowhere"), tmp_path)


def test_prewarm_contracts_and_does_not_learn(tmp_path):
    model = dataclasses.replace(TINY.model, resinit=0.3)
    recipe = dataclasses.replace(TINY, model=model, steps=1, prewarm=40, warmup=0, snapshots=(0,))
    train(EqJob("cold", dataclasses.replace(recipe, prewarm=0)), tmp_path)
    train(EqJob("warmed", recipe), tmp_path)
    both = [models.load(f"{name}-s0", root=tmp_path).model for name in ("cold", "warmed")]
    x = torch.randint(37, (4, 8), generator=torch.Generator().manual_seed(0))
    sizes = []
    for model in both:
        z, draws = model.relax(model.embedded(x)).z, torch.Generator().manual_seed(1)
        with torch.no_grad():
            sizes.append(float(torch.stack([penalty(model, z, draws) for _ in range(50)]).mean()))
    assert sizes[1] < 0.5 * sizes[0]
    start, end = (dict(model.named_parameters()) for model in both)
    assert torch.equal(start["unembed.W_U"], end["unembed.W_U"])  # no task gradient reached it
    assert not torch.equal(start["blocks.0.mlp.W_out"], end["blocks.0.mlp.W_out"])


def test_a_shut_gate_leaves_the_task_out(tmp_path):
    recipe = dataclasses.replace(TINY, control=Control(gate=1e-12), snapshots=(0,))
    run = train(EqJob("shut", recipe), tmp_path)
    assert run.manifest["residuals"]["skips"] == recipe.steps
    assert run.manifest["residuals"]["first_valid"] is None
    before, after = (runs.find_run(name, tmp_path).tensors()["unembed.W_U"] for name in ("shut-s0", "shut"))
    assert torch.equal(before, after)
    other = train(EqJob("open", dataclasses.replace(recipe, control=Control(gate=1e-12, gate_mode="ep")), "bptt"), tmp_path)
    assert other.manifest["residuals"]["skips"] == 0


def test_the_servo_steers_and_stays_within_its_limits():
    limits = Control(floor=0.1, most=8.0, target=1e-3, kappa=0.1)
    assert servo(1.0, 1e-1, limits) == pytest.approx(math.exp(0.1))
    assert servo(1.0, 1e-6, limits) == pytest.approx(math.exp(-0.1))
    assert servo(1.0, 1e-3 * math.e**0.5, limits) == pytest.approx(math.exp(0.05))
    assert servo(7.9, 1.0, limits) == 8.0
    assert servo(0.1, 0.0, limits) == 0.1
    assert servo(1.0, math.inf, limits) > 1


def test_excursions_the_fuse_and_a_lodged_run():
    limits = Control(target=1e-3, fuse=0.1, patience=3)
    watch = Watch()
    for step, (res, skipped) in enumerate([(0.5, True), (5e-4, False), (2e-2, False), (5e-3, False), (5e-4, False), (3e-2, False)]):
        watch.see(step, res, skipped, limits)
    assert (watch.skips, watch.first_valid, watch.excursions, watch.status) == (1, 1, 2, "running")
    for step in range(3):
        watch.see(step, 0.2, False, limits)
    assert watch.status == "fused"
    other = Watch()
    other.see(0, math.inf, False, limits)
    assert other.status == "diverged"
    calm = Watch()
    assert calm.judge(0, 2.0)
    for step in range(100):
        calm.see(step, 5e-2, False, limits)
    assert not calm.judge(100, 2.6)
    assert calm.lodged_at == 100
    calm.judge(101, 2.1)
    assert calm.lodged_at is None
    assert Watch.of(calm.config()) == calm


def test_plateaus_are_told_apart():
    limits = Control(target=1e-3, most=8.0)
    many = 100
    still = [math.nan] * many
    assert classify([1e-2] * many, [8.0] * many, [True] * many, still, limits).kind == "invalid"
    assert classify([1e-5] * many, [0.1] * many, [False] * many, still, limits).kind == "over-contracted"
    swinging = [1.0 + 0.1 * (step % 2) for step in range(many)]
    assert classify([2e-3] * many, swinging, [False] * many, still, limits).kind == "controller fight"
    assert classify([2e-3] * many, [1.0] * many, [False] * many, [-0.9] * many, limits).kind == "controller fight"
    assert classify([2e-3] * many, [1.0] * many, [False] * many, [0.1] * many, limits).kind == "none"


def test_what_cannot_be_trained_is_refused():
    with pytest.raises(ConfigError, match="above its maximum"):
        Control(floor=4.0, most=2.0)
    with pytest.raises(UnknownNameError, match="gate mode"):
        Control(gate_mode="some")
    with pytest.raises(ConfigError, match="snapshot at step 99"):
        dataclasses.replace(TINY, snapshots=(99,))
    with pytest.raises(ConfigError, match="two or more"):
        experiments.GridSettings(seeds=(1,))
    with pytest.raises(ConfigError, match="above its maximum"):
        experiments.grid_jobs(EqJob("base", TINY), experiments.GridSettings(floors=(9.0,), jr_maxs=(4.0,)), "x")
    with pytest.raises(UnknownNameError, match="no preset"):
        preset("huge")


def test_the_grid_changes_one_thing_at_a_time():
    settings = experiments.GridSettings()
    assert settings.settings()[0] == (0.1, 1.5e-3, 32.0)
    assert len(settings.settings()) == 1 + 2 + 2 + 3
    assert len(dataclasses.replace(settings, mode="full").settings()) == 36


@pytest.mark.slow
def test_small_embeddings_and_a_warm_up_shut_the_gate_on_one_seed(tmp_path):
    """One draw, not a law: with seed 42 it is arm B that is shut out (docs/equilibrium.md)."""
    result = experiments.gate_study(experiments.gate_jobs(experiments.gate_settings("demo"), "demo", 1), tmp_path, workers=1)
    skipped = {row["arm"]: row["skip_share"] for row in result.values}
    assert skipped["A"] > skipped["B"] > skipped["C"]
    assert skipped["A"] > 0.9
