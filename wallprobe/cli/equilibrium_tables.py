"""Tables of `wallprobe equilibrium`."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wallprobe.cli.packed import empty

if TYPE_CHECKING:
    from rich.table import Table

    from wallprobe.store.results import Result

Column = tuple[str, str, str]  # heading, column, format


def _made(result: "Result", title: str, columns: Sequence[Column], missing: Mapping[str, str] | None = None) -> "Table":
    """A table that fits 80 columns: one blank between columns, headings that break, cells that do not."""
    table = empty(title, pad_edge=False)
    rows = result.values
    for heading, name, _ in columns:
        text = bool(rows) and isinstance(rows[0][name], str)
        cells = [_cell(row[name], form, (missing or {}).get(name, "n/a")) for row in rows for _, other, form in columns if other == name]
        widest = max([*map(len, cells), *map(len, heading.split())], default=1)
        table.add_column(heading, justify="left" if text else "right", min_width=min(widest, 30))
    for row in rows:
        table.add_row(*(_cell(row[name], form, (missing or {}).get(name, "n/a")) for _, name, form in columns))
    return table


def _cell(value: Any, form: str, missing: str) -> str:
    if isinstance(value, str):
        return value
    if value is None or not math.isfinite(value):
        return missing
    return f"{value:{form}}"


def log(result: "Result") -> "Table":
    """One training."""
    columns = [("step", "step", ".0f"), ("val", "val", ".3f"), ("val raw", "val_raw", ".3f"), ("res", "res", ".1e"), ("λ", "lam", ".3g")]
    columns += [
        ("skips", "skips", ".0f"),
        ("excursions", "excursions", ".0f"),
        ("lr", "lr", ".1e"),
        ("cos to jac", "cos_task_jac", "+.2f"),
    ]
    return _made(result, result.summary["run"], columns)


def matched(result: "Result") -> "Table":
    """exp3."""
    columns = [("arm", "arm", ""), ("best val", "best_val", ".3f"), ("@step", "best_step", ".0f"), ("final val", "final_val", ".3f")]
    columns += [("raw", "final_val_raw", ".3f"), ("res", "res", ".1e"), ("λ", "lam", ".3g"), ("skips", "skips", ".0f")]
    columns += [("out", "excursions", ".0f"), ("status", "status", "")]
    return _made(result, "Matched arms: validation loss in nats", columns, dict.fromkeys(("res", "lam", "skips", "excursions"), "-"))


def gate(result: "Result") -> "Table":
    """exp4."""
    columns = [("arm", "arm", ""), ("skip", "skip_share", ".0%"), ("first valid", "first_valid", ".0f")]
    columns += [(f"res @{step}", f"res_{step}", ".0e") for step in (0, 20, 60)]
    columns += [("cos then", "cos_first_valid", "+.2f"), ("λ", "lam", ".3g")]
    columns += [
        ("val @20", "val_20", ".3f"),
        ("val @60", "val_60", ".3f"),
        ("val at end", "final_val", ".3f"),
        ("out", "excursions", ".0f"),
    ]
    return _made(result, "Warm-up against the gate", columns, {"first_valid": "never", "cos_first_valid": "-"})


def grid(result: "Result") -> "Table":
    """exp5."""
    columns = [("floor", "floor", "g"), ("target", "target", "g"), ("jr_max", "jr_max", "g"), ("best val", "best_val", ".3f")]
    columns += [("Δ start", "delta", "+.3f"), ("res", "res", ".0e")]
    columns += [("λ end", "lam_end", ".2g"), ("at max", "at_most_share", ".0%"), ("skips", "skips", ".0f"), ("status", "status", "")]
    return _made(result, "Controllers, each going on from the same trained state", columns)
