"""`wallprobe gains`: how loud each sub-layer of a model is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wallprobe.cli import common

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.progress import Progress, TaskID

    from wallprobe.results import Result


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="gains")(gains)


def gains(
    models: Annotated[list[str], typer.Argument(help="Run names, hub ids, local folders or .gguf files.", metavar="MODEL...")],
    prompts: Annotated[
        str | None, typer.Option(help="seed4 (default), single, mixed, a .txt, .jsonl or .csv file, or datasets:ID. Not for runs.")
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column of a table that holds the prompts.")] = None,
    limit: Annotated[int | None, typer.Option(help="Prompts to read at most.", min=1)] = None,
    gain: Annotated[str, typer.Option(help="sublayer, sublayer_unit, update_ratio, resid_ratio, jacobian or spectral.")] = "sublayer",
    tokens: Annotated[str, typer.Option(help="ratio_of_means, mean_of_ratios, geomean or median.")] = "ratio_of_means",
    positions: Annotated[str, typer.Option(help="What regime and L* are read from: all, no_sink, no_first or last.")] = "all",
    fold: Annotated[bool, typer.Option("--fold", help="Fold norms into weights first: same logits, other gains.")] = False,
    norms: Annotated[bool, typer.Option("--norms", help="Also print norms, angles, nets and sinks' shares.")] = False,
    fit: Annotated[bool, typer.Option("--fit", help="Also fit the scaling law through these models (three or more sizes).")] = False,
    device: common.Device = "auto",
    runs: common.Runs = None,
    results: common.Results = None,
    json: common.Json = False,
) -> None:
    """Gain of every attention and MLP sub-layer, with and without attention-sink tokens."""
    from wallprobe.cli import gains_tables as tables
    from wallprobe.cli.scaling import report as report_scaling
    from wallprobe.hooks import scaling
    from wallprobe.hooks.gain_report import Settings
    from wallprobe.hooks.prompt_sets import read_texts

    Settings.make(gain, tokens, positions)
    if prompts is not None:
        read_texts(prompts, column, limit)  # a bad file is told before half a minute of loading
    ways = gain, tokens, positions
    sources = {"source": prompts, "column": column, "limit": limit}
    measured = _measure(models, ways, sources, fold=fold, device=device, runs=runs)
    _note_copies(measured)
    law = scaling.scaling(scaling.points_of(measured)) if fit else None
    folders = [result.save(results) for result in measured]
    if json:
        told = common.together(measured, "model")
        common.print_json(told if law is None else told | {"scaling": law.to_json()})
        return
    console = common.out()
    for result, folder in zip(measured, folders, strict=True):
        tables.report(console, result, str(folder), norms)
    if len(measured) > 1:
        console.print(tables.comparison(measured))
    if law is not None:
        report_scaling(console, law, law.save(results))


def _measure(
    names: list[str],
    ways: tuple[str, str, str],
    sources: "dict[str, str | int | None]",
    *,
    fold: bool,
    device: str,
    runs: Path | None,
) -> "list[Result]":
    """Every model in turn, under one progress view."""
    from wallprobe import models as loading
    from wallprobe.hooks.gains import gains as measure
    from wallprobe.hooks.prompt_sets import prompt_set

    place = loading.pick_device(device)
    measured = []
    with common.progress() as view:
        for name in names:
            bar = view.add_task(f"load {_short(name)}", total=None)
            loaded = loading.load(name, place, runs)
            chosen = prompt_set(loaded, **sources)  # type: ignore[arg-type]
            loaded = loading.folded(loaded) if fold else loaded
            view.update(bar, description=f"gains {_short(name)}", total=len(chosen.tokens), completed=0)
            measured.append(measure(loaded, chosen, *ways, on_progress=_follow(view, bar)))
            del loaded
    return measured


def _follow(view: "Progress", bar: "TaskID") -> "Callable[[int, int], None]":
    def follow(done: int, total: int) -> None:
        view.update(bar, completed=done, total=total)

    return follow


def _note_copies(measured: "list[Result]") -> None:
    for same in _same_weights(measured):
        common.err().print(
            f"note: {', '.join(same)} have identical weights (one SHA-256); comparing them says nothing", soft_wrap=True, markup=False
        )


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
