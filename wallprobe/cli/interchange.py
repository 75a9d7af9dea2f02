"""`wallprobe interchange`: one network's activation in another."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, options, parsing, prompting
from wallprobe.errors import ConfigError

if TYPE_CHECKING:
    from wallprobe.hooks.interchange.request import Request
    from wallprobe.hooks.interchange.run import Plan
    from wallprobe.store.results import Result

Layer = Annotated[str | None, typer.Option(help="Layer, list of layers (0,3,5), or all.", show_default="3, with --sweep or --prompts all")]
Index = Annotated[
    str | None,
    typer.Option(help="Index, slot, or list of such to patch, one at a time.", show_default="the last two, with --sweep or --prompts all"),
]
Site = Annotated[
    str | None,
    typer.Option(
        help="resid_pre, resid_mid, resid_post, attn_out, mlp_out, z; with --sweep or --prompts a list, or all.",
        show_default="resid_pre, with --sweep all",
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(help="JSON Lines file of prompt pairs (clean, corrupt, answer, wrong): src and dst are then language models."),
]


def interchange(
    src: Annotated[str, typer.Option(help="Donor run; with --sweep a list (p5,c1). With --prompts a folder, .gguf file or hub id.")],
    dst: Annotated[str, typer.Option(help="Receiving run or model; with --sweep a list of runs.")],
    layer: Layer = None,
    index: Index = None,
    site: Site = None,
    prompts: Prompts = None,
    sweep: Annotated[bool, typer.Option("--sweep", help="Every layer, index and site of every pair of src and dst.")] = False,
    align: Annotated[str, typer.Option(help="none, procrustes or ridge: fit src's basis to dst's first.")] = "none",
    subspace: Annotated[
        str | None, typer.Option(help="Patch only the component in a span: probes:a,b, pca:8 or random:8.", show_default="the whole state")
    ] = None,
    read: Annotated[str | None, typer.Option(help="Read as well: rank, kl, log_p, p, logit_difference, a plugin's (a list).")] = None,
    intervention: Annotated[str | None, typer.Option(help="Put there: zero, mean, a plugin's.", show_default="the donor's state")] = None,
    direction: Annotated[str, typer.Option(help="denoise (donor into base), noise (base into donor), or both.")] = "denoise",
    window: Annotated[int, typer.Option(help="Layers patched at once, from each layer on.", min=1)] = 1,
    capable: Annotated[bool, typer.Option("--capable", help="Leave out pairs that the models do not answer rightly.")] = False,
    pairs: Annotated[int, typer.Option(help="Pairs of sequences drawn.", min=10)] = 1000,
    budget: Annotated[float, typer.Option(help="GiB that a sweep's tensors may take beside the weights.", min=0.01)] = 1.0,
    backend: Annotated[str, typer.Option(help="hooks, or nnsight (one layer; needs the extra 'remote').")] = "hooks",
    remote: Annotated[str, typer.Option(help="With nnsight none, or local: the way it would go to NDIF, run here.")] = "none",
    plan: Annotated[bool, typer.Option("--plan", help="Say what it would take, and stop.")] = False,
    seed: options.Seed = 0,
    *,
    place: options.Place,
) -> None:
    """Put src's activation into dst and read whose answer comes out: dst's own, the donor's rule, or the donor's prediction."""
    from wallprobe.hooks.attach.remote import check as check_backend
    from wallprobe.hooks.interchange.request import DIRECTIONS, Request

    check_backend(backend, remote)
    _check(sweep, prompts, subspace, align, backend, remote, layer)
    for what, given in (("src", src), ("dst", dst)) if not sweep or prompts is not None else ():
        if "," in given:
            raise ConfigError(f"--{what} {given} is a list; give one, or --sweep for all of them")
    if "," in (site or "") and not sweep and prompts is None:
        raise ConfigError(f"--site {site} is a list; give one, or --sweep for all of them")
    if direction != "both" and direction not in DIRECTIONS:
        raise ConfigError(f"--direction {direction} is none of {', '.join(DIRECTIONS)}, both")
    every = sweep or prompts is not None
    requests = [
        Request(
            donor,
            receiver,
            parsing.layers(layer or ("all" if every else "3")),
            parsing.places(index) if every or index is None else parsing.numbers(index, "index"),
            _named_sites(site, prompts, sweep=sweep),
            align,
            pairs if prompts is None else prompts,
            seed,
            subspace,
            backend,
            remote,
            budget,
            sweep and prompts is None,
            tuple(parsing.words(read or "")),
            intervention,
            one,
            window,
            capable,
        )
        for donor in (src.split(",") if sweep and prompts is None else [src])
        for receiver in (dst.split(",") if sweep and prompts is None else [dst])
        for one in (DIRECTIONS if direction == "both" else (direction,))
    ]
    _run(requests, place, plan=plan)


def _named_sites(site: str | None, prompts: Path | None, *, sweep: bool) -> tuple[str, ...]:
    from wallprobe.hooks.interchange.places import TEXT_SITES
    from wallprobe.models import SITES

    return tuple(parsing.words(site or ("all" if sweep else "resid_pre"), SITES if prompts is None else TEXT_SITES))


def _check(sweep: bool, prompts: Path | None, subspace: str | None, align: str, backend: str, remote: str, layer: str | None) -> None:
    """Refuse options that do not go together."""
    if subspace is not None and (sweep or prompts is not None):
        left = "--sweep out, with --layer all if you like" if sweep else "--prompts out: spans are fitted on runs"
        raise ConfigError(f"--subspace {subspace} is for one pair and site at a time; leave {left}")
    if prompts is not None and align != "none":
        raise ConfigError(f"--align {align} is for runs; language models on --prompts are patched as they are")
    if prompts is not None and backend == "nnsight" and (sweep or layer in (None, "all")):
        raise ConfigError("--backend nnsight runs the model once a cell and arm: give a --layer (or a short list), and no --sweep")
    if prompts is None and remote != "none":
        raise ConfigError(f"--remote {remote} is for language models on --prompts: a remote machine does not have runs")
    if prompts is None and sweep and backend != "hooks":
        raise ConfigError(f"--backend {backend} runs one cell at a time; leave --sweep out, or the backend")


def _run(requests: "Sequence[Request]", place: options.Place, *, plan: bool) -> None:
    """Every request, one after the other; each is stored when it is done."""
    from wallprobe.hooks.interchange import run

    device = place.pick()
    if plan or len(requests) > 1:
        plans = [run.plan(request, root=place.runs, device=device) for request in requests]
        if plan:
            _tell_plans(plans, place, device)
            return
    made = []
    with common.progress() as view:
        for request in requests:
            bar = view.add_task("interchange" if len(requests) == 1 else f"{request.src} to {request.dst}", total=None)
            made.append(run.interchange(request, root=place.runs, device=device, on_cell=common.follower(view, bar)))
            if len(requests) > 1:
                made[-1].save(place.results)
    if len(made) == 1 and made[0].kind != "sweep":
        shown = {"interchange": (_table, _reading), "prompts": (prompting.table, prompting.reading)}.get(made[0].kind, (_cells, _finding))
        common.finish(made[0], place, common.printing(lambda result: (shown[0](result), shown[1](result))))
        return
    if len(made) == 1:
        made[0].save(place.results)
    _print_several(made, place)


def _print_several(made: "list[Result]", place: options.Place) -> None:
    if place.json:
        kind = "sweeps" if made[0].kind == "sweep" else "directions"
        common.print_json(made[0].to_json() if len(made) == 1 else {"kind": kind, kind: [result.to_json() for result in made]})
        return
    out = common.out()
    for result in made:
        out.print({"sweep": _sites, "prompts": prompting.table, "interchange": _table}.get(result.kind, _cells)(result))
        out.print(f"{result.summary['finding']}\n", style="bold", soft_wrap=True)
    if made[0].kind == "sweep":
        engine, budget = made[0].manifest["engine"], made[0].manifest["config"]["budget"]
        apart = max(result.manifest["engine"]["largest_difference"] for result in made)
        out.print(
            f"L: layer, i: index; random: with a random donor there. Within {budget:g} GiB beside the weights. In each sweep "
            f"{engine['checked_cells']} cells were run whole too: at most {apart:.1g} apart in log-probability; self-patches changed 0.",
            soft_wrap=True,
        )
    out.print("[dim]stored; see them: wallprobe gallery --open[/dim]", soft_wrap=True)


def _tell_plans(plans: "Sequence[Plan]", place: options.Place, device: str) -> None:
    """What each would take."""
    told = [plan.cost(device) for plan in plans]
    if place.json:
        common.print_json(told[0] if len(told) == 1 else {"kind": "plans", "plans": told})
        return
    for one in told:
        common.out().print(
            f"{one['src']} -> {one['dst']}: {one['cells']:,} cells x {one['arms']} arms of {one['pairs']:,} pairs, {one['how']}; "
            f"about {one['passes']:,.0f} whole passes, {one['minutes']:.1f} minutes, {one['gib']:.2f} GiB beside the weights",
            soft_wrap=True,
        )


def _cells(result: "Result") -> Any:
    """A row a cell of pairs of the user's own: the answers' probabilities, and the strongest control's."""
    from rich.table import Table

    names = [name for name in result.data.data_vars if f"{name}_random" in result.data]
    table = Table(title=f"{result.data.attrs['subject']}: mean over pairs (random donor)", title_justify="left")
    for heading in ("site", "layer", "index", *map(str, names)):
        table.add_column(heading)
    for record in result.values:
        if record[str(names[0])] is not None:
            cells = [f"{record[str(name)]:.3f} ({record[f'{name}_random']:.3f})" for name in names]
            table.add_row(record["site"], str(record["layer"]), str(record["index"]), *cells)
    return table


