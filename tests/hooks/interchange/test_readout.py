"""Readout by depth: cells are those of an interchange, aligned beside raw, pairs told apart by their initialisation."""

import numpy as np
import pytest
import torch

from wallprobe.errors import ConfigError, UnknownNameError
from wallprobe.hooks.interchange.readout import BASES, Pair, finding, readout
from wallprobe.hooks.interchange.request import Request
from wallprobe.hooks.interchange.run import interchange
from wallprobe.rng import generator
from wallprobe.store.results import load_result
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.training.wall import lean

SHAPE = lean.Shape(n_layers=4, d_model=24, n_heads=3, n_ctx=16, vocabulary=17)


@pytest.fixture(scope="module")
def store(tmp_path_factory, write_run):
    root = tmp_path_factory.mktemp("runs")
    for name, seed in (("c0", 1), ("p5", 2), ("c0@7", 3)):
        rng = generator(seed, "readout test")
        params = {key: value + 0.3 * torch.randn(value.shape, generator=rng) for key, value in lean.init_params(SHAPE, seed).items()}
        write_run(root, name, params, SHAPE)
    small = lean.Shape(n_layers=4, d_model=24, n_heads=3, n_ctx=16, vocabulary=7)
    write_run(root, "s1", lean.init_params(small, 0), small, RecurrenceTask(modulus=7))
    return root


@pytest.fixture(scope="module")
def measured(store):
    return readout([Pair("p5", "c0"), Pair("c0@7", "c0")], draws=60, root=store)


@pytest.mark.parametrize("align", BASES)
def test_cells_are_those_of_an_interchange(store, measured, align):
    single = interchange(Request("p5", "c0", None, (3, 4), align=align, pairs=60), root=store).data
    cut = measured.data.sel(pair="p5 to c0", align=align)
    for name in ("p_import", "p_import_low", "p_rule", "p_rule_high", "p_import_random", "p_rule_norm", "base_p_rule", "p_own"):
        np.testing.assert_allclose(cut[name].values, single[name].transpose("index", "layer").values, rtol=0, atol=1e-5)
    np.testing.assert_allclose(cut["alignment_r2"].values, single["alignment_r2"].transpose("index", "layer").values, rtol=0, atol=1e-4)


def test_pairs_are_told_apart_by_their_initialisation(measured):
    assert measured.data["shared_initialisation"].values.tolist() == [1, 0]
    summary = measured.summary
    assert (summary["n_pairs_same"], summary["n_pairs_other"]) == (1, 1)
    for place, start in enumerate(("same", "other")):
        for at, align in enumerate(BASES):
            cut = measured.data.isel(pair=place, align=at)
            bar = np.maximum(np.maximum(cut["base_p_rule"], cut["p_rule_random"]), 1 / 17)
            assert summary[f"gain_rule_{align}_{start}"] == pytest.approx(float((cut["p_rule"] - bar).max()))
            deep = cut.isel(index=1, depth=slice(3, None))
            bar = np.maximum(np.maximum(deep["base_p_import"], deep["p_import_random"]), 1 / 17)
            assert summary[f"gain_import_{align}_{start}"] == pytest.approx(float((deep["p_import"] - bar).max()))
            assert summary[f"crossing_rule_{align}_{start}"] == (summary[f"gain_rule_{align}_{start}"] > 0.01)
    assert summary["r2_none_same"] is None
    assert summary["r2_ridge_other"] < 1
    assert summary["self_patch_max_change"] == 0.0


def test_one_pair_says_nothing_of_the_other_kind(store):
    summary = readout([Pair("c0@7", "c0")], draws=60, root=store).summary
    assert summary["gain_import_none_same"] is None
    assert summary["n_pairs_same"] == 0
    assert "two initialisations" in summary["finding"]
    assert "one initialisation" not in summary["finding"]


def test_a_result_is_whole_and_survives_the_store(measured, tmp_path):
    assert len(measured.values) == 2 * 3 * 2 * 4
    again = load_result(measured.save(tmp_path))
    assert again.values == measured.values
    assert again.manifest["weight_hash"][0].keys() == {"src", "dst"}


def test_the_sentence_counts_what_crosses():
    summary = {"n_pairs": 2, "n_pairs_same": 2, "n_pairs_other": 0, "noise_floor": 1 / 17}
    for align, crossing, best in (("none", 1, 0.15), ("procrustes", 2, 0.12), ("ridge", 0, 0.06)):
        summary |= {f"crossing_import_{align}_same": crossing, f"p_import_{align}_same": best, f"crossing_rule_{align}_same": 0}
        summary |= {f"p_rule_{align}_same": 0.06, f"crossing_rule_{align}_other": 0}
    assert finding(summary) == (
        "From one initialisation, the donor's answer crosses raw in 1 of 2 (up to 0.15), rotated in 2 of 2 (up to 0.12), "
        "ridge-aligned in 0 of 2 (up to 0.06); its rule crosses nowhere (at most 0.060; chance 0.059)."
    )
    summary["crossing_rule_ridge_same"] = 1
    assert "its rule crosses in 1 of 6 sweeps" in finding(summary)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("p9", "c0")], r"no run named 'p9'"),
        ([("s1", "c0")], r"s1 and c0 differ in task"),
        ([("c0", "c0")], r"have the same weights"),
        ([("p5", "c0"), ("p5", "c0")], r"a pair is given twice"),
        ([], r"no pair of runs; give donor:receiver"),
    ],
)
def test_what_cannot_be_compared_is_named(store, pairs, message):
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        readout([Pair(*pair) for pair in pairs], root=store)


def test_pairs_are_read():
    assert Pair.parse("p5@1337:c0") == Pair("p5@1337", "c0")
    for text in ("p5", ":c0", "p5:", ""):
        with pytest.raises(ConfigError, match="is no pair of runs; give donor:receiver"):
            Pair.parse(text)
