"""Caching: equal to run_with_cache, only what was asked for, announced when large, loud when a hook is silent."""

import pytest
import torch

from wallprobe import models
from wallprobe.errors import InstrumentError
from wallprobe.hooks.attach import cache
from wallprobe.rng import generator
from wallprobe.training.wall import lean

SHAPE = lean.Shape(n_layers=3, d_model=12, n_heads=2, n_ctx=16, vocabulary=17)
NAMES = ["blocks.0.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.1.hook_mlp_out"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory, write_run):
    return models.load_run(write_run(tmp_path_factory.mktemp("runs"), "c0", lean.init_params(SHAPE, 1), SHAPE))


def test_equals_run_with_cache_and_batches_agree(loaded):
    tokens = torch.randint(17, (10, 8), generator=generator("cache"))
    _, expected = loaded.model.run_with_cache(tokens, names_filter=NAMES)
    for batch in (3, 100):
        found = cache.capture(loaded, tokens, NAMES, keep=[2, 7], batch=batch)
        assert list(found) == NAMES
        for name in NAMES:
            torch.testing.assert_close(found[name], expected[name][:, [2, 7]].flatten(2), rtol=1e-5, atol=1e-6)


def test_stops_at_the_layer_after_the_last_hook(loaded):
    assert cache.layers_needed(NAMES) == 2
    assert cache.layers_needed([*NAMES, "ln_final.hook_scale"]) is None
    reached = []
    loaded.model.blocks[2].hook_resid_pre.register_forward_hook(lambda *args: reached.append(1))
    cache.capture(loaded, torch.zeros(2, 4, dtype=torch.long), NAMES)
    assert reached == []


def test_large_caches_are_announced(loaded, monkeypatch):
    assert cache.predicted_bytes(loaded, NAMES, 10, 8) == 4 * 3 * 10 * 8 * 12
    monkeypatch.setattr(cache, "GIB", 1000)
    with pytest.warns(cache.LargeCacheWarning, match=r"caching 3 hooks will take 11.5 GiB"):
        cache.capture(loaded, torch.zeros(10, 8, dtype=torch.long), NAMES)


def test_a_hook_that_fires_twice_is_an_error():
    record = cache.recorder({}, "a", lambda value: value)
    record(torch.zeros(1), None)
    with pytest.raises(InstrumentError, match="hook a fired more than once"):
        record(torch.zeros(1), None)


def test_a_silent_hook_is_an_error(loaded):
    with pytest.raises(InstrumentError, match="did not fire"):
        cache.capture(loaded, torch.zeros(2, 4, dtype=torch.long), ["blocks.1.attn.hook_result"])
