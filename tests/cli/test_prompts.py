"""`wallprobe interchange --prompts` from the command line, on tiny models: table, JSON, store, page, and one line for what is wrong."""

import json
import re

import pytest

from tests.hooks import tiny_models

PAIRS = [
    {"clean": "the quick brown fox", "corrupt": "the lazy brown dog", "answer": "jumps", "wrong": "over"},
    {"clean": "the capital of france", "corrupt": "the bank of paris", "answer": "paris", "wrong": "river"},
    {"clean": "the tower is known", "corrupt": "the fox is known", "answer": "for", "wrong": "near"},
]


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")


@pytest.fixture(autouse=True)
def models_and_pairs(tmp_path, capsys):
    """Folders `one` (Llama) and `other` (GPT-NeoX) with one tokenizer and one embedding, and pairs.jsonl."""
    tiny_models.save_model("llama", tmp_path / "one")
    tiny_models.save_model("neox", tmp_path / "other")
    write(tmp_path / "pairs.jsonl", PAIRS)
    capsys.readouterr()


COMMAND = ("interchange", "--src", "one", "--dst", "other", "--prompts", "pairs.jsonl")


def test_the_table_has_every_site_and_the_page_opens_on_the_strongest(invoke, tmp_path):
    code, out, err = invoke(*COMMAND, "--sweep")
    assert code == 0, err
    assert "one -> other: share of the clean answer restored, each token at its strongest layer" in " ".join(out.split())
    for site in ("resid_pre", "resid_post", "attn_out", "mlp_out", "z"):
        assert (
            len(re.findall(rf"^ {site} +L\d i\d \w+ +-?\d+\.\d\d ±\d+\.\d\d( +-?\d+\.\d\d){{3}} +0\.\d{{3}} +\d\.\d{{3}} *$", out, re.M))
            == 1
        )
    # 5 sites of 3 layers at 4 indices, without late sites of the last layer at 3 of them, and without the two shared tokens' embeddings.
    assert "46 cells; self-patches changed 0; 3 cells were run whole as well" in out
    assert "3 pairs are too few to tell that from chance" in out
    assert invoke("gallery", "--results", "results", "--out", "pages")[0] == 0
    (page,) = (tmp_path / "pages").rglob("prompts-one-to-other*.html")
    assert "From one to other: " in page.read_text(encoding="utf-8")


