"""`wallprobe equilibrium` through its entry point: one record a table row, refusals on one line, and the whole campaign at preset tiny."""

import json

import pytest

from wallprobe.store.results import list_results
from wallprobe.training.equilibrium import loop


def records(out):
    return json.loads(out)["summary"]


def test_train_says_what_it_did_and_says_it_again_without_training(invoke, tmp_path):
    code, out, _ = invoke("equilibrium", "train", "--preset", "tiny", "--json")
    assert code == 0
    (record,) = records(out)
    assert (record["run"], record["status"], record["steps"]) == ("eq-tiny-ep", "done", 12)
    assert record["best_val"] < 3.62  # log 37 is 3.61
    weights = tmp_path / "runs" / "eq-tiny-ep@42" / "weights.safetensors"
    before = weights.stat().st_mtime_ns
    code, out, _ = invoke("equilibrium", "train", "--preset", "tiny")
    assert code == 0
    assert "eq-tiny-ep: done after 12 steps of eqprop" in out.replace("\n", " ")
    assert weights.stat().st_mtime_ns == before
    code, out, _ = invoke("runs", "--json")
    assert {row["name"]: row["steps"] for row in json.loads(out)["summary"]}["eq-tiny-ep-s6"] == 6
    assert invoke("runs")[0] == 0
    code, out, err = invoke("eval", "eq-tiny-ep")
    assert (code, out) == (2, "")
    assert "reads text" in err


def test_train_takes_fields_options_and_a_text_file(invoke, tmp_path):
    (tmp_path / "own.txt").write_text("So it goes on and on, and round and round. " * 60)
    changes = ("--set", "d_model=8", "--set", "lr=1e-2", "--option", "r=auto", "--steps", "3", "--snapshots", "2", "--name", "mine")
    code, out, err = invoke("equilibrium", "train", "--preset", "tiny", "--text", "own.txt", *changes, "--json")
    assert code == 0, err
    whole = json.loads(out)
    config = whole["manifest"]["config"]["runs"][0]
    assert (config["recipe"]["model"]["d_model"], config["recipe"]["lr"], config["options"]) == (8, 1e-2, {"r": "auto"})
    assert (config["recipe"]["text"]["source"], config["recipe"]["snapshots"], whole["summary"][0]["run"]) == ("own.txt", [2], "mine")
    assert (tmp_path / "runs" / "mine-s2@42").is_dir()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("train", "--preset", "huge"), "no preset 'huge'"),
        (("train", "--preset", "tiny", "--method", "magic"), "no training method named 'magic'"),
        (("train", "--preset", "tiny", "--method", "spsa"), "free phase"),
        (("train", "--preset", "tiny", "--set", "width=3"), "no such field"),
        (("train", "--preset", "tiny", "--set", "batch=big"), "give a number of type int"),
        (("train", "--preset", "tiny", "--set", "d_model=15"), "do not divide"),
        (("train", "--preset", "tiny", "--text", "nowhere.txt"), "--text nowhere.txt is no file; give an existing one"),
        (("train", "--preset", "tiny", "--dataset", "tinystories"), "leave --dataset out"),
        (("train", "--preset", "tiny", "--dataset", "pile"), "no data set 'pile'"),
        (("train", "--preset", "tiny", "--tokenizer", "words"), "no tokenizer named 'words'"),
        (("train", "--preset", "tiny", "--snapshots", "2,x"), "no list of numbers"),
        (("train", "--preset", "tiny", "--warm", "nowhere"), "no run named 'nowhere'"),
        (("grid", "--preset", "tiny", "--floors", "40"), "above its maximum"),
        (("grid", "--preset", "tiny", "--seeds", "1"), "two or more"),
        (("grid", "--preset", "tiny", "--mode", "all"), "neither ofat nor full"),
    ],
)
def test_refusals_are_one_line(invoke, tmp_path, arguments, said):
    code, out, err = invoke("equilibrium", *arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not list((tmp_path / "runs").glob("*/manifest.json")) if (tmp_path / "runs").exists() else True


def test_the_whole_campaign_at_preset_tiny(invoke, tmp_path, monkeypatch):
    code, out, err = invoke("equilibrium", "campaign", "--preset", "tiny", "--jobs", "1", "--json")
    assert code == 0, err
    whole = json.loads(out)
    assert [row["experiment"] for row in whole["values"]] == ["triangulate", "lr_sweep", "matched", "gate", "grid", "branches", "mixing"]
    assert all(row["says"] for row in whole["values"])
    summary = whole["summary"][0]
    assert summary["ep_bptt"] > 0.99  # converged at initialisation, and still after a few steps
    assert summary["bptt_bptt"] > 0.99
    assert summary["res"] < 1e-4
    assert summary["plateau"] == "over-contracted"
    assert summary["plateau_res_over_target"] < 1
    found, damaged = list_results(tmp_path / "results")
    assert not damaged
    kinds = {result.kind: result for _, result in found}
    assert {"campaign", "matched", "gate", "grid", "triangulate", "lr_sweep", "branches", "mixing"} <= kinds.keys()
    rows = {row["arm"]: row for row in kinds["matched"].values}
    assert list(rows) == ["ep", "bptt", "bp"]
    assert rows["bp"]["res"] is None
    matched = kinds["matched"].summary
    assert matched["rule_gap"] == pytest.approx(rows["ep"]["best_val"] - rows["bptt"]["best_val"])
    assert matched["architecture_gap"] == pytest.approx(rows["bptt"]["best_val"] - rows["bp"]["best_val"])
    assert kinds["matched"].data["log_val"].dims == ("arm", "moment")
    gate = kinds["gate"].values
    assert [row["arm"] for row in gate] == ["A", "B", "C"]
    assert gate[0]["skip_share"] > gate[1]["skip_share"]
    assert gate[0]["cos_first_valid"] > 0.9
    grid = kinds["grid"].values
    assert len(grid) == 3
    assert all(row["seeds"] == 2 and row["best_val_low"] <= row["best_val"] <= row["best_val_high"] for row in grid)
    # Again: everything is there, and nothing is trained.
    monkeypatch.setattr(loop.Trainer, "__init__", lambda *_: pytest.fail("a training has begun"))
    code, out, _ = invoke("equilibrium", "campaign", "--preset", "tiny", "--jobs", "1", "--json")
    assert code == 0
    assert json.loads(out)["values"] == whole["values"]
    code, out, _ = invoke("equilibrium", "matched", "--preset", "tiny", "--jobs", "1", "--json")
    assert [row["arm"] for row in records(out)] == ["ep", "bptt", "bp"]
    assert records(out)[0]["rule_gap"] == matched["rule_gap"]
