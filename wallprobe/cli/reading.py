"""What commands that read models on prompts share: options, and loading and measuring one model after another."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from wallprobe.hooks.attach.prompt_sets import PromptSet
    from wallprobe.models import Loaded
    from wallprobe.store.results import Result

Models = Annotated[list[str], typer.Argument(help="Run names, hub ids, local folders or .gguf files.", metavar="MODEL...")]
Prompts = Annotated[
    str | None,
    typer.Option("--prompts", help="seed4 (default), single, ffn8, mixed, a .txt, .jsonl or .csv file, or datasets:ID. Not for runs."),
]
Column = Annotated[str | None, typer.Option("--column", help="Column of a table that holds the prompts.")]
Limit = Annotated[int | None, typer.Option("--limit", help="Prompts to read at most.", min=1)]


def measure(
    models: Sequence[str],
    what: str,
    instrument: "Callable[[Loaded, PromptSet, Callable[[int, int], None]], Result]",
    sources: tuple[str | None, str | None, int | None],
    *,
    device: str,
    runs: Path | None,
    results: Path | None,
    elsewhere: "Callable[[str, Progress, TaskID], Result | None] | None" = None,
) -> "list[Result]":
    """Every model in turn under one progress view; the Results are stored once all are there.

    Args:
        models, what, instrument, sources, device, runs, results: as typed, and what measures.
        elsewhere: measures a model that it does not load whole; None where it leaves it to `instrument`.
    """
    from wallprobe import models as loading
    from wallprobe.hooks.attach.prompt_sets import prompt_set, read_texts

    source, column, limit = sources
    if source is not None:
        read_texts(source, column, limit)  # a bad file is told before half a minute of loading
    place = loading.pick_device(device)
    measured = []
    with common.progress() as view:
        for name in models:
            short = short_name(name)
            bar = view.add_task(f"load {short}", total=None)
            found = None if elsewhere is None else elsewhere(name, view, bar)
            if found is not None:
                measured.append(found)
                continue
            loaded = loading.load(name, place, runs)
            chosen = prompt_set(loaded, source, column=column, limit=limit)
            view.update(bar, description=f"{what} {short}", total=len(chosen.tokens), completed=0)
            measured.append(instrument(loaded, chosen, follower(view, bar)))
            del loaded
    for result in measured:
        result.save(results)
    return measured


def short_name(name: str) -> str:
    """A model without the folders before it."""
    return name.rstrip("/").rpartition("/")[2] or name


def follower(view: "Progress", bar: "TaskID") -> Callable[[int, int], None]:
    """What an instrument tells (done, in all)."""

    def follow(done: int, total: int) -> None:
        view.update(bar, completed=done, total=total)

    return follow


def show(measured: "Sequence[Result]", json: bool, table: "Callable[[Result], Any]") -> None:
    """One JSON object, or each Result's table (or a table and lines below it) and finding."""
    if json:
        common.print_json(common.together(measured, "model"))
        return
    console = common.out()
    for result in measured:
        told = table(result)
        drawn, *lines = told if isinstance(told, tuple) else (told,)
        console.print(drawn)
        for line in lines:
            console.print(line, soft_wrap=True, markup=False)
        console.print(f"{result.summary['finding']}\n", style="bold", soft_wrap=True, markup=False)
    console.print("[dim]see them: wallprobe gallery --open[/dim]")
