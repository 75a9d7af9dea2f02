"""Folders that would run, fetch, install or unpickle something if they were read carelessly; what runs leaves a file called RAN."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

EVIL = """
from pathlib import Path
Path({ran!r}).write_text("it ran")
from transformers import LlamaConfig as Config, LlamaForCausalLM as Model, PreTrainedTokenizerFast as Words
Config.model_type = "evil"
"""
CODE = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}


class Bomb:
    """What a pickle can do."""

    def __init__(self, ran: Path) -> None:
        self.ran = ran

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return (exec, (f"open({str(self.ran)!r}, 'w').write('it ran')",))


def change(folder: Path, name: str = "config.json", **changes: Any) -> Path:
    """Set keys of a JSON file; None takes one away."""
    path = folder / name
    told = json.loads(path.read_text()) if path.is_file() else {}
    told = {key: value for key, value in (told | changes).items() if value is not None}
    path.write_text(json.dumps(told))
    return folder


def copied(model: Path, place: Path) -> Path:
    """A copy of a sound model with a Python file beside it."""
    shutil.copytree(model, place)
    (place / "evil.py").write_text(EVIL.format(ran=str(place.parent / "RAN")))
    return place


def unpickled(model: Path, place: Path, *, bomb: bool = False) -> Path:
    """A copy whose weights are a pickle, with a bomb in it or not."""
    folder = copied(model, place)
    held: dict[str, Any] = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(held | ({"bomb": Bomb(place.parent / "RAN")} if bomb else {}), folder / "pytorch_model.bin")
    return folder


def in_cache(folder: Path, cache: Path, name: str) -> Path:
    """The folder as the hub's cache would hold it, its files links to blobs."""
    home = cache / f"models--{name.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("a" * 40)
    (home / "blobs").mkdir()
    place = home / "snapshots" / ("a" * 40)
    place.mkdir(parents=True)
    for path in folder.iterdir():
        shutil.copy(path, home / "blobs" / path.name)
        (place / path.name).symlink_to(Path("../../blobs") / path.name)
    return place


def _index(folder: Path, name: str, file: str) -> Path:
    weights = folder / "model.safetensors"
    if weights.exists():
        weights.rename(folder / "a.safetensors")
    (folder / name).write_text(json.dumps({"metadata": {}, "weight_map": {"gpt_neox.embed_in.weight": file}}))
    return folder


def linked(folder: Path) -> Path:
    """Weights that are a link out of the folder."""
    outside = folder.parent / "elsewhere.safetensors"
    (folder / "model.safetensors").rename(outside)
    (folder / "model.safetensors").symlink_to(outside)
    return folder


def tokenizer_code(folder: Path) -> Path:
    """A tokenizer that only the folder's code knows."""
    change(folder, model_type="pythia-of-our-own", auto_map={"AutoConfig": "evil.Config"})
    return change(folder, "tokenizer_config.json", tokenizer_class="Words", auto_map={"AutoTokenizer": [None, "evil.Words"]})


# What is done to a sound copy, and what is said of it.
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "model": (
        lambda f: change(f, model_type="evil", auto_map=CODE),
        "asks to run its own code (auto_map: AutoConfig -> evil.Config; auto_map: AutoModelForCausalLM -> evil.Model); wallprobe runs no",
    ),
    "model of another repository": (
        lambda f: change(f, model_type="evil", auto_map={"AutoConfig": "some/one--evil.Config"}),
        "(auto_map: AutoConfig -> some/one--evil.Config); wallprobe runs no",
    ),
    "tokenizer": (tokenizer_code, "auto_map: AutoTokenizer -> evil.Words"),
    "kernel": (
        lambda f: change(f, _attn_implementation="org/kernel"),
        "asks to run a kernel of the hub (_attn_implementation: org/kernel)",
    ),
    "kernel by part": (
        lambda f: change(f, attn_implementation={"text_config": "org/kernel@main"}),
        "a kernel of the hub (attn_implementation: org/kernel@main)",
    ),
    "quantised": (lambda f: change(f, quantization_config={"quant_method": "fp8"}), "holds quantised weights (fp8)"),
    "quantised inside": (lambda f: change(f, text_config={"quantization_config": {"quant_method": "gptq"}}), "quantised weights (gptq)"),
    "adapter": (lambda f: change(f, "adapter_config.json", base_model_name_or_path="../other"), "holds an adapter (adapter_config.json)"),
    "weights by name": (lambda f: change(f, transformers_weights="pytorch_model.bin"), "names its weights 'pytorch_model.bin'"),
    "index up": (lambda f: _index(f, "model.safetensors.index.json", "../a.safetensors"), "outside the folder"),
    "index absolute": (lambda f: _index(f, "model.safetensors.index.json", "/etc/a.safetensors"), "outside the folder"),
    "index of pickles": (lambda f: _index(f, "model.safetensors.index.json", "pytorch_model.bin"), "only .safetensors is read"),
    "link out": (linked, "outside the folder"),
}
