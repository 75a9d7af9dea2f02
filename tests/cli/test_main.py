"""The real entry point: what it prints, what it refuses, and that nothing is left behind."""

import json
import os
import subprocess
import sys

import pytest

from wallprobe import cli
from wallprobe.store import runs, storage

COMMANDS = list(cli.COMMANDS)
TRAIN = ["train", "--steps", "3", "--compile", "off"]


HELP = """
import sys
sys.argv = ["wallprobe", *COMMAND, "--help"]
from wallprobe.cli import main
try:
    main()
except SystemExit:
    pass
heavy = {"torch", "transformer_lens", "transformers", "xarray", "numpy", "plotly", "nnsight", "circuitsvis", "pydantic"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else 0)
"""
INTERCHANGE_SUMMARY = set("src dst layer site align p_rule p_import p_own noise_floor self_patch_max_change n_pairs".split())  # noqa: SIM905


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("command", [[], *[[name] for name in COMMANDS]])
def test_help_imports_neither_torch_nor_transformer_lens(command):
    code = HELP.replace("COMMAND", repr(command))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


def test_every_command_is_listed(invoke):
    code, out, _ = invoke("--help")
    assert code == 0
    assert all(name in out for name in COMMANDS)


def test_the_bundled_runs_are_there(invoke):
    code, out, _ = invoke("runs", "--json")
    found = json.loads(out)
    assert code == 0
    assert {"kind", "summary", "values", "manifest"} <= found.keys()
    by_name = {row["name"]: row for row in found["summary"]}
    assert {"c0", "c1", "p1", "p5"} <= by_name.keys()
    for name in ("c0", "c1", "p1", "p5"):
        row = by_name[name]
        assert set(row) == {"name", "condition", "seed", "preset", "steps", "weight_hash", "bundled"}
        assert (row["condition"], row["seed"], row["preset"], row["bundled"]) == (name, 42, "small", True)


def test_interchange_on_the_bundled_runs(invoke, tmp_path):
    code, out, err = invoke("interchange", "--src", "p5", "--dst", "c0", "--layer", "3")
    assert code == 0, err
    for words in (
        "p5 -> c0",
        "own answer",
        "donor's rule",
        "random donor",
        "noise floor 1/17 = 0.059",
        "self-patch changed 0",
        "share an initialisation",
    ):
        assert words in out
    sentence = [line for line in out.splitlines() if line.startswith("Patching p5's resid_pre into c0")]
    assert len(sentence) == 1
    assert len(list((tmp_path / "results").iterdir())) == 1


def test_a_sweep_over_a_grid_of_runs(invoke, tmp_path):
    arguments = ["interchange", "--sweep", "--src", "p5,c1", "--dst", "c0", "--site", "resid_pre,z", "--layer", "4,5", "--pairs", "60"]
    code, out, err = invoke(*arguments)
    assert (code, len(list((tmp_path / "results").iterdir()))) == (0, 2), err
    assert "p5 -> c0" in out
    assert "From c1 to c0, raw states" in out
    assert "self-patches changed 0" in out
    one = json.loads(invoke(*arguments[:3], "p5", *arguments[4:], "--json")[1])
    assert set("src dst align n_cells seconds peak_gib max_p_rule max_p_import noise_floor".split()) <= one["summary"].keys()  # noqa: SIM905
    assert one["summary"]["n_cells"] == 2 * 2 * 5 - 4
    assert len(json.loads(invoke(*arguments, "--json")[1])["sweeps"]) == 2


def test_interchange_json_is_one_object(invoke):
    code, out, _ = invoke("interchange", "--src", "p5", "--dst", "c0", "--layer", "3", "--json")
    found = json.loads(out)
    assert code == 0
    summary = found["summary"]
    assert summary.keys() >= INTERCHANGE_SUMMARY
    assert (summary["src"], summary["dst"], summary["layer"], summary["self_patch_max_change"]) == ("p5", "c0", 3, 0.0)
    assert [record["index"] for record in found["values"]] == [3, 4]


