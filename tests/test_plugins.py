"""Entry points: built-in parts come through them, a broken plugin is named and skipped."""

from importlib import metadata

import pytest

from wallprobe import plugins
from wallprobe.training.conditions import Condition, built_in, conditions


@pytest.fixture
def fake_entry_points(monkeypatch):
    """Replace the installed entry points by given (name, value) pairs."""

    def install(*pairs):
        entries = [metadata.EntryPoint(name, value, "wallprobe.conditions") for name, value in pairs]
        monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: entries if group == "wallprobe.conditions" else [])
        plugins.load_group.cache_clear()

    yield install
    monkeypatch.undo()
    plugins.load_group.cache_clear()


BUILT_IN = ("builtin", "wallprobe.training.conditions:built_in")


def test_the_built_in_conditions_are_registered():
    assert conditions() == built_in()


def test_a_plugin_adds_but_cannot_replace(fake_entry_points, monkeypatch):
    import wallprobe.training.conditions as module

    monkeypatch.setattr(module, "HELLO", Condition("hello", "entropy", "softmax_entropy", positions=(6,)), raising=False)
    monkeypatch.setattr(module, "CLASH", Condition("c0", "token", "softmax_ce"), raising=False)
    fake_entry_points(("a-hello", "wallprobe.training.conditions:HELLO"), ("clash", "wallprobe.training.conditions:CLASH"), BUILT_IN)
    known = conditions()
    assert known["hello"].positions == (6,)
    assert known["c0"].signal == "none"


def test_a_broken_plugin_is_named_and_skipped(fake_entry_points):
    fake_entry_points(("broken", "no_such_module_anywhere:thing"), BUILT_IN)
    with pytest.warns(plugins.PluginWarning, match=r"plugin broken of .* was skipped: ModuleNotFoundError"):
        known = conditions()
    assert list(known) == list(built_in())


def test_an_unknown_group_is_a_programming_error():
    with pytest.raises(ValueError, match=r"'wallprobe\.nonsense' is no plugin group"):
        plugins.load_group("wallprobe.nonsense")
