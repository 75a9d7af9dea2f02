"""Interchange on prompts: against whole passes of the model with torch's own hooks, and what is refused before anything runs."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.hooks import tiny_models
from wallprobe import models
from wallprobe.errors import ConfigError, InstrumentError, UnknownNameError
from wallprobe.hooks.attach import stacks
from wallprobe.hooks.interchange.places import TEXT_SITES
from wallprobe.hooks.interchange.request import Request
from wallprobe.hooks.interchange.run import interchange
from wallprobe.hooks.interchange.texts import read_pairs

PAIRS = [
    {"clean": "the quick brown fox", "corrupt": "the lazy brown dog", "answer": "jumps", "wrong": "over"},
    {"clean": "the capital of france", "corrupt": "the bank of paris", "answer": "paris", "wrong": "river"},
    {"clean": "the tower is known", "corrupt": "the fox is known", "answer": "for", "wrong": "near"},
]


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module", params=list(tiny_models.ARCHITECTURES))
def folder(request, tmp_path_factory):
    return tiny_models.save_model(request.param, tmp_path_factory.mktemp(request.param))


@torch.no_grad()
def by_hand(folder, file, site, layer, index):
    """Mean logit difference with the patch, by a hook of torch on transformers' own model."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    pairs = read_pairs(file, models.load_plain(str(folder)).tokenizer)
    module, given = stacks.of_transformers(model).point(layer, site)
    kept = {}

    def first(value):
        return value[0] if isinstance(value, tuple) else value

    def put(value):
        value = value.clone()
        value[:, index] = kept["donor"][:, index]
        return value

    if given:
        handle = module.register_forward_pre_hook(lambda _, values: kept.update(donor=values[0]))
        model(pairs.donor)
        handle.remove()
        module.register_forward_pre_hook(lambda _, values: (put(values[0]), *values[1:]))
    else:
        handle = module.register_forward_hook(lambda _, __, output: kept.update(donor=first(output)))
        model(pairs.donor)
        handle.remove()
        module.register_forward_hook(lambda _, __, output: (put(output[0]), *output[1:]) if isinstance(output, tuple) else put(output))
    logits = model(pairs.base).logits[:, -1]
    rows = torch.arange(len(logits))
    return float((logits[rows, pairs.answers["answer"]] - logits[rows, pairs.answers["wrong"]]).mean())


def test_cells_equal_whole_passes_of_the_model(folder, tmp_path):
    file = write(tmp_path / "pairs.jsonl", PAIRS)
    result = interchange(Request(str(folder), str(folder), pairs=str(file), sites=TEXT_SITES))
    assert result.summary["self_patch_max_change"] == 0.0
    compared = 0
    for site in TEXT_SITES:
        for layer, index in ((0, 1), (1, 3), (2, 3)):
            cell = result.data.sel(site=site, layer=layer, index=index)
            wanted = by_hand(folder, file, site, layer, index)
            assert float(cell["logit_difference"]) == pytest.approx(wanted, rel=0, abs=1e-5), (site, layer, index)
            compared += 1
    assert compared == 3 * len(TEXT_SITES)
    whole = result.data.sel(site="resid_post", layer=2, index=3)
    assert float(whole["logit_difference"]) == pytest.approx(result.summary["clean_logit_difference"], rel=0, abs=1e-5)
    # A ratio whose denominator is small in a random model.
    assert float(whole["restored"]) == pytest.approx(1.0, abs=1e-4)


def test_single_heads_of_a_language_model(tmp_path):
    folder = tiny_models.save_model("llama", tmp_path / "llama")
    file = write(tmp_path / "pairs.jsonl", PAIRS)
    result = interchange(Request(str(folder), str(folder), pairs=str(file), layers=(1,), sites=("heads",)))
    assert result.data["site"].values.tolist() == ["z.0", "z.1", "z.2", "z.3"]
    assert result.summary["self_patch_max_change"] == 0.0
    whole = interchange(Request(str(folder), str(folder), pairs=str(file), layers=(1,), sites=("z",)))
    changed = result.data["change_at_hook"].sel(index=3).max()
    assert float(changed) == pytest.approx(float(whole.data["change_at_hook"].sel(index=3).max()), rel=1e-6)
    with pytest.raises(ConfigError, match=r"site z.4 does not exist: there are 4 heads; give z.0 to z.3, or heads"):
        interchange(Request(str(folder), str(folder), pairs=str(file), sites=("z.4",)))


