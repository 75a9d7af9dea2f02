"""The example plugin, uninstalled: its declared entry points are injected, and each part is reached from the command line."""

import json
from importlib import metadata
from pathlib import Path

import pytest

from wallprobe import plugins
from wallprobe.errors import UnknownNameError
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
    assert added.keys() == set(plugins.GROUPS) - {"wallprobe.estimators", "wallprobe.routes"}
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


@pytest.mark.usefixtures("hello")
def test_a_signal_of_a_plugin_trains_and_resumes_to_the_same_bytes(invoke, tmp_path):
    from wallprobe.store import runs
    from wallprobe.training.wall.conditions import get_condition
    from wallprobe.training.wall.jobs import Job
    from wallprobe.training.wall.loop import Trainer, train

    assert invoke("train", "hello-peak", "--preset", "tiny", "--compile", "off")[0] == 0
    whole = runs.open_run(tmp_path / "runs" / "hello-peak@42")
    assert whole.manifest["config"]["condition"]["signal"] == "peak"
    job = Job(get_condition("hello-peak"), MICRO)
    half = Trainer(job, tmp_path / "again" / "hello-peak@42")
    half.folder.mkdir(parents=True)
    losses = [float(half.step()[1]) for _ in range(3)]
    assert min(losses) > 0
    half.save()
    assert train(job, tmp_path / "again").manifest["weight_hash"] == whole.manifest["weight_hash"]
    # The signal decides the weights: another one gives others.
    invoke("train", "c0", "--preset", "tiny", "--compile", "off")
    assert runs.open_run(tmp_path / "runs" / "c0@42").manifest["weight_hash"] != whole.manifest["weight_hash"]


@pytest.mark.usefixtures("hello")
def test_a_read_and_an_intervention_of_a_plugin_work_by_name(invoke, tmp_path):
    for name in ("c0", "c1"):
        assert invoke("train", name, "--preset", "tiny", "--compile", "off")[0] == 0
    typed = ("--src", "c1", "--dst", "c0", "--layer", "0", "--pairs", "40", "--read", "margin", "--intervention", "half", "--json")
    code, out, err = invoke("interchange", *typed)
    assert code == 0, err
    found = json.loads(out)
    assert (found["manifest"]["config"]["reads"], found["manifest"]["config"]["intervention"]) == (["margin"], "half")
    assert all(row["margin"] is not None and row["margin_random"] is not None for row in found["values"])

    from wallprobe.hooks.interchange.request import Request
    from wallprobe.hooks.interchange.run import interchange

    made = interchange(Request("c1", "c0", layers=(0,), pairs=40, reads=("margin",), intervention="half"), root=tmp_path / "runs")
    assert [row["margin"] for row in made.values] == pytest.approx([row["margin"] for row in found["values"]])
    swapped = interchange(Request("c1", "c0", layers=(0,), pairs=40, reads=("margin",)), root=tmp_path / "runs")
    assert [row["margin"] for row in made.values] != [row["margin"] for row in swapped.values]


@pytest.mark.usefixtures("hello")
@pytest.mark.parametrize(
    ("typed", "told"),
    [
        (("--read", "nothing"), "no read named 'nothing'; there are: p, log_p, logit_difference, rank, kl, margin"),
        (("--intervention", "nothing"), "no intervention named 'nothing'; there are: swap, zero, mean, half"),
    ],
)
def test_an_unknown_read_or_intervention_is_one_line(invoke, tmp_path, typed, told):
    code, out, err = invoke("interchange", "--src", "p5", "--dst", "c0", *typed)
    assert (code, out, err) == (2, "", f"wallprobe: {told}\n")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_signal_or_route_is_one_line_before_a_folder_is_made(invoke, tmp_path, monkeypatch):
    from wallprobe.training.wall import conditions
    from wallprobe.training.wall.conditions import Condition
    from wallprobe.training.wall.jobs import Job

    known = {one.name: one for one in (Condition("lost", "nothing", "none"), Condition("astray", "entropy", "nowhere"))}
    real = conditions.conditions()
    monkeypatch.setattr(conditions, "conditions", lambda: {**real, **known})
    for name, told in (
        ("lost", "no signal named 'nothing'; there are: none, entropy,"),
        ("astray", "no route named 'nowhere'; there are: none,"),
    ):
        with pytest.raises(UnknownNameError, match=told):
            Job(known[name], MICRO)
        code, out, err = invoke("train", name, "--preset", "tiny", "--compile", "off")
        assert (code, out) == (2, "")
        assert err.startswith(f"wallprobe: {told}")
        assert err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
