"""Whether what is typed names runs, which instruments measure on their task, or other models, which they read on text."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wallprobe.cli import common, options
from wallprobe.cli.reading import short_name
from wallprobe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from wallprobe.models import Loaded
    from wallprobe.store.results import Result

    Instrument = Callable[[Loaded, Any, Callable[[int, int], None]], Result]


def names_run(name: str) -> bool:
    """Whether `models.load` would look for a run of that name: no `.gguf` file, no folder but a run's, no hub id."""
    from wallprobe.models.loading import OWNERLESS
    from wallprobe.store.runs import is_run_folder

    path = Path(name)
    if path.suffix == ".gguf":
        return False
    if is_run_folder(path):
        return True
    return not path.is_dir() and "/" not in name and name.partition("@")[0] not in OWNERLESS


def all_runs(names: Sequence[str]) -> bool:
    """Whether all are runs; False where none is.

    Raises:
        ConfigError: for runs beside other models, which are measured on other things.
    """
    found = [name for name in names if names_run(name)]
    if found and len(found) < len(names):
        other = next(name for name in names if name not in found)
        raise ConfigError(f"{found[0]} is a run, {other} is none: they are measured on other things; give them in two commands")
    return bool(found)


def refuse(kind: str, **given: Any) -> None:
    """Refuse options that are for the other kind of subject.

    Args:
        kind: what the subject is, for messages.
        given: option (underscores for hyphens) -> what was typed, None where it was not.

    Raises:
        ConfigError: naming the first one that was typed.
    """
    for name, value in given.items():
        if value is not None:
            raise ConfigError(f"--{name.replace('_', '-')} is not for {kind}; leave it out")


def measure(
    names: Sequence[str],
    what: str,
    instrument: "Instrument",
    sources: "options.Sources | None",
    labels: Path | None,
    place: options.Place,
    tell: "Callable[[Result], Any]",
) -> None:
    """Every model in turn on prompts or on labelled text, a progress bar each; stored and printed once all are there.

    Args:
        names: as typed.
        what: the instrument's name, for the progress view.
        instrument: measures a model on its prompts, or, with `labels`, on its labelled text.
        sources: prompts.
        labels: a file of labelled text instead.
        place: device and stores.
        tell: of a Result, a table, or a tuple of it and of lines below it.
    """
    from wallprobe import models as loading
    from wallprobe.hooks.attach import labelled

    if labels is not None:
        if sources is not None:
            refuse("labelled text (--labels)", prompts=sources.prompts, limit=sources.limit)
        labelled.check(labels)
    elif sources is not None:
        sources.check()
    device, measured = place.pick(), []
    with common.progress() as view:
        for name in names:
            bar = view.add_task(f"load {short_name(name)}", total=None)
            loaded = loading.load(name, device, place.runs)
            read: Any = labelled.read(loaded, labels) if labels is not None else sources.of(loaded) if sources is not None else None
            view.update(bar, description=f"{what} {short_name(name)}", total=None, completed=0)
            measured.append(instrument(loaded, read, common.follower(view, bar)))
            del loaded
    common.finish_each(measured, "model", place, common.printing(tell))
