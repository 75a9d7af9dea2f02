"""`wallprobe gains --over-training`: one model at several steps of its training, as one Result."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from wallprobe.cli import common, options
from wallprobe.cli.packed import empty

if TYPE_CHECKING:
    from wallprobe.hooks.gains.report import Settings
    from wallprobe.models import Loaded
    from wallprobe.store.results import Result


def measure(
    sources: Sequence[str],
    settings: "Settings",
    texts: options.Sources,
    where: options.Place,
) -> "Result":
    """Gains at every step there are weights of: a run's snapshots and its end, or checkpoints named MODEL@stepN."""
    from wallprobe import models as loading
    from wallprobe.hooks.gains import series
    from wallprobe.hooks.gains.measure import gains
    from wallprobe.store.manifest import Stopwatch

    place, watch = where.pick(), Stopwatch()
    load: Callable[[int], Loaded]
    if len(sources) == 1:
        name, steps = series.snapshots(sources[0], where.runs)
        load = lambda step: series.load_step(sources[0], step, where.runs, place)  # noqa: E731
    else:
        name, pairs = series.named_steps(sources)
        steps, by_step = [step for step, _ in pairs], dict(pairs)
        load = lambda step: loading.load(by_step[step], place, where.runs)  # noqa: E731
    measured = []
    with common.progress() as view:
        bar = view.add_task(f"gains {name}", total=len(steps))
        for step in steps:
            view.update(bar, description=f"gains {name} step {step}")
            loaded = load(step)
            measured.append(gains(loaded, texts.of(loaded), settings.definition.name, settings.tokens, settings.positions))
            view.advance(bar)
    return series.over_training(name, steps, measured, watch)


def show(result: "Result", stores: options.Stores) -> None:
    """Store it; one JSON object, or a row a step and the finding."""
    stored = result.save(stores.results)
    if stores.json:
        common.print_json(result.to_json())
        return
    out = common.out()
    out.print(_table(result))
    out.print(result.summary["finding"], style="bold", soft_wrap=True, markup=False)
    out.print(f"[dim]stored in {stored}; see it: wallprobe gallery --open[/dim]", soft_wrap=True)


def _table(result: "Result") -> Any:

    data = result.data
    table = empty(f"{result.summary['model']} over training")
    for head in ("step", "last MLP", "95 %", "without sinks", "attention below 1", "MLP below 1"):
        table.add_column(head, justify="right")
    n_layers = data.sizes["layer"]
    for at, step in enumerate(data["step"].values.tolist()):
        final, low, high, clean = (float(data[f"final_mlp_gain{end}"].values[at]) for end in ("", "_low", "_high", "_no_sink"))
        counts = [int((data[f"{branch}_gain"].values[at] < 1).sum()) for branch in ("attn", "mlp")]
        below = [f"{count}/{n_layers}" for count in counts]
        table.add_row(f"{step:,}", f"{final:.3g}", f"{low:.3g} to {high:.3g}", f"{clean:.3g}", *below)
    return table
