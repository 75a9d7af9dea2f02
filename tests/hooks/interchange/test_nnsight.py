"""Interchange through nnsight equals that through hooks, on prompts and on runs; its way to NDIF, without a network."""

import sys
import warnings

import pytest
import torch

from tests.hooks import tiny_models
from wallprobe import models
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.hooks.attach import remote
from wallprobe.hooks.interchange.engines import PointHooks
from wallprobe.hooks.interchange.places import TEXT_SITES
from wallprobe.hooks.interchange.request import Request
from wallprobe.hooks.interchange.run import interchange
from wallprobe.rng import generator
from wallprobe.store.runs import resolve_run
from wallprobe.training.wall import lean

pytestmark = pytest.mark.usefixtures("nnsight_unmounted")
SHAPE = lean.Shape(n_layers=3, d_model=24, n_heads=3, n_ctx=16, vocabulary=17)
PAIRS = """{"clean": "the quick brown fox", "corrupt": "the lazy brown dog", "answer": "jumps", "wrong": "over"}
{"clean": "the capital of france", "corrupt": "the bank of paris", "answer": "paris", "wrong": "river"}
{"clean": "the tower is known", "corrupt": "the fox is known", "answer": "for", "wrong": "near"}
"""


@pytest.fixture(scope="module", params=list(tiny_models.ARCHITECTURES))
def folder(request, tmp_path_factory):
    place = tiny_models.save_model(request.param, tmp_path_factory.mktemp(f"nnsight_{request.param}"))
    (place / "pairs.jsonl").write_text(PAIRS, encoding="utf-8")
    return place


def on_prompts(folder, **more):
    return interchange(Request(str(folder), str(folder), pairs=str(folder / "pairs.jsonl"), layers=(1,), sites=TEXT_SITES, **more))


def test_both_backends_agree_on_prompts(folder):
    hooks, traces = on_prompts(folder), on_prompts(folder, backend="nnsight")
    assert hooks.summary["n_cells"] == traces.summary["n_cells"] == 5 * 3
    assert traces.manifest["engine"]["backend"] == "nnsight"
    assert traces.summary["self_patch_max_change"] == 0.0
    compared = [name for name in hooks.data if name.startswith(("logit_difference", "p_answer", "example_logit", "example_p"))]
    assert {"logit_difference", "p_answer", "p_answer_random", "p_answer_mismatched", "p_answer_norm", "example_p_answer"} <= set(compared)
    for name in compared:
        ours, theirs = (torch.tensor(result.data[name].values) for result in (hooks, traces))
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5, equal_nan=True, msg=name)


def test_the_way_to_ndif_gives_the_same(tmp_path):
    """nnsight serialises every trace as for NDIF and reads it back with this package's modules hidden, so that what it needs is in it."""
    folder = tiny_models.save_model("gpt2", tmp_path)
    (folder / "pairs.jsonl").write_text(PAIRS, encoding="utf-8")
    local, plain = (on_prompts(folder, indices=(1, 3), backend="nnsight", remote=how) for how in ("local", "none"))
    assert local.manifest["config"]["remote"] == "local"
    for name in ("logit_difference", "p_answer", "logit_difference_low", "restored", "p_answer_norm"):
        torch.testing.assert_close(torch.tensor(local.data[name].values), torch.tensor(plain.data[name].values), rtol=0, atol=0)


def test_the_way_to_ndif_is_taken(tmp_path, monkeypatch):
    from nnsight.intervention.backends.local import LocalSimulationBackend

    sent = []
    run = LocalSimulationBackend.__call__
    monkeypatch.setattr(LocalSimulationBackend, "__call__", lambda self, tracer: (sent.append(1), run(self, tracer))[1])
    place = tiny_models.save_model("llama", tmp_path / "llama")
    plain = models.load_plain(str(place))
    tracer = remote.Tracer("llama", plain.model, plain.tokenizer, "local")
    tokens = torch.tensor([[2, 3, 4], [5, 6, 7]])
    (seen,), logits = tracer.look(tokens, [("model.layers.1.mlp", False)], [[2]])
    patched, change = tracer.patch(tokens, ("model.layers.1.mlp", False), 2, seen.flatten(1) + 1)
    assert len(sent) == 2
    assert change == pytest.approx(1.0, abs=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(logits, plain.model(tokens).logits[:, -1], rtol=0, atol=1e-5)
    assert float((patched - logits).abs().max()) > 1e-3


@pytest.fixture(scope="module")
def store(tmp_path_factory, write_run):
    root = tmp_path_factory.mktemp("runs")
    for name, seed in (("c0", 1), ("p5", 2)):
        rng = generator(seed, "nnsight test")
        params = {key: value + 0.3 * torch.randn(value.shape, generator=rng) for key, value in lean.init_params(SHAPE, seed).items()}
        write_run(root, name, params, SHAPE)
    return root


@pytest.mark.parametrize("site", models.SITES)
def test_both_backends_agree_on_runs(store, site):
    hooks, traces = (
        interchange(Request("p5", "c0", (1,), (3, 4), (site,), "procrustes", pairs=60, backend=backend), root=store)
        for backend in ("hooks", "nnsight")
    )
    assert traces.summary["self_patch_max_change"] == 0.0
    names = [name for name in hooks.data if name.startswith(("p_", "base_p_", "kl_", "change_at"))]
    assert len(names) > 20
    for name in names:
        ours, theirs = (torch.tensor(result.data[name].values) for result in (hooks, traces))
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5, msg=name)


def test_a_module_that_is_not_there_is_one_line_before_anything_runs(store, tmp_path, monkeypatch):
    plain = models.load_plain(str(tiny_models.save_model("gpt2", tmp_path / "gpt2")))
    ran = []
    plain.model.register_forward_pre_hook(lambda *_: ran.append(1))
    tracer = remote.Tracer("gpt2", plain.model, plain.tokenizer)
    with pytest.raises(InstrumentError, match=r"gpt2 has no module transformer\.h\.1\.self_attn; its blocks are laid out differently"):
        tracer.patch(torch.tensor([[2, 3]]), ("transformer.h.1.self_attn", False), 0, torch.zeros(1, 32))
    loaded = models.load_run(resolve_run("c0", store))
    monkeypatch.setattr(models, "hook_name", lambda layer, site: f"blocks.{layer}.hook_{site}")
    with pytest.raises(InstrumentError, match=r"c0 has no hook blocks\.1\.hook_nose; choose another --site"):
        PointHooks("c0", lambda: loaded, None).logits(torch.tensor([[2, 3]]), {("nose", 1): lambda value: value})
    assert not ran


def test_runs_are_not_sent_away(store):
    loaded = models.load_run(resolve_run("c0", store))
    with pytest.raises(ConfigError, match="--remote local is for language models: a remote machine does not have the run c0"):
        remote.Tracer("c0", loaded.model, remote="local")


def test_without_nnsight_one_line_says_what_to_install(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "nnsight", None)
    with (
        warnings.catch_warnings(),
        pytest.raises(ConfigError, match=r"needs nnsight, which is not installed: pip install 'wallprobe\[remote\]'"),
    ):
        interchange(Request("p5", "c0", (1,), backend="nnsight"), root=store)
