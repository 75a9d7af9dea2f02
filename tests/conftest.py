"""Every shape annotation of the package is checked at run time by beartype while the tests run."""

import dataclasses
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from jaxtyping import install_import_hook

install_import_hook("wallprobe", "beartype.beartype")


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
