"""What a model's folder asks for, looked at before any library opens it: code, kernels, adapters, quantisers, pickles."""

import json
import shlex
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wallprobe.errors import CheckpointError
from wallprobe.models.shards import INDEX, SINGLE, index_files, inside

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
BESIDE = ("training_args", "optimizer", "scheduler", "scaler", "rng_state", "trainer_state")  # what trainings leave beside weights
CONFIG, ADAPTER = "config.json", "adapter_config.json"
LARGEST = 64 << 20  # bytes of a settings file that are looked at
OWN = ("attn_config", "ffn_config")  # parts of one text model's configuration (MPT, DBRX); any other part is another model's
NEEDED = ("trust_remote_code", "does not recognize this architecture", "unrecognized model", "unrecognized configuration class")


class ModelCodeWarning(UserWarning):
    """A model asked to run code of its own and was read without it."""


def settings(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The folder's settings files that are JSON objects, by name; what is wrong with others is said by what reads them."""
    read = {path.name: _object(path) for path in sorted(folder.glob("*config*.json"))}
    return {name: value for name, value in read.items() if value}


def _object(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8")) if path.is_file() and path.stat().st_size <= LARGEST else {}
    except (OSError, ValueError, RecursionError):
        value = {}
    return value if isinstance(value, dict) else {}


def _nested(value: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A settings object and those inside it."""
    waiting: list[Any] = [value]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def asks(folder: Path) -> str | None:
    """The code that a folder asks to run, None where it asks for none."""
    wanted: dict[str, None] = {}
    for told in settings(folder).values():
        for key, word in (("auto_map", "auto_map"), ("custom_pipelines", "custom_pipelines")):
            given = told.get(key)
            if not given:
                continue
            pairs = given.items() if isinstance(given, dict) else [("AutoTokenizer", given)]
            for name, what in pairs:
                one = what.get("impl") if isinstance(what, dict) else what
                words = [str(part) for part in one if part] if isinstance(one, list) else [str(one)]
                wanted[f"{word}: {name} -> {', '.join(words)}"] = None
    if (folder / "custom_generate").is_dir():
        wanted["custom_generate"] = None
    said = "; ".join(wanted)
    return (said if len(said) <= 240 else said[:240] + ", ...") or None


def needs_code(source: str, folder: Path, error: Exception) -> CheckpointError | None:
    """What to say of a folder that cannot be read for want of its code; None where the error has another cause."""
    wanted = asks(folder)
    if wanted is None or not any(words in str(error).lower() for words in NEEDED):
        return None
    return CheckpointError(
        f"{source} asks to run its own code ({wanted}); wallprobe runs no model's code: "
        "give a checkpoint that transformers reads without it"
    )


def tell_ignored(source: str, folder: Path) -> None:
    """Say that a model which was read asked to run code, and that none of it ran."""
    wanted = asks(folder)
    if wanted is not None:
        warnings.warn(f"{source} asks to run its own code ({wanted}); it was read without, by transformers' own", ModelCodeWarning, 2)


def check_folder(source: str, folder: Path, *, weights: bool = True) -> None:
    """Refuse a folder that cannot be read without running, fetching or unpickling something.

    Args:
        source: how the user called it.
        folder: where it is.
        weights: False for one of a .gguf file, whose neighbours are not read.

    Raises:
        CheckpointError: for an adapter, a quantised checkpoint, attention from a hub's kernel, weights as pickles, or an index that
            points elsewhere.
    """
    found = settings(folder)
    if (folder / ADAPTER).exists():
        raise CheckpointError(
            f"{source} holds an adapter ({ADAPTER}), which is read with its base model from elsewhere; merge it into that model first "
            "(peft: merge_and_unload) and save the whole"
        )
    if not weights:
        return
    for told in _nested(found.get(CONFIG, {})):
        if told.get("quantization_config"):
            method = told["quantization_config"].get("quant_method") if isinstance(told["quantization_config"], dict) else None
            raise CheckpointError(
                f"{source} holds quantised weights ({method or 'quantization_config'}), which take kernels that are fetched and run; "
                "give the checkpoint they were made from, or a .gguf file"
            )
        for key, value in told.items():
            for one in value.values() if isinstance(value, dict) and "_implementation" in key else [value]:
                if "_implementation" in key and isinstance(one, str) and "/" in one:
                    raise CheckpointError(
                        f"{source} asks to run a kernel of the hub ({key}: {one}); wallprobe runs no model's code: "
                        f"take that out of {CONFIG}"
                    )
    check_weights(source, folder, found.get(CONFIG, {}))


def check_weights(source: str, folder: Path, told: Mapping[str, Any] | None = None) -> None:
    """Refuse weights that are pickles, or lie outside the folder.

    Raises:
        CheckpointError: in both cases; where only pickles are there it names what converts them.
    """
    named = (told or {}).get("transformers_weights")
    if named not in (None, INDEX, SINGLE):
        raise CheckpointError(f"{CONFIG} of {source} names its weights {named!r}; they are read from {SINGLE} or {INDEX} alone")
    if (folder / INDEX).is_file():
        for name in index_files(folder):
            inside(folder, name)
    if (folder / SINGLE).is_file():
        inside(folder, SINGLE)
    elif not (folder / INDEX).is_file() and (pickles := pickled(folder)):
        raise CheckpointError(
            f"{source} keeps its weights as pickles ({pickles[0]}), which wallprobe does not load; convert them once: "
            f"wallprobe convert {shlex.quote(str(folder))}"
        )


def pickled(folder: Path) -> list[str]:
    """Names of the files that hold weights as pickles, pytorch_model's first."""
    names = [path.name for path in folder.iterdir() if path.suffix in PICKLED and path.is_file() and not path.name.startswith(BESIDE)]
    return sorted(names, key=lambda name: (not name.startswith("pytorch_model"), name))


def refuse_parts(source: str, config: Any) -> None:
    """Refuse a configuration of several models, such as one that sees or hears.

    Raises:
        CheckpointError: if it is one.
    """
    parts = sorted(str(name) for name in getattr(config, "sub_configs", None) or {} if name not in OWN)
    if parts:
        raise CheckpointError(
            f"{source} is several models in one ({getattr(config, 'model_type', '?')}: {', '.join(parts)}), for images or sound beside "
            "text; give a text model"
        )
