"""One broken thing never breaks the rest: every key and every file damaged in turn, and all of them at once."""

import json
import shutil

import pytest

from tests.store import damage
from tests.store.test_results import sample
from wallprobe.errors import CheckpointError, StoreError, WallprobeError
from wallprobe.store import runs
from wallprobe.store.results import list_results, load_result
from wallprobe.training.wall import lean

SHAPE = lean.Shape(n_layers=1, d_model=8, n_heads=2, n_ctx=16, vocabulary=17)


@pytest.fixture(scope="module")
def kept(write_run, tmp_path_factory):
    """A store with one small sound run."""
    return write_run(tmp_path_factory.mktemp("kept"), "c0@7", lean.init_params(SHAPE, 0), SHAPE).path


def run_folder(kept, store, seed=7):
    """A copy of it under another seed."""
    folder = store / f"c0@{seed}"
    shutil.copytree(kept, folder)
    damage.edit("manifest.json", seed=seed)(folder)
    return folder


BUNDLED = json.loads((runs.BUNDLED / "c0@42" / "manifest.json").read_text())


def full(kept):
    """A manifest with every key that a trained run's has."""
    bundled = BUNDLED
    own = json.loads((kept / runs.MANIFEST).read_text())
    return bundled | own | {"log": bundled["log"][:2], "config": bundled["config"], "kind": "run", "run": "c0"}


def survives(store, folder, manifest):
    """Whether the run is listed; it must be listed or named, and if listed, fit for measuring or refused in one line."""
    (folder / runs.MANIFEST).write_text(json.dumps(manifest))
    sound, damaged = runs.survey_runs(store)
    local = [run for run in sound if not run.bundled]
    assert len(local) + len(damaged) == 1
    assert all(path == folder and len(why.splitlines()) == 1 for path, why in damaged)
    why = refusal(lambda: (local[0] if local else runs.find_run("c0@7", store)).verify())
    assert len(why.splitlines()) == (1 if damaged or why else 0)
    return bool(local)


def refusal(use):
    """What a use of a run is refused with; empty if it is not."""
    try:
        use()
    except CheckpointError as error:
        return str(error)
    return ""


def test_every_key_of_a_manifest_with_every_value(kept, tmp_path, unbundled):
    folder = run_folder(kept, tmp_path)
    whole = full(kept)
    assert survives(tmp_path, folder, whole)
    cases = [(place, name) for place in damage.keys(whole) for name in damage.VALUES]
    listed = sum(survives(tmp_path, folder, damage.changed(whole, place, damage.VALUES[name])) for place, name in cases)
    assert len(cases) > 700
    assert 0 < listed < len(cases)


DECISIVE = [
    *[(key,) for key in ("condition", "seed", "weight_hash", "shape", "task", "kind", "config", "horizon", "log")],
    *[("shape", key) for key in ("n_layers", "d_model", "n_heads", "n_ctx", "vocabulary")],
]


# What is of the right type there: a task's own keys are its own, a shape and a config may tell less, a hash may be any word.
FITTING = {("task",): {"object"}, ("shape",): {"object"}, ("config",): {"object"}, ("weight_hash",): {"text"}}


@pytest.mark.parametrize("place", DECISIVE, ids=".".join)
def test_what_decides_something_is_never_read_wrong(kept, tmp_path, unbundled, place):
    """No value of another type, out of range or not finite passes; a key left out passes only where it has a default."""
    folder = run_folder(kept, tmp_path)
    wrong = sorted(set(damage.VALUES) - {"missing"} - FITTING.get(place, set()))
    assert [name for name in wrong if survives(tmp_path, folder, damage.changed(full(kept), place, damage.VALUES[name]))] == []


