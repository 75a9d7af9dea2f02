"""A sweep's cells are those that one interchange at a time gives; p-values against scipy and against a null that is known."""

import re

import pytest
import torch
from scipy.stats import false_discovery_control

from wallprobe import models
from wallprobe.errors import ConfigError, UnknownNameError
from wallprobe.hooks.attach import cache
from wallprobe.hooks.interchange.pairs import Pairs
from wallprobe.hooks.interchange.places import LATE_SITES
from wallprobe.hooks.interchange.report import adjusted, p_value, sign_flips
from wallprobe.hooks.interchange.request import Request
from wallprobe.hooks.interchange.run import interchange, plan
from wallprobe.rng import generator
from wallprobe.store.results import load_result
from wallprobe.store.runs import find_run
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.training.wall import lean

SHAPE = lean.Shape(n_layers=3, d_model=24, n_heads=3, n_ctx=16, vocabulary=17)


@pytest.fixture(scope="module")
def store(tmp_path_factory, write_run):
    root = tmp_path_factory.mktemp("runs")
    for name, seed in (("c0", 1), ("p5", 2)):
        rng = generator(seed, "sweep test")
        params = {key: value + 0.3 * torch.randn(value.shape, generator=rng) for key, value in lean.init_params(SHAPE, seed).items()}
        write_run(root, name, params, SHAPE)
    return root


@pytest.fixture(scope="module")
def whole(store):
    return interchange(Request("p5", "c0", sites=models.SITES, pairs=60), root=store)


COMPARED = [f"p_{answer}{arm}" for answer in ("rule", "import", "own") for arm in ("", "_low", "_high", "_random", "_mismatched", "_norm")]


@pytest.mark.parametrize("site", models.SITES)
def test_a_cell_is_what_one_interchange_gives(store, whole, site):
    """Layer by layer: the late sites of the last one allow the last index alone."""
    for layer in range(3):
        indices = (4,) if site in LATE_SITES and layer == 2 else (0, 3, 4)
        single = interchange(Request("p5", "c0", (layer,), indices, (site,), pairs=60), root=store)
        for index in indices:
            one, cell = single.data.sel(layer=layer, index=index), whole.data.sel(site=site, layer=layer, index=index)
            for name in COMPARED:
                assert float(cell[name]) == pytest.approx(float(one[name]), abs=1e-5), (name, layer, index)
            assert float(cell["change_at_hook"]) == pytest.approx(float(one["change_at_hook"]), rel=1e-4)


def test_every_cell_that_can_matter_is_there_and_no_other(whole):
    there = whole.data["p_import"].notnull()
    assert whole.summary["n_cells"] == int(there.sum()) == 3 * 5 * 6 - 4 * 5
    assert not bool(there.sel(site="resid_post", layer=2, index=[0, 1, 2, 3]).any())
    assert bool(there.sel(site="resid_pre").all())
    assert whole.summary["self_patch_max_change"] == 0.0
    assert whole.manifest["engine"]["checked_cells"] == 3
    assert 0 < whole.manifest["engine"]["largest_difference"] < 1e-4


def test_single_heads_are_their_parts_of_z(store, whole):
    """All heads' donors together are z's, one alone is z with that head's; exactness is checked inside the sweep, on cells drawn."""
    heads = interchange(Request("p5", "c0", sites=("heads", "z"), pairs=60), root=store)
    assert heads.data["site"].values.tolist() == ["z.0", "z.1", "z.2", "z"]
    assert heads.summary["self_patch_max_change"] == 0.0
    for name in COMPARED:
        torch.testing.assert_close(
            torch.tensor(heads.data[name].sel(site="z").values), torch.tensor(whole.data[name].sel(site="z").values), equal_nan=True
        )
    changed = heads.data["change_at_hook"].sel(layer=1, index=4)
    assert float(changed.sel(site=["z.0", "z.1", "z.2"]).max()) == pytest.approx(float(changed.sel(site="z")), rel=1e-6)
    # One head by hand: the model's own hook, the head's own slot.
    run = find_run("c0", store)
    pairs = Pairs.programs(RecurrenceTask.from_manifest(run.manifest["task"]), 60)
    donor = cache.capture(models.load_run(find_run("p5", store)), pairs.donor, ["blocks.1.attn.hook_z"])["blocks.1.attn.hook_z"]

    def put(value, hook):
        value = value.clone()
        value[:, 4, 2] = donor[:, 4].view(len(donor), 3, -1)[:, 2]
        return value

    logits = cache.run(models.load_run(run), pairs.base, {"blocks.1.attn.hook_z": put})[:, 4]
    imported = logits.softmax(-1).gather(1, pairs.imported[:, None]).mean()
    assert float(heads.data["p_import"].sel(site="z.2", layer=1, index=4)) == pytest.approx(float(imported), abs=1e-5)


