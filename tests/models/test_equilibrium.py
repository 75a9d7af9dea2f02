"""The equilibrium transformer against its equations written out once more, its hooks, causality, and its Jacobian's products."""

import math

import pytest
import torch

from wallprobe import models
from wallprobe.errors import CheckpointError, ConfigError
from wallprobe.models.equilibrium import EqConfig, PlainEquilibrium, fill, init
from wallprobe.training.equilibrium.linear import Frozen, branches_complex

CFG = EqConfig(13, d_model=16, n_heads=2, n_ctx=8, T1=200, resinit=0.3)


def rough(cfg=CFG, seed=0):
    """A model whose gains and biases are not neutral, in fp64."""
    model = PlainEquilibrium(cfg, seed).double()
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn(value.shape, generator=draws, dtype=value.dtype))
    return model


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def written_out(model, z, x):
    """F(z) as the module's docstring has it, head by head."""
    p = {name: value.detach() for name, value in model.named_parameters()}
    cfg = model.cfg

    def norm(which):
        centred = z - z.mean(-1, keepdim=True)
        return centred / (z.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * p[f"blocks.0.{which}.w"] + p[f"blocks.0.{which}.b"]

    attention = torch.zeros_like(z)
    for head in range(cfg.n_heads):
        q, k, v = (norm("ln1") @ p[f"blocks.0.attn.{name}"][head] for name in ("W_Q", "W_K", "W_V"))
        if cfg.qk_norm:
            q, k = (part / (part.square().mean(-1, keepdim=True) + 1e-6).sqrt() for part in (q, k))
        for place in range(z.shape[1]):
            weights = (q[:, place : place + 1] @ k[:, : place + 1].mT / math.sqrt(cfg.d_head)).softmax(-1)
            attention[:, place] += (weights @ v[:, : place + 1])[:, 0] @ p["blocks.0.attn.W_O"][head]
    u = norm("ln2") @ p["blocks.0.mlp.W_in"] + p["blocks.0.mlp.b_in"]
    hidden = 0.5 * u * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
    return x - z + attention + hidden @ p["blocks.0.mlp.W_out"] + p["blocks.0.mlp.b_out"] - cfg.c * z


@pytest.mark.parametrize("qk_norm", [True, False])
def test_force_is_the_equation(qk_norm):
    model = rough(EqConfig(13, d_model=16, n_heads=2, n_ctx=8, qk_norm=qk_norm))
    z, x = drawn(3, 8, 16), drawn(3, 8, 16) / 2
    torch.testing.assert_close(model.force(z, x), written_out(model, z, x), rtol=1e-12, atol=1e-12)
    with torch.no_grad():  # another GELU kernel
        torch.testing.assert_close(model.force(z, x), written_out(model, z, x), rtol=1e-12, atol=1e-12)


def test_relaxation_is_euler_steps_of_the_force_and_its_residual_that_of_the_last():
    model, x = rough(), drawn(3, 8, 16) / 3
    z, before = x, x
    for _ in range(7):
        before, z = z, z + CFG.eps * written_out(model, z, x)
    found = model.relax(x, steps=7)
    torch.testing.assert_close(found.z, z, rtol=1e-12, atol=1e-12)
    assert found.res == pytest.approx(float((z - before).norm() / z.norm()), rel=1e-9)
    each = (z - before).flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1)
    torch.testing.assert_close(found.per_sequence, each, rtol=1e-9, atol=1e-15)
    assert found.steps == 7


def test_relaxation_stops_at_a_tolerance_and_goes_on_from_where_it_was():
    model, x = rough(), drawn(2, 8, 16) / 3
    whole = model.relax(x, steps=300)
    early = model.relax(x, steps=300, tol=1e-6)
    assert early.res < 1e-6
    assert early.steps < 200
    assert whole.res < 1e-14
    torch.testing.assert_close(model.relax(x, z0=early.z, steps=300).z, whole.z, rtol=1e-10, atol=1e-12)
    assert model.relax(x, steps=0).res == math.inf


def test_later_tokens_do_not_reach_earlier_states():
    model = PlainEquilibrium(CFG, 1)
    idx = torch.randint(13, (4, 8), generator=torch.Generator().manual_seed(0))
    other = idx.clone()
    other[:, 5] = (other[:, 5] + 1) % 13
    first, second = (model.relax(model.embedded(rows)).z for rows in (idx, other))
    assert (first[:, :5] - second[:, :5]).abs().max() == 0
    assert (first[:, 5:] - second[:, 5:]).abs().amin((0, 2)).min() > 0