def test_where_nothing_can_be_swapped_there_is_no_cell(folder, tmp_path):
    file = write(tmp_path / "pairs.jsonl", PAIRS)
    data = interchange(Request(str(folder), str(folder), pairs=str(file))).data["restored"].sel(site="resid_pre")
    assert 0 not in data["index"].values
    # The third word is the same in every pair: its embedding says nothing, what later layers make of it does.
    assert [place.tolist() for place in data.isnull().values.nonzero()] == [[0], [1]]
    same = [PAIRS[2] | {"answer": answer} for answer in ("for", "which")]
    data = interchange(Request(str(folder), str(folder), pairs=str(write(tmp_path / "same.jsonl", same)))).data["restored"]
    assert bool(data.sel(site="resid_pre", layer=0, index=[2, 3]).isnull().all())


def test_two_models_with_one_tokenizer(folder, tmp_path):
    other = tiny_models.ARCHITECTURES["gpt2"]()
    other.save_pretrained(tmp_path / "other")
    tiny_models.save_tokenizer(tmp_path / "other")
    file = write(tmp_path / "pairs.jsonl", PAIRS)
    result = interchange(Request(str(folder), str(tmp_path / "other"), pairs=str(file), layers=(1,), indices=(0, -1)))
    assert result.data["index"].values.tolist() == [0, 3]
    assert result.summary["n_cells"] == 2


MISTAKES = [
    ([PAIRS[0]], "holds 1 pairs; give at least 2"),
    (
        [PAIRS[0], PAIRS[1] | {"clean": "the capital of", "corrupt": "the bank of"}],
        "line 2 of pairs.jsonl has prompts of 3 tokens, the first 4",
    ),
    ([PAIRS[0] | {"corrupt": "the dog"}], "line 1 of pairs.jsonl: clean has 4 tokens, corrupt 2"),
    ([PAIRS[0] | {"corrupt": PAIRS[0]["clean"]}], "clean and corrupt are the same tokens"),
    ([PAIRS[0] | {"wrong": ["over river", "near"]}], "wrong is a list, of which every one must be a single token"),
    (
        [PAIRS[0] | {"slots": {"subject": "cat"}}],
        r"line 1 of pairs.jsonl: slot subject is not in the clean prompt .'cat'.; give a part of it",
    ),
    ([PAIRS[0] | {"slots": {"subject": "fox"}}], r"slot subject is not in the corrupt prompt"),
    ([PAIRS[0] | {"slots": [1]}], "slots must be an object"),
    (
        [PAIRS[0] | {"slots": {"a": 1}}, PAIRS[1] | {"slots": {"b": 1}}],
        r"line 2 of pairs.jsonl has other slots than the first line .b and a.",
    ),
    ([PAIRS[0] | {"wrong": "jumps"}], "answer and wrong are the same tokens, 'jumps'"),
    ([PAIRS[0] | {"answer": ""}], "must be texts that are not empty"),
    ([{"clean": "the fox", "wrong": "over"}], "line 1 of pairs.jsonl lacks corrupt, answer; a pair has clean, corrupt, answer, wrong"),
    ([["the fox"]], "is no JSON object; write one with clean, corrupt, answer, wrong"),
    ([PAIRS[0], PAIRS[1] | {"answer": "jumps"}], "every pair of pairs.jsonl has the answer 'jumps'"),
]


@pytest.mark.parametrize(("rows", "said"), MISTAKES)
def test_a_file_that_is_wrong_is_one_clear_line(tmp_path, rows, said):
    tiny_models.save_tokenizer(tmp_path)
    tokenizer = tiny_models.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=said):
        read_pairs(write(tmp_path / "pairs.jsonl", rows), tokenizer)


