"""`wallprobe doctor`: is a model what the instruments take it for, and is each part of a plugin what its group asks for?"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, options
from wallprobe.cli.packed import empty

if TYPE_CHECKING:
    from wallprobe.doctor import Check

BROKEN = 1  # exit code: something was looked at, and does not hold


def doctor(
    subject: Annotated[
        str | None,
        typer.Argument(
            help="A run, hub id, local folder or .gguf file, or a plugin's distribution; none for every installed plugin.",
            metavar="[MODEL|PLUGIN]",
            show_default=False,
        ),
    ] = None,
    *,
    place: options.Place,
) -> None:
    """Check that a model is what the instruments take it for, or that each part of a plugin is what its group asks for."""
    from wallprobe.doctor import distributions, examine_plugins
    from wallprobe.doctor.plugin import normal

    plugin = subject is None or normal(subject) in map(normal, distributions())
    if plugin:
        found = list(examine_plugins(subject, runs=place.runs, results=place.results))
    else:
        assert subject is not None
        found = _model(subject, place, distributions())
    failed = [check for check in found if check.passed is False]
    if place.json:
        summary = {"subject": subject or "plugins", "checks": len(found), "failed": len(failed)}
        common.print_json({"kind": "doctor", "summary": summary, "values": [check.record() for check in found], "manifest": {}})
    else:
        _print(found, failed, whole=not plugin)
    if failed:
        raise typer.Exit(BROKEN)


def _model(source: str, place: options.Place, plugins: Sequence[str]) -> "list[Check]":
    from wallprobe import models
    from wallprobe.doctor import examine_model
    from wallprobe.errors import UnknownNameError

    try:
        loaded = models.load(source, place.pick(), place.runs)
    except UnknownNameError as error:
        raise UnknownNameError(f"{error}; plugins: {', '.join(plugins)}") from error
    return list(examine_model(loaded))


def _print(found: "Sequence[Check]", failed: "Sequence[Check]", *, whole: bool) -> None:
    """Of a model a row a check; of plugins a row an entry point. What fails is named on a line of its own below."""
    out, table = common.out(), empty()
    for heading in ("check", "", "") if whole else ("entry point", "", "checks"):
        table.add_column(heading)
    if whole:
        for check in found:
            table.add_row(_plain(check.what), _mark(check.passed), _plain(check.told if check.passed is not False else "see below"))
    else:
        for of in dict.fromkeys(check.of for check in found):
            its = [check.passed for check in found if check.of == of and check.passed is not None]
            table.add_row(_plain(of), _mark(all(its)), f"{sum(its)} of {len(its)}")
    out.print(table)
    for check in failed:
        out.print(f"{check.of}: {check.what}: no, {check.told}", soft_wrap=True, markup=False)
    asked = [check for check in found if check.passed is not None]
    out.print(f"{len(asked) - len(failed)} of {len(asked)} checks hold.", style="bold")


def _mark(passed: bool | None) -> str:
    return "–" if passed is None else "holds" if passed else "[bold]fails[/bold]"


def _plain(text: str) -> Any:
    """Text as it stands: a plugin's or a file's names are no markup."""
    from rich.text import Text

    return Text(common.one_line(text))