def _finding(result: "Result") -> str:
    return str(result.summary["finding"])


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


SHIFTS = (("import", "the donor's answer"), ("rule", "its rule"))
CONTROLS = (
    ("raw", "unaligned"),
    ("random", "random donor"),
    ("mismatched", "other donor"),
    ("norm", "random vector"),
    ("span", "random span"),
    ("whole", "whole state"),
)


def _table(result: "Result") -> Any:
    """The three answers' probabilities: with every control for up to two layers, one row a cell beyond."""
    from rich.table import Table

    attrs, brief = result.data.attrs, len(result.values) > 4
    inside = f" in {attrs['subspace']}" if "subspace" in attrs else ""
    title = f"{attrs['src']} -> {attrs['dst']}, {attrs['site']}{inside}: probability of three answers at index {attrs['read_index']}"
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
        lines.append(f"index {record['index']} at layer {record['layer']}: shift {shift}; {kl}{fitted}{_span(record)}{_more(record)}")
    return "\n".join(lines)


def _more(record: dict[str, Any]) -> str:
    """What was read besides, each with the random donor's."""
    names = [key.removesuffix("_random") for key in record if key.endswith("_random") and not key.startswith(("p_", "shift_"))]
    return "".join(f"; {name.replace('_', ' ')} {record[name]:.3g} (random donor {record[f'{name}_random']:.3g})" for name in names)


def _span(record: dict[str, Any]) -> str:
    """How large the subspace is there, and what its probes read."""
    if record.get("subspace_dims") is None:
        return ""
    read = "" if record["probe_accuracy"] is None else f", its probes right in {record['probe_accuracy']:.2f} of held-out sequences"
    return (
        f"; span of {record['subspace_dims']:.0f} dimensions with {record['subspace_variance']:.0%} of the variance "
        f"(random span {record['span_variance']:.0%}){read}"
    )
