"""A .gguf file's tensors under the names a Hugging Face model gives them, unpacked to fp32 when they are asked for."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wallprobe.errors import CheckpointError
from wallprobe.models.header import read_once
from wallprobe.store.storage import read_ahead


class Quantised:
    """What `shards.Shards` is for safetensors, of one .gguf file.

    Attributes:
        folder: where it is.
        files: name -> file, the one.
        shapes: name -> shape, as unpacked.
        sizes: name -> bytes in the file.
        dtypes: none, for what is stored is no torch type.
        file_bytes: file -> its size.
    """

    def __init__(
        self, path: Path, names: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]], undo: Callable[[np.ndarray, str], np.ndarray]
    ) -> None:
        """Open it; nothing but its header is read.

        Args:
            path: the file.
            names: what the file calls a tensor -> what the model does.
            shapes: of the model's tensors.
            undo: takes back what the conversion to GGUF did to an unpacked tensor, given its name in the file.

        Raises:
            CheckpointError: if it is no GGUF file, or a damaged one.
        """
        from gguf import GGUFReader

        self.folder, self._undo = path.parent, undo
        try:
            found: Any = GGUFReader(path).tensors
        except Exception as error:
            raise CheckpointError(f"{path} is damaged ({error}); fetch it again") from error
        self._tensors = {names[tensor.name]: tensor for tensor in found if tensor.name in names}
        self.files = dict.fromkeys(self._tensors, path.name)
        self.shapes = {name: shapes[name] for name in self._tensors if name in shapes}
        self.sizes = {name: int(tensor.n_bytes) for name, tensor in self._tensors.items()}
        self.dtypes: dict[str, torch.dtype] = {}
        self.file_bytes = {path.name: path.stat().st_size}

    def close(self) -> None:
        """Let go of the file."""
        self._tensors.clear()

    def tensor(self, name: str, dtype: torch.dtype | None = torch.float32) -> Tensor:
        """A whole tensor; fp32 where no type is asked for."""
        from gguf import dequantize

        stored = self._tensors[name]
        unpacked = np.ascontiguousarray(self._undo(dequantize(stored.data, stored.tensor_type), stored.name), dtype=np.float32)
        found = torch.from_numpy(unpacked if unpacked.flags.writeable else unpacked.copy())
        return found if dtype is None else found.to(dtype)

    def rows(self, name: str, wanted: Sequence[int]) -> Tensor:
        """Some rows of an embedding, fp32; only these are unpacked."""
        from gguf import dequantize

        stored = self._tensors[name]
        return torch.from_numpy(np.array(dequantize(stored.data[list(wanted)], stored.tensor_type), dtype=np.float32))

    def span(self, name: str) -> tuple[str, int, int]:
        """File of a tensor, its first byte there, and its bytes."""
        return self.files[name], int(self._tensors[name].data_offset), self.sizes[name]

    def will_need(self, names: Iterable[str]) -> None:
        """Ask the system to read these ahead; without effect where it cannot."""
        for file, start, size in sorted(self.span(name) for name in names):
            read_ahead(self.folder / file, start, size)


def unpacked_bytes(path: Path) -> int | None:
    """What a .gguf file's tensors take in fp32; None where the file does not tell, which its loading says better."""
    import gguf

    try:
        with read_once():
            found: Any = gguf.GGUFReader(path).tensors
        return 4 * sum(int(tensor.n_elements) for tensor in found)
    except Exception:
        return None
