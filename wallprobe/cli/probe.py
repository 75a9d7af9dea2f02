"""`wallprobe probe`: what a linear reader finds at every layer, of a run's own targets or of labelled text."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, options, subjects
from wallprobe.cli.packed import Packed, empty
from wallprobe.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from wallprobe.store.results import Result
    from wallprobe.store.runs import Run


def probe(
    models: options.Models,
    labels: options.Labels = None,
    layer: options.Layers = "all",
    site: options.Site = "resid_post",
    targets: Annotated[
        str | None, typer.Option(help="Some of token,a,b,class,entropy.", show_default="all that the run's task has")
    ] = None,
    n: Annotated[int, typer.Option("--n", help="Sequences: 5/8 fit the probes, 1/8 choose their penalty, 1/4 score them.")] = 4000,
    seed: options.Seed = 0,
    *,
    place: options.Place,
) -> None:
    """Linear probes at every layer beside control labels: of a run for the next token, the rule's a and b, the class and the entropy at
    every index; of any model for labelled text (--labels), beside the majority label, the token's type and a bag of tokens."""
    from wallprobe.cli.parsing import layers as parse_layers
    from wallprobe.hooks.probes.measure import probe as measure

    if labels is not None:
        subjects.refuse("labelled text (--labels)", targets=targets)
        _of_labels(models, labels, parse_layers(layer), site, seed, place)
        return
    if not subjects.all_runs(models):
        raise ConfigError(f"probes of {models[0]}, which is no run, need labelled text; give --labels FILE")

    asked: dict[str, Any] = {"layers": parse_layers(layer), "site": site, "n": n, "seed": seed}
    asked["targets"] = None if targets is None else tuple(name.strip() for name in targets.split(","))

    def one(run: "Run", device: str, bar: Callable[..., None]) -> "Result":
        return measure(run, **asked, device=device, on_progress=lambda doing: bar(description=f"probe {run.name}: {doing}"))

    measured = common.measure_runs(models, "probe", one, place)
    folders = [result.save(place.results) for result in measured]
    if place.json:
        common.print_json(common.together(measured, "run"))
        return
    out = common.out()
    for result, folder in zip(measured, folders, strict=True):
        out.print(
            f"Probes of {result.summary['run']}, {result.summary['site']}: accuracy at layer {result.summary['layer']}, "
            "R^2 for the entropy; then best layer:score",
            soft_wrap=True,
            markup=False,
        )
        out.print(_table(result))
        out.print(_reading(result), soft_wrap=True)
        out.print(f"\n{result.summary['finding']}", style="bold", soft_wrap=True)
        out.print(f"[dim]stored in {folder}; see it: wallprobe gallery --open[/dim]\n", soft_wrap=True)


def _of_labels(models: list[str], labels: "Path", layers: tuple[int, ...] | None, site: str, seed: int, place: options.Place) -> None:
    from wallprobe.hooks.probes.labelled import probe_labelled
    from wallprobe.models import hook_name

    hook_name(0, site)  # one that is not there is told before anything is loaded
    device = place.pick()
    subjects.measure(
        models,
        "probe",
        lambda loaded, read, follow: probe_labelled(loaded, read, layers=layers, site=site, seed=seed, device=device, follow=follow),
        None,
        labels,
        place,
        lambda result: (_labels_table(result), *_labels_reading(result.summary)),
    )


def _labels_table(result: "Result") -> Any:
    """A row a layer; the one that the validation loss chose is marked."""
    from rich.markup import escape

    from wallprobe.findings import beyond
    from wallprobe.hooks.attach.gathering import layer_name

    summary = result.summary
    rival = f"{summary['best_baseline']}_accuracy"
    rows = []
    for row in result.values:
        chosen = row["layer"] == summary["layer"]
        half = (row["accuracy_high"] - row["accuracy_low"]) / 2
        told = f"{row['accuracy']:.3f}"
        more = beyond(row["accuracy"], row[rival], (row["gain_low"], row["gain_high"]))
        more = more and beyond(row["accuracy"], row["control_accuracy"], (row["selectivity_low"], row["selectivity_high"]))
        cells = [f"[bold]{told}[/bold]" if more else told]
        cells[0] += f" [dim]±{half:.3f}[/dim]"
        cells += [f"{row['control_accuracy']:.3f}", f"{row['selectivity']:.3f}", f"{row['gain']:+.3f}", f"{row['validation_loss']:.3f}"]
        rows.append([("› " if chosen else "") + layer_name(row["layer"]), *cells])
    heads = ("layer", "accuracy", "control\nlabels", "selectivity", "beyond the\nbest baseline", "validation\nloss, nats")
    title = escape(f"Probes of {summary['model']}, {summary['site']}, for {summary['labels']} ({summary['n_classes']} labels)")
    caption = "± half the 95 % interval over texts; bold: above control labels and best baseline beyond it; › chosen by the validation loss"
    return Packed(title, heads, rows, caption)


def _labels_reading(summary: "Mapping[str, Any]") -> tuple[str, ...]:
    """What stands beside the probes."""
    words = {"majority": "majority label", "token_type": "type of token", "bag": "bag of tokens"}
    told = ", ".join(f"{word} {summary[f'{name}_accuracy']:.3f}" for name, word in words.items() if summary[f"{name}_accuracy"] is not None)
    drawn = {"shuffled": "the labels shuffled over texts", "types": "one random label a type of token"}[summary["control"]]
    return (
        f"baselines: {told}. Control labels: {drawn}. No text is on two sides: {summary['n_train_texts']} texts fit, "
        f"{summary['n_test_texts']} score, {summary['n_test']} places.",
    )


def _table(result: "Result") -> Any:
    """Scores of the last layer probed by index, the exact answer's and the best layer beside; the wall is drawn as a line."""
    data, summary = result.data, result.summary
    tested = summary["n_test"] or summary["n_test_programs"]
    caption = f"{tested} test sequences; bold: the 95 % interval of selectivity is above 0; the line is the wall"
    table = empty(caption=caption, pad_edge=False)
    table.add_column("index", justify="right", no_wrap=True)
    targets = [str(target) for target in data["target"].values]
    for target in targets:
        table.add_column(target, no_wrap=True)
        if target == "token":
            table.add_column("[dim]exact[/dim]", no_wrap=True)
    wall = int(data.attrs["start"]) + int(data.attrs["horizon"]) - 1
    for index in data["index"].values.tolist():
        cells = [str(index)]
        for target in targets:
            column = data.sel(index=index, target=target)
            cells.append(_cell(column))
            if target == "token":
                cells.append(f"[dim]{float(column['ceiling'][-1]):.2f}[/dim]")
        table.add_row(*cells, end_section=index == wall)
    return table


def _cell(column: Any) -> str:
    """One index and target: the last layer's score, and the best layer with its own."""
    name = "accuracy" if math.isfinite(float(column["chance"][0])) else "r2"
    scores = column[name].values
    if not any(map(math.isfinite, scores.tolist())):
        return "[dim]-[/dim]"
    last, best = f"{scores[-1]:.3f}", int(scores.argmax())
    told = f"[bold]{last}[/bold]" if float(column["selectivity_low"][-1]) > 0 else last
    highest = f"{scores[best]:.2f}".removeprefix("0")
    return told if len(scores) == 1 else f"{told} [dim]{int(column['layer'][best])}:{highest}[/dim]"


def at_the_wall(summary: "Mapping[str, Any]") -> str:
    """How the accuracy changes at the wall, if it does beyond its interval."""
    from wallprobe.findings import rounding, side

    drop, low, high = (summary[f"drop_after_horizon{end}"] for end in ("", "_low", "_high"))
    told = side(drop, 0.0, (low, high), rounding(1.0))
    words = {"above": "falls", "below": "rises"}
    if told == "level":
        return f"at the wall it changes by {-drop:+.3f}, no more than its interval"
    return f"it {words[told]} by {abs(drop):.3f} at the wall"


def _reading(result: "Result") -> str:
    """The last layer at the positions the wall study gives, its figure in brackets."""
    from wallprobe.claims.wall.instruments import POSITIONS, PROBED

    summary = result.summary
    known = dict(zip(POSITIONS, PROBED.get(str(summary["run"]).partition("@")[0], ()), strict=False))
    lines = []
    for position in POSITIONS:
        value, low, high = (summary[f"token_accuracy_{position}{suffix}"] for suffix in ("", "_low", "_high"))
        if value is not None:
            published = f" ({known[position]:g})" if position in known else ""
            lines.append(f"{position}: {value:.3f} ±{(high - low) / 2:.3f}{published}")
    if not lines:
        return ""
    fallen = f"; {at_the_wall(summary)}" if summary["drop_after_horizon"] is not None else ""
    return f"next token at position {', '.join(lines)}; chance {summary['chance']:.3f}{fallen}"
