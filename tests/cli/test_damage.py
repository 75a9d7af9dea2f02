"""Commands on stores with everything broken at once, and on weights that are not finite: the rest goes on, by name it is one line."""

import json
import shutil

import pytest
import torch
import typer.main

from tests.gallery import samples
from tests.store import damage
from wallprobe.cli import build_app
from wallprobe.models.equilibrium import EqConfig, init
from wallprobe.store import runs
from wallprobe.store.storage import sha256_file, write_atomic, write_json
from wallprobe.training.wall import lean
from wallprobe.training.wall.conditions import get_condition
from wallprobe.training.wall.jobs import Job
from wallprobe.training.wall.recipes import get_recipe

SHAPE = Job(get_condition("c3"), get_recipe("tiny")).shape


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(invoke, folder, *arguments):
    """The one line that a command ends with, exit code 2, nothing on stdout, nothing written."""
    before = everything(folder)
    code, out, err = invoke(*arguments)
    assert (code, out) == (2, ""), (arguments, code, out, err)
    assert len(err.strip().splitlines()) == 1, (arguments, err)
    assert err.startswith("wallprobe: ")
    assert "Traceback" not in err
    assert everything(folder) == before
    return err


@pytest.fixture
def wrecked(write_run, tmp_path):
    """Every kind of damaged run and result at once, two sound ones of each among them."""
    store, results = tmp_path / "runs", tmp_path / "results"
    for seed in (1, 2):
        write_run(store, f"c0@{seed}", lean.init_params(SHAPE, seed), SHAPE)
        samples.evaluation(f"c0@{seed}").save(results)
    for seed, kind in enumerate(damage.RUNS, 100):
        shutil.copytree(store / "c0@1", store / f"c0@{seed}")
        damage.edit("manifest.json", seed=seed)(store / f"c0@{seed}")
        damage.RUNS[kind](store / f"c0@{seed}")
    for place, kind in enumerate(damage.RESULTS):
        damage.RESULTS[kind](samples.gains(f"model-{place:02d}", layers=4).save(results))
    lost = {path.name for path in store.iterdir() if path.name > "c0@1" and path.name not in ("c0@1", "c0@2")}
    return lost, {path.name for path in results.iterdir() if path.name.startswith("gains-")}


LISTINGS = (
    ("runs",),
    ("runs", "--json"),
    ("claims", "wall", "--json"),
    ("claims", "wall", "--preset", "tiny", "--markdown"),
    pytest.param(("claims", "gains"), marks=pytest.mark.slow),
    ("claims", "equilibrium"),
    ("gallery", "build", "--json"),
    pytest.param(("gallery", "build", "--single-file"), marks=pytest.mark.slow),
    ("gallery", "export"),
    ("scaling", "a", "b", "c"),
    ("eval", "c0@77"),
)


@pytest.mark.parametrize("command", LISTINGS, ids=" ".join)
def test_every_listing_goes_on_and_names_each_damaged_one(invoke, tmp_path, wrecked, unbundled, command):
    lost_runs, lost_results = wrecked
    assert min(len(lost_runs), len(lost_results)) >= 12
    code, out, err = invoke(*command)
    by_name = command[0] in ("scaling", "eval")  # a name that is not there: one line, with the damaged ones in it
    assert code == (2 if by_name else 0), err
    named = set() if command[0] == "scaling" or command[1:2] in (("gains",), ("equilibrium",)) else lost_runs
    if command[0] not in ("runs", "eval") and command[1:2] != ("wall",):
        named = named | lost_results
    assert [name for name in named if name not in err] == []
    assert len(err.splitlines()) == (1 if by_name else len(named))
    if command == ("runs", "--json"):
        told = json.loads(out)
        assert [row["name"] for row in told["summary"]] == ["c0@1", "c0@2"]
        assert {entry["name"].rpartition("/")[2] for entry in told["damaged"]} == lost_runs
    if command == ("gallery", "build", "--json"):
        summary = json.loads(out)["summary"]
        assert (summary["pages"], summary["runs"], summary["damaged"]) == (2, 2, len(named))
        page = (tmp_path / "gallery" / "index.html").read_text(encoding="utf-8")
        assert [name for name in named if f"{name}</bdi></strong>" not in page] == []
        assert str(tmp_path) not in page


def test_scaling_names_the_damaged_beside_its_fit(invoke, tmp_path):
    for place in range(3):
        result = samples.gains(f"sound-{place}", layers=4)
        result.save(tmp_path / "results")
    folder = samples.gains("lost", layers=4).save(tmp_path / "results")
    (folder / "arrays.nc").unlink()
    code, _, err = invoke("scaling", "sound-0", "sound-1", "lost")
    assert code == 2
    assert f"and damaged: {folder.name}" in err
    refused(invoke, tmp_path, "scaling", "sound-0", "sound-1", str(folder))


@pytest.mark.parametrize("kind", damage.some(damage.FILES, 3))
@pytest.mark.parametrize("part", ["manifest.json", "weights.safetensors"])
def test_a_damaged_run_asked_for_by_name_is_one_line(invoke, tmp_path, write_run, part, kind):
    write_run(tmp_path / "runs", "c0", lean.init_params(SHAPE, 1), SHAPE)  # shadows the bundled one, damaged or not
    damage.FILES[kind](tmp_path / "runs" / "c0@42" / part)
    err = refused(invoke, tmp_path, "eval", "c0")
    assert "wallprobe train" in err or "restore it" in err
    code, out, err = invoke("runs", "--check", "--json")
    assert code == 0
    assert [entry["name"] for entry in json.loads(out)["damaged"]] == ["runs/c0@42"]
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("kind", damage.some({kind: None for kind in damage.FILES if kind not in ("pipe", "folder")}, 3))
def test_a_damaged_checkpoint_is_one_line(invoke, tmp_path, kind):
    from wallprobe.training.wall.loop import CHECKPOINT

    folder = tmp_path / "runs" / "c0@5"
    write_atomic(folder / CHECKPOINT, b"\x10\0\0\0\0\0\0\0" + b"{}" * 100)
    damage.FILES[kind](folder / CHECKPOINT)
    code, _, err = invoke("runs")
    assert (code, err) == (0, "")
    if kind not in ("loop", "leads nowhere"):  # where there is no checkpoint the training begins
        assert "damaged" in refused(invoke, tmp_path, "train", "c0", "--seed", "5", "--preset", "tiny", "--compile", "off")


