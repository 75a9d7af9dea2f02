"""Training: the same bytes twice, after a kill -9, and one clear refusal for everything that could go wrong."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from wallprobe import models
from wallprobe.errors import CheckpointError, ConfigError, DivergedError, StoreError
from wallprobe.rng import generator
from wallprobe.store import runs, staging, storage
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.training.wall import jobs, lean, loop
from wallprobe.training.wall.conditions import Condition, get_condition
from wallprobe.training.wall.evaluate import evaluate
from wallprobe.training.wall.recipes import Recipe

TINY = Recipe(
    preset="tiny",
    n_layers=2,
    d_model=16,
    n_heads=2,
    steps=130,
    batch=8,
    muon_lr=0.01,
    adam_lr=1e-3,
    warmup=2,
    checkpoint_every=20,
    precision="bf16",
)


BOTH = Condition("both", "none", "none", endogenous=("temperature", "gate"), summary="a temperature and gates at once")


def job(name="c1", teacher=None, **changes):
    condition = BOTH if name == "both" else get_condition(name)
    return loop.Job(condition, dataclasses.replace(TINY, **changes), teacher=teacher)


def test_the_same_training_twice_gives_the_same_bytes(tmp_path):
    first, second = (loop.train(job(), tmp_path / place) for place in "ab")
    assert first.weights_path.read_bytes() == second.weights_path.read_bytes()
    assert first.manifest["weight_hash"] == second.manifest["weight_hash"]
    other = loop.train(dataclasses.replace(job(), seed=7), tmp_path / "a")
    assert other.manifest["weight_hash"] != first.manifest["weight_hash"]
    assert sorted(path.name for path in first.path.iterdir()) == ["manifest.json", "weights.safetensors"]


@pytest.mark.parametrize("name", ["p3", "p6", "entropy-random", "self-entropy", "self-perturbation", "pulse", "both"])
def test_an_interrupted_training_resumes_to_the_same_bytes(tmp_path, name):
    """Also for signals that draw random numbers or come and go, for mechanisms, and with dropout."""
    whole = loop.train(job(name, dropout=0.1), tmp_path / "whole")

    class Stop(Exception):
        pass

    def stop(progress):
        if progress.step == 50:
            raise Stop

    with pytest.raises(Stop):
        loop.train(job(name, dropout=0.1), tmp_path / "cut", on_progress=stop)
    seen = []
    resumed = loop.train(job(name, dropout=0.1), tmp_path / "cut", on_progress=lambda progress: seen.append(progress.step))
    assert seen == [50, 100, 130]
    assert resumed.weights_path.read_bytes() == whole.weights_path.read_bytes()
    assert [entry["step"] for entry in resumed.manifest["log"]] == [50, 100, 130]


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from wallprobe.training.wall import loop
from wallprobe.training.wall.conditions import get_condition
from wallprobe.training.wall.recipes import Recipe
sizes = dict(preset="tiny", n_layers=2, d_model=16, n_heads=2, steps=400, batch=8)
recipe = Recipe(**sizes, muon_lr=0.01, adam_lr=1e-3, warmup=2, checkpoint_every=10)
loop.train(loop.Job(get_condition("p5"), recipe), Path(sys.argv[1]))
"""


