"""Every shape annotation of the package is checked at run time by beartype while the tests run, away from the user's folders."""

import dataclasses
import os
import sys
import tempfile

import pytest
from jaxtyping import install_import_hook

from tests import home

os.environ.setdefault("HF_HUB_OFFLINE", "1")
GUARD = home.leave()
install_import_hook("wallprobe", "beartype.beartype")


@pytest.fixture(scope="session", autouse=True)
def elsewhere(tmp_path_factory):
    """Fixtures of sessions and modules are made in a folder of their own, not where pytest was started."""
    start, folder = os.getcwd(), tmp_path_factory.mktemp("elsewhere")
    os.chdir(folder)
    yield folder
    os.chdir(start)


@pytest.fixture(autouse=True)
def at_home(elsewhere):
    """Each test starts in an empty folder, leaves torch as it was, and has touched none of the user's stores and caches."""
    before = torch_settings()
    os.chdir(tempfile.mkdtemp(dir=elsewhere))
    yield
    os.chdir(elsewhere)
    after, strays = torch_settings(), GUARD.take()
    if before and after != before:
        restore_torch(before)
        pytest.fail(f"left torch at {after}, found it at {before}", pytrace=False)
    if strays:
        pytest.fail("touched what is not the tests': " + "; ".join(strays[:5]), pytrace=False)


def torch_settings():
    """What one test could change for all that follow; None while nothing has imported torch."""
    torch = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "get_num_threads"):
        return None
    return {
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "gradients": torch.is_grad_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def restore_torch(settings):
    torch = sys.modules["torch"]
    torch.set_num_threads(settings["threads"])
    torch.set_default_dtype(settings["dtype"])
    torch.set_grad_enabled(settings["gradients"])
    torch.use_deterministic_algorithms(settings["deterministic"])


@pytest.fixture
def one_thread():
    """The number of threads can change the last bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def invoke(monkeypatch, capsys, tmp_path):
    """Run the command line in a fresh folder; returns (exit code, stdout, stderr)."""
    from wallprobe import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "dumb")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["wallprobe", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as error:
            code = error.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def write_run():
    """A function that writes a run with given stacked parameters into a store, manifest and all."""
    from safetensors.torch import save

    from wallprobe.store import runs
    from wallprobe.store.storage import sha256_file, write_atomic, write_json
    from wallprobe.tasks.recurrence import RecurrenceTask
    from wallprobe.training.wall import lean

    def write(store, name, params, shape, task=None, embedding_std=1.0):
        task = task or RecurrenceTask()
        parsed = runs.RunName.parse(name)
        folder = store / parsed.folder
        write_atomic(folder / runs.WEIGHTS, save(lean.to_hooked(params, shape)))
        manifest = {
            "condition": parsed.condition,
            "seed": parsed.seed,
            "preset": "handmade",
            "steps": 0,
            "horizon": 5,
            "shape": dataclasses.asdict(shape),
            "task": {"name": task.name, **task.config()},
            "config": {"recipe": {"embedding_std": embedding_std}, "condition": {"signal": "none", "route": "none"}},
            "weight_hash": sha256_file(folder / runs.WEIGHTS),
            "weight_bytes": (folder / runs.WEIGHTS).stat().st_size,
            "wall_time_s": 0.0,
        }
        write_json(folder / runs.MANIFEST, manifest)
        return runs.open_run(folder)

    return write


@pytest.fixture
def unbundled(monkeypatch, tmp_path):
    """Nothing came with the package."""
    from wallprobe.claims.ledger import measurements
    from wallprobe.store import runs

    monkeypatch.setattr(runs, "BUNDLED", tmp_path / "no bundle" / "runs")
    monkeypatch.setattr(measurements, "BUNDLE", tmp_path / "no bundle" / "measurements")


@pytest.fixture(scope="session")
def samples():
    """Results of every kind, made by hand, hostile ones among them."""
    from tests.gallery import samples

    return samples
