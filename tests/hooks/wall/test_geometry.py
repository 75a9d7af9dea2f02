"""Geometry: cosines worked out by hand on small states, and a run measured end to end beside raw hooks."""

import math

import pytest
import torch

from wallprobe import models
from wallprobe.errors import ConfigError, UnknownNameError
from wallprobe.hooks.wall import geometry as geo
from wallprobe.store.results import load_result
from wallprobe.training.wall import evaluate, lean

SHAPE = lean.Shape(n_layers=3, d_model=12, n_heads=2, n_ctx=16, vocabulary=17)
HALF = math.sqrt(0.5)
SUMMARY = {"run", "cosine_last_layer", "cosine_first_layer", "rises_with_depth", "pairwise_cosine_last_layer", "finding"}


@pytest.fixture(scope="module")
def run(tmp_path_factory, write_run):
    rng = torch.Generator().manual_seed(3)
    params = {name: tensor + 0.2 * torch.randn(tensor.shape, generator=rng) for name, tensor in lean.init_params(SHAPE, 42).items()}
    return write_run(tmp_path_factory.mktemp("runs"), "c0", params, SHAPE)


def test_cosines_are_those_worked_out_by_hand():
    """Two programs and a noise sequence in the plane; one layer, three indices, index 1 the last supervised one."""
    states = torch.tensor([[[[1, 0], [0, 2], [3, 3]], [[0, 1], [5, 0], [0, -1]], [[1, 0], [1, 0], [1, 0]]]]).float()
    found = geo.cosines(states, 1, torch.tensor([True, True, False]))

    def is_row(name, expected):
        got = found.to_supervised[name][:, 0]
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12, equal_nan=True)

    is_row("cosine_to_supervised", [[0, 1, HALF], [0, 1, 0], [1, 1, 1]])
    is_row("cosine_program", [[0, 1, HALF], [0, 1, 0], [math.nan] * 3])
    is_row("cosine_noise", [[math.nan] * 3, [math.nan] * 3, [1, 1, 1]])
    is_row("cosine_control", [[1, 0, HALF], [0, 1, 0], [0, 0, 0]])  # the next sequence's anchor: [5, 0], [1, 0], [0, 2]
    is_row("cosine_same_class", [[1, 0, HALF], [1, 0, -1], [math.nan] * 3])  # the programs' anchors swapped; the noise is alone
    pairs = {name: values[:, 0].tolist() for name, values in found.pairwise.items()}
    assert pairs["mean_pairwise_cosine"] == pytest.approx([(0 + HALF + HALF) / 3, (0 - 1 + 0) / 3, 1])
    # sequence 0's index i with sequence 1's j > i: [1,0].[5,0], [1,0].[0,-1], [0,2].[0,-1]
    assert pairs["pairwise_control"] == pytest.approx([(1 + 0 - 1) / 3, (0 + 0 + 1) / 3, (0 + HALF + HALF) / 3])


def test_a_common_direction_inflates_the_cosine_and_centring_takes_it_away():
    rng = torch.Generator().manual_seed(0)
    states = torch.randn(1, 400, 4, 64, generator=rng) + 3.0
    found = geo.cosines(states, 1, torch.rand(400, generator=rng) < 0.5).to_supervised
    means = {name: values[:, 0, 3].nanmean().item() for name, values in found.items()}
    assert means["cosine_to_supervised"] > 0.85
    assert means["cosine_control"] > 0.85
    assert abs(means["cosine_centred"]) < 0.02


def test_centring_leaves_what_the_class_has_in_common():
    """Two clusters: another sequence of the same class is as near as the same sequence, another one is not."""
    rng = torch.Generator().manual_seed(1)
    is_program = torch.rand(300, generator=rng) < 0.5
    states = torch.where(is_program, 1.0, -1.0)[None, :, None, None] + 0.05 * torch.randn(1, 300, 3, 32, generator=rng)
    means = {name: values[:, 0, 2].nanmean().item() for name, values in geo.cosines(states, 1, is_program).to_supervised.items()}
    assert means["cosine_centred_same_class"] == pytest.approx(means["cosine_centred"], abs=0.01)
    assert means["cosine_centred_same_class"] > 0.95
    assert abs(means["cosine_centred_control"]) < 0.2


def test_partners_are_the_next_of_the_class():
    assert geo.partners(torch.tensor([True, False, True, False, True])).tolist() == [2, 3, 4, 1, 0]


def test_spearman_of_ranks():
    assert geo.spearman(torch.tensor([0.1, 0.2, 0.5])) == 1
    assert geo.spearman(torch.tensor([3.0, 2.0, 1.0])) == -1
    assert geo.spearman(torch.tensor([1.0, 3.0, 2.0])) == pytest.approx(0.5)


def test_a_run_beside_raw_hooks(run, tmp_path):
    result = geo.geometry(run, sequences=60)
    assert result.summary.keys() >= SUMMARY
    sample = evaluate.fresh(run, 60)
    _, cache = models.load_run(run).model.run_with_cache(sample.drawn.tokens[:, :-1])
    for layer in range(SHAPE.n_layers):
        states = cache[f"blocks.{layer}.hook_resid_post"].double()
        expected = torch.nn.functional.cosine_similarity(states, states[:, 4:5], dim=-1).mean(0)
        got = torch.tensor(result.data["cosine_to_supervised"].sel(layer=layer).values)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
    last = result.data["cosine_to_supervised"].values[-1]
    assert last[4] == pytest.approx(1)
    assert result.summary["cosine_last_layer"] == pytest.approx(last[5:].mean())
    assert result.summary["rises_with_depth"] == pytest.approx(result.summary["cosine_last_layer"] - result.summary["cosine_first_layer"])
    assert result.summary["rises_with_depth_low"] <= result.summary["rises_with_depth"] <= result.summary["rises_with_depth_high"]
    assert result.data["mean_pairwise_cosine"].dims == ("layer",)
    assert load_result(result.save(tmp_path)).values == result.values
    assert geo.geometry(run, sequences=60).values == result.values


def test_before_training_is_the_run_at_its_first_step(tmp_path, write_run):
    """A run that was never trained is its own control."""
    fresh = write_run(tmp_path, "c0", lean.init_params(SHAPE, 42), SHAPE)
    data = geo.geometry(fresh, sequences=30).data
    assert data["cosine_untrained"].values == pytest.approx(data["cosine_to_supervised"].values, abs=1e-12)
    assert data["pairwise_untrained"].values == pytest.approx(data["mean_pairwise_cosine"].values, abs=1e-12)


def test_bad_input_is_named(run):
    with pytest.raises(UnknownNameError, match="no site named 'z' as wide as the residual stream; there are: resid_pre"):
        geo.geometry(run, site="z")
    with pytest.raises(ConfigError, match="1 sequences give no interval"):
        geo.geometry(run, sequences=1)
