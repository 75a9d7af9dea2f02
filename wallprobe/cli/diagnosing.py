"""What the diagnostics share: loading one model after another, and how their figures are printed."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from wallprobe.cli import common, options, reading

if TYPE_CHECKING:
    from wallprobe.hooks.attach.subjects import Subject, Wanted
    from wallprobe.store.results import Result

Made = TypeVar("Made")


def each(
    models: Sequence[str],
    what: str,
    want: "Wanted",
    measure: "Callable[[Subject, Callable[[int, int], None]], Made]",
    place: options.Place,
) -> list[Made]:
    """What `measure` says of every model in turn, under one progress view; a model is dropped before the next is loaded."""
    from wallprobe import models as loading
    from wallprobe.hooks.attach.subjects import subject
    from wallprobe.store.runs import find_run

    device = place.pick()
    for name in models:  # a misspelt run is told before the first is measured
        if not ("/" in name or Path(name).is_dir() or name.endswith(".gguf") or name.partition("@")[0] in loading.OWNERLESS):
            find_run(name, place.runs)
    made = []
    with common.progress() as view:
        for name in models:
            short = reading.short_name(name)
            bar = view.add_task(f"load {short}", total=None)
            found = subject(loading.load(name, device, place.runs), want)
            view.update(bar, description=f"{what} {short}", completed=0)
            made.append(measure(found, common.follower(view, bar)))
            del found
    return made


def finish(result: "Result", summaries: Sequence[dict[str, Any]], stores: options.Stores, shown: Iterable[Any]) -> None:
    """Store the Result of all models; then print one JSON object, or what is shown (tables, and lines of text) and each finding."""
    result.save(stores.results)
    if stores.json:
        common.print_json(result.to_json() | ({"summary": summaries} if len(summaries) > 1 else {}))
        return
    console = common.out()
    for part in shown:
        console.print(part, soft_wrap=isinstance(part, str), markup=not isinstance(part, str))
    for summary in summaries:
        console.print(summary["finding"], style="bold", soft_wrap=True, markup=False)
    console.print("[dim]see it: wallprobe gallery --open[/dim]")


def figure(value: float | None, form: str = "+.3f") -> str:
    """A figure, "n/a" for what is not there."""
    return "n/a" if value is None or value != value else format(value, form)


def numbers(text: str, name: str) -> list[float]:
    """Figures with commas between.

    Raises:
        ConfigError: for anything else.
    """
    from wallprobe.errors import ConfigError

    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(f"--{name} {text} is no list of numbers; give for instance 1e-3,1e-2") from error


def narrow(title: str) -> Any:
    """A table without frame and padding, for many columns."""
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0, pad_edge=False)


def short(names: Sequence[str], most: int = 10) -> dict[str, str]:
    """Names for columns: themselves where they are short, else letters."""
    if max(map(len, names)) <= most or len(names) > 26:
        return {name: name for name in names}
    return {name: chr(ord("A") + place) for place, name in enumerate(names)}
