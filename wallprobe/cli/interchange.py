"""`wallprobe interchange`: one network's activation in another."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from wallprobe.cli import common
from wallprobe.errors import ConfigError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from wallprobe.hooks.prompt_report import PromptRequest
    from wallprobe.hooks.sweep_report import SweepRequest
    from wallprobe.results import Result


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(interchange)


def interchange(
    src: Annotated[str, typer.Option(help="Donor run; with --sweep a list (p5,c1).")],
    dst: Annotated[str, typer.Option(help="Receiving run; with --sweep a list.")],
    layer: Annotated[str | None, typer.Option(help="Layer, list of layers (0,3,5), or all.", show_default="3, with --sweep all")] = None,
    index: Annotated[
        str | None,
        typer.Option(help="Index or list of indices to patch, one at a time.", show_default="the last two, with --sweep all"),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            help="resid_pre, resid_mid, resid_post, attn_out, mlp_out, z; with --sweep a list.",
            show_default="resid_pre, with --sweep all",
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(help="JSON Lines file of prompt pairs (clean, corrupt, answer, wrong): src and dst are then language models."),
    ] = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Every layer, index and site of every pair of src and dst.")] = False,
    align: Annotated[str, typer.Option(help="none, procrustes or ridge: fit src's basis to dst's first.")] = "none",
    pairs: Annotated[int, typer.Option(help="Pairs of sequences drawn.", min=10)] = 1000,
    budget: Annotated[float, typer.Option(help="GiB that a sweep's patched states may take.", min=0.01)] = 1.0,
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
    from wallprobe.hooks.prompt_report import TEXT_SITES, PromptRequest
    from wallprobe.hooks.sweep_report import SweepRequest

    chosen = None if index in (None, "all") else parse_numbers(str(index), "index")
    if prompts is not None:
        if align != "none":
            raise ConfigError(f"--align {align} is for runs; language models on --prompts are patched as they are")
        layers, wanted = parse_layers(layer or "all"), tuple((site or ("all" if sweep else "resid_pre")).split(","))
        wanted = TEXT_SITES if wanted == ("all",) else wanted
        _prompts(PromptRequest(src, dst, str(prompts), layers, chosen, wanted, seed, budget), models.pick_device(device), results, json)
        return
    if sweep:
        sites = models.SITES if site in (None, "all") else tuple(str(site).split(","))
        requests = [
            SweepRequest(donor, receiver, parse_layers(layer or "all"), chosen, sites, align, pairs, seed, budget)
            for donor in src.split(",")
            for receiver in dst.split(",")
        ]
        _sweep(requests, models.pick_device(device), runs, results, json)
        return
    for what, given in (("src", src), ("dst", dst), ("site", site or "")):
        if "," in given:
            raise ConfigError(f"--{what} {given} is a list; give one, or --sweep for all of them")
    request = Request(src, dst, parse_layers(layer or "3"), chosen, site or "resid_pre", align, pairs, seed)
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


def _sweep(requests: "Sequence[SweepRequest]", device: str, runs: "Path | None", results: "Path | None", json: bool) -> None:
    """Every pair of runs, one after the other; each is stored when it is done."""
    from wallprobe.hooks.interchange_sweep import check, sweep

    for request in requests:
        check(request, runs)
    made = []
    with common.progress() as view:
        for request in requests:
            bar = view.add_task(f"{request.src} to {request.dst}", total=None)
            made.append(sweep(request, root=runs, device=device, on_cell=partial(_show, view, bar)))
            made[-1].save(results)
    if json:
        common.print_json(made[0].to_json() if len(made) == 1 else {"kind": "sweeps", "sweeps": [result.to_json() for result in made]})
        return
    out = common.out()
    for result in made:
        out.print(_sites(result))
        out.print(f"{result.summary['finding']}\n", style="bold", soft_wrap=True)
    engine, budget = made[0].manifest["engine"], made[0].manifest["config"]["budget"]
    apart = max(result.manifest["engine"]["largest_difference"] for result in made)
    out.print(
        f"L: layer, i: index; random: with a random donor there. Patched states within {budget:g} GiB. In each sweep "
        f"{engine['checked_cells']} cells were run whole as well: at most {apart:.1g} apart in log-probability; self-patches changed 0.",
        soft_wrap=True,
    )
    out.print("[dim]stored; see them: wallprobe gallery --open[/dim]", soft_wrap=True)


def _prompts(request: "PromptRequest", device: str, results: "Path | None", json: bool) -> None:
    """Language models on pairs of prompts: the strongest cells of each site."""
    from rich.table import Table

    from wallprobe.hooks.prompt_interchange import prompt_interchange

    with common.progress() as view:
        bar = view.add_task("interchange", total=None)
        result = prompt_interchange(request, device=device, on_cell=partial(_show, view, bar))
    stored = result.save(results)
    if json:
        common.print_json(result.to_json())
        return
    attrs, out = result.data.attrs, common.out()
    table = Table(title=f"{attrs['src']} -> {attrs['dst']}: share of the clean answer restored, strongest cells", title_justify="left")
    for heading in ("site", "layer", "index", "token", "restored", "random donor", "random vector", "p(answer)", "q"):
        table.add_column(heading, justify="left" if heading in ("site", "token") else "right")
    words = [str(word) for word in result.data["example_token"].values.tolist()]
    tokens = dict(zip(result.data["index"].values.tolist(), words, strict=True))
    records = [record for record in result.values if record["restored"] is not None]
    for name in result.data["site"].values.tolist():
        strongest = sorted((record for record in records if record["site"] == name), key=lambda record: -float(record["restored"]))
        for record in strongest[:STRONGEST]:
            restored = f"[bold]{record['restored']:.2f}[/bold] [dim]±{(record['restored_high'] - record['restored_low']) / 2:.2f}[/dim]"
            controls = (f"{record['restored_random']:.2f}", f"{record['restored_norm']:.2f}")
            place = (name, str(record["layer"]), str(record["index"]), escape(repr(tokens[record["index"]])))
            table.add_row(*place, restored, *controls, f"{record['p_answer']:.3f}", f"{record['q_value']:.3f}")
        table.add_section()
    out.print(table)
    summary = result.summary
    corrupt, clean = summary["base_logit_difference"], summary["clean_logit_difference"]
    out.print(
        f"{summary['n_pairs']} pairs, {summary['n_cells']} cells; logit difference {corrupt:.2f} on the corrupt prompts (0 above), "
        f"{clean:.2f} on the clean ones (1); self-patches changed {summary['self_patch_max_change']:g}.",
        soft_wrap=True,
    )
    out.print(f"\n{escape(summary['finding'])}", style="bold", soft_wrap=True)
    out.print(f"[dim]stored in {stored}; see it: wallprobe gallery --open[/dim]", soft_wrap=True)


def _show(view: "Progress", bar: "TaskID", done: int, total: int) -> None:
    view.update(bar, completed=done, total=total)


def _sites(result: "Result") -> Any:
    """For each site: where the donor's answer and its rule are likeliest, and in how many cells they cross."""
    from rich.table import Table

    attrs, raw = result.data.attrs, "" if result.data.attrs["align"] == "none" else f", {result.data.attrs['align']}-aligned (raw)"
    table = Table(title=f"{attrs['src']} -> {attrs['dst']}{raw}: at most, by site", title_justify="left")
    for heading in ("site", "donor's answer", "at", "random", "donor's rule", "at", "random", "cells"):
        table.add_column(heading, justify="left" if heading in ("site", "at") else "right", no_wrap=heading in ("site", "at"))
    for name in result.data["site"].values.tolist():
        records = [record for record in result.values if record["site"] == name and record["p_import"] is not None]
        row = [name]
        for answer in ("import", "rule"):
            best = max(records, key=lambda record: float(record[f"p_{answer}"]))
            unaligned = best.get(f"p_{answer}_raw")
            shown = f"[bold]{best[f'p_{answer}']:.3f}[/bold]" + ("" if unaligned is None else f" ({unaligned:.3f})")
            row += [shown, f"L{best['layer']} i{best['index']}", f"{best[f'p_{answer}_random']:.3f}"]
        table.add_row(*row, str(len(records)))
    return table


STRONGEST = 5  # cells of a site that are printed
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
