"""What commands share: measuring runs, storing, printing, and the one place where --json leaves."""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from wallprobe.cli import options

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

    from wallprobe.store.results import Result
    from wallprobe.store.runs import Run


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
    plain = (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
    sys.stdout.write(json.dumps(value, indent=1, allow_nan=False, ensure_ascii=plain) + "\n")


@contextmanager
def progress() -> "Iterator[Progress]":
    """A progress view on stderr; silent where stderr is no terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    console = err()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as view:
        yield view


def follower(view: "Progress", bar: "TaskID") -> Callable[[int, int], None]:
    """What an instrument tells (done, in all)."""
    return lambda done, total: view.update(bar, completed=done, total=total)


def group(commands: Mapping[str, Callable[..., None]], only: str | None, **settings: Any) -> typer.Typer:
    """A command of these commands, or of one of them alone; `settings` are typer's."""
    made = typer.Typer(add_completion=False, pretty_exceptions_enable=False, **settings)
    for name, command in commands.items():
        if only in (None, name):
            made.command(name)(options.unfolded(command))
    return made


def measure_runs(
    names: Sequence[str],
    what: str,
    measure: "Callable[[Run, str, Callable[..., None]], Result]",
    place: options.Place,
    check: "Callable[[Run], Any]" = lambda run: None,
) -> "list[Result]":
    """Measure runs one by one, a progress bar each.

    Args:
        names: as typed.
        what: the instrument's name, for the progress view.
        measure: from a run, a torch device and what changes the run's bar (`completed`, `total`, `description`).
        place: where the runs are.
        check: refuses a run before the first is measured.
    """
    from wallprobe.store.runs import resolve_run

    device = place.pick()
    found = [resolve_run(name, place.runs) for name in names]
    for run in found:
        run.verify()
        check(run)
    measured = []
    with progress() as view:
        for run in found:
            bar = view.add_task(f"{what} {run.name}", total=None)
            measured.append(measure(run, device, partial(view.update, bar)))
            view.update(bar, total=1, completed=1)
    return measured


def finish(result: "Result", stores: options.Stores, tell: "Callable[[Console, Result], None]") -> None:
    """Store one Result; then print one JSON object, or what `tell` prints, the finding, and where it is."""
    stored = result.save(stores.results)
    if stores.json:
        print_json(result.to_json())
        return
    console = out()
    tell(console, result)
    console.print(f"\n{result.summary['finding']}", style="bold", soft_wrap=True, markup=False)
    console.print(f"[dim]stored in {stored}; see it: wallprobe gallery --open[/dim]", soft_wrap=True)


def finish_each(
    measured: "Sequence[Result]",
    column: str,
    stores: options.Stores,
    tell: "Callable[[Console, Result], None]",
    *,
    above: Sequence[Any] = (),
    see: str = "them",
) -> None:
    """Store Results of one kind; then print one JSON object (see `together`), or what is `above`, what `tell` prints of each, findings."""
    for result in measured:
        result.save(stores.results)
    if stores.json:
        print_json(together(measured, column))
        return
    console = out()
    for table in above:
        console.print(table)
    for result in measured:
        tell(console, result)
        if "finding" in result.summary:
            console.print(f"{result.summary['finding']}\n", style="bold", soft_wrap=True, markup=False)
    console.print(f"[dim]see {see}: wallprobe gallery --open[/dim]")


def printing(*tables: "Callable[[Result], Any]") -> "Callable[[Console, Result], None]":
    """What prints these tables of a Result; a tuple is a table and lines below it."""

    def tell(console: "Console", result: "Result") -> None:
        for make in tables:
            told = make(result)
            drawn, *lines = told if isinstance(told, tuple) else (told,)
            console.print(drawn)
            for line in lines:
                console.print(line, soft_wrap=True, markup=False)

    return tell


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
