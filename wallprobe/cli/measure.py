"""`wallprobe measure`: any registered instrument by name, a plugin's too."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, reading

if TYPE_CHECKING:
    from wallprobe.store.results import Result

MAX_ROWS, MAX_COLUMNS = 40, 8


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(measure)


def measure(
    instrument: Annotated[
        str | None, typer.Argument(help="Its name; none lists those there are.", metavar="[INSTRUMENT]", show_default=False)
    ] = None,
    models: Annotated[
        list[str] | None, typer.Argument(help="Run names, hub ids, local folders or .gguf files.", metavar="[MODEL...]", show_default=False)
    ] = None,
    option: Annotated[list[str] | None, typer.Option("--set", help="An option of the instrument, key=value; may be repeated.")] = None,
    prompts: reading.Prompts = None,
    column: reading.Column = None,
    limit: reading.Limit = None,
    device: common.Device = "auto",
    runs: common.Runs = None,
    results: common.Results = None,
    json: common.Json = False,
) -> None:
    """Run an instrument by name, a plugin's too; those with a command of their own print more there."""
    from wallprobe import models as loading
    from wallprobe.errors import ConfigError
    from wallprobe.hooks.registry import get_instrument, parse_options, run_instrument

    if instrument is None:
        _list(json)
        return
    chosen = get_instrument(instrument)
    options = parse_options(chosen, tuple(option or ()))
    if not models:
        raise ConfigError(f"nothing to measure: wallprobe measure {instrument} MODEL...")
    place, measured = loading.pick_device(device), list["Result"]()
    with common.progress() as view:
        bar = view.add_task(instrument, total=len(models))
        for name in models:
            view.update(bar, description=f"{instrument} {name}")
            measured.append(run_instrument(chosen, name, options, (prompts, column, limit), device=place, root=runs))
            view.advance(bar)
    for result in measured:
        result.save(results)
    if json:
        common.print_json(common.together(measured, "run" if chosen.needs == "run" else "model"))
        return
    for result in measured:
        _print(result)
    common.out().print("[dim]see them: wallprobe gallery --open[/dim]")


def _list(json: bool) -> None:
    """Every instrument, what it needs and which options it has."""
    from rich import box
    from rich.table import Table

    from wallprobe.hooks.registry import instruments

    known = instruments().values()
    if json:
        rows = [{"name": one.name, "needs": one.needs, "options": one.options(), "summary": one.summary} for one in known]
        common.print_json({"kind": "instruments", "summary": rows, "values": [], "manifest": {}})
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("instrument", "needs", "options (--set)", "what it measures"):
        table.add_column(heading)
    for one in known:
        shown = " ".join(f"{key}={value}" for key, value in one.options().items())
        table.add_row(*map(_plain, (one.name, one.needs, shown, one.summary)))
    common.out().print(table)


def _print(result: "Result") -> None:
    """The long table where it is short, else the summary; then the finding."""
    from rich import box
    from rich.table import Table

    from wallprobe.store.results import plain

    rows = result.values
    subject = str(result.manifest.get("subject", ""))
    table = Table(title=_plain(f"{result.kind} {subject}"), title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
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
    console = common.out()
    console.print(table)
    if "finding" in result.summary:
        console.print(f"{result.summary['finding']}\n", style="bold", soft_wrap=True, markup=False)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(text: str) -> Any:
    """Text as it stands: a plugin's or a file's names are no markup."""
    from rich.text import Text

    return Text(text)
