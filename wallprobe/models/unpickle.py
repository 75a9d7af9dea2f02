"""A process of its own that reads pickled weights as tensors alone and writes them as safetensors; `convert` starts it.

It takes one JSON object on stdin and says on stdout, a JSON object a line, how far it is, what it wrote, or why not. What a pickle may
name is torch's own short list (`weights_only`); the guard refuses processes, the network and Python's own unpickler beside it.
"""

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wallprobe.errors import CheckpointError, WallprobeError
from wallprobe.models.guard import reading
from wallprobe.models.shards import INDEX, SINGLE

WRAPPED = ("state_dict", "model_state_dict", "model")  # what trainings wrap weights in
NAMED = re.compile(r"GLOBAL ([\w.]+)")


def tensors_of(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickled checkpoint by name, in its order.

    Raises:
        CheckpointError: if it is damaged, or holds anything but tensors.
    """
    try:
        try:
            held: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # the format before torch 1.6 is no zip file and cannot be mapped
            held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        named = NAMED.search(str(error))
        why = f"it asks for {named[1]}, which is code" if named else "it is damaged, or no checkpoint of torch's"
        raise CheckpointError(f"{path} does not hold tensors alone ({why}); it is not converted") from error
    if isinstance(held, dict):
        held = next((held[name] for name in WRAPPED if isinstance(held.get(name), dict)), held)
    if not isinstance(held, dict) or not held:
        raise CheckpointError(f"{path} holds a {type(held).__name__} and no tensors by name; it is not converted")
    for name, value in held.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path} holds {name!r}, a {type(value).__name__} and no tensor; it is not converted")
        if value.layout != torch.strided or value.is_quantized:
            raise CheckpointError(f"{path} holds {name!r} in a packed layout, which safetensors does not have; it is not converted")
    return {name: value.detach() for name, value in held.items()}


def _pieces(tensors: Mapping[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    """Tensors in groups of at most so many bytes."""
    group: dict[str, Tensor] = {}
    held = 0
    for name, value in tensors.items():
        if group and held + value.nbytes > limit:
            yield group
            group, held = {}, 0
        group[name], held = value, held + value.nbytes
    if group:
        yield group


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, none in another's memory: tied weights are written once for each of their names."""
    seen: set[int] = set()
    made: dict[str, Tensor] = {}
    for name, value in tensors.items():
        place = value.untyped_storage().data_ptr()
        alone = value.is_contiguous() and place not in seen and value.untyped_storage().nbytes() == value.nbytes
        made[name] = value if alone else value.clone(memory_format=torch.contiguous_format)
        seen.add(place)
    return made


def rewrite(files: list[Path], out: Path, limit: int) -> Iterator[dict[str, Any]]:
    """Write the tensors of pickled files as safetensors.

    Args:
        files: pickled checkpoints.
        out: an empty folder.
        limit: bytes of a shard.

    Yields:
        `{"done": bytes}` after every shard, at last `{"shards": {file: tensors}, "tensors": n, "bytes": n}`.

    Raises:
        CheckpointError: if a file holds anything but tensors, or a tensor is in two of them.
    """
    from safetensors.torch import save_file

    written: list[tuple[Path, list[str]]] = []
    known: set[str] = set()
    done = 0
    for path in files:
        for piece in _pieces(tensors_of(path), limit):
            twice = sorted(known & piece.keys())
            if twice:
                raise CheckpointError(f"{path} holds {twice[0]!r}, which a file before it holds too; it is not converted")
            known |= piece.keys()
            place = out / f".{len(written)}.safetensors"
            save_file(_apart(piece), place, metadata={"format": "pt"})
            with place.open("rb") as handle:
                os.fsync(handle.fileno())
            written.append((place, list(piece)))
            done += sum(value.nbytes for value in piece.values())
            yield {"done": done}
    count = len(written)
    names = [SINGLE] if count == 1 else [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    for (place, _), name in zip(written, names, strict=True):
        place.rename(out / name)
    if count > 1:
        where = {tensor: name for (_, held), name in zip(written, names, strict=True) for tensor in held}
        whole = {"metadata": {"total_size": done}, "weight_map": dict(sorted(where.items()))}
        (out / INDEX).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")
    yield {"shards": {name: len(held) for (_, held), name in zip(written, names, strict=True)}, "tensors": len(known), "bytes": done}


def _say(event: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


def main() -> None:
    """The process: told on stdin what to do."""
    told = json.loads(sys.stdin.readline())
    parent = os.getppid()
    try:
        with reading(told["source"], Path(told["folder"])):
            for event in rewrite([Path(name) for name in told["files"]], Path(told["out"]), int(told["limit"])):
                if os.getppid() != parent:
                    return
                _say(event)
    except WallprobeError as error:
        _say({"error": str(error)})
    except OSError as error:
        _say({"errno": error.errno or 0, "strerror": error.strerror or str(error)})
