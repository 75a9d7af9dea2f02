"""Cosines, nulls, nudges and growth against what they must be; diagnostics on series written by hand."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from wallprobe.errors import ConfigError
from wallprobe.tasks.images import load_images
from wallprobe.training.audit.diagnostics import Baseline, Series, diagnose, fires, should_stop, slope
from wallprobe.training.audit.quantities import LAYERED, Lens, clamped_cosine, exact_cosine, observe, reference
from wallprobe.training.audit.thresholds import Thresholds
from wallprobe.training.estimators import feedback
from wallprobe.training.estimators.nets import BatchNorm, Sizes, build_net
from wallprobe.training.estimators.protocol import Batch

DIGITS = load_images("digits")
BATCH = Batch(DIGITS.test_x[:64], DIGITS.test_y[:64])
LENS = Lens(nulls=40, nudge_samples=32, directions=4)


def pairs(seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(32, 256, generator=draws), torch.randn(32, 256, generator=draws)


@given(power=st.floats(min_value=6.0, max_value=9.0))
@settings(max_examples=25, deadline=None)
def test_the_exact_cosine_knows_no_scale_and_the_clamped_one_falls_as_predicted(power):
    a, b = pairs()
    b = b / b.norm(dim=1, keepdim=True)
    shrunk = b * 10.0**-power
    expected = (a.double() * b.double()).sum(1) / a.double().norm(dim=1) / b.double().norm(dim=1)
    torch.testing.assert_close(exact_cosine(a, shrunk), expected, rtol=0, atol=1e-6)
    factor = min(1.0, 10.0**-power / 1e-8)
    torch.testing.assert_close(clamped_cosine(a, shrunk, 1e-8), expected * factor, rtol=1e-5, atol=1e-9)


def test_the_exact_cosine_survives_where_fp32_squares_vanish():
    a, b = pairs()
    torch.testing.assert_close(exact_cosine(a, b * 1e-30), exact_cosine(a, b), rtol=0, atol=1e-6)


def test_a_zero_or_non_finite_vector_has_no_cosine():
    a, b = pairs()
    b[0], b[1], b[2, 3] = 0.0, math.inf, math.nan
    found = exact_cosine(a, b)
    assert found[:3].isnan().all()
    assert found[3:].isfinite().all()


def test_torch_clamps_each_norm_by_itself():
    v = torch.tensor([[3.0, 4.0]])
    for scale, expected in ((1e-8, 1.0), (1e-9, 0.5), (1e-10, 0.05)):  # norms 5e-8, 5e-9, 5e-10
        assert float(F.cosine_similarity(v, v * scale)) == pytest.approx(expected, rel=1e-3)


@pytest.fixture(scope="module")
def nets():
    made = [build_net("resmlp", DIGITS.shape, 10, 0, Sizes(width=32, depth=2)) for _ in range(2)]
    with torch.no_grad():
        for block in made[0].blocks:
            block.w1.weight *= 3
            block.w2.weight *= -2
    return made


def test_what_is_observed_of_backpropagation(nets):
    net, start = nets
    found = observe(net, start, feedback.bp(net, 0), BATCH, LENS, 0, full=True, precise=True)
    states = net.states(BATCH.x)
    grads = torch.autograd.grad(F.cross_entropy(net.readout(states[-1]), BATCH.y, reduction="sum"), states)
    for place, (h, g) in enumerate(zip(states, grads, strict=True)):
        assert found["h_norm"][place] == pytest.approx(float(h.detach().norm(dim=1).mean()), rel=1e-5)
        assert found["g_norm"][place] == pytest.approx(float(g.norm(dim=1).mean()) / 1024, rel=1e-5)
        assert found["elasticity"][place] == pytest.approx(found["h_norm"][place] * found["g_norm"][place])
    np.testing.assert_allclose(found["gamma_exact"], 1.0, atol=1e-9)
    np.testing.assert_allclose(found["clamp_bias"], 0.0, atol=1e-12)
    assert found["g32_g64"].min() > 0.999999
    # |3W - W| / |W| = 2 and |-2W - W| / |W| = 3; 3 x 2 of norms.
    assert math.isnan(found["weight_delta"][0])
    np.testing.assert_allclose(found["weight_delta"][1:], 3.0, rtol=1e-6)
    np.testing.assert_allclose(found["weight_product"][1:], 6.0, rtol=1e-6)
    top = [float(torch.linalg.svdvals(w.double())[0]) for w in (net.blocks[0].w1.weight.detach(), net.blocks[0].w2.weight.detach())]
    assert found["sigma_product"][1] == pytest.approx(top[0] * top[1])
    assert (found["nudge_1e-2"] < found["nudge_1e-2_low"]).all()
    assert (found["gamma_exact"] > found["null_high"]).all()


def test_a_first_order_nudge_against_the_gradient_gives_the_first_order_change(nets):
    net, start = nets
    found = observe(net, start, feedback.bp(net, 0), BATCH, LENS, 0, full=True, precise=False)
    states = net.states(BATCH.x[:32])
    grads = torch.autograd.grad(F.cross_entropy(net.readout(states[-1]), BATCH.y[:32], reduction="none").sum(), states)
    expected = [-1e-3 * float((h.detach().norm(dim=1) * g.norm(dim=1)).mean()) for h, g in zip(states, grads, strict=True)]
    np.testing.assert_allclose(found["nudge_1e-3"], expected, rtol=0.02)


def test_the_null_is_the_cosine_of_fresh_feedback(nets):
    """Against one draw at a time, with the library's own feedback written out."""
    net, start = nets
    lens = Lens(nulls=1, nudge_samples=8, directions=2)
    found = observe(net, start, feedback.dfa(net, 0), BATCH, lens, 9, full=True, precise=False)
    from wallprobe.rng import generator

    states = net.states(BATCH.x)
    logits = net.readout(states[-1])
    grads = torch.autograd.grad(F.cross_entropy(logits, BATCH.y, reduction="sum"), states)
    error = logits.softmax(1).detach() - F.one_hot(BATCH.y, 10)
    for place, grad in enumerate(grads):
        drawn = torch.randn(1, 32, 10, generator=generator(9, "null", place))[0]
        expected = float(exact_cosine(error @ drawn.T, grad).mean())
        assert found["null_low"][place] == pytest.approx(expected, abs=1e-6)