def test_eval_of_the_bundled_runs_shows_the_wall_and_its_erosion(invoke):
    """c0 keeps the wall; c1 and p5 lose it in entropy while their mass stays off the Bayes-best token."""
    code, out, _ = invoke("eval", "c0", "c1", "p1", "p5", "--json")
    assert code == 0
    found = json.loads(out)
    rows = {row["run"]: row for row in found["summary"]}
    assert list(rows) == ["c0", "c1", "p1", "p5"]
    assert rows["c0"]["trained_mae"] <= 0.06
    assert rows["c0"]["wall_ratio"] >= 25
    assert rows["c1"]["wall_ratio"] < 3
    assert rows["p5"]["wall_ratio"] < 3
    for name in ("c1", "p5"):
        assert rows[name]["bayes_best_mass"] < 0.5 * rows[name]["bayes_best_posterior"]
    assert {record["run"] for record in found["values"]} == set(rows)
    assert len(found["values"]) == 4 * 15


def test_eval_prints_the_published_figures_beside(invoke):
    code, out, _ = invoke("eval", "c0", "--sequences", "200")
    assert code == 0
    for words in ("wall ratio", "(76)", "(1.54)", "Bayes-best mass", "position"):
        assert words in out
    assert json.loads(invoke("eval", "c0", "--sequences", "200", "--json")[1])["summary"]["run"] == "c0"


def test_attention_and_runs_print(invoke):
    code, out, _ = invoke("attention", "c0", "--tokens", "1,2,3,4,5,6")
    assert code == 0
    assert "c0 on 1 2 3 4 5 6" in out
    code, out, _ = invoke("runs")
    assert code == 0
    assert "bundled" in out


def test_train_then_use_the_run(invoke, tmp_path):
    code, out, err = invoke(*TRAIN, "c0", "--seed", "5")
    assert code == 0, err
    assert everything(tmp_path) == [
        "runs",
        "runs/c0@5",
        "runs/c0@5/eval",
        "runs/c0@5/eval/arrays.nc",
        "runs/c0@5/eval/result.json",
        "runs/c0@5/manifest.json",
        "runs/c0@5/weights.safetensors",
    ]
    assert "has not learnt the task" in out
    found = json.loads(invoke(*TRAIN, "c0", "--seed", "5", "--json")[1])
    assert found["summary"][0]["name"] == "c0@5"
    manifest = json.loads((tmp_path / "runs/c0@5/manifest.json").read_text())
    assert manifest["command"] == "wallprobe train --steps 3 --compile off c0 --seed 5"
    assert invoke("interchange", "--src", "c0@5", "--dst", "c0")[0] == 0


