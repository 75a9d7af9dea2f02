"""Gradients of any model: groups by name, the precision it comes in, estimators whose answer is known, figures without clamps."""

import math

import pytest
import torch
from torch import nn

from tests.hooks import tiny_models
from wallprobe import models
from wallprobe.errors import ConfigError
from wallprobe.training.estimators import gradients
from wallprobe.training.estimators.decoders import Backpropagation, Direct, Perturbation
from wallprobe.training.estimators.protocol import Batch, make_estimator, makers
from wallprobe.training.wall import lean

SHAPE = lean.Shape(n_layers=2, d_model=12, n_heads=2, n_ctx=9, vocabulary=11)
SIZES = {"n_layers": 2, "d_model": 12, "n_heads": 2, "n_ctx": 9, "vocabulary": 11}


@pytest.fixture(scope="module")
def model():
    return models.build(SIZES, lean.to_hooked(lean.init_params(SHAPE, 3), SHAPE))


@pytest.fixture(scope="module")
def batch():
    tokens = torch.randint(11, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(3, 8, dtype=torch.bool)
    mask[:, :5] = True
    return Batch(tokens[:, :-1], tokens[:, 1:], mask)


def test_every_parameter_of_a_hooked_transformer_has_its_group(model):
    groups = gradients.named_groups(model)
    assert list(groups) == ["embed", "unembed", "ln", "qk", "v", "o", "mlp_in", "mlp_out"]
    assert set(groups["qk"]) == {f"blocks.{layer}.attn.{name}" for layer in (0, 1) for name in ("W_Q", "b_Q", "W_K", "b_K")}
    norms = {f"blocks.{layer}.ln{place}.{name}" for layer in (0, 1) for place in (1, 2) for name in "wb"}
    assert set(groups["ln"]) == norms | {"ln_final.w", "ln_final.b"}
    assert sum(map(len, groups.values())) == len(list(model.named_parameters()))


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "neox"])
def test_a_bridged_decoder_has_the_same_groups(architecture, tmp_path):
    folder = tiny_models.save_model(architecture, tmp_path)
    loaded = models.load(str(folder))
    groups = gradients.named_groups(loaded.model)
    assert {"embed", "ln", "o", "mlp_in", "mlp_out"} <= set(groups)
    names = gradients.lens_names(loaded.model)
    inside = [name for name in names.values() if gradients.in_block(name)]
    assert {gradients.group_of(name) for name in inside} >= {"ln", "o", "mlp_in", "mlp_out"}
    if architecture == "llama":
        assert gradients.OTHER not in groups
        assert {"qk", "v"} <= set(groups)


def test_the_loss_is_over_the_labels_that_count(model, batch):
    logits = model(batch.x).detach()
    by_hand = torch.stack([-logits[b, t].log_softmax(-1)[batch.y[b, t]] for b in range(3) for t in range(5)]).mean()
    torch.testing.assert_close(gradients.mean_loss(model, batch).detach(), by_hand, rtol=1e-6, atol=1e-7)


def test_backpropagation_is_the_derivative(model, batch):
    found = Backpropagation()(model, batch)
    name = "blocks.1.mlp.W_out"
    weight = dict(model.named_parameters())[name]
    with gradients.in_dtype(model, torch.float64), torch.no_grad():
        losses = []
        for side in (1, -1):
            weight[3, 4] += side * 1e-4
            losses.append(float(gradients.mean_loss(model, batch)))
            weight[3, 4] -= side * 1e-4
    assert float(found.grads[name][3, 4]) == pytest.approx((losses[0] - losses[1]) / 2e-4, rel=1e-3)


def test_fp64_agrees_and_leaves_the_parameters_bit_for_bit(model, batch):
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    single, double = Backpropagation()(model, batch), make_estimator("bp64", model, 0)(model, batch)
    assert {grad.dtype for grad in double.grads.values()} == {torch.float64}
    for name, value in model.named_parameters():
        assert value.dtype == torch.float32
        assert torch.equal(value, before[name])
        torch.testing.assert_close(single.grads[name].double(), double.grads[name], rtol=1e-3, atol=1e-6)


def test_direct_feedback_is_exact_where_no_block_is_in_between(model, batch):
    exact, found = Backpropagation()(model, batch), Direct(5)(model, batch)
    for name in ("unembed.W_U", "unembed.b_U", "ln_final.w"):
        torch.testing.assert_close(found.grads[name], exact.grads[name], rtol=1e-4, atol=1e-7)
    assert not torch.allclose(found.grads["blocks.0.attn.W_V"], exact.grads["blocks.0.attn.W_V"], rtol=0.1)
    assert found.grads.keys() == exact.grads.keys()


class Linear(nn.Module):
    """Logits linear in one weight, so that a step's effect is known."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(-1, 1, 40).view(4, 10))

    def forward(self, x):
        return nn.functional.one_hot(x, 4).float() @ self.weight


def test_perturbation_averages_to_the_gradient_and_restores():
    tokens = torch.randint(4, (8, 6), generator=torch.Generator().manual_seed(0))
    batch, model = Batch(tokens[:, :-1], tokens[:, 1:]), Linear()
    before = model.weight.detach().clone()
    exact = Backpropagation()(model, batch).grads["weight"]
    found = Perturbation(0, 3000, 1e-3)(model, batch)
    assert torch.equal(model.weight.detach(), before)
    cos = torch.nn.functional.cosine_similarity(exact.flatten(), found.grads["weight"].flatten(), dim=0)
    assert float(cos) > 0.98
    assert found.aux["cos_expected"] == pytest.approx(math.sqrt(3000 / 3039))


@pytest.mark.parametrize(("product", "left", "right", "why"), [(1.0, 1e-80, 1.0, "zero gradient"), (math.inf, 1.0, 1.0, "not finite")])
def test_no_cosine_has_a_reason(product, left, right, why):
    value, told = gradients.cosine(product, left, right)
    assert math.isnan(value)
    assert told == why


def test_tiny_gradients_have_their_true_cosine():
    a, b = torch.tensor([3e-18, 4e-18]), torch.tensor([4e-18, 3e-18])
    value, told = gradients.cosine(gradients.inner(a, b), gradients.inner(a, a), gradients.inner(b, b))
    assert (value, told) == (pytest.approx(24 / 25, rel=1e-6), "")


def test_the_registry_has_them_and_refuses_what_does_not_apply(model):
    assert {"bp", "bp64", "dfa", "fa", "spsa"} <= set(makers())
    with pytest.raises(ConfigError, match="no transport through this model"):
        make_estimator("fa", model, 0)
    with pytest.raises(ConfigError, match="directions"):
        make_estimator("spsa", model, 0, directions=0)
    with pytest.raises(ConfigError, match="penalty"):
        make_estimator("bp", model, 0, penalty=0.1)
