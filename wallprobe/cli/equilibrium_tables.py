"""Tables of `wallprobe equilibrium`."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from wallprobe.results import Result

Column = tuple[str, str, str]  # heading, column, format


def _made(result: "Result", title: str, columns: Sequence[Column], missing: Mapping[str, str] | None = None) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    rows = result.values
    for heading, name, _ in columns:
        table.add_column(heading, justify="left" if rows and isinstance(rows[0][name], str) else "right")
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
        ("cos task·jac", "cos_task_jac", "+.3f"),
    ]
    return _made(result, result.summary["run"], columns)


def matched(result: "Result") -> "Table":
    """exp3."""
    columns = [("arm", "arm", ""), ("best val", "best_val", ".3f"), ("@step", "best_step", ".0f"), ("final val", "final_val", ".3f")]
    columns += [("raw", "final_val_raw", ".3f"), ("res", "res", ".1e"), ("λ", "lam", ".3g"), ("skips", "skips", ".0f")]
    columns += [("excursions", "excursions", ".0f"), ("status", "status", ""), ("plateau", "plateau", "")]
    return _made(result, "Matched arms: validation loss in nats", columns, dict.fromkeys(("res", "lam", "skips", "excursions"), "-"))


def gate(result: "Result") -> "Table":
    """exp4."""
    columns = [("arm", "arm", ""), ("what", "what", ""), ("skip", "skip_share", ".0%"), ("first valid", "first_valid", ".0f")]
    columns += [(f"res@{step}", f"res_{step}", ".1e") for step in (0, 20, 60)]
    columns += [("cos at first valid", "cos_first_valid", "+.3f"), ("λ", "lam", ".3g"), ("val at end", "final_val", ".3f")]
    columns += [("best val", "best_val", ".3f"), ("@step", "best_step", ".0f"), ("excursions", "excursions", ".0f")]
    return _made(result, "Warm-up against the gate", columns, {"first_valid": "never", "cos_first_valid": "-"})


def grid(result: "Result") -> "Table":
    """exp5."""
    columns = [("floor", "floor", "g"), ("target", "target", "g"), ("jr_max", "jr_max", "g"), ("best val", "best_val", ".3f")]
    columns += [("least", "best_val_low", ".3f"), ("most", "best_val_high", ".3f"), ("Δ vs start", "delta", "+.3f"), ("res", "res", ".1e")]
    columns += [("λ end", "lam_end", ".3g"), ("% at max", "at_most_share", ".0%"), ("skips", "skips", ".0f"), ("status", "status", "")]
    return _made(result, "Controllers, each going on from the same trained state", columns)