def test_a_file_that_is_no_json_or_no_text(tmp_path):
    tiny_models.save_tokenizer(tmp_path)
    tokenizer = tiny_models.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    file = tmp_path / "pairs.jsonl"
    file.write_text("{clean: 1}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"line 1 of pairs.jsonl is not JSON .*; write an object with clean"):
        read_pairs(file, tokenizer)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as UTF-8 text"):
        read_pairs(file, tokenizer)
    # A line separator of Unicode within a string is no end of a line; a byte order mark is no part of the first.
    rows = [json.dumps(row | {"note": "a\u2028b"}, ensure_ascii=False) for row in PAIRS]
    file.write_text("\n\n".join(rows) + "\n", encoding="utf-8-sig")
    assert read_pairs(file, tokenizer).donor.shape == (3, 4)


def test_controls_have_another_donor_and_a_mismatched_one_another_answer(tmp_path):
    tiny_models.save_tokenizer(tmp_path)
    rows = [PAIRS[number % 2] for number in range(9)] + [PAIRS[2]]
    pairs = read_pairs(write(tmp_path / "pairs.jsonl", rows), tiny_models.PreTrainedTokenizerFast.from_pretrained(tmp_path))
    for seed in range(20):
        random, mismatched = pairs.other_donors(seed)
        assert sorted(random.tolist()) == list(range(10))
        assert not bool((random == torch.arange(10)).any())
        assert not bool((pairs.answers["answer"][mismatched] == pairs.answers["answer"]).any())


def test_every_cell_carries_its_controls_and_intervals(folder, tmp_path):
    file = write(tmp_path / "pairs.jsonl", PAIRS)
    result = interchange(Request(str(folder), str(folder), pairs=str(file), layers=(1, 2)))
    for record in result.values:
        named = [f"restored{arm}" for arm in ("", "_low", "_high", "_random", "_mismatched", "_norm")]
        assert not [name for name in (*named, "p_answer", "p_answer_mismatched", "p_value", "q_value") if record[name] is None]
        rounding = 1e-12 * abs(record["restored"])
        assert record["restored_low"] - rounding <= record["restored"] <= record["restored_high"] + rounding
    assert result.manifest["engine"]["checked_cells"] == 3
    assert 0 <= result.manifest["engine"]["largest_difference"] < 1e-5
    examples = result.data.sel(site="resid_pre", layer=2, index=3)
    assert float(examples["example_p_answer"].mean()) == pytest.approx(float(examples["p_answer"]), abs=1e-12)
    assert result.data["example_corrupt_token"].values[1].tolist() == PAIRS[1]["corrupt"].split()


def test_models_that_do_not_go_together(tmp_path):
    one = tiny_models.save_model("llama", tmp_path / "one")
    file = write(tmp_path / "pairs.jsonl", PAIRS)
    for name, changes in (("wide", {"n_embd": 64}), ("words", {})):
        config = tiny_models.GPT2Config(vocab_size=32, n_layer=2, n_head=4, n_positions=24, **({"n_embd": 32} | changes))
        tiny_models.GPT2LMHeadModel(config).save_pretrained(tmp_path / name)
        tiny_models.save_tokenizer(tmp_path / name)
    tokenizer = tiny_models.PreTrainedTokenizerFast.from_pretrained(tmp_path / "words")
    tokenizer.add_tokens(["more"])
    tokenizer.save_pretrained(tmp_path / "words")
    with pytest.raises(ConfigError, match="is 32 wide and"):
        interchange(Request(str(one), str(tmp_path / "wide"), pairs=str(file)))
    with pytest.raises(ConfigError, match="have other tokenizers"):
        interchange(Request(str(one), str(tmp_path / "words"), pairs=str(file)))
    with pytest.raises(ConfigError, match="layer 7 does not exist"):
        interchange(Request(str(one), str(one), pairs=str(file), layers=(7,)))
    with pytest.raises(InstrumentError, match="site resid_mid cannot be patched in a model of transformers"):
        interchange(Request(str(one), str(one), pairs=str(file), sites=("resid_mid",)))
    with pytest.raises(UnknownNameError, match="no site named 'nose'"):
        interchange(Request(str(one), str(one), pairs=str(file), sites=("nose",)))
    with pytest.raises(ConfigError, match="the prompts have 4 tokens; give indices from 0 to 3"):
        interchange(Request(str(one), str(one), pairs=str(file), indices=(9,)))
    with pytest.raises(UnknownNameError, match="no file"):
        interchange(Request(str(one), str(one), pairs=str(tmp_path / "none.jsonl")))
    with pytest.raises(UnknownNameError, match="'c0' is no language model"):
        interchange(Request("c0", "c0", pairs=str(file)))
