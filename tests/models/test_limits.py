"""What a model can be given is what its own configuration says, and whoever gives more hears so before anything is computed."""

import json

import pytest
import torch
from transformers import FalconConfig, FalconForCausalLM, MptConfig, MptForCausalLM

from tests.hooks import tiny_models
from wallprobe import models
from wallprobe.errors import CheckpointError, ConfigError
from wallprobe.hooks.attach.prompt_sets import prompt_set
from wallprobe.hooks.attach.subjects import Wanted, subject
from wallprobe.hooks.interchange.request import Request
from wallprobe.hooks.interchange.run import interchange
from wallprobe.models.limits import UNBOUNDED, Limits, of_config
from wallprobe.models.streamed import open_streamed

FOLDERS = {
    **tiny_models.ARCHITECTURES,
    # Neither says max_position_embeddings; the bridge takes 2,048 for both.
    "mpt": lambda: MptForCausalLM(MptConfig(d_model=32, n_heads=4, n_layers=3, expansion_ratio=2, max_seq_len=24, vocab_size=32)),
    "falcon": lambda: FalconForCausalLM(
        FalconConfig(vocab_size=32, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, max_position_embeddings=24, bos_token_id=0)
    ),
}


@pytest.fixture(scope="module", params=list(FOLDERS))
def folder(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    FOLDERS[request.param]().save_pretrained(place)
    tiny_models.save_tokenizer(place)
    return place


def test_every_way_of_reading_says_the_same(folder):
    assert models.limits(models.load(str(folder))) == models.limits(models.load_plain(str(folder))) == Limits(24, 32)
    assert models.limits(models.load_plain(str(folder), weights=False)) == Limits(24, 32)


@pytest.mark.parametrize("name", ["neox", "gpt2", "llama"])
def test_streaming_says_the_same(name, tmp_path):
    with open_streamed(str(tiny_models.save_model(name, tmp_path))).shards:
        assert of_config(open_streamed(str(tmp_path)).config, 32) == Limits(24, 32)


def test_a_prompt_too_long_is_refused_by_every_reader(folder, tmp_path):
    loaded, long = models.load(str(folder)), " ".join(["fox"] * 25)
    (tmp_path / "long.txt").write_text(f"{long}\nthe fox\nthe dog\n")
    with pytest.raises(ConfigError, match=r"has 25 tokens, .* reads at most 24; shorten it"):
        prompt_set(loaded, str(tmp_path / "long.txt"))
    with pytest.raises(ConfigError, match=r"has 25 tokens, .* reads at most 24; shorten it"):
        subject(loaded, Wanted(batches=1, prompts=str(tmp_path / "long.txt")))
    with pytest.raises(ConfigError, match=r"windows of 30 tokens are longer than .* reads \(24\)"):
        subject(loaded, Wanted(batches=1, text=str(tmp_path / "long.txt"), length=30))


def test_pairs_too_long_are_refused(tmp_path):
    folder = str(tiny_models.save_model("neox", tmp_path / "model"))
    rows = [{"clean": "fox " * 25, "corrupt": "dog " * 25, "answer": word, "wrong": "over"} for word in ("jumps", "paris")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(ConfigError, match=r"the clean prompt of pair 1 has 25 tokens, .* reads at most 24"):
        interchange(Request(folder, folder, pairs=str(tmp_path / "pairs.jsonl")))


def test_another_models_tokenizer_is_refused_by_every_reader(tmp_path):
    small = tiny_models.ARCHITECTURES["llama"]()
    small.resize_token_embeddings(8)
    folder = tmp_path / "model"
    small.save_pretrained(folder)
    tiny_models.save_tokenizer(folder)
    loaded = models.load(str(folder))
    (tmp_path / "text.txt").write_text("the river bank\nthe lazy dog\nthe quick fox\n" * 100)
    told = r"has token id \d+, .* knows 8: its tokenizer is another model's"
    with pytest.raises(ConfigError, match=told):
        prompt_set(loaded, str(tmp_path / "text.txt"))
    with pytest.raises(ConfigError, match=told):
        subject(loaded, Wanted(batches=1, text=str(tmp_path / "text.txt"), length=8))
    rows = [{"clean": "the fox", "corrupt": "the dog", "answer": word, "wrong": "over"} for word in ("jumps", "paris")]
    (tmp_path / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(ConfigError, match=told):
        interchange(Request(str(folder), str(folder), pairs=str(tmp_path / "pairs.jsonl")))


def test_a_run_is_bound_by_its_own_shape(tmp_path):
    loaded = models.load(tiny_models.save_run(tmp_path), root=tmp_path)
    assert models.limits(loaded) == Limits(8, 5)


def test_no_bound_where_none_is_named():
    class Bare:
        vocab_size = 7

    assert of_config(Bare()) == Limits(UNBOUNDED, 7)


def test_weights_of_another_shape_are_named_and_not_filled_in(tmp_path):
    tiny_models.save_model("llama", tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(told | {"intermediate_size": 48}))
    with pytest.raises(CheckpointError, match=r"holds model.layers.0.mlp.*shape \(.*64.*\) where its config asks for \(.*48"):
        models.load(str(tmp_path))
    assert torch.get_default_dtype() == torch.float32