def test_json_is_one_object_with_a_record_a_cell(invoke, tmp_path):
    code, out, err = invoke(*COMMAND, "--layer", "1,2", "--index", "0,-1", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["kind"] == "prompts"
    assert [(record["layer"], record["index"]) for record in found["values"]] == [(1, 0), (1, 3), (2, 0), (2, 3)]
    assert {"restored", "restored_low", "restored_high", "restored_mismatched", "p_answer", "q_value"} <= found["values"][0].keys()
    assert {"src", "dst", "n_cells", "n_pairs", "seconds", "peak_gib", "max_restored", "finding"} <= found["summary"].keys()
    assert found["manifest"]["engine"]["backend"] == "hooks"
    assert len(list((tmp_path / "results").glob("prompts-*"))) == 1


REFUSALS = [
    (["--prompts", "none.jsonl"], "--prompts none.jsonl is no file; give an existing one"),
    (["--src", "nowhere"], "'nowhere' is no language model: give a Hugging Face folder, a .gguf file or a hub id"),
    (["--src", "lost.gguf"], "no file lost.gguf; give an existing .gguf file"),
    (["--dst", "words"], "one and words have other tokenizers"),
    (["--dst", "wide"], "one is 32 wide and wide 64: their residual streams do not fit"),
    (["--dst", "bloom", "--site", "attn_out"], "what attn_out is in a bloom is not known here; give --site resid_pre or resid_post"),
    (["--site", "nose"], "no site named 'nose'; there are: resid_pre"),
    (["--site", "resid_mid"], "site resid_mid cannot be patched in a model of transformers; there are: resid_pre"),
    (["--layer", "9"], "layer 9 does not exist in one and other; give 0 to 2, or all"),
    (["--index", "4"], "index 4 does not exist; the prompts have 4 tokens; give indices from 0 to 3, or all"),
    (["--align", "ridge"], "--align ridge is for runs"),
    (["--backend", "jax"], "--backend jax is none of hooks, nnsight"),
    (["--remote", "local"], "--remote local goes through nnsight; add --backend nnsight"),
    (["--backend", "nnsight"], "give a --layer (or a short list), and no --sweep"),
    (["--prompts", "keys.jsonl"], "line 1 of keys.jsonl lacks wrong; a pair has clean, corrupt, answer, wrong"),
    (["--prompts", "long.jsonl"], "line 2 of long.jsonl: clean has 4 tokens, corrupt 3"),
    (["--prompts", "words.jsonl"], "line 1 of words.jsonl: answer is a list, of which every one must be a single token"),
]


def save_others(folder):
    """What the refusals need: models of other widths, words and layouts, and files with one mistake each."""
    config = {"vocab_size": 32, "n_layer": 2, "n_head": 4, "n_positions": 24, "bos_token_id": 0, "eos_token_id": 0}
    for name, width in (("wide", 64), ("words", 32)):
        tiny_models.GPT2LMHeadModel(tiny_models.GPT2Config(**config, n_embd=width)).save_pretrained(folder / name)
        tiny_models.save_tokenizer(folder / name)
    tokenizer = tiny_models.PreTrainedTokenizerFast.from_pretrained(folder / "words")
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(folder / "words")
    from transformers import BloomConfig, BloomForCausalLM

    BloomForCausalLM(BloomConfig(vocab_size=32, hidden_size=32, n_layer=2, n_head=2)).save_pretrained(folder / "bloom")
    tiny_models.save_tokenizer(folder / "bloom")
    write(folder / "keys.jsonl", [{key: text for key, text in PAIRS[0].items() if key != "wrong"}])
    write(folder / "long.jsonl", [PAIRS[0], PAIRS[1] | {"corrupt": "bank of paris"}])
    write(folder / "words.jsonl", [PAIRS[0] | {"answer": ["jumps over", "jumps"]}])


def test_a_layout_that_nobody_took_apart_goes_whole_and_says_so(invoke, tmp_path):
    save_others(tmp_path)
    code, out, err = invoke(*COMMAND, "--src", "bloom", "--dst", "bloom", "--layer", "all", "--site", "resid_pre,resid_post")
    assert code == 0, err
    assert "every cell was a whole pass of the model" in out
    (stored,) = (tmp_path / "results").glob("prompts-*")
    record = json.loads((stored / "result.json").read_text(encoding="utf-8"))
    assert record["manifest"]["engine"]["passes"] == "whole"
    ends = [cell for cell in record["values"] if (cell["site"], cell["layer"], cell["index"]) == ("resid_post", 1, 3)]
    assert [cell["restored"] for cell in ends] == [pytest.approx(1.0, abs=1e-4)]


def test_bad_input_gets_one_line_and_leaves_nothing(invoke, tmp_path, capsys):
    save_others(tmp_path)
    capsys.readouterr()
    for arguments, message in REFUSALS:
        code, out, err = invoke(*COMMAND, *arguments)
        assert (code, out) == (2, ""), (arguments, err)
        assert len(err.strip().splitlines()) == 1, err
        assert err.startswith("wallprobe: ")
        assert message in err
    assert not (tmp_path / "results").exists()


def test_a_model_too_large_for_the_budget_is_refused_before_anything_runs(invoke, tmp_path):
    write(tmp_path / "pairs.jsonl", PAIRS * 60)
    code, out, err = invoke(*COMMAND, "--budget", "0.01")
    assert (code, out) == (2, "")
    assert re.search(r"one cell of 180 pairs of one takes 0\.\d+ GiB .* more than the budget of 0.01; give --budget 0\.\d+", err), err
