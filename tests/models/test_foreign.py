"""Hostile folders: nothing of them runs, and one line says what they ask for."""

import json
import os
import pty
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from tests.hooks.tiny_models import save_model, save_tokenizer
from tests.models import hostile
from wallprobe import models
from wallprobe.errors import CheckpointError, WallprobeError
from wallprobe.models.foreign import ModelCodeWarning
from wallprobe.models.hub import fetch
from wallprobe.models.shards import Shards, inside
from wallprobe.models.streamed import open_streamed, size_in_memory

CLI = """
import json, sys
from wallprobe import cli
said = []
for words in json.loads(sys.argv[1]):
    sys.argv = ["wallprobe", *words]
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = end.code
    sys.stderr.write(f"<{code}>\\n")
"""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model("neox", tmp_path_factory.mktemp("sound") / "neox")


@pytest.mark.parametrize("kind", hostile.REFUSED)
def test_refused_in_one_line(kind: str, sound: Path, tmp_path: Path) -> None:
    do, words = hostile.REFUSED[kind]
    folder = hostile.copied(sound, tmp_path / "model")
    do(folder)
    ways = (models.load, models.load_plain, lambda name: models.load_plain(name, weights=False), open_streamed)
    for read in ways:
        with pytest.raises(CheckpointError) as caught:
            read(str(folder))
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "RAN").exists()


def test_a_pickle_is_refused_and_the_command_named(sound: Path, tmp_path: Path) -> None:
    folder = hostile.unpickled(sound, tmp_path / "a model", bomb=True)
    for read in (models.load, models.load_plain, open_streamed):
        with pytest.raises(CheckpointError, match=r"keeps its weights as pickles \(pytorch_model.bin\).*wallprobe convert '.*a model'"):
            read(str(folder))
    for name in ("model.pth", "weights.ckpt", "pytorch_model-00001-of-00002.bin"):
        (folder / "pytorch_model.bin").rename(folder / name)
        with pytest.raises(CheckpointError, match="as pickles"):
            models.load(str(folder))
        (folder / name).rename(folder / "pytorch_model.bin")
    assert not (tmp_path / "RAN").exists()


def test_pickles_beside_safetensors_are_left_alone(sound: Path, tmp_path: Path) -> None:
    folder = hostile.copied(sound, tmp_path / "model")
    for name in ("training_args.bin", "pytorch_model.bin", "optimizer.pt"):
        torch.save({"bomb": hostile.Bomb(tmp_path / "RAN")}, folder / name)
    assert models.load_plain(str(folder)).weight_hash == models.load_plain(str(sound)).weight_hash
    assert not (tmp_path / "RAN").exists()


def test_code_that_transformers_does_not_need_is_left_out_and_told(sound: Path, tmp_path: Path) -> None:
    folder = hostile.copied(sound, tmp_path / "model")
    hostile.change(folder, auto_map=hostile.CODE, custom_pipelines={"text-generation": {"impl": "evil.Pipe"}})
    hostile.change(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Words", "evil.Words"]})
    hostile.change(folder, "generation_config.json", auto_map={"AutoX": "evil.X"})
    hostile.change(folder, "processor_config.json", auto_map={"AutoProcessor": "evil.P"})
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "evil.py", folder / "custom_generate" / "generate.py")
    tokens = torch.arange(6)[None]
    wanted = models.load(str(sound)).model(tokens)
    for read in (models.load, models.load_plain, open_streamed):
        with pytest.warns(ModelCodeWarning, match=r"AutoModelForCausalLM -> evil.Model.*it was read without"):
            found = read(str(folder))
        if isinstance(found, models.Loaded):
            assert torch.equal(found.model(tokens), wanted)
    assert not (tmp_path / "RAN").exists()


