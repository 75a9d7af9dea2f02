"""The doctor on plugins: what is installed passes; a broken part is named with its distribution, entry point and reason."""

import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
import torch

from wallprobe import plugins
from wallprobe.doctor import distributions, drawn, examine_plugins, parts
from wallprobe.errors import UnknownNameError
from wallprobe.gallery import Exhibit
from wallprobe.hooks.interchange.reads import FromFunction
from wallprobe.hooks.registry import Instrument
from wallprobe.store.results import Result, dataset
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.training.estimators.protocol import GradResult
from wallprobe.training.wall.conditions import Condition

EXAMPLE = Path(__file__).parents[2] / "examples" / "wallprobe-hello"


@pytest.fixture
def installed(monkeypatch):
    """Entry points beside the real ones: a function of (group, name, value)s."""
    real = metadata.entry_points

    def add(*declared):
        added = [metadata.EntryPoint(name, value, group) for group, name, value in declared]
        ours = lambda group: [*real(group=group), *(one for one in added if one.group == group)]  # noqa: E731
        monkeypatch.setattr(plugins.metadata, "entry_points", ours)
        plugins.load_group.cache_clear()

    yield add
    monkeypatch.undo()
    plugins.load_group.cache_clear()


def failing(name):
    return [(check.of, check.what, check.told) for check in examine_plugins(name) if check.passed is False]


def test_what_is_built_in_passes():
    checks = list(examine_plugins("wallprobe"))
    assert [check for check in checks if check.passed is False] == []
    assert len(checks) > 300
    assert {check.of.split()[1] for check in checks} == {group.removeprefix("wallprobe.") for group in plugins.GROUPS}


def test_the_example_passes_from_the_command_line(installed, invoke, monkeypatch, tmp_path):
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
    declared = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]["entry-points"]
    monkeypatch.syspath_prepend(str(EXAMPLE))
    installed(*((group, name, value) for group, given in declared.items() for name, value in given.items()))
    if "wallprobe-hello" in distributions():
        pytest.skip("the example is installed here, and its own tests look at it")
    code, out, err = invoke("doctor", "wallprobe_hello", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["kind"] == "doctor"
    assert found["summary"] == {"subject": "wallprobe_hello", "checks": len(found["values"]), "failed": 0}
    assert len({row["of"] for row in found["values"]}) == sum(map(len, declared.values()))
    code, out, err = invoke("doctor", "wallprobe-hello")
    assert (code, err) == (0, "")
    assert "wallprobe_hello: reads margin (wallprobe_hello.read:MARGIN)" in " ".join(out.split())
    assert list(tmp_path.iterdir()) == []


class Mean:
    """One figure for all pairs."""

    name, units = "bad", "logits"

    def __call__(self, logits, pairs):
        return {"": logits.mean()}


BAD_READ = Mean()
FIGURES = "tests: reads bad (tests.doctor.test_plugin:BAD_READ): bad: gives one figure a pair: no, gives () of logits (6, 11), not (6,)"
GRADIENT = "gives a gradient in each parameter's shape, and a loss"
LOSS = "gives one loss a sequence and position, with a gradient"
PUT = "gives [pair, d_dst] and leaves what it is given"


def test_a_broken_read_is_named_and_the_exit_code_says_so(installed, invoke):
    installed(("wallprobe.reads", "bad", "tests.doctor.test_plugin:BAD_READ"), ("wallprobe.tasks", "gone", "no_such_module:thing"))
    code, out, _ = invoke("doctor")
    assert code == 1
    lines = out.splitlines()
    assert FIGURES in lines
    assert "no_such_module: tasks gone (no_such_module:thing): loads: no, ModuleNotFoundError: No module named 'no_such_module'" in lines
    code, out, _ = invoke("doctor", "tests", "--json")
    assert (code, json.loads(out)["summary"]["failed"]) == (1, 2)  # neither a figure a pair, nor of each pair


def test_a_name_that_is_taken_and_a_part_of_another_kind_are_named(installed):
    installed(
        ("wallprobe.conditions", "mine", "tests.doctor.test_plugin:CLASH"),
        ("wallprobe.instruments", "odd", "math:pi"),
        ("wallprobe.interventions", "odd", "json:loads"),
    )
    assert [(what, told) for _, what, told in failing("tests")] == [
        (
            "c0: its name is free",
            "wallprobe: conditions builtin (wallprobe.training.wall.conditions:built_in) has the name 'c0' too, and is used instead",
        )
    ]
    assert [of for of, _, _ in failing("math")] == ["math: instruments odd (math:pi)"]
    assert [what for _, what, _ in failing("json")] == ["gives what its group takes"]


CLASH = Condition("c0", "token", "softmax_ce")


def test_an_unknown_plugin_or_model_is_one_line(invoke, tmp_path):
    with pytest.raises(UnknownNameError, match=r"no plugin named 'nobody'; there are: wallprobe"):
        list(examine_plugins("nobody"))
    code, out, err = invoke("doctor", "nobody")
    assert (code, out) == (2, "")
    assert err.startswith("wallprobe: no run named 'nobody'")
    assert "plugins: wallprobe" in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_model_from_the_command_line(invoke, tmp_path):
    code, out, err = invoke("doctor", "c0")
    assert (code, err) == (0, "")
    assert "22 of 22 checks hold." in out
    assert list(tmp_path.iterdir()) == []


class Leaky(RecurrenceTask):
    """Its answer knows the last token."""

    def posterior(self, tokens, dtype=torch.float64):
        said = super().posterior(tokens, dtype)
        return replace(said, predictive=said.predictive.roll(int(tokens.shape[1]), -1))


class Heavy(RecurrenceTask):
    def posterior(self, tokens, dtype=torch.float64):
        said = super().posterior(tokens, dtype)
        return replace(said, predictive=said.predictive * 1.01)


class Restless(RecurrenceTask):
    def sample(self, count, generator):
        return super().sample(count, torch.Generator().manual_seed(torch.seed() % 1000))


def of_net(model, seed):
    return lambda model, batch: GradResult({"nothing": torch.zeros(1)}, torch.zeros(()))


def nothing(model, seed):
    raise RuntimeError("no luck")


def result(kind):
    manifest = {"subject": "x", "weight_hash": "0", "created": "2026-01-01"}
    return Result(kind, dataset({"position": [2]}, {}), ("position",), {}, manifest)


def in_place(base, source):
    base += source
    return base


WRONG = [
    (parts.task, Heavy, "its posterior is a distribution, with its entropy and its best token", "probabilities sum to 1 only to 1.0e-02"),
    (parts.task, Leaky, "its posterior looks at nothing ahead", "the answer to the first 5 tokens is off by"),
    (parts.task, Restless, "draws [batch, index] tokens from the generator alone", "the same generator gave other sequences"),
    (parts.condition, Condition("x", "nothing", "none"), "its signal and its route are there", "no signal named 'nothing'"),
    (
        parts.condition,
        Condition("x", "entropy", "none", (99,)),
        "its positions lie within a sequence",
        "positions [99] lie outside",
    ),
    (
        parts.instrument,
        Instrument("x", lambda: result("x"), "model"),
        "takes what it says it needs, and no more without a default",
        "TypeError: too many positional arguments",
    ),
    (parts.exhibit, lambda: None, "takes one Result", "TypeError: too many positional arguments"),
    (drawn.signal, lambda data: data.label, "gives a constant target, one entry a sequence and position", "signal x gives (8,)"),
    (
        drawn.signal,
        lambda data: torch.full_like(data.posterior.entropy, torch.nan),
        "gives a constant target, one entry a sequence and position",
        "its target has entries that are not finite",
    ),
    (
        drawn.signal,
        lambda data: torch.randn(data.posterior.entropy.shape),
        "gives the same target to the same step",
        "the same step gave another target",
    ),
    (drawn.route, lambda output, target: target.mean(), LOSS, "route x gives ()"),
    (drawn.route, lambda output, target: target, LOSS, "no gradient flows"),
    (
        drawn.read,
        FromFunction(lambda logits, pairs: logits[..., 0] - logits[..., 0].mean(-1, keepdim=True), "x"),
        "reads each pair by itself",
        "a pair's figure depends on which other pairs",
    ),
    (
        drawn.intervention,
        lambda base, source: source[:, :3],
        "gives [pair, d_dst] and leaves what it is given",
        "gives (torch.float32, (6, 3))",
    ),
    (drawn.intervention, in_place, PUT, "it changed what it was given"),
    (drawn.intervention, lambda base, source: torch.randn_like(base), "gives the same again", "gave another activation"),
    (drawn.estimator, of_net, GRADIENT, "gives a gradient of 'nothing'"),
    (
        drawn.estimator,
        nothing,
        "gives a gradient in each parameter's shape, and a loss",
        "takes no kind of model: a network of the audit: Run",
    ),
]


@pytest.mark.parametrize(("checks", "part", "what", "told"), WRONG, ids=lambda value: value if isinstance(value, str) else None)
def test_what_a_part_does_wrong_is_told(checks, part, what, told):
    from wallprobe.doctor.check import made

    found = {check.what: check for check in (made("x", asked, ask) for asked, ask in checks("x", part))}
    assert found[what].passed is False
    assert found[what].told.startswith(told)


def test_an_exhibit_is_tried_on_the_newest_result_of_its_kind(tmp_path):
    asked = dict(parts.exhibit("odd", lambda one: one.kind, parts.Stores(results=tmp_path)))
    draws = asked["draws the newest stored Result of its kind"]
    assert draws() is None
    result("odd").save(tmp_path)
    with pytest.raises(Exception, match="gave str, not an Exhibit"):
        draws()
    sound = dict(parts.exhibit("odd", lambda one: Exhibit("A finding.", ()), parts.Stores(results=tmp_path)))
    assert sound["draws the newest stored Result of its kind"]() == "A finding."