REFUSALS = [
    (["train", "c9"], "no condition named 'c9'; there are: c0, c1"),
    (["train", "c0@x"], "'c0@x' is not a run name"),
    (["train", "c0", "--preset", "huge"], "no preset named 'huge'; there are: small, paper, tiny"),
    (["train", "c0", "--device", "abacus"], "device 'abacus' cannot be used here"),
    (["train", "c0", "--modulus", "16"], "modulus 16 is not prime"),
    (["train", "c0", "--compile", "maybe"], "--compile 'maybe' is none of auto, on, off"),
    (["eval", "c9"], "no run named 'c9' in runs or bundled; there are: "),
    (["interchange", "--src", "nobody", "--dst", "c0"], "no run named 'nobody'"),
    (["interchange", "--src", "p5", "--dst", "c0", "--layer", "6"], "layer 6 does not exist in p5 and c0; give 0 to 5, or all"),
    (["interchange", "--src", "p5", "--dst", "c0", "--layer", "x"], "--layer 'x' is not a number"),
    (["interchange", "--src", "p5", "--dst", "c0", "--index", "7"], "index 7 cannot matter"),
    (["interchange", "--src", "p5", "--dst", "c0", "--index", "all"], "--index 'all' is not a number"),
    (["interchange", "--src", "p5,c1", "--dst", "c0"], "--src p5,c1 is a list; give one, or --sweep for all of them"),
    (["interchange", "--sweep", "--src", "p5", "--dst", "c0,c9"], "no run named 'c9'"),
    (["interchange", "--sweep", "--src", "p5", "--dst", "c0", "--site", "nose"], "no site named 'nose'; there are: resid_pre"),
    (["interchange", "--sweep", "--src", "p5", "--dst", "c0", "--budget", "0.01"], "more than the budget of 0.01"),
    (["interchange", "--src", "p5", "--dst", "c0", "--site", "nose"], "no site named 'nose'; there are: resid_pre"),
    (["attention", "c0", "--tokens", "1,2,99"], "token 99 is outside the vocabulary 0..16"),
    (["attention", "c0", "--example", "poem"], "example 'poem' is none of program, noise"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS, ids=[" ".join(arguments) for arguments, _ in REFUSALS])
def test_bad_input_gets_one_line_and_leaves_nothing(invoke, tmp_path, arguments, message):
    code, out, err = invoke(*arguments)
    assert code == 2
    assert out == ""
    lines = err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("wallprobe: ")
    assert message in lines[0]
    assert everything(tmp_path) == []


@pytest.fixture
def local_c0(invoke, tmp_path):
    """A local run c0 that shadows the bundled one."""
    assert invoke(*TRAIN, "c0")[0] == 0
    return tmp_path / "runs" / "c0@42"


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_damaged_checkpoint_gets_one_line(invoke, tmp_path, local_c0, damage):
    weights = local_c0 / runs.WEIGHTS
    data = bytearray(weights.read_bytes())
    if damage == "missing":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(data[:-1])
    else:
        data[1000] ^= 1
        weights.write_bytes(data)
    before = everything(tmp_path)
    for arguments in (["interchange", "--src", "p5", "--dst", "c0"], ["eval", "c0"], ["attention", "c0"], ["gains", "c0"]):
        code, out, err = invoke(*arguments)
        assert (code, out) == (2, "")
        assert len(err.strip().splitlines()) == 1
        assert {"missing": "has no weights", "truncated": "truncated", "flipped": "altered"}[damage] in err
    assert everything(tmp_path) == before


def test_a_width_mismatch_gets_one_line(invoke, tmp_path, write_run):
    from wallprobe.training.wall import lean

    shape = lean.Shape(n_layers=6, d_model=24, n_heads=3, n_ctx=16, vocabulary=17)
    write_run(tmp_path / "runs", "p5", lean.init_params(shape, 0), shape)
    before = everything(tmp_path)
    code, out, err = invoke("interchange", "--src", "p5", "--dst", "c0", "--layer", "3")
    assert (code, out) == (2, "")
    assert err == ("wallprobe: p5 is 24 wide and c0 96: their residual streams do not fit; use --align ridge, or runs of one preset\n")
    assert everything(tmp_path) == before


def test_an_unwritable_store_gets_one_line(invoke, tmp_path):
    (tmp_path / "taken").write_text("a file, not a folder")
    for arguments in (
        ["eval", "c0", "--sequences", "50", "--results", "taken"],
        ["interchange", "--src", "p5", "--dst", "c0", "--results", "taken"],
        [*TRAIN, "c0", "--runs", "taken"],
    ):
        code, out, err = invoke(*arguments)
        assert (code, out) == (2, "")
        assert err.startswith("wallprobe: --r")
        assert err.endswith(" taken lies in taken, which is no folder; give a folder, there or to be made\n")
    assert everything(tmp_path) == ["taken"]


def test_a_full_disk_gets_one_line_and_leaves_no_half_file(invoke, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(storage.os, "fsync", full)
    for arguments in (["interchange", "--src", "p5", "--dst", "c0"], [*TRAIN, "c0"]):
        code, _, err = invoke(*arguments)
        assert code == 2
        assert "the disk is full" in err
        assert len(err.strip().splitlines()) == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_diverging_training_gets_one_line(invoke, monkeypatch):
    import dataclasses

    from wallprobe.training.wall import recipes

    wild = dataclasses.replace(
        recipes.RECIPES["small"], adam_lr=1e30, muon_lr=0.0, precision="fp32", n_layers=1, d_model=16, batch=4, warmup=0
    )
    monkeypatch.setattr(recipes, "RECIPES", {"small": wild})
    code, out, err = invoke("train", "c0", "--compile", "off", "--steps", "60")
    assert (code, out) == (2, "")
    assert "training c0 diverged before step" in err
    assert len(err.strip().splitlines()) == 1


def test_usage_errors_exit_with_two(invoke):
    assert invoke("interchange", "--src", "p5")[0] == 2
    assert invoke("nonsense")[0] == 2
