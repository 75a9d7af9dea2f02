"""HookedTransformers on the wall's task under the audit: transport by hand, gradients, credits by token, a run to its end."""

import math

import pytest
import torch
import torch.nn.functional as F

from wallprobe.errors import ConfigError
from wallprobe.training.audit import loop, wall
from wallprobe.training.audit.job import make_job
from wallprobe.training.audit.quantities import Lens
from wallprobe.training.estimators import feedback, transport
from wallprobe.training.estimators.nets import Sizes, matrices
from wallprobe.training.estimators.protocol import Batch

TINY = Sizes(width=8, depth=2, heads=2)
DATA = wall.load_sequences()
BATCH = Batch(DATA.test_x[:6], DATA.test_y[:6])


@pytest.fixture
def net():
    made = wall.build_wall(3, TINY)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():  # biases and gains that are no identity
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=draws))
    return made


def test_it_is_trained_on_what_c0_supervises():
    assert DATA.train_x.shape == (wall.TRAIN, 5)
    assert torch.equal(DATA.test_x[:, 1:], DATA.test_y[:, :-1])
    assert torch.equal(DATA.test_tokens[:, 1:6], DATA.test_y)


def test_backpropagation_is_autograd_through_the_transformer(net):
    found = feedback.bp(net, 0)(net, BATCH)
    loss = F.cross_entropy(net(BATCH.x).flatten(0, 1), BATCH.y.flatten())
    names, values = zip(*net.named_parameters(), strict=True)
    for name, grad in zip(names, torch.autograd.grad(loss, values), strict=True):
        torch.testing.assert_close(found.grads[name], grad, rtol=1e-4, atol=1e-7)


