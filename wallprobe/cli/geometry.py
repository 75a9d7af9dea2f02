"""`wallprobe geometry`: where a run's states behind the wall lie, and the shape of any model's states on text."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, options, subjects
from wallprobe.cli.packed import empty

if TYPE_CHECKING:
    from pathlib import Path

    from wallprobe.store.results import Result


def geometry(
    models: options.Models,
    site: Annotated[str, typer.Option(help="resid_pre, resid_mid, resid_post, attn_out or mlp_out.")] = "resid_post",
    sequences: Annotated[int | None, typer.Option(help="Of a run: fresh sequences to measure on.", min=2, show_default="1000")] = None,
    seed: options.Seed = 0,
    labels: options.Labels = None,
    *,
    sources: options.Sources,
    place: options.Place,
) -> None:
    """Of a run, cosines of states by layer: unsupervised indices with the last supervised one, with controls. Of any other model,
    dimensions that states take, anisotropy and, with --labels, class separation beside permuted labels."""
    from wallprobe.hooks.wall import geometry as instrument

    instrument.check_site(site)
    if not subjects.all_runs(models):
        subjects.refuse("models that are no runs", sequences=sequences)
        _shape_of(models, site, seed, labels, sources, place)
        return
    subjects.refuse("runs, which read sequences of their own task", prompts=sources.prompts, limit=sources.limit, labels=labels)
    measured = common.measure_runs(
        models,
        "geometry",
        lambda run, device, bar: instrument.geometry(
            run, site=site, sequences=instrument.SEQUENCES if sequences is None else sequences, seed=seed, device=device
        ),
        place,
    )
    common.finish_each(measured, "run", place, common.printing(_table))


def _shape_of(models: list[str], site: str, seed: int, labels: "Path | None", sources: options.Sources, place: options.Place) -> None:
    from wallprobe.hooks.states.shape import shape

    device = place.pick()
    subjects.measure(
        models,
        "geometry",
        lambda loaded, read, follow: shape(loaded, read, site=site, seed=seed, device=device, follow=follow),
        sources,
        labels,
        place,
        _shape_table,
    )


def _shape_table(result: "Result") -> Any:
    """A row a layer: dimensions and anisotropy, all tokens and without first ones, and what labels part."""
    from rich.markup import escape

    from wallprobe.cli.gains_tables import figure
    from wallprobe.cli.packed import Packed
    from wallprobe.hooks.attach.gathering import layer_name

    summary, rows = result.summary, []
    for row in result.values:
        cells = [layer_name(row["layer"])]
        for name in ("participation", "participation_no_first", "anisotropy", "anisotropy_no_first"):
            low, high = row[f"{name}_low"], row[f"{name}_high"]
            half = "" if low is None or high is None else f" [dim]±{figure((high - low) / 2)}[/dim]"
            cells.append(f"{figure(row[name])}{half}")
        if "separation" in row:
            cells += [figure(row["between_share"]), figure(row["between_share_permuted"]), figure(row["separation_p"])]
        rows.append(cells)
    heads = ["layer", "dimensions", "\nno first tokens", "mean\ncosine", "\nno first tokens"]
    if "separation" in result.data:
        heads += ["between\nlabels", "\npermuted", "\np"]
    title = escape(
        f"{summary['model']}, {summary['site']}: {summary['n_states']} states of {summary['n_texts']} texts of {summary['prompts']}"
    )
    isotropic = ", without first tokens ".join(figure(summary[f"participation_isotropic{end}"]) for end in ("", "_no_first"))
    caption = f"dimensions: participation ratio (isotropic states: {isotropic}); cosine: between texts; ± half the 95 % interval over texts"
    caption += "; between labels: share of the variance at labelled places" if "separation" in result.data else ""
    return Packed(title, heads, rows, caption)


COLUMNS = {
    "cosine_to_supervised": "cosine",
    "cosine_program": "programs",
    "cosine_noise": "noise",
    "cosine_control": "another\nsequence",
    "cosine_same_class": "of its\nclass",
    "cosine_centred": "centred",
    "cosine_untrained": "before\ntraining",
}
PAIRS = {"mean_pairwise_cosine": "all pairs", "pairwise_control": "between\nsequences", "pairwise_untrained": "before\ntraining"}


def _table(result: "Result") -> Any:
    """Layers down; means over the unsupervised indices, then over all pairs of indices."""
    data, horizon = result.data, int(result.data.attrs["horizon"])
    title = f"{result.summary['run']}, {result.summary['site']}: cosine of unsupervised indices with index {horizon - 1}; of all pairs"
    table = empty(title)
    table.add_column("layer", justify="right")
    for head in [*COLUMNS.values(), *PAIRS.values()]:
        table.add_column(head, justify="right", no_wrap=True)
    beyond = data.isel(index=slice(horizon, None))
    for layer in data["layer"].values:
        cells = [float(beyond[name].sel(layer=layer).mean()) for name in COLUMNS]
        cells += [float(data[name].sel(layer=layer)) for name in PAIRS]
        table.add_row(str(layer), *(f"{value:.2f}" for value in cells))
    return table
