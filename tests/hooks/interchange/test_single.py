"""Interchange against networks whose answer is known by construction, and against raw torch hooks."""

import json
import math

import pytest
import torch

from wallprobe import models
from wallprobe.cli import parsing
from wallprobe.errors import CheckpointError, ConfigError, InstrumentError, UnknownNameError
from wallprobe.hooks.attach.interventions import NormMatched, OtherDonor, Swap
from wallprobe.hooks.interchange import engines
from wallprobe.hooks.interchange.pairs import Pairs
from wallprobe.hooks.interchange.places import Place
from wallprobe.hooks.interchange.programs import finding
from wallprobe.hooks.interchange.request import Request
from wallprobe.hooks.interchange.run import interchange
from wallprobe.rng import generator
from wallprobe.store.results import load_result
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.training.wall import lean

SUMMARY = set("src dst layer site align p_rule p_import p_own noise_floor self_patch_max_change n_pairs finding".split())  # noqa: SIM905
SHAPE = lean.Shape(n_layers=3, d_model=24, n_heads=3, n_ctx=16, vocabulary=17)


def shaken(seed, shape=SHAPE):
    rng = generator(seed, "interchange test")
    return {name: tensor + 0.3 * torch.randn(tensor.shape, generator=rng) for name, tensor in lean.init_params(shape, seed).items()}


def parrot(successor):
    """A network without attention or MLP that answers `successor(x)` to its last token x, whatever came before."""
    shape = lean.Shape(n_layers=2, d_model=18, n_heads=2, n_ctx=16, vocabulary=17)
    params = {name: torch.zeros_like(tensor) for name, tensor in lean.init_params(shape, 0).items()}
    params["W_E"][:, :17] = torch.eye(17)
    for name in ("ln1_w", "ln2_w", "ln_w"):
        params[name] += 1.0
    for token in range(17):
        params["W_U"][token, successor(token) % 17] = 3.0
    return params, shape


@pytest.fixture(scope="module")
def store(tmp_path_factory, write_run):
    root = tmp_path_factory.mktemp("runs")
    for name, seed in (("c0", 1), ("p5", 2), ("c1@7", 3)):
        write_run(root, name, shaken(seed), SHAPE)
    wide = lean.Shape(n_layers=2, d_model=36, n_heads=3, n_ctx=16, vocabulary=17)
    write_run(root, "c3", shaken(4, wide), wide)
    for name, step in (("p1", 1), ("p2", 2)):
        write_run(root, name, *parrot(lambda token, step=step: token + step))
    small = lean.Shape(n_layers=3, d_model=24, n_heads=3, n_ctx=16, vocabulary=7)
    write_run(root, "s1", shaken(5, small), small, RecurrenceTask(modulus=7))
    return root


def request(src="p5", dst="c0", layers=(1,), **rest):
    return Request(src, dst, layers, **{"pairs": 200, **({"sites": (rest.pop("site"),)} if "site" in rest else {}), **rest})


def raw_hook_patch(store, site, layer, index, pairs):
    """The patched log-probabilities by torch's own forward hooks on plain calls of the two models."""
    src, dst = (models.load(name, root=store).model for name in ("p5", "c0"))
    point = {"resid_pre": "blocks.{}.hook_resid_pre", "attn_out": "blocks.{}.hook_attn_out", "z": "blocks.{}.attn.hook_z"}[site].format(
        layer
    )
    grabbed = []
    handle = src.get_submodule(point).register_forward_hook(lambda module, args, output: grabbed.append(output.detach().clone()))
    with torch.no_grad():
        src(pairs.donor)
    handle.remove()

    def overwrite(module, args, output):
        output = output.clone()
        output[:, index] = grabbed[0][:, index]
        return output

    handle = dst.get_submodule(point).register_forward_hook(overwrite)
    with torch.no_grad():
        logits = dst(pairs.base)
    handle.remove()
    return logits[:, 4].double().log_softmax(-1)


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "z"])
@pytest.mark.parametrize(("layer", "index"), [(0, 3), (1, 3), (1, 4), (2, 4), (0, 0)])
def test_every_cell_equals_raw_torch_hooks(store, site, layer, index):
    result = interchange(request(layers=(layer,), indices=(index,), site=site), root=store)
    pairs = Pairs.programs(RecurrenceTask(), 200, horizon=5, seed=0)
    expected = raw_hook_patch(store, site, layer, index, pairs).exp()
    record = result.values[0]
    for name, answer in (("rule", pairs.rule), ("import", pairs.imported), ("own", pairs.own)):
        assert abs(record[f"p_{name}"] - expected.gather(1, answer[:, None]).mean().item()) < 1e-6
    assert record["self_patch_max_change"] == 0.0


