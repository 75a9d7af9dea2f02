"""`wallprobe scaling` and `gains --fit` through the real entry point."""

import json
import re
from pathlib import Path

import pytest
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from tests.hooks.tiny_models import save_tokenizer

SHAPES = {"small": (16, 1), "middle": (24, 2), "large": (32, 3), "huge": (48, 3)}


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four NeoX models of four sizes."""
    root = tmp_path_factory.mktemp("family")
    for name, (width, layers) in SHAPES.items():
        config = GPTNeoXConfig(
            vocab_size=32,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            intermediate_size=4 * width,
            max_position_embeddings=24,
            bos_token_id=0,
            eos_token_id=0,
        )
        GPTNeoXForCausalLM(config).save_pretrained(root / name)
        save_tokenizer(root / name)
    return root


def test_the_published_law_prints_and_is_stored(invoke, tmp_path):
    code, out, err = invoke("scaling", "--published")
    assert (code, err) == (0, "")
    for words in ("0.2650  0.0788  0.6531  0.0152   0.072 to 0.458", "pythia-12b   0.220  0.097  0.508  0.072", "2.7 to 33.9", "1.8T !"):
        assert words in out
    assert [path.name.startswith("scaling-published-8-models-") for path in (tmp_path / "results").iterdir()] == [True]


def test_json_has_the_promised_keys(invoke):
    code, out, err = invoke("scaling", "--published", "--at", "70B,1e12", "--json")
    found = json.loads(out)
    assert (code, err, found["kind"]) == (0, "", "scaling")
    wanted = "alpha alpha_se r2 p ci_low ci_high bootstrap_low bootstrap_high"
    assert set(wanted.split()) < found["summary"].keys()
    assert [row["label"] for row in found["values"] if row["part"] == "extrapolation"] == ["70B", "1T"]


def test_a_fit_with_the_gains_and_again_from_the_store(invoke, family):
    folders = [str(family / name) for name in SHAPES]
    code, out, err = invoke("gains", *folders, "--fit", "--device", "cpu", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["scaling"]["summary"]["n_models"] == 4
    for row, name in zip(found["summary"], SHAPES, strict=True):
        width, layers = SHAPES[name]
        inner = 12 * layers * width**2 + 13 * layers * width + 2 * width
        assert (row["n_params_non_embedding"], row["n_params"]) == (inner, inner + 2 * 32 * width)
    sizes = [row["x"] for row in found["scaling"]["values"] if row["part"] == "model"]
    assert sizes == [row["n_params"] for row in found["summary"]]
    code, out, err = invoke("scaling", *SHAPES, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["summary"] == found["scaling"]["summary"]


def test_flows_give_the_law_and_efficiency_and_say_why_there_is_no_critical_size(invoke, family):
    folders = [str(family / name) for name in SHAPES]
    code, out, err = invoke("flow", *folders, "--device", "cpu", "--json")
    assert (code, err) == (0, "")
    flows = json.loads(out)["summary"]
    code, out, err = invoke("scaling", *SHAPES, "--efficiency", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    rows = [row for row in found["values"] if row["part"] == "model"]
    assert [row["gain"] for row in rows] == [flow["final_mlp_gain"] for flow in flows]
    assert [row["eta"] for row in rows] == pytest.approx([flow["eta"] for flow in flows])
    assert found["summary"]["n_star"] is None
    assert "need at least 5 models" in found["summary"]["n_star_reason"]
    assert found["summary"]["bootstrap_prompts_low"] is not None
    code, out, err = invoke("scaling", *SHAPES, "--efficiency")
    assert (code, err) == (0, "")
    assert "Efficiency: eta = (ln V - loss) / gain" in out
    assert "critical size N*: none: Q = Q_inf - c N^-b and its interval need at least 5 models" in out
    code, out, err = invoke("scaling", "--published", "--efficiency")
    assert (code, out) == (2, "")
    assert "the published figures have no losses" in err


def test_a_fit_needs_models_of_several_sizes(invoke, family, tmp_path):
    code, out, err = invoke("gains", str(family / "small"), "--fit", "--device", "cpu")
    assert (code, out) == (2, "")
    assert "a scaling law needs at least 3 models, got 1" in err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give either stored gains (wallprobe scaling RESULT RESULT RESULT) or --published"),
        (["small", "--published"], "give either stored gains"),
        (["nobody"], "no gains of 'nobody' in results; measured there: none; make them: wallprobe gains nobody"),
        (["--published", "--at", "many"], "--at 'many' is no size; give parameters such as 70B,1.8T or 1e9"),
        (["--published", "--quantity", "final_mlp_gain_no_sink"], "the published figures know no final_mlp_gain_no_sink"),
    ],
)
def test_bad_input_is_one_line_and_nothing_written(invoke, tmp_path, words, message):
    code, out, err = invoke("scaling", *words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_flow_block_by_block_as_of_the_whole_model(invoke, family, tmp_path):
    folder = str(family / "large")
    code, whole, err = invoke("flow", folder, "--device", "cpu", "--json")
    assert (code, err) == (0, "")
    code, streamed, err = invoke("flow", folder, "--device", "cpu", "--stream", "--json")
    assert code == 0
    assert re.match(r"streaming large: about \d\.\d\d GiB of memory, whole it would take 0\.00\n$", err)
    ours, theirs = json.loads(streamed)["summary"], json.loads(whole)["summary"]
    for name in ("nll", "eta", "lens_entropy_min", "lens_top1_last", "erank_min_no_sink", "final_mlp_gain"):
        assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
    assert (ours["streamed"], theirs["streamed"]) == (True, False)
    code, out, err = invoke("flow", folder, "--stream", "--max-ram", "100M")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--max-ram allows 0.10" in err
    code, out, _ = invoke("flow", folder, "--device", "cpu", "--stream")
    assert (code, "streamed:                     one block at a time" in out) == (0, True)
    assert not (tmp_path / "results" / ".streams" / "large").exists()