def test_figures_do_not_depend_on_how_many_samples_are_looked_at(nets):
    net, start = nets
    doubled = Batch(torch.cat([BATCH.x] * 5), torch.cat([BATCH.y] * 5))  # over a chunk's size
    few, many = (observe(net, start, feedback.dfa(net, 1), batch, LENS, 0, full=False, precise=False) for batch in (BATCH, doubled))
    for name in ("h_norm", "g_norm", "gamma_exact", "gamma_clamped", "a_norm"):
        np.testing.assert_allclose(few[name], many[name], rtol=1e-4, atol=1e-7)


def series(**top):
    """A series of two states whose upper one has these values; the rest is healthy."""
    length = len(next(iter(top.values())))
    usual = {
        "h_norm": 10.0,
        "g_norm": 1e-3,
        "elasticity": 1e-2,
        "gamma_exact": 0.5,
        "gamma_clamped": 0.5,
        "block_ratio": 1.1,
        "weight_delta": 1.0,
    }
    usual |= {"nudge_1e-3": -1.0, "nudge_1e-2": -1.0, "weight_product": 1.0}
    layered = {name: np.full((length, 2), usual.get(name, 0.0)) for name in LAYERED}
    for name, values in top.items():
        if name in layered:
            layered[name][:, 1] = values
    null = np.asarray([[-0.1, 0.1]] * length)
    return Series(np.asarray(top.get("epochs", range(length)), dtype=float), layered, null, np.full(length, 0.5), 1e-8)


@pytest.mark.parametrize(
    ("top", "verdict", "first"),
    [
        ({"h_norm": [10, 500, 900]}, "SOUND", {}),
        ({"h_norm": [10, 999, 1001]}, "INFLATED", {"a": 2}),
        ({"block_ratio": [1, 101, 1]}, "INFLATED", {"a_prime": 1}),
        ({"g_norm": [1e-3, 1.1e-7, 0.9e-7]}, "DEGENERATE", {"b": 2}),
        ({"below_eps": [0, 0.05, 0.06]}, "DEGENERATE", {"b_prime": 2}),
        ({"clamp_bias": [0, 0.011, 0.0]}, "DEGENERATE", {"b_prime": 1}),
        ({"sign_flip": [0, 0, 1]}, "DEGENERATE", {"b_prime": 2}),
        ({"gamma_exact": [0.05] * 3, "nudge_1e-3": [0.0] * 3, "nudge_1e-2": [0.0] * 3}, "NO_DEEP_CREDIT", {"d": 0, "e": 0}),
        ({"gamma_exact": [0.05] * 3}, "SOUND", {"e": 0}),
        ({"nudge_1e-3": [0.0] * 3, "nudge_1e-2": [0.0] * 3}, "SOUND", {"d": 0}),
    ],
)
def test_what_fires_when(top, verdict, first):
    found = diagnose(series(**top), Thresholds())
    assert found.verdict == verdict
    assert {name: epoch for name, epoch in found.first.items() if epoch is not None} == first
    assert set(found.evidence) == {"a", "a_prime", "b", "b_prime", "c", "d", "e"}


def test_thresholds_are_what_decides():
    grown = series(h_norm=[10, 500, 900], weight_delta=[0, 5, 60], weight_product=[1, 200, 2e4])
    assert diagnose(grown, Thresholds(inflation=40.0)).first["a"] == 1
    assert diagnose(grown, Thresholds(growth="weight_product")).first["a_prime"] == 2
    assert diagnose(grown, Thresholds(growth="weight_delta", growth_limit=4.0)).first["a_prime"] == 1
    assert "fires above 40" in diagnose(grown, Thresholds(inflation=40.0)).evidence["a"]
    with pytest.raises(ConfigError, match="growth statistic 'size' is none of block_ratio"):
        Thresholds(growth="size")


