"""The tests stay at home: stores and caches that lie about change nothing and are not touched, and who strays is told."""

import os
import subprocess
import sys

import pytest

from tests import decoys, home

# Tests that find runs by name, the fixtures of sessions and modules among them, that ask for models of the hub, and that start processes.
SLICE = (
    "tests/store/test_runs.py",
    "tests/gallery/test_runpages.py",
    "tests/gallery/test_store.py::test_a_runs_page_follows_its_results",
    "tests/cli/test_gallery.py",
    "tests/cli/test_measure.py::test_what_is_no_result_is_refused",
    "tests/hooks/gains/test_measure.py::test_a_hub_id_in_the_local_cache",
)
STRAYS = """
import os, pkgutil, subprocess, sys
from pathlib import Path
import pytest
import torch

START, HOME = Path(os.environ["PLANTED"]) / "start", Path(os.environ["PLANTED"]) / "home"

@pytest.fixture(scope="module")
def store():
    return (START / "runs" / "c0@42" / "manifest.json").read_text()

def test_reads_a_run_in_a_fixture(store): pass
def test_lists_results(): os.listdir(START / "results")
def test_looks_for_what_is_not_there():
    with pytest.raises(FileNotFoundError):
        open(START / "gallery.zip")
def test_reads_a_token(): (HOME / ".cache" / "huggingface" / "token").read_text()
def test_reads_what_a_variable_named(): (Path(os.environ["PLANTED"]) / "elsewhere" / "runs" / "stray.txt").read_text()
def test_leaves_a_thread_more():
    torch.set_num_threads(torch.get_num_threads() + 1)

def test_at_home_by_relative_paths():
    assert not list(Path().iterdir())
    Path("runs").mkdir()
    Path("results").write_text("")

def test_at_home_where_all_modules_are_asked_for(monkeypatch):
    monkeypatch.syspath_prepend(START)
    assert list(pkgutil.iter_modules())

def test_at_home_in_another_process():
    script = "import os; print(os.path.expanduser('~/.cache'), os.getcwd(), os.environ.get('WALLPROBE_RUNS'), os.environ.get('HF_HOME'))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert os.environ["PLANTED"] not in said
    assert said.split()[2:] == ["None", "None"]
"""


@pytest.fixture
def planted(tmp_path):
    """Decoys where pytest is started, in $HOME, and where the variables of wallprobe and of libraries point."""
    for name in ("start", "elsewhere"):
        decoys.plant_stores(tmp_path / name)
    decoys.plant_home(tmp_path / "home")
    return tmp_path


def pytest_in(planted, *arguments):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_") and name != home.PROTECTED}
    environment |= {
        "COLUMNS": "1000",  # the summary's lines whole
        "PLANTED": str(planted),
        "HOME": str(planted / "home"),
        "HF_HOME": str(planted / "home" / ".cache" / "huggingface"),
        "XDG_CACHE_HOME": str(planted / "home" / ".cache"),
        "WALLPROBE_RUNS": str(planted / "elsewhere" / "runs"),
        "WALLPROBE_RESULTS": str(planted / "elsewhere" / "results"),
        "WALLPROBE_DATA": str(planted / "elsewhere"),
    }
    command = [sys.executable, "-m", "pytest", "-c", str(home.ROOT / "pyproject.toml"), "--rootdir", str(home.ROOT)]
    command += ["-p", "no:cacheprovider", "--tb=short", *arguments]
    return subprocess.run(command, cwd=planted / "start", env=environment, capture_output=True, text=True)


def test_decoys_change_nothing_and_are_not_touched(planted):
    before = decoys.fingerprint(planted)
    done = pytest_in(planted, "-m", "not slow and not browser", *(str(home.ROOT / name) for name in SLICE))
    assert done.returncode == 0, done.stdout
    after = {name: held for name, held in decoys.fingerprint(planted).items() if not name.startswith("start/.hypothesis")}
    assert after == before


def test_who_strays_is_told(planted):
    (planted / "test_strays.py").write_text(STRAYS)
    done = pytest_in(planted, "-p", "tests.conftest", "-p", "no:randomly", "-rE", str(planted / "test_strays.py"))
    told = [line.partition(" - ")[::2] for line in done.stdout.splitlines() if line.startswith("ERROR ")]
    found = {name.rpartition("::")[2]: why for name, why in told}
    start, house = planted / "start", planted / "home"
    threads = found.pop("test_leaves_a_thread_more", "")
    assert threads.startswith("Failed: left torch at {'threads': "), done.stdout
    assert found == {
        "test_reads_a_run_in_a_fixture": f"Failed: touched what is not the tests': open {start / 'runs' / 'c0@42' / 'manifest.json'}",
        "test_lists_results": f"Failed: touched what is not the tests': os.listdir {start / 'results'}",
        "test_looks_for_what_is_not_there": f"Failed: touched what is not the tests': open {start / 'gallery.zip'}",
        "test_reads_a_token": f"Failed: touched what is not the tests': open {house / '.cache' / 'huggingface' / 'token'}",
        "test_reads_what_a_variable_named": f"Failed: touched what is not the tests': open {planted / 'elsewhere' / 'runs' / 'stray.txt'}",
    }
    assert "9 passed" in done.stdout
