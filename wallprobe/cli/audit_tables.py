"""What `wallprobe audit` prints: the audit by method, first firing epochs by seed, the first epochs, and the evidence."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from wallprobe.cli import common
from wallprobe.cli.packed import empty

if TYPE_CHECKING:
    from wallprobe.store.results import Result

COLORS = {"SOUND": "green", "NO_DEEP_CREDIT": "yellow", "INFLATED": "yellow", "DEGENERATE": "red"}
SIGNS = {"a": "(a)", "a_prime": "(a′)", "b": "(b)", "b_prime": "(b′)", "d": "(d)", "e": "(e)", "f": "(f)"}
SHORT = {verdict: verdict.replace("_", " ").lower() for verdict in COLORS}
RUN_WIDTH = 23  # of the column of runs, folded where settings are told
FEW = 3  # runs whose evidence is printed in full
REPLAY = 4  # last epoch of the temporal replay


def show(judged: "Sequence[Result]", whole: "Result") -> None:
    """All tables, then the finding."""
    from rich.markup import escape

    out = common.out()
    out.print(_main(judged))
    out.print(_cosines(judged))
    out.print(_firings(judged))
    for table in (_stops(judged), _exact(judged)):
        if table is not None:
            out.print(table)
    out.print(_replay(judged))
    for result in judged[:FEW] if len(judged) <= FEW else []:
        out.print(f"[bold]{escape(str(result.data['run'].values[0]))}[/bold]")
        for name, words in result.manifest["evidence"].items():
            fired = result.summary.get(f"first_firing_{name}")
            when = "" if name == "c" else "did not fire" if fired is None else f"epoch {fired}"
            out.print(f"  {SIGNS.get(name, '(c)')} {when:12} {escape(words)}", soft_wrap=True)
    limits = judged[0].manifest["thresholds"]
    told = ", ".join(f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in limits.items())
    out.print(f"[dim]thresholds: {told}[/dim]", soft_wrap=True)
    out.print(f"[bold]{escape(whole.summary['finding'])}[/bold]", soft_wrap=True)
    if any(result.summary["verdict"] == "DEGENERATE" for result in judged):
        out.print(
            "Degenerate: the clamped Γ is not to be reported; the exact one is defined, and says nothing yet about the credit's worth."
        )
    out.print("[dim]see it: wallprobe gallery --open[/dim]")


def _table(title: str, columns: Sequence[str], left: int = 1) -> Any:
    table = empty(title)
    for place, head in enumerate(columns):
        table.add_column(head, justify="left" if place < left else "right", no_wrap=True)
    return table


def figure(value: object) -> str:
    """A figure for a narrow column; an en dash for none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if not isinstance(value, float):
        return str(value)
    if value == 0:
        return "0"
    size = abs(value)
    if size and (size < 1e-2 or size >= 1e4):
        mantissa, power = f"{value:.1e}".split("e")
        return f"{mantissa}e{int(power)}"
    return f"{value:.0f}" if size >= 100 else f"{value:.3g}"


def _groups(judged: "Sequence[Result]") -> "dict[tuple[str, str], list[Result]]":
    """Runs by architecture and method, the settings beside it that set them apart from others."""
    from wallprobe.training.audit.record import variants

    groups: dict[tuple[str, str], list[Result]] = {}
    for result, variant in zip(judged, variants(judged), strict=True):
        record = result.summary
        groups.setdefault((record["arch"], f"{record['method']}, {variant}" if variant else record["method"]), []).append(result)
    return groups


def _mean(records: "Sequence[dict[str, Any]]", key: str) -> float | None:
    """Mean over seeds of what is defined; of norms, the geometric one."""
    values = [float(record[key]) for record in records if record.get(key) is not None]
    if not values:
        return None
    if key in ("h_norm", "g_norm", "h_ratio", "g_ratio", "elasticity_ratio"):
        return math.exp(sum(math.log(max(value, 1e-300)) for value in values) / len(values))
    return sum(values) / len(values)


def _main(judged: "Sequence[Result]") -> Any:
    """Norms and accuracy: a line for each architecture and method, means over its seeds (of norms, geometric)."""
    from wallprobe.training.audit.record import worst

    title = "At the last epoch, means over seeds"
    table = _table(title, ("arch", "method", "acc", "− frozen", "|h_L|", "|g_L|", "× |h||g|", "verdict"), left=2)
    for (arch, method), results in _groups(judged).items():
        records = [result.summary for result in results]
        verdict, gap = worst([record["verdict"] for record in records]), _mean(records, "accuracy_minus_frozen")
        figures = [figure(_mean(records, "accuracy")), "–" if gap is None else f"{gap:+.3f}"]
        figures += [figure(_mean(records, key)) for key in ("h_norm", "g_norm", "elasticity_ratio")]
        table.add_row(arch, method, *figures, f"[{COLORS[verdict]}]{SHORT[verdict]}[/{COLORS[verdict]}]")
    return table


