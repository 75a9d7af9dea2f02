"""What the four diagnostics share: their options, and loading one model after another."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from wallprobe.cli import common, reading

if TYPE_CHECKING:
    from wallprobe.hooks.attach.subjects import Subject, Wanted

Models = Annotated[
    list[str], typer.Argument(help="Run names or folders, hub ids, local folders or .gguf files; a table row each.", metavar="MODEL...")
]
Prompts = Annotated[str | None, typer.Option("--prompts", help="mixed (default), seed4, a .txt, .jsonl or .csv file. Not for runs.")]
Text = Annotated[str | None, typer.Option("--text", help="Cut windows from this text file instead. Not for runs.")]
Batches = Annotated[int, typer.Option("--batches", help="Batches to estimate on.")]
Size = Annotated[int | None, typer.Option("--size", help="Sequences a batch.", show_default="32 of a task, 4 windows, all prompts")]
Length = Annotated[int | None, typer.Option("--length", help="Tokens of a window of text.", show_default="64")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of batches and of whatever an estimator draws.")]

Made = TypeVar("Made")


def wanted(prompts: str | None, text: str | None, batches: int, size: int | None, length: int | None, seed: int) -> "Wanted":
    """The options as one value; a file that is not there is told before a model is loaded."""
    from wallprobe.hooks.attach.prompt_texts import read_texts
    from wallprobe.hooks.attach.subjects import Wanted, read_text

    made = Wanted(batches, size, length, prompts, text, seed=seed)
    if text is not None:
        read_text(text)
    if prompts is not None:
        read_texts(prompts)
    return made


def each(
    models: Sequence[str],
    what: str,
    want: "Wanted",
    measure: "Callable[[Subject, Callable[[int, int], None]], Made]",
    *,
    device: str,
    runs: Path | None,
) -> list[Made]:
    """What `measure` says of every model in turn, under one progress view; a model is dropped before the next is loaded."""
    from wallprobe import models as loading
    from wallprobe.hooks.attach.subjects import subject
    from wallprobe.store.runs import find_run

    place = loading.pick_device(device)
    for name in models:  # a misspelt run is told before the first is measured
        if not ("/" in name or Path(name).is_dir() or name.endswith(".gguf") or name.partition("@")[0] in loading.OWNERLESS):
            find_run(name, runs)
    made = []
    with common.progress() as view:
        for name in models:
            short = reading.short_name(name)
            bar = view.add_task(f"load {short}", total=None)
            found = subject(loading.load(name, place, runs), want)
            view.update(bar, description=f"{what} {short}", completed=0)
            made.append(measure(found, reading.follower(view, bar)))
            del found
    return made


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
