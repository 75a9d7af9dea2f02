"""`wallprobe mixing`: how far influence reaches, and the loss by position."""

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import diagnosing, options

if TYPE_CHECKING:
    from wallprobe.store.results import Result

EDGES = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)  # of bins of positions


def mixing(
    models: options.Checkpoints,
    distances: Annotated[str | None, typer.Option(help="Commas between.", show_default="powers of two that fit")] = None,
    query: Annotated[int | None, typer.Option(help="Index that is read.", show_default="the last", min=1)] = None,
    delta: Annotated[float, typer.Option(help="Size of the nudge over the embedding's mean norm.")] = 1e-2,
    directions: Annotated[int, typer.Option(help="Random directions a distance.", min=1)] = 4,
    *,
    sample: options.OneBatch,
    place: options.Place,
) -> None:
    """How far back does a token still matter, and where in the sequence is the loss?"""
    from wallprobe.hooks.diagnostics import mixing as instrument
    from wallprobe.store.manifest import Stopwatch

    watch, want = Stopwatch(), sample.wanted()
    chosen = None if distances is None else tuple(int(d) for d in diagnosing.numbers(distances, "distances"))
    settings = instrument.Settings(chosen, query, delta, directions, sample.seed)
    measured = diagnosing.each(models, "mixing", want, lambda found, follow: instrument.measure(found, settings, follow), place)
    result = instrument.report(measured, watch, settings)
    summaries = [instrument.summary_of(one) for one in measured]
    diagnosing.finish(result, summaries, place, _shown(result, [summary["ckpt"] for summary in summaries]))


def _shown(result: "Result", names: list[str]) -> Iterator[Any]:
    """What the letters stand for, the tables, and why a cell is empty."""
    letters = diagnosing.short(names)
    if any(name != letter for name, letter in letters.items()):
        yield "; ".join(f"{letter} is {name}" for name, letter in letters.items())
    yield from (_influence(result), _losses(result))
    for cell in result.values:
        if cell["status"] not in ("ok", "n/a: no such distance"):
            yield f"{cell['ckpt']}, distance {cell['distance']}: {cell['status']}"


def _influence(result: "Result") -> Any:
    """A row a distance; for each checkpoint I, I over that at 1, and rel."""
    table = diagnosing.narrow("Influence on the query of a nudge d positions before")
    table.add_column("d", justify="right")
    names = result.data["ckpt"].values.tolist()
    for what in ("{}", "{} ÷d1", "{} rel"):
        for name in diagnosing.short(names).values():
            table.add_column(what.format(name), justify="right")
    for d in result.data["distance"].values.tolist():
        cells = [
            diagnosing.figure(float(result.data[key].sel(ckpt=name, distance=d)), ".3g")
            for key in ("influence", "over_d1", "rel")
            for name in names
        ]
        table.add_row(str(d), *cells)
    return table


def _losses(result: "Result") -> Any:
    """Cross-entropy by bins of positions; with two checkpoints, the difference too."""
    data, names = result.data, result.data["ckpt"].values.tolist()
    table = diagnosing.narrow("Cross-entropy by position, nats")
    table.add_column("position", justify="right")
    for name in [*diagnosing.short(names).values(), *(["difference"] if len(names) == 2 else [])]:
        table.add_column(name, justify="right")
    last = int(data["position"].values[-1])
    for low, high in pairwise(EDGES):
        if low >= last:
            break
        at = data.sel(position=slice(low + 1, high))
        means = [_mean(at["ce"].sel(ckpt=name).values, at["labels"].sel(ckpt=name).values) for name in names]
        shown = [*means, *([means[0] - means[1]] if len(names) == 2 else [])]
        end = min(high, last)
        table.add_row(f"{low + 1}-{end}" if end > low + 1 else str(end), *(diagnosing.figure(cell, ".3f") for cell in shown))
    return table


def _mean(values: Any, weights: Any) -> float:
    """The mean over labels."""
    there = weights > 0
    return float((values[there] * weights[there]).sum() / weights[there].sum()) if there.any() else float("nan")
