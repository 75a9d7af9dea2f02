"""geometry, temperature and calibration from the command line, on bundled and on handmade runs."""

import json

import pytest

from wallprobe.training.wall import lean

COMMANDS = ("geometry", "temperature", "calibration")
SHAPE = lean.Shape(n_layers=2, d_model=12, n_heads=2, n_ctx=16, vocabulary=17)
KEYS = {
    "geometry": ("cosine_last_layer", "cosine_first_layer", "rises_with_depth", "pairwise_cosine_last_layer"),
    "temperature": ("kl_best_bits_unsupervised", "kl_best_bits_trained", "t_star_unsupervised", "top1_unsupervised"),
    "calibration": ("entropy_mae_unsupervised", "best_mass_geomean_unsupervised", "ece_confidence_unsupervised", "ece_drawn_unsupervised"),
}


@pytest.fixture(autouse=True)
def two_runs(tmp_path, write_run):
    """A store with c0 and p5."""
    for seed, name in enumerate(("c0", "p5")):
        write_run(tmp_path / "runs", name, lean.init_params(SHAPE, seed), SHAPE)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_what_it_takes(invoke, command):
    code, out, _ = invoke(command, "--help")
    assert code == 0
    assert "RUN" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_json_of_two_runs_is_one_object_and_each_is_stored(invoke, tmp_path, command):
    code, out, err = invoke(command, "c0", "p5", "--sequences", "40", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["kind"] == command
    assert [record["run"] for record in found["summary"]] == ["c0", "p5"]
    assert {record["run"] for record in found["values"]} == {"c0", "p5"}
    for record in found["summary"]:
        assert set(KEYS[command]) <= record.keys()
        assert record["finding"].startswith(record["run"])
        assert not [value for value in record.values() if isinstance(value, (list, dict))]
    assert len(list((tmp_path / "results").glob(f"{command}-*"))) == 2


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("geometry", ("of its", "centred", "all pairs", "index 4", "rising|falling|neither")),
        ("temperature", ("uniform guess", "best T", "exact top-1", "at the best one")),
        ("calibration", ("ECE against the token", "tokens moved", "Bayes-best mass", "unsupervised positions, by confidence")),
    ],
)
def test_tables(invoke, command, words):
    code, out, err = invoke(command, "c0", "--sequences", "40")
    assert code == 0, err
    assert all(any(word in out for word in choice.split("|")) for choice in words)


REFUSALS = [
    (["geometry", "c0", "--site", "nose"], "no site named 'nose' as wide as the residual stream; there are: resid_pre"),
    (["temperature", "c0", "--temperatures", "1,hot"], "temperatures '1,hot' are not numbers"),
    (["temperature", "c0", "--temperatures", "1,0"], "temperature 0 cannot be swept; give finite temperatures above 0"),
    (["calibration", "c9"], "no run named 'c9'"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS, ids=[" ".join(arguments) for arguments, _ in REFUSALS])
def test_bad_input_gets_one_line_and_leaves_nothing(invoke, tmp_path, arguments, message):
    code, out, err = invoke(*arguments)
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("wallprobe: ")
    assert message in err
    assert not (tmp_path / "results").exists()


def test_a_damaged_run_stops_before_anything_is_measured(invoke, tmp_path):
    weights = next((tmp_path / "runs" / "p5@42").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1])
    for command in COMMANDS:
        code, out, err = invoke(command, "c0", "p5")
        assert (code, out) == (2, "")
        assert "truncated" in err
    assert not (tmp_path / "results").exists()
