"""`wallprobe rescue`: a supervised state moved beyond the wall."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common

if TYPE_CHECKING:
    from wallprobe.store.results import Result


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
    from wallprobe.hooks.interchange.rescue import rescue as measure
    from wallprobe.store.runs import resolve_run

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
    common.print_measured(measured, json, _table, _reading)


COLUMNS = {
    "accuracy": "right:\nmatched",
    "accuracy_redirect": "says\nother's",
    "accuracy_redirect_rule": "its\nrule's",
    "accuracy_redirect_own": "right:\nother's",
    "accuracy_random": "right:\nnoise's",
    "accuracy_norm": "right:\nvector",
}


def _published(result: "Result") -> dict[str, float]:
    """The published figures where the run is the baseline."""
    from wallprobe.claims.wall.transfer import RESCUED

    return dict(RESCUED) if str(result.summary["run"]).partition("@")[0] == "c0" else {}


def _table(result: "Result") -> Any:
    """A row a depth; the published figures beside the baseline's."""
    from rich import box
    from rich.table import Table

    published = _published(result)
    title = f"{result.summary['run']}: first choice with a state moved beyond the wall"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("moved after", no_wrap=True)
    for heading in COLUMNS.values():
        table.add_column(heading, justify="right", no_wrap=True)
    for record in result.values:
        block = int(record["block"])
        known = published.get("embedding" if block == 0 else f"block{block}")
        cells = [f"{record[name]:.3f}" for name in COLUMNS]
        half = (record["accuracy_high"] - record["accuracy_low"]) / 2
        cells[0] = f"[bold]{cells[0]}[/bold] [dim]±{half:.3f}[/dim]" + ("" if known is None else f" ({known:.2f})")
        table.add_row("embedding" if block == 0 else f"block {block}", *cells)
    return table


def _reading(result: "Result") -> str:
    """What the columns are, and what is right with nothing moved."""
    summary, published = result.summary, _published(result)
    was = f" (published {published['none']:g})" if published else ""
    return (
        f"{summary['n_sequences']} sequences. With nothing moved {summary['accuracy_before']:.3f}{was} are right, inside the wall "
        f"{summary['accuracy_donor']:.3f}; chance {summary['chance']:.3f}. right: gives its own next token, with its own matched state"
        f"{' (published)' if published else ''}, another program's, a noise sequence's, a random vector. says other's: gives that "
        "program's next token instead; its rule's: what that program's rule makes of the token there. After the last block it is the "
        "donor's answer, whatever it is."
    )
