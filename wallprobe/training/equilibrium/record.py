"""Trainings and their tables as Results."""

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from wallprobe.store import runs
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset, plain
from wallprobe.training.equilibrium.job import EqJob

Variables = dict[str, tuple[tuple[str, ...], Any, str, str]]
LOG_COLUMNS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "step": ("steps", "optimiser steps behind it"),
        "val": ("nats", "validation cross-entropy of the averaged parameters"),
        "val_raw": ("nats", "validation cross-entropy of the parameters as they are"),
        "res": ("relative step", "residual of the free phase"),
        "lam": ("", "weight of the contraction penalty"),
        "skips": ("steps", "task gradients left out so far"),
        "excursions": ("", "times the residual left ten targets so far"),
        "lr": ("", "learning rate"),
        "cos_task_jac": ("cosine", "between the task's gradient and the penalty's"),
    }
)
SERIES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "step_res": ("relative step", "residual of every step"),
        "step_lam": ("", "lambda after every step"),
        "step_skipped": ("", "1 where the gate left the task's gradient out"),
    }
)


def made(
    kind: str,
    dim: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, tuple[str, str]],
    summary: dict[str, Any],
    manifest: dict[str, Any],
    more: Variables,
) -> Result:
    """A Result whose long table has one record a row.

    Args:
        kind: of the Result.
        dim: the rows' dimension; each row has its label under this key.
        rows: column -> value; text, numbers, NaN for what is not there.
        columns: column -> (units, what it is).
        summary: flat.
        manifest: see `wallprobe.store.manifest`.
        more: further variables, of other dimensions.
    """
    variables: Variables = {}
    for name, (units, what) in columns.items():
        values = [row[name] for row in rows]
        text = any(isinstance(value, str) for value in values)
        variables[name] = ((dim,), values if text else np.asarray(values, dtype=float), units, what)
    coords: dict[str, Any] = {dim: [row[dim] for row in rows]}
    for dims, values, _, _ in more.values():
        coords |= {name: range(np.shape(values)[place]) for place, name in enumerate(dims) if name != dim}
    return Result(kind, dataset(coords, variables | more), (dim,), plain(summary), manifest)


def curves(dim: str, found: Sequence[runs.Run]) -> Variables:
    """Logs and per-step series of several trainings, padded with NaN, along `dim`, in the order of the rows."""
    moments = max(len(run.manifest["log"]) for run in found)
    steps = max(len(run.manifest["series"]["res"]) for run in found)
    padded: Variables = {}
    for name, (units, what) in LOG_COLUMNS.items():
        table = np.full((len(found), moments), math.nan)
        for place, run in enumerate(found):
            values = [row[name] for row in run.manifest["log"]]
            table[place, : len(values)] = np.asarray(values, dtype=float)
        padded[f"log_{name}"] = ((dim, "moment"), table, units, what)
    for name, (units, what) in SERIES.items():
        table = np.full((len(found), steps), math.nan)
        for place, run in enumerate(found):
            values = run.manifest["series"][name.removeprefix("step_")]
            table[place, : len(values)] = np.asarray(values, dtype=float)
        padded[name] = ((dim, "step"), table, units, what)
    return padded


def describe(jobs: Sequence[EqJob], found: Sequence[runs.Run], watch: Stopwatch, subject: str) -> dict[str, Any]:
    """The manifest of an experiment: its trainings, their weights and how long they took."""
    prefix = jobs[0].name.rpartition("-")[0]
    return provenance(
        config={"runs": [job.config() for job in jobs]},
        device="cpu",
        dtype="training float32, residuals and norms float64",
        watch=watch,
        subject=f"{subject} {prefix}",
        seeds=sorted({job.seed for job in jobs}),
        weight_hashes={str(run.name): run.manifest["weight_hash"] for run in found},
        train_seconds={str(run.name): run.manifest["wall_time_s"] for run in found},
        data_hash=found[0].manifest["task"]["data_hash"],
        weight_processing="none",
    )


def training_result(job: EqJob, run: runs.Run) -> Result:
    """One training as a Result of kind "equilibrium": a record for each evaluation."""
    rows = [
        {"moment": place, **{key: math.nan if value is None else value for key, value in row.items()}}
        for place, row in enumerate(run.manifest["log"])
    ]
    manifest = run.manifest
    summary = {
        "run": str(run.name),
        "method": manifest["method"],
        "status": manifest["status"],
        "steps": manifest["steps"],
        "best_val": manifest["best_val"],
        "best_step": manifest["best_step"],
        "final_val": rows[-1]["val"],
        "final_val_raw": rows[-1]["val_raw"],
        "res": manifest["res"],
        "lam": manifest["lam"],
        "skips": manifest["residuals"]["skips"],
        "excursions": manifest["residuals"]["excursions"],
        "wall_time_s": manifest["wall_time_s"],
        "weight_hash": manifest["weight_hash"],
    }
    summary["finding"] = (
        f"{run.name}: {manifest['status']} after {manifest['steps']} steps of {manifest['method']}, best validation loss "
        f"{manifest['best_val']:.3f} nats at step {manifest['best_step']}."
    )
    told = describe([job], [run], Stopwatch(), "training") | {"subject": str(run.name), "wall_time_s": manifest["wall_time_s"]}
    series = {name: np.asarray(manifest["series"][name.removeprefix("step_")], dtype=float) for name in SERIES}
    more: Variables = {name: (("step_index",), series[name], *SERIES[name]) for name in SERIES}
    return made("equilibrium", "moment", rows, LOG_COLUMNS, summary, told, more)