def test_hub_ids_are_read_as_folders(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache's links are read; code is left out; of `microsoft/phi-2` transformer-lens would trust the code whatever it is told."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    known = hostile.change(hostile.copied(sound, tmp_path / "known"), auto_map=hostile.CODE)
    unknown = hostile.change(hostile.copied(sound, tmp_path / "unknown"), model_type="evil", auto_map=hostile.CODE)
    for folder, name in ((known, "microsoft/phi-2"), (known, "EleutherAI/pythia-70m"), (unknown, "some/one")):
        place = hostile.in_cache(folder, tmp_path / "cache", name)
        shutil.copy(tmp_path / "unknown" / "evil.py", place.parent.parent / "blobs" / "evil.py")
    for name, kind in (("microsoft/phi-2", "TransformerBridge"), ("EleutherAI/pythia-70m", "HookedTransformer")):
        with pytest.warns(ModelCodeWarning):
            loaded = models.load(name)
        assert (type(loaded.model).__name__, loaded.weight_hash) == (kind, models.load_plain(str(sound)).weight_hash)
    for read in (models.load, models.load_plain, open_streamed):
        with pytest.raises(CheckpointError, match=r"some/one asks to run its own code \(auto_map: AutoConfig -> evil.Config"):
            read("some/one")
    with pytest.warns(ModelCodeWarning):
        open_streamed("microsoft/phi-2").close()
    assert fetch("some/one").is_dir()
    assert not list(tmp_path.glob("**/RAN"))


def test_pickles_of_the_hub(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NeelNanda's are official names whose .pth files transformer-lens unpickles without restriction."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    folder = hostile.unpickled(sound, tmp_path / "pickled", bomb=True)
    shutil.copy(folder / "pytorch_model.bin", folder / "model_final.pth")
    hostile.in_cache(folder, tmp_path / "cache", "NeelNanda/SoLU_1L512W_C4_Code")
    with pytest.raises(
        CheckpointError, match=r"no safetensors to fetch.*hf download NeelNanda/\S+ --local-dir FOLDER, then wallprobe convert"
    ):
        models.load("NeelNanda/SoLU_1L512W_C4_Code")
    assert not (tmp_path / "RAN").exists()


def test_multimodal_is_refused_before_anything_is_installed(tmp_path: Path) -> None:
    """transformer-lens 3.9 runs `pip install torchvision` for such a folder without a processor."""
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    text = small | {"vocab_size": 32, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 24}
    config = Gemma3Config(text_config=text, vision_config=small | {"image_size": 28, "patch_size": 14}, mm_tokens_per_image=4)
    Gemma3ForConditionalGeneration(config).save_pretrained(tmp_path / "sees")
    save_tokenizer(tmp_path / "sees")
    for read in (models.load, models.load_plain, open_streamed):
        with pytest.raises(CheckpointError, match=r"several models in one \(gemma3: text_config, vision_config\).*give a text model"):
            read(str(tmp_path / "sees"))


def test_settings_that_say_they_are_another_model(tmp_path: Path) -> None:
    """The bridge picks its adapter by name, and a multimodal one leads to the processor and to pip."""
    sound = save_model("llama", tmp_path / "llama")
    wanted = models.load(str(sound)).model(torch.arange(6)[None])
    for number, changes in enumerate(({"architectures": ["LlavaForConditionalGeneration"]}, {"original_architecture": "Emu3ForCausalLM"})):
        folder = hostile.change(hostile.copied(sound, tmp_path / str(number)), **changes)
        assert torch.equal(models.load(str(folder)).model(torch.arange(6)[None]), wanted)


def test_an_index_that_points_elsewhere(sound: Path, tmp_path: Path) -> None:
    folder = hostile.copied(sound, tmp_path / "model")
    hostile.linked(folder)
    with pytest.raises(CheckpointError, match="outside the folder"):
        Shards(folder)
    with pytest.raises(CheckpointError, match="outside the folder"):
        size_in_memory(str(folder))
    place = hostile.in_cache(sound, tmp_path / "cache", "some/one")
    with Shards(place) as shards:
        assert shards.files["gpt_neox.embed_in.weight"] == "model.safetensors"
    shared = tmp_path / "cache" / "blobs" / "ab" / "abcd"
    shared.parent.mkdir(parents=True)
    blob = place.parent.parent / "blobs" / "model.safetensors"
    blob.rename(shared)
    blob.symlink_to("../../blobs/ab/abcd")
    Shards(place).close()
    (tmp_path / "cache" / "secret.safetensors").write_bytes(b"")
    (place / "model.safetensors").unlink()
    (place / "model.safetensors").symlink_to("../../../secret.safetensors")
    with pytest.raises(CheckpointError, match="outside the folder"):
        Shards(place)
    for name in ("", "a/../../b.safetensors", "\x00.safetensors", "a.safetensors\n"):
        with pytest.raises((CheckpointError, ValueError)):
            inside(folder, name)


@pytest.mark.parametrize(
    "head", [b"\xff" * 8, (1 << 62).to_bytes(8, "little"), (1 << 30).to_bytes(8, "little") + b"{", b"\x02" + b"\x00" * 7 + b"[]"]
)
def test_absurd_headers_are_one_line(head: bytes, sound: Path, tmp_path: Path) -> None:
    folder = hostile.copied(sound, tmp_path / "model")
    (folder / "model.safetensors").write_bytes(head + b" " * 64)
    for read in (models.load, models.load_plain, open_streamed):
        with pytest.raises(CheckpointError) as caught:
            read(str(folder))
        assert "\n" not in str(caught.value)


def test_settings_of_other_shapes_are_one_line(sound: Path, tmp_path: Path) -> None:
    for number, value in enumerate(
        ([], "evil.Model", {"AutoModelForCausalLM": 7}, {"AutoConfig": {"a": 1}}, [[1], None], {"x": ["evil.X"]})
    ):
        folder = hostile.change(hostile.copied(sound, tmp_path / str(number)), model_type="evil", auto_map=value)
        with pytest.raises(WallprobeError) as caught:
            models.load_plain(str(folder), weights=False)
        assert "\n" not in str(caught.value)
    deep = hostile.copied(sound, tmp_path / "deep")
    (deep / "generation_config.json").write_text("[" * 200_000)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models.load_plain(str(deep), weights=False)


def _typed(words: list[list[str]], folder: Path, *, terminal: bool) -> str:
    """What the command line says on stderr, command by command, with `y` typed all along."""
    command = [sys.executable, "-c", CLI, json.dumps(words)]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(folder / "cache"), "HF_MODULES_CACHE": str(folder / "modules")}
    outer, inner = pty.openpty() if terminal else os.pipe()
    reader, writer = (inner, outer) if terminal else (outer, inner)
    os.write(writer, b"y\n" * 50)
    try:
        done = subprocess.run(command, cwd=folder, env=environment, stdin=reader, capture_output=True, timeout=500)
    finally:
        os.close(outer)
        os.close(inner)
    assert done.stdout == b"", done.stdout
    return done.stderr.decode()


@pytest.mark.parametrize("terminal", [False, True])
def test_whoever_types_yes(terminal: bool, sound: Path, tmp_path: Path) -> None:
    """The same through the command line, from a pipe and from a terminal, with and without --stream, from a folder and from the cache."""
    for name in ("model", "tokenizer", "kernel"):
        hostile.REFUSED[name][0](hostile.copied(sound, tmp_path / name))
    hostile.in_cache(tmp_path / "model", tmp_path / "cache", "some/one")
    commands = [
        [command, name, *more]
        for name in ("model", "tokenizer", "kernel", "some/one")
        for command, more in (("gains", []), ("gains", ["--stream"]))
    ]
    commands += [["flow", "model"], ["triangulate", "model"]]
    commands += [["interchange", "--src", "model", "--dst", "model", "--prompts", str(tmp_path / "pairs.jsonl")]]
    (tmp_path / "pairs.jsonl").write_text('{"clean": "the tower", "corrupt": "the river", "answer": "paris", "wrong": "dog"}\n')
    err = _typed(commands, tmp_path, terminal=terminal)
    said = err.splitlines()
    assert said[1::2] == ["<2>"] * len(commands), err
    assert all(line.startswith("wallprobe: ") and " asks to run " in line for line in said[::2]), err
    assert not list(tmp_path.glob("**/RAN"))
    assert not (tmp_path / "results").exists()