def test_queries_and_keys_have_root_mean_square_one():
    model = models.build_equilibrium(CFG, seed=2)
    _, cache = model.run_with_cache(torch.arange(8)[None])
    for name in ("q", "k"):
        size = cache[f"blocks.0.attn.hook_{name}"].square().mean(-1).sqrt()
        assert (size - 1).abs().max() < 1e-3


def test_hooks_show_the_fixed_point_and_an_embedding_that_is_changed_is_relaxed():
    model, plain = models.build_equilibrium(CFG, seed=2), PlainEquilibrium(CFG, 2)
    idx = torch.arange(8)[None]
    logits, cache = model.run_with_cache(idx)
    torch.testing.assert_close(logits, plain(idx), rtol=0, atol=0)
    z, x = cache["hook_z"], cache["hook_embed"]
    shown = x - (1 + CFG.c) * z + cache["blocks.0.hook_attn_out"] + cache["blocks.0.hook_mlp_out"]
    res = model.relax(x, z0=z, steps=1).res
    assert CFG.eps * float(shown.norm() / z.norm()) == pytest.approx(res, rel=0.1, abs=1e-7)
    assert res < 1e-5
    torch.testing.assert_close(cache["blocks.0.attn.hook_pattern"].sum(-1), torch.ones(1, 2, 8), rtol=0, atol=1e-5)
    moved = model.run_with_hooks(idx, fwd_hooks=[("hook_embed", lambda value, hook: value + 0.1)])
    torch.testing.assert_close(moved, plain.logits(plain.relax(plain.embedded(idx) + 0.1).z), rtol=1e-6, atol=1e-6)


def test_products_with_the_jacobian_are_autograd_s():
    model = rough()
    fused = model.fused()
    z, a = drawn(3, 8, 16).requires_grad_(True), drawn(3, 8, 16) / 2
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):  # differentiable twice
        out = fused.branches(z)
    u = torch.zeros_like(out, requires_grad=True)
    (pulled,) = torch.autograd.grad(out, z, u, create_graph=True)
    (pushed,) = torch.autograd.grad(pulled, u, a)
    (pulled,) = torch.autograd.grad(fused.branches(z), z, a)
    with torch.no_grad():
        frozen = Frozen.at(fused, z)
        torch.testing.assert_close(frozen.push(a), pushed, rtol=1e-11, atol=1e-12)
        torch.testing.assert_close(frozen.pull(a), pulled, rtol=1e-11, atol=1e-12)
        twice = frozen.repeated(2)
        torch.testing.assert_close(twice.pull(torch.cat([a, -a]))[3:], -pulled, rtol=1e-11, atol=1e-12)


def test_complex_branches_are_the_real_ones_and_analytic():
    model = rough()
    with torch.no_grad():
        fused, z, a = model.fused(), drawn(2, 8, 16), drawn(2, 8, 16) / 2
        torch.testing.assert_close(branches_complex(fused, z.to(torch.complex128)).real, fused.branches(z), rtol=1e-12, atol=1e-12)
        # The derivative by a complex step is exact where the continuation is analytic.
        step = branches_complex(fused, z + 1e-30j * a).imag / 1e-30
        torch.testing.assert_close(step, Frozen.at(fused, z).push(a), rtol=1e-11, atol=1e-12)


def test_initialisation_has_the_stated_spreads():
    cfg = EqConfig(400, d_model=128, n_heads=4, n_ctx=300)
    found = init(cfg, 0)
    wanted = {"embed.W_E": 0.3, "pos_embed.W_pos": 0.3, "unembed.W_U": 0.02, "blocks.0.mlp.W_in": 128**-0.5}
    wanted |= {"blocks.0.attn.W_Q": 128**-0.5, "blocks.0.attn.W_O": 0.1 * 128**-0.5, "blocks.0.mlp.W_out": 0.1 * 512**-0.5}
    for name, std in wanted.items():
        assert float(found[name].std()) == pytest.approx(std, rel=0.03), name


def test_what_makes_no_model_is_refused():
    with pytest.raises(ConfigError, match="do not divide"):
        EqConfig(5, d_model=10, n_heads=3)
    with pytest.raises(ConfigError, match="eps"):
        EqConfig(5, eps=1.5)
    model = PlainEquilibrium(CFG)
    with pytest.raises(ConfigError, match="context of 8"):
        model(torch.zeros(1, 9, dtype=torch.int64))
    with pytest.raises(CheckpointError, match=r"embed\.W_E"):
        fill(model, init(EqConfig(14, d_model=16, n_heads=2, n_ctx=8), 0))
