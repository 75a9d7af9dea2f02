"""`wallprobe collapse`: how large a nudge an equilibrium checkpoint stands."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, diagnosing, options

if TYPE_CHECKING:
    from wallprobe.store.results import Result

FORMS = {"cos": "+.4f", "k": ".3g", "cos_kept": "+.4f", "dropped": ".0f", "amp": ".1e", "lin": ".1e", "outlier": ".3g"}


def collapse(
    models: Annotated[list[str], typer.Argument(help="Equilibrium runs or snapshots of one.", metavar="RUN...")],
    radii: Annotated[str, typer.Option(help="Of the nudge, commas between.")] = "0.002,0.02,0.05,0.1,0.2,0.5,1",
    steps: Annotated[int | None, typer.Option(help="Of the nudged phase.", show_default="four times the model's", min=1)] = None,
    *,
    sample: options.OwnBatch,
    place: options.Place,
) -> None:
    """Nudge an equilibrium harder and harder: when does a sequence or two carry the whole estimate away?"""
    from wallprobe.hooks.diagnostics import collapse as instrument

    chosen, want = diagnosing.numbers(radii, "radii"), sample.wanted()
    measured = diagnosing.each(
        models,
        "collapse",
        want,
        lambda found, follow: instrument.collapse(found, radii=chosen, steps=steps, on_progress=follow),
        place,
    )
    common.finish_each(measured, "ckpt", place, common.printing(_table), see="it")


def _table(result: "Result") -> Any:
    """A row a radius."""
    table = diagnosing.narrow(f"{result.summary['ckpt']}: EP against the implicit gradient, {result.data.attrs['steps']} nudged steps")
    for head in ("r", *("cos kept" if name == "cos_kept" else name for name in FORMS)):
        table.add_column(head, justify="right")
    for cell in result.values:
        table.add_row(f"{cell['radius']:g}", *(diagnosing.figure(cell[name], form) for name, form in FORMS.items()))
    return table
