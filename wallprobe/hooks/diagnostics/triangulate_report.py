"""What triangulation tells: a table over checkpoint x estimator, cosines by group and by batch, and one flat record a checkpoint.

Figures are over the blocks' parameters, median over batches with the least and the largest; a cosine of two norms that are nothing is
told as such. k = |g| / |g_ref|. An unbiased estimator with noise has k cos = 1; one that has collapsed has not. snr = |mean g|^2 over
the mean of |g_b - mean g|^2.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from wallprobe.errors import ConfigError
from wallprobe.hooks.attach.subjects import Subject
from wallprobe.hooks.diagnostics.triangulate import Chosen, Row, Sums, family, labels, measure, usual
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset
from wallprobe.training.estimators import gradients

SCOPES = ("block", "all")
AUX = {
    "res": ("1", "relative step residual of the free phase"),
    "nudge_res": ("1", "relative step residual of the nudged phase"),
    "amp": ("1", "how far the nudge moves the state: |z(r) - z*| / |z*|"),
    "lin": ("1", "how far the estimate is from linear in the nudge: |a(r) - a(r/2)| / |a(r/2)|"),
    "outlier": ("1", "largest over median norm of a sequence's credit"),
}
FIGURES = {
    "cos": ("1", "cosine to the reference, median over batches"),
    "cos_low": ("1", "least over batches"),
    "cos_high": ("1", "largest over batches"),
    "k": ("1", "norm over the reference's, median over batches"),
    "k_low": ("1", "least over batches"),
    "k_high": ("1", "largest over batches"),
    "projection": ("1", "k cos, what is left of the reference in it: 1 for unbiased noise; median over batches"),
    "self_cos": ("1", "cosine of its own gradients on two batches, mean over pairs"),
    "snr": ("1", "|mean g|^2 / mean |g_b - mean g|^2 over batches"),
    "norm": ("nats per unit", "norm, median over batches"),
    "seconds": ("s", "wall time a batch, median"),
}


def _figures(sums: Sums, mask: Tensor) -> dict[str, float]:
    """Every figure of `FIGURES` over some places."""
    cross, shared, theirs, own = (part[..., mask].sum(-1) for part in (sums.cross, sums.shared, sums.theirs, sums.own))
    count = len(cross)
    cos = [gradients.cosine(*map(float, row))[0] for row in zip(cross, shared, theirs, strict=True)]
    k = [gradients.ratio(*map(float, row))[0] for row in zip(shared, theirs, strict=True)]
    pairs = [gradients.cosine(float(own[a, b]), float(own[a, a]), float(own[b, b]))[0] for a, b in itertools.combinations(range(count), 2)]
    mean = float(own.mean())
    spread = float(own.diagonal().mean()) - mean
    return {
        "cos": _median(cos),
        "cos_low": min(cos),
        "cos_high": max(cos),
        "k": _median(k),
        "k_low": min(k),
        "k_high": max(k),
        "projection": _median([a * b for a, b in zip(cos, k, strict=True)]),
        "self_cos": float(np.mean(pairs)) if pairs else math.nan,
        "snr": mean / spread if count > 1 and spread > 0 else math.nan,
        "norm": math.sqrt(_median(own.diagonal().tolist())),
        "seconds": _median(sums.seconds),
    }


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else math.nan


def _reason(sums: Sums, mask: Tensor) -> str:
    """Why a cosine is not there, from the first batch that says it, or should not be relied on."""
    astray = sum(aux.get("converged") is False for aux in sums.aux)
    if astray:
        return f"did not converge on {astray} of {len(sums.aux)} batches"
    for cross, shared, theirs in zip(*(part[..., mask].sum(-1).tolist() for part in (sums.cross, sums.shared, sums.theirs)), strict=True):
        why = gradients.cosine(cross, shared, theirs)[1]
        if why:
            return why
    return ""


def check_scope(scope: str) -> None:
    """Refuse a word that names no parameters.

    Raises:
        ConfigError: listing those there are.
    """
    if scope not in SCOPES:
        raise ConfigError(f"scope '{scope}' is none of {', '.join(SCOPES)}")


def report(rows: Sequence[Row], watch: Stopwatch, *, scope: str = "block", seed: int = 0) -> Result:
    """The Result of kind "triangulate": table over ckpt x estimator, cosines by group and by batch beside it.

    Raises:
        ConfigError: for another scope, or checkpoints measured by different estimators.
    """
    check_scope(scope)
    chosen = rows[0].chosen
    if any(row.chosen != chosen for row in rows):
        raise ConfigError("these checkpoints are of different kinds and have different estimators; triangulate them apart")
    groups = [name for name in (*gradients.GROUPS, gradients.OTHER) if any((name, inside) in rows[0].places.names for inside in (0, 1))]
    coords: dict[str, list[Any]] = {
        "ckpt": [row.subject.name for row in rows],
        "estimator": list(labels(chosen.specs).values()),
        "group": groups,
        "batch": list(range(max(len(row.subject.batches) for row in rows))),
    }
    summary = summary_of(rows[-1], scope)
    config: dict[str, Any] = {
        "ckpts": coords["ckpt"],
        "estimators": list(chosen.specs),
        "reference": chosen.reference,
        "ceiling": chosen.ceiling,
    }
    config |= {"scope": scope, "seed": seed, "data_hash": [row.subject.data_hash for row in rows]}
    manifest = provenance(
        config=config | {"batches": [[len(batch.x) for batch in row.subject.batches] for row in rows]},
        device=str(next(rows[0].subject.loaded.model.parameters()).device),
        dtype="float32 model unless the estimator says otherwise, float64 inner products",
        watch=watch,
        subject=", ".join(coords["ckpt"]),
        weight_hash=[row.subject.loaded.weight_hash for row in rows],
        weight_processing=rows[0].subject.loaded.processing,
        data=[row.subject.data for row in rows],
        seeds={"batches": seed},
        left_out={row.subject.name: {spec: sums.missing for spec, sums in row.sums.items() if sums.missing} for row in rows},
    )
    return Result("triangulate", _data(rows, coords, scope), ("ckpt", "estimator"), summary, manifest)


def _data(rows: Sequence[Row], coords: dict[str, list[Any]], scope: str) -> Any:
    grid: dict[str, Any] = {}
    dims = ("ckpt", "estimator")
    table = [[_figures(sums, row.places.scope(scope)) for sums in row.sums.values()] for row in rows]
    for name, (unit, words) in FIGURES.items():
        grid[name] = (dims, [[cell[name] for cell in line] for line in table], unit, words)
    for name, (unit, words) in AUX.items():
        seen = [[_median([float(aux[name]) for aux in sums.aux if name in aux]) for sums in row.sums.values()] for row in rows]
        if not np.isnan(np.asarray(seen)).all():
            grid[name] = (dims, seen, unit, f"{words}; median over batches")
    reasons = [[sums.reason or _reason(sums, row.places.scope(scope)) for sums in row.sums.values()] for row in rows]
    grid["reason"] = (dims, reasons, "text", "why a figure is not there")
    grid["val"] = (("ckpt",), [row.val for row in rows], "nats", "mean cross-entropy of held-out sequences")
    by_group = [[[_figures(sums, row.places.group(group)) for group in coords["group"]] for sums in row.sums.values()] for row in rows]
    for name in ("cos", "k"):
        values = [[[cell[name] for cell in line] for line in plane] for plane in by_group]
        grid[f"group_{name}"] = ((*dims, "group"), values, "1", f"{FIGURES[name][1]}, over the group's parameters")
    by_batch = np.full((2, *(len(coords[dim]) for dim in (*dims, "batch"))), math.nan)
    for place, row in enumerate(rows):
        mask = row.places.scope(scope)
        for other, sums in enumerate(row.sums.values()):
            cross, shared, theirs = (part[..., mask].sum(-1).tolist() for part in (sums.cross, sums.shared, sums.theirs))
            for batch, cell in enumerate(zip(cross, shared, theirs, strict=True)):
                by_batch[:, place, other, batch] = gradients.cosine(*cell)[0], gradients.ratio(cell[1], cell[2])[0]
    for name, values in zip(("cos", "k"), by_batch, strict=True):
        grid[f"batch_{name}"] = ((*dims, "batch"), values, "1", f"{name} of each batch")
    chosen = rows[0].chosen
    short = labels(chosen.specs)
    roles = {"reference": short[chosen.reference], "ceiling": short.get(chosen.ceiling or "", ""), "tested": short[chosen.tested]}
    return dataset(coords, grid, **roles, scope=scope)


def summary_of(row: Row, scope: str) -> dict[str, Any]:
    """One checkpoint's row with the published columns: `ckpt val res <tested>_<reference> ... k <tested>_self <reference>_self`."""
    chosen, mask = row.chosen, row.places.scope(scope)
    figures = {spec: _figures(sums, mask) for spec, sums in row.sums.items()}
    tested, reference = family(chosen.tested), family(chosen.reference)
    first = figures[chosen.tested]
    residuals = [float(aux["res"]) for sums in row.sums.values() for aux in sums.aux if "res" in aux]
    found: dict[str, Any] = {"ckpt": row.subject.name, "val": row.val, "res": residuals[0] if residuals else None}
    found |= {f"{tested}_{reference}": first["cos"]}
    if chosen.ceiling is not None:
        found[f"{reference}_{family(chosen.ceiling)}"] = figures[chosen.ceiling]["cos"]
    found |= {"k": first["k"], f"{tested}_self": first["self_cos"], f"{reference}_self": figures[chosen.reference]["self_cos"]}
    found |= {"projection": first["projection"], "snr": first["snr"], "norm": first["norm"], "norm_ref": figures[chosen.reference]["norm"]}
    for spec in chosen.specs:
        if spec not in (chosen.tested, chosen.reference, chosen.ceiling):
            name, cell = family(spec), figures[spec]
            found |= {f"{name}_{reference}": cell["cos"], f"k_{name}": cell["k"], f"{name}_self": cell["self_cos"]}
    if row.implicit is not None:
        found[f"{tested}_implicit"] = row.implicit
    for name in AUX:
        seen = [float(aux[name]) for aux in row.sums[chosen.tested].aux if name in aux]
        if seen and name != "res":
            found[name] = _median(seen)
    found |= {"tested": chosen.tested, "reference": chosen.reference, "ceiling": chosen.ceiling, "scope": scope}
    found |= {"n_batches": len(row.subject.batches), "data": row.subject.data}
    return found | {"finding": _finding(row.subject.name, chosen, figures)}


