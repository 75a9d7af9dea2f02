"""A folder whose weights are pickles, rewritten with safetensors in a new one. Pickles are read here and nowhere else."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wallprobe.errors import CheckpointError, StoreError, UnknownNameError
from wallprobe.models.foreign import CONFIG, PICKLED, pickled
from wallprobe.models.shards import INDEX, SINGLE, inside
from wallprobe.store.storage import atomic_directory, explain

PICKLED_INDEX, PICKLED_SINGLE = "pytorch_model.bin.index.json", "pytorch_model.bin"
KEPT = (".json", ".txt", ".model", ".tiktoken", ".jinja")  # of settings and tokenizers; code stays behind
SHARD = 4 << 30  # bytes of a shard
BOOT = "import sys; sys.path[:] = {path!r}; from wallprobe.models.unpickle import main; main()"


@dataclass(frozen=True)
class Converted:
    """What was written.

    Attributes:
        folder: of the model, as given.
        out: the new folder.
        read: the pickled files.
        shards: safetensors file -> number of its tensors.
        copied: settings and tokenizer files.
        tensors: how many.
        bytes: of the tensors.
    """

    folder: Path
    out: Path
    read: tuple[str, ...]
    shards: dict[str, int]
    copied: tuple[str, ...]
    tensors: int
    bytes: int


def sources(folder: Path) -> list[str]:
    """Names of the pickled files that make up a model.

    Raises:
        UnknownNameError: if the folder is no model, or none with pickled weights.
        CheckpointError: if its index is damaged or points elsewhere, or several files might be meant.
    """
    if not (folder / CONFIG).is_file():
        raise UnknownNameError(f"{folder} is no folder of a Hugging Face model ({CONFIG}); give one whose weights are pickles")
    if (folder / SINGLE).is_file() or (folder / INDEX).is_file():
        raise UnknownNameError(f"{folder} has its weights as safetensors already; there is nothing to convert")
    index = folder / PICKLED_INDEX
    if index.is_file():
        try:
            named = sorted({str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{index} is damaged ({type(error).__name__}); fetch it again") from error
    else:
        found = pickled(folder)
        named = [PICKLED_SINGLE] if PICKLED_SINGLE in found else found
        if len(named) != 1:
            what = f"several pickles and no {PICKLED_INDEX} ({', '.join(named[:4])})" if named else f"no pickled weights ({PICKLED_SINGLE})"
            raise CheckpointError(f"{folder} has {what}; there is nothing to convert")
    for name in named:
        if not inside(folder, name, PICKLED).is_file():
            raise CheckpointError(f"{folder} lacks {name}, which {PICKLED_INDEX} names; fetch it again")
    return named


def convert(folder: Path, out: Path | None = None, progress: Callable[[int, int], object] | None = None, limit: int = SHARD) -> Converted:
    """Write a model's pickled weights as safetensors into a new folder, its settings and tokenizer beside them.

    The pickles are read in a process of its own, as tensors alone, by torch's restricted unpickler.

    Args:
        folder: of the model.
        out: the new folder; default FOLDER-safetensors beside it.
        progress: told bytes done and in all.
        limit: bytes of a shard.

    Raises:
        UnknownNameError, CheckpointError: as `sources`; if a pickle holds anything but tensors, or is damaged.
        StoreError: if the new folder is there already or cannot be written.
    """
    names, home = sources(folder), folder.resolve()
    place = (out or home.with_name(f"{home.name}-safetensors")).absolute()
    if place.exists() or place.is_symlink():
        raise StoreError(f"{place} is there already; give a folder that is not: --out FOLDER")
    total = sum((folder / name).stat().st_size for name in names)
    above = next(parent for parent in place.parents if parent.exists())
    if shutil.disk_usage(above).free < total:
        raise StoreError(f"cannot write {place}: it takes about {total / 2**30:.1f} GiB, more than the disk has free")
    with atomic_directory(place) as temporary:
        task = {"source": str(folder), "folder": str(home), "files": [str(home / name) for name in names], "out": str(temporary)}
        last = _listen(task | {"limit": limit}, place, lambda done: progress and progress(min(done, total), total))
        copied = _copy(folder, temporary, place)
    if progress:
        progress(total, total)
    return Converted(folder, place, tuple(names), last["shards"], copied, int(last["tensors"]), int(last["bytes"]))


def _listen(task: dict[str, Any], place: Path, progress: Callable[[int], object]) -> dict[str, Any]:
    """Start the process, pass its progress on, and give what it says at last."""
    last: dict[str, Any] = {}
    command = [sys.executable, "-c", BOOT.format(path=[path for path in sys.path if path])]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1"}
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(task) + "\n")
                process.stdin.flush()
            for line in process.stdout:
                last = json.loads(line)
                if "done" in last:
                    progress(int(last["done"]))
        except BaseException:
            process.kill()
            raise
    if "error" in last:
        raise CheckpointError(last["error"])
    if "errno" in last:
        raise explain(OSError(last["errno"], last["strerror"]), place)
    if "shards" not in last:
        raise CheckpointError(f"the process that reads {task['source']} ended early ({process.returncode}); is there enough memory?")
    return last


def _copy(folder: Path, out: Path, place: Path) -> tuple[str, ...]:
    """Settings and tokenizer files."""
    names = [
        path.name for path in sorted(folder.iterdir()) if path.suffix in KEPT and path.is_file() and not path.name.endswith(".index.json")
    ]
    try:
        for name in names:
            shutil.copyfile(inside(folder, name, KEPT), out / name)
    except OSError as error:
        raise explain(error, place) from error
    return tuple(names)
