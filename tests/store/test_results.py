"""Results: what is saved is what is read back, and damage is named."""

import json
import math

import numpy as np
import pytest

from wallprobe.errors import StoreError
from wallprobe.store import staging, storage
from wallprobe.store.results import Result, dataset, list_results, load_result


def sample(subject="p5 to c0", **config):
    data = dataset(
        {"layer": [0, 1], "index": [3, 4, 5]},
        {
            "p": (("layer", "index"), np.arange(6.0).reshape(2, 3) / 10, "probability", "a probability"),
            "holes": (("layer", "index"), [[0.5, math.nan, 1.0]] * 2, "bits", "with holes"),
            "per_layer": (("layer",), [1.0, 2.0], "bits", "not in the table"),
            "token": (("index",), np.array([1, 2, 3], dtype="int32"), "token", "integers"),
        },
        run="c0",
        horizon=5,
    )
    return Result(
        "sample", data, ("layer", "index"), {"run": "c0", "x": 1.5}, {"subject": subject, "config": config, "command": "wallprobe sample"}
    )


def test_the_long_table_has_one_record_a_cell():
    values = sample().values
    assert len(values) == 6
    assert values[4] == {"layer": 1, "index": 4, "p": 0.4, "holes": None}
    assert json.loads(json.dumps(sample().to_json(), allow_nan=False))["kind"] == "sample"


def test_saved_and_loaded_are_equal(tmp_path):
    result = sample()
    folder = result.save(tmp_path)
    again = load_result(folder)
    assert again.data.identical(result.data)
    assert again.to_json() == result.to_json()
    assert again.data["p"].attrs == {"units": "probability", "long_name": "a probability"}
    record = json.loads((folder / "result.json").read_text())
    assert {"kind", "summary", "values", "manifest"} <= record.keys()


def test_the_same_configuration_replaces_and_another_stands_beside(tmp_path):
    assert sample(seed=1).save(tmp_path) == sample(seed=1).save(tmp_path)
    assert sample(seed=2).save(tmp_path) != sample(seed=1).save(tmp_path)
    assert len(list_results(tmp_path)[0]) == 2


def test_names_cannot_leave_the_store(tmp_path):
    folder = sample(subject="../../etc/passwd <script>").save(tmp_path)
    assert folder.parent == tmp_path
    assert folder.name.startswith("sample-etc-passwd-script-")


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing arrays", "no json", "half json"])
def test_damage_is_named_and_does_not_hide_the_others(tmp_path, damage):
    sample(seed=1).save(tmp_path)
    folder = sample(seed=2).save(tmp_path)
    arrays, record = folder / "arrays.nc", folder / "result.json"
    data = bytearray(arrays.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        arrays.write_bytes(data)
    elif damage == "truncate":
        arrays.write_bytes(data[:100])
    elif damage == "missing arrays":
        arrays.unlink()
    elif damage == "no json":
        record.unlink()
    else:
        record.write_text(record.read_text()[:50])
    with pytest.raises(StoreError):
        load_result(folder)
    sound, damaged = list_results(tmp_path)
    assert len(sound) == 1
    assert [path for path, _ in damaged] == [folder]


def test_an_exchange_that_fails_leaves_the_old_result(tmp_path, monkeypatch):
    folder = sample(seed=1).save(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def refuse(one, other):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staging, "exchange", refuse)
    with pytest.raises(StoreError, match="disk is full"):
        sample(seed=1).save(tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]


def test_a_failed_save_leaves_the_old_result(tmp_path, monkeypatch):
    folder = sample(seed=1).save(tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(StoreError, match="disk is full"):
        sample(seed=1).save(tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(tmp_path.iterdir()) == [folder]
