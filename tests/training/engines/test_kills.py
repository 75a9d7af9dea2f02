"""kill -9 of a sweep at ten random moments, its parent or one of its workers: nothing finished is lost, nothing is trained twice."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys

import pytest

from wallprobe.store import runs
from wallprobe.training.wall import loop

SWEEP = """
import json, sys, threading
from pathlib import Path
from wallprobe.training.wall import loop
from wallprobe.training.wall.conditions import get_condition
from wallprobe.training.engines.local import LocalEngine
from wallprobe.training.wall.recipes import Recipe
from wallprobe.training.engines.sweep import sweep
sizes = dict(preset="tiny", n_layers=1, d_model=8, n_heads=2, batch=4)
recipe = Recipe(**sizes, steps=600, muon_lr=0.01, adam_lr=1e-3, warmup=2, checkpoint_every=20)
jobs = [loop.Job(get_condition(name), recipe, seed) for seed in (42, 7) for name in ("c4", "c3", "p3")]
engine = LocalEngine(2, 1)
def tell(update):
    workers = [worker.process.pid for worker in engine._workers]
    step = update.step if update.cross_entropy is not None else None
    print(json.dumps([update.name.folder, update.state, step, workers]), flush=True)
sweep(jobs, Path(sys.argv[1]), threads=1, engine=engine, on_progress=tell)
"""
KILLS, RUNS = 10, 6


def start(store):
    return subprocess.Popen([sys.executable, "-W", "ignore", "-c", SWEEP, str(store)], stdout=subprocess.PIPE, text=True)


def updates(process):
    for line in process.stdout:
        with contextlib.suppress(ValueError):  # the last words of one that was killed in the middle of them
            yield json.loads(line)


def finished(store):
    """Every file of every finished run, with its inode and time of change: a rewrite would show, even to the same bytes."""
    found = {}
    for manifest in store.glob(f"*/{runs.MANIFEST}"):
        for name in (runs.MANIFEST, runs.WEIGHTS):
            path = manifest.with_name(name)
            status = path.stat()
            found[path] = path.read_bytes(), status.st_ino, status.st_mtime_ns
    return found


@pytest.mark.slow
def test_kill_minus_nine_at_ten_random_moments(tmp_path):
    with start(tmp_path / "whole") as process:
        whole = list(updates(process))
    assert process.returncode == 0
    store, draw = tmp_path / "cut", random.Random(0)
    store.mkdir()
    known, kills = {}, {"parent": 0, "worker": 0}
    while sum(kills.values()) < KILLS:
        there = {path.parent.name for path in known}
        checkpoints = {path.parent.name: loop.checkpoint_step(path.parent) for path in store.glob(f"*/{loop.CHECKPOINT}")}
        with start(store) as process:
            stop_at, victim = draw.randint(RUNS + 1, RUNS + 12), draw.choice(["parent", "worker"])
            for count, (folder, _state, step, workers) in enumerate(updates(process)):
                assert step is None or folder not in there, "a finished run was trained again"
                if step is not None and folder in checkpoints:
                    assert step > checkpoints.pop(folder), "an interrupted run was begun anew"
                if count >= stop_at and sum(kills.values()) < KILLS and (victim == "parent" or workers):
                    os.kill(process.pid if victim == "parent" else draw.choice(workers), signal.SIGKILL)
                    kills[victim] += 1
                    stop_at, victim = count + draw.randint(1, 12), draw.choice(["parent", "worker"])
        now = finished(store)
        assert all(now[path] == known[path] for path in known)
        known = now
        if process.returncode == 0:
            break
    assert sum(kills.values()) == KILLS, f"the sweep had finished after {kills}"
    with start(store) as process:
        list(updates(process))
    assert process.returncode == 0
    assert all(finished(store)[path] == known[path] for path in known)
    assert len(list(store.glob(f"*/{runs.EVALUATION}/result.json"))) == RUNS
    for path in (tmp_path / "whole").glob(f"*/{runs.WEIGHTS}"):
        assert (store / path.parent.name / runs.WEIGHTS).read_bytes() == path.read_bytes()
        names = sorted(entry.name for entry in (store / path.parent.name).iterdir())
        assert names == [runs.EVALUATION, runs.MANIFEST, runs.WEIGHTS]
    assert sum(1 for _, state, _, _ in whole if state == "trained") == RUNS
