"""A Result that takes the place of one with other bytes says so where threads, device or versions explain it, and only there."""

import warnings
from dataclasses import replace

import pytest

from tests.gallery import samples
from wallprobe.errors import UnknownNameError
from wallprobe.store.results import OtherBytesWarning, Result
from wallprobe.tasks import registry
from wallprobe.tasks.recurrence import RecurrenceTask


def made(threads=1, torch="2.13.0", shift=0.0) -> Result:
    result = samples.evaluation("c0")
    name = next(name for name, array in result.data.data_vars.items() if array.dtype.kind == "f")
    data = result.data.copy(deep=True)
    data[name] = data[name] + shift
    return replace(result, data=data, manifest=result.manifest | {"threads": threads, "versions": {"torch": torch}})


@pytest.mark.parametrize(
    ("other", "said"),
    [(made(threads=2, shift=1e-3), "threads 1 -> 2"), (made(torch="2.14.0", shift=1e-3), "torch 2.13.0 -> 2.14.0")],
)
def test_other_bytes_with_other_settings_are_told(other, said, tmp_path):
    made().save(tmp_path)
    with pytest.warns(OtherBytesWarning, match=f"replaces one with other bytes, made with other settings: {said}"):
        other.save(tmp_path)


@pytest.mark.parametrize("other", [made(), made(threads=2), made(shift=1e-3)])
def test_equal_bytes_or_equal_settings_are_not(other, tmp_path):
    made().save(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        other.save(tmp_path)


def test_a_task_whose_plugin_is_gone_names_it(monkeypatch):
    class Foreign(RecurrenceTask):
        name = "foreign"

    monkeypatch.setattr(registry, "distribution", lambda group, part: "somebodys-tasks")
    entry = registry.to_manifest(Foreign())
    assert entry["plugin"] == "somebodys-tasks"
    with pytest.raises(
        UnknownNameError, match="no task named 'foreign': the run was trained with plugin somebodys-tasks, which is not inst"
    ):
        registry.from_manifest(entry)
    monkeypatch.undo()
    assert registry.from_manifest(registry.to_manifest(RecurrenceTask())) == RecurrenceTask()
    assert "plugin" not in registry.to_manifest(RecurrenceTask())
