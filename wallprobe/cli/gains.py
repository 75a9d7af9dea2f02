"""`wallprobe gains`: how loud each sub-layer of a model is."""

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console
    from rich.progress import Progress, TaskID

    from wallprobe.results import Result

NARROW = 104  # columns below which the bars are left out


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="gains")(gains)


def gains(
    models: Annotated[list[str], typer.Argument(help="Run names, hub ids, local folders or .gguf files.", metavar="MODEL...")],
    prompts: Annotated[str | None, typer.Option(help="seed4 (default), single, or a text file, one prompt a line. Not for runs.")] = None,
    gain: Annotated[str, typer.Option(help="sublayer, sublayer_unit, update_ratio or resid_ratio.")] = "sublayer",
    fit: Annotated[bool, typer.Option("--fit", help="Also fit the scaling law through these models (three or more sizes).")] = False,
    device: common.Device = "auto",
    runs: common.Runs = None,
    results: common.Results = None,
    json: common.Json = False,
) -> None:
    """Gain of every attention and MLP sub-layer, with and without attention-sink tokens."""
    from wallprobe import models as loading
    from wallprobe.cli.scaling import report as report_scaling
    from wallprobe.hooks import gain_math, scaling
    from wallprobe.hooks.gains import gains as measure
    from wallprobe.hooks.prompt_sets import prompt_set, read_texts

    gain_math.get_definition(gain)
    if prompts is not None:
        read_texts(prompts)  # a bad file is told before half a minute of loading
    place = loading.pick_device(device)
    measured = []
    with common.progress() as view:
        for name in models:
            bar = view.add_task(f"load {_short(name)}", total=None)
            loaded = loading.load(name, place, runs)
            chosen = prompt_set(loaded, prompts)
            view.update(bar, description=f"gains {_short(name)}", total=len(chosen.tokens), completed=0)
            measured.append(measure(loaded, chosen, gain, on_progress=_follow(view, bar)))
            del loaded
    for same in _same_weights(measured):
        common.err().print(
            f"note: {', '.join(same)} have identical weights (one SHA-256); comparing them says nothing", soft_wrap=True, markup=False
        )
    law = scaling.scaling(scaling.points_of(measured)) if fit else None
    folders = [result.save(results) for result in measured]
    if json:
        told = common.together(measured, "model")
        common.print_json(told if law is None else told | {"scaling": law.to_json()})
        return
    console = common.out()
    for result, folder in zip(measured, folders, strict=True):
        _report(console, result, str(folder))
    if len(measured) > 1:
        console.print(_comparison(measured))
    if law is not None:
        report_scaling(console, law, law.save(results))


def _follow(view: "Progress", bar: "TaskID") -> "Callable[[int, int], None]":
    def follow(done: int, total: int) -> None:
        view.update(bar, completed=done, total=total)

    return follow


def _same_weights(measured: "list[Result]") -> list[list[str]]:
    """Differently named models whose weight files are the same bytes."""
    names: dict[str, list[str]] = {}
    for result in measured:
        if result.manifest["weight_hash"] and result.manifest["subject"] not in names.setdefault(result.manifest["weight_hash"], []):
            names[result.manifest["weight_hash"]].append(result.manifest["subject"])
    return [group for group in names.values() if len(group) > 1]


def _short(name: str) -> str:
    """The last part of a path."""
    return name.rstrip("/").rpartition("/")[2] or name


def _figure(value: Any) -> str:
    """Three significant digits, without exponents; a dash for what is not known."""
    if value is None or math.isnan(value):
        return "-"
    digits = 0 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 4)}f}"


def _with_interval(record: dict[str, Any], name: str) -> str:
    low, high = record[f"{name}_low"], record[f"{name}_high"]
    interval = "" if low is None else rf" [dim]\[{_figure(low)}, {_figure(high)}][/dim]"
    return _figure(record[name]) + interval


def _bar(value: float | None, scale: float, half: int = 8) -> str:
    """A bar from the middle, on a log scale: left of it the sub-layer is quieter than what it reads, right of it louder."""
    if value is None or value <= 0:
        return ""
    length = min(half, round(half * abs(math.log(value)) / scale))
    blocks = "█" * length
    left, right = (blocks.rjust(half), " " * half) if value < 1 else (" " * half, blocks.ljust(half))
    return f"[cyan]{left}[/cyan]│[yellow]{right}[/yellow]"


def _report(console: "Console", result: "Result", folder: str) -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    summary, records = result.summary, result.values
    title = f"Gains of {escape(result.manifest['subject'])}: {summary['definition']} = {escape(result.manifest['formula'])}"
    caption = f"{summary['n_prompts']} prompts ({escape(summary['prompts'])}); 95 % interval over prompts; no first token added"
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for head in ("layer", "attention", "MLP", "attention\nno sinks", "MLP\nno sinks", "|x|"):
        table.add_column(head, justify="right", no_wrap=True)
    wide = console.width >= NARROW
    if wide:
        table.add_column("MLP: quieter │ louder", no_wrap=True)
    logs = [abs(math.log(record["mlp_gain"])) for record in records if record["mlp_gain"]]
    for record in records:
        cells = [str(record["layer"]), _with_interval(record, "attn_gain"), _with_interval(record, "mlp_gain")]
        cells += [_figure(record[name]) for name in ("attn_gain_no_sink", "mlp_gain_no_sink", "resid_pre_norm")]
        table.add_row(*cells, *([_bar(record["mlp_gain"], max([*logs, 1e-9]))] if wide else []))
    console.print(table)
    lines = [
        f"below 1, all positions:  attention {summary['attn_contracting']}, MLP {summary['mlp_contracting']}",
        f"below 1, without sinks:  attention {summary['attn_contracting_no_sink'] or '-'}, MLP {summary['mlp_contracting_no_sink'] or '-'}",
        f"final MLP gain:          {_figure(summary['final_mlp_gain'])}, without sinks {_figure(summary['final_mlp_gain_no_sink'])}",
        f"sinks:                   {summary['sinks']}",
        f"residual identity error: {summary['residual_identity_error']:.1e} of the norm",
    ]
    for line in [*lines, summary["finding"], f"stored in {folder}"]:
        console.print(escape(line), soft_wrap=True)
    console.print()


def _comparison(measured: "list[Result]") -> Any:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="Compared", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("model")
    for head in ("layers", "attention < 1", "MLP < 1", "final MLP", "final MLP\nno sinks", "sinks"):
        table.add_column(head, justify="right")
    for result in measured:
        summary = result.summary
        counts = [str(summary[key]) for key in ("n_layers", "attn_contracting", "mlp_contracting")]
        finals = [_figure(summary[key]) for key in ("final_mlp_gain", "final_mlp_gain_no_sink")]
        table.add_row(escape(str(result.manifest["subject"])), *counts, *finals, str(summary["n_sinks"]))
    return table
