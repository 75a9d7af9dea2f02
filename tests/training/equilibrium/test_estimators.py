"""The estimators against each other in fp64: identities that hold to round-off, biases of a known order, and how an estimate collapses."""

import pytest
import torch

from wallprobe.errors import ConfigError
from wallprobe.models.equilibrium import EqConfig, PlainEquilibrium
from wallprobe.training.equilibrium.control import penalty
from wallprobe.training.estimators.nets import build_net
from wallprobe.training.estimators.protocol import Batch, make_estimator

SETTLED = {"free_steps": 300}


def model_of(cfg=None, seed=0, dtype=torch.float64):
    return PlainEquilibrium(cfg or EqConfig(13, d_model=16, n_heads=2, n_ctx=8, resinit=0.3), seed).to(dtype)


def batch_of(model, rows=4, seed=0, mask=None):
    draws = torch.Generator().manual_seed(seed)
    shape = (rows, model.cfg.n_ctx)
    return Batch(*(torch.randint(model.cfg.d_vocab, shape, generator=draws) for _ in range(2)), mask)


def blocks(result):
    return torch.cat([value.flatten() for name, value in sorted(result.grads.items()) if name.startswith("blocks.")])


def compare(left, right):
    """1 - cos and k - 1 over the block's parameters."""
    a, b = blocks(left), blocks(right)
    return 1 - float(a @ b / (a.norm() * b.norm())), float(a.norm() / b.norm()) - 1


@pytest.fixture(scope="module")
def settled():
    """A model, a batch, and the reference there."""
    model = model_of()
    batch = batch_of(model)
    return model, batch, make_estimator("implicit", model, 0, **SETTLED)(model, batch)


def test_implicit_is_bptt_through_a_thousand_steps(settled):
    model, batch, reference = settled
    exact = make_estimator("bptt", model, 0, steps=1000)(model, batch)
    angle, size = compare(exact, reference)
    assert abs(angle) < 1e-12
    assert abs(size) < 1e-7
    for name, value in exact.grads.items():  # embeddings and unembedding too
        torch.testing.assert_close(reference.grads[name], value, rtol=1e-6, atol=1e-12)
    assert reference.aux["converged"]


@pytest.mark.parametrize("steps", [1, 4, 16, 40])
def test_the_nudged_steps_are_the_truncation_length(settled, steps):
    model, batch, _ = settled
    nudged = make_estimator("eqprop", model, 0, r=1e-3, steps=steps, **SETTLED)(model, batch)
    angle, size = compare(nudged, make_estimator("tbptt", model, 0, steps=steps, **SETTLED)(model, batch))
    assert abs(angle) < 1e-12
    assert abs(size) < 1e-6


def test_bias_falls_with_the_square_of_the_radius_and_with_its_fourth_power_for_four_points(settled):
    model, batch, reference = settled
    for name, order in (("eqprop", 2), ("eqprop-4", 4)):
        sizes = []
        for r in (0.2, 0.1):
            found = make_estimator(name, model, 0, r=r, steps=150, **SETTLED)(model, batch)
            sizes.append(float((blocks(found) - blocks(reference)).norm() / blocks(reference).norm()))
        assert sizes[0] / sizes[1] == pytest.approx(2**order, rel=0.1), name
    for name, near, alike in (("eqprop", 7e-5, 1.05e-2), ("eqprop-4", 2e-6, 1.6e-3)):  # as another implementation measured
        found = make_estimator(name, model, 0, r=0.02, steps=150, **SETTLED)(model, batch)
        angle, size = compare(found, reference)
        assert abs(angle) < near
        assert abs(size) < alike


def test_longer_nudged_phases_come_closer(settled):
    model, batch, reference = settled
    angles = [
        compare(make_estimator("eqprop", model, 0, r=1e-3, steps=steps, **SETTLED)(model, batch), reference)[0]
        for steps in (1, 2, 4, 8, 16, 32)
    ]
    assert angles == sorted(angles, reverse=True)
    assert angles[-1] < angles[0] / 10


def test_the_correction_is_what_makes_it_exact(settled):
    model, batch, reference = settled
    options = {"r": 1e-3, "steps": 150, **SETTLED}
    with_it, without = (make_estimator(name, model, 0, **options)(model, batch) for name in ("eqprop", "eqprop-plain"))
    assert abs(compare(with_it, reference)[0]) < 1e-9
    assert compare(without, reference)[0] > 0.01


def test_a_mask_leaves_labels_out():
    model = model_of()
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[:, 4:] = True
    batch = batch_of(model, mask=mask)
    other = Batch(batch.x, torch.where(mask, batch.y, (batch.y + 1) % 13), mask)
    exact = make_estimator("bptt", model, 0, steps=400)
    for name, options in (("implicit", SETTLED), ("eqprop", {"r": 1e-3, "steps": 150, **SETTLED})):
        estimator = make_estimator(name, model, 0, **options)
        angle, size = compare(estimator(model, batch), exact(model, batch))
        assert abs(angle) < 1e-9
        assert abs(size) < 1e-5
        torch.testing.assert_close(blocks(estimator(model, batch)), blocks(estimator(model, other)), rtol=0, atol=0)


def test_horizons_agree_where_the_free_phase_has_converged():
    model = model_of(dtype=torch.float32)
    batch = batch_of(model)
    short, long = (make_estimator("bptt", model, 0, steps=steps)(model, batch) for steps in (60, 160))
    assert short.aux["res"] < 1e-4
    assert compare(short, long)[0] < 0.01


def test_an_estimate_collapses_by_a_few_sequences_that_leave_the_linear_range():
    """Large nudges send single sequences off; what they add outweighs all others, and without them the rest is sound."""
    model = model_of(EqConfig(13, d_model=16, n_heads=2, n_ctx=8, resinit=0.4), seed=0)
    batch = batch_of(model, rows=16)
    small, large = (make_estimator("eqprop", model, 0, r=r, steps=60, probe=True, **SETTLED)(model, batch) for r in (0.1, 1.0))
    reference = make_estimator("implicit", model, 0, **SETTLED)(model, batch)
    assert reference.aux["converged"]
    assert compare(small, reference)[0] < 1e-3
    assert small.aux["outlier"] < 5
    assert small.aux["lin"] < 0.02
    angle, size = compare(large, reference)
    assert angle > 0.3
    assert size > 10
    assert large.aux["outlier"] > 50
    assert large.aux["lin"] > 0.5
    sizes = large.aux["a_norms"]
    kept = sizes < 5 * sizes.median()
    assert 0 < int((~kept).sum()) <= 4
    fewer = Batch(batch.x[kept], batch.y[kept])
    rest = make_estimator("eqprop", model, 0, r=1.0, steps=60, **SETTLED)(model, fewer)
    assert compare(rest, make_estimator("implicit", model, 0, **SETTLED)(model, fewer))[0] < 0.1


def test_the_radius_steers_itself_and_can_be_carried_on():
    model = model_of()
    estimator = make_estimator("eqprop", model, 0, r="auto")
    batch = batch_of(model)
    first, second, third = (estimator(model, batch).aux for _ in range(3))
    assert first["r"] == 0.02
    assert abs(third["amp"] / 0.01 - 1) < 0.2
    assert abs(second["amp"] / 0.01 - 1) < abs(first["amp"] / 0.01 - 1)
    other = make_estimator("eqprop", model, 0, r="auto")
    other.restore(estimator.state())
    assert other(model, batch).aux["r"] == estimator.state()["r"]


def test_the_penalty_is_the_jacobian_s_frobenius_norm_on_average_and_its_gradient_autograd_s():
    model = model_of(EqConfig(7, d_model=8, n_heads=2, n_ctx=4, resinit=0.5))
    z = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(model.fused().branches, z).reshape(32, 32)
    exact = float(jacobian.square().sum() / 32)
    draws = torch.Generator().manual_seed(2)
    with torch.no_grad():
        found = torch.stack([penalty(model, z, draws) for _ in range(400)])
    assert abs(float(found.mean()) - exact) < 4 * float(found.std()) / 400**0.5
    weight = model.blocks[0].mlp.W_out
    (slope,) = torch.autograd.grad(penalty(model, z, torch.Generator().manual_seed(5)), weight)
    step = 1e-6
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[3, 2] += sign * step
            sides.append(float(penalty(model, z, torch.Generator().manual_seed(5))))
            weight[3, 2] -= sign * step
    assert float(slope[3, 2]) == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("eqprop", {"points": 3}, "2 or 4"),
        ("eqprop", {"r": "big"}, "auto"),
        ("eqprop-plain", {"r": -1.0}, "more than 0"),
        ("bptt", {"steps": 0}, "more than 0"),
        ("tbptt", {"length": 3}, "does not take"),
        ("implicit", {"tol": 0.0}, "more than 0"),
    ],
)
def test_options_that_estimate_nothing_are_refused(name, options, said):
    with pytest.raises(ConfigError, match=said):
        make_estimator(name, model_of(), 0, **options)


def test_a_model_without_a_fixed_point_is_refused():
    net = build_net("resmlp", (1, 8, 8), 10, 0)
    with pytest.raises(ConfigError, match="needs an equilibrium model"):
        make_estimator("eqprop", net, 0)
