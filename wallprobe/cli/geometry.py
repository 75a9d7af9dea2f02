"""`wallprobe geometry`: where the states behind the wall lie."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, options
from wallprobe.cli.packed import empty

if TYPE_CHECKING:
    from wallprobe.store.results import Result


def geometry(
    names: options.RunNames,
    site: Annotated[str, typer.Option(help="resid_pre, resid_mid, resid_post, attn_out or mlp_out.")] = "resid_post",
    sequences: options.Sequences = 1000,
    seed: options.Seed = 0,
    *,
    place: options.Place,
) -> None:
    """Cosines of states by layer: unsupervised indices with the last supervised one, and all with each other, with controls."""
    from wallprobe.hooks.wall import geometry as instrument

    instrument.check_site(site)
    measured = common.measure_runs(
        names,
        "geometry",
        lambda run, device, bar: instrument.geometry(run, site=site, sequences=sequences, seed=seed, device=device),
        place,
    )
    common.finish_each(measured, "run", place, common.printing(_table))


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
