"""Each half of the optimiser against an independent reference."""

import torch

from wallprobe.rng import generator
from wallprobe.training.wall import optim


def random(*size, seed=0):
    return torch.randn(*size, generator=generator("optim", seed, *size))


def rates(step, settings, scale=1.0):
    return optim.Rates.at(step, scale, settings, torch.device("cpu"))


def test_adamw_equals_torch():
    settings = optim.OptimSettings(muon_lr=0.0, adam_lr=3e-3, weight_decay=0.1, clip=1e9)
    start = {"W_E": random(5, 4), "b_U": random(4)}
    ours = {name: tensor.clone() for name, tensor in start.items()}
    state = optim.init_state(ours, settings)
    theirs = {name: torch.nn.Parameter(tensor.clone()) for name, tensor in start.items()}
    groups = [{"params": [theirs["W_E"]], "weight_decay": 0.1}, {"params": [theirs["b_U"]], "weight_decay": 0.0}]
    reference = torch.optim.AdamW(groups, lr=3e-3, betas=settings.betas, eps=1e-8)
    for step in range(7):
        grads = {name: random(*tensor.shape, seed=step) for name, tensor in start.items()}
        optim.update(ours, {name: grad.clone() for name, grad in grads.items()}, state, rates(step, settings), settings)
        for name, parameter in theirs.items():
            parameter.grad = grads[name]
        reference.step()
    for name in start:
        torch.testing.assert_close(ours[name], theirs[name].detach(), rtol=1e-5, atol=1e-6)


def test_orthogonalise_brings_singular_values_near_one_and_keeps_the_directions():
    for size in ((3, 16, 16), (2, 16, 64), (2, 64, 16)):
        matrices = random(*size)
        near = optim.orthogonalise(matrices)
        values = torch.linalg.svdvals(near)
        assert values.min().item() > 0.3
        assert values.max().item() < 1.4
        left, _, right = torch.linalg.svd(matrices, full_matrices=False)
        polar = left @ right
        cosine = (near * polar).sum((-2, -1)) / (near.norm(dim=(-2, -1)) * polar.norm(dim=(-2, -1)))
        assert cosine.min().item() > 0.95


def test_muon_treats_each_matrix_of_a_stack_alone():
    """A stack of layers gives the same update as each layer by itself."""
    settings = optim.OptimSettings(muon_lr=0.01, adam_lr=1e-3, weight_decay=0.0, clip=1e9)
    start = {"W_Q": random(3, 8, 8), "W_in": random(3, 8, 32), "W_out": random(3, 32, 8)}
    grads = {name: random(*tensor.shape, seed=9) for name, tensor in start.items()}

    def run(layers):
        params = {name: tensor[layers].clone() for name, tensor in start.items()}
        state = optim.init_state(params, settings)
        for step in range(3):
            optim.update(params, {name: grad[layers].clone() for name, grad in grads.items()}, state, rates(step, settings), settings)
        return params

    together = run(slice(None))
    for layer in range(3):
        alone = run(slice(layer, layer + 1))
        for name, tensor in alone.items():
            # bf16 products: the batched kernel may round differently
            torch.testing.assert_close(together[name][layer], tensor[0], rtol=0, atol=2e-3)


def test_muon_updates_have_the_stated_size():
    """Update = rate x sqrt(max(1, outputs / inputs)) x a matrix of singular values near 1."""
    settings = optim.OptimSettings(muon_lr=0.1, adam_lr=1e-3, weight_decay=0.0)
    for name, size, growth in (("W_Q", (1, 16, 16), 1.0), ("W_in", (1, 16, 64), 2.0), ("W_out", (1, 64, 16), 1.0)):
        params = {name: torch.zeros(size)}
        optim.update(params, {name: random(*size)}, optim.init_state(params, settings), rates(0, settings, 0.5), settings)
        values = torch.linalg.svdvals(params[name][0]) / (0.1 * 0.5 * growth)
        assert values.min().item() > 0.3
        assert values.max().item() < 1.4


def test_clipping_bounds_the_joint_norm():
    grads = {"a": torch.full((3,), 10.0), "b": torch.full((4,), -10.0)}
    clipped = optim.clip_gradients(grads, 1.0)
    assert abs(sum(float(grad.square().sum()) for grad in clipped.values()) ** 0.5 - 1.0) < 1e-4
    small = {"a": torch.full((3,), 0.1)}
    assert torch.equal(optim.clip_gradients(small, 1.0)["a"], small["a"])
