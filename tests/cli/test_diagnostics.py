"""triangulate, lr-sweep, branches, mixing and collapse as typed: one JSON object, tables, and errors on one line with nothing written."""

import json
from pathlib import Path

import pytest

from tests.hooks import tiny_models

HEADS = {
    "triangulate": ("val", "k", "self"),
    "lr-sweep": ("best", "at lr", "cos"),
    "branches": ("attn/xin", "H_max", "qk_rms"),
    "mixing": ("÷d1", "rel", "position"),
}


@pytest.fixture
def store(tmp_path):
    return tiny_models.save_run(tmp_path / "runs")


@pytest.mark.parametrize("command", list(HEADS))
def test_a_run_gives_a_table_and_the_same_as_json(command, store, invoke):
    code, out, _ = invoke(command, store, "--size", "4", *(["--batches", "2"] if command in ("triangulate", "branches") else []))
    assert code == 0
    assert all(head in out for head in HEADS[command])
    code, out, err = invoke(command, store, "--size", "4", "--json")
    told = json.loads(out)
    assert (code, told["kind"], err) == (0, command.replace("-", "_"), "")
    assert told["summary"]["ckpt"] == store
    assert told["values"]
    assert [path.name for path in Path("results").iterdir() if path.name.startswith(told["kind"])]


def test_two_checkpoints_are_two_records_in_one_result(store, invoke):
    code, out, _ = invoke("branches", store, "c0", "--batches", "1", "--size", "2", "--json")
    told = json.loads(out)
    assert (code, [row["ckpt"] for row in told["summary"]]) == (0, [store, "c0"])
    assert {row["ckpt"] for row in told["values"]} == {store, "c0"}


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["triangulate", "c0", "--estimators", "bp,hebb"], ""),
        (["triangulate", "c0", "--reference", "bp"], "needs its estimators"),
        (["triangulate", "nowhere"], "no run named 'nowhere'"),
        (["triangulate", "c0", "--text", "nowhere.txt"], "no text file"),
        (["lr-sweep", "c0", "--lrs", "big"], "no list of numbers"),
        (["mixing", "c0", "--distances", "99"], "reaches before the first token"),
        (["collapse", "c0"], "no nudged phase"),
        (["branches", "c0", "--prompts", "seed4"], "reads sequences of its own task"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(arguments, why, invoke):
    code, out, err = invoke(*arguments, "--size", "2")
    if not why:  # an estimator that is not there is a reason in the table, as long as the reference is
        assert code == 0
        assert "no training method named 'hebb'" in out
        return
    assert (code, out) == (2, "")
    assert why in err
    assert err.count("\n") == 1
    assert not Path("results").exists()


@pytest.mark.parametrize("command", [*HEADS, "collapse"])
def test_help_imports_no_torch(command, invoke):
    code, out, _ = invoke(command, "--help")
    assert code == 0
    assert "Usage" in out