def test_kill_minus_nine_then_the_same_command_gives_the_same_weights(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", SCRIPT]
    subprocess.run([*command, str(tmp_path / "whole")], check=True)
    whole = tmp_path / "whole" / "p5@42" / runs.WEIGHTS
    kills = 0
    for _ in range(2):
        process = subprocess.Popen([*command, str(tmp_path / "cut")])
        checkpoint = tmp_path / "cut" / "p5@42" / loop.CHECKPOINT
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
    assert kills == 2
    half = f"checkpoint.safetensors~{staging.Owner.here().host}~{process.pid}~1~0123abcd.tmp"
    (tmp_path / "cut" / staging.HIDDEN).mkdir(exist_ok=True)
    (tmp_path / "cut" / staging.HIDDEN / half).write_bytes(b"half a file")
    assert not (tmp_path / "cut" / "p5@42" / runs.MANIFEST).exists()
    subprocess.run([*command, str(tmp_path / "cut")], check=True)
    assert (tmp_path / "cut" / "p5@42" / runs.WEIGHTS).read_bytes() == whole.read_bytes()
    assert sorted(path.name for path in (tmp_path / "cut" / "p5@42").iterdir()) == [runs.MANIFEST, runs.WEIGHTS]
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["p5@42"]


def test_a_finished_run_is_returned_and_another_recipe_is_refused(tmp_path):
    run = loop.train(job(), tmp_path)
    stamp = run.weights_path.stat().st_mtime_ns
    assert loop.train(job(), tmp_path).weights_path.stat().st_mtime_ns == stamp
    with pytest.raises(CheckpointError, match=r"recipe.steps 130 there, 140 asked.*--force"):
        loop.train(job(steps=140), tmp_path)
    assert loop.train(job(steps=140), tmp_path, force=True).manifest["steps"] == 140


def test_an_unfinished_training_of_another_recipe_is_refused(tmp_path):
    trainer = loop.Trainer(job(), tmp_path / "c1@42")
    trainer.step()
    trainer.save()
    with pytest.raises(CheckpointError, match=r"belongs to another training \(recipe.batch 8 there, 9 asked\)"):
        loop.train(job(batch=9), tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "rubbish"])
def test_a_damaged_checkpoint_is_refused_and_kept(tmp_path, damage):
    trainer = loop.Trainer(job(), tmp_path / "c1@42")
    trainer.save()
    path = tmp_path / "c1@42" / loop.CHECKPOINT
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] if damage == "truncated" else os.urandom(200))
    with pytest.raises(CheckpointError, match=r"checkpoint .* is damaged .*--force"):
        loop.train(job(), tmp_path)
    assert path.exists()


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(tmp_path):
    trainer = loop.Trainer(job(), tmp_path / "c1@42")
    trainer.save()
    good = (tmp_path / "c1@42" / loop.CHECKPOINT).read_bytes()
    with pytest.raises(DivergedError, match=r"training c1 diverged before step 20: loss (nan|inf)"):
        loop.train(job(adam_lr=1e30, weight_decay=0.0, precision="fp32"), tmp_path / "other")
    assert sorted(path.name for path in (tmp_path / "other" / "c1@42").iterdir()) == []
    assert (tmp_path / "c1@42" / loop.CHECKPOINT).read_bytes() == good


def test_a_full_disk_leaves_no_half_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(StoreError, match="the disk is full"):
        loop.train(job(), tmp_path)
    assert list((tmp_path / "c1@42").iterdir()) == []


