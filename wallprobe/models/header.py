"""A .gguf file's header, read once: transformers reads it for the settings, the weights and the tokenizer each, through numpy's memmap."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np


@functools.cache
def _reader_class() -> type[Any]:
    from gguf.gguf_reader import GGUFReader  # the class itself; `gguf.GGUFReader` is what `read_once` replaces

    class Reader(GGUFReader):  # type: ignore[misc]
        """The library's reader over a plain view: slices of a memmap, of which it takes ten a token, cost several times one of an array."""

        @property
        def data(self) -> Any:
            return self._bytes

        @data.setter
        def data(self, value: Any) -> None:
            self._bytes = value.view(np.ndarray)

    return Reader


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """While it lasts, a file's header is read at its first use and kept, and the library's tables of names are made once each."""
    import gguf

    library: Any = gguf
    if getattr(library.GGUFReader, "once", False):  # already within one
        yield
        return
    usual, table, readers = library.GGUFReader, library.get_tensor_name_map, dict[tuple[str, int, int], Any]()

    def reader(path: Any, mode: str = "r") -> Any:
        found = Path(path).stat()
        key = str(path), found.st_size, found.st_mtime_ns
        if key not in readers:
            readers[key] = _reader_class()(path, mode)
        return readers[key]

    reader.once = True  # type: ignore[attr-defined]
    library.GGUFReader, library.get_tensor_name_map = reader, functools.cache(table)
    try:
        yield
    finally:
        library.GGUFReader, library.get_tensor_name_map = usual, table
