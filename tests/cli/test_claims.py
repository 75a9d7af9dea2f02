"""`wallprobe claims` and `wallprobe reproduce` through the real entry point, on hand-made stores and a micro recipe."""

import dataclasses
import json

import pytest
import torch

from tests.claims.conftest import evaluation, write_run
from wallprobe.claims.ledger import claim as ledger
from wallprobe.claims.ledger import reproduce
from wallprobe.claims.ledger.claim import Area
from wallprobe.claims.ledger.quantities import cell, summary
from wallprobe.claims.ledger.wording import figure, kept, wall_ratio
from wallprobe.models import loading
from wallprobe.training.engines import Event, perform
from wallprobe.training.engines.sweep import sweep
from wallprobe.training.wall import recipes
from wallprobe.training.wall.recipes import Recipe

pytestmark = pytest.mark.usefixtures("unbundled")


@pytest.fixture
def stored(tmp_path):
    """A c0 with the wall, and a c1 without."""
    write_run(tmp_path / "runs", "c0", evaluation(40.0, half=1.0))
    write_run(tmp_path / "runs", "c1", evaluation(0.2, half=0.01))
    return tmp_path


def test_the_ledger_of_a_store_prints_and_is_stored(invoke, stored):
    code, out, err = invoke("claims", "wall")
    assert (code, err) == (0, "")
    for words in (
        "c0.wall_ratio (figure)",
        "not reproduced",
        "39 to 41",
        "Patterns that did not hold here: none.",
        "not measured, no run c2",
    ):
        assert words in out
    assert [path.name.startswith("claims-wall-small-") for path in (stored / "results").iterdir()] == [True]


