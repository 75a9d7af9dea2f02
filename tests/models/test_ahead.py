"""Blocks read past the system's cache are the blocks in the files; what cannot be read is said."""

import json
import threading

import pytest
import torch
from safetensors.torch import save_file

from wallprobe.errors import CheckpointError
from wallprobe.models import ahead
from wallprobe.models.ahead import Ahead, buffer_bytes, can_pass_cache, extents
from wallprobe.models.shards import INDEX, Shards

KINDS = (torch.float16, torch.bfloat16, torch.float32)


@pytest.fixture
def shards(tmp_path):
    """Three blocks of five tensors over two files, not in order."""
    drawn, index = torch.Generator().manual_seed(1), {}
    tensors = {
        f"layers.{layer}.{name}": torch.randn(shape, generator=drawn).to(KINDS[layer])
        for layer in range(3)
        for name, shape in (("up", (300, 70)), ("down", (70, 300)), ("bias", (70,)), ("odd", (3,)), ("far", (64, 64)))
    }
    for number, part in enumerate(("far", "")):
        own = {name: value for name, value in tensors.items() if ("far" in name) == bool(part)}
        save_file(own, tmp_path / f"model-{number}.safetensors")
        index |= dict.fromkeys(own, f"model-{number}.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": index}))
    with Shards(tmp_path) as opened:
        if not can_pass_cache(opened):
            pytest.skip("this file system has no direct reading")
        yield opened, tensors


def blocks(tensors):
    return [[name for name in tensors if f"layers.{layer}." in name] for layer in range(3)]


@pytest.mark.parametrize("past_cache", [False, True])
@pytest.mark.parametrize("chunk", [ahead.PAGE, ahead.CHUNK])
def test_gives_what_the_files_hold(shards, past_cache, chunk, monkeypatch):
    monkeypatch.setattr(ahead, "CHUNK", chunk)
    opened, tensors = shards
    with Ahead(opened, blocks(tensors), past_cache=past_cache) as source:
        for names in blocks(tensors):
            found = source.take()
            assert set(found) == set(names)
            for name in names:
                assert found[name].dtype == tensors[name].dtype
                assert torch.equal(found[name], tensors[name])
        assert (source.buffer_bytes > 0) == past_cache
        with pytest.raises(IndexError):
            source.take()


def test_buffers_hold_the_largest_block_and_little_more(shards):
    opened, tensors = shards
    sizes = [sum(opened.sizes[name] for name in names) for names in blocks(tensors)]
    assert max(sizes) <= buffer_bytes(opened, blocks(tensors)) <= sum(sizes) + 4 * ahead.PAGE
    for file, low, high in extents(opened, list(tensors)):
        assert low % ahead.PAGE == high % ahead.PAGE == 0
        assert 0 <= low < high <= opened.file_bytes[file] + ahead.PAGE


def test_a_file_cut_short_meanwhile(shards):
    opened, tensors = shards
    path = opened.folder / "model-1.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with (
        Ahead(opened, blocks(tensors)[2:], past_cache=True) as source,
        pytest.raises(CheckpointError, match=r"ended \d+ bytes early; fetch"),
    ):
        source.take()


def test_leaving_early_ends_its_threads(shards):
    opened, tensors = shards
    with Ahead(opened, blocks(tensors), past_cache=True) as source:
        source.take()
    assert all(thread.name.split("_")[0] not in ("ahead", "disk") for thread in threading.enumerate())
