"""Pages of runs and what the compare page is given: figures checked against the records they come from."""

import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from wallprobe.gallery import Figure, build_site, compare, facets, runpages
from wallprobe.store.results import Result, dataset, load_result
from wallprobe.store.runs import EVALUATION, Run, RunName, find_run


def test_curve_shows_the_log_and_the_exact_answer() -> None:
    run = find_run("c0")
    evaluated = load_result(run.path / EVALUATION)
    curve = runpages.training_curve(run, evaluated)
    assert isinstance(curve, Figure)
    spec = curve.frames[0].panels[0].spec
    assert spec["data"][0]["x"] == [entry["step"] for entry in run.manifest["log"]]
    assert spec["data"][0]["y"] == pytest.approx([entry["cross_entropy"] for entry in run.manifest["log"]], abs=1e-12)
    exact = evaluated.data["entropy_exact"].values[evaluated.data["position"].values <= run.manifest["horizon"]].mean() * math.log(2)
    assert spec["layout"]["shapes"][0]["y0"] == pytest.approx(exact, abs=1e-12)
    late = np.mean([entry["cross_entropy"] for entry in run.manifest["log"]][-len(run.manifest["log"]) // 10 :])
    assert f"to {late:.3f} nats in 4,500 steps" in curve.title
    assert len(curve.frames[0].panels) == 1  # c0 has no signal


def test_curve_has_the_signal_and_the_wall_where_the_log_has_them() -> None:
    log = [
        {"step": step, "cross_entropy": 3 / step, "signal": 1 / step, "trained_mae": 0.1, "untrained_mae": 1.5} for step in range(1, 2001)
    ]
    curve = runpages.training_curve(Run(RunName("p9"), Path("nowhere"), {"log": log, "horizon": 5}, False), None)
    assert curve is not None
    loss, signal, wall = (panel.spec for panel in curve.frames[0].panels)
    assert len(loss["data"][0]["x"]) <= 401
    assert loss["data"][0]["x"][-1] == 2000  # the last step is never thinned away
    assert "shapes" not in loss["layout"]  # no evaluation, no exact answer
    assert signal["data"][0]["y"][0] == 1.0
    assert [trace["name"] for trace in wall["data"]] == ["supervised positions", "unsupervised positions"]
    assert runpages.training_curve(Run(RunName("p9"), Path("nowhere"), {}, False), None) is None


def test_examples_that_do_not_fit_are_counted(samples: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runpages, "EXAMPLES", 1)
    samples.attention().save(tmp_path / "results")
    samples.attention("c0 noise", run="c0").save(tmp_path / "results")
    build_site(tmp_path / "results", tmp_path / "site", runs=[find_run("c0")])
    text = (tmp_path / "site" / "runs" / "c0@42.html").read_text(encoding="utf-8")
    assert "1 more would not fit on this page" in text
    assert "Where each head looks, on 1 example" in text


def test_payload_holds_values_bounds_and_where_they_stand(samples: ModuleType) -> None:
    result = samples.interchange()
    found = compare.payload(result, "stem")
    assert found["dims"] == {"layer": [0, 1, 2, 3, 4, 5], "index": [3, 4]}
    variables = {variable["name"]: variable for variable in found["variables"]}
    assert variables["p_import"]["values"] == pytest.approx(result.data["p_import"].values.ravel().tolist(), rel=1e-5)
    assert variables["p_import"]["low"] == pytest.approx(result.data["p_import_low"].values.ravel().tolist(), rel=1e-5)
    assert "p_import_low" not in variables
    assert not any(name.startswith("example") for name in variables)  # not along the table's dims
    assert found["left_out"] == []


def test_payload_names_what_is_too_large_and_keeps_gaps(samples: ModuleType) -> None:
    assert compare.payload(samples.attention(length=40), "stem")["left_out"] == ["pattern"]
    posterior = next(item for item in compare.payload(samples.evaluation(), "stem")["variables"] if item["name"] == "best_posterior")
    assert posterior["values"][0] is None


def test_payload_script_is_sealed(samples: ModuleType) -> None:
    text = compare.script(compare.payload(samples.evaluation(samples.ATTACK), samples.ATTACK))
    assert "<" not in text
    assert json.loads(text.removeprefix("wallprobeData(").rstrip().removesuffix(");"))["subject"] == samples.ATTACK


def card(result: Result) -> dict[str, object]:
    return {"subject": "s", "facets": facets.raw(result)}


def test_facets_tell_runs_from_models_and_read_verdicts_anywhere(samples: ModuleType) -> None:
    known = {"c0@42", "p5@42"}
    found = facets.of_card(card(samples.interchange()), known)
    assert found == {"model": ["p5", "c0"], "condition": ["c0", "p5"], "seed": ["42"], "verdict": []}
    assert facets.of_card(card(samples.gains("gpt2")), known)["condition"] == []  # named like a run, but none
    data = dataset({"id": [0, 1, 2]}, {"verdict": (("id",), ["held", "failed", "held"], "", "")})
    assert facets.of_card(card(Result("claims", data, ("id",), {}, {})), known)["verdict"] == ["held", "failed"]
    assert facets.of_card(card(samples.audited("SOUND")), known) == {"model": ["s"], "condition": [], "seed": ["7"], "verdict": ["SOUND"]}
    seeded = Result("eval", dataset({"position": [1]}, {}), ("position",), {"run": "c9@1337"}, {})
    assert facets.of_card(card(seeded), known)["seed"] == ["1337"]
