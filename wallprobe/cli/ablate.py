"""`wallprobe ablate`: what a run's own answer loses with a subspace, and what any model's predictions lose with whole states."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, options, subjects
from wallprobe.cli.packed import empty
from wallprobe.cli.parsing import words

if TYPE_CHECKING:
    from pathlib import Path

    from wallprobe.store.results import Result


def ablate(
    models: options.Models,
    subspace: Annotated[
        str | None,
        typer.Option(help="Of a run: probes:a,b (of token, a, b, class), pca:8 or random:8.", show_default="probes:token"),
    ] = None,
    layer: options.Layers = "all",
    index: Annotated[
        str | None,
        typer.Option(
            help="Of a run: index or list of indices, one at a time. Of other models: all (every token at once) or last.",
            show_default="the last two supervised ones, or all",
        ),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            help="Of a run: one of resid_pre, resid_mid, resid_post, attn_out, mlp_out, z. Of other models: a list of them, z.3, heads.",
            show_default="resid_pre, or attn_out,mlp_out,resid_pre",
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="What is put in place: mean or zero. Of other models: a list of zero, mean, resample (another prompt's).",
            show_default="mean, or all three",
        ),
    ] = None,
    sequences: Annotated[int | None, typer.Option(help="Of a run: program sequences drawn.", min=10, show_default="1000")] = None,
    seed: options.Seed = 0,
    labels: options.Labels = None,
    *,
    sources: options.Sources,
    place: options.Place,
) -> None:
    """Of a run, replace the part of its states in a subspace and read its own answer, beside random spans. Of any other model, replace
    whole states over prompts and read loss and KL, beside random directions."""
    from wallprobe.cli.parsing import layers as parse_layers

    layers = parse_layers(layer)
    if not subjects.all_runs(models):
        subjects.refuse("models that are no runs", subspace=subspace, sequences=sequences)
        _states(models, layers, index, site, method, seed, labels, sources, place)
        return
    from wallprobe.cli.parsing import numbers as parse_numbers
    from wallprobe.hooks.interchange.ablation import Ablation, check
    from wallprobe.hooks.interchange.ablation import ablate as measure

    subjects.refuse("runs, which read sequences of their own task", prompts=sources.prompts, limit=sources.limit, labels=labels)
    chosen = None if index is None else parse_numbers(index, "index")
    request = Ablation(subspace or "probes:token", layers, chosen, site or "resid_pre", method or "mean", sequences or 1000, seed)
    measured = common.measure_runs(
        models,
        "ablate",
        lambda run, device, bar: measure(run, request, device=device, on_cell=lambda done, total: bar(completed=done, total=total)),
        place,
        check=lambda run: check(run, request),
    )
    common.finish_each(measured, "run", place, common.printing(_table, _reading))


def _states(
    models: list[str],
    layers: tuple[int, ...] | None,
    index: str | None,
    site: str | None,
    method: str | None,
    seed: int,
    labels: "Path | None",
    sources: options.Sources,
    place: options.Place,
) -> None:
    """Whole states of any model, over prompts or the texts of a labels file."""
    from wallprobe.hooks.interchange.whole_states import METHODS, SITES, Request, ablate_states

    named = SITES if site is None else tuple(words(site))
    request = Request(named, layers, METHODS if method is None else tuple(words(method, METHODS)), index or "all", seed)
    device = place.pick()
    subjects.measure(
        models,
        "ablate",
        lambda loaded, read, follow: ablate_states(
            loaded, read.prompts() if labels is not None else read, request, device=device, follow=follow
        ),
        sources,
        labels,
        place,
        lambda result: (_states_table(result), *_states_reading(result.summary)),
    )


def _states_table(result: "Result") -> Any:
    """A row a site and layer; of each method the rise in loss and the KL, with the stronger control's."""
    from rich.markup import escape

    from wallprobe.cli.packed import Packed
    from wallprobe.hooks.interchange.whole_states import against_control

    data, summary = result.data, result.summary
    methods = [str(method) for method in data["replacement"].values.tolist()]
    rows = []
    for site in data["site"].values.tolist():
        for layer in data["layer"].values.tolist():
            at, cells = data.sel(site=site, layer=layer), [f"{site} {layer}"]
            for method in methods:
                cell = at.sel(replacement=method)
                half = (float(cell["kl_high"]) - float(cell["kl_low"])) / 2
                told = f"{float(cell['kl']):.3f}"
                marked = f"[bold]{told}[/bold]" if against_control(cell) == "above" else told
                cells += [f"{float(cell['loss']):+.3f}", f"{marked} [dim]±{half:.3f}[/dim]", f"{float(cell['kl_control']):.3f}"]
            rows.append(cells)
    heads = ("site, layer", *(head for method in methods for head in (f"{method}\nloss", "\nKL", "\ncontrol KL")))
    where = "at every token" if summary["index"] == "all" else "at the last token that has a next one"
    title = escape(f"{summary['model']}, {summary['n_prompts']} prompts of {summary['prompts']}: whole states ablated {where}")
    return Packed(title, heads, rows, "nats; ± half the 95 % interval over prompts; bold: beyond the stronger control by more than it")


def _states_reading(summary: "dict[str, Any]") -> tuple[str, ...]:
    """What the columns are."""
    return (
        "loss: rise of the next token's loss. control: the state moved by as much in a random direction, or a random direction of its own "
        f"norm, whichever changes more. Putting states back changed {summary['self_patch_max_change']:g}.",
    )


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
