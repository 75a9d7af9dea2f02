"""Hostile values for every option and argument of every command: one line, exit 2, nothing written, nothing computed."""

import inspect
import os
import random
from typing import get_args

import pytest
import typer

from tests.cli.test_options import COMMANDS

WHOLE = ["-1", "0", "1.5", "x", "", "nan", "9" * 23]
NUMBERS = ["-1", "nan", "inf", "-inf", "x", "", "1e999"]
TEXTS = ["zz", "", "\n", "a" * 3000, "\udc80", "../../x", "nan"]
PATHS = ["", "FIFO", "a" * 3000, "FILE/within", "\x07"]
NAMES = {  # what each command is typed with, so that it would run
    "train": ["c0", "--preset", "tiny"],
    "interchange": ["--src", "p5", "--dst", "c0"],
    "readout": ["p5:c0"],
    "scaling": ["--published"],
    "rescale": ["c0", "--layers", "1"],
    "measure": ["gains", "c0"],
    "claims": ["wall"],
    "reproduce": ["wall"],
    "convert": ["FOLDER"],
    "audit run": ["--data", "synthetic"],
    "audit report": [],
    "audit campaign": ["--data", "synthetic"],
    "gallery compare": ["x", "y"],
    "runs": [],
    "gallery build": [],
    "gallery open": [],
    "gallery serve": ["--port", "0"],
    "gallery export": [],
    "equilibrium train": ["--preset", "tiny"],
    "equilibrium matched": ["--preset", "tiny"],
    "equilibrium gate": ["--preset", "tiny"],
    "equilibrium grid": ["--preset", "tiny"],
    "equilibrium campaign": ["--preset", "tiny"],
}
# Hostile in general and meant here.
MEANT = {
    ("--seed", "-1"),
    ("--seed", "0"),
    ("--patience", "0"),
    ("--port", "0"),
    ("--name", "zz"),  # of a run to be made
}
# A model's name is asked of the store, the disk and the hub: where that is patched away, it is asked.
ASKED = {(argument, value) for argument in ("models", "subject") for value in ("zz", "../../x", "nan")}


class Computing(Exception):
    """A command has begun to load or to train."""


def options_of(command):
    """Its options and arguments: name, as typed (None for an argument), kind of value."""
    for name, parameter in inspect.signature(command).parameters.items():
        kind, told = get_args(parameter.annotation)
        text = str(kind)
        if "bool" in text:
            continue
        option = None
        if isinstance(told, typer.models.OptionInfo):
            given = [] if told.default is ... else [told.default, *(told.param_decls or ())]
            option = next((one for one in given if isinstance(one, str) and one.startswith("--")), "--" + name.replace("_", "-"))
        yield name, option, WHOLE if "int" in text else NUMBERS if "float" in text else PATHS if "Path" in text else TEXTS


def cases(words, more=0):
    """(name, arguments) of a command: two of the usual values for each option; all, and `more` random ones, where more are asked."""
    base = NAMES.get(" ".join(words), ["c0"])
    for name, option, values in options_of(COMMANDS[words]):
        drawn = random.Random(f"{words} {name}")
        usual = values if more else drawn.sample(values, 2)
        for value in [*usual, *(hostile(drawn, values) for _ in range(more))]:
            if (option or name, value) in MEANT | ASKED:
                continue
            kept = list(base)
            if option in kept:
                place = kept.index(option)
                del kept[place : place + 2]
            elif option is None:
                kept = [value, *(kept[kept.index(first) :] if (first := next((one for one in kept if one.startswith("--")), None)) else [])]
            yield f"{option or name} {value[:20]!a}", [*words, *kept, *([f"{option}={value}"] if option else [])]


