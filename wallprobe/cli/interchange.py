"""`wallprobe interchange`: one network's activation in another."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common

if TYPE_CHECKING:
    from wallprobe.results import Result


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(interchange)


def interchange(
    src: Annotated[str, typer.Option(help="Donor run.")],
    dst: Annotated[str, typer.Option(help="Receiving run.")],
    layer: Annotated[str, typer.Option(help="Layer, list of layers (0,3,5), or all.")] = "3",
    index: Annotated[
        str | None, typer.Option(help="Index or list of indices to patch, one at a time.", show_default="the last two")
    ] = None,
    site: Annotated[str, typer.Option(help="resid_pre, resid_mid, resid_post, attn_out, mlp_out or z.")] = "resid_pre",
    align: Annotated[str, typer.Option(help="none, procrustes or ridge: fit src's basis to dst's first.")] = "none",
    pairs: Annotated[int, typer.Option(help="Pairs of sequences drawn.", min=10)] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of pairs and controls.")] = 0,
    device: common.Device = "auto",
    runs: common.Runs = None,
    results: common.Results = None,
    json: common.Json = False,
) -> None:
    """Put src's activation into dst and read whose answer comes out: dst's own, the donor's rule, or the donor's prediction."""
    from wallprobe import models
    from wallprobe.hooks.interchange import Request, parse_layers, parse_numbers
    from wallprobe.hooks.interchange import interchange as measure

    request = Request(src, dst, parse_layers(layer), None if index is None else parse_numbers(index, "index"), site, align, pairs, seed)
    with common.progress() as view:
        bar = view.add_task("interchange", total=None)
        result = measure(
            request,
            root=runs,
            device=models.pick_device(device),
            on_cell=lambda done, total: view.update(bar, completed=done, total=total),
        )
    stored = result.save(results)
    if json:
        common.print_json(result.to_json())
        return
    out = common.out()
    out.print(_table(result))
    out.print(_reading(result), soft_wrap=True)
    out.print(f"\n{result.summary['finding']}", style="bold", soft_wrap=True)
    out.print(f"[dim]stored in {stored}; see it: wallprobe gallery --open[/dim]", soft_wrap=True)


SHIFTS = (("import", "the donor's answer"), ("rule", "its rule"))
CONTROLS = (("raw", "unaligned"), ("random", "random donor"), ("mismatched", "other donor"), ("norm", "random vector"))


def _table(result: "Result") -> Any:
    """The three answers' probabilities: with every control for up to two layers, one row a cell beyond."""
    from rich.table import Table

    attrs, brief = result.data.attrs, len(result.values) > 4
    title = f"{attrs['src']} -> {attrs['dst']}, {attrs['site']}: probability of three answers at index {attrs['read_index']}"
    table = Table(title=title, title_justify="left")
    table.add_column("layer", justify="right")
    table.add_column("index", justify="right")
    if not brief:
        table.add_column("patch")
    for heading in ("own answer", "donor's rule", "donor's answer"):
        table.add_column(heading)
    for record in result.values:
        place, answers = [str(record["layer"]), str(record["index"])], ("own", "rule", "import")
        treated = [f"[bold]{record[f'p_{name}']:.3f}[/bold] [dim]±{_half_width(record, name):.3f}[/dim]" for name in answers]
        if brief:
            table.add_row(*place, *treated)
            continue
        table.add_row(*place, "none", *(f"{record[f'base_p_{name}']:.3f}" for name in answers))
        table.add_row("", "", f"[bold]{attrs['src']}[/bold]", *treated)
        for control, label in CONTROLS:
            if record.get(f"p_{answers[0]}_{control}") is not None:
                table.add_row("", "", label, *(f"{record[f'p_{name}_{control}']:.3f}" for name in answers))
        table.add_section()
    return table


def _half_width(record: dict[str, Any], name: str) -> float:
    """Half the 95 % interval (the interval itself, not always symmetric, is in --json)."""
    return float(record[f"p_{name}_high"] - record[f"p_{name}_low"]) / 2


def _reading(result: "Result") -> str:
    """The lines under the table: floor, guards, basis, shift."""
    attrs, lines = result.data.attrs, []
    start = (
        "share an initialisation" if result.summary["shared_initialisation"] else "share no initialisation, so their bases may be unrelated"
    )
    lines.append(
        f"{result.summary['n_pairs']} pairs; noise floor 1/{attrs['modulus']} = {attrs['noise_floor']:.3f}; "
        f"self-patch changed {result.summary['self_patch_max_change']:g}; {attrs['src']} and {attrs['dst']} {start}."
    )
    for record in result.values if len(result.values) <= 4 else ():
        shift = " and ".join(
            f"{record[f'shift_{name}']:+.2f} towards {label} (random donor {record[f'shift_{name}_random']:+.2f})" for name, label in SHIFTS
        )
        fitted = "" if record["alignment_r2"] is None else f"; alignment held-out R^2 {record['alignment_r2']:.3f}"
        kl = f"KL to the donor's prediction {record['base_kl_to_donor']:.2f} -> {record['kl_to_donor']:.2f} nats"
        lines.append(f"index {record['index']} at layer {record['layer']}: shift {shift}; {kl}{fitted}")
    return "\n".join(lines)