@pytest.mark.parametrize("kind", damage.RUNS)
def test_a_damaged_run_is_named_and_refused_by_name(kept, tmp_path, kind):
    sound = run_folder(kept, tmp_path, 8)
    folder = run_folder(kept, tmp_path)
    damage.RUNS[kind](folder)
    found, damaged = runs.survey_runs(tmp_path)
    assert [run.path for run in found if not run.bundled] == [sound]
    assert [path for path, _ in damaged] == [folder]
    with pytest.raises(CheckpointError) as caught:
        runs.find_run("c0@7", tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert "wallprobe train" in str(caught.value)
    with pytest.raises(WallprobeError, match="and damaged: c0@7"):
        runs.find_run("c0@9", tmp_path)


@pytest.mark.parametrize("place", ["a file", "a loop"])
def test_something_else_under_a_runs_name(kept, tmp_path, place):
    path = tmp_path / "c0@42"  # a bundled run of that name does not stand in for it
    path.write_text("x") if place == "a file" else path.symlink_to("c0@42")
    found, damaged = runs.survey_runs(tmp_path)
    assert [lost for lost, _ in damaged] == [path]
    assert "c0@42" not in [run.name.folder for run in found]
    with pytest.raises(CheckpointError):
        runs.find_run("c0", tmp_path)


@pytest.mark.parametrize("kind", damage.FILES)
def test_damaged_weights_are_refused_before_anything_is_made_of_them(kept, tmp_path, kind):
    folder = run_folder(kept, tmp_path)
    damage.FILES[kind](folder / runs.WEIGHTS)
    run = runs.find_run("c0@7", tmp_path)
    for use in (run.verify, run.tensors):
        with pytest.raises(CheckpointError) as caught:
            use()
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("data", [b"", b"junk" * 50, (1 << 60).to_bytes(8, "little") + b"{}", (90 << 20).to_bytes(8, "little") + b"{"])
def test_weights_that_are_none_although_the_hash_is_right(kept, tmp_path, data):
    import hashlib

    folder = run_folder(kept, tmp_path)
    (folder / runs.WEIGHTS).write_bytes(data)
    damage.edit("manifest.json", weight_hash=hashlib.sha256(data).hexdigest(), weight_bytes=len(data))(folder)
    for use in (runs.find_run("c0@7", tmp_path).verify, runs.find_run("c0@7", tmp_path).tensors):
        with pytest.raises(CheckpointError, match="is not a safetensors file"):
            use()


def test_what_a_measurement_needs_is_asked_for_before_it(kept, tmp_path):
    folder = run_folder(kept, tmp_path)
    for fields, words in (
        ({"horizon": damage.MISSING}, "horizon is missing"),
        ({"shape": {}}, "n_layers is missing"),
        ({"task": {"name": "recurrence", "length": 10**12}}, "length 1000000000000 of its task"),
    ):
        before = (folder / runs.MANIFEST).read_text()
        damage.edit("manifest.json", **fields)(folder)
        with pytest.raises(CheckpointError, match=words):
            runs.find_run("c0@7", tmp_path).verify()
        (folder / runs.MANIFEST).write_text(before)


def test_a_claimed_size_is_held_to_the_weights_before_memory_is_asked_for(kept, tmp_path):
    from wallprobe import models

    folder = run_folder(kept, tmp_path)
    damage.edit("manifest.json", shape={"n_layers": 1, "d_model": 8, "n_heads": 2, "n_ctx": 99_000_000, "vocabulary": 17})(folder)
    with pytest.raises(CheckpointError, match="do not fit a model of shape"):
        models.load("c0@7", root=tmp_path)


def lists(store, folder, record):
    (folder / "result.json").write_text(json.dumps(record))
    sound, damaged = list_results(store)
    assert len(sound) + len(damaged) == 1
    assert all(path == folder and len(why.splitlines()) == 1 for path, why in damaged)
    for _, result in sound:
        json.dumps(result.to_json(), allow_nan=False)
    return bool(sound)


def test_every_key_of_a_result_with_every_value(tmp_path):
    folder = sample(seed=1).save(tmp_path)
    whole = json.loads((folder / "result.json").read_text())
    cases = [(place, name) for place in damage.keys(whole) for name in damage.VALUES]
    listed = sum(lists(tmp_path, folder, damage.changed(whole, place, damage.VALUES[name])) for place, name in cases)
    assert len(cases) > 150
    assert 0 < listed < len(cases)
    assert lists(tmp_path, folder, whole | {"a key of tomorrow": {"x": [1]}})


@pytest.mark.parametrize("kind", damage.RESULTS)
def test_a_damaged_result_is_named_and_refused(tmp_path, kind):
    sound, folder = sample(seed=1).save(tmp_path), sample(seed=2).save(tmp_path)
    damage.RESULTS[kind](folder)
    found, damaged = list_results(tmp_path)
    assert ([path for path, _ in found], [path for path, _ in damaged]) == ([sound], [folder])
    with pytest.raises(StoreError) as caught:
        load_result(folder)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.slow
def test_any_byte_of_the_arrays_with_the_right_hash(tmp_path):
    """Every byte of the header and many of the rest, set to three values each: read as other numbers, or named."""
    folder = sample(seed=1).save(tmp_path)
    whole = json.loads((folder / "result.json").read_text())
    data = (folder / "arrays.nc").read_bytes()
    for place in range(len(data)):
        for value in (0x00, 0x7F, 0xFF):
            made = data[:place] + bytes([value]) + data[place + 1 :]
            (folder / "arrays.nc").write_bytes(made)
            lists(tmp_path, folder, whole | {"arrays_hash": damage.hashlib.sha256(made).hexdigest()})