def test_parrots_hand_over_the_whole_answer(store):
    """With only the last token mattering, a patch at the last index turns dst's answer into dst's reading of src's token."""
    result = interchange(request("p1", "p2", (0, 1), indices=(4,)), root=store)
    pairs = Pairs.programs(RecurrenceTask(), 200, horizon=5, seed=0)
    model = models.load("p2", root=store).model
    expected = model(pairs.donor)[:, 4].double().softmax(-1).gather(1, pairs.imported[:, None]).mean().item()
    for record in result.values:
        assert abs(record["p_import"] - expected) < 1e-6
        assert record["change_at_hook"] > 0


def test_a_patch_that_changes_nothing_is_an_error(store):
    """A parrot does not look at index 3: patching there must not pass for a result."""
    with pytest.raises(InstrumentError, match=r"index 3 changed nothing"):
        interchange(request("p1", "p2", (0,), indices=(3,)), root=store)


def test_pairs_have_three_answers_and_readable_rules():
    pairs = Pairs.programs(RecurrenceTask(), 2000, horizon=5, seed=3)
    assert 1400 < len(pairs.own) < 1900
    for first, second in ((pairs.rule, pairs.imported), (pairs.rule, pairs.own), (pairs.imported, pairs.own)):
        assert not bool((first == second).any())
    for row in range(50):
        x = pairs.donor[row].tolist()
        slope = (x[2] - x[1]) * pow(x[1] - x[0], -1, 17) % 17
        offset = (x[1] - slope * x[0]) % 17
        assert pairs.imported[row].item() == (slope * x[4] + offset) % 17
        assert pairs.rule[row].item() == (slope * pairs.base[row, 4].item() + offset) % 17
    assert not bool((pairs.orders[0] == torch.arange(len(pairs.own))).any())
    assert sorted(pairs.orders[0].tolist()) == list(range(len(pairs.own)))
    assert not bool((pairs.imported[pairs.orders[1]] == pairs.imported).any())


def test_controls_wrap_the_treatment():
    base, source = torch.randn(6, 4, generator=generator(1)), torch.randn(6, 4, generator=generator(2))
    order = torch.tensor([1, 2, 3, 4, 5, 0])
    assert torch.equal(OtherDonor(Swap(), order)(base, source), source[order])
    norm = NormMatched(Swap(), 3)(base, source)
    torch.testing.assert_close(norm.norm(dim=-1), source.norm(dim=-1), rtol=1e-5, atol=1e-6)
    assert torch.equal(norm, NormMatched(Swap(), 3)(base, source))
    assert torch.nn.functional.cosine_similarity(norm, source).abs().max().item() < 0.999


def test_result_is_whole_and_survives_the_store(store, tmp_path):
    result = interchange(request(layers=None), root=store)
    assert result.data["p_rule"].shape == (3, 2)
    assert len(result.values) == 6
    assert result.summary.keys() >= SUMMARY
    assert result.summary["layer"] is None
    assert result.summary["noise_floor"] == pytest.approx(1 / 17)
    assert result.summary["p_rule"] == pytest.approx(float(result.data["p_rule"].max()))
    for record in result.values:
        assert record["p_rule_low"] <= record["p_rule"] <= record["p_rule_high"]
        assert math.isfinite(record["shift_import"])
        for control in ("random", "mismatched", "norm"):
            assert 0 <= record[f"p_own_{control}"] <= 1
    assert load_result(result.save(tmp_path)).values == result.values
    assert set(result.manifest["weight_hash"]) == {"src", "dst"}
    json.dumps(result.to_json(), allow_nan=False)
    assert interchange(request(layers=None), root=store).values == result.values