def _cosines(judged: "Sequence[Result]") -> Any:
    """Cosines: clamped and exact, at h_L and over all layers; what must not be reported in brackets."""
    from wallprobe.training.audit.record import worst

    title = "Γ, cosine of credit and gradient, at h_L and over layers (in brackets: by the clamp)"
    table = _table(title, ("arch", "method", "Γ_L clamped", "Γ_L exact", "Γ_deep clamped", "exact", "< eps"), left=2)
    for (arch, method), results in _groups(judged).items():
        records = [result.summary for result in results]
        kept = worst([record["verdict"] for record in records]) != "DEGENERATE"
        keys = ("gamma_clamped", "gamma_exact", "gamma_deep_clamped", "gamma_deep_exact", "below_eps")
        cells = [figure(_mean(records, key)) for key in keys]
        table.add_row(arch, method, *(text if kept or "clamped" not in key else f"({text})" for key, text in zip(keys, cells, strict=True)))
    return table


def _named(judged: "Sequence[Result]") -> "list[str]":
    """Each run's name, with the settings that set it apart from others of its kind."""
    from wallprobe.training.audit.record import variants

    names = (str(result.data["run"].values[0]) for result in judged)
    return [f"{name}, {variant}" if variant else name for name, variant in zip(names, variants(judged), strict=True)]


def _runs_table(title: str, columns: Sequence[str]) -> Any:
    """A table whose lines are runs: their names fold where settings make them long."""
    table = _table(title, ("run", *columns))
    table.columns[0].no_wrap, table.columns[0].min_width, table.columns[0].max_width = False, RUN_WIDTH, RUN_WIDTH
    return table


def _firings(judged: "Sequence[Result]") -> Any:
    """First firing epochs, a line a run."""
    table = _runs_table("First epoch at which each diagnostic fires", (*SIGNS.values(), "verdict"))
    for name, result in zip(_named(judged), judged, strict=True):
        record = result.summary
        epochs = (figure(record[f"first_firing_{sign}"]) for sign in SIGNS)
        verdict = record["verdict"]
        table.add_row(name, *epochs, f"[{COLORS[verdict]}]{SHORT[verdict]}[/{COLORS[verdict]}]")
    return table


def _stops(judged: "Sequence[Result]") -> Any:
    """Where an early stop ends a run, or would have, and what the rest of the budget bought; None if nowhere."""
    stopped = [(name, one.summary) for name, one in zip(_named(judged), judged, strict=True) if one.summary["stop_epoch"] is not None]
    if not stopped:
        return None
    table = _runs_table("Early stop (--stop-on degenerate)", ("at epoch", "acc then", "acc at the end", "last epoch"))
    for name, record in stopped:
        cells = (record[key] for key in ("stop_epoch", "accuracy_at_stop", "accuracy", "epochs"))
        table.add_row(name, *map(figure, cells))
    return table


def _exact(judged: "Sequence[Result]") -> Any:
    """Of the wall's task, how far the model's entropy is from the exact answer's: supervised, and one position later; None of others."""
    seen = [(name, one.summary) for name, one in zip(_named(judged), judged, strict=True) if one.summary["mae_supervised"] is not None]
    if not seen:
        return None
    table = _runs_table("Distance from the exact Bayesian answer, bits of entropy", ("supervised", "one later", "ratio", "next-token acc"))
    for name, record in seen:
        near, far = record["mae_supervised"], record["mae_beyond"]
        table.add_row(name, figure(near), figure(far), figure(far / near), figure(record["accuracy"]))
    return table


def _replay(judged: "Sequence[Result]") -> Any:
    """The first epochs, geometric means over seeds."""
    import numpy as np

    table = _table("The first epochs, geometric means over seeds", ("arch", "method", "", *map(str, range(REPLAY + 1))), left=3)
    for (arch, method), results in _groups(judged).items():
        for name, sign in (("h_norm", "|h_L|"), ("g_norm", "|g_L|")):
            cells = []
            for epoch in range(REPLAY + 1):
                seen = []
                for result in results:
                    at = result.data.isel(run=0, layer=-1)
                    place = np.flatnonzero(at["epoch"].values == epoch)
                    seen += [float(at[name].values[place[0]])] if len(place) else []
                cells.append(figure(float(np.exp(np.log(np.maximum(seen, 1e-300)).mean()))) if seen else "–")
            table.add_row(*((arch, method) if name == "h_norm" else ("", "")), sign, *cells)
    return table
