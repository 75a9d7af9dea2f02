"""What commands share that can read a model block by block: whether one has to be, and doing it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wallprobe.cli import common, options, reading

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from wallprobe.hooks.attach.prompt_sets import PromptSet
    from wallprobe.models.streamed import Streamed
    from wallprobe.store.results import Result


@dataclass(frozen=True)
class Room:
    """In how much memory a model runs, and where.

    Attributes:
        stream: whether block by block; None: where it does not fit.
        budget: bytes; None where the system does not tell what is free.
        results: where what was done is kept meanwhile.
        device: what multiplies.
    """

    stream: bool | None
    budget: int | None
    results: Path | None
    device: str

    @classmethod
    def of(cls, stream: bool | None, memory: options.Memory, place: options.Place) -> "Room":
        """From options as typed, `stream` in the place of the typed one."""
        from wallprobe.hooks.gains.streaming import default_budget, parse_size

        device, room = place.pick(), memory.max_ram
        return cls(stream, parse_size(room) if room else default_budget(), place.results, device)

    def streams(self, name: str) -> bool:
        """Whether this model is to be streamed."""
        from wallprobe.hooks.gains.streaming import BASE
        from wallprobe.models.streamed import size_in_memory

        if self.stream is not None or self.budget is None:
            return bool(self.stream)
        size = size_in_memory(name)
        return size is not None and size + BASE > self.budget


def run(
    name: str,
    sources: options.Sources,
    room: Room,
    work: "Callable[[Streamed, PromptSet, Path, Callable[[int, int], None]], Result]",
    view: "Progress",
    bar: "TaskID",
    held: "Callable[[Streamed, PromptSet], int] | None" = None,
) -> "Result":
    """One model block by block, the memory it will take said beforehand.

    Args:
        name: a folder or hub id.
        sources: prompts, column and limit as typed.
        room: where.
        work: measures; given the model, the prompts, a folder for what was done, and whom to tell.
        view, bar: the progress.
        held: bytes that `work` holds besides.
    """
    from wallprobe.hooks.attach.prompt_sets import encode
    from wallprobe.hooks.gains.streaming import check_budget
    from wallprobe.models.limits import Limits
    from wallprobe.models.streamed import open_streamed
    from wallprobe.store.memory import GIB
    from wallprobe.store.results import default_root

    model, short = open_streamed(name), reading.short_name(name)
    try:
        chosen = encode(name, model.tokenizer, Limits(model.context, model.vocabulary), *sources)
        needed, whole = check_budget(model, chosen, room.budget, held(model, chosen) if held else 0), 4 * model.n_params
        told = f"streaming {short}: about {needed / GIB:.2f} GiB of memory, whole it would take {whole / GIB:.2f}"
        common.err().print(told, soft_wrap=True, markup=False)
        view.update(bar, description=f"stream {short} (blocks)", total=model.n_layers, completed=0)
        state = (room.results or default_root()) / ".streams" / f"{short}-{chosen.data_hash[:12]}"
        return work(model, chosen, state, common.follower(view, bar))
    finally:
        model.close()