def refused(store):
    """What is said of a budget that not even one cell fits."""
    with pytest.raises(ConfigError, match="more than the budget") as error:
        interchange(Request("p5", "c0", sites=models.SITES, pairs=60, budget=1e-4), root=store)
    return str(error.value)


def test_the_budget_splits_the_work_and_changes_nothing(store, whole):
    least = float(re.search(r"takes ([0-9.]+) GiB", refused(store)).group(1))
    done = []
    tight = Request("p5", "c0", sites=models.SITES, pairs=60, budget=1.2 * least)
    cut = interchange(tight, root=store, on_cell=lambda cells, total: done.append((cells, total)))
    assert len(done) > 5
    assert done[-1] == (whole.summary["n_cells"],) * 2
    for name in COMPARED:
        torch.testing.assert_close(
            torch.tensor(cut.data[name].values), torch.tensor(whole.data[name].values), rtol=0, atol=1e-6, equal_nan=True
        )


def test_aligned_sweeps_carry_the_raw_swap_beside(store, whole):
    aligned = interchange(Request("p5", "c0", sites=("resid_pre", "z"), align="procrustes", pairs=60), root=store)
    for site in ("resid_pre", "z"):
        cells = aligned.data.sel(site=site)
        raw, plain = (
            torch.tensor(data["p_import_raw" if data is cells else "p_import"].values) for data in (cells, whole.data.sel(site=site))
        )
        torch.testing.assert_close(raw, plain, rtol=0, atol=1e-6, equal_nan=True)
        assert float(abs(cells["p_import"] - cells["p_import_raw"]).max()) > 1e-3
        assert bool((cells["alignment_r2"] <= 1).where(cells["p_import"].notnull(), True).all())


def test_a_sweep_is_stored_and_read_again(whole, tmp_path):
    again = load_result(whole.save(tmp_path))
    assert again.kind == "sweep"
    assert again.summary["finding"] == whole.summary["finding"]
    record = again.values[0]
    assert {"layer", "index", "site", "p_rule", "p_import", "p_own", "ci_low", "ci_high", "q_value"} <= record.keys()


def test_q_values_are_scipy_s():
    found = torch.rand(40, generator=generator(0, "q"), dtype=torch.float64) ** 2
    torch.testing.assert_close(adjusted(found), torch.tensor(false_discovery_control(found.numpy())), rtol=1e-12, atol=1e-12)


def test_between_networks_that_share_nothing_no_cell_crosses(whole):
    assert whole.summary["import_cells"] == whole.summary["rule_cells"] == 0
    assert "crosses nowhere" in whole.summary["finding"]


def test_p_values_are_uniform_without_an_effect_and_small_with_one():
    signs = sign_flips(40, 0)
    noise = torch.randn(400, 40, generator=generator(0, "null"), dtype=torch.float64)
    found = torch.tensor([p_value(row, signs) for row in noise])
    for level in (0.05, 0.25, 0.5, 0.75):
        assert float((found <= level).double().mean()) == pytest.approx(level, abs=0.07)
    assert p_value(noise[0].abs(), signs) == 1 / (1 + len(signs))
    assert p_value(-noise[0].abs(), signs) > 0.99


def test_what_cannot_be_swept_is_said_before_anything_runs(store):
    with pytest.raises(UnknownNameError, match="no site named 'mlp'"):
        interchange(Request("p5", "c0", sites=("mlp",), sweep=True), root=store)
    with pytest.raises(ConfigError, match="cannot be read from another index"):
        interchange(Request("p5", "c0", layers=(2,), indices=(1,), sites=("attn_out",), sweep=True), root=store)
    with pytest.raises(UnknownNameError, match="no run named 'p9'"):
        plan(Request("p9", "c0", sweep=True), root=store)
