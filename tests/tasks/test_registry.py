"""Tasks by name, from a manifest and from the command line's text; a plugin's task beside the built-in ones."""

from dataclasses import dataclass
from importlib import metadata

import pytest

from wallprobe import plugins
from wallprobe.errors import ConfigError, UnknownNameError
from wallprobe.tasks import registry
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.tasks.sized import LengthTask

NAMES = ["recurrence", "quadratic", "backward", "opaque", "shuffled", "modulus", "length", "heldout-prefix"]


def test_the_built_in_tasks_come_through_the_entry_points():
    assert list(registry.tasks()) == NAMES
    entries = metadata.entry_points(group="wallprobe.tasks")
    assert [entry.value for entry in entries if entry.name == "builtin"] == ["wallprobe.tasks.registry:built_in"]


@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_gives_the_task_back(name):
    task = registry.get_task(name, program_prior=0.25)
    assert registry.from_manifest(task.config()) == task
    assert registry.from_manifest({"name": task.name, **task.config()}) == task
    assert task.label == f"{name}-program_prior-0_25"


def test_the_recurrence_keeps_the_manifest_entry_it_had():
    entry = {"modulus": 17, "length": 16, "program_prior": 0.5}
    assert RecurrenceTask().config() == entry
    assert registry.from_manifest(entry) == registry.from_manifest({"name": "recurrence", **entry}) == RecurrenceTask()
    assert RecurrenceTask(modulus=5).suffix == ""
    with pytest.raises(ConfigError, match="not task 'quadratic'"):
        RecurrenceTask.from_manifest(registry.get_task("quadratic").config())


def test_text_gives_a_task_and_its_fields():
    assert registry.parse_task("length:length=32") == LengthTask(length=32)
    assert registry.parse_task("length:length=60,room=80") == LengthTask(length=60, room=80)
    own = LengthTask(room=80)
    assert registry.parse_task(":length=60", own) == registry.parse_task("length:length=60", own) == LengthTask(length=60, room=80)
    assert registry.parse_task("heldout-prefix:split=held,bucket=2").split == "held"
    assert registry.parse_task("quadratic:program_prior=0.2").program_prior == 0.2
    assert registry.get_task("modulus", modulus=19).suffix == "-modulus-modulus-19"


WRONG = [
    ("riddle", UnknownNameError, "no task named 'riddle'; there are: recurrence, quadratic"),
    ("quadratic:room=5", ConfigError, "task quadratic has no 'room'; it takes: modulus, length, program_prior"),
    ("quadratic:length=long", ConfigError, "length 'long' of task quadratic is no int; the default is 16"),
    ("quadratic:length=", ConfigError, "length '' of task quadratic is no int"),
    ("quadratic:length", ConfigError, "'length' has no value"),
]


@pytest.mark.parametrize(("text", "error", "message"), WRONG)
def test_wrong_text_is_named(text, error, message):
    with pytest.raises(error, match=message):
        registry.parse_task(text)


def test_a_name_may_hold_condition_and_task():
    known = ("c0", "mask-6")
    quadratic = registry.get_task("quadratic")
    assert registry.split_name("c0", known, quadratic) == ("c0", quadratic)
    assert registry.split_name("mask-6-quadratic", known, RecurrenceTask()) == ("mask-6", quadratic)
    assert registry.split_name("c0-heldout-prefix", known, RecurrenceTask()) == ("c0", registry.get_task("heldout-prefix"))
    assert registry.split_name("c9", known, quadratic) == ("c9", quadratic)
    with pytest.raises(ConfigError, match="'c0-quadratic' names task quadratic, but backward was asked for"):
        registry.split_name("c0-quadratic", known, registry.get_task("backward"))


@dataclass(frozen=True)
class OddTask(RecurrenceTask):
    name = "odd"


def test_a_plugin_adds_a_task(monkeypatch):
    entries = [
        metadata.EntryPoint(name, value, "wallprobe.tasks")
        for name, value in (("a-odd", "wallprobe.tasks.registry:ODD"), ("builtin", "wallprobe.tasks.registry:built_in"))
    ]
    monkeypatch.setattr(registry, "ODD", OddTask, raising=False)
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: entries if group == "wallprobe.tasks" else [])
    plugins.load_group.cache_clear()
    try:
        assert list(registry.tasks()) == [*NAMES, "odd"]
        assert registry.get_task("odd", modulus=5).vocabulary == 5
    finally:
        monkeypatch.undo()
        plugins.load_group.cache_clear()
