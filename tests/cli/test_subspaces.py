"""ablate, rescue, readout and interchange --subspace from the command line, on handmade runs."""

import json

import pytest
import torch

from wallprobe.rng import generator
from wallprobe.training.wall import lean

SHAPE = lean.Shape(n_layers=4, d_model=12, n_heads=2, n_ctx=16, vocabulary=17)


@pytest.fixture(autouse=True)
def three_runs(tmp_path, write_run):
    """A store with c0, p5 and c0 of another seed."""
    for seed, name in enumerate(("c0", "p5", "c0@7")):
        rng = generator(seed, "subspace command test")
        params = {key: value + 0.3 * torch.randn(value.shape, generator=rng) for key, value in lean.init_params(SHAPE, seed).items()}
        write_run(tmp_path / "runs", name, params, SHAPE)


COMMANDS = {
    "ablate": (("ablate", "c0", "--layer", "1", "--subspace", "pca:3", "--sequences", "40"), "ablation", "pca:3 mean-ablated"),
    "rescue": (("rescue", "c0", "--sequences", "40"), "rescue", "with a state moved beyond the wall"),
    "readout": (("readout", "c0@7:c0", "--draws", "60"), "readout", "c0@7 to c0, two initialisations"),
    "interchange": (
        ("interchange", "--src", "p5", "--dst", "c0", "--layer", "1", "--subspace", "random:3", "--pairs", "60"),
        "interchange",
        "random span",
    ),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_json_is_one_object_and_a_table_says_what_it_is(invoke, tmp_path, name):
    arguments, kind, words = COMMANDS[name]
    code, out, err = invoke(*arguments, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["kind"] == kind
    assert found["summary"]["finding"]
    assert not [value for value in found["summary"].values() if isinstance(value, (list, dict))]
    assert len(list((tmp_path / "results").glob(f"{kind}-*"))) == 1
    code, out, err = invoke(*arguments)
    assert code == 0, err
    assert words in out
    assert found["summary"]["finding"].split(";")[0] in " ".join(out.split())


def test_the_published_figures_stand_beside_the_baselines_alone(invoke):
    assert "(0.94)" in invoke("rescue", "c0", "--sequences", "40")[1]
    assert "published" not in invoke("rescue", "p5", "--sequences", "40")[1]


@pytest.mark.parametrize("command", ["ablate", "rescue", "readout"])
def test_help_names_what_it_takes(invoke, command):
    code, out, _ = invoke(command, "--help")
    assert code == 0
    assert ("SRC:DST" if command == "readout" else "RUN") in out


REFUSALS = [
    (["ablate", "c0", "--subspace", "pca"], "--subspace pca is no subspace; give probes:a,b, pca:8 or random:8"),
    (["ablate", "c0", "--subspace", "probes:x"], "no probe target 'x'; there are: token, a, b, class"),
    (["ablate", "c0", "--subspace", "pca:13", "--sequences", "40"], "the states have 12 dimensions; give at most 12"),
    (["ablate", "c0", "--layer", "9"], "layer 9 does not exist in c0; give 0 to 3"),
    (["ablate", "c9"], "no run named 'c9'"),
    (["rescue", "c9"], "no run named 'c9'"),
    (["rescue", "c0", "--sequences", "10"], "ask for more with --sequences"),
    (["readout", "p5"], "'p5' is no pair of runs; give donor:receiver"),
    (["readout", "p5:c0", "c9:c0"], "no run named 'c9'"),
    (["interchange", "--src", "p5", "--dst", "c0", "--subspace", "pca:0"], "--subspace pca:0 is no subspace"),
    (["interchange", "--src", "p5", "--dst", "c0", "--subspace", "pca:2", "--sweep"], "leave --sweep out"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS, ids=[" ".join(arguments) for arguments, _ in REFUSALS])
def test_bad_input_gets_one_line_and_leaves_nothing(invoke, tmp_path, arguments, message):
    code, out, err = invoke(*arguments)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("wallprobe: ")
    assert message in err
    assert not (tmp_path / "results").exists()