def test_json_is_one_object_with_a_record_a_claim(invoke, stored):
    code, out, _ = invoke("claims", "wall", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["kind"] == "claims"
    assert found["summary"].keys() >= {"area", "total", "reproduced", "not_reproduced", "unmeasured"}
    parts = [found["summary"][key] for key in ("reproduced", "not_reproduced", "unmeasured")]
    assert sum(parts) == found["summary"]["total"] == len(found["values"])
    assert all(row.keys() >= {"id", "statement", "seed_value", "measured", "ci", "verdict", "preset"} for row in found["values"])
    by_id = {row["id"]: row for row in found["values"]}
    assert [by_id[name]["verdict"] for name in ("wall.c0.wall", "wall.c0.wall_ratio", "wall.c2.wall")] == [
        "reproduced",
        "not reproduced",
        "not measured",
    ]
    assert by_id["wall.c1.wall_ratio"]["measured"] == 0.2


@pytest.mark.parametrize("verdict", ["reproduced", "not reproduced", "not measured"])
def test_a_verdict_can_be_asked_for(invoke, stored, verdict):
    whole, some = (json.loads(invoke("claims", "wall", *more, "--json")[1]) for more in ([], ["--verdict", verdict]))
    assert some["summary"] == whole["summary"]
    assert some["values"] == [row for row in whole["values"] if row["verdict"] == verdict]
    assert some["values"]


def test_markdown_goes_to_stdout_alone(invoke, stored):
    code, out, err = invoke("claims", "wall", "--markdown", "--verdict", "not reproduced")
    assert (code, err) == (0, "")
    assert out.startswith("# The ledger")
    rows = [line for line in out.splitlines() if line.startswith("| ") and "`" in line]
    assert rows
    assert all("**not reproduced**" in line for line in rows)


def test_runs_of_another_recipe_are_told(invoke, tmp_path):
    write_run(tmp_path / "runs", "c0", evaluation(40.0), recipe={"steps": 3})
    code, out, _ = invoke("claims", "wall")
    assert code == 0
    assert "left out: c0 (runs/c0@42): trained with steps 3 instead of" in out
    assert "None of the" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["claims", "roof"], "no claims named 'roof'; there are: "),
        (["claims", "wall", "--preset", "huge"], "no preset named 'huge'; there are: small, paper, tiny"),
        (["claims", "wall", "--verdict", "maybe"], "--verdict 'maybe' is none of 'reproduced', 'not reproduced', 'not measured'"),
        (["reproduce", "roof"], "no claims named 'roof'; there are: "),
        (["reproduce", "wall", "--preset", "huge"], "no preset named 'huge'; there are: small, paper, tiny"),
        (["reproduce", "wall", "--seeds", "none"], "--seeds 'none' is neither how many (3) nor which ones (42,7)"),
        (["reproduce", "wall", "--device", "abacus"], "device 'abacus' cannot be used here"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(invoke, tmp_path, arguments, message):
    code, out, err = invoke(*arguments)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert err.startswith(f"wallprobe: {message}")
    assert list(tmp_path.rglob("*")) == []


class Inline:
    """An engine that trains in this process, a run when it is handed in."""

    slots, retries = 1, 0

    def __init__(self):
        self.done = []

    def submit(self, task):
        self.done.append(Event(task.job.name, "done", record=perform(dataclasses.replace(task, compile=False), lambda at: None)))

    def events(self, timeout):
        done, self.done = self.done, []
        return done

    def stop(self, grace):
        pass

    def close(self):
        pass


MICRO = Recipe(preset="small", n_layers=1, d_model=8, n_heads=2, steps=2, batch=4)
SMALL_AREA = Area(
    "wall",
    "A ledger of two runs",
    (
        kept("c0.wall", "T", "The wall stands.", "c0"),
        figure("c0.six", "T", "Error at 6.", 1.6, cell("c0", "eval", "mae", position=6), "error", "bits"),
        figure("c1.ratio", "T", "Ratio.", 0.2, wall_ratio("c1"), "ratio", "ratio"),
        figure("swap", "T", "Rule.", 0.06, summary("c1", "interchange-c0", "p_rule"), "fraction", "probability"),
    ),
    ("c0", "c1"),
    pairs=(("c1", "c0"),),
    instruments={"eval": ("*",)},
)


@pytest.fixture
def micro(monkeypatch):
    """The preset small shrunk to seconds, a ledger of two runs, and training in this process."""
    monkeypatch.setattr(recipes, "RECIPES", {"small": MICRO})
    monkeypatch.setattr(ledger, "areas", lambda: {"wall": SMALL_AREA})
    trained = []

    def inline(jobs, root, **settings):
        trained.append([str(job.name) for job in jobs])
        threads = torch.get_num_threads()  # a worker sets its own, and here it is this process
        try:
            return sweep(jobs, root, **settings | {"engine": Inline()})
        finally:
            torch.set_num_threads(threads)

    monkeypatch.setattr(reproduce, "sweep", inline)
    return trained


def test_reproduce_trains_measures_and_judges_once(invoke, micro, tmp_path, monkeypatch):
    code, out, err = invoke("reproduce", "wall", "--json")
    assert code == 0, err
    first = json.loads(out)
    assert (first["summary"]["total"], first["summary"]["unmeasured"], micro) == (4, 0, [["c0", "c1"]])
    assert (tmp_path / "runs" / "c1@42" / "interchange-c0" / "result.json").is_file()

    def refuse(*arguments):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(loading, "build", refuse)
    code, out, _ = invoke("reproduce", "wall", "--json")
    assert code == 0
    assert json.loads(out)["values"] == first["values"]
    assert micro == [["c0", "c1"]]
    assert json.loads(invoke("claims", "wall", "--json")[1])["values"] == first["values"]


def test_reproduce_makes_what_is_missing_and_nothing_else(invoke, micro, tmp_path):
    assert invoke("reproduce", "wall")[0] == 0
    kept_file, lost = tmp_path / "runs" / "c0@42" / "eval" / "result.json", tmp_path / "runs" / "c1@42" / "interchange-c0" / "result.json"
    before = kept_file.stat().st_mtime_ns, lost.read_bytes()
    lost.unlink()
    code, out, err = invoke("reproduce", "wall")
    assert code == 0
    assert "measure interchange of c1 into c0 (1 of 1)" in err
    assert "swap" in out
    assert json.loads(lost.read_text())["values"] == json.loads(before[1])["values"]
    assert kept_file.stat().st_mtime_ns == before[0]
    assert len(micro) == 1


def test_reproduce_does_not_touch_a_run_that_was_trained_otherwise(invoke, micro, tmp_path):
    assert invoke("train", "c0", "--steps", "1", "--compile", "off")[0] == 0
    before = (tmp_path / "runs" / "c0@42" / "manifest.json").read_bytes()
    code, out, err = invoke("reproduce", "wall")
    assert (code, out) == (2, "")
    assert "1 of 2 runs are not there (c0 failed: " in err
    assert "steps" in err
    assert (tmp_path / "runs" / "c0@42" / "manifest.json").read_bytes() == before