def hostile(drawn, values):
    """A random value that no option of that kind means."""
    if values is WHOLE:
        digits = ["1" + "0" * drawn.randint(10, 400), "-" + "9" * drawn.randint(10, 60), str(drawn.uniform(0.1, 9.9))]
        return drawn.choice([*digits, "0x1f", "1_0 0", "¹", "1e3", "½"])
    if values is NUMBERS:
        return drawn.choice(["1e400", "-1e400", "0x1p3", "1,5", "--", "NaN", "Infinity", "1" * 500 + "e999", "½", "5%"])
    letters = "".join(chr(drawn.choice([*range(1, 32), 127, 0xD800 + drawn.randint(0, 2047)])) for _ in range(drawn.randint(1, 12)))
    return drawn.choice([letters, "x" * drawn.randint(1001, 5000), f"{letters}/{letters}", "\t", "a\nb", "\x1b[31mred"])


@pytest.fixture
def sealed(monkeypatch, tmp_path):
    """What would load a model, train or serve says so instead; and what a path may be, other than a folder."""
    from wallprobe import models
    from wallprobe.gallery import server
    from wallprobe.models import loading
    from wallprobe.training.audit import campaign
    from wallprobe.training.audit import loop as audits
    from wallprobe.training.engines import sweep
    from wallprobe.training.equilibrium import loop as equilibria
    from wallprobe.training.equilibrium import work
    from wallprobe.training.wall import loop

    def computing(*_, **__):
        raise Computing

    for module in (models, loading):
        for name in ("load", "load_run", "load_plain"):
            monkeypatch.setattr(module, name, computing)
    monkeypatch.setattr(loop.Trainer, "step", computing)
    monkeypatch.setattr(sweep, "make_engine", computing)
    monkeypatch.setattr(audits.Training, "__init__", computing)
    monkeypatch.setattr(campaign, "_run_in_pool", computing)
    monkeypatch.setattr(equilibria.Trainer, "__init__", computing)
    monkeypatch.setattr(work, "_in_pool", computing)
    monkeypatch.setattr(server.Gallery, "__enter__", computing)
    monkeypatch.setattr("webbrowser.open", lambda *_: True)
    there = tmp_path / "there"
    (there / "folder").mkdir(parents=True)
    (there / "file").write_text("a file")
    os.mkfifo(there / "fifo")
    return {"FOLDER": there / "folder", "FILE": there / "file", "FIFO": there / "fifo"}


def survives(invoke, monkeypatch, tmp_path, sealed, arguments):
    """What is wrong with how a command took its arguments; empty if nothing."""
    work = tmp_path / "work"
    work.mkdir(exist_ok=True)
    monkeypatch.chdir(work)
    for mark, path in sealed.items():
        arguments = [one.replace(mark, str(path)) for one in arguments]
    code, out, err = invoke(*arguments)
    lines = [line for line in err.splitlines() if line.strip()]
    left = sorted(path.relative_to(work).as_posix() for path in work.rglob("*"))
    if code == 2 and len(lines) == 1 and lines[0].startswith("wallprobe: ") and not out and not left:
        return ""
    return f"exit {code}, out {out[:60]!r}, err {lines[:3]}, left {left[:3]}"


def walk(invoke, monkeypatch, tmp_path, sealed, words, more=0):
    return [
        f"{what}: {wrong}"
        for what, arguments in cases(words, more)
        if (wrong := survives(invoke, monkeypatch, tmp_path, sealed, arguments))
    ]


def test_there_are_cases_enough():
    assert sum(len(list(cases(words))) for words in COMMANDS) > 600
    assert sum(len(list(cases(words, 15))) for words in COMMANDS) > 5000


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_no_hostile_value_gets_further_than_one_line(invoke, monkeypatch, tmp_path, sealed, words):
    assert walk(invoke, monkeypatch, tmp_path, sealed, words) == []


@pytest.mark.slow
@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_nor_does_a_random_one(invoke, monkeypatch, tmp_path, sealed, words):
    assert walk(invoke, monkeypatch, tmp_path, sealed, words, 15) == []
