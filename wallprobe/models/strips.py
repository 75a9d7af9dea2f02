"""Linear layers whose weights stay in their file: a strip of a matrix becomes fp32 where it is multiplied, then makes room.

A whole matrix in fp32 would be written to memory and read back for a few tokens' sake; a strip stays in a core's cache. Each core takes the
next strip when it is done with one, so that a core that is busy elsewhere delays one strip and not all. Passes of different length go
through a block side by side, and meet at its linear layers, so that each weight is cast once for all of them.
"""

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from wallprobe.models.products import available

T = TypeVar("T")
STRIP = 5 << 19  # numbers of a strip, 10 MiB in fp32: of 1 to 40 MiB the quickest, or nearly, for 8, 64 and 512 tokens of width 5120
TILE = 64  # outputs, of which a strip has a multiple: oneDNN's kernels take that many columns at a time


class Crew:
    """Threads that multiply, each on its own core with a buffer of its own; a context that ends them.

    Attributes:
        size: how many; 0 where a device multiplies whole matrices instead, which it keeps as long as their layer.
        device: that, or the CPU.
        meeting: of the passes that are under way side by side; None where there is one.
    """

    def __init__(self, size: int | None = None, device: str = "cpu") -> None:
        """Start them; by default as many as torch uses, and none for another device than the CPU."""
        self.device = torch.device(device)
        if size is None:
            size = torch.get_num_threads() if self.device.type == "cpu" else 0
        self.size = size
        self.meeting: Meeting | None = None
        self._own, self._pool = threading.local(), _single_threaded(size) if size else None

    def __enter__(self) -> "Crew":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()

    def each(self, work: Callable[[Any], None], parts: Iterable[Any]) -> None:
        """Do `work` on every part; the first error is raised."""

        def one(part: Any) -> None:
            with torch.inference_mode():
                work(part)

        list(map(one, parts) if self._pool is None else self._pool.map(one, parts))

    def side_by_side(self, passes: Sequence[Callable[[], T]]) -> list[T]:
        """What each pass returns; they meet at every `StripLinear`. The first error is raised, once all have ended."""
        if len(passes) == 1 or not self.size:
            return [one() for one in passes]
        meeting = self.meeting = Meeting(len(passes))

        def one(place: int) -> T:
            try:
                with torch.inference_mode():
                    meeting.arrive(place)
                    return passes[place]()
            finally:
                meeting.leave()

        with _single_threaded(len(passes)) as pool:
            under_way = [pool.submit(one, place) for place in range(len(passes))]
        self.meeting = None
        return [one.result() for one in under_way]

    def cast(self, strip: Tensor) -> Float[Tensor, "rows columns"]:
        """A strip in fp32, in this thread's buffer; the next one overwrites it. One that is fp32 and contiguous is itself."""
        if self.device.type != "cpu":
            return strip.to(self.device).float()
        if strip.dtype == torch.float32 and strip.is_contiguous():
            return strip
        buffer: Tensor | None = getattr(self._own, "buffer", None)
        if buffer is None or buffer.numel() < strip.numel():
            buffer = self._own.buffer = torch.empty(max(STRIP, strip.numel()))
        return buffer[: strip.numel()].view(strip.shape).copy_(strip)


def _single_threaded(size: int) -> ThreadPoolExecutor:
    """A pool whose threads torch does not split further, and the caller's setting as it was."""
    whole, together = torch.get_num_threads(), threading.Barrier(size)

    def begin() -> None:
        torch.set_num_threads(1)
        torch.get_num_threads()  # a thread takes over what was set last when it first asks, and never again

    pool = ThreadPoolExecutor(size, thread_name_prefix="strips", initializer=begin)
    list(pool.map(lambda _: together.wait(), range(size)))  # all have begun
    torch.set_num_threads(whole)  # what threads begun later start with
    return pool


@dataclass
class _Brought:
    """Rows that wait for their product.

    Attributes:
        place: of the pass they are of.
    """

    place: int
    layer: "StripLinear"
    rows: Tensor
    made: Tensor | None = None
    error: Exception | None = None


