"""Gains of several models on one axis, and of one model over its training."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from wallprobe import models
from wallprobe.errors import CheckpointError, ConfigError
from wallprobe.gallery.build import render
from wallprobe.gallery.exhibits import gain_series as exhibits
from wallprobe.hooks.attach.prompt_sets import prompt_set
from wallprobe.hooks.gains import series
from wallprobe.hooks.gains.measure import gains
from wallprobe.store import runs
from wallprobe.store.manifest import Stopwatch
from wallprobe.store.results import Result, dataset
from wallprobe.training.wall import recipes
from wallprobe.training.wall.conditions import get_condition
from wallprobe.training.wall.jobs import Job
from wallprobe.training.wall.loop import train

RECIPE = recipes.Recipe(preset="tiny", n_layers=2, d_model=8, n_heads=2, steps=6, batch=8, warmup=1, snapshot_every=2)
MANIFEST = dict.fromkeys(("device", "dtype", "weight_hash", "weight_processing", "formula", "data_hash"), "x")


def measured(model: str, mlp: list[float], definition: str = "sublayer") -> Result:
    """A hand-made Result of kind "gains": attention half as loud, nothing without sinks but the last layer."""
    cells = {name: (("layer",), np.array(mlp) * (0.5 if name.startswith("attn") else 1.0), "ratio", name) for name in series.CELLS}
    cells["mlp_gain_no_sink"] = (("layer",), np.array([*np.minimum(mlp[:-1], mlp[-1] - 0.5), mlp[-1]]), "ratio", "x")
    summary: dict[str, Any] = {
        "model": model,
        "definition": definition,
        "tokens": "ratio_of_means",
        "n_params": 10,
        "attn_contracting": "1/2",
    }
    summary |= {"final_mlp_gain": mlp[-1], "final_mlp_gain_no_sink": mlp[-1]}
    return Result("gains", dataset({"layer": list(range(len(mlp)))}, cells), ("layer",), summary, MANIFEST | {"config": {"model": model}})


def test_every_layer_of_every_model_is_on_the_axis() -> None:
    deep = [2.0, 3.0, 400.0, 5.0, 6.0, 7.0, 8.0]
    result = series.over_models([measured("deep", deep), measured("flat", [1.5, 0.5, 2.5])], Stopwatch())
    assert set(result.data["mlp_gain"].values[0].tolist()) == set(deep)
    assert result.data["mlp_gain"].values[1].tolist() == [1.5] * 5 + [0.5] * 4 + [2.5] * 5
    assert (result.summary["last_loudest"], result.summary["last_loudest_no_sink"]) == (1, 2)
    page = exhibits.models(result)
    assert page.sections[0].title == "The loudest of all is deep's MLP of layer 2: 400, without sinks 7.5"
    first = page.sections[0].frames[0].panels[0].spec
    assert first["data"][0]["z"][1][5] == pytest.approx(np.log10(0.5))
    assert first["layout"]["coloraxis"]["cmin"] == pytest.approx(np.log10(0.25))
    assert "failed" not in render(result, {"gains_models": exhibits.models}, "x")[0]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([measured("a", [1.0, 2.0])], "models a are no two different ones"),
        ([measured("a", [1.0, 2.0]), measured("a", [1.0, 2.0])], "models a, a are no two different ones"),
        ([measured("a", [1.0, 2.0]), measured("b", [1.0, 2.0], "jacobian")], "several definitions"),
    ],
)
def test_models_that_cannot_be_compared(parts: list[Result], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        series.over_models(parts, Stopwatch())


def test_steps_of_different_models_are_refused() -> None:
    with pytest.raises(ConfigError, match="measurements of a have 2 and 3 layers"):
        series.over_training("a", [0, 5], [measured("a", [1.0, 2.0]), measured("a", [1.0, 2.0, 3.0])], Stopwatch())
    with pytest.raises(ConfigError, match="steps 5, 0 of a are no two different ones"):
        series.over_training("a", [5, 0], [measured("a", [1.0, 2.0])] * 2, Stopwatch())


def test_checkpoints_are_named_by_their_step() -> None:
    name, pairs = series.named_steps(["org/m@step1000", "org/m@step10"])
    assert (name, pairs) == ("org/m", [(10, "org/m@step10"), (1000, "org/m@step1000")])
    with pytest.raises(ConfigError, match="'org/m' names no step"):
        series.named_steps(["org/m@step1", "org/m"])
    with pytest.raises(ConfigError, match="follows one model, not org/m and org/n"):
        series.named_steps(["org/m@step1", "org/n@step1"])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    train(Job(get_condition("c0"), RECIPE), root)
    return root


def test_snapshots_are_the_weights_of_a_training_that_ends_there_and_change_nothing(store: Path, tmp_path: Path) -> None:
    run = runs.find_run("c0", store)
    assert list(run.snapshots()) == [0, 2, 4]
    plain = train(Job(get_condition("c0"), dataclasses.replace(RECIPE, snapshot_every=0)), tmp_path)
    assert plain.manifest["weight_hash"] == run.manifest["weight_hash"]
    assert plain.manifest["config"] == run.manifest["config"]
    assert not (plain.path / runs.SNAPSHOTS).exists()
    from wallprobe.hooks.wall.geometry import untrained

    start = series.load_step("c0", 0, store, "cpu").model.state_dict()
    for name, value in untrained(run).model.state_dict().items():
        torch.testing.assert_close(start[name], value, rtol=0, atol=0)


def test_a_snapshot_that_cannot_be_read_is_named(store: Path) -> None:
    with pytest.raises(CheckpointError, match=r"step-00000003\.safetensors is no snapshot of run c0"):
        series.load_step("c0", 3, store, "cpu")


def test_the_command_measures_each_step_as_gains_would(store: Path, invoke: Any, tmp_path: Path) -> None:
    code, out, err = invoke("gains", "c0", "--over-training", "--runs", str(store), "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["kind"], found["summary"]["n_steps"], found["summary"]["last_step"]) == ("gains_training", 4, 6)
    loaded = series.load_step("c0", 4, store, "cpu")
    alone = gains(loaded, prompt_set(loaded)).data["mlp_gain"].values
    rows = [row["mlp_gain"] for row in found["values"] if row["step"] == 4]
    np.testing.assert_allclose(rows, alone, rtol=1e-12, atol=0)
    end = gains(end_run := models.load("c0", "cpu", store), prompt_set(end_run)).summary["final_mlp_gain"]
    assert found["summary"]["final_mlp_gain"] == pytest.approx(end, rel=1e-12, abs=0)
    assert invoke("gallery")[0] == 0
    (page,) = (tmp_path / "gallery" / "results").glob("gains_training*.html")
    assert "s gain goes from" in page.read_text()
    assert "failed" not in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("c1",), "run c1 kept no snapshots of its training; train one that does: wallprobe train c1 --snapshot-every 300 --force"),
        (("a/m@step1", "a/m"), "'a/m' names no step"),
        (("c0", "--fit"), "--over-training reads whole models as they are"),
    ],
)
def test_bad_input_gets_one_line(store: Path, invoke: Any, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = invoke("gains", *arguments, "--over-training", "--runs", str(store))
    assert (code, out) == (2, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []
