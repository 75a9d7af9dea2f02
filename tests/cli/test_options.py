"""The command tree, walked: every command answers --help, and an option of one name is one declaration wherever it stands."""

import inspect
import os
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Annotated, get_args

import pytest
import typer
from typer.testing import CliRunner

from wallprobe import cli
from wallprobe.cli import options

# Options that commands share by name alone -> why one declaration would say something untrue of one of them.
HOMONYMS = {
    "--arch": "audit run names the architectures there are, audit report picks among stored ones",
    "--budget": "a sweep's counts all that it holds, readout's the patched states alone",
    "--data": "audit run and campaign name data there are (wall's only in the first), audit report picks among stored ones",
    "--index": "interchange takes one index without --sweep, and shows another default",
    "--layer": "interchange takes layer 3 without --sweep; for ablate and probe a layer is always given",
    "--length": "tokens of a task's sequence (eval) or of a window of text",
    "--method": "of an ablation, of training, of an equilibrium's gradient",
    "--modulus": "train has a default, eval takes the run's own",
    "--option": "of an audited method or of an equilibrium's estimator",
    "--out": "a folder of pages, or the zip of gallery export",
    "--preset": "of the wall, of equilibria, or of the runs a ledger reads: three lists of presets",
    "--prompts": "sets of texts for gains or for diagnostics, with other defaults; for interchange a file of pairs",
    "--remote": "gains sends back norms alone",
    "--samples": "of an epoch, or looked at by a check",
    "--seed": "train's is of the names that have none, and is not to be given beside --seeds",
    "--seeds": "not given to train is --seed's; equilibrium grid needs two",
    "--sequences": "programs alone for ablate and rescue, ten at least",
    "--set": "of an instrument, or of a recipe",
    "--site": "geometry has no z; interchange takes lists where --sweep is given",
    "--steps": "of a training, of a nudged phase, of each point of a grid",
    "--subspace": "interchange may do without",
    "--targets": "of a probe, or residuals of a grid",
    "--task": "train's, or another than the run's own for eval",
    "--text": "windows to diagnose on, or what an equilibrium is trained on",
    "--tokens": "one sequence to attend to, or the mean over tokens",
}


def walk(app=None, path=()):
    """Every command: its words and the function typer calls."""
    made = app or cli.build_app()
    for command in made.registered_commands:
        yield (*path, command.name), command.callback
    for group in made.registered_groups:
        yield from walk(group.typer_instance, (*path, group.name))


COMMANDS = dict(walk())


def declared():
    """Of every option's name: its declarations, each with the commands that have it."""
    found = defaultdict(lambda: defaultdict(set))
    for words, callback in COMMANDS.items():
        for name, parameter in inspect.signature(callback).parameters.items():
            kind, told = get_args(parameter.annotation)
            if isinstance(told, typer.models.OptionInfo):
                given = [] if told.default is ... else [told.default, *(told.param_decls or ())]
                flag = next((one for one in given if one.startswith("--")), "--" + name.replace("_", "-"))
                found[flag.partition("/")[0]][kind, id(told)].add(words)
    return found


def test_the_tree_has_every_command():
    assert {words[0] for words in COMMANDS} == set(cli.COMMANDS)
    assert len(COMMANDS) > len(cli.COMMANDS) > 20


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_answers_help_with_every_option(invoke, words):
    code, out, err = invoke(*words, "--help")
    assert (code, err) == (0, "")
    assert "Usage: wallprobe" in out.replace("\n", " ")
    assert inspect.getdoc(COMMANDS[words])


@pytest.mark.parametrize("name", declared())
def test_an_option_of_one_name_is_declared_once(name):
    several = {tuple(sorted(" ".join(words) for words in commands)) for commands in declared()[name].values()}
    if name in HOMONYMS:
        assert len(several) > 1, f"{name} is one declaration by now; take it off the list"
    else:
        assert len(several) == 1, f"{name} is declared by each of {sorted(several)}; declare it in cli/options.py, once"


def test_no_homonym_is_listed_that_is_gone():
    assert HOMONYMS.keys() <= declared().keys()


def test_completion_offers_what_a_dataclass_unfolds_into():
    code = "import sys; sys.argv = ['wallprobe']; from wallprobe.cli import main; main()"
    asked = {"_WALLPROBE_COMPLETE": "complete_bash", "COMP_WORDS": "wallprobe audit report --tau", "COMP_CWORD": "3"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | asked)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"--tau-{end}" for end in ("inflation", "growth", "floor", "share", "bias", "elasticity")]


@dataclass(frozen=True)
class Inner:
    plain: int = field(default=3, metadata={"option": "--plain-number", "help": "A number.", "min": 1})
    own: Annotated[str, typer.Option(help="Words.")] = "a"
    hidden: float = 0.5


@dataclass(frozen=True)
class Fixed(Inner):
    plain: int = 7


def test_a_dataclass_comes_back_whole():
    seen = []

    def command(first: str, *, inner: Inner, last: bool = False):
        seen.append((first, inner, last))

    made = options.unfolded(command)
    parameters = inspect.signature(made).parameters
    assert list(parameters) == ["first", "plain", "own", "last"]
    assert [parameters[name].default for name in ("plain", "own", "last")] == [3, "a", False]
    made(first="x", plain=5, own="b", last=True)
    assert seen == [("x", Inner(plain=5, own="b", hidden=0.5), True)]


def test_a_field_without_its_option_is_fixed():
    assert list(options.options_of(Fixed)) == ["own"]


def test_only_what_an_option_says_is_refused():
    app = typer.Typer()

    def command(*, inner: Inner):
        print(inner.plain)  # noqa: T201

    app.command()(options.unfolded(command))
    runner = CliRunner()
    assert runner.invoke(app, ["--plain-number", "2"]).stdout == "2\n"
    assert runner.invoke(app, ["--plain-number", "0"]).exit_code == 2
    assert runner.invoke(app, []).stdout == "3\n"
