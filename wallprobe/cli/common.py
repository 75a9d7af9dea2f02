"""What every command shares: options, printing, and the one place where --json leaves."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from wallprobe.store.results import Result
    from wallprobe.store.runs import Run

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout and nothing else there.")]
Runs = Annotated[Path | None, typer.Option("--runs", envvar="WALLPROBE_RUNS", help="Run store.", show_default="./runs")]
Results = Annotated[Path | None, typer.Option("--results", envvar="WALLPROBE_RESULTS", help="Result store.", show_default="./results")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.")]


def out() -> "Console":
    """The console for tables, on stdout."""
    from rich.console import Console

    return Console(highlight=False)


def err() -> "Console":
    """The console for progress and notes, on stderr."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def tell_damaged(found: "Iterable[tuple[object, str]]") -> list[dict[str, str]]:
    """Name what is left out, a line each on stderr; the same as JSON values."""
    listed = [{"name": one_line(name), "why": one_line(why)} for name, why in found]
    for item in listed:
        sys.stderr.write(f"wallprobe: left out, damaged: {item['name']}: {item['why']}\n")
    return listed


def one_line(text: object) -> str:
    """A text that stays on one line and can be printed, wherever it comes from."""
    return " ".join(str(text).split()).encode(errors="backslashreplace").decode()


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


@contextmanager
def progress() -> "Iterator[Progress]":
    """A progress view on stderr; silent where stderr is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = err()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as view:
        yield view


def show(view: "Progress", bar: "TaskID", done: int, total: int) -> None:
    """Set a bar of a progress view."""
    view.update(bar, completed=done, total=total)


def measure_runs(
    names: Sequence[str],
    what: str,
    measure: "Callable[[Run, str], Result]",
    *,
    device: str,
    runs: Path | None,
    results: Path | None,
) -> "list[Result]":
    """Measure runs one by one, with progress, and store the Results once all are there.

    Args:
        names: as typed.
        what: the instrument's name, for the progress view.
        measure: from a run and a torch device.
        device: as typed.
        runs: run store.
        results: Result store.
    """
    from wallprobe import models
    from wallprobe.store.runs import resolve_run

    place = models.pick_device(device)
    found = [resolve_run(name, runs) for name in names]
    for run in found:
        run.verify()
    measured = []
    with progress() as view:
        bar = view.add_task(what, total=len(found))
        for run in found:
            view.update(bar, description=f"{what} {run.name}")
            measured.append(measure(run, place))
            view.advance(bar)
    for result in measured:
        result.save(results)
    return measured


def print_measured(measured: "Sequence[Result]", json: bool, *tables: "Callable[[Result], Any]", above: "Sequence[Any]" = ()) -> None:
    """What a command that measures runs prints: one JSON object, or what stands `above`, then each Result's tables and finding."""
    if json:
        print_json(together(measured, "run"))
        return
    console = out()
    for table in above:
        console.print(table)
    for result in measured:
        for make in tables:
            console.print(make(result))
        console.print(f"{result.summary['finding']}\n", style="bold", soft_wrap=True)
    console.print("[dim]see them: wallprobe gallery --open[/dim]")


def together(results: "Sequence[Result]", column: str) -> dict[str, Any]:
    """What `--json` prints of one Result, or of several of one kind: then `summary` is a list of flat records, and each record of
    `values` has the subject in `column`."""
    if len(results) == 1:
        return results[0].to_json()
    objects = [result.to_json() for result in results]
    manifests = [item["manifest"] for item in objects]
    subjects = [item["summary"].get(column, manifest.get("subject")) for item, manifest in zip(objects, manifests, strict=True)]
    values = [{column: subject, **record} for subject, item in zip(subjects, objects, strict=True) for record in item["values"]]
    return {
        "kind": objects[0]["kind"],
        "summary": [item["summary"] for item in objects],
        "values": values,
        "manifest": {"parts": manifests},
    }
