"""`wallprobe rescue`: a supervised state moved beyond the wall."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common

if TYPE_CHECKING:
    from wallprobe.results import Result


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(rescue)


def rescue(
    names: Annotated[list[str], typer.Argument(help="Runs: c0, p5@1337, or a run's folder.", metavar="RUN...")],
    sequences: Annotated[int, typer.Option(help="Program sequences that come back to a token behind the wall.", min=10)] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of those sequences and of the controls.")] = 0,
    device: common.Device = "auto",
    runs: common.Runs = None,
    results: common.Results = None,
    json: common.Json = False,
) -> None:
    """Move a supervised state to an unsupervised index with the same token, where the same answer is due: does the network give it?"""
    from wallprobe import models
    from wallprobe.hooks.rescue import rescue as measure
    from wallprobe.runs import resolve_run

    place = models.pick_device(device)
    found = [resolve_run(name, runs) for name in names]
    for run in found:
        run.verify()
    measured = []
    with common.progress() as view:
        for run in found:
            bar = view.add_task(f"rescue {run.name}", total=None)

            def show(done: int, total: int, bar: Any = bar) -> None:
                view.update(bar, completed=done, total=total)

            measured.append(measure(run, sequences=sequences, seed=seed, device=place, on_stage=show))
    for result in measured:
        result.save(results)
    common.print_measured(measured, json, _table)


COLUMNS = {
    "accuracy": "right",
    "accuracy_redirect": "other\nprogram's",
    "accuracy_redirect_rule": "its rule's",
    "accuracy_redirect_own": "own, other\nprogram",
    "accuracy_random": "own, noise\nsequence",
    "accuracy_norm": "own, random\nvector",
    "p": "probability",
}


def _table(result: "Result") -> Any:
    """A row a depth; the published figures beside the baseline's."""
    from rich import box
    from rich.table import Table

    from wallprobe.claims.wall_transfer import RESCUED

    summary = result.summary
    published = RESCUED if str(summary["run"]).partition("@")[0] == "c0" else {}
    title = f"{summary['run']}: a state moved from inside the wall to an index beyond it that holds the same token"
    was = f" (published {published['none']:g})" if published else ""
    caption = (
        f"{summary['n_sequences']} sequences; share of first choices. Nothing moved: {summary['accuracy_before']:.3f}{was}; at the "
        f"supervised index itself {summary['accuracy_donor']:.3f}; chance {summary['chance']:.3f}. After the last block it is the donor's "
        f"answer, whatever that is.{' In brackets: published.' if published else ''}"
    )
    table = Table(
        title=title,
        title_justify="left",
        caption=caption,
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("moved at", no_wrap=True)
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for record in result.values:
        block = int(record["block"])
        known = published.get("embedding" if block == 0 else f"block{block}")
        cells = [f"{record[name]:.3f}" for name in COLUMNS]
        half = (record["accuracy_high"] - record["accuracy_low"]) / 2
        cells[0] = f"[bold]{cells[0]}[/bold] [dim]±{half:.3f}[/dim]" + ("" if known is None else f" ({known:g})")
        table.add_row("embedding" if block == 0 else f"block {block}", *cells)
    return table
