"""A checkpoint's safetensors files, opened and not read: tensors, or rows of them, come from disk when they are asked for."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wallprobe.errors import CheckpointError
from wallprobe.store.storage import read_ahead

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class Shards:
    """Every tensor of a folder by name; a context that closes its files.

    Attributes:
        folder: where they are.
        files: name -> file.
        shapes: name -> shape.
        sizes: name -> bytes on disk.
        dtypes: name -> type on disk, of those in `DTYPES`.
        file_bytes: file -> its size.
    """

    def __init__(self, folder: Path) -> None:
        """Open every shard.

        Raises:
            CheckpointError: if a shard is missing or damaged, or the index names what is not there.
        """
        self.folder = folder
        self._stack = ExitStack()
        self._open: dict[str, Any] = {}
        self._spans: dict[str, tuple[int, int]] = {}
        index = _index(folder)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.sizes: dict[str, int] = {}
        self.files: dict[str, str] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self.file_bytes: dict[str, int] = {}
        for name in sorted(set(index.values())) if index is not None else [SINGLE]:
            self._add(name)
        lost = sorted(name for name, file in (index or {}).items() if self.files.get(name) != file)
        if lost:
            self.close()
            raise CheckpointError(
                f"{INDEX} of {folder} says {(index or {})[lost[0]]} holds {lost[0]}, which it does not ({len(lost)} such); fetch it again"
            )

    def _add(self, name: str) -> None:
        from safetensors import safe_open

        path = self.folder / name
        try:
            inside(self.folder, name)
        except CheckpointError:
            self.close()
            raise
        if not path.is_file():
            self.close()
            raise CheckpointError(f"{self.folder} lacks the shard {name}; fetch it again")
        try:
            handle: Any = self._stack.enter_context(safe_open(path, "pt"))
            header, start = _header(path)
        except Exception as error:
            self.close()
            raise CheckpointError(f"shard {name} of {self.folder} is damaged ({error}); fetch it again") from error
        self._open[name], self.file_bytes[name] = handle, path.stat().st_size
        for key, entry in header.items():
            low, high = entry["data_offsets"]
            self.shapes[key], self.files[key], self.sizes[key] = tuple(entry["shape"]), name, high - low
            self._spans[key] = (start + low, high - low)
            if entry["dtype"] in DTYPES:
                self.dtypes[key] = DTYPES[entry["dtype"]]

    def __enter__(self) -> "Shards":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; tensors already given out stay."""
        self._stack.close()
        self._open.clear()

    def tensor(self, name: str, dtype: torch.dtype | None = torch.float32) -> Tensor:
        """A whole tensor; of its own dtype, or of None, it stays in the file's own pages and is read where it is used."""
        found: Tensor = self._open[self.files[name]].get_tensor(name)
        return found if dtype is None else found.to(dtype)

    def span(self, name: str) -> tuple[str, int, int]:
        """File of a tensor, its first byte there, and its bytes."""
        return self.files[name], *self._spans[name]

    def rows(self, name: str, wanted: Sequence[int]) -> Tensor:
        """Some rows of a matrix, fp32; only these are read."""
        part = self._open[self.files[name]].get_slice(name)
        return torch.cat([part[row : row + 1] for row in wanted]).float()

    def will_need(self, names: Iterable[str]) -> None:
        """Ask the system to read these ahead, while something else is computed; without effect where it cannot."""
        for file, start, size in sorted(self.span(name) for name in names):
            read_ahead(self.folder / file, start, size)


def _index(folder: Path) -> Mapping[str, str] | None:
    """name -> shard, None for a single file.

    Raises:
        CheckpointError: if there is neither, or the index is damaged.
    """
    path = folder / INDEX
    if not path.is_file():
        if (folder / SINGLE).is_file():
            return None
        raise CheckpointError(f"{folder} has neither {INDEX} nor {SINGLE}; only safetensors can be streamed: model.save_pretrained(folder)")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        return {str(name): str(file) for name, file in found.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is damaged ({error!r}); fetch it again") from error


def index_files(folder: Path) -> list[str]:
    """The shards that a folder's index names.

    Raises:
        CheckpointError: if the index is damaged.
    """
    return sorted(set((_index(folder) or {}).values()))


def inside(folder: Path, name: str, suffixes: tuple[str, ...] = (".safetensors",)) -> Path:
    """A file of weights by its name in an index, which may come from anywhere: it has to be a file of that folder.

    In the hub's cache the files of `models--NAME/snapshots/REVISION` are links into that model's `blobs`, and these may be links into
    the whole cache's (huggingface_hub 2 keeps a file of several models once); both count as the folder's own.

    Raises:
        CheckpointError: if it is of another kind, or lies elsewhere, by its name or as a link.
    """
    path = Path(name)
    if path.suffix not in suffixes:
        raise CheckpointError(f"{folder} names {name!r} as a file of weights; only {', '.join(suffixes)} is read")
    home = folder.resolve()
    model = home.parent.parent
    cached = home.parent.name == "snapshots" and model.name.startswith("models--")
    homes = (home, model / "blobs", model.parent / "blobs") if cached else (home,)
    real = (folder / path).resolve()
    if path.is_absolute() or ".." in path.parts or not any(real.is_relative_to(one) for one in homes):
        where = "" if str(real) == name else f" ({real})"
        raise CheckpointError(f"{folder} names {name!r}{where} as a file of weights, outside the folder; put the file itself there")
    return folder / path


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """A safetensors header without its metadata, and where the data start."""
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length
