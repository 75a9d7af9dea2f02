"""`wallprobe triangulate`: one gradient by several estimators, on several batches."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import diagnosing, options

if TYPE_CHECKING:
    from wallprobe.store.results import Result


def triangulate(
    models: options.Checkpoints,
    estimators: options.Estimators = None,
    reference: options.Reference = None,
    ceiling: Annotated[str | None, typer.Option(help="A second reference: how well is the first known?")] = None,
    scope: Annotated[str, typer.Option(help="Parameters that figures are over: block or all.")] = "block",
    wide: Annotated[bool, typer.Option("--wide", help="Also norms, snr and what estimators say of themselves.")] = False,
    *,
    sample: options.Sample,
    place: options.Place,
) -> None:
    """Is an estimated gradient the gradient: cosine, size, and does it agree with itself from batch to batch?"""
    from wallprobe.hooks.diagnostics import triangulate as instrument
    from wallprobe.hooks.diagnostics import triangulate_report as telling
    from wallprobe.store.manifest import Stopwatch

    watch, want, seed = Stopwatch(), sample.wanted(), sample.seed
    chosen = instrument.choose(estimators, reference, ceiling)
    telling.check_scope(scope)
    rows = diagnosing.each(
        models,
        "triangulate",
        want,
        lambda subject, follow: instrument.measure(subject, chosen or instrument.usual(subject), seed=seed, on_progress=follow),
        place,
    )
    result = telling.report(rows, watch, scope=scope, seed=seed)
    summaries = telling.summaries(rows, scope)
    diagnosing.finish(result, summaries, place, _shown(result, summaries, wide))


def _shown(result: "Result", summaries: list[dict[str, Any]], wide: bool) -> Iterator[Any]:
    """The tables, and why an estimator says nothing."""
    yield from (_rows(result, summaries), *_estimators(result, wide), _groups(result))
    for cell in result.values:
        if cell["reason"]:
            yield f"{cell['ckpt']}, {cell['estimator']}: {cell['reason']}"


def _rows(result: "Result", summaries: list[dict[str, Any]]) -> Any:
    """The published table's columns, a row a checkpoint."""
    from wallprobe.hooks.diagnostics.triangulate import family

    tested, reference, ceiling = (result.data.attrs[role] for role in ("tested", "reference", "ceiling"))
    table = diagnosing.narrow(f"Gradients over {result.data.attrs['scope']} parameters, medians over batches")
    heads = ["ckpt", "val", "res", f"{tested}·{reference}", *([f"{reference}·{ceiling}"] if ceiling else []), "k"]
    for head in (*heads, f"{tested} self", f"{reference} self"):
        table.add_column(head, justify="left" if head == "ckpt" else "right")
    for row in summaries:
        short, their = family(row["tested"]), family(row["reference"])
        cells = [row["ckpt"], f"{row['val']:.3f}", diagnosing.figure(row["res"], ".1e"), diagnosing.figure(row[f"{short}_{their}"])]
        cells += [diagnosing.figure(row[f"{their}_{family(row['ceiling'])}"], ".6f")] if ceiling else []
        cells.append(diagnosing.figure(row["k"], ".4g"))
        table.add_row(*cells, *(diagnosing.figure(row[f"{name}_self"]) for name in (short, their)))
    return table


FORMS = {"cos": "+.4f", "cos_low": "+.4f", "cos_high": "+.4f", "k": ".3g", "projection": ".3g", "self_cos": "+.3f", "snr": ".3g"}
WIDE = {"norm": ".3g", "k_low": ".3g", "k_high": ".3g", "seconds": ".2f"}
OWN = dict.fromkeys(("res", "nudge_res", "amp", "lin", "outlier"), ".1e")
HEADS = {"cos_low": "least", "cos_high": "most", "projection": "k cos", "self_cos": "self", "seconds": "s"}


def _estimators(result: "Result", wide: bool) -> list[Any]:
    """Every estimator with its range over batches; what else there is of it where asked."""
    reference = result.data.attrs["reference"]
    tables = [_cells(result, f"Each estimator against {reference}", FORMS)]
    if wide:
        tables.append(_cells(result, "Norms, ranges, time, and what estimators say of themselves", WIDE | OWN))
    return tables


def _cells(result: "Result", title: str, forms: dict[str, str]) -> Any:
    table = diagnosing.narrow(title)
    table.add_column("ckpt")
    table.add_column("estimator")
    shown = {name: form for name, form in forms.items() if name in result.data}
    for name in shown:
        table.add_column(HEADS.get(name, name), justify="right", no_wrap=True)
    for cell in result.values:
        table.add_row(cell["ckpt"], cell["estimator"], *(diagnosing.figure(cell[name], form) for name, form in shown.items()))
    return table


def _groups(result: "Result") -> Any:
    """Cosines by group of parameters."""
    data = result.data
    table = diagnosing.narrow(f"Cosine to {data.attrs['reference']} by group of parameters")
    for head in ("ckpt", "estimator"):
        table.add_column(head)
    for group in data["group"].values.tolist():
        table.add_column(group, justify="right")
    for ckpt in data["ckpt"].values.tolist():
        for spec in data["estimator"].values.tolist():
            if spec != data.attrs["reference"]:
                cells = data["group_cos"].sel(ckpt=ckpt, estimator=spec).values.tolist()
                table.add_row(ckpt, spec, *(diagnosing.figure(cell, "+.2f") for cell in cells))
    return table
