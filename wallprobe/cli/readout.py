"""`wallprobe readout`: the donor's answer in the receiver, by depth, raw and aligned."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, options
from wallprobe.cli.packed import empty

if TYPE_CHECKING:
    from rich.console import Console

    from wallprobe.store.results import Result


def readout(
    pairs: Annotated[list[str], typer.Argument(help="Donor and receiver: p5:c0, c0@1337:c0, ...", metavar="SRC:DST...")],
    draws: Annotated[int, typer.Option(help="Pairs of sequences drawn.", min=10)] = 1000,
    budget: Annotated[float, typer.Option(help="GiB that patched states may take.", min=0.01)] = 1.0,
    seed: options.Seed = 0,
    *,
    place: options.Place,
) -> None:
    """How likely each receiver gives the donor's answer, by depth of the patch: raw, rotated and ridge-aligned side by side."""
    from wallprobe.hooks.interchange.readout import Pair, check
    from wallprobe.hooks.interchange.readout import readout as measure

    device = place.pick()
    asked = [Pair.parse(text) for text in pairs]
    for run in {run.path: run for pair in check(asked, place.runs) for run in pair}.values():
        run.verify()
    with common.progress() as view:
        follow = common.follower(view, view.add_task("readout", total=None))
        result = measure(asked, draws=draws, seed=seed, budget=budget, root=place.runs, device=device, on_part=follow)
    common.finish(result, place, _tell)


def _tell(out: "Console", result: "Result") -> None:
    """A table a pair, and what the columns are."""
    for name in result.data["pair"].values.tolist():
        out.print(_table(result, name))
    out.print(
        f"Probability of the donor's answer with its state of index {result.data.attrs['read_index']} patched; depth: blocks passed; "
        "±: half the 95 % interval; R²: of the alignment, held out; random donor and the donor's rule: the largest of the three."
    )


def _table(result: "Result", pair: str) -> Any:
    """One pair: a row a depth, the donor's answer at the last supervised index with a random donor's beside, and the rule."""

    from wallprobe.hooks.interchange.readout import WORDS

    data = result.data.sel(pair=pair).isel(index=-1)
    start = "one initialisation" if int(data["shared_initialisation"]) else "two initialisations"
    table = empty(f"{pair}, {start}", pad_edge=False)
    table.add_column("depth", justify="right")
    for align, words in WORDS.items():
        table.add_column(words.replace("-", "-\n"), justify="right", no_wrap=True)
        if align != "none":
            table.add_column("R²", justify="right", no_wrap=True)
    table.add_column("random\ndonor", justify="right", no_wrap=True)
    table.add_column("rule", justify="right", no_wrap=True)
    for depth in data["depth"].values.tolist():
        at, row = data.sel(depth=depth), [str(depth)]
        for align in WORDS:
            middle, low, high = (float(at[f"p_import{end}"].sel(align=align)) for end in ("", "_low", "_high"))
            row.append(f"[bold]{middle:.3f}[/bold] [dim]±{(high - low) / 2:.3f}[/dim]")
            if align != "none":
                row.append(f"{float(at['alignment_r2'].sel(align=align)):.2f}")
        table.add_row(*row, *(f"{float(at[name].max()):.3f}" for name in ("p_import_random", "p_rule")))
    return table
