"""The batched fit against scikit-learn on the same standardised features, at equal strength; and cells worked out by hand."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from wallprobe.hooks.probes import fit as probes_fit
from wallprobe.rng import generator

CELLS, ROWS, WIDTH, CLASSES, HELD = 3, 240, 7, 4, 40


@pytest.fixture(scope="module")
def data():
    """Correlated features of very unequal size, labels that depend on them linearly, and shuffled ones."""
    rng = generator("probes fit")
    mix = torch.randn(CELLS, WIDTH, WIDTH, generator=rng, dtype=torch.float64)
    sizes = torch.logspace(-3, 3, WIDTH, dtype=torch.float64)
    x = torch.randn(CELLS, ROWS + HELD, WIDTH, generator=rng, dtype=torch.float64) @ mix * sizes + 5 * sizes
    scores = (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) @ torch.randn(WIDTH, CLASSES, generator=rng, dtype=torch.float64)
    labels = (scores + torch.randn(scores.shape, generator=rng, dtype=torch.float64)).argmax(2)
    order = torch.randperm(ROWS + HELD, generator=rng)
    return x, torch.stack([labels, labels[:, order]], dim=1)


def standardised(x):
    return StandardScaler().fit(x[:ROWS].numpy()).transform(x.numpy())


def peer_of(rows, labels, strength):
    """scikit-learn's optimum, with Newton's steps to a gradient of 1e-11 nats: its L-BFGS stops where rounding hides the loss's fall.

    A gradient g leaves the weights within |g| / strength of the optimum, which is 1e-7 at the weakest penalty here.
    """
    peer = LogisticRegression(C=1 / (ROWS * strength), solver="newton-cholesky", tol=1e-12, max_iter=100).fit(rows, labels)
    wrong = peer.predict_proba(rows) - np.eye(len(peer.classes_))[labels]
    said = wrong if len(peer.coef_) > 1 else wrong[:, 1:]
    gradient = np.hstack([said.T @ rows / ROWS + strength * peer.coef_, said.mean(0)[:, None]])
    assert np.linalg.norm(gradient) < 1e-11
    return peer


@pytest.mark.parametrize("strength", [1.0, 1e-2, 1e-4])
def test_softmax_is_scikit_learns_at_the_same_strength(data, strength):
    x, labels = data
    given = probes_fit.features(x, ROWS, HELD)
    fit = probes_fit.softmax_path(given, labels, CLASSES, [strength], tolerance=1e-14, evaluations=500)
    assert bool(fit.converged.all())
    found = fit.weights
    for cell in range(CELLS):
        rows = standardised(x[cell])
        for problem in range(2):
            peer = peer_of(rows[:ROWS], labels[cell, problem, :ROWS].numpy(), strength)
            own = found[cell, problem].numpy()
            scale = abs(peer.coef_).max()
            np.testing.assert_allclose(own[:, :-1], peer.coef_, rtol=0, atol=2e-5 * scale)
            # the intercept is free up to a constant
            np.testing.assert_allclose(own[:, -1] - own[:, -1].mean(), peer.intercept_ - peer.intercept_.mean(), rtol=0, atol=2e-5)
            loss = log_loss(labels[cell, problem, ROWS:].numpy(), peer.predict_proba(rows[ROWS:]), labels=range(CLASSES))
            assert float(fit.loss[cell, problem]) == pytest.approx(loss, abs=1e-5)


def test_features_as_they_are_where_asked(data):
    x, labels = data
    x = x / x.std((1, 2), keepdim=True)
    given = probes_fit.features(x, ROWS, HELD, standardise=False)
    fit = probes_fit.softmax_path(given, labels, CLASSES, [1e-2], tolerance=1e-16, evaluations=500)
    rows = x[0] - x[0, :ROWS].mean(0)
    peer = peer_of(rows[:ROWS].numpy(), labels[0, 0, :ROWS].numpy(), 1e-2)
    np.testing.assert_allclose(fit.weights[0, 0, :, :-1].numpy(), peer.coef_, rtol=0, atol=2e-5 * abs(peer.coef_).max())


def test_two_classes_are_two_symmetric_rows(data):
    x, labels = data
    given = probes_fit.features(x, ROWS, HELD)
    binary = (labels > 1).long()
    weights = probes_fit.softmax_path(given, binary, 2, [1e-2], tolerance=1e-14).weights
    torch.testing.assert_close(weights[..., 0, :-1], -weights[..., 1, :-1], rtol=0, atol=1e-6)
    # scikit-learn's one row w stands for w/2 and -w/2, whose penalty is half of w's: twice the strength
    peer = peer_of(standardised(x[0])[:ROWS], binary[0, 0, :ROWS].numpy(), 0.5e-2)
    own = weights[0, 0, 1, :-1] - weights[0, 0, 0, :-1]
    np.testing.assert_allclose(own.numpy(), peer.coef_[0], rtol=0, atol=2e-5 * abs(peer.coef_).max())


def test_a_path_ends_where_each_of_its_strengths_alone_does(data):
    x, labels = data
    given = probes_fit.features(x, ROWS, HELD)
    strengths = [1.0, 1e-1, 1e-2, 1e-3]
    path = probes_fit.softmax_path(given, labels, CLASSES, strengths, tolerance=1e-13)
    alone = [probes_fit.softmax_path(given, labels, CLASSES, [strength], tolerance=1e-13) for strength in strengths]
    losses = torch.stack([fit.loss for fit in alone])
    for cell in range(CELLS):
        for problem in range(2):
            seen = losses[:, cell, problem].tolist()
            place = next((at for at in range(1, len(seen)) if seen[at] >= seen[at - 1]), len(seen)) - 1
            assert float(path.strength[cell, problem]) == pytest.approx(strengths[place])
            assert float(path.loss[cell, problem]) == pytest.approx(seen[place], abs=1e-5)
            torch.testing.assert_close(path.weights[cell, problem, :, :-1], alone[place].weights[cell, problem, :, :-1], rtol=0, atol=1e-4)


def test_a_cell_in_a_batch_is_the_cell_alone(data):
    x, labels = data
    together = probes_fit.softmax_path(probes_fit.features(x, ROWS, HELD), labels, CLASSES, [1e-2], tolerance=1e-16)
    for cell in range(CELLS):
        given = probes_fit.features(x[cell : cell + 1], ROWS, HELD)
        alone = probes_fit.softmax_path(given, labels[cell : cell + 1, :1], CLASSES, [1e-2], tolerance=1e-16)
        torch.testing.assert_close(together.weights[cell, 0, :, :-1], alone.weights[0, 0, :, :-1], rtol=0, atol=1e-7)


def test_fp32_at_the_default_tolerance_is_near_the_optimum(data):
    x, labels = data
    strength, exact = 1e-2, probes_fit.features(x, ROWS, HELD)
    optimum = probes_fit.softmax_path(exact, labels, CLASSES, [strength], tolerance=1e-16).weights
    fit = probes_fit.softmax_path(probes_fit.features(x.float(), ROWS, HELD), labels, CLASSES, [strength])
    assert fit.weights.dtype == torch.float32
    assert bool(fit.converged.all())

    def loss(weights):
        said = probes_fit.logits(weights.double(), exact.columns[..., :ROWS]).flatten(0, 1)
        entropy = torch.nn.functional.cross_entropy(said, labels[..., :ROWS].flatten(0, 1), reduction="none")
        return entropy.view(CELLS, 2, ROWS).mean(2) + 0.5 * strength * weights.double()[..., :-1].square().sum((2, 3))

    gap = loss(fit.weights) - loss(optimum)
    assert float(gap.min()) > -1e-7
    assert float(gap.max()) < 10 * probes_fit.TOLERANCE


def test_ridge_is_scikit_learns(data):
    x, labels = data
    given = probes_fit.features(x, ROWS, HELD)
    target = (labels + 0.1 * x[:, None, :, 0] / 1e-3).double()
    strengths = [1.0, 1e-3, 1e-6]
    path = probes_fit.ridge_path(given, target[..., :ROWS], strengths)
    for place, strength in enumerate(strengths):
        for cell in range(CELLS):
            peer = Ridge(alpha=ROWS * strength, solver="cholesky").fit(standardised(x[cell])[:ROWS], target[cell, 0, :ROWS].numpy())
            own = path[place, cell, 0, :-1].numpy()
            np.testing.assert_allclose(own, peer.coef_, rtol=0, atol=1e-6)
            assert float(path[place, cell, 0, -1]) == pytest.approx(float(peer.intercept_), abs=1e-6)


def test_mirrored_rows_worked_out_by_hand():
    """One feature, -1 and 1 equally often, its sign the class: |w| solves 2 strength w = 1 - tanh w."""
    x = torch.tensor([-1.0, 1.0] * 8, dtype=torch.float64).reshape(1, 16, 1)
    labels = (x[..., 0] > 0).long()[:, None]
    strength = (1 - math.tanh(1.0)) / 2
    given = probes_fit.features(x, 12, 4)
    weights = probes_fit.softmax_path(given, labels, 2, [strength], tolerance=1e-20).weights
    assert weights[0, 0, :, 0].tolist() == pytest.approx([-1.0, 1.0], abs=1e-8)
    assert weights[0, 0, :, 1].tolist() == pytest.approx([0.0, 0.0], abs=1e-8)


def test_constant_and_repeated_features_do_no_harm():
    """Index 0 of a network has seen one token: at most p different rows, and dimensions that never move."""
    rng = generator("probes constant")
    kinds = torch.randn(3, 6, generator=rng)
    label = torch.arange(60) % 3
    x = torch.cat([kinds[label], torch.full((60, 2), 3.0)], dim=1)[None]
    given = probes_fit.features(x, 40, 10)
    assert float(given.correlation.diagonal(dim1=1, dim2=2).sum()) == pytest.approx(6.0, abs=1e-4)
    fit = probes_fit.softmax_path(given, label[None, None, :50], 3, [1e-2])
    assert bool(fit.converged.all())
    said = probes_fit.logits(fit.weights, given.columns[..., 50:]).argmax(2)[0, 0]
    assert said.tolist() == label[50:].tolist()
    assert bool(fit.weights.isfinite().all())


def test_chunks_are_the_features_of_all_cells_in_the_order_asked_for(data, monkeypatch):
    monkeypatch.setattr(probes_fit, "CHUNK", 2)
    x, _ = data
    order = torch.arange(ROWS + HELD).flip(0)[:200]
    for given, sizes, asked in ((x, (ROWS, HELD // 2), None), (x[:, order], (150, 30), order)):
        whole, seen = probes_fit.features(given, *sizes), []
        for some, part in probes_fit.in_chunks(x, *sizes, order=asked):
            seen.append(some)
            assert (part.train, part.validation) == sizes
            assert torch.equal(part.columns, whole.columns[some])
            # MKL promises the same bits only at the same alignment, which a chunk has not. Each entry is a mean over rows of products
            # whose sizes average 1 at most, so each of the two is within n eps of the exact one (Higham 2002, section 3.1).
            bound = 2 * sizes[0] * torch.finfo(torch.float64).eps
            torch.testing.assert_close(part.correlation, whole.correlation[some], rtol=0, atol=bound)
        assert seen == [slice(0, 2), slice(2, 3)]


def test_the_best_class_is_the_first_of_the_largest():
    columns = torch.eye(3)[None]
    weights = torch.tensor([[[1.0, 5.0, 2.0, 0.0], [1.0, 7.0, 1.0, 0.0], [0.0, 0.0, 0.0, 2.0]]])[None]
    assert probes_fit.best(weights, columns).tolist() == [[[2, 1, 0]]]


def test_too_few_evaluations_are_told(data):
    x, labels = data
    fit = probes_fit.softmax_path(probes_fit.features(x, ROWS, HELD), labels, CLASSES, [1e-4], tolerance=1e-16, evaluations=2)
    assert not bool(fit.converged.any())
    assert fit.evaluations.max() == 2
