"""The next block's tensors come from disk while one is multiplied: through the system's cache, or past it where the cache cannot hold them.

A checkpoint larger than memory leaves nothing of itself in the cache for the next pass, and putting it there costs processor
time: it is read straight into two buffers in turn, as it lies in the files.
"""

import mmap
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from wallprobe.errors import CheckpointError
from wallprobe.models.quantised import Quantised
from wallprobe.models.shards import Shards

PAGE, CHUNK, READERS = 4096, 8 << 20, 4  # bytes; four readers get what the disk gives
GAP = 1 << 20  # bytes between two tensors that are read along rather than skipped


class Ahead:
    """Blocks' tensors in turn, of the files' own types; a context that ends its threads.

    Attributes:
        buffer_bytes: of each of its two buffers; 0 where the system's cache is the buffer.
    """

    def __init__(self, shards: Shards | Quantised, blocks: Sequence[Sequence[str]], *, past_cache: bool) -> None:
        """Begin with the first.

        Args:
            shards: the files.
            blocks: the names of each block's tensors.
            past_cache: read them into buffers of its own; see `can_pass_cache`.
        """
        self._shards, self._blocks = shards, [sorted(names, key=shards.span) for names in blocks]
        self._next, self._pool, self._readers = 0, ThreadPoolExecutor(1, "ahead"), ThreadPoolExecutor(READERS, "disk")
        self.buffer_bytes = buffer_bytes(shards, blocks) if past_cache else 0
        self._buffers = [_buffer(self.buffer_bytes) for _ in range(2)] if past_cache else []
        self._files: dict[str, int] = {}
        self._coming = self._ask()

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._readers.shutdown()
        for descriptor in self._files.values():
            os.close(descriptor)

    def take(self) -> dict[str, Tensor]:
        """The next block's tensors by name; those of the block before are overwritten from now on.

        Raises:
            CheckpointError: if a file cannot be read.
        """
        if self._coming is None:
            raise IndexError("every block was taken")
        found = self._coming.result()
        self._coming = self._ask()
        return found

    def _ask(self) -> "Future[dict[str, Tensor]] | None":
        if self._next == len(self._blocks):
            return None
        self._next += 1
        return self._pool.submit(self._fetch, self._next - 1)

    def _fetch(self, block: int) -> dict[str, Tensor]:
        names = self._blocks[block]
        if not self._buffers:
            self._shards.will_need(names)
            return dict(zip(names, self._readers.map(lambda name: self._shards.tensor(name, None), names), strict=True))
        buffer, found, place, parts = self._buffers[block % 2], {}, 0, []
        for file, low, high in extents(self._shards, names):
            for name in names:
                own, start, size = self._shards.span(name)
                if own == file and low <= start < high:
                    dtype, shape = self._shards.dtypes[name], self._shards.shapes[name]
                    found[name] = torch.frombuffer(buffer, dtype=dtype, count=size // dtype.itemsize, offset=place + start - low).view(
                        shape
                    )
            parts += [(file, at, min(CHUNK, high - at), place + at - low) for at in range(low, high, CHUNK)]
            place += high - low
        list(self._readers.map(lambda part: self._read(buffer, *part), parts))
        return found

    def _read(self, buffer: mmap.mmap, file: str, start: int, size: int, place: int) -> None:
        wanted = min(size, self._shards.file_bytes[file] - start)  # the last page of a file is not whole
        view, done = memoryview(buffer)[place : place + size], 0
        while done < wanted:
            try:
                got = os.preadv(self._opened(file), [view[done:]], start + done)
            except OSError as error:
                raise CheckpointError(f"shard {file} of {self._shards.folder} cannot be read ({error}); fetch it again") from error
            if not got:
                raise CheckpointError(f"shard {file} of {self._shards.folder} ended {wanted - done} bytes early; fetch it again")
            done += got

    def _opened(self, file: str) -> int:
        if file not in self._files:
            made = os.open(self._shards.folder / file, os.O_RDONLY | os.O_DIRECT)
            if self._files.setdefault(file, made) != made:  # another reader was first
                os.close(made)
        return self._files[file]


def _buffer(size: int) -> mmap.mmap:
    """Page-aligned memory, in large pages where the system has them."""
    made = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        made.madvise(mmap.MADV_HUGEPAGE)
    return made


def extents(shards: Shards | Quantised, names: Sequence[str]) -> list[tuple[str, int, int]]:
    """Stretches of files that hold these tensors, in whole pages: file, first byte, end."""
    found: list[tuple[str, int, int]] = []
    for file, start, size in sorted(shards.span(name) for name in names):
        low, high = start // PAGE * PAGE, -(-(start + size) // PAGE) * PAGE
        if found and found[-1][0] == file and low - found[-1][2] < GAP:
            found[-1] = (file, found[-1][1], max(high, found[-1][2]))
        else:
            found.append((file, low, high))
    return found


def buffer_bytes(shards: Shards | Quantised, blocks: Sequence[Sequence[str]]) -> int:
    """What the largest block takes in a buffer."""
    return max(sum(high - low for _, low, high in extents(shards, names)) for names in blocks)


def can_pass_cache(shards: Shards | Quantised) -> bool:
    """Whether this system reads these files past its cache, and every tensor starts where its type may."""
    if not hasattr(os, "O_DIRECT") or not hasattr(os, "preadv"):
        return False
    if any(name not in shards.dtypes or shards.span(name)[1] % shards.dtypes[name].itemsize for name in shards.files):
        return False
    try:
        return all(_opens_directly(shards.folder / name) for name in set(shards.files.values()))
    except OSError:
        return False


def _opens_directly(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        return os.preadv(descriptor, [mmap.mmap(-1, PAGE)], 0) > 0
    finally:
        os.close(descriptor)
