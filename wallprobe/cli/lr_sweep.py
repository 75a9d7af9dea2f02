"""`wallprobe lr-sweep`: what one step along each gradient buys."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, diagnosing, options

if TYPE_CHECKING:
    from wallprobe.store.results import Result


def lr_sweep(
    models: options.Checkpoints,
    estimators: options.Estimators = None,
    reference: options.Reference = None,
    lrs: Annotated[str, typer.Option(help="Learning rates, commas between.")] = "1e-4,3e-4,1e-3,3e-3,1e-2,3e-2,1e-1,3e-1,1",
    normalise: Annotated[str, typer.Option(help="none, unit (norm 1) or match (the reference's norm).")] = "none",
    evaluate: Annotated[str, typer.Option(help="Loss of the same batch or of heldout sequences.")] = "same",
    *,
    sample: options.OneBatch,
    place: options.Place,
) -> None:
    """One step along every gradient at every learning rate: how much does the loss fall, and where does it blow up?"""
    from wallprobe.hooks.diagnostics import lr_sweep as instrument
    from wallprobe.hooks.diagnostics.triangulate import choose

    want, rates = sample.wanted(), diagnosing.numbers(lrs, "lrs")
    chosen = choose(estimators, reference)
    instrument.check(rates, normalise, evaluate)
    options: dict[str, Any] = {"lrs": rates, "normalise": normalise, "evaluate": evaluate, "seed": sample.seed}
    measured = diagnosing.each(
        models,
        "lr-sweep",
        want,
        lambda found, follow: instrument.lr_sweep(found, chosen or instrument.usual_gradients(found), **options, on_progress=follow),
        place,
    )
    common.finish_each(measured, "ckpt", place, common.printing(_table), see="it")


def _table(result: "Result") -> Any:
    """A row a learning rate, a column a gradient; then the footer."""
    data, summary = result.data, result.summary
    what = "the same batch" if data.attrs["evaluate"] == "same" else "held-out sequences"
    title = f"{summary['ckpt']}: change of the loss on {what} by one step, nats (it was {summary['before']:.4f}); negative is better"
    table = diagnosing.narrow(title)
    table.add_column("lr")
    names = data["gradient"].values.tolist()
    for name in names:
        table.add_column(name, justify="right")
    for lr in data["lr"].values.tolist():
        cells = []
        for name in names:
            cell = data.sel(gradient=name, lr=lr)
            missing = "n/a" if str(cell["reason"].values) else "div"
            cells.append(missing if int(cell["diverged"]) else diagnosing.figure(float(cell["delta"]), "+.2e"))
        table.add_row(f"{lr:.1e}", *cells)
    table.add_section()
    keys = names
    table.add_row("best", *(diagnosing.figure(summary[f"best_{key}"], "+.2e") for key in keys))
    table.add_row("at lr", *(diagnosing.figure(summary[f"best_lr_{key}"], ".1e") for key in keys))
    table.add_row("cos", *(diagnosing.figure(summary[f"cos_{key}"]) for key in keys))
    table.add_row("k", *(diagnosing.figure(summary[f"k_{key}"], ".3g") for key in keys))
    return table
