"""The lean forward pass is the HookedTransformer's, and its parameters survive the way there and back."""

import pytest
import torch

from wallprobe import models
from wallprobe.rng import generator
from wallprobe.training import lean

SHAPE = lean.Shape(n_layers=3, d_model=24, n_heads=3, n_ctx=10, vocabulary=11)


def shaken(seed):
    """Parameters with biases and norms away from their initial 0 and 1."""
    rng = generator(seed, "shake")
    return {name: tensor + 0.2 * torch.randn(tensor.shape, generator=rng) for name, tensor in lean.init_params(SHAPE, seed).items()}


def hooked(params):
    shape = {"n_layers": 3, "d_model": 24, "n_heads": 3, "n_ctx": 10, "vocabulary": 11}
    return models.build(shape, lean.to_hooked(params, SHAPE))


@pytest.mark.parametrize("length", [1, 5, 10])
def test_logits_and_residual_equal_the_hooked_transformer(length):
    params = shaken(length)
    tokens = torch.randint(11, (7, length), generator=generator("tokens", length))
    logits, residual = lean.forward(params, tokens, SHAPE)
    model = hooked(params)
    expected, cache = model.run_with_cache(tokens, names_filter="blocks.2.hook_resid_post")
    assert (logits - expected).abs().max().item() < 1e-5
    assert (residual - cache["blocks.2.hook_resid_post"]).abs().max().item() < 1e-5


def test_gradients_equal_the_hooked_transformer():
    params = {name: tensor.requires_grad_(True) for name, tensor in shaken(4).items()}
    tokens = torch.randint(11, (5, 8), generator=generator("tokens"))
    loss = lean.forward(params, tokens, SHAPE)[0].log_softmax(-1)[..., 3].sum()
    grads = dict(zip(params, torch.autograd.grad(loss, list(params.values())), strict=True))
    model = hooked({name: tensor.detach() for name, tensor in params.items()})
    model(tokens).log_softmax(-1)[..., 3].sum().backward()
    theirs = lean.from_hooked({name: parameter.grad for name, parameter in model.named_parameters()}, SHAPE)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, theirs[name], rtol=1e-4, atol=1e-4)


def test_state_dict_round_trip_is_exact():
    params = shaken(1)
    again = lean.from_hooked(lean.to_hooked(params, SHAPE), SHAPE)
    assert params.keys() == again.keys()
    assert all(torch.equal(params[name], again[name]) for name in params)


def test_initialisation_depends_on_the_seed_alone():
    first, again, other = (lean.init_params(SHAPE, seed) for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["W_Q"], other["W_Q"])
