"""The bank: what a linear probe can read it reads, a fair sample is kept, and the same passes give the same bytes."""

import pytest
import torch
from torch import nn

import wallprobe as wp


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(6, 6)

    def forward(self, x):
        return x + self.inner(x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.blocks = nn.Embedding(6, 6), nn.Sequential(Block(), Block())
        with torch.no_grad():
            self.embed.weight.copy_(torch.eye(6))

    def forward(self, ids):
        return self.blocks(self.embed(ids))


@pytest.fixture
def net():
    torch.manual_seed(0)
    made = Net()
    yield made
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in made.modules())


def passes(net, bank, count=10, size=20):
    source = torch.Generator().manual_seed(3)
    with bank:
        for _ in range(count):
            net(torch.randint(6, (size, 4), generator=source))


def test_the_token_is_read_and_the_next_one_is_not(net):
    targets = {
        "token": lambda ids: ids,
        "next": lambda ids: torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], -1)], dim=1),
    }
    bank = wp.ProbeBank(net, "blocks.*.hook_resid_post", targets)
    passes(net, bank)
    result = bank.fit()
    data = result.data
    assert (data["accuracy"].sel(target="token") == 1).all()
    assert (data["control_accuracy"].sel(target="token") < 0.35).all()
    assert (data["accuracy"].sel(target="next") < 0.35).all()  # drawn independently: a sixth is chance
    assert (data["n_test"].sel(target="token") == 50 * 4).all()
    assert (data["n_test"].sel(target="next") == 50 * 3).all()
    assert (data["accuracy_low"] <= data["accuracy"]).all()
    assert (data["accuracy"] <= data["accuracy_high"]).all()


def test_the_same_passes_give_the_same_figures_and_another_seed_another_sample(net):
    def fit(seed, capacity=50):
        bank = wp.ProbeBank(net, "blocks.0.hook_resid_pre", lambda ids: ids % 2, index=[0, -1], capacity=capacity, seed=seed)
        passes(net, bank)
        return bank, bank.fit()

    (first, one), (_, two), (third, _) = fit(0), fit(0), fit(1)
    assert one.values == two.values
    assert one.summary["n_sequences"] == 50
    assert one.summary["n_seen"] == 200
    kept, others = (torch.stack([bank._kept[slot]["blocks.0.hook_resid_pre"] for slot in range(50)]) for bank in (first, third))
    assert kept.shape == (50, 2, 6)
    assert not torch.equal(kept, others)


def test_each_sequence_has_the_same_chance_to_stay(net):
    counts = torch.zeros(40)
    for seed in range(60):
        bank = wp.ProbeBank(net, "blocks.0.hook_resid_pre", None, capacity=16, seed=seed)
        with bank:
            for part in torch.arange(40).split(10):
                bank.label(part)
                net(torch.zeros(10, 1, dtype=torch.int64))
        for one in bank._kept.values():
            counts[one["target target"]] += 1
    assert counts.sum() == 60 * 16
    expected = 60 * 16 / 40
    chi_square = float((counts - expected).square().sum() / expected)
    assert chi_square < 62.4  # 99 % of a chi-square distribution of 39 degrees


def test_labels_and_sizes_that_do_not_fit_are_refused(net):
    with pytest.raises(wp.WallprobeError, match="at least 16"):
        wp.ProbeBank(net, "blocks.0.hook_resid_pre", None, capacity=3)
    bank = wp.ProbeBank(net, "blocks.0.hook_resid_pre", {"given": None})
    ids = torch.zeros(4, 2, dtype=torch.int64)
    with pytest.raises(wp.WallprobeError, match=r"give them with label"), bank:
        net(ids)
    with pytest.raises(wp.WallprobeError, match="no target 'other'"):
        bank.label({"other": ids})
    bank.label(ids[:, :1])
    with pytest.raises(wp.WallprobeError, match="wanted whole numbers as batch x index"), bank:
        net(ids)
    with pytest.raises(wp.WallprobeError, match="too few to fit"):
        bank.fit()
    unlabelled = wp.ProbeBank(net, "blocks.0.hook_resid_pre", lambda ids: -torch.ones_like(ids))
    passes(net, unlabelled, 1)
    with pytest.raises(wp.WallprobeError, match="0, 0 and 0 labelled rows"):
        unlabelled.fit()
