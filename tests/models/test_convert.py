"""Pickled weights become safetensors: the same tensors, shards, shared memory, damage, bombs, and nothing half-written."""

import json
import os
import shutil
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.hooks.tiny_models import save_model
from tests.models import hostile
from wallprobe import models
from wallprobe.errors import CheckpointError, StoreError, WallprobeError
from wallprobe.models.convert import convert
from wallprobe.models.streamed import open_streamed
from wallprobe.models.unpickle import rewrite, tensors_of


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("gpt2", tmp_path_factory.mktemp("sound") / "gpt2")


def test_the_same_model(sound: Path, tmp_path: Path) -> None:
    folder = hostile.unpickled(sound, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    torch.save({}, folder / "training_args.bin")
    seen: list[tuple[int, int]] = []
    made = convert(folder, progress=lambda done, total: seen.append((done, total)))
    assert made.out == tmp_path / "model-safetensors"
    assert (made.read, made.shards) == (("pytorch_model.bin",), {"model.safetensors": made.tensors})
    assert sorted(path.name for path in made.out.iterdir()) == sorted(["model.safetensors", *made.copied])
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= set(made.copied)
    assert seen[-1][0] == seen[-1][1] == (folder / "pytorch_model.bin").stat().st_size
    assert seen[0][0] > 0
    wanted, found = load_file(sound / "model.safetensors"), load_file(made.out / "model.safetensors")
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    tokens = torch.arange(6)[None]
    assert torch.equal(models.load(str(made.out)).model(tokens), models.load(str(sound)).model(tokens))
    with pytest.raises(StoreError, match="is there already; give a folder that is not: --out FOLDER"):
        convert(folder)


def test_shards_and_shared_memory(sound: Path, tmp_path: Path) -> None:
    """Tied weights keep both names; a transposed view and a slice come out as what they say."""
    folder = hostile.copied(sound, tmp_path / "model")
    weights: dict[str, Any] = OrderedDict(load_file(folder / "model.safetensors"))
    (folder / "model.safetensors").unlink()
    names = list(weights)
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    weights["view"], weights["slice"] = weights["transformer.wte.weight"].T, weights["transformer.wte.weight"][:3]
    half = dict.fromkeys(names[: len(names) // 2], "pytorch_model-00001-of-00002.bin")
    where = {name: half.get(name, "pytorch_model-00002-of-00002.bin") for name in weights}
    for file in set(where.values()):
        torch.save({name: weights[name] for name in weights if where[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    made = convert(folder, tmp_path / "deep" / "out", limit=40_000)
    assert len(made.shards) > 2
    index = json.loads((made.out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(weights)
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in weights.values()) == made.bytes
    found = {name: value for file in made.shards for name, value in load_file(made.out / file).items()}
    assert all(torch.equal(weights[name], found[name]) for name in weights)
    assert "pytorch_model.bin.index.json" not in made.copied
    open_streamed(str(made.out)).close()


def test_a_bomb_does_not_go_off(sound: Path, tmp_path: Path) -> None:
    folder = hostile.unpickled(sound, tmp_path / "model", bomb=True)
    with pytest.raises(
        CheckpointError, match=r"does not hold tensors alone \(it asks for .*exec, which is code\); it is not converted"
    ) as caught:
        convert(folder)
    assert "weights_only" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_old_and_wrapped_formats(tmp_path: Path) -> None:
    weights = {"a": torch.randn(3, 2), "b": torch.arange(4).to(torch.bfloat16)}
    torch.save(weights, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "state_dict": weights}, tmp_path / "wrapped.ckpt")
    torch.save({name: torch.nn.Parameter(value) for name, value in weights.items()}, tmp_path / "parameters.bin")
    for name in ("old.bin", "wrapped.ckpt", "parameters.bin"):
        found = tensors_of(tmp_path / name)
        assert all(torch.equal(found[key], value) for key, value in weights.items())


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ([1, 2], "holds a list and no tensors by name"),
        ({"a": 3}, "holds 'a', a int and no tensor"),
        ({}, "holds a dict and no tensors by name"),
        ({"a": torch.eye(3).to_sparse()}, "in a packed layout"),
    ],
)
def test_what_is_no_checkpoint(held: Any, words: str, tmp_path: Path) -> None:
    torch.save(held, tmp_path / "x.bin")
    with pytest.raises(CheckpointError, match=words):
        tensors_of(tmp_path / "x.bin")


def test_a_name_twice(tmp_path: Path) -> None:
    for name in ("x.bin", "y.bin"):
        torch.save({"a": torch.zeros(2)}, tmp_path / name)
    (tmp_path / "out").mkdir()
    with pytest.raises(CheckpointError, match="which a file before it holds too"):
        list(rewrite([tmp_path / "x.bin", tmp_path / "y.bin"], tmp_path / "out", 1 << 20))


def _index_of(file: Any) -> Any:
    return lambda folder: (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": file}}))


@pytest.mark.parametrize(
    ("do", "words"),
    [
        (lambda f: (f / "pytorch_model.bin").write_bytes(b"junk" * 99), "is damaged, or no checkpoint of torch's"),
        (lambda f: (f / "pytorch_model.bin").unlink(), "has no pickled weights"),
        (lambda f: (f / "config.json").unlink(), "is no folder of a Hugging Face model"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "has its weights as safetensors already"),
        (lambda f: (f / "pytorch_model.bin.index.json").write_text("[]"), "is damaged"),
        (_index_of("../other.bin"), "outside the folder"),
        (_index_of("/etc/other.bin"), "outside the folder"),
        (_index_of("evil.py"), "only .bin, .pt"),
        (_index_of("lost.bin"), "lacks lost.bin"),
        (lambda f: ((f / "pytorch_model.bin").rename(f / "a.pt"), shutil.copy(f / "a.pt", f / "b.pt")), "has several pickles"),
    ],
)
def test_refused_in_one_line_and_nothing_written(do: Any, words: str, sound: Path, tmp_path: Path) -> None:
    folder = hostile.unpickled(sound, tmp_path / "model")
    do(folder)
    with pytest.raises(WallprobeError, match=words) as caught:
        convert(folder)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_settings_that_are_links_out_are_not_copied(sound: Path, tmp_path: Path) -> None:
    folder = hostile.unpickled(sound, tmp_path / "model")
    (tmp_path / "secret.json").write_text("{}")
    (folder / "more.json").symlink_to(tmp_path / "secret.json")
    with pytest.raises(CheckpointError, match="outside the folder"):
        convert(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "secret.json"]


def test_the_command(sound: Path, tmp_path: Path, invoke: Any) -> None:
    folder = hostile.unpickled(sound, tmp_path / "model")
    code, out, err = invoke("convert", "model", "--out", "new", "--json")
    assert (code, err) == (0, "")
    said = json.loads(out)
    assert said["kind"] == "convert"
    assert said["summary"]["folder"] == str(tmp_path / "new")
    assert said["values"] == [{"file": "model.safetensors", "tensors": said["summary"]["tensors"]}]
    code, out, err = invoke("convert", "model", "--out", "newer")
    assert (code, err) == (0, "")
    assert "newer: " in out
    assert " in 1 file; beside them " in out
    code, out, err = invoke("convert", str(folder), "--out", "new")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "is there already" in err
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
