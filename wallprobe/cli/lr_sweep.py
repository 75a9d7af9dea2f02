"""`wallprobe lr-sweep`: what one step along each gradient buys."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, diagnosing

if TYPE_CHECKING:
    from wallprobe.store.results import Result


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="lr-sweep")(lr_sweep)


def lr_sweep(
    models: diagnosing.Models,
    estimators: Annotated[str | None, typer.Option(help="Gradients to step along, commas between.", show_default="by model")] = None,
    reference: Annotated[str | None, typer.Option(help="What cosines are to.", show_default="the first")] = None,
    lrs: Annotated[str, typer.Option(help="Learning rates, commas between.")] = "1e-4,3e-4,1e-3,3e-3,1e-2,3e-2,1e-1,3e-1,1",
    normalise: Annotated[str, typer.Option(help="none, unit (norm 1) or match (the reference's norm).")] = "none",
    evaluate: Annotated[str, typer.Option(help="Loss of the same batch or of heldout sequences.")] = "same",
    prompts: diagnosing.Prompts = None,
    text: diagnosing.Text = None,
    size: diagnosing.Size = None,
    length: diagnosing.Length = None,
    seed: diagnosing.Seed = 0,
    device: common.Device = "auto",
    runs: common.Runs = None,
    results: common.Results = None,
    json: common.Json = False,
) -> None:
    """One step along every gradient at every learning rate: how much does the loss fall, and where does it blow up?"""
    from wallprobe.hooks.diagnostics import lr_sweep as instrument
    from wallprobe.hooks.diagnostics.triangulate import choose

    want, rates = diagnosing.wanted(prompts, text, 1, size, length, seed), diagnosing.numbers(lrs, "lrs")
    chosen = choose(estimators, reference)
    options: dict[str, Any] = {"lrs": rates, "normalise": normalise, "evaluate": evaluate, "seed": seed}
    measured = diagnosing.each(
        models,
        "lr-sweep",
        want,
        lambda found, follow: instrument.lr_sweep(found, chosen or instrument.usual_gradients(found), **options, on_progress=follow),
        device=device,
        runs=runs,
    )
    for result in measured:
        result.save(results)
    if json:
        common.print_json(common.together(measured, "ckpt"))
        return
    out = common.out()
    for result in measured:
        out.print(_table(result))
        out.print(f"{result.summary['finding']}\n", style="bold", soft_wrap=True, markup=False)
    out.print("[dim]see it: wallprobe gallery --open[/dim]")


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
