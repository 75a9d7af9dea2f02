"""`wallprobe readout`: the donor's answer in the receiver, by depth, raw and aligned; of any model, whether what a probe reads is used."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, options, subjects
from wallprobe.cli.packed import empty
from wallprobe.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from wallprobe.store.results import Result


def readout(
    pairs: Annotated[
        list[str], typer.Argument(help="Donor and receiver: p5:c0, c0@1337:c0, ...; with --labels any models.", metavar="SRC:DST...")
    ],
    draws: Annotated[int | None, typer.Option(help="Pairs of sequences drawn.", min=10, show_default="1000")] = None,
    budget: Annotated[float | None, typer.Option(help="GiB that patched states may take.", min=0.01, show_default="1")] = None,
    seed: options.Seed = 0,
    labels: options.Labels = None,
    answers: Annotated[
        str | None,
        typer.Option(
            help="With --labels: what the model says for each, such as 'pos= good,neg= bad'.", show_default="a blank and the label"
        ),
    ] = None,
    site: Annotated[str | None, typer.Option(help="With --labels: where the probe reads.", show_default="resid_post")] = None,
    *,
    place: options.Place,
) -> None:
    """How likely each receiver gives the donor's answer, by depth of the patch: raw, rotated and ridge-aligned side by side. With --labels,
    of any model: what a probe of the labels reads is taken out or swapped at each layer, and the model's own answer is read."""
    if labels is not None:
        subjects.refuse("labelled text (--labels)", draws=draws, budget=budget)
        _used(pairs, labels, answers, site or "resid_post", seed, place)
        return
    subjects.refuse("pairs of runs", answers=answers, site=site)
    from wallprobe.hooks.interchange.readout import Pair, check
    from wallprobe.hooks.interchange.readout import readout as measure

    device = place.pick()
    asked = [Pair.parse(text) for text in pairs]
    for run in {run.path: run for pair in check(asked, place.runs) for run in pair}.values():
        run.verify()
    with common.progress() as view:
        follow = common.follower(view, view.add_task("readout", total=None))
        result = measure(
            asked,
            draws=1000 if draws is None else draws,
            seed=seed,
            budget=1.0 if budget is None else budget,
            root=place.runs,
            device=device,
            on_part=follow,
        )
    common.finish(result, place, _tell)


def _used(models: list[str], labels: "Path", answers: str | None, site: str, seed: int, place: options.Place) -> None:
    from wallprobe.hooks.interchange.used import used
    from wallprobe.models import hook_name

    hook_name(0, site)
    given, device = None if answers is None else _pairs(answers), place.pick()
    subjects.measure(
        models,
        "readout",
        lambda loaded, read, follow: used(loaded, read, answers=given, site=site, seed=seed, device=device, follow=follow),
        None,
        labels,
        place,
        _used_table,
    )


def _pairs(text: str) -> dict[str, str]:
    """`label=answer`s between commas; blanks before an answer count."""
    found = {}
    for part in text.split(","):
        label, sign, answer = part.partition("=")
        if not (label.strip() and sign and answer.strip()):
            raise ConfigError(f"--answers '{text}' is no list such as 'pos= good,neg= bad'")
        found[label.strip()] = answer
    return found


def _used_table(result: "Result") -> Any:
    """A row a layer: of each edit the fall of the own answer's lead, and the two controls."""
    from rich.markup import escape

    from wallprobe.cli.packed import Packed
    from wallprobe.hooks.attach.gathering import layer_name
    from wallprobe.hooks.interchange.used import against_control

    data, summary, rows = result.data, result.summary, []
    for layer in data["layer"].values.tolist():
        cells = [("› " if layer == summary["layer"] else "") + layer_name(layer)]
        for edit in data["edit"].values.tolist():
            at = data.sel(layer=layer, edit=edit)
            half = (float(at["effect_high"]) - float(at["effect_low"])) / 2
            told = f"{float(at['effect']):.3f}"
            more = against_control(at, summary["largest_logit"]) == "above"
            cells.append((f"[bold]{told}[/bold]" if more else told) + f" [dim]±{half:.3f}[/dim]")
            cells += [f"{float(at[f'effect_{arm}']):.3f}" for arm in ("random", "shuffled")]
        rows.append(cells)
    heads = ("layer", *(head for edit in ("removed", "swapped") for head in (edit, "random\ndirection", "shuffled\nlabels")))
    title = escape(f"{summary['model']}, {summary['site']}, {summary['labels']}: fall of the own answer's lead, in logits")
    caption = escape(
        f"answers: {summary['answers']}; ± half the 95 % interval over texts; bold: beyond both controls; › the probe's best layer"
    )
    told = (
        "Controls change the state by as much; of each the strongest draw. "
        f"Putting states back changed {summary['self_patch_max_change']:g}."
    )
    return Packed(title, heads, rows, caption), told


def _tell(out: "Console", result: "Result") -> None:
    """A table a pair, and what the columns are."""
    for name in result.data["pair"].values.tolist():
        out.print(_table(result, name))
    out.print(
        f"Probability of the donor's answer with its state of index {result.data.attrs['read_index']} patched; depth: blocks passed; "
        "±: half the 95 % interval; R²: of the alignment, held out; random donor and the donor's rule: the largest of the three."
    )


def _table(result: "Result", pair: str) -> Any:
    """One pair: a row a depth, the donor's answer at the last supervised index with a random donor's beside, and the rule."""

    from wallprobe.hooks.interchange.readout import WORDS

    data = result.data.sel(pair=pair).isel(index=-1)
    start = "one initialisation" if int(data["shared_initialisation"]) else "two initialisations"
    table = empty(f"{pair}, {start}", pad_edge=False)
    table.add_column("depth", justify="right")
    for align, words in WORDS.items():
        table.add_column(words.replace("-", "-\n"), justify="right", no_wrap=True)
        if align != "none":
            table.add_column("R²", justify="right", no_wrap=True)
    table.add_column("random\ndonor", justify="right", no_wrap=True)
    table.add_column("rule", justify="right", no_wrap=True)
    for depth in data["depth"].values.tolist():
        at, row = data.sel(depth=depth), [str(depth)]
        for align in WORDS:
            middle, low, high = (float(at[f"p_import{end}"].sel(align=align)) for end in ("", "_low", "_high"))
            row.append(f"[bold]{middle:.3f}[/bold] [dim]±{(high - low) / 2:.3f}[/dim]")
            if align != "none":
                row.append(f"{float(at['alignment_r2'].sel(align=align)):.2f}")
        table.add_row(*row, *(f"{float(at[name].max()):.3f}" for name in ("p_import_random", "p_rule")))
    return table