def test_through_other_weights_the_block_computes_what_it_did(net):
    block, h = net.blocks[0], net.embed(BATCH.x).detach()
    other = transport.random_block(block, 0, "blocks.0")
    torch.testing.assert_close(transport.through(block, h, other, skip_ln=True), block(h), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("skip_ln", [True, False])
def test_with_the_blocks_own_weights_transport_is_backpropagation(net, skip_ln):
    """Of the credit where layer norms keep their Jacobian; of the parameters of the last matrix either way."""
    block = net.blocks[0]
    own = {key: block.get_parameter(key).detach() for key in transport.WEIGHTS}
    h = net.embed(BATCH.x).detach().requires_grad_(True)
    weights = torch.randn(h.shape, generator=torch.Generator().manual_seed(1))
    wanted = [h, *block.parameters()]
    theirs = torch.autograd.grad((block(h) * weights).sum(), wanted)
    ours = torch.autograd.grad((transport.through(block, h, own, skip_ln=skip_ln) * weights).sum(), wanted)
    same = [torch.allclose(one, other, rtol=1e-3, atol=1e-5) for one, other in zip(ours, theirs, strict=True)]
    last = [name for name, _ in block.named_parameters()].index("mlp.W_out") + 1
    assert same[last]
    assert all(same) == (not skip_ln)


def test_feedback_alignment_by_hand_on_one_token():
    """One token attends to itself alone: z = v, so the block is h + W_O W_V n + W_out gelu(W_in n'), and every step is a product."""
    net = wall.build_wall(0, Sizes(width=4, depth=1, heads=1))
    batch = Batch(DATA.test_x[:3, :1], DATA.test_y[:3, :1])
    estimator = feedback.fa(net, 5)
    (other,) = [value for value in estimator.weights.values() if isinstance(value, dict)]
    block = net.blocks[0]
    w = {key: block.get_parameter(key).detach().double().squeeze(0) for key in transport.WEIGHTS}
    r = {key: value.double().squeeze(0) for key, value in other.items()}

    def norm(h):
        centred = h - h.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()

    h0 = net.embed(batch.x)[:, 0].detach().double()
    n1 = norm(h0)
    v = n1 @ w["attn.W_V"]
    middle = h0 + v @ w["attn.W_O"]
    n2 = norm(middle)
    z = n2 @ w["mlp.W_in"]
    slope = 0.5 * (1 + torch.erf(z / math.sqrt(2))) + z * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    error = net(batch.x)[:, 0].detach().double().softmax(-1) - F.one_hot(batch.y[:, 0], 17)
    top = error @ estimator.top.double().T
    hidden = (top @ r["mlp.W_out"].T) * slope
    inner = top + hidden @ r["mlp.W_in"].T  # the layer norm is passed by
    value = inner @ r["attn.W_O"].T
    bottom = inner + value @ r["attn.W_V"].T
    credits = estimator.credits(net, batch)
    torch.testing.assert_close(credits[1][:, 0].double(), top, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(credits[0][:, 0].double(), bottom, rtol=1e-4, atol=1e-6)
    grads = estimator(net, batch).grads
    for name, expected in {"mlp.W_in": n2.T @ hidden / 3, "mlp.W_out": F.gelu(z).T @ top / 3, "attn.W_V": (n1.T @ value / 3)[None]}.items():
        torch.testing.assert_close(grads[f"blocks.0.{name}"].double(), expected, rtol=1e-4, atol=1e-6)
    assert float(grads["blocks.0.attn.W_Q"].abs().max()) == 0.0  # one token: nothing to choose


def test_direct_feedback_reaches_each_supervised_token_by_its_own_error(net):
    estimator = feedback.dfa(net, 7)
    credits = estimator.credits(net, BATCH)
    error = (net(BATCH.x).softmax(-1).detach() - F.one_hot(BATCH.y, 17)) / 5  # a sample's loss is the mean of its five
    for credit, weights in zip(credits, estimator.feedback, strict=True):
        torch.testing.assert_close(credit, error @ weights.T, rtol=1e-5, atol=1e-7)
    # By hand: the last block's output is out = ... + b_O + b_out, so that both biases get the mean credit over samples, summed over tokens.
    grads = estimator(net, BATCH).grads
    for layer in range(2):
        expected = credits[layer + 1].sum((0, 1)) / len(BATCH.x)
        torch.testing.assert_close(grads[f"blocks.{layer}.mlp.b_out"], expected, rtol=1e-4, atol=1e-7)
    # ... and an embedding row the credits of the places where its token stands.
    rows = torch.zeros(17, 8).index_add(0, BATCH.x.flatten(), credits[0].flatten(0, 1)) / len(BATCH.x)
    torch.testing.assert_close(grads["embed.tokens.W_E"], rows, rtol=1e-4, atol=1e-7)


def test_no_credit_where_nothing_is_supervised(net):
    net.start, net.readout.start = 2, 2
    credits = feedback.dfa(net, 7).credits(net, Batch(BATCH.x, BATCH.y[:, 2:]))
    for credit in credits:
        assert float(credit[:, :2].abs().max()) == 0.0
        assert float(credit[:, 2:].abs().min()) > 0.0


def test_growth_is_of_matrices_not_of_biases_that_start_at_zero():
    assert len(list(matrices(wall.build_wall(0, TINY).blocks[0]))) == 6


def test_the_distance_from_the_exact_answer_of_a_uniform_guess(net):
    with torch.no_grad():
        for parameter in net.readout.unembed.parameters():
            parameter.zero_()
    exact = DATA.task.posterior(DATA.test_tokens).entropy
    expected = (math.log2(17) - exact).abs().mean(0)
    torch.testing.assert_close(wall.distance(net, DATA), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["fa", "dfa", "frozen"])
def test_a_run_to_its_end_says_how_far_it_is_from_the_exact_answer(tmp_path, method):
    lens = Lens(samples=16, nulls=3, nudge_samples=8, directions=2)
    job = make_job("wall", method, "digits", 1, sizes=TINY, samples=256, epochs=1, lens=lens)
    assert job.data == "recurrence"
    found = loop.audit(job, tmp_path)
    assert found.summary["verdict"] in ("SOUND", "NO_DEEP_CREDIT", "INFLATED", "DEGENERATE")
    bits = found.data["mae"].values[0]
    assert len(bits) == 15
    assert found.summary["mae_supervised"] == pytest.approx(bits[:5].mean())
    assert found.summary["mae_beyond"] == pytest.approx(bits[5])
    assert "bits at supervised positions" in found.summary["finding"]
    net = loop.load_net(loop.folder_of(job, tmp_path), job, DATA)
    start = wall.build_wall(1, TINY)
    moved = {name: not torch.equal(value, start.state_dict()[name]) for name, value in net.named_parameters()}
    assert moved == {name: method != "frozen" or not name.startswith("blocks.") for name in moved}


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ConfigError, match="does not read fashion_mnist"):
        make_job("wall", "bp", "fashion_mnist", 1)
    with pytest.raises(ConfigError, match="does not read recurrence"):
        make_job("resmlp", "bp", "recurrence", 1)
    with pytest.raises(ConfigError, match="ep does not settle on wall"):
        make_job("wall", "ep", "recurrence", 1)
    with pytest.raises(ConfigError, match="only width, depth and heads are free"):
        make_job("wall", "bp", "recurrence", 1, sizes=Sizes(patch=2))
    with pytest.raises(ConfigError, match="width 10 does not divide into 4 heads"):
        wall.build_wall(0, Sizes(width=10))
