"""The sweep on a local Ray of two workers, one of which is killed; run in a process of its own, as a user would."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from wallprobe.store import runs
from wallprobe.training.wall import loop
from wallprobe.training.wall.conditions import get_condition
from wallprobe.training.wall.recipes import Recipe

pytest.importorskip("ray", reason="Ray is not installed: pip install 'wallprobe[ray]'")

SIZES = {"n_layers": 1, "d_model": 8, "n_heads": 2, "batch": 4, "steps": 1000, "muon_lr": 0.01, "warmup": 2, "checkpoint_every": 20}
COMMAND = f"""
import sys
from wallprobe import cli
from wallprobe.training.wall import recipes
recipes.RECIPES = {{"small": recipes.Recipe(preset="small", **{SIZES!r})}}
sys.argv = ["wallprobe", *sys.argv[1:]]
cli.main()
"""


def command(store, *rest):
    arguments = ["train", "c4", "c3", "p3", "--engine", "ray", "--jobs", "2", "--threads", "1", "--compile", "off"]
    return [sys.executable, "-W", "ignore", "-c", COMMAND, *arguments, "--runs", str(store), *rest]


def holder(path):
    """The process that has a file open; None if there is none."""
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(descriptor) == str(path):
                return int(descriptor.parts[2])
    return None


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the worker to kill in /proc")
def test_a_ray_worker_killed_in_the_middle_is_retried_to_the_same_bytes(tmp_path, one_thread):
    store, steps = tmp_path / "ray", []
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    with subprocess.Popen(command(store, "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as sweep:
        deadline, killed = time.monotonic() + 300, None
        while killed is None and sweep.poll() is None and time.monotonic() < deadline:
            if loop.checkpoint_step(store / "c3@42") >= 100:
                killed = holder(store / ".c3@42.lock")
                if killed is not None:
                    steps.append(loop.checkpoint_step(store / "c3@42"))
                    os.kill(killed, signal.SIGKILL)
            time.sleep(0.01)
        while sweep.poll() is None and not (store / "c3@42" / runs.MANIFEST).exists() and time.monotonic() < deadline:
            steps.append(loop.checkpoint_step(store / "c3@42") or steps[-1])
            time.sleep(0.05)
        out, err = sweep.communicate(timeout=300)
    assert sweep.returncode == 0, err
    assert killed is not None
    assert steps == sorted(steps)  # resumed, not begun anew
    found = json.loads(out)
    assert (found["kind"], found["manifest"]["config"]["engine"], found["manifest"]["config"]["workers"]) == ("sweep", "ray", 2)
    assert [(row["name"], row["state"], row["error"]) for row in found["summary"]] == [(name, "trained", "") for name in ("c4", "c3", "p3")]

    recipe = Recipe(preset="small", **SIZES)
    for name in ("c3", "c4", "p3"):
        alone = loop.train(loop.Job(get_condition(name), recipe), tmp_path / "alone")
        assert alone.weights_path.read_bytes() == (store / f"{name}@42" / runs.WEIGHTS).read_bytes()

    stamps = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in store.rglob("*") if path.is_file()}
    again = subprocess.run(command(store, "--json"), capture_output=True, text=True, check=True, env=environment)
    assert [row["state"] for row in json.loads(again.stdout)["summary"]] == ["skipped"] * 3
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in store.rglob("*") if path.is_file()} == stamps
