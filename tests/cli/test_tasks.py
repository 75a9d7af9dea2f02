"""`--task` on the command line: a variant trained, found by name, and measured on other tasks than its own."""

import json

import pytest

from wallprobe.tasks.registry import get_task
from wallprobe.training.wall import lean


@pytest.fixture
def variant(write_run, tmp_path):
    """A function that puts an untrained run of a task into the store."""

    def make(name):
        task = get_task(name)
        shape = lean.Shape(1, 8, 2, task.context, task.vocabulary)
        return write_run(tmp_path / "runs", f"c0{task.suffix}", lean.init_params(shape, 0), shape, task)

    return make


def test_train_a_variant_by_option_or_by_name(invoke, tmp_path):
    arguments = ["--steps", "2", "--compile", "off"]
    code, _, err = invoke("train", "c0", "--task", "quadratic", *arguments)
    assert code == 0, err
    manifest = json.loads((tmp_path / "runs/c0-quadratic@42/manifest.json").read_text())
    assert manifest["task"] == {"name": "quadratic", "modulus": 17, "length": 16, "program_prior": 0.5}
    again = json.loads(invoke("train", "c0-quadratic", *arguments, "--json")[1])
    assert again["summary"][0]["weight_hash"] == manifest["weight_hash"]
    found = json.loads(invoke("eval", "c0-quadratic", "--sequences", "50", "--json")[1])["summary"]
    assert (found["run"], found["task"]) == ("c0-quadratic", "quadratic")


def test_eval_on_other_tasks(invoke, variant):
    variant("length")
    code, out, err = invoke("eval", "c0-length", "--length", "32", "--sequences", "50")
    assert code == 0, err
    assert "c0-length on length-length-32 has not learnt the task" in out.replace("\n", " ")
    variant("modulus")
    assert json.loads(invoke("eval", "c0-modulus", "--modulus", "19", "--sequences", "50", "--json")[1])["manifest"]["config"]["task"] == {
        "name": "modulus",
        "modulus": 19,
        "length": 16,
        "program_prior": 0.5,
        "symbols": 19,
    }
    found = json.loads(invoke("eval", "c0", "--task", "heldout-prefix:split=held", "--sequences", "50", "--json")[1])
    assert found["summary"]["task"] == "heldout-prefix-split-held"
    code, out, _ = invoke("eval", "c0", "--task", "quadratic", "--sequences", "50")
    assert code == 0
    assert "(76)" not in out


REFUSALS = [
    (["train", "c0", "--task", "riddle"], "no task named 'riddle'; there are: recurrence"),
    (["train", "c0-quadratic", "--task", "backward"], "names task quadratic, but backward was asked for"),
    (["train", "c0-riddle"], "no condition named 'c0-riddle'"),
    (["eval", "c0", "--length", "32"], "run c0 has positions for 16 tokens"),
    (["eval", "c0", "--modulus", "19"], "run c0 knows 17 tokens, task recurrence-modulus-19 has 19"),
    (["eval", "c0", "--task", "shuffled", "--length", "16"], "length 16 is no multiple of 3"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS, ids=[" ".join(arguments) for arguments, _ in REFUSALS])
def test_bad_input_gets_one_line_and_leaves_nothing(invoke, tmp_path, arguments, message):
    code, out, err = invoke(*arguments)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []
