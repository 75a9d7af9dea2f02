"""The estimators: integers worked out by hand, autograd, a finite nudge; oracles written out in plain torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from wallprobe.errors import ConfigError, UnknownNameError
from wallprobe.tasks.images import load_images
from wallprobe.training.estimators import feedback
from wallprobe.training.estimators.energy import ep
from wallprobe.training.estimators.nets import NETS, Net, Sizes, build_net
from wallprobe.training.estimators.protocol import Batch, CreditEstimator, GradResult, make_estimator, makers

DIGITS = load_images("digits")
BATCH = Batch(DIGITS.train_x[:24], DIGITS.train_y[:24])


def small(arch, seed=0, **sizes):
    return build_net(arch, DIGITS.shape, DIGITS.classes, seed, Sizes(**{"width": 16, "depth": 2, **sizes}))


def cosine(left, right):
    left, right = left.flatten().double(), right.flatten().double()
    return float(left @ right / left.norm() / right.norm())


def linear_net(*weights):
    """Bias-free linear maps one after the other, the first the embedding, the last the readout, with whole numbers for weights."""
    layers = []
    for weight in weights:
        layer = nn.Linear(len(weight[0]), len(weight), bias=False)
        layer.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float32))
        layers.append(layer)
    widths = tuple(len(weight) for weight in weights[:-1])
    return Net(layers[0], layers[1:-1], layers[-1], widths, len(weights[-1]))


class WholeErrors(Net):
    """The net whose output error is wanted minus given, so that nothing but whole numbers appears."""

    def losses(self, logits, y):
        return 0.5 * (logits - F.one_hot(y, self.classes)).square().sum(1)

    def error(self, logits, y):
        return logits - F.one_hot(y, self.classes)


@pytest.fixture
def whole():
    """x = (1, 2), h0 = (1, 3), h1 = (4, -1), logits = (2, 5); y = 0, so e = (1, 5)."""
    net = linear_net([[1, 0], [1, 1]], [[1, 1], [2, -1]], [[1, 2], [1, -1]])
    net.__class__ = WholeErrors
    return net, Batch(torch.tensor([[1.0, 2.0]]), torch.tensor([0]))


def test_dfa_in_whole_numbers(whole):
    net, batch = whole
    first, second = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 1.0], [3.0, 0.0]])
    found = feedback.Direct([first, second])(net, batch)
    # a0 = B0 e = (1, 10), a1 = B1 e = (5, 3); a weight's gradient is its credit times its input.
    assert found.grads["embed.weight"].tolist() == [[1, 2], [10, 20]]
    assert found.grads["blocks.0.weight"].tolist() == [[5, 15], [3, 9]]
    assert found.grads["readout.weight"].tolist() == [[4, -1], [20, -5]]
    assert [a.tolist() for a in feedback.Direct([first, second]).credits(net, batch)] == [[[1, 10]], [[5, 3]]]


def test_fa_in_whole_numbers(whole):
    net, batch = whole
    top = torch.tensor([[0.0, 1.0], [3.0, 0.0]])
    estimator = feedback.Sequential(top, {"embed": torch.ones(2, 2), "blocks.0": torch.tensor([[2.0, 0.0], [1.0, 4.0]])})
    found = estimator(net, batch)
    # a1 = B e = (5, 3); a0 = R^T a1 = (2*5 + 1*3, 0*5 + 4*3) = (13, 12).
    assert found.grads["blocks.0.weight"].tolist() == [[5, 15], [3, 9]]
    assert found.grads["embed.weight"].tolist() == [[13, 26], [12, 24]]
    assert found.grads["readout.weight"].tolist() == [[4, -1], [20, -5]]
    assert [a.tolist() for a in estimator.credits(net, batch)] == [[[13, 12]], [[5, 3]]]


def test_fa_with_the_weights_themselves_is_backpropagation(whole):
    net, batch = whole
    own = {"embed": net.embed.weight.detach(), "blocks.0": net.blocks[0].weight.detach()}
    found = feedback.Sequential(net.readout.weight.detach().T, own)(net, batch)
    exact = feedback.bp(net, 0)(net, batch)
    assert {name: grad.tolist() for name, grad in found.grads.items()} == {name: grad.tolist() for name, grad in exact.grads.items()}


@pytest.mark.parametrize("arch", NETS)
def test_bp_is_autograd(arch):
    net = small(arch)
    found = feedback.bp(net, 0)(net, BATCH)
    F.cross_entropy(net(BATCH.x), BATCH.y).backward()
    assert set(found.grads) == {name for name, _ in net.named_parameters()}
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(found.grads[name], parameter.grad, rtol=1e-5, atol=1e-7)


def test_fa_of_a_residual_block_is_the_written_out_rule():
    """a_{l-1} = a_l + (gelu'(z) * (a_l R2)) R1, layer norms passed by."""
    net = small("resmlp", depth=1)
    estimator = feedback.fa(net, 3)
    h0, h1 = net.states(BATCH.x)
    block, other = net.blocks[0], estimator.weights
    z = block.w1(block.ln(h0)).detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(F.gelu(z).sum(), z)
    a1 = (net.readout(h1).softmax(-1) - F.one_hot(BATCH.y, 10)) @ estimator.top.T
    a0 = a1 + (slope * (a1 @ other["blocks.0.w2"])) @ other["blocks.0.w1"]
    below, above = estimator.credits(net, BATCH)
    torch.testing.assert_close(above, a1.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(below, a0.detach(), rtol=1e-5, atol=1e-6)
    grads = estimator(net, BATCH).grads
    torch.testing.assert_close(grads["blocks.0.w2.weight"], a1.detach().T @ F.gelu(z).detach() / 24, rtol=1e-4, atol=1e-7)


def test_a_rewired_pass_leaves_the_model_as_it_was():
    net = small("vit", width=16)
    before = net(BATCH.x)
    estimator = feedback.fa(net, 0)
    with feedback.rewired(net, estimator.weights, True):
        torch.testing.assert_close(net(BATCH.x), before, rtol=0, atol=0)
    assert not [name for name, module in net.named_modules() if "forward" in module.__dict__]
    with pytest.raises(RuntimeError, match="stop"), feedback.rewired(net, estimator.weights, True):
        raise RuntimeError("stop")
    assert not [name for name, module in net.named_modules() if "forward" in module.__dict__]


@pytest.mark.parametrize("arch", NETS)
@pytest.mark.parametrize("method", ["fa", "dfa"])
def test_every_architecture_gets_credits_in_its_states_shapes_and_a_gradient_for_every_parameter(arch, method):
    net = small(arch)
    estimator = make_estimator(method, net, 7)
    assert isinstance(estimator, CreditEstimator)
    assert [a.shape for a in estimator.credits(net, BATCH)] == [h.shape for h in net.states(BATCH.x)]
    found = estimator(net, BATCH)
    assert isinstance(found, GradResult)
    assert set(found.grads) == {name for name, _ in net.named_parameters()}
    torch.testing.assert_close(found.loss, F.cross_entropy(net(BATCH.x), BATCH.y).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("arch", NETS)
def test_frozen_trains_what_is_outside_the_blocks_with_its_true_gradient(arch):
    net = small(arch)
    found, exact = (make(net, 0)(net, BATCH).grads for make in (feedback.frozen, feedback.bp))
    assert set(found) == {name for name in exact if not name.startswith("blocks.")}
    for name, grad in found.items():
        torch.testing.assert_close(grad, exact[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("arch", ["resmlp", "student"])
def test_ep_at_a_small_nudge_is_backpropagation(arch):
    net = build_net(arch, DIGITS.shape, DIGITS.classes, 0)
    nudged, exact = ep(net, 0, beta=0.01), feedback.bp(net, 0)
    cosines = [cosine(a, g) for a, g in zip(nudged.credits(net, BATCH), exact.credits(net, BATCH), strict=True)]
    assert min(cosines) >= 0.98, cosines
    left, right = nudged(net, BATCH).grads, exact(net, BATCH).grads
    whole = [torch.cat([grads[name].flatten() for name in right]) for grads in (left, right)]
    assert cosine(*whole) >= 0.98
    settled = ep(net, 0, beta=0.01, steps=100)(net, BATCH).grads
    assert min(cosine(settled[name], right[name]) for name in right) >= 0.98


def test_ep_in_fp64_converges_to_backpropagation_as_the_nudge_falls_and_the_relaxation_goes_on():
    net = small("resmlp").double()
    batch = Batch(BATCH.x.double(), BATCH.y)
    exact = feedback.bp(net, 0).credits(net, batch)
    gaps = [
        max(1 - cosine(a, g) for a, g in zip(ep(net, 0, beta=beta, steps=steps).credits(net, batch), exact, strict=True))
        for beta, steps in ((1.0, 20), (0.1, 50), (1e-5, 400))
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-9


def test_a_penalty_adds_the_gradient_of_the_mean_squares():
    net = small("resmlp")
    plain, penalised = feedback.bp(net, 0)(net, BATCH), feedback.bp(net, 0, penalty=0.5)(net, BATCH)
    extra = 0.5 * sum(h.square().mean() for h in net.states(BATCH.x))
    grads = torch.autograd.grad(extra, list(net.parameters()), allow_unused=True)
    for (name, _), grad in zip(net.named_parameters(), grads, strict=True):
        expected = plain.grads[name] + (0 if grad is None else grad)
        torch.testing.assert_close(penalised.grads[name], expected, rtol=1e-4, atol=1e-6)


def test_spread_keeps_norms_and_gather_is_its_adjoint():
    draws = torch.Generator().manual_seed(0)
    for broadcast in ("all", "cls"):
        net = small("vit", broadcast=broadcast)
        states = [*net.states(BATCH.x), torch.zeros(24, 16, 3, 3), torch.zeros(24, 16)]
        for state in states:
            credit = torch.randn(24, 16, generator=draws)
            other = torch.randn(state.shape, generator=draws)
            spread = net.spread(credit, state)
            torch.testing.assert_close(spread.flatten(1).norm(dim=1), credit.norm(dim=1))
            torch.testing.assert_close((spread * other).sum(), (credit * net.gather(other)).sum(), rtol=1e-4, atol=1e-4)


def test_initialisation_is_decided_by_the_seed_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (small("resmlp", seed) for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    assert all(torch.equal(left, right) for left, right in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embed[1].weight, other.embed[1].weight)


def test_names_and_options_that_are_none():
    net = small("resmlp")
    assert {"bp", "fa", "dfa", "ep", "frozen"} <= set(makers())
    with pytest.raises(UnknownNameError, match="no training method named 'hebb'; there are: bp"):
        make_estimator("hebb", net, 0)
    with pytest.raises(ConfigError, match=r"training method dfa does not take .*; it has: "):
        make_estimator("dfa", net, 0, beta=1.0)
    with pytest.raises(ConfigError, match="fa_ln 'no' is none of skip, true"):
        make_estimator("fa", net, 0, fa_ln="no")
    with pytest.raises(ConfigError, match="give beta > 0"):
        make_estimator("ep", net, 0, gamma=1.5)
    with pytest.raises(UnknownNameError, match="no architecture named 'rnn'"):
        build_net("rnn", DIGITS.shape, 10, 0)
