"""The lens strip by strip says what whole logits say; ranks from inner products are those from states."""

import math
from pathlib import Path

import pytest
import torch

from tests.hooks.tiny_models import ARCHITECTURES, save_model
from wallprobe.errors import CheckpointError
from wallprobe.hooks.flow import lens_strips
from wallprobe.hooks.flow.lens import ranks_of
from wallprobe.hooks.flow.lens_strips import ranks_of_products, read_out
from wallprobe.models.streamed import open_streamed
from wallprobe.models.strips import Crew


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("size", [0, 2])
def test_says_what_whole_logits_say(dtype, biased, size, monkeypatch):
    monkeypatch.setattr(lens_strips, "ROWS", 7)
    drawn = torch.Generator().manual_seed(3)
    states, weight = torch.randn(9, 12, generator=drawn) * 3, torch.randn(45, 12, generator=drawn).to(dtype)
    bias = torch.randn(45, generator=drawn) if biased else None
    targets = torch.tensor([3, 44, 0, -1, 7, 6, 13, -1, 20])
    logits = torch.nn.functional.linear(states, weight.float(), bias).double()
    targets[0] = int(logits[0].argmax())
    with Crew(size) as crew:
        said = read_out(states, weight, bias, targets, crew)
    log_p = logits.log_softmax(dim=-1)
    torch.testing.assert_close(said.entropy, -(log_p.exp() * log_p).sum(dim=-1), rtol=1e-5, atol=1e-6)
    for place, target in enumerate(targets.tolist()):
        if target < 0:
            assert math.isnan(said.loss[place])
            assert math.isnan(said.first[place])
        else:
            assert float(said.loss[place]) == pytest.approx(-float(log_p[place, target]), rel=1e-5, abs=1e-6)
            assert float(said.first[place]) == float(logits[place].argmax() == target)
    assert float(said.first[0]) == 1.0


def test_ranks_from_inner_products():
    states = torch.randn(20, 50, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * torch.linspace(0.1, 30, 50)
    states[3] *= 1000  # a sink
    for keep in (torch.arange(20), torch.tensor([place for place in range(20) if place != 3])):
        part = states[keep]
        assert ranks_of_products((states @ states.T)[keep][:, keep]) == pytest.approx(ranks_of(part), rel=1e-6)
    assert all(map(math.isnan, ranks_of_products(torch.ones(1, 1, dtype=torch.float64))))


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_the_head_is_found(architecture, tmp_path: Path):
    model = open_streamed(str(save_model(architecture, tmp_path / architecture)))
    head = model.head()
    assert tuple(head.weight.shape) == (model.vocabulary, model.d_model)
    assert float((head.norm.weight - 1).abs().max()) > 0.01  # the file's, no fresh one's


def test_a_head_that_does_more_is_refused(tmp_path: Path):
    from transformers import CohereConfig, CohereForCausalLM

    from tests.hooks.tiny_models import save_tokenizer

    config = CohereConfig(
        vocab_size=32,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        logit_scale=0.25,
    )
    CohereForCausalLM(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.raises(CheckpointError, match="does more between its last block and its logits"):
        open_streamed(str(tmp_path)).head()
