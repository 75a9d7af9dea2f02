"""What comes with the package: whole, small, clean of the machine it was made on, and as its stored evaluations say."""

import pytest

from wallprobe.store import runs
from wallprobe.store.results import load_result
from wallprobe.training.wall.evaluate import evaluate
from wallprobe.training.wall.recipes import RECIPES

NAMES = tuple("c0 c1 c2 c3 c4 c5 p1 p2 p3 p4 p5 p6 s1".split())  # noqa: SIM905


@pytest.fixture(scope="module")
def bundled():
    found = {str(run.name): run for run in runs.list_runs(runs.BUNDLED / "no such store")}
    assert set(NAMES) <= found.keys()
    return found


def test_the_bundle_fits(bundled):
    size = sum(path.stat().st_size for path in runs.BUNDLED.rglob("*") if path.is_file())
    assert size <= 40 * 2**20
    assert not [path for path in runs.BUNDLED.rglob("*") if path.suffix in (".pt", ".pth", ".pkl", ".bin")]


@pytest.mark.parametrize("name", NAMES)
def test_a_bundled_run_is_what_its_manifest_says(bundled, name):
    run = bundled[name]
    run.verify()
    recipe = run.manifest["config"]["recipe"]
    assert recipe == {key: value for key, value in RECIPES["small"].config().items() if key != "checkpoint_every"}
    assert (run.manifest["shape"]["n_layers"], run.manifest["seed"], run.manifest["weight_processing"]) == (6, 42, "none")
    text = (run.path / runs.MANIFEST).read_text() + (run.path / runs.EVALUATION / "result.json").read_text()
    assert not [word for word in ("/work", "/tmp", "/root", "/home") if word in text]


@pytest.mark.parametrize("name", NAMES)
def test_a_bundled_evaluation_can_be_made_again(bundled, name):
    stored, again = load_result(bundled[name].path / runs.EVALUATION), evaluate(bundled[name])
    assert stored.summary.keys() == again.summary.keys()
    for key, value in again.summary.items():
        if isinstance(value, float):
            # Another processor rounds the fp32 forward pass differently.
            assert stored.summary[key] == pytest.approx(value, rel=1e-2, abs=1e-6), key
