"""`wallprobe scaling`: the law of the last MLP's gain over model size."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, options
from wallprobe.cli.packed import empty

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

    from wallprobe.store.results import Result


def scaling(
    measured: Annotated[
        list[str] | None,
        typer.Argument(help="Stored gains (or flows): folders, or models by name in the result store.", metavar="RESULT..."),
    ] = None,
    published: Annotated[bool, typer.Option("--published", help="The eight Pythia models as their study published them.")] = False,
    quantity: Annotated[
        str, typer.Option(help="final_mlp_gain, final_mlp_gain_no_sink, final_mlp_gain_no_first or final_mlp_gain_last.")
    ] = "final_mlp_gain",
    at: Annotated[str | None, typer.Option(help="Sizes to extrapolate to, such as 70B,1.8T.", show_default="the published ones")] = None,
    efficiency: Annotated[
        bool, typer.Option("--efficiency", help="Read stored flows: also eta over size, and the critical size N* where there is one.")
    ] = False,
    seed: options.Seed = 42,
    results: options.Results = None,
    json: options.Json = False,
) -> None:
    """Fit gain = c x parameters^alpha, with every interval that says how far to believe it, and extrapolate."""
    from wallprobe.errors import ConfigError
    from wallprobe.hooks.gains import scaling as law
    from wallprobe.store.reading import is_there
    from wallprobe.store.results import RECORD, list_results

    if published == bool(measured):
        raise ConfigError("give either stored gains (wallprobe scaling RESULT RESULT RESULT) or --published, not both and not neither")
    targets = parse_sizes(at)
    if published:
        if efficiency:
            raise ConfigError("the published figures have no losses; leave --efficiency out, or give models measured by wallprobe flow")
        if quantity != law.QUANTITIES[0]:
            raise ConfigError(f"the published figures know no {quantity}, only {law.QUANTITIES[0]}; leave --quantity out")
        result = law.scaling(law.published_points(), source="published", targets=targets, seed=seed)
    else:
        found = [find(name, results, "flow" if efficiency else "gains") for name in measured or []]
        if not all(is_there(Path(name) / RECORD) for name in measured or []):
            common.tell_damaged(list_results(results)[1])
        result = law.scaling(law.points_of(found, quantity), quantity=quantity, targets=targets, seed=seed)
    folder = result.save(results)
    if json:
        common.print_json(result.to_json())
        return
    report(common.out(), result, folder)


def find(name: str, results: Path | None, kind: str = "gains") -> "Result":
    """A stored Result: that folder, or the newest of that kind and model in the store.

    Raises:
        UnknownNameError: if there is none.
    """
    from wallprobe.errors import UnknownNameError
    from wallprobe.store.reading import is_there
    from wallprobe.store.results import RECORD, default_root, list_results, load_result

    if is_there(Path(name) / RECORD):
        return load_result(Path(name))
    sound, damaged = list_results(results)
    kept = [result for _, result in sound if result.kind == kind]
    fitting = [result for result in kept if name in (result.summary.get("model"), result.manifest.get("subject"))]
    if not fitting:
        known = ", ".join(sorted({str(result.manifest.get("subject")) for result in kept})[:8]) or "none"
        where = results or default_root()
        lost = f" (and damaged: {', '.join(path.name for path, _ in damaged)})" if damaged else ""
        raise UnknownNameError(f"no {kind} of '{name}' in {where}; measured there: {known}{lost}; make them: wallprobe {kind} {name}")
    return max(fitting, key=lambda result: str(result.manifest.get("created")))


def parse_sizes(text: str | None) -> list[float] | None:
    """Sizes as typed: 70B,1.8T,1e9.

    Raises:
        ConfigError: if one is no positive number.
    """
    from wallprobe.errors import ConfigError

    if text is None:
        return None
    sizes = []
    for part in text.split(","):
        word = part.strip()
        unit = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(word[-1:].upper(), 1.0)
        try:
            size = float(word[:-1] if unit > 1 else word) * unit
        except ValueError:
            size = math.nan
        if not (size > 0 and math.isfinite(size)):
            raise ConfigError(f"--at '{word}' is no size; give parameters such as 70B,1.8T or 1e9")
        sizes.append(size)
    return sizes


def report(console: "Console", result: "Result", folder: Path) -> None:
    """Print the fit, what else could be fitted, the fit without each model, and the extrapolation."""
    from rich.markup import escape

    parts: dict[str, list[dict[str, Any]]] = {}
    for record in result.values:
        parts.setdefault(record["part"], []).append(record)
    summary = result.summary
    console.print(_fits(parts, summary))
    if parts.get("without"):
        console.print(_without(parts["without"]))
    console.print(_extrapolation(parts["extrapolation"]))
    if any(record["quality"] is not None for record in parts["model"]):
        console.print(_efficiency(parts["model"]))
        console.print(critical(summary), soft_wrap=True, markup=False)
    console.print(escape(summary["finding"]), style="bold", soft_wrap=True)
    if any(record["beyond"] for record in parts["extrapolation"]):
        console.print("! more than 10 times the largest model measured: an extrapolation, no prediction", style="yellow", soft_wrap=True)
    console.print(f"[dim]stored in {escape(str(folder))}; see it: wallprobe gallery --open[/dim]", soft_wrap=True)


def critical(summary: "Mapping[str, Any]") -> str:
    """The critical size with its interval, or why there is none."""
    from wallprobe.hooks.gains.scaling import size_text

    if summary["n_star_reason"] is not None:
        return f"critical size N*: none: {summary['n_star_reason']}"
    at, low, high = (size_text(summary[name]) for name in ("n_star", "n_star_low", "n_star_high"))
    law = f"Q = {summary['quality_limit']:.3g} - c N^-{summary['quality_rate']:.3g}"
    return f"critical size N*: {at} parameters, 95 % over models {low} to {high}; {law}, F ~ N^{summary['alpha']:.3g}"


def _efficiency(records: "Sequence[dict[str, Any]]") -> Any:
    table = _table("Efficiency: eta = (ln V - loss) / gain", "model", "parameters", "ln V - loss", "gain", "eta")
    for record in records:
        cells = (_number(record[name], form) for name, form in (("quality", ".3f"), ("gain", ".3g"), ("eta", ".4g")))
        table.add_row(record["label"], f"{record['x']:.4g}", *cells)
    return table


def _number(value: float | None, form: str) -> str:
    return "-" if value is None or not math.isfinite(value) else format(value, form)


def _between(low: float | None, high: float | None, form: str = ".3f") -> str:
    return "" if low is None or high is None else f"{format(low, form)} to {format(high, form)}"


def _table(title: str, *heads: str, caption: str = "") -> Any:
    table = empty(title, caption=caption)
    table.add_column(heads[0], no_wrap=True)
    for head in heads[1:]:
        table.add_column(head, justify="right", no_wrap=True)
    return table


def _fits(parts: dict[str, list[dict[str, Any]]], summary: dict[str, Any]) -> Any:
    title = f"{summary['quantity']}, {summary['n_models']} {summary['source']} models: log10 gain = alpha log10 size + c"
    table = _table(title, "size", "alpha", "± SE", "R²", "p", "95 % interval")
    table.caption = f"c = {summary['intercept']:.4f} for n_params; 10^c = {summary['coefficient']:.5f}"
    for record in parts["fit"]:
        told = (_number(record[name], form) for name, form in (("alpha", ".4f"), ("alpha_se", ".4f"), ("r2", ".4f"), ("p", ".4f")))
        table.add_row(record["label"], *told, _between(record["low"], record["high"]))
    table.add_section()
    for name, label in (("bootstrap", "bootstrap over models"), ("bootstrap_prompts", "  and over prompts")):
        if _number(summary[f"{name}_low"], "f") != "-":
            table.add_row(label, "", "", "", "", _between(summary[f"{name}_low"], summary[f"{name}_high"]))
    for record in parts["robust"]:
        slope = record["alpha"] if record["alpha"] is not None else record["correlation"]
        told = (_number(value, ".4f") for value in (record["alpha_se"], record["r2"], record["p"]))
        table.add_row(record["label"], _number(slope, ".4f"), *told, _between(record["low"], record["high"]))
    return table


def _without(records: "Sequence[dict[str, Any]]") -> Any:
    table = _table("Without one model", "left out", "alpha", "± SE", "R²", "p")
    for record in records:
        p = _number(record["p"], ".3f")
        told = (_number(record[name], ".3f") for name in ("alpha", "alpha_se", "r2"))
        table.add_row(record["label"], *told, f"[yellow]{p}[/yellow]" if (record["p"] or 0) >= 0.05 else p)
    return table


def _extrapolation(records: "Sequence[dict[str, Any]]") -> Any:
    told = any(record["seed_says"] is not None for record in records)
    heads = ("parameters", "formula", "95 % of a new model", "anchored at the largest", *(("published",) if told else ()))
    table = _table("Extrapolated gain", *heads)
    for record in records:
        mark = " [yellow]![/yellow]" if record["beyond"] else ""
        cells = [_number(record["formula"], ".1f"), _between(record["low"], record["high"], ".1f"), _number(record["anchored"], ".1f")]
        table.add_row(record["label"] + mark, *cells, *([_number(record["seed_says"], ".1f")] if told else []))
    return table