def test_one_layer_gives_the_same_cell_as_all(store):
    alone = interchange(request(layers=(1,)), root=store).values
    every = [record for record in interchange(request(layers=None), root=store).values if record["layer"] == 1]
    assert alone == every


def test_an_alignment_fitted_across_bases_recovers_a_rotated_twin(store, write_run, tmp_path):
    """dst is src in another basis: raw swaps fail, the fitted map makes the swap as good as src's own activation."""
    params = shaken(1)
    rotation = torch.linalg.qr(torch.randn(24, 24, generator=generator("rotation"))).Q
    ones = torch.ones(24) / 24**0.5
    # Keep the mean direction fixed, so that LayerNorm (weights 1, bias 0) commutes with the rotation.
    basis = torch.linalg.qr(torch.cat([ones[:, None], torch.randn(24, 23, generator=generator("basis"))], dim=1)).Q
    block = torch.eye(24)
    block[1:, 1:] = torch.linalg.qr(rotation[:23, :23]).Q
    turn = basis @ block @ basis.T
    for name in ("ln1", "ln2", "ln"):
        params[f"{name}_w"] = torch.ones_like(params[f"{name}_w"])
        params[f"{name}_b"] = torch.zeros_like(params[f"{name}_b"])
    turned = dict(params)
    for name in ("W_E", "W_pos", "W_O", "W_out", "b_O", "b_out"):
        turned[name] = params[name] @ turn
    for name in ("W_Q", "W_K", "W_V", "W_in", "W_U"):
        turned[name] = turn.T @ params[name]
    write_run(tmp_path, "c0", params, SHAPE)
    write_run(tmp_path, "c1", turned, SHAPE)
    same = interchange(request("c0", "c0"), root=tmp_path).values
    raw = interchange(request("c0", "c1"), root=tmp_path).values
    for kind in ("procrustes", "ridge"):
        aligned = interchange(request("c0", "c1", align=kind), root=tmp_path).values
        for wanted, got, bare in zip(same, aligned, raw, strict=True):
            assert got["alignment_r2"] > 0.999
            assert abs(got["p_import"] - wanted["p_import"]) < 2e-3
            assert got["p_import_raw"] == bare["p_import"]
    assert max(abs(bare["kl_to_donor"] - wanted["kl_to_donor"]) for bare, wanted in zip(raw, same, strict=True)) > 0.05


def test_a_runs_folder_stands_for_its_name(store):
    by_folder = interchange(request(str(store / "p5@42"), str(store / "c0@42")), root=store / "elsewhere")
    assert by_folder.values == interchange(request(), root=store).values
    assert by_folder.summary["src"] == "p5"


def test_ridge_joins_different_widths(store):
    record = interchange(request("c3", "c0", layers=(1,), align="ridge"), root=store).values[0]
    assert "p_rule_raw" not in record
    assert record["self_patch_max_change"] == 0.0


def test_whether_an_initialisation_is_shared_is_said(store):
    assert interchange(request("p5", "c0"), root=store).summary["shared_initialisation"]
    assert not interchange(request("c1@7", "c0"), root=store).summary["shared_initialisation"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": (9,)}, r"layer 9 does not exist in p5 and c0; give 0 to 2"),
        ({"layers": (-1,)}, r"layer -1 does not exist"),
        ({"indices": (5,)}, r"index 5 cannot matter: the answer is read at index 4"),
        ({"site": "resid"}, r"no site named 'resid'; there are: resid_pre"),
        ({"align": "magic"}, r"--align magic is none of none, procrustes, ridge"),
        ({"src": "p9"}, r"no run named 'p9'"),
        ({"src": "c3"}, r"c3 is 36 wide and c0 24.*--align ridge"),
        ({"src": "s1"}, r"s1 and c0 differ in task"),
        ({"pairs": 3}, r"pairs have three distinct answers"),
        (
            {"layers": (2,), "indices": (3,), "site": "resid_post"},
            r"site resid_post of the last layer, 2, cannot be read from another index",
        ),
    ],
)
def test_what_cannot_be_interchanged_is_named(store, change, message):
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        interchange(request(**change), root=store)


