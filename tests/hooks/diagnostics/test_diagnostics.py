"""The four diagnostics on a run, a bridged decoder and an equilibrium model: exact answers, guards, reasons in the place of exceptions."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from tests.hooks import tiny_models
from wallprobe import models
from wallprobe.errors import ConfigError, InstrumentError, UnknownNameError
from wallprobe.hooks.attach.subjects import Subject, Wanted, evaluation_losses, padded, subject
from wallprobe.hooks.diagnostics import branches, collapse, mixing, triangulate, triangulate_report
from wallprobe.hooks.diagnostics.lr_sweep import lr_sweep, usual_gradients
from wallprobe.hooks.diagnostics.triangulate import Chosen
from wallprobe.models.equilibrium import EqConfig
from wallprobe.store import runs
from wallprobe.store.results import load_result
from wallprobe.training.equilibrium import experiments, work
from wallprobe.training.estimators import gradients
from wallprobe.training.estimators.protocol import Batch

WANTED = Wanted(batches=3, size=4)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    return subject(models.load(tiny_models.save_run(root), root=root), WANTED)


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    folder = tiny_models.save_model("llama", tmp_path_factory.mktemp("llama"))
    text = folder / "text.txt"
    text.write_text(" ".join(tiny_models.WORDS * 12))
    return subject(models.load(str(folder)), Wanted(batches=2, size=3, length=9, text=str(text)))


@pytest.fixture(scope="module")
def settled(tmp_path_factory):
    """An equilibrium run of a few steps."""
    root = tmp_path_factory.mktemp("equilibria")
    job = experiments.job("tiny", "ep", seed=3)
    (made,) = work.train_all([dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, steps=6, snapshots=()))], root, workers=1)
    return subject(models.load_run(runs.open_run(made.path)), Wanted(batches=2, size=2))


def test_batches_of_a_run_are_its_task_with_its_supervised_positions(run):
    assert [tuple(batch.x.shape) for batch in run.batches] == [(4, 7)] * 3
    assert torch.equal(run.batches[0].x[:, 1:], run.batches[0].y[:, :-1])
    assert run.batches[0].mask[0].tolist() == [place < run.horizon for place in range(7)]
    assert not torch.equal(run.batches[0].x, run.batches[1].x)
    again = subject(run.loaded, WANTED)
    assert again.data_hash == run.data_hash


def test_windows_do_not_overlap_and_labels_follow(decoder):
    rows = torch.cat([batch.x for batch in (*decoder.batches, decoder.held_out)])
    assert rows.shape == (9, 9)
    assert all(torch.equal(batch.x[:, 1:], batch.y[:, :-1]) for batch in decoder.batches)
    assert all(batch.mask is None for batch in decoder.batches)


def test_padding_counts_nowhere():
    made = padded([torch.tensor([3, 4, 5]), torch.tensor([6, 7])])
    assert made.x.tolist() == [[3, 4], [6, 7]]
    assert made.mask.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize(
    ("wanted", "why"),
    [({"batches": 0}, "batches 0"), ({"prompts": "seed4", "text": "x"}, "both a text and prompts"), ({"size": -1}, "size -1")],
)
def test_what_makes_no_batch_is_refused(wanted, why):
    with pytest.raises(ConfigError, match=why):
        Wanted(**wanted)


def test_a_run_is_given_no_text_and_a_decoder_no_short_one(run, decoder, tmp_path):
    with pytest.raises(ConfigError, match="reads sequences of its own task"):
        subject(run.loaded, Wanted(prompts="seed4"))
    (tmp_path / "short.txt").write_text("the capital of france")
    with pytest.raises(ConfigError, match="0 windows of 9"):
        subject(decoder.loaded, Wanted(length=9, text=str(tmp_path / "short.txt")))
    with pytest.raises(UnknownNameError, match="no text file"):
        subject(decoder.loaded, Wanted(text="nowhere.txt"))


def test_triangulation_of_a_run(run, tmp_path):
    chosen = Chosen(("bp", "bp64", "dfa", "fa", "spsa"), "bp", "bp64")
    result = triangulate_report.triangulate([run], chosen)
    data = result.data.isel(ckpt=0)
    assert float(data["cos"].sel(estimator="bp")) == pytest.approx(1, abs=1e-12)
    assert float(data["cos"].sel(estimator="bp64")) == pytest.approx(1, abs=1e-6)
    assert float(data["group_cos"].sel(estimator="dfa", group="unembed")) == pytest.approx(1, abs=1e-6)
    assert abs(float(data["cos"].sel(estimator="dfa"))) < 0.9
    assert "no transport" in str(data["reason"].sel(estimator="fa").values)
    assert math.isnan(float(data["cos"].sel(estimator="fa")))
    summary = result.summary
    assert list(summary)[:3] == ["ckpt", "val", "res"]
    assert {"dfa_bp", "bp_bp", "k", "dfa_self", "bp_self", "snr", "fa_bp", "spsa_bp"} <= set(summary)
    loaded = load_result(result.save(tmp_path))
    assert loaded.values == result.values


def test_self_cosine_and_snr_are_those_of_the_gradients(run):
    result = triangulate_report.triangulate([run], Chosen(("bp", "dfa"), "bp"))
    names = [name for name in dict(run.loaded.model.named_parameters()) if name.startswith("blocks.")]
    rows = []
    for batch in run.batches:
        loss = gradients.mean_loss(run.loaded.model, batch)
        found = torch.autograd.grad(loss, [dict(run.loaded.model.named_parameters())[name] for name in names])
        rows.append(torch.cat([grad.double().flatten() for grad in found]))
    grads = torch.stack(rows)
    unit = grads / grads.norm(dim=1, keepdim=True)
    gram = unit @ unit.T
    pairs = [float(gram[a, b]) for a in range(3) for b in range(a)]
    mean = grads.mean(0)
    snr = float(mean @ mean / (grads - mean).square().sum(1).mean())
    data = result.data.isel(ckpt=0).sel(estimator="bp")
    assert float(data["self_cos"]) == pytest.approx(np.mean(pairs), rel=1e-9)
    assert float(data["snr"]) == pytest.approx(snr, rel=1e-9)


def test_one_batch_has_no_self_cosine_and_zero_gradients_have_a_reason(run):
    one = dataclasses.replace(run, batches=run.batches[:1])
    data = triangulate_report.triangulate([one], Chosen(("bp", "dfa"), "bp")).data
    assert np.isnan(data["self_cos"].values).all()
    with gradients.restored(run.loaded.model):
        with torch.no_grad():
            for value in run.loaded.model.parameters():
                value.zero_()
        empty = triangulate_report.triangulate([one], Chosen(("bp", "dfa"), "bp")).data
    assert set(empty["reason"].values.ravel()) == {"zero gradient"}


def test_roles_and_options_are_checked(run):
    with pytest.raises(ConfigError, match="is none of the estimators"):
        Chosen(("bp",), "bptt")
    with pytest.raises(ConfigError, match="named twice"):
        Chosen(("bp", "bp"), "bp")
    with pytest.raises(ConfigError, match="has no value"):
        triangulate.made("spsa:directions", run, 0)
    with pytest.raises(ConfigError, match="no contraction penalty"):
        triangulate.made("bp+jac", run, 0)
    assert triangulate.labels(("bptt:steps=60", "bptt:steps=160", "eqprop:probe=true")) == {
        "bptt:steps=60": "bptt60",
        "bptt:steps=160": "bptt160",
        "eqprop:probe=true": "eqprop",
    }


def test_a_sweep_starts_along_the_slope_and_restores_bit_for_bit(run):
    before = {name: value.detach().clone() for name, value in run.loaded.model.named_parameters()}
    result = lr_sweep(run, Chosen(("bp", "fa", "spsa"), "bp"), lrs=(1e-4, 1e-3, 1e9))
    assert all(torch.equal(value, before[name]) for name, value in run.loaded.model.named_parameters())
    data = result.data.sel(gradient="bp")
    ratio = data["delta"].values[:2] / data["first_order"].values[:2]
    assert ratio == pytest.approx([1, 1], abs=0.05)
    assert int(data["diverged"].values[2]) == 1
    assert "no transport" in str(result.data["reason"].sel(gradient="fa").values)
    assert result.summary["best_lr_bp"] == 1e-3
    assert result.summary["diverges_bp"] == 1e9
    assert result.summary["best_fa"] is None


def test_normalised_gradients_have_the_norm_asked_for(run):
    unit = lr_sweep(run, Chosen(("bp", "dfa"), "bp"), lrs=(1e-3,), normalise="unit", evaluate="heldout")
    match = lr_sweep(run, Chosen(("bp", "dfa"), "bp"), lrs=(1e-3,), normalise="match")
    norm = math.sqrt(-float(match.data["first_order"].sel(gradient="bp").item()) / 1e-3)
    assert -float(unit.data["first_order"].sel(gradient="bp").item()) / 1e-3 == pytest.approx(norm, rel=1e-5)
    for bad, why in (({"normalise": "most"}, "normalisation"), ({"evaluate": "all"}, "evaluation"), ({"lrs": (0.0,)}, "above 0")):
        with pytest.raises(ConfigError, match=why):
            lr_sweep(run, Chosen(("bp",), "bp"), **bad)


def test_branches_are_the_means_of_what_hooks_see(run):
    result = branches.branches([run])
    batch = run.batches[0]
    one = branches.branches([dataclasses.replace(run, batches=(batch,))]).data.isel(ckpt=0)
    with torch.no_grad():
        _, seen = run.loaded.model.run_with_cache(batch.x)
    into = seen["blocks.1.hook_resid_pre"].norm(dim=-1).mean()
    assert float(one["attn_xin"][1]) == pytest.approx(float(seen["blocks.1.hook_attn_out"].norm(dim=-1).mean() / into), rel=1e-5)
    assert float(one["wo"][1]) == pytest.approx(float(run.loaded.model.blocks[1].attn.W_O.detach().norm()), rel=1e-5)
    pattern = seen["blocks.1.attn.hook_pattern"]
    assert float(one["h_attn"][1]) == pytest.approx(float(-torch.special.xlogy(pattern, pattern).sum(-1).mean()), rel=1e-4)
    assert float(one["h_max"][0]) == pytest.approx(math.lgamma(8) / 7, rel=1e-9)
    assert result.summary["ckpt"] == run.name
    assert result.data["attn_xin"].dims == ("ckpt", "layer")


def test_a_bridged_decoder_has_every_figure(decoder):
    data = branches.branches([decoder]).data
    assert all(np.isfinite(data[name].values).all() for name in branches.FIGURES)
    found = mixing.mixing([decoder])
    assert set(found.data["status"].values.ravel()) == {"ok"}
    assert found.summary["val"] == pytest.approx(found.summary["evaluated"], abs=1e-5)
    traced = triangulate_report.triangulate([decoder], Chosen(("bp", "bp64", "dfa", "spsa:directions=1"), "bp", "bp64"))
    assert traced.summary["bp_bp"] == pytest.approx(1, abs=1e-5)
    assert lr_sweep(decoder, Chosen(("bp", "dfa"), "bp"), lrs=(1e-4,)).summary["best_bp"] < 0


def test_influence_is_the_jacobian_in_random_directions(run):
    model, batch = run.loaded.model, run.batches[0]
    result = mixing.mixing([run], mixing.Settings(distances=(1, 3), delta=1e-3, directions=2))
    assert set(result.data["status"].values.ravel()) == {"ok"}
    last = {}

    def at(embedded):
        hooks = [("hook_embed", lambda value, hook: embedded), ("blocks.1.hook_resid_post", lambda value, hook: last.update(h=value))]
        model.run_with_hooks(batch.x, fwd_hooks=hooks)
        return last["h"][:, -1]

    embedded = model.embed(batch.x).detach()
    jacobian = torch.autograd.functional.jacobian(at, embedded)  # [b, c, b', t, c']
    for distance in (1, 3):
        place = batch.x.shape[1] - 1 - distance
        rms = torch.stack([jacobian[b, :, b, place].square().sum(0).mean().sqrt() for b in range(4)]).mean()
        seen = float(result.data["influence"].sel(ckpt=run.name, distance=distance))
        assert seen == pytest.approx(float(rms), rel=0.35)  # the mean over few directions scatters about the root mean square


def test_mixing_refuses_what_cannot_be_probed_and_sees_another_model(run, monkeypatch):
    with pytest.raises(ConfigError, match="reaches before the first token"):
        mixing.measure(run, mixing.Settings(distances=(9,)))
    with pytest.raises(ConfigError, match="query 99"):
        mixing.measure(run, mixing.Settings(query=99))
    with pytest.raises(ConfigError, match="delta 0"):
        mixing.Settings(delta=0.0)
    monkeypatch.setattr(mixing, "evaluation_losses", lambda found, batch: evaluation_losses(found, batch) + 0.01)
    with pytest.raises(InstrumentError, match="does not see the model that was evaluated"):
        mixing.measure(run)


def test_a_model_that_looks_ahead_is_found_out(run, monkeypatch):
    whole = mixing._pass

    def leaking(found, x, added, steps):
        embedded, h, res = whole(found, x, added, steps)
        return embedded, h + (0 if added is None else added.sum()), res

    monkeypatch.setattr(mixing, "_pass", leaking)
    with pytest.raises(InstrumentError, match="looks ahead"):
        mixing.measure(run, mixing.Settings(distances=(1,)))


def test_rows_that_bend_or_have_not_converged_do_not_count():
    assert mixing._doubt(1.0, 1.05) == ""
    assert "differ by 20%" in mixing._doubt(1.2, 1.0)
    assert mixing._doubt(math.nan, 1.0) == "not finite"
    assert mixing.reach({1: (1.0, 1.0, ""), 2: (0.1, 0.1, "bent"), 4: (0.3, 0.3, "")}) == (4, pytest.approx((1 + 1.2) / 1.3))


def test_the_equilibrium_side(settled):
    chosen = triangulate.usual(settled)
    result = triangulate_report.triangulate([settled], chosen)
    assert {"ep_bptt", "bptt_bptt", "k", "ep_self", "bptt_self", "ep_implicit", "res", "amp", "lin", "outlier"} <= set(result.summary)
    assert result.summary["implicit_bptt"] > 0.9
    assert result.summary["val"] == pytest.approx(float(evaluation_losses(settled, settled.held_out).mean()), abs=1e-5)
    shown = branches.branches([settled]).data
    assert float(shown["qk_rms"].item()) == pytest.approx(1, abs=1e-3)
    swept = lr_sweep(settled, usual_gradients(settled), lrs=(1e-3, 1e-2))
    assert list(swept.data["gradient"].values) == ["bptt40", "eqprop", "eqprop+jac", "eqprop-plain"]
    assert swept.summary["best_eqprop"] < 0
    mixed = mixing.measure(settled, mixing.Settings(distances=(1, 4), directions=1))
    assert [doubt for _, _, doubt in mixed.influence.values()] == ["", ""]
    with pytest.raises(ConfigError, match="backpropagation through a relaxation"):
        triangulate.made("bp", settled, 0)(settled.loaded.model, settled.batches[0])


def test_a_relaxation_cut_short_is_called_unconverged(settled, monkeypatch):
    monkeypatch.setattr(mixing, "_steps", lambda found, x, settings: 1)
    mixed = mixing.measure(settled, mixing.Settings(distances=(1,), directions=1, delta=1e-4))
    assert mixed.influence[1][2].startswith("unconverged: residual")


def outlying() -> Subject:
    """Random weights at tiny embeddings, where LN's Jacobian is steep and large nudges leave the linear range."""
    cfg = EqConfig(d_vocab=13, d_model=16, n_heads=2, n_ctx=8, emb_std=0.3, resinit=0.5)
    model = models.build_equilibrium(cfg, seed=1)
    with torch.no_grad():
        model.unembed.W_U.mul_(100)
        model.embed.W_E[3] *= 0.02  # sequences of this token alone sit near the norm's singularity
        model.pos_embed.W_pos *= 0.02
    tokens = torch.randint(13, (8, 9), generator=torch.Generator().manual_seed(2))
    tokens[0, :8] = 3
    batch = Batch(tokens[:, :-1], tokens[:, 1:])
    loaded = models.Loaded("handmade", runs.EQUILIBRIUM, model, 1, 16, None)
    return Subject(loaded, "handmade", (batch,), batch, "handmade")


def test_one_sequence_carries_a_large_nudge_away():
    result = collapse.collapse(outlying(), radii=(1e-4, 1e-2), steps=32)
    first, last = result.data.isel(radius=0), result.data.isel(radius=1)
    assert float(first["cos"]) > 0.999
    assert float(first["lin"]) < collapse.LIN
    assert float(first["outlier"]) < collapse.OUTLIER
    assert abs(float(last["cos"])) < 0.5
    assert float(last["k"]) > 1e3
    assert float(last["dropped"]) == 1
    assert float(last["cos_kept"]) > 0.95
    assert result.summary["gated_at"] == 1e-2
    with pytest.raises(ConfigError, match="radii"):
        collapse.collapse(outlying(), radii=(0.0,))
