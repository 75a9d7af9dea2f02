"""`wallprobe rescale`: what a sub-layer's output is worth, by scaling it."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import options, reading

if TYPE_CHECKING:
    from wallprobe.store.results import Result

PLACES = {"all": "all tokens", "sink": "sinks alone", "non_sink": "other tokens"}


def rescale(
    models: options.Models,
    layers: Annotated[str | None, typer.Option(help="Layers, such as 11,28,29.", show_default="the last two")] = None,
    branch: Annotated[str, typer.Option(help="mlp or attn.")] = "mlp",
    scales: Annotated[str, typer.Option(help="Factors of the sub-layer's output.")] = "0,0.5,1,2",
    *,
    sources: options.Sources,
    seed: options.Seed = 42,
    place: options.Place,
) -> None:
    """Scale a sub-layer's output at all tokens, at sinks or elsewhere: change of loss, entropy and first choice, beside random layers."""
    from wallprobe.errors import UnknownNameError
    from wallprobe.hooks.gains.rescale import BRANCHES
    from wallprobe.hooks.gains.rescale import rescale as instrument

    wanted = None if layers is None else [int(number) for number in parse_numbers(layers, "--layers", "11,28", whole=True)]
    if branch not in BRANCHES:
        raise UnknownNameError(f"no sub-layer '{branch}'; there are: {', '.join(BRANCHES)}")
    factors = parse_numbers(scales, "--scales", "0,0.5,2")
    reading.measure(
        models,
        "rescale",
        lambda loaded, chosen, follow: instrument(loaded, chosen, wanted, branch, scales=factors, seed=seed, on_progress=follow),
        sources,
        place,
        _table,
    )


def parse_numbers(text: str, option: str, example: str, *, whole: bool = False) -> list[float]:
    """Numbers as typed, separated by commas.

    Raises:
        ConfigError: if one is none.
    """
    from wallprobe.errors import ConfigError

    try:
        return [float(int(part)) if whole else float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{option} '{text}' is no list of {'whole ' if whole else ''}numbers; give for instance {example}") from None


def _table(result: "Result") -> Any:
    from rich.console import Group
    from rich.markup import escape

    from wallprobe.cli.gains_tables import stamp
    from wallprobe.cli.packed import empty

    name = "MLP" if result.summary["branch"] == "mlp" else "attention"
    table = empty(f"{escape(result.manifest['subject'])}: change of the loss (nats) when the {name}'s output is scaled")
    rows = [row for row in result.values if row["scale"] != 1.0]
    table.add_column("layer", justify="right")
    table.add_column("scaled at")
    factors = list(dict.fromkeys(row["scale"] for row in rows))
    for factor in factors:
        table.add_column(f"x {factor:g}", justify="right")
    for layer in dict.fromkeys(row["layer"] for row in rows):
        for place, words in PLACES.items():
            cells = [row for row in rows if row["layer"] == layer and row["place"] == place]
            values = [_changed(row, "delta_nll") for row in cells]
            mark = " [dim]control[/dim]" if cells[0]["is_control"] else ""
            table.add_row(f"{layer}{mark}" if place == "all" else "", words, *values, end_section=place == "non_sink")
    said = (f"{result.summary['n_sinks']} sinks", "± half the 95 % interval over prompts", "times 1 changed nothing")
    return Group(table, _others(rows, factors)), f"{stamp(result, *said)}; control: a layer drawn at random"


def _others(rows: "list[dict[str, Any]]", factors: list[float]) -> Any:
    """Entropy and first choice, all tokens scaled."""
    from wallprobe.cli.packed import Packed

    told = {"delta_entropy": "entropy", "delta_top1": "top-1"}
    heads = ["layer", *(f"{words}\nx {factor:g}" for words in told.values() for factor in factors)]
    everywhere = {(row["layer"], row["scale"]): row for row in rows if row["place"] == "all"}
    cells = []
    for layer in dict.fromkeys(row["layer"] for row in rows):
        mark = " [dim]control[/dim]" if everywhere[layer, factors[0]]["is_control"] else ""
        cells.append([f"{layer}{mark}", *(_changed(everywhere[layer, factor], name) for name in told for factor in factors)])
    return Packed("Change of the prediction's entropy (nats) and of the share of next tokens put first, all tokens scaled", heads, cells)


def _changed(row: "dict[str, Any]", name: str) -> str:
    if row[name] is None:
        return "-"
    half = "" if row[f"{name}_low"] is None else f" [dim]±{(row[f'{name}_high'] - row[f'{name}_low']) / 2:.2f}[/dim]"
    return f"{row[name]:+.3f}{half}"
