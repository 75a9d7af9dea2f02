"""Entry points: built-in parts come through them, a broken plugin is named and skipped."""

import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from wallprobe import plugins
from wallprobe.errors import InstrumentError
from wallprobe.training.wall.conditions import Condition, built_in, conditions


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


BUILT_IN = ("builtin", "wallprobe.training.wall.conditions:built_in")


def test_the_built_in_conditions_are_registered():
    assert dict(conditions()) | dict(built_in()) == dict(conditions())  # a developer may have plugins installed


def test_a_plugin_adds_but_cannot_replace(fake_entry_points, monkeypatch):
    import wallprobe.training.wall.conditions as module

    monkeypatch.setattr(module, "HELLO", Condition("hello", "entropy", "softmax_entropy", positions=(6,)), raising=False)
    monkeypatch.setattr(module, "CLASH", Condition("c0", "token", "softmax_ce"), raising=False)
    fake_entry_points(
        ("a-hello", "wallprobe.training.wall.conditions:HELLO"), ("clash", "wallprobe.training.wall.conditions:CLASH"), BUILT_IN
    )
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


def parts_of(group):
    """What the commands see of a group, by name."""
    from wallprobe.claims.ledger.claim import areas
    from wallprobe.hooks.attach.interventions import interventions
    from wallprobe.hooks.interchange.reads import reads
    from wallprobe.hooks.registry import instruments
    from wallprobe.tasks.registry import tasks
    from wallprobe.training.estimators.protocol import makers
    from wallprobe.training.wall.signals import routes, signals

    readers = {"conditions": conditions, "tasks": tasks, "instruments": instruments, "estimators": makers, "claims": areas}
    readers |= {"signals": signals, "routes": routes, "reads": reads, "interventions": interventions}
    readers["exhibits"] = lambda: plugins.load_group("wallprobe.exhibits")
    return readers[group.removeprefix("wallprobe.")]()


UNLOADABLE = {"no_such_module_anywhere:thing": "ModuleNotFoundError", "wallprobe.plugins:NO_SUCH_NAME": "AttributeError"}
# A function that cannot be called without arguments, and no function at all. An exhibit is not called before there is a Result:
# one that fails then becomes a table page (tests/gallery).
UNUSABLE = {"json:loads": "TypeError", "math:pi": "TypeError"}
BROKEN = [(group, *pair) for group in plugins.GROUPS for pair in UNLOADABLE.items()]
BROKEN += [(group, *pair) for group in plugins.GROUPS if group != "wallprobe.exhibits" for pair in UNUSABLE.items()]


@pytest.mark.parametrize(("group", "value", "error"), BROKEN)
def test_a_broken_plugin_of_any_group_is_named_and_the_rest_stands(monkeypatch, group, value, error):
    installed = list(metadata.entry_points(group=group))
    plugins.load_group.cache_clear()
    before = dict(parts_of(group))
    broken = metadata.EntryPoint("broken", value, group)
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: [broken, *installed])
    plugins.load_group.cache_clear()
    try:
        with pytest.warns(plugins.PluginWarning, match=rf"^plugin broken of .* \({value}\) was skipped: {error}"):
            found = parts_of(group)
        assert list(found) == list(before)
    finally:
        monkeypatch.undo()
        plugins.load_group.cache_clear()


def test_a_plugin_cannot_take_the_place_of_a_built_in_exhibit(monkeypatch):
    ours = metadata.EntryPoint("eval", "wallprobe.gallery.exhibits.evaluation:exhibit", "wallprobe.exhibits")
    theirs = metadata.EntryPoint("eval", "json:loads", "wallprobe.exhibits")
    for order in ([ours, theirs], [theirs, ours]):
        monkeypatch.setattr(plugins.metadata, "entry_points", lambda group, order=order: order)
        plugins.load_group.cache_clear()
        assert plugins.load_group("wallprobe.exhibits")["eval"].__module__ == "wallprobe.gallery.exhibits.evaluation"
    monkeypatch.undo()
    plugins.load_group.cache_clear()


def test_the_command_line_names_a_broken_plugin_on_one_line(tmp_path):
    """Installed as pip would have it: a distribution whose module is gone."""
    info = tmp_path / "odd-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[wallprobe.instruments]\nodd = odd_plugin:thing\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    command = [sys.executable, "-c", "import sys; sys.argv = ['wallprobe', 'measure']; from wallprobe.cli import main; main()"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    assert "geometry" in done.stdout
    (told,) = [line for line in done.stderr.splitlines() if line.startswith("wallprobe: ")]
    assert told.startswith("wallprobe: plugin odd of odd (odd_plugin:thing) was skipped: ModuleNotFoundError")


@pytest.mark.parametrize("group", plugins.LATER)
def test_ours_are_there_with_the_metadata_of_an_older_install(monkeypatch, group):
    """An editable install keeps the entry points of the day it was made."""
    entry = metadata.EntryPoint("plug", "tests.test_plugins:theirs", group)
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: [entry] if group == entry.group else [])
    plugins.load_group.cache_clear()
    found = parts_of(group)
    ours = metadata.EntryPoint("builtin", plugins.LATER[group], group).load()()
    assert list(found) == [*ours, *(name for name in theirs() if name not in ours)]
    assert {name: found[name] for name in ours} == dict(ours)  # theirs of the same name is not taken
    monkeypatch.undo()
    plugins.load_group.cache_clear()


def test_what_is_declared_is_what_an_older_install_falls_back_on():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
    declared = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]["entry-points"]
    assert set(declared) == {*plugins.GROUPS, plugins.PICTURES}
    assert {group: declared[group]["builtin"] for group in plugins.LATER} == dict(plugins.LATER)


class Own:
    """A part of whatever group it is put in."""

    def __init__(self, name):
        self.name, self.units = name, "nats"

    def __call__(self, *_):
        raise AssertionError("not called")


def theirs():
    return {name: Own(name) for name in ("none", "p", "swap", "own")}


@pytest.mark.parametrize(
    ("signal", "route", "told"),
    [
        (lambda data: data.label, "softmax_peak", "signal odd gives (8,); it must give a constant tensor [batch, position] = (8, 15)"),
        (lambda data: 1.0, "softmax_peak", "signal odd gives float; it must give"),
        (lambda data: data.posterior.entropy, lambda output, target: target.mean(), "route odd gives (); it must give one figure"),
    ],
)
def test_a_signal_or_route_of_the_wrong_shape_is_one_line(monkeypatch, tmp_path, signal, route, told):
    from wallprobe.training.wall import jobs, loop
    from wallprobe.training.wall.recipes import Recipe
    from wallprobe.training.wall.signals import routes

    for module in (jobs, loop):
        monkeypatch.setattr(module, "signals", lambda: {"odd": signal})
        monkeypatch.setattr(module, "routes", lambda: {"odd": routes()[route] if isinstance(route, str) else route})
    recipe = Recipe(preset="tiny", n_layers=1, d_model=8, n_heads=2, steps=2, batch=8, warmup=1)
    with pytest.raises(InstrumentError, match=re.escape(told)):
        loop.Trainer(jobs.Job(Condition("odd", "odd", "odd"), recipe), tmp_path).step()
