"""`wallprobe rescue`: a supervised state moved beyond the wall."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, options
from wallprobe.cli.packed import empty

if TYPE_CHECKING:
    from wallprobe.store.results import Result


def rescue(
    names: options.RunNames,
    sequences: Annotated[int, typer.Option(help="Program sequences that come back to a token behind the wall.", min=10)] = 1000,
    seed: options.Seed = 0,
    *,
    place: options.Place,
) -> None:
    """Move a supervised state to an unsupervised index with the same token, where the same answer is due: does the network give it?"""
    from wallprobe.hooks.interchange.rescue import rescue as measure

    asked = {"sequences": sequences, "seed": seed}
    measured = common.measure_runs(
        names,
        "rescue",
        lambda run, device, bar: measure(run, **asked, device=device, on_stage=lambda done, total: bar(completed=done, total=total)),
        place,
    )
    common.finish_each(measured, "run", place, common.printing(_table, _reading))


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
    published = _published(result)
    title = f"{result.summary['run']}: first choice with a state moved beyond the wall"
    table = empty(title, pad_edge=False)
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
