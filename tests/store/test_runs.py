"""The run store: found by name, local before bundled, and every kind of damage named with its remedy."""

import json

import pytest

from wallprobe import models
from wallprobe.errors import CheckpointError, UnknownNameError
from wallprobe.store import runs
from wallprobe.training.wall import loop
from wallprobe.training.wall.conditions import get_condition
from wallprobe.training.wall.recipes import Recipe

RECIPE = Recipe(preset="tiny", n_layers=1, d_model=8, n_heads=2, steps=2, batch=4)


@pytest.fixture
def store(tmp_path):
    loop.train(loop.Job(get_condition("c0"), RECIPE, seed=7), tmp_path)
    return tmp_path


def test_found_by_name_and_listed(store):
    run = runs.find_run("c0@7", store)
    assert (run.name.condition, run.name.seed, run.bundled) == ("c0", 7, False)
    assert "c0@7" in [str(found.name) for found in runs.list_runs(store)]
    assert models.load("c0@7", root=store).n_layers == 1
    assert models.load(str(run.path)).weight_hash == run.manifest["weight_hash"]


def test_a_local_run_shadows_the_bundled_one(store, monkeypatch, tmp_path):
    bundled = tmp_path / "bundle"
    loop.train(loop.Job(get_condition("c1"), RECIPE, seed=7), bundled)
    loop.train(loop.Job(get_condition("c0"), RECIPE, seed=7), bundled)
    monkeypatch.setattr(runs, "BUNDLED", bundled)
    assert runs.find_run("c1@7", store).bundled
    assert not runs.find_run("c0@7", store).bundled
    assert [run.bundled for run in runs.list_runs(store)] == [False, True]


def test_an_unknown_name_lists_the_known_ones_and_the_remedy(store):
    with pytest.raises(UnknownNameError, match=r"no run named 'c0@8'.*c0@7.*wallprobe train c0@8"):
        runs.find_run("c0@8", store)


def test_damage_is_named(store):
    run = runs.find_run("c0@7", store)
    data = run.weights_path.read_bytes()
    run.weights_path.write_bytes(data[:-10])
    with pytest.raises(CheckpointError, match="truncated or replaced"):
        run.tensors()
    flipped = bytearray(data)
    flipped[-1] ^= 1
    run.weights_path.write_bytes(flipped)
    with pytest.raises(CheckpointError, match="the file was altered"):
        run.tensors()
    run.weights_path.unlink()
    with pytest.raises(CheckpointError, match=r"has no weights.*wallprobe train c0@7 --force"):
        runs.find_run("c0@7", store).tensors()


def test_a_damaged_manifest_is_named(store):
    manifest = runs.find_run("c0@7", store).path / runs.MANIFEST
    manifest.write_text(manifest.read_text()[:40])
    with pytest.raises(CheckpointError, match="no readable run manifest"):
        runs.find_run("c0@7", store)
    assert "c0@7" not in [str(run.name) for run in runs.list_runs(store)]


def test_weights_of_another_shape_are_refused(store):
    run = runs.find_run("c0@7", store)
    record = json.loads((run.path / runs.MANIFEST).read_text())
    record["shape"]["d_model"] = 12
    (run.path / runs.MANIFEST).write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="do not fit a model of shape"):
        models.load("c0@7", root=store)
