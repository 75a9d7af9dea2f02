"""`wallprobe probe`: what it prints, stores and refuses."""

import json

import pytest

from wallprobe.store import results
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.training.wall import lean

TASK = RecurrenceTask(modulus=5, length=8)
SHAPE = lean.Shape(n_layers=2, d_model=16, n_heads=2, n_ctx=8, vocabulary=5)


@pytest.fixture(autouse=True)
def two_runs(tmp_path, write_run, monkeypatch):
    """A store with c0 and c1@7, and a terminal of 100 columns."""
    monkeypatch.setenv("COLUMNS", "100")
    for place, name in enumerate(("c0", "c1@7")):
        write_run(tmp_path / "runs", name, lean.init_params(SHAPE, place), SHAPE, TASK)


def test_table_and_stored_result(invoke, tmp_path):
    code, out, err = invoke("probe", "c0", "--n", "200", "--targets", "token,entropy")
    assert code == 0, err
    assert "Probes of c0, resid_post: accuracy at layer 1" in out
    assert "next token at position 5: " in out
    assert "Behind the wall the next token" in out
    (folder,) = (tmp_path / "results").iterdir()
    stored = results.load_result(folder)
    assert stored.kind == "probe"
    assert stored.data["run"].values[0, 0, 0] == "c0"
    assert stored.data["target"].values.tolist() == ["token", "entropy"]


def test_json_is_one_object_and_nothing_else(invoke):
    code, out, _ = invoke("probe", "c0", "runs/c1@7", "--n", "200", "--layer", "1", "--json")
    assert code == 0
    printed = json.loads(out)
    assert printed["kind"] == "probe"
    assert [summary["run"] for summary in printed["summary"]] == ["c0", "c1@7"]
    assert len(printed["values"]) == 2 * 7 * 5
    assert {"run", "target", "layer", "index", "accuracy", "selectivity", "r2"} <= set(printed["values"][0])
    assert {record["run"] for record in printed["values"]} == {"c0", "c1@7"}
    assert all(not isinstance(value, (list, dict)) for summary in printed["summary"] for value in summary.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["c9"], "no run named 'c9'"),
        (["c0", "--layer", "9"], "layer 9 does not exist in c0; give 0 to 1, or 'all'"),
        (["c0", "--layer", "last"], "--layer 'last' is not a number"),
        (["c0", "--site", "mlp"], "no site named 'mlp'"),
        (["c0", "--targets", "token,rule"], "no probe target 'rule'; there are: token, a, b, class, entropy"),
        (["c0", "--n", "20"], "20 sequences are too few"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(invoke, tmp_path, arguments, said):
    code, out, err = invoke("probe", *arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert said in err
    assert not (tmp_path / "results").exists()
