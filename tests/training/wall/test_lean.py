"""The lean forward pass is the HookedTransformer's, and its parameters survive the way there and back."""

import pytest
import torch

from wallprobe import models
from wallprobe.errors import CheckpointError
from wallprobe.rng import generator
from wallprobe.training.wall import lean

SHAPE = lean.Shape(n_layers=3, d_model=24, n_heads=3, n_ctx=10, vocabulary=11)


def shaken(seed, mechanisms=()):
    """Parameters with biases and norms away from their initial 0 and 1."""
    rng = generator(seed, "shake")
    fresh = lean.init_params(SHAPE, seed) | lean.init_endogenous(SHAPE, seed, mechanisms)
    return {name: tensor + 0.2 * torch.randn(tensor.shape, generator=rng) for name, tensor in fresh.items()}


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


BOTH = ("temperature", "gate")


@pytest.mark.parametrize("mechanisms", [("temperature",), ("gate",), BOTH])
@pytest.mark.parametrize("length", [1, 7, 10])
def test_endogenous_mechanisms_act_in_the_hooked_transformer_too(mechanisms, length):
    params = shaken(length, mechanisms)
    tokens = torch.randint(11, (7, length), generator=generator("tokens", length))
    logits = lean.forward(params, tokens, SHAPE)[0]
    model = hooked(params)
    assert (logits - model(tokens)).abs().max().item() < 1e-5
    exact, residual = lean.forward({name: tensor.double() for name, tensor in params.items()}, tokens, SHAPE)
    expected, cache = model.double().run_with_cache(tokens, names_filter="blocks.2.hook_resid_post")
    assert (exact - expected).abs().max().item() < 1e-5
    assert (residual - cache["blocks.2.hook_resid_post"]).abs().max().item() < 1e-5
    without = lean.forward({name: params[name] for name in lean.NAMES}, tokens, SHAPE)[0]
    if length > 1 or "temperature" in mechanisms:  # a lone token attends to itself, wherever it is
        assert (logits - without).abs().max().item() > 1e-2


def test_the_temperature_divides_the_logits():
    """softplus(ln(e^2 - 1)) = 2."""
    params = shaken(1)
    tokens = torch.randint(11, (4, 6), generator=generator("tokens"))
    plain = lean.forward(params, tokens, SHAPE)[0]
    params |= lean.init_endogenous(SHAPE, 1, ("temperature",))
    torch.testing.assert_close(lean.forward(params, tokens, SHAPE)[0], plain, rtol=1e-5, atol=1e-6)
    params["temperature_out_b"] = torch.tensor(2.0).exp().sub(1).log()
    torch.testing.assert_close(lean.forward(params, tokens, SHAPE)[0], plain / 2, rtol=1e-5, atol=1e-6)
    params["temperature_out_b"] = torch.tensor(-50.0)
    torch.testing.assert_close(lean.forward(params, tokens, SHAPE)[0], plain / lean.COLDEST, rtol=1e-4, atol=1e-3)


def test_the_gate_scales_what_positions_add_to_query_and_key():
    """Shut it is not there; open, a raw hook on a plain HookedTransformer that adds W_Q p_i and W_K p_i does the same."""
    params = shaken(2, ("gate",))
    tokens = torch.randint(11, (4, 8), generator=generator("tokens"))
    plain = {name: params[name] for name in lean.NAMES}
    params["gate_w"] = torch.zeros_like(params["gate_w"])
    shut = params | {"gate_b": torch.full_like(params["gate_b"], -60.0)}
    assert torch.equal(lean.forward(shut, tokens, SHAPE)[0], lean.forward(plain, tokens, SHAPE)[0])

    half = params | {"gate_b": torch.zeros_like(params["gate_b"])}
    model = hooked(plain)

    def add(layer, kind):
        weight = getattr(model.blocks[layer].attn, f"W_{kind}")
        return lambda value, hook: value + 0.5 * torch.einsum("id,hdk->ihk", model.pos_embed.W_pos[:8], weight)

    hooks = [(f"blocks.{layer}.attn.hook_{kind.lower()}", add(layer, kind)) for layer in range(3) for kind in "QK"]
    expected = model.run_with_hooks(tokens, fwd_hooks=hooks)
    assert (lean.forward(half, tokens, SHAPE)[0] - expected).abs().max().item() < 1e-5


def test_the_nudge_enters_half_way_up():
    params = shaken(3)
    tokens = torch.randint(11, (4, 8), generator=generator("tokens"))
    nudge = torch.nn.functional.normalize(torch.randn(4, 8, 24, generator=generator("nudge")), dim=-1)
    model = hooked(params)

    def push(value, hook):
        return value + 0.1 * value.norm(dim=-1, keepdim=True) * nudge

    expected = model.run_with_hooks(tokens, fwd_hooks=[("blocks.1.hook_resid_pre", push)])
    assert (lean.forward(params, tokens, SHAPE, nudge=nudge)[0] - expected).abs().max().item() < 1e-5


def test_added_parameters_survive_the_round_trip_and_unknown_ones_are_refused():
    params = shaken(4, BOTH) | {"head_w": torch.ones(24), "head_b": torch.tensor(2.0)}
    state = lean.to_hooked(params, SHAPE)
    again = lean.from_hooked(state, SHAPE)
    assert params.keys() == again.keys()
    assert all(torch.equal(params[name], again[name]) for name in params)
    sizes = {"n_layers": 3, "d_model": 24, "n_heads": 3, "n_ctx": 10, "vocabulary": 11}
    for place in ("temperature.W_new", "blocks.1.attn.gate.W_new", "blocks.3.attn.gate.W", "other"):
        with pytest.raises(CheckpointError, match=place.replace(".", r"\.")):
            models.build(sizes, state | {place: torch.zeros(3)})
        with pytest.raises(CheckpointError, match=place.replace(".", r"\.")):
            lean.from_hooked(state | {place: torch.zeros(3)}, SHAPE)
    for place in ("temperature.W_in", "blocks.2.attn.gate.b", "blocks.2.ln1.w"):
        with pytest.raises(CheckpointError, match=place.replace(".", r"\.")):
            lean.from_hooked({name: tensor for name, tensor in state.items() if name != place}, SHAPE)
        with pytest.raises(CheckpointError, match=place.replace(".", r"\.")):
            models.build(sizes, {name: tensor for name, tensor in state.items() if name != place})
