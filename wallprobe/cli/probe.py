"""`wallprobe probe`: what a linear reader finds at every layer and index of a run."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, options
from wallprobe.cli.packed import empty

if TYPE_CHECKING:
    from collections.abc import Mapping

    from wallprobe.store.results import Result
    from wallprobe.store.runs import Run


def probe(
    names: options.RunNames,
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
    """Linear probes for the next token, the rule's a and b, the class and the entropy at every layer and index, beside shuffled labels."""
    from wallprobe.cli.parsing import layers
    from wallprobe.hooks.probes.measure import probe as measure

    asked: dict[str, Any] = {"layers": layers(layer), "site": site, "n": n, "seed": seed}
    asked["targets"] = None if targets is None else tuple(name.strip() for name in targets.split(","))

    def one(run: "Run", device: str, bar: Callable[..., None]) -> "Result":
        return measure(run, **asked, device=device, on_progress=lambda doing: bar(description=f"probe {run.name}: {doing}"))

    measured = common.measure_runs(names, "probe", one, place)
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