def test_the_last_layers_late_site_falls_back_to_the_read_index(store):
    assert [record["index"] for record in interchange(request(layers=(2,), site="resid_post"), root=store).values] == [4]


def test_damaged_weights_stop_before_anything_is_measured(store, write_run, tmp_path):
    run = write_run(tmp_path, "p5", shaken(2), SHAPE)
    write_run(tmp_path, "c0", shaken(1), SHAPE)
    data = bytearray(run.weights_path.read_bytes())
    data[-5] ^= 4
    run.weights_path.write_bytes(data)
    with pytest.raises(CheckpointError, match="the file was altered"):
        interchange(request(), root=tmp_path)


def test_a_self_patch_that_changes_something_is_an_error(store, monkeypatch):
    usual = engines.Looped.value
    monkeypatch.setattr(engines.Looped, "value", lambda engine, place: usual(engine, place) + 1e-6)
    with pytest.raises(InstrumentError, match="own activation back changed the answer"):
        interchange(request(), root=store)


@pytest.mark.parametrize(("hook", "times"), [("blocks.1.attn.hook_result", 0), ("blocks.1.ln1.hook_scale", 3)])
def test_a_hook_that_does_not_fire_once_is_an_error(store, monkeypatch, hook, times):
    monkeypatch.setattr(models, "hook_name", lambda layer, site: hook)
    with pytest.raises(InstrumentError, match=f"fired {times} times"):
        interchange(request(), root=store)


def test_layer_lists_are_read():
    assert parsing.layers("all") is None
    assert parsing.layers("3,1,1") == (1, 3)
    for text in ("", "x", "1;2", "1.5"):
        with pytest.raises(ConfigError, match="is not a number"):
            parsing.layers(text)


@pytest.mark.parametrize(
    ("rule_low", "import_low", "words"),
    [
        (
            0.05,
            0.05,
            "does not move the rule (at most 0.060, at layer 3, index 4; noise floor 0.059) and does not import the donor's answer",
        ),
        (
            0.05,
            0.06,
            "does not move the rule (at most 0.060, at layer 3, index 4; noise floor 0.059) but imports the donor's answer only slightly",
        ),
        (0.05, 0.30, "but imports the donor's answer (probability 0.400 at layer 3, index 4, 0.001 unpatched)."),
        (0.20, 0.05, "moves the donor's rule: probability 0.200 on it at layer 3, index 4 (noise floor 0.059) but does not import"),
        (0.06, 0.30, "moves the donor's rule only slightly (probability 0.060 at layer 3, index 4; noise floor 0.059) and imports"),
    ],
)
def test_the_sentence_says_what_the_intervals_allow(rule_low, import_low, words):
    cell = {
        "p_rule": max(0.06, rule_low),
        "p_import": 0.4,
        "p_rule_low": rule_low,
        "p_import_low": import_low,
        "p_rule_high": 0.5,
        "p_import_high": 0.5,
    }
    cell |= {f"base_p_{name}": 0.001 for name in ("rule", "import")} | {f"p_{name}_random": 0.058 for name in ("rule", "import")}
    attrs = {"src": "p5", "dst": "c0", "site": "resid_pre", "align": "ridge", "noise_floor": 1 / 17}
    sentence = finding({Place("resid_pre", 3, 4): cell}, attrs, Place("resid_pre", 3, 4), Place("resid_pre", 3, 4))
    assert sentence.startswith("Patching p5's ridge-aligned resid_pre into c0 ")
    assert words in sentence