@pytest.fixture
def unfinite(write_run, tmp_path):
    """Runs with one NaN each, their hashes right: of the recurrence, its teacher, and an equilibrium run."""
    store = tmp_path / "runs"
    params = lean.init_params(SHAPE, 1)
    write_run(store, "c0@8", params, SHAPE)
    broken = {name: tensor.clone() for name, tensor in params.items()}
    broken["W_in"].view(-1)[3] = torch.nan
    for name in ("c0@7", "c3@42"):
        write_run(store, name, broken, SHAPE)
    cfg = EqConfig(d_vocab=17, d_model=8, n_heads=2, n_ctx=8)
    state = init(cfg, 0)
    state["embed.W_E"][0, 0] = torch.inf
    folder = store / "eq@7"
    from safetensors.torch import save

    write_atomic(folder / runs.WEIGHTS, save(state))
    manifest = json.loads((store / "c0@8" / "manifest.json").read_text()) | {"condition": "eq", "kind": "equilibrium", "config": {}}
    manifest |= {"seed": 7, "shape": cfg.shape(), "task": {"name": "text"}, "weight_hash": sha256_file(folder / runs.WEIGHTS)}
    write_json(folder / runs.MANIFEST, manifest | {"weight_bytes": (folder / runs.WEIGHTS).stat().st_size})
    return tmp_path


# Command -> how it is asked for the run.
ON_A_RUN = {
    "doctor": ("c0@7",),
    "train": ("c4", "--preset", "tiny", "--compile", "off"),  # c3 is its teacher
    "eval": ("c0@7",),
    "interchange": ("--src", "c0@8", "--dst", "c0@7", "--layer", "0"),
    "readout": ("c0@8:c0@7",),
    "ablate": ("c0@7",),
    "rescue": ("c0@7",),
    "attention": ("c0@7",),
    "gains": ("c0@7",),
    "flow": ("c0@7",),
    "maps": ("c0@7",),
    "rescale": ("c0@7",),
    "geometry": ("c0@7",),
    "temperature": ("c0@7",),
    "calibration": ("c0@7",),
    "probe": ("c0@7",),
    "measure": ("gains", "c0@7"),
    "triangulate": ("c0@7",),
    "lr-sweep": ("c0@7",),
    "branches": ("eq@7",),
    "mixing": ("eq@7",),
    "collapse": ("eq@7",),
    "audit check": ("c0@7",),
    "equilibrium train": ("--warm", "eq@7"),
}
NO_RUN = {
    *("runs", "convert", "scaling", "claims", "reproduce", "audit run", "audit report", "audit campaign"),
    *(f"equilibrium {name}" for name in ("matched", "gate", "grid", "campaign")),
    *(f"gallery {name}" for name in ("build", "open", "serve", "export", "compare")),
}


def leaves(command, before=()):
    inner = getattr(command, "commands", None)
    if inner is None:
        return [" ".join(before)]
    return [leaf for name, one in inner.items() for leaf in leaves(one, (*before, name))]


def test_every_command_is_known_to_take_a_run_or_none():
    assert set(leaves(typer.main.get_command(build_app()))) == ON_A_RUN.keys() | NO_RUN


@pytest.mark.parametrize("command", ON_A_RUN)
def test_weights_that_are_not_finite_are_refused_by_every_command(invoke, unfinite, command):
    err = refused(invoke, unfinite, *command.split(), *ON_A_RUN[command])
    assert "that are NaN or infinite" in err
    assert ("parameter blocks.0.mlp.W_in" in err) or ("parameter embed.W_E" in err)


def test_runs_checks_weights_when_asked_and_the_gallery_keeps_the_page(invoke, unfinite):
    code, _, err = invoke("runs")
    assert (code, err) == (0, "")
    code, _, err = invoke("runs", "--check")
    assert code == 0
    assert [name for name in ("c0@7", "c3@42", "eq@7") if f"runs/{name}: run" not in err] == []
    assert len(err.splitlines()) == 3
    code, _, err = invoke("gallery", "build")
    assert (code, err) == (0, "")
    assert (unfinite / "gallery" / "runs" / "c0@7.html").is_file()


@pytest.mark.parametrize("kind", ["not finite", *damage.some(damage.FILES, 4)])
def test_a_damaged_snapshot_is_one_line_before_anything_is_measured(invoke, tmp_path, write_run, kind):
    run = write_run(tmp_path / "runs", "c0@7", lean.init_params(SHAPE, 1), SHAPE)
    damage.edit("manifest.json", steps=4)(run.path)
    path = runs.snapshot_path(run.path, 2)
    path.parent.mkdir()
    shutil.copy(run.weights_path, path)
    if kind == "not finite":
        data = bytearray(path.read_bytes())
        data[-4:] = b"\x00\x00\xc0\x7f"
        path.write_bytes(data)
    else:
        damage.FILES[kind](path)
    if kind == "flipped":  # a snapshot has no hash: other weights are other figures
        return
    err = refused(invoke, tmp_path, "gains", "c0@7", "--over-training")
    assert "step-00000002" in err
    assert invoke("runs")[0] == 0
