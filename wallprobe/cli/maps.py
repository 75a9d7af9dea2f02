"""`wallprobe maps`: attention's restriction maps, their size and the energy they measure."""

from typing import TYPE_CHECKING, Any

from wallprobe.cli import options, reading

if TYPE_CHECKING:
    from wallprobe.store.results import Result

HEADS = {
    "mean_sqrt_a": "mean √A",
    "sigma_v": "σ(W_V)",
    "sigma_ov": "σ(W_O W_V)",
    "map_v": "√A σ(W_V)",
    "map_ov": "√A σ(W_O W_V)",
    "contracting_share": "heads < 1",
    "energy": "energy",
    "energy_no_sink": "energy,\nno sinks",
    "trace": "trace",
    "gap": "graph gap",
}


def maps(models: options.Models, *, sources: options.Sources, place: options.Place) -> None:
    """Restriction maps sqrt(A_ij) W_V of every layer in absolute terms, Dirichlet energy, and the sheaf Laplacian's trace."""
    from wallprobe.hooks.flow.sheaf import maps as instrument

    reading.measure(models, "maps", lambda loaded, chosen, follow: instrument(loaded, chosen, on_progress=follow), sources, place, _table)


def _table(result: "Result") -> Any:
    from rich.markup import escape

    from wallprobe.cli.gains_tables import figure, stamp
    from wallprobe.cli.packed import Packed

    rows = [[str(row["layer"]), *(figure(row[name]) for name in HEADS)] for row in result.values]
    title = f"Restriction maps of {escape(result.manifest['subject'])}"
    return Packed(title, ("layer", *HEADS.values()), rows, stamp(result, "means over heads and prompts"))
