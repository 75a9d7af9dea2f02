"""`wallprobe measure`: any registered instrument by name, a plugin's too."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, options
from wallprobe.cli.packed import empty

if TYPE_CHECKING:
    from wallprobe.store.results import Result

MAX_ROWS, MAX_COLUMNS = 40, 8


def measure(
    instrument: Annotated[
        str | None, typer.Argument(help="Its name; none lists those there are.", metavar="[INSTRUMENT]", show_default=False)
    ] = None,
    models: Annotated[
        list[str] | None, typer.Argument(help="Run names, hub ids, local folders or .gguf files.", metavar="[MODEL...]", show_default=False)
    ] = None,
    option: Annotated[list[str] | None, typer.Option("--set", help="An option of the instrument, key=value; may be repeated.")] = None,
    *,
    sources: options.Sources,
    place: options.Place,
) -> None:
    """Run an instrument by name, a plugin's too; those with a command of their own print more there."""
    from wallprobe.errors import ConfigError
    from wallprobe.hooks.attach.prompt_texts import read_texts
    from wallprobe.hooks.registry import get_instrument, parse_options, run_instrument

    if instrument is None:
        _list(place.json)
        return
    chosen = get_instrument(instrument)
    given, asked = parse_options(chosen, tuple(option or ())), (sources.prompts, sources.column, sources.limit)
    if not models:
        raise ConfigError(f"nothing to measure: wallprobe measure {instrument} MODEL...")
    if sources.prompts is not None:
        read_texts(*sources)
    device, measured = place.pick(), list["Result"]()
    with common.progress() as view:
        bar = view.add_task(instrument, total=len(models))
        for name in models:
            view.update(bar, description=f"{instrument} {name}")
            measured.append(run_instrument(chosen, name, given, asked, device=device, root=place.runs))
            view.advance(bar)
    common.finish_each(measured, "run" if chosen.needs == "run" else "model", place, common.printing(_table))


def _list(json: bool) -> None:
    """Every instrument, what it needs and which options it has."""

    from wallprobe.hooks.registry import instruments

    known = instruments().values()
    if json:
        rows = [{"name": one.name, "needs": one.needs, "options": one.options(), "summary": one.summary} for one in known]
        common.print_json({"kind": "instruments", "summary": rows, "values": [], "manifest": {}})
        return
    table = empty()
    for heading in ("instrument", "needs", "options (--set)", "what it measures"):
        table.add_column(heading)
    for one in known:
        shown = " ".join(f"{key}={value}" for key, value in one.options().items())
        table.add_row(*map(_plain, (one.name, one.needs, shown, one.summary)))
    common.out().print(table)


def _table(result: "Result") -> Any:
    """The long table where it is short, else the summary."""

    from wallprobe.store.results import plain

    rows = result.values
    subject = str(result.manifest.get("subject", ""))
    table = empty(_plain(f"{result.kind} {subject}"))
    if 0 < len(rows) <= MAX_ROWS and len(rows[0]) <= MAX_COLUMNS:
        for name in rows[0]:
            units = result.data[name].attrs.get("units", "") if name in result.data else ""
            table.add_column(_plain(f"{name}\n{units}"), justify="right")
        for row in rows:
            table.add_row(*(_plain(_cell(value)) for value in row.values()))
    else:
        table.add_column("figure")
        table.add_column("value", justify="right")
        for key, value in plain(result.summary).items():
            if key != "finding":
                table.add_row(_plain(key), _plain(_cell(value)))
    return table


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(text: str) -> Any:
    """Text as it stands: a plugin's or a file's names are no markup."""
    from rich.text import Text

    return Text(text)