class Meeting:
    """Where passes side by side bring what they multiply: once all under way wait, each weight is gone through once for all of its rows.

    Passes that take different ways through a block (experts) do not wait for each other's layers: whoever waits is served.
    """

    def __init__(self, size: int) -> None:
        """Of so many passes."""
        self._size, self._waiting = size, list[_Brought]()
        self._changed, self._own = threading.Condition(), threading.local()

    def arrive(self, place: int) -> None:
        """This thread takes part, in that place: rows are joined in the order of places, so that the same bits come out."""
        self._own.place = place

    def leave(self) -> None:
        """This thread's pass has ended."""
        with self._changed:
            self._size -= 1
            self._serve()

    def bring(self, layer: "StripLinear", rows: Tensor) -> Tensor:
        """The product, once everybody else waits as well."""
        brought = _Brought(self._own.place, layer, rows)
        with self._changed:
            self._waiting.append(brought)
            self._serve()
            while brought.made is None and brought.error is None:
                self._changed.wait()
        if brought.made is None:
            raise brought.error or AssertionError
        return brought.made

    def _serve(self) -> None:
        """Multiply for all, where all wait; done by the last to come, who holds the lock."""
        if len(self._waiting) < self._size or not self._waiting:
            return
        layers = {id(one.layer): one.layer for one in self._waiting}
        for key, layer in layers.items():
            own = sorted((one for one in self._waiting if id(one.layer) == key), key=lambda one: one.place)
            try:
                made = torch.split(layer.product(torch.cat([one.rows for one in own])), [len(one.rows) for one in own])
            except Exception as error:
                for one in own:
                    one.error = error
            else:
                for one, part in zip(own, made, strict=True):
                    one.made = part
        self._waiting.clear()
        self._changed.notify_all()


class StripLinear(nn.Module):
    """A linear layer on a weight of any floating type, multiplied in fp32 strip by strip.

    Attributes:
        stored: `[out, in]`, or `[in, out]` where `transposed` (GPT-2's Conv1D).
        bias: `[out]` fp32, or None.
    """

    def __init__(self, stored: Tensor, bias: Tensor | None, crew: Crew, *, transposed: bool = False) -> None:
        """Keep what is needed; nothing is copied."""
        super().__init__()
        self.stored, self.bias, self.transposed, self._crew = stored, bias, transposed, crew
        self.out_features, self.in_features = reversed(stored.shape) if transposed else stored.shape
        self._placed: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The whole weight in fp32, for code that asks for it: made anew each time."""
        return self.stored.float()

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """x weight^T + bias."""
        rows, meeting = x.reshape(-1, self.in_features), self._crew.meeting
        made = self.product(rows) if meeting is None else meeting.bring(self, rows)
        return made.view(*x.shape[:-1], self.out_features)

    def product(self, rows: Float[Tensor, "row in"]) -> Float[Tensor, "row out"]:
        """rows weight^T + bias, whoever they are of."""
        if not self._crew.size:
            if self._placed is None:
                self._placed = self.stored.to(self._crew.device).float()
            return F.linear(rows, self._placed.T if self.transposed else self._placed, self.bias)
        made, height = rows.new_empty(len(rows), self.out_features), self._height()
        self._crew.each(lambda start: self._strip(rows, made, start, height), range(0, self.out_features, height))
        return made

    def _height(self) -> int:
        """Outputs of a strip: as many as fit the cache, and no fewer strips than threads."""
        wanted = min(STRIP // self.in_features, -(-self.out_features // self._crew.size))
        return max(TILE, wanted // TILE * TILE)

    def _strip(self, rows: Tensor, made: Tensor, start: int, height: int) -> None:
        stop = min(start + height, self.out_features)
        bias = None if self.bias is None else self.bias[start:stop]
        if self.transposed:
            made[:, start:stop] = F.linear(rows, self._crew.cast(self.stored[:, start:stop]).T, bias)
        elif available():
            made[:, start:stop] = torch.ops.mkldnn._linear_pointwise(rows, self._crew.cast(self.stored[start:stop]), bias, "none", [], "")
        else:
            made[:, start:stop] = F.linear(rows, self._crew.cast(self.stored[start:stop]), bias)
