"""Attention patterns: the network's own, on the sequence asked for, and a finding that says what uniform attention would give."""

import pytest
import torch

from wallprobe import models
from wallprobe.errors import ConfigError
from wallprobe.hooks.wall.attention import attention
from wallprobe.training.wall import lean

SHAPE = lean.Shape(n_layers=2, d_model=12, n_heads=2, n_ctx=16, vocabulary=17)


@pytest.fixture(scope="module")
def run(tmp_path_factory, write_run):
    return write_run(tmp_path_factory.mktemp("runs"), "c0", lean.init_params(SHAPE, 1), SHAPE)


def test_patterns_are_the_models_and_causal(run):
    result = attention(run, tokens=(1, 2, 3, 4, 5))
    _, cache = models.load_run(run).model.run_with_cache(torch.tensor([[1, 2, 3, 4, 5]]))
    for layer in range(2):
        found = torch.tensor(result.data["pattern"].sel(layer=layer).values)
        torch.testing.assert_close(found, cache["pattern", layer][0], rtol=0, atol=1e-6)
        assert found.triu(1).abs().max().item() == 0
    assert result.data["token"].values.tolist() == [1, 2, 3, 4, 5]
    assert result.data["entropy_exact"].isnull().values.tolist() == [True, False, False, False, False]


def test_uniform_attention_gives_the_uniform_figure(tmp_path, write_run):
    params = lean.init_params(SHAPE, 1)
    params["W_Q"] = torch.zeros_like(params["W_Q"])
    summary = attention(write_run(tmp_path, "c0", params, SHAPE)).summary
    assert summary["attention_to_first"] == pytest.approx(summary["uniform_attention_to_first"], abs=1e-6)
    assert summary["uniform_attention_to_first"] == pytest.approx(sum(1 / (query + 1) for query in range(1, 16)) / 15)


def test_the_drawn_example_is_what_it_says(run):
    tokens = attention(run).data["token"].values.tolist()
    slope = (tokens[2] - tokens[1]) * pow(tokens[1] - tokens[0], -1, 17) % 17
    assert all(
        (after - now) % 17 == slope * (now - before) % 17 for before, now, after in zip(tokens, tokens[1:], tokens[2:], strict=False)
    )
    assert attention(run, example="noise").data["token"].values.tolist() != tokens
    assert attention(run).values == attention(run).values


@pytest.mark.parametrize(
    ("options", "message"),
    [({"tokens": (1, 2)}, "2 tokens given; give 3 to 16"), ({"tokens": (1, 2, 17)}, "token 17 is outside"), ({"example": "x"}, "none of")],
)
def test_bad_sequences_are_named(run, options, message):
    with pytest.raises(ConfigError, match=message):
        attention(run, **options)
