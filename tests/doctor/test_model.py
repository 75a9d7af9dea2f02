"""The doctor on models: sound ones of several layouts pass; each kind of breakage is named by the check that is there for it."""

import dataclasses

import pytest
import torch
from torch import nn

from tests.hooks.tiny_models import save_model
from wallprobe import models
from wallprobe.doctor import examine_model
from wallprobe.models.equilibrium import EqConfig
from wallprobe.training.wall import lean

SHAPE = lean.Shape(2, 16, 2, 8, 5)


def tiny():
    """A run's model of two blocks, drawn anew."""
    model = models.build(dataclasses.asdict(SHAPE), lean.to_hooked(lean.init_params(SHAPE, 0, 1.0), SHAPE), "cpu")
    return models.Loaded("tiny", "run", model, 2, 16, None)


def failing(loaded):
    return {check.what: check.told for check in examine_model(loaded) if check.passed is False}


def test_a_sound_model_passes_everything():
    checks = list(examine_model(tiny()))
    assert len(checks) == 22
    assert {check.passed for check in checks} == {True}


@pytest.mark.parametrize("architecture", ["neox", "llama"])
def test_a_bridged_model_passes_what_it_has(tmp_path, architecture):
    checks = list(examine_model(models.load(str(save_model(architecture, tmp_path)))))
    assert [check for check in checks if check.passed is False] == []
    missing = [check.what for check in checks if check.passed is None]
    assert all(what.startswith("resid_mid") for what in missing)
    assert len(missing) == (3 if architecture == "neox" else 0)


def test_an_equilibrium_is_asked_only_what_it_means():
    model = models.build_equilibrium(EqConfig(5, 16, 2, 8))
    checks = list(examine_model(models.Loaded("fixed", "equilibrium", model, 1, 16, None)))
    assert {check.passed for check in checks} == {True, None}
    passed = [check.what for check in checks if check.passed]
    assert "attn_out fires once in every block" in passed
    assert "a batch is as its sequences one by one" in passed
    assert "resid_pre + attn_out + mlp_out = resid_post" not in passed


class Twice(nn.Module):
    """A block whose attention runs twice."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *given, **named):
        self.inner(*given, **named)
        return self.inner(*given, **named)


def test_a_hook_that_fires_twice_is_named():
    loaded = tiny()
    block = loaded.model.blocks[1]
    block.attn = Twice(block.attn)
    told = failing(loaded)
    assert told["z fires once in every block"] == "blocks.1.attn.hook_z fired 2 times in one forward pass"
    assert not any("blocks.0" in reason for reason in told.values())


def test_a_hook_that_is_not_there_is_named():
    loaded = tiny()
    for layer in range(2):
        del loaded.points[f"blocks.{layer}.hook_mlp_out"]
    assert failing(loaded)["mlp_out fires once in every block"] == "blocks.0.hook_mlp_out is not there"


class Shown(nn.Module):
    """A hook point that shows what passes and does not let a hook change it, or keeps its type and not its bits."""

    def __init__(self, inner, change):
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, value):
        return self.change(self.inner, value)


def broken_point(layer, site, change):
    loaded = tiny()
    block = loaded.model.blocks[layer]
    setattr(block, f"hook_{site}", Shown(getattr(block, f"hook_{site}"), change))
    return loaded


def ignored(inner, value):
    inner(value)
    return value


def test_a_hook_whose_patch_is_ignored_is_named():
    told = failing(broken_point(1, "mlp_out", ignored))
    assert told == {
        "mlp_out of another sequence changes what follows": "blocks.1.hook_mlp_out was given another value, and nothing after it changed"
    }


def test_a_self_patch_that_is_not_exact_is_named():
    def drifting(inner, value):
        out = inner(value)
        return out if out is value else out * (1 + 1e-6)

    (told,) = failing(broken_point(0, "attn_out", drifting)).items()
    assert told[0] == "attn_out put back as it is changes nothing"
    assert told[1].startswith("blocks.0.hook_attn_out changed blocks.0.hook_resid_post by ")


def test_a_residual_that_is_no_sum_is_named():
    told = failing(broken_point(1, "attn_out", lambda inner, value: inner(value) * 2))
    assert told["resid_pre + attn_out + mlp_out = resid_post"].startswith("block 1 is off by ")


def test_logits_that_come_from_elsewhere_are_named():
    loaded = tiny()
    said = loaded.model.forward
    loaded.model.forward = lambda *given, **named: said(*given, **named) * 1.5
    assert list(failing(loaded)) == ["the logit lens after the last block gives the logits"]


def test_a_batch_whose_sequences_see_each_other_is_named():
    loaded = tiny()
    said = loaded.model.forward
    loaded.model.forward = lambda *given, **named: (out := said(*given, **named)) - out.mean(0, keepdim=True)
    assert "a batch is as its sequences one by one" in failing(loaded)


def test_a_model_is_left_as_it_was():
    loaded = tiny()
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    list(examine_model(loaded))
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())
    assert all(not module._forward_hooks for module in loaded.model.modules())
    assert not loaded.model.training
