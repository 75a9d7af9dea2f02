"""Odd places to run in, one by one: a command works there, or says so in one line and writes nothing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WALLPROBE = Path(sys.executable).with_name("wallprobe")


def run(shell, tmp_path, **more):
    """A shell line with $W for the command, in an empty folder; exit code, stdout and stderr."""
    environment = {**os.environ, "W": str(WALLPROBE), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **more}
    environment = {name: value for name, value in environment.items() if value is not None}
    done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("name", "shell", "more"),
    [
        ("ascii", "$W runs", {"PYTHONIOENCODING": "ascii"}),
        ("LANG=C", "$W runs", {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"}),
        ("no HOME", "$W runs", {"HOME": None, "XDG_CACHE_HOME": None}),
        ("a home that takes nothing", "$W runs", {"HOME": "/proc/1/task", "XDG_CACHE_HOME": None}),
        ("enough memory", "ulimit -v 8000000; $W runs", {}),
    ],
    ids=lambda value: value if isinstance(value, str) and "$W" not in value else "",
)
def test_a_command_works_in(name, shell, more, tmp_path):
    code, out, err = run(shell, tmp_path, **more)
    assert (code, err) == (0, ""), name
    assert "c0" in out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("shell", "said"),
    [
        ("$W runs > /dev/full", "the system refuses: No space left on device; free some space, or write elsewhere"),
        ("$W runs --json > /dev/full", "the system refuses: No space left on device"),
        ("mkdir gone; cd gone; rmdir ../gone; $W runs", "the current folder is gone; change to one that is there (cd) and run this again"),
        ("ulimit -v 400000; $W eval c0", "there is not enough memory for this"),
        ("$W eval c0 --device meta", "device 'meta' cannot be used here"),
        ("$W reproduce wall --preset tiny", "preset tiny is over before anything is learnt"),
        ("$W audit run --option zz=1", "training method dfa does not take zz"),
        ("$W equilibrium train --method zz", "no training method named 'zz'"),
        ("$W eval c0@99999999999999999999", "no run named 'c0@99999999999999999999'"),
        ("$W eval $'c0\\n'", "has characters that cannot be printed"),
        ("$W interchange --src p5 --dst c0 --layer ''", "--layer is empty"),
        ("$W gallery export --out ''", "--out is empty"),
    ],
)
def test_a_command_says_so_in_one_line_and_writes_nothing(shell, said, tmp_path):
    code, _, err = run(shell, tmp_path)
    assert code == 2
    assert err.startswith("wallprobe: ")
    assert said in err
    assert len(err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
