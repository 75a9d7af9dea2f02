"""Streaming gives what the whole model gives, goes on where it was stopped, keeps to its budget, and says what is wrong with a file."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hooks.tiny_models import ARCHITECTURES, save_model
from wallprobe import models
from wallprobe.errors import CheckpointError, ConfigError, InstrumentError, UnknownNameError, WallprobeError
from wallprobe.hooks.attach.prompt_sets import PromptSet, encode
from wallprobe.hooks.gains.measure import gains
from wallprobe.hooks.gains.report import Settings
from wallprobe.hooks.gains.streaming import BASE, STATE, estimate_bytes, parse_size, passes_cache, stream_gains
from wallprobe.models import Limits
from wallprobe.models.ahead import can_pass_cache
from wallprobe.models.streamed import Streamed, open_streamed, size_in_memory
from wallprobe.models.strips import Crew
from wallprobe.store.results import Result

SETTINGS = Settings.make("sublayer", "ratio_of_means", "all")
TEXTS = "the quick brown fox jumps\nparis is the capital of france\nover the lazy dog near river\nknown tower\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    (root / "prompts.txt").write_text(TEXTS)
    return {name: save_model(name, root / name) for name in ARCHITECTURES}


def read(model: Streamed, folders: dict[str, Path]) -> PromptSet:
    return encode(model.name, model.tokenizer, Limits(model.context, model.vocabulary), str(folders["neox"].parent / "prompts.txt"))


def sharded(folder: Path, target: Path) -> Path:
    """The same model in three shards with an index, in half precision where that loses nothing."""
    shutil.copytree(folder, target)
    tensors = load_file(folder / "model.safetensors")
    (target / "model.safetensors").unlink()
    index: dict[str, str] = {}
    for number in range(3):
        name = f"model-{number + 1:05d}-of-00003.safetensors"
        part = {key: value for place, (key, value) in enumerate(sorted(tensors.items())) if place % 3 == number}
        save_file(part, target / name, {"format": "pt"})
        index |= dict.fromkeys(part, name)
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return target


def equal(ours: Result, theirs: Result, rtol: float) -> None:
    for name in theirs.data.data_vars:
        if name != "identity_error":
            mine, other = (torch.from_numpy(one.data[name].values) for one in (ours, theirs))
            torch.testing.assert_close(mine, other, rtol=rtol, atol=1e-7, equal_nan=True, msg=str(name))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_the_whole_model(architecture: str, folders: dict[str, Path], tmp_path: Path) -> None:
    model = open_streamed(str(sharded(folders[architecture], tmp_path / "sharded")))
    prompts = read(model, folders)
    ours, theirs = stream_gains(model, prompts, SETTINGS), gains(models.load(str(folders[architecture])), prompts)
    equal(ours, theirs, 1e-5)
    same = ("n_params", "n_params_non_embedding", "n_layers", "d_model", "attn_contracting", "l_star", "regime")
    assert {key: ours.summary[key] for key in same} == {key: theirs.summary[key] for key in same}
    assert (ours.summary["streamed"], theirs.summary["streamed"]) == (True, False)
    assert ours.manifest["parallel_blocks"] == (architecture == "neox")
    assert 0.05 < ours.summary["peak_gib"] < 50


def test_half_precision_is_cast_block_by_block(folders: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(folders["llama"], tmp_path / "half")
    path = tmp_path / "half" / "model.safetensors"
    save_file({name: value.half() for name, value in load_file(path).items()}, path, {"format": "pt"})
    model = open_streamed(str(tmp_path / "half"))
    prompts = read(model, folders)
    equal(stream_gains(model, prompts, SETTINGS), gains(models.load(str(tmp_path / "half")), prompts), 1e-5)


class Stopped(Exception):
    pass


def test_an_interrupted_measurement_goes_on_at_its_block(folders: dict[str, Path], tmp_path: Path) -> None:
    model = open_streamed(str(folders["gpt2"]))
    prompts, whole = read(model, folders), stream_gains(model, read(model, folders), SETTINGS)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        stream_gains(model, prompts, SETTINGS, state=tmp_path / "state", every=0.0, on_progress=stop)
    assert (tmp_path / "state" / STATE).is_file()
    seen: list[int] = []
    again = stream_gains(model, prompts, SETTINGS, state=tmp_path / "state", every=0.0, on_progress=lambda done, _: seen.append(done))
    assert seen == [3]
    equal(again, whole, 0.0)
    assert not (tmp_path / "state").exists()


def test_a_state_of_other_prompts_is_not_gone_on_with(folders: dict[str, Path], tmp_path: Path) -> None:
    model = open_streamed(str(folders["gpt2"]))
    prompts = read(model, folders)
    with pytest.raises(Stopped):
        stream_gains(model, prompts, SETTINGS, state=tmp_path / "s", every=0.0, on_progress=lambda *_: (_ for _ in ()).throw(Stopped))
    fewer = PromptSet(prompts.name, prompts.texts[:2], prompts.tokens[:2], prompts.pieces[:2])
    seen: list[int] = []
    stream_gains(model, fewer, SETTINGS, state=tmp_path / "s", on_progress=lambda done, _: seen.append(done))
    assert seen == [1, 2, 3]
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / STATE).write_bytes(b"noise")
    with pytest.raises(CheckpointError, match=r"is damaged .*; remove it"):
        stream_gains(model, prompts, SETTINGS, state=tmp_path / "s")


def test_the_budget_is_refused_beforehand(folders: dict[str, Path]) -> None:
    model = open_streamed(str(folders["llama"]))
    prompts = read(model, folders)
    needed = estimate_bytes(model, prompts)
    norms = sum(4 * parameter.numel() for name, parameter in model.blocks[0].named_parameters() if "norm" in name)
    assert model.kept_bytes == [norms] * model.n_layers  # the weights of linear layers stay in their files
    assert BASE + norms < needed < BASE + (200 << 20)
    seen: list[int] = []
    with pytest.raises(ConfigError, match=r"takes about .* GiB, .* of it for Python .* --max-ram allows"):
        stream_gains(model, prompts, SETTINGS, max_ram=needed - 1, on_progress=lambda done, _: seen.append(done))
    assert seen == []
    stream_gains(model, prompts, SETTINGS, max_ram=needed)
    assert size_in_memory(str(folders["llama"])) == 4 * model.n_params


def test_sizes_as_typed() -> None:
    assert [parse_size(text) for text in ("8GiB", "8", "1.5g", "500M", "2 TB")] == [8 << 30, 8 << 30, 3 << 29, 500 << 20, 2 << 40]
    for text in ("much", "0", "-1G", "8X"):
        with pytest.raises(ConfigError, match="is no size; give for instance 8GiB"):
            parse_size(text)


def _drop(folder: Path, name: str) -> None:
    next(path for path in folder.glob("*.safetensors") if name in load_file(path)).unlink()


def _reindex(folder: Path) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    names = sorted(index["weight_map"])
    index["weight_map"][names[0]], index["weight_map"][names[1]] = index["weight_map"][names[1]], index["weight_map"][names[0]]
    path.write_text(json.dumps(index))


def _unlisted(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if tensors.pop("model.layers.1.mlp.up_proj.weight", None) is not None:
            save_file(tensors, path, {"format": "pt"})
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["model.layers.1.mlp.up_proj.weight"]
    path.write_text(json.dumps(index))


def _spoil(folder: Path) -> None:
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if "model.layers.1.mlp.up_proj.weight" in tensors:
            tensors["model.layers.1.mlp.up_proj.weight"][0, 0] = torch.nan
            save_file(tensors, path, {"format": "pt"})


def _truncate(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:200])


def _reshape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (lambda folder: _drop(folder, "model.norm.weight"), CheckpointError, r"lacks the shard model-0000\d-of-00003.safetensors"),
        (_reindex, CheckpointError, "says .* holds .*, which it does not"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"), CheckpointError, "index.json is damaged"),
        (_unlisted, CheckpointError, "lacks model.layers.1.mlp.up_proj.weight, which its config asks for"),
        (_truncate, CheckpointError, "is damaged"),
        (_reshape, CheckpointError, "has shape .*, its config says"),
        (_spoil, InstrumentError, "the residual is not finite from layer 1 on; its weights hold NaN or inf"),
        (lambda folder: (folder / "config.json").unlink(), UnknownNameError, "is no Hugging Face model"),
    ],
)
def test_damaged_checkpoints(
    damage: Callable[[Path], Any], kind: type[WallprobeError], words: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = sharded(folders["llama"], tmp_path / "damaged")
    damage(folder)

    def measure() -> None:
        model = open_streamed(str(folder))
        stream_gains(model, read(model, folders), SETTINGS)

    with pytest.raises(kind, match=words):
        measure()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("model.gguf", "no file model.gguf; give an existing .gguf file"),
        ("c0", "is no folder here and no hub id; runs are small, leave --stream out"),
        ("nobody/nothing", "model 'nobody/nothing' could not be fetched"),
    ],
)
def test_what_cannot_be_streamed(source: str, words: str) -> None:
    with pytest.raises(WallprobeError, match=words):
        open_streamed(source)


def test_definitions_that_need_the_whole_model(folders: dict[str, Path]) -> None:
    model = open_streamed(str(folders["llama"]))
    with pytest.raises(ConfigError, match="--gain jacobian needs the whole model in memory"):
        stream_gains(model, read(model, folders), Settings.make("jacobian", "ratio_of_means", "all"))


@pytest.mark.parametrize("architecture", ["neox", "gpt2"])
def test_past_the_cache_gives_the_same_bits(architecture: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    model = open_streamed(str(sharded(folders[architecture], tmp_path / "sharded")))
    if not can_pass_cache(model.shards):
        pytest.skip("this file system has no direct reading")
    prompts = read(model, folders)
    assert not passes_cache(model, prompts, None)  # a small checkpoint stays in the cache
    through = stream_gains(model, prompts, SETTINGS)
    monkeypatch.setattr("wallprobe.hooks.gains.streaming.available_bytes", lambda: 1 << 10)
    assert passes_cache(model, prompts, None)
    equal(stream_gains(model, prompts, SETTINGS), through, 0.0)
    without = estimate_bytes(model, prompts)
    assert not passes_cache(model, prompts, without)  # buffers that do not fit are left out
    assert estimate_bytes(model, prompts, past_cache=True) > without


def test_prompts_of_many_lengths_as_one_by_one(folders: dict[str, Path], monkeypatch: Any) -> None:
    model = open_streamed(str(folders["llama"]))
    prompts = read(model, folders)
    together = stream_gains(model, prompts, SETTINGS)
    monkeypatch.setattr("wallprobe.hooks.gains.streaming.MAX_TOKENS", 1)
    equal(stream_gains(model, prompts, SETTINGS), together, 1e-5)


def test_as_on_another_device(folders: dict[str, Path], monkeypatch: Any) -> None:
    for architecture in ("gpt2", "llama"):
        model = open_streamed(str(folders[architecture]))
        prompts = read(model, folders)
        with monkeypatch.context() as other:
            other.setattr(
                "wallprobe.hooks.gains.streaming.Crew", lambda device: Crew(0, device)
            )  # whole matrices, as where a device has them
            found = stream_gains(model, prompts, SETTINGS, device="cpu")
        equal(found, stream_gains(model, prompts, SETTINGS), 1e-5)
