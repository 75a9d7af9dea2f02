"""`wallprobe ablate`: what a run's own answer loses with a subspace."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, options
from wallprobe.cli.packed import empty

if TYPE_CHECKING:
    from wallprobe.store.results import Result


def ablate(
    names: options.RunNames,
    subspace: Annotated[str, typer.Option(help="probes:a,b (of token, a, b, class), pca:8 or random:8.")] = "probes:token",
    layer: options.Layers = "all",
    index: Annotated[
        str | None, typer.Option(help="Index or list of indices, one at a time.", show_default="the last two supervised ones")
    ] = None,
    site: options.Site = "resid_pre",
    method: Annotated[str, typer.Option(help="mean or zero: what the component is replaced by.")] = "mean",
    sequences: Annotated[int, typer.Option(help="Program sequences drawn.", min=10)] = 1000,
    seed: options.Seed = 0,
    *,
    place: options.Place,
) -> None:
    """Replace the part of a run's states that lies in a subspace, and read what is left of its own answer, beside random spans."""
    from wallprobe.cli.parsing import layers, numbers
    from wallprobe.hooks.interchange.ablation import Ablation, check
    from wallprobe.hooks.interchange.ablation import ablate as measure

    chosen = None if index is None else numbers(index, "index")
    request = Ablation(subspace, layers(layer), chosen, site, method, sequences, seed)
    measured = common.measure_runs(
        names,
        "ablate",
        lambda run, device, bar: measure(run, request, device=device, on_cell=lambda done, total: bar(completed=done, total=total)),
        place,
        check=lambda run: check(run, request),
    )
    common.finish_each(measured, "run", place, common.printing(_table, _reading))


ARMS = (("", "subspace"), ("_span", "random"), ("_whole", "whole"))


def _table(result: "Result") -> Any:
    """A row a cell: what is left of the answer with the subspace, random spans and the whole state ablated."""
    attrs = result.data.attrs
    title = f"{attrs['run']}, {attrs['site']}, {attrs['subspace']} {attrs['method']}-ablated: probability left to its answer"
    table = empty(title, pad_edge=False)
    for heading in ("layer", "index", "dims\n(var.)", *(f"p\n{label}" for _, label in ARMS), "right", "bits", "KL"):
        table.add_column(heading, justify="right", no_wrap=True)
    for record in result.values:
        row = [str(record["layer"]), str(record["index"]), f"{record['subspace_dims']:.0f} ({record['subspace_variance']:.2f})"]
        for arm, _ in ARMS:
            half = (record[f"p_answer{arm}_high"] - record[f"p_answer{arm}_low"]) / 2
            told = f"{record[f'p_answer{arm}']:.3f}"
            row.append(told if arm else f"[bold]{told}[/bold] [dim]±{half:.3f}[/dim]")
        table.add_row(*row, f"{record['accuracy']:.2f}", f"{record['entropy']:.2f}", f"{record['kl']:.2f}")
    return table


def _reading(result: "Result") -> str:
    """What the columns are."""
    spans = [float(record["span_variance"]) for record in result.values]
    read = result.data.attrs["horizon"] - 1
    whole = result.summary["p_answer_base"]
    return (
        f"{result.summary['n_sequences']} program sequences, read at index {read} or, beyond it, at the index itself; with nothing "
        f"ablated p is {whole:.3f} at the cell named below. random: spans of as many dimensions; var.: share of the variance inside "
        f"(random {min(spans):.2f} to {max(spans):.2f}). With the subspace ablated, right: share of right first choices; bits: entropy; "
        "KL: from the prediction without, nats."
    )
