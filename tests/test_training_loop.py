"""The example of a user's training loop: watched or not, it trains to the same bytes, and what was seen is what was there."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import wallprobe as wp

PATH = Path(__file__).resolve().parents[1] / "examples" / "training_loop.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("training_loop", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unwatched(example, steps):
    torch.manual_seed(0)
    net, source, losses = example.Net(), torch.Generator().manual_seed(1), []
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(steps):
        ids = example.batch(source)
        loss = F.cross_entropy(net(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_watched_training_is_the_unwatched_one(example):
    losses, gains, probes = example.train(steps=120, every=10)
    assert losses == unwatched(example, 120)
    assert losses[-1] < losses[0]
    assert gains.summary["n_passes"] == 12
    assert gains.summary["n_sequences"] == 12 * 32
    assert gains.manifest["weight_hash"] is None  # of many networks, not of one
    assert probes.summary["n_sequences"] == 512
    assert probes.summary["n_seen"] == 30 * 32
    table = probes.to_dataframe()
    assert table["accuracy"][1] > 0.5  # chance is a seventh
    assert table["control_accuracy"][1] < 0.3


def test_a_decoder_of_transformers_is_followed_where_it_is(example):
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**shape, bos_token_id=0, eos_token_id=0))
    optimizer, meter = torch.optim.SGD(model.parameters(), lr=0.1), wp.GainMeter(model)
    ids = example.batch(torch.Generator().manual_seed(2), 4)
    for _ in range(2):
        with meter:
            model(ids, labels=ids).loss.backward()
        optimizer.step()
    assert meter.result().summary["n_passes"] == 2
    meter.reset()
    with meter:
        model(input_ids=ids)
    by_call = wp.gains(model, ids)
    found = meter.result()
    for name in ("attn_gain", "mlp_gain", "net_block", "resid_post_norm"):
        assert_close(torch.tensor(found.data[name].values), torch.tensor(by_call.data[name].values), rtol=1e-5, atol=1e-7)
