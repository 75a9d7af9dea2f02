"""A .gguf file's tensors under other names: unpacked one at a time, some rows, and damage said."""

from pathlib import Path

import numpy as np
import pytest
import torch

from wallprobe.errors import CheckpointError
from wallprobe.models.ahead import Ahead, can_pass_cache
from wallprobe.models.quantised import Quantised, unpacked_bytes

gguf = pytest.importorskip("gguf")
NAMES = {"token_embd.weight": "embed.weight", "blk.0.ffn_up.weight": "layers.0.up.weight", "blk.0.attn_norm.weight": "layers.0.norm.weight"}
SHAPES = {"embed.weight": (10, 64), "layers.0.up.weight": (32, 64), "layers.0.norm.weight": (64,)}


@pytest.fixture
def stored(tmp_path: Path):
    """A file of three tensors in three types, and what they hold."""
    drawn = {name: np.random.default_rng(len(name)).normal(size=SHAPES[ours]).astype(np.float32) for name, ours in NAMES.items()}
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    kinds = (gguf.GGMLQuantizationType.F16, gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F32)
    held = {}
    for (name, value), kind in zip(drawn.items(), kinds, strict=True):
        packed = gguf.quants.quantize(value, kind)
        writer.add_tensor(name, packed, raw_dtype=kind)
        held[NAMES[name]] = gguf.quants.dequantize(packed, kind).astype(np.float32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "m.gguf", held


def test_unpacks_what_was_packed(stored):
    path, held = stored
    opened = Quantised(path, NAMES, SHAPES, lambda value, name: value[::-1] if "ffn_up" in name else value)
    assert opened.shapes == SHAPES
    for name, value in held.items():
        wanted = torch.from_numpy(value[::-1].copy() if "up" in name else value)
        assert torch.equal(opened.tensor(name), wanted)
        assert opened.tensor(name, torch.float64).dtype == torch.float64
    assert torch.equal(opened.rows("embed.weight", [7, 2, 2]), torch.from_numpy(held["embed.weight"][[7, 2, 2]]))
    assert opened.sizes["layers.0.up.weight"] == 32 * 64 // 32 * 34
    assert not can_pass_cache(opened)
    assert unpacked_bytes(path) == 4 * (10 * 64 + 32 * 64 + 64)


def test_blocks_in_turn(stored):
    path, held = stored
    opened = Quantised(path, NAMES, SHAPES, lambda value, _: value)
    names = ["layers.0.up.weight", "layers.0.norm.weight"]
    with Ahead(opened, [names], past_cache=False) as source:
        found = source.take()
    assert {name: tuple(value.shape) for name, value in found.items()} == {name: SHAPES[name] for name in names}
    assert all(torch.equal(found[name], torch.from_numpy(held[name])) for name in names)


def test_a_damaged_file(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF nothing")
    assert unpacked_bytes(tmp_path / "bad.gguf") is None
    with pytest.raises(CheckpointError, match=r"bad.gguf is damaged .*; fetch it again"):
        Quantised(tmp_path / "bad.gguf", NAMES, SHAPES, lambda value, _: value)