def test_moments_within_an_epoch_do_not_fire():
    found = diagnose(series(epochs=[0, 0.5, 1], h_norm=[10, 5000, 10]), Thresholds())
    assert found.first["a"] is None
    assert fires(series(epochs=[0, 0.5, 1], h_norm=[10, 5000, 10]), Thresholds())["a"].tolist() == [False, True, False]


def test_frozen_blocks_as_good_leave_no_deep_credit():
    healthy = series(h_norm=[10, 20, 30])
    assert diagnose(healthy, Thresholds(), Baseline(0.0, -0.1, 0.1)).verdict == "NO_DEEP_CREDIT"
    assert diagnose(healthy, Thresholds(), Baseline(0.01, -0.1, 0.1)).verdict == "SOUND"


def test_a_collapse_with_its_product_kept_is_one_of_units():
    h = np.geomspace(10, 1e7, 8)
    collapse = series(h_norm=h, g_norm=1e-2 / h, elasticity=[1e-2] * 8)
    assert slope(collapse) == pytest.approx(-1.0)
    assert diagnose(collapse, Thresholds()).cause == "unit collapse: LN Jacobian"
    vanished = series(h_norm=[10] * 8, g_norm=np.geomspace(1e-3, 1e-9, 8), elasticity=np.geomspace(1e-2, 1e-8, 8))
    assert math.isnan(slope(vanished))
    assert diagnose(vanished, Thresholds()).cause == "true vanishing"


def test_the_early_stop_waits_for_its_patience():
    floored = {"g_norm": [1e-3, 9e-8, 1e-3, 9e-8, 9e-8]}
    held = [should_stop(series(g_norm=floored["g_norm"][:length]), Thresholds()) for length in range(1, 6)]
    assert held == [False, False, False, False, True]
    assert should_stop(series(g_norm=floored["g_norm"][:2]), Thresholds(patience=0))


@pytest.mark.parametrize("arch", ["resmlp", "vit", "bncnn"])
def test_what_follows_from_the_states_is_what_a_pass_of_its_own_gives(arch):
    """`credits_from` against `credits`, and a last block's first token against the whole block."""
    net = build_net(arch, DIGITS.shape, 10, 0, Sizes(depth=2)).eval()
    seen = reference(net, BATCH)
    for name in ("bp", "dfa"):
        estimator = getattr(feedback, name)(net, 3)
        for quick, own in zip(estimator.credits_from(net, BATCH, seen), estimator.credits(net, BATCH), strict=True):
            torch.testing.assert_close(quick, own, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(net(BATCH.x), net.readout(net.states(BATCH.x)[-1]), rtol=1e-5, atol=1e-5)


def test_batch_norm_with_channels_last_is_torchs_own_in_double_precision():
    draws = torch.Generator().manual_seed(0)
    x = (torch.randn(16, 3, 12, 12, generator=draws) * 5 + 20).contiguous(memory_format=torch.channels_last)
    weights = torch.randn(x.shape, generator=draws)
    ours, theirs = BatchNorm(3), torch.nn.BatchNorm2d(3).double()
    grads = []
    for norm, maps in ((ours, x), (theirs, x.double().contiguous())):
        with torch.no_grad():
            norm.weight.copy_(torch.tensor([0.5, -2.0, 1.5]))
        leaf = maps.clone().requires_grad_(True)
        out = norm(leaf)
        grads.append([out.detach(), *torch.autograd.grad((out * weights).sum(), (leaf, norm.weight, norm.bias))])
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.running_mean.double(), theirs.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.running_var.double(), theirs.running_var, rtol=1e-5, atol=1e-6)
    assert ours.num_batches_tracked == theirs.num_batches_tracked == 1


@pytest.mark.parametrize("least", [0.5, -1.0])
@pytest.mark.parametrize("training", [True, False])
def test_pooled_before_it_is_normalised_a_map_is_the_same(least, training):
    draws = torch.Generator().manual_seed(0)
    x = (torch.randn(8, 4, 9, 7, generator=draws) * 3 + 2).contiguous(memory_format=torch.channels_last).requires_grad_(True)
    ours, theirs = BatchNorm(4), torch.nn.BatchNorm2d(4).double()
    with torch.no_grad():
        for norm in (ours, theirs):
            norm.weight.copy_(torch.tensor([least, 1.0, 0.3, 2.0]))
            norm.bias.copy_(torch.linspace(-1, 1, 4))
            norm.running_var.fill_(1.7)
            norm.train(training)
    wide = x.detach().double().requires_grad_(True)
    out, expected = ours.pooled(x), torch.nn.functional.max_pool2d(theirs(wide), 2)
    pulled = torch.randn(out.shape, generator=draws)
    out.backward(pulled)
    expected.backward(pulled.double())
    assert out.shape == (8, 4, 4, 3)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-6)
    for one, other in ((x.grad, wide.grad), (ours.weight.grad, theirs.weight.grad), (ours.bias.grad, theirs.bias.grad)):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.running_mean.double(), theirs.running_mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours.running_var.double(), theirs.running_var, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(ours.eval().pooled(x), torch.nn.functional.max_pool2d(ours(x), 2))
