"""What commands that read models on prompts share: loading and measuring one model after another."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from wallprobe.cli import common, options

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from wallprobe.hooks.attach.prompt_sets import PromptSet
    from wallprobe.models import Loaded
    from wallprobe.store.results import Result


def measure(
    models: Sequence[str],
    what: str,
    instrument: "Callable[[Loaded, PromptSet, Callable[[int, int], None]], Result]",
    sources: options.Sources,
    place: options.Place,
    table: "Callable[[Result], Any]",
    elsewhere: "Callable[[str, Progress, TaskID], Result | None] | None" = None,
) -> None:
    """Every model in turn under one progress view; the Results are stored and printed once all are there.

    Args:
        models, what, instrument, sources, place: as typed, and what measures.
        table: of a Result; or a tuple of it and of lines below it.
        elsewhere: measures a model that it does not load whole; None where it leaves it to `instrument`.
    """
    from wallprobe import models as loading

    sources.check()
    device = place.pick()
    measured = []
    with common.progress() as view:
        for name in models:
            short = short_name(name)
            bar = view.add_task(f"load {short}", total=None)
            found = None if elsewhere is None else elsewhere(name, view, bar)
            if found is not None:
                measured.append(found)
                continue
            loaded = loading.load(name, device, place.runs)
            chosen = sources.of(loaded)
            view.update(bar, description=f"{what} {short}", total=len(chosen.tokens), completed=0)
            measured.append(instrument(loaded, chosen, common.follower(view, bar)))
            del loaded
    common.finish_each(measured, "model", place, common.printing(table))


def short_name(name: str) -> str:
    """A model without the folders before it."""
    return name.rstrip("/").rpartition("/")[2] or name
