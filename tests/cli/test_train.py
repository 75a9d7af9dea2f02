"""`wallprobe train` of many runs: what it prints, what it refuses, how it is interrupted."""

import json
import os
import signal
import subprocess
import sys

import pytest

from wallprobe.store import runs
from wallprobe.training.engines import sweep
from wallprobe.training.wall import loop, recipes

TINY = recipes.Recipe(preset="small", n_layers=1, d_model=8, n_heads=2, steps=20, batch=4, warmup=2, checkpoint_every=10)
RECORD = set("name condition seed state path steps wall_time_s weight_hash trained_mae wall_ratio error".split())  # noqa: SIM905


@pytest.fixture
def train(invoke, monkeypatch):
    """Run `wallprobe train` with a tiny recipe; returns (exit code, stdout, stderr)."""
    monkeypatch.setattr(recipes, "RECIPES", {"small": TINY})
    return lambda *arguments: invoke("train", *arguments, "--compile", "off")


def test_a_sweep_of_finished_runs_prints_its_table_and_one_object(train, tmp_path):
    for name in ("c0", "c0@1337"):
        assert train(name)[0] == 0
    code, out, err = train("c0", "--seeds", "2")
    assert (code, err) == (0, "")
    for words in ("2 of 2 runs finished", "c0@1337", "there already", "trained MAE", "wall ratio"):
        assert words in out
    found = json.loads(train("c0", "--seeds", "2", "--json")[1])
    assert found["kind"] == "sweep"
    assert found["values"] == []
    assert [set(row) for row in found["summary"]] == [RECORD] * 2
    assert [(row["name"], row["seed"], row["state"], row["steps"]) for row in found["summary"]] == [
        ("c0", 42, "skipped", 20),
        ("c0@1337", 1337, "skipped", 20),
    ]
    assert found["manifest"]["config"]["seeds"] == [42, 1337]
    manifest = json.loads((tmp_path / "runs" / "c0@1337" / runs.MANIFEST).read_text())
    assert found["summary"][1]["weight_hash"] == manifest["weight_hash"]
    again = json.loads(train("c0", "--json")[1])
    assert again["kind"] == "train"
    assert again["summary"][0]["weight_hash"] == found["summary"][0]["weight_hash"]


def test_a_run_that_fails_is_told_at_the_end_with_exit_code_two(train):
    assert train("c0")[0] == 0
    assert train("c1")[0] == 0
    code, out, err = train("c0", "c1", "--steps", "30", "--json")
    assert code == 2
    assert [row["state"] for row in json.loads(out)["summary"]] == ["failed", "failed"]
    last = err.strip().splitlines()[-2:]
    assert last[0].startswith("wallprobe: c0 failed: ")
    assert last[1].startswith("wallprobe: c1 failed: ")
    assert "recipe.steps 20 there, 30 asked" in last[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "nothing to train: give conditions (wallprobe train c0 c1) or --matrix wall"),
        (("--matrix", "roof"), "no matrix named 'roof'; there are: wall"),
        (("c0", "--seeds", "3", "--seed", "7"), "--seed and --seeds exclude each other"),
        (("c0", "--seeds", "42"), "--seeds 42 asks for 42 seeds; give 1 to 5, or a list of your own: --seeds 42,"),
        (("c0", "--seeds", "few"), "--seeds 'few' is neither how many (3) nor which ones (42,7)"),
        (("c0", "c1", "--engine", "steam"), "no engine named 'steam'; there are: local, ray"),
        (("c0", "c9"), "no condition named 'c9'"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(train, tmp_path, arguments, message):
    code, out, err = train(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("wallprobe: ")
    assert len(err.splitlines()) == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_being_trained_gets_one_line(train, tmp_path):
    folder = tmp_path / "runs" / "c0@42"
    folder.mkdir(parents=True)
    with loop.own(folder):
        code, out, err = train("c0")
    assert (code, out) == (2, "")
    assert err == ("wallprobe: another process is training runs/c0@42; wait until it has finished, end it, or use another --runs folder\n")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--matrix", "wall"), 13),
        (("--matrix", "wall", "--seeds", "3"), 39),
        (("c0", "c1", "p5", "--seeds", "3"), 9),
        (("--matrix", "wall", "c0", "--seeds", "42,7", "p5@3"), 27),
        (("c0", "c1@7", "c1@7", "--seed", "5"), 2),
    ],
)
def test_what_is_swept(train, monkeypatch, words, expected):
    asked = []

    def note(jobs, root, **settings):
        asked.append(([job.name for job in jobs], settings))
        return [sweep.Outcome(job.name, "skipped") for job in jobs]

    monkeypatch.setattr(sweep, "sweep", note)
    code, _, err = train(*words, "--jobs", "2", "--threads", "3")
    assert code == 0, err
    ((names, settings),) = asked
    assert len(names) == len(set(names)) == expected
    assert (settings["workers"], settings["threads"], settings["engine"], settings["compile"]) == (2, 3, "local", False)


INTERRUPTED = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
from wallprobe import cli
from wallprobe.training.wall import recipes
sizes = dict(n_layers=1, d_model=8, n_heads=2, batch=4, warmup=2)
recipes.RECIPES = {"small": recipes.Recipe(preset="small", **sizes, steps=10**6, checkpoint_every=10**6)}
sys.argv = ["wallprobe", "train", "c0", "p3", "--jobs", "2", "--compile", "off"]
from wallprobe.cli import sweeping
sweeping.LOG_SECONDS = 0.0
cli.main()
"""


def test_ctrl_c_saves_checkpoints_and_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-W", "ignore", "-c", INTERRUPTED]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stderr:
            if line.count(" of 1000000") == 2 and "starting" not in line:
                break
        os.kill(process.pid, signal.SIGINT)
        rest = process.stderr.read()
        assert process.stdout.read() == ""
    assert process.returncode == 130
    assert rest.strip().splitlines()[-1] == "wallprobe: interrupted; run the same command again to go on"
    for name in ("c0@42", "p3@42"):
        assert loop.checkpoint_step(tmp_path / "runs" / name) >= 50
        with loop.own(tmp_path / "runs" / name):
            pass