def summaries(rows: Sequence[Row], scope: str) -> list[dict[str, Any]]:
    """One flat record a checkpoint."""
    return [summary_of(row, scope) for row in rows]


def _finding(name: str, chosen: Chosen, figures: Mapping[str, Mapping[str, float]]) -> str:
    """One plain sentence of figures."""
    first, reference, short = figures[chosen.tested], figures[chosen.reference], labels(chosen.specs)

    def told(value: float, form: str = ".3f") -> str:
        return "n/a" if math.isnan(value) else format(value, form)

    ceiling, tested, held_to = "", short[chosen.tested], short[chosen.reference]
    if chosen.ceiling is not None:
        cos = figures[chosen.ceiling]["cos"]
        ceiling = f"; {short[chosen.ceiling]} agrees with {held_to} to 1 - cos = {told(max(1 - cos, 0.0), '.1e')}"
    return (
        f"{name}: {tested} has cosine {told(first['cos'])} to {held_to} at {told(first['k'], '.3g')} times its norm; "
        f"between batches it agrees with itself by {told(first['self_cos'])}, {held_to} by {told(reference['self_cos'])}{ceiling}."
    )


def triangulate(
    subjects: Sequence[Subject],
    chosen: Chosen | None = None,
    *,
    scope: str = "block",
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Triangulate checkpoints that are in memory together; see `measure` and `report`."""
    watch = Stopwatch()
    rows = [measure(subject, chosen or usual(subject), seed=seed, on_progress=on_progress) for subject in subjects]
    return report(rows, watch, scope=scope, seed=seed)