def test_an_unwritable_store_is_named(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    with pytest.raises(StoreError, match=f"cannot write {blocker}"):
        loop.train(job(), blocker)
    assert blocker.read_text() == "not a folder"


def test_distillation_uses_the_trained_teacher(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "BUNDLED", tmp_path / "nothing bundled")
    with pytest.raises(ConfigError, match=r"learns from run c3, which is not there; train it first: wallprobe train c3"):
        loop.train(job("c4"), tmp_path)
    loop.train(job("c3"), tmp_path)
    run = loop.train(job("c4"), tmp_path)
    assert run.manifest["config"]["condition"]["teacher"] == "c3"
    with pytest.raises(ConfigError, match="same preset"):
        loop.train(job("c4", d_model=32), tmp_path, force=True)


def test_any_run_of_the_same_task_can_teach(tmp_path):
    """By name, by name and seed, or by folder; of another width and depth, and with its own mechanisms."""
    wide = loop.train(job("both", d_model=32, n_layers=3, steps=3), tmp_path)
    by_name, by_folder = (jobs.load_teacher(job("c4", teacher=given), tmp_path) for given in ("both@42", str(wide.path)))
    assert by_name.name == by_folder.name == "both"
    assert by_name.shape == lean.Shape(3, 32, 2, 16, 17)
    assert {"gate_w", "temperature_in_w"} <= by_name.params.keys()
    run = loop.train(job("c4", teacher="both@42", steps=3), tmp_path)
    assert run.manifest["config"]["teacher"] == "both@42"
    assert run.manifest["teacher"] == {"name": "both", "weight_hash": wide.manifest["weight_hash"]}
    with pytest.raises(CheckpointError, match="teacher both@42 there, None asked"):
        loop.train(job("c4", steps=3), tmp_path)


def test_a_teacher_that_cannot_teach_is_one_clear_line(tmp_path):
    with pytest.raises(ConfigError, match="condition c4 learns from run c3@7, which is not there; train it first: wallprobe train c3@7"):
        loop.train(job("c4", teacher="c3@7"), tmp_path)
    with pytest.raises(ConfigError, match="condition c1 learns from no teacher, but c3 was given; teachers are for c4"):
        loop.train(job("c1", teacher="c3"), tmp_path)
    loop.train(dataclasses.replace(job("c3", steps=1), task=RecurrenceTask(modulus=5)), tmp_path)
    with pytest.raises(
        ConfigError, match=r"teacher c3 knows 5 tokens and 16 indices, this training has 17 and 16; give a teacher of the same"
    ):
        loop.train(job("c4", teacher="c3"), tmp_path)
    assert not list(tmp_path.glob("c[14]@42/*"))


def test_a_teacher_that_was_trained_again_ends_what_it_began(tmp_path):
    loop.train(job("c3", steps=2), tmp_path)
    trainer = loop.Trainer(job("c4"), tmp_path / "c4@42", teacher=jobs.load_teacher(job("c4"), tmp_path))
    trainer.save()
    loop.train(job("c3", steps=4), tmp_path, force=True)
    with pytest.raises(CheckpointError, match="learnt from another teacher than run c3 is now; start again with --force"):
        loop.train(job("c4"), tmp_path)


def test_what_an_endogenous_condition_learnt_is_there_when_it_is_loaded(tmp_path):
    run = loop.train(job("both", adam_lr=0.05), tmp_path)
    params = lean.from_hooked(run.tensors(), job("both").shape)
    loaded = models.load("both", root=tmp_path)
    tokens = job().task.sample(64, generator("tokens")).tokens
    logits, plain = (lean.forward(given, tokens, job("both").shape)[0] for given in (params, {name: params[name] for name in lean.NAMES}))
    assert (loaded.model(tokens) - logits).abs().max().item() < 1e-5
    assert (plain - logits).abs().max().item() > 1e-3
    table = evaluate(run, sequences=64).data
    entropy = -(logits[:, :-1].softmax(-1) * logits[:, :-1].log_softmax(-1)).sum(-1).mean(0) / torch.tensor(2.0).log()
    assert table["entropy_model"].shape == entropy.shape == (15,)
    assert run.manifest["parameters"] == sum(tensor.numel() for tensor in params.values())


def test_a_schedule_logs_the_signal_and_the_wall_also_while_it_is_off(tmp_path):
    run = loop.train(job("removed-1-3", steps=150), tmp_path)
    assert [entry["step"] for entry in run.manifest["log"]] == [50, 100, 150]
    for entry in run.manifest["log"]:
        assert entry.keys() == {"step", "cross_entropy", "signal", "trained_mae", "untrained_mae"}
        assert min(entry.values()) > 0
    last = loop.Trainer(job("removed-1-3", steps=150), tmp_path)
    last.params = lean.from_hooked(run.tensors(), last.job.shape)
    assert last.wall() == pytest.approx({key: run.manifest["log"][-1][key] for key in ("trained_mae", "untrained_mae")}, abs=1e-6)
    assert last.wall() == pytest.approx(
        {key: evaluate(run).summary[key] for key in ("trained_mae", "untrained_mae")}, rel=0.2
    )  # other sequences, the same figures


def test_training_lowers_the_supervised_loss_and_writes_a_full_manifest(tmp_path):
    run = loop.train(job("c0", steps=300, batch=32), tmp_path)
    log = run.manifest["log"]
    assert log[-1]["cross_entropy"] < log[0]["cross_entropy"]
    for key in (
        "command",
        "config",
        "versions",
        "source",
        "device",
        "dtype",
        "threads",
        "wall_time_s",
        "peak_memory_mib",
        "weight_hash",
        "shape",
        "task",
    ):
        assert key in run.manifest
    assert json.loads((run.path / "manifest.json").read_text())["weight_processing"] == "none"
    assert torch.isfinite(run.tensors()["unembed.W_U"]).all()
