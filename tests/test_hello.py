"""The example plugin, uninstalled: its declared entry points are injected, and each part is reached from the command line."""

import json
from importlib import metadata
from pathlib import Path

import pytest

from wallprobe import plugins
from wallprobe.training.wall import recipes

EXAMPLE = Path(__file__).parents[1] / "examples" / "wallprobe-hello"
MICRO = recipes.Recipe(preset="tiny", n_layers=1, d_model=8, n_heads=2, steps=6, batch=8, warmup=1)


@pytest.fixture
def hello(monkeypatch):
    """What an installation would declare, beside what is installed."""
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
    declared = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]
    real = metadata.entry_points
    added = {group: [metadata.EntryPoint(name, value, group) for name, value in parts.items()] for group, parts in declared.items()}
    assert added.keys() == set(plugins.GROUPS) - {"wallprobe.estimators"}
    monkeypatch.syspath_prepend(str(EXAMPLE))
    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: [*real(group=group), *added.get(group, [])])
    monkeypatch.setattr(recipes, "RECIPES", {"tiny": MICRO})
    plugins.load_group.cache_clear()
    yield
    monkeypatch.undo()
    plugins.load_group.cache_clear()


@pytest.mark.usefixtures("hello")
def test_every_part_is_reached_from_the_command_line(invoke, tmp_path):
    code, _, err = invoke("train", "hello", "--task", "hello", "--preset", "tiny", "--compile", "off")
    assert code == 0, err
    manifest = json.loads((tmp_path / "runs" / "hello-hello@42" / "manifest.json").read_text())
    assert (manifest["condition"], manifest["task"]["name"]) == ("hello", "hello")

    listed = json.loads(invoke("measure", "--json")[1])["summary"]
    assert {"name": "hello", "needs": "run", "options": {"sequences": 1000, "seed": 0}} in [
        {key: row[key] for key in ("name", "needs", "options")} for row in listed
    ]
    found = json.loads(invoke("measure", "hello", "hello-hello", "--set", "sequences=200", "--json")[1])
    assert (found["kind"], found["manifest"]["config"]["sequences"]) == ("hello", 200)
    assert 0 < found["summary"]["program_beyond"] < 1

    judged = json.loads(invoke("claims", "hello", "--preset", "tiny", "--json")[1])
    assert [row["id"] for row in judged["values"]] == ["hello.hello.answers"]
    assert judged["values"][0]["verdict"] in ("reproduced", "not reproduced")
    assert judged["values"][0]["measured"] == pytest.approx(found["summary"]["program_beyond"] - found["summary"]["noise_beyond"])

    assert invoke("gallery")[0] == 0
    (page,) = (tmp_path / "gallery" / "results").glob("hello-*.html")
    text = page.read_text()
    assert "The probability of the token two back, by position" in text
    assert "failed" not in text
