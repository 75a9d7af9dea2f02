"""Experiments 3, 4 and 5 of the equilibrium study: matched arms, the gate study, the controller's grid.

Each is a list of trainings, made where they are missing, and a Result read off the finished runs. Trainings killed anywhere go on.
"""

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wallprobe.errors import ConfigError
from wallprobe.findings import beyond, foremost, rounding
from wallprobe.store import runs
from wallprobe.store.manifest import Stopwatch
from wallprobe.store.results import Result
from wallprobe.training.equilibrium.control import classify
from wallprobe.training.equilibrium.job import ARMS, Control, EqJob, Recipe, preset
from wallprobe.training.equilibrium.record import curves, describe, made
from wallprobe.training.equilibrium.work import Told, train_all

MATCHED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "method": ("", "estimator"),
        "best_val": ("nats", "least validation cross-entropy of the averaged parameters"),
        "best_step": ("steps", "where"),
        "final_val": ("nats", "the same at the end"),
        "final_val_raw": ("nats", "validation cross-entropy of the parameters as they are, at the end"),
        "res": ("relative step", "residual of the free phase at the end"),
        "lam": ("", "weight of the contraction penalty at the end"),
        "skips": ("steps", "steps whose task gradient the validity gate left out"),
        "excursions": ("", "times the residual left ten targets"),
        "status": ("", "done, lodged, fused or diverged"),
        "plateau": ("", "what kind of plateau the second half looks like; a label, its thresholds are ours"),
    }
)
GATE_STEPS = (0, 20, 60)


def job(preset_name: str, arm: str, *, seed: int, recipe: Recipe | None = None, prefix: str | None = None) -> EqJob:
    """The training of one arm at a preset.

    Args:
        preset_name: tiny, demo or seed; also in the run's name.
        arm: ep, bptt, bp, or a registered estimator.
        seed: of everything.
        recipe: in the place of the preset's own.
        prefix: of the run's name; default `eq-PRESET`.
    """
    return EqJob(f"{prefix or f'eq-{preset_name}'}-{arm}", recipe or preset(preset_name), ARMS.get(arm, arm), seed=seed)


def matched(jobs: Sequence[EqJob], root: Path | None = None, *, workers: int | None = None, on_progress: Told | None = None) -> Result:
    """exp3: the same recipe with the task gradient by several rules, and two gaps.

    The architecture's gap is the exact gradient's arm on the equilibrium model less the transformer's; the rule's is EP's less the
    exact gradient's. An arm that did not end well makes a gap that is not there.

    Args:
        jobs: arms; gaps need those of eqprop, bptt and the transformer.
        root: run store.
        workers: trainings at once.
        on_progress: told how far each is.
    """
    watch = Stopwatch()
    found = train_all(jobs, root, workers=workers, on_progress=on_progress)
    names = {method: arm for arm, method in ARMS.items()}
    rows = [{"arm": names.get(one.method, one.method), **_matched_row(run)} for one, run in zip(jobs, found, strict=True)]
    by_arm = {row["arm"]: row for row in rows}
    summary: dict[str, Any] = {"arms": len(rows)}
    for name, (above, below) in {"architecture_gap": ("bptt", "bp"), "rule_gap": ("ep", "bptt")}.items():
        summary[name], summary[f"{name}_reason"] = _gap(by_arm, above, below)
    parts = [f"{row['arm']} {row['best_val']:.3f} at step {row['best_step']} ({row['status']})" for row in rows]
    gaps = [f"{what} {_told(summary, key)}" for what, key in (("architecture", "architecture_gap"), ("rule", "rule_gap"))]
    summary["finding"] = f"Best validation loss in nats: {', '.join(parts)}. Gaps: {', '.join(gaps)}."
    return made("matched", "arm", rows, MATCHED, summary, describe(jobs, found, watch, "matched"), curves("arm", found))


def _arm(one: EqJob) -> str:
    return one.name.rpartition("-")[2]


def _matched_row(run: runs.Run) -> dict[str, Any]:
    manifest, last = run.manifest, run.manifest["log"][-1]
    fixed = run.kind == runs.EQUILIBRIUM
    nothing = math.nan
    row = {"method": manifest["method"], "best_val": manifest["best_val"], "best_step": manifest["best_step"], "final_val": last["val"]}
    row |= {"final_val_raw": last["val_raw"], "res": last["res"] if fixed else nothing, "lam": last["lam"] if fixed else nothing}
    row |= {"skips": last["skips"] if fixed else nothing, "excursions": last["excursions"] if fixed else nothing}
    return row | {"status": manifest["status"], "plateau": plateau(run)["plateau"] if fixed else ""}


def plateau(run: runs.Run) -> dict[str, Any]:
    """What kind of plateau a run's second half looks like, with the numbers that say so."""
    series = run.manifest["series"]
    numbers = [[math.nan if value is None else value for value in series[name]] for name in ("res", "lam", "skipped", "cos_task_jac")]
    control = Control(**run.manifest["config"]["recipe"]["control"])
    found = classify(numbers[0], numbers[1], [bool(value) for value in numbers[2]], numbers[3], control)
    return {
        "plateau": found.kind,
        "skip_share": found.skip_share,
        "at_most_share": found.at_most_share,
        "res_over_target": found.res_over_target,
        "flip_share": found.flip_share,
        "cos_task_jac": found.cos_task_jac,
    }


def _gap(rows: Mapping[str, dict[str, Any]], above: str, below: str) -> tuple[float | None, str]:
    for arm in (above, below):
        if arm not in rows:
            return None, f"no arm {arm}"
        if rows[arm]["status"] != "done":
            return None, f"arm {arm} {rows[arm]['status']}"
    return rows[above]["best_val"] - rows[below]["best_val"], ""


def _told(summary: Mapping[str, Any], key: str) -> str:
    return f"{summary[key]:+.3f}" if summary[key] is not None else f"n/a ({summary[f'{key}_reason']})"


GATE: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "what": ("", "warm-up, steps of penalty alone, scale of the branches' output weights at first"),
        "skip_share": ("fraction", "steps whose task gradient the gate left out"),
        "first_valid": ("step", "the first that was not; nothing where there was none"),
        **{f"res_{step}": ("relative step", f"residual at step {step}") for step in GATE_STEPS},
        "cos_first_valid": ("cosine", "of the first task gradient let through to BPTT's, over the block's parameters"),
        "lam": ("", "weight of the contraction penalty at the end"),
        "best_val": ("nats", "least validation cross-entropy of the averaged parameters"),
        "best_step": ("steps", "where"),
        **{f"val_{step}": ("nats", f"validation cross-entropy of the averaged parameters at step {step}") for step in GATE_STEPS[1:]},
        "final_val": ("nats", "the same at the end"),
        "final_val_raw": ("nats", "validation cross-entropy of the parameters as they are, at the end"),
        "excursions": ("", "times the residual left ten targets"),
        "status": ("", "done, lodged, fused or diverged"),
    }
)


@dataclass(frozen=True)
class GateSettings:
    """How the three arms differ.

    Attributes:
        recipe: of arm A, warm-up and all.
        prewarm: of arm B, steps.
        shrink: arm C's branches begin at this many times arm A's.
    """

    recipe: Recipe
    prewarm: int
    shrink: float


def gate_settings(name: str) -> GateSettings:
    """The study at a preset: embeddings as small as the published run's, so that the residual begins above the gate."""
    base = preset(name)
    if name == "seed":
        return GateSettings(replace(base, steps=800, snapshots=(), probe=True), 200, 0.3)
    tiny = name == "tiny"
    model = replace(base.model, emb_std=0.02, resinit=0.3)
    control = replace(base.control, gate=1e-3, target=2e-4)
    steps = 12 if tiny else 60
    recipe = replace(
        base,
        model=model,
        control=control,
        batch=2 if tiny else 8,
        steps=steps,
        warmup=steps,
        snapshots=(),
        probe=True,
        eval_every=steps // 3,
    )
    return GateSettings(recipe, steps // 2, 0.1)


def gate_jobs(settings: GateSettings, prefix: str, seed: int) -> list[EqJob]:
    """A: warm-up. B: contraction alone first, then warm-up. C: no warm-up, smaller branches."""
    a = EqJob(f"{prefix}-gate-a", settings.recipe, seed=seed)
    resinit = settings.recipe.model.resinit * settings.shrink
    return [a, a.changed(f"{prefix}-gate-b", prewarm=settings.prewarm), a.changed(f"{prefix}-gate-c", warmup=0, resinit=resinit)]


def gate_study(jobs: Sequence[EqJob], root: Path | None = None, *, workers: int | None = None, on_progress: Told | None = None) -> Result:
    """exp4: does a warm-up starve the controller, so that the gate shuts training out?

    Args:
        jobs: arms, such as `gate_jobs`'.
        root: run store.
        workers: trainings at once.
        on_progress: told how far each is.
    """
    watch = Stopwatch()
    found = train_all(jobs, root, workers=workers, on_progress=on_progress)
    rows = [{"arm": _arm(one).upper(), **_gate_row(one, run)} for one, run in zip(jobs, found, strict=True)]
    first = [f"{row['arm']} skips {row['skip_share']:.0%}, first valid step {_or_never(row['first_valid'])}" for row in rows]
    finding = f"{'; '.join(first)}. Validation loss at step {jobs[0].recipe.steps}: " + ", ".join(
        f"{row['arm']} {row['final_val']:.3f}" for row in rows
    )
    summary = {"arms": len(rows), "finding": f"{finding} nats."}
    return made("gate", "arm", rows, GATE, summary, describe(jobs, found, watch, "gate study"), curves("arm", found))


def _or_never(step: float) -> str:
    return "never" if math.isnan(step) else f"{step:.0f}"


def _gate_row(one: EqJob, run: runs.Run) -> dict[str, Any]:
    manifest, recipe = run.manifest, one.recipe
    seen, res, last = manifest["residuals"], manifest["series"]["res"], manifest["log"][-1]
    row: dict[str, Any] = {"what": f"warmup {recipe.warmup}, prewarm {recipe.prewarm}, resinit {recipe.model.resinit:g}"}
    row |= {"skip_share": seen["skips"] / max(1, len(res)), "first_valid": _number(seen["first_valid"])}
    row |= {f"res_{step}": _number(res[min(step, len(res) - 1)]) if res and step <= len(res) else math.nan for step in GATE_STEPS}
    vals = {entry["step"]: _number(entry["val"]) for entry in manifest["log"]}
    row |= {f"val_{step}": vals.get(step, math.nan) for step in GATE_STEPS[1:]}
    row |= {"cos_first_valid": _number(seen["first_cos"]), "lam": _number(manifest["lam"]), "best_val": manifest["best_val"]}
    row |= {"best_step": manifest["best_step"], "final_val": last["val"], "final_val_raw": last["val_raw"]}
    return row | {"excursions": seen["excursions"], "status": manifest["status"]}


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


GRID: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "floor": ("", "lambda's least value"),
        "target": ("relative step", "residual lambda steers to"),
        "jr_max": ("", "lambda's greatest value"),
        "seeds": ("", "trainings"),
        "best_val": ("nats", "least validation cross-entropy, mean over seeds"),
        "best_val_low": ("nats", "the least of them"),
        "best_val_high": ("nats", "the greatest of them"),
        "delta": ("nats", "best validation cross-entropy less that of the start, mean over seeds"),
        "final_val": ("nats", "validation cross-entropy at the end, mean over seeds"),
        "res": ("relative step", "residual at the end, greatest over seeds"),
        "lam_end": ("", "lambda at the end, mean over seeds"),
        "at_most_share": ("fraction", "steps with lambda at its greatest value"),
        "skips": ("steps", "left out by the gate, mean over seeds"),
        "excursions": ("", "times the residual left ten targets, sum over seeds"),
        "status": ("", "of the trainings; those that did not end well are named"),
    }
)


@dataclass(frozen=True)
class GridSettings:
    """Which controllers are tried.

    Attributes:
        floors, targets, jr_maxs: values; the first floor, the first target and the last jr_max are the base.
        mode: "ofat" changes one thing at a time from the base, "full" takes every combination.
        steps: of each training.
        seeds: at least two, for noise.
    """

    floors: tuple[float, ...] = (0.1, 0.05, 0.03)
    targets: tuple[float, ...] = (1.5e-3, 3e-3, 5e-3)
    jr_maxs: tuple[float, ...] = (4.0, 8.0, 16.0, 32.0)
    mode: str = "ofat"
    steps: int = 80
    seeds: tuple[int, ...] = (42, 1337)

    def __post_init__(self) -> None:
        if self.mode not in ("ofat", "full"):
            raise ConfigError(f"grid mode '{self.mode}' is neither ofat nor full")
        if len(self.seeds) < 2:
            raise ConfigError("a grid over one seed cannot tell an effect from noise; give two or more")
        if not (self.floors and self.targets and self.jr_maxs):
            raise ConfigError("a grid needs a floor, a target and a jr_max each")

    def settings(self) -> list[tuple[float, float, float]]:
        """(floor, target, jr_max), each once, the base first."""
        base = (self.floors[0], self.targets[0], self.jr_maxs[-1])
        if self.mode == "full":
            return list(dict.fromkeys([base, *itertools.product(self.floors, self.targets, self.jr_maxs)]))
        one = [(floor, *base[1:]) for floor in self.floors] + [(base[0], target, base[2]) for target in self.targets]
        return list(dict.fromkeys([base, *one, *((*base[:2], most) for most in self.jr_maxs)]))


def grid_steps(name: str) -> int:
    """Steps of each training at a preset."""
    return {"tiny": 6, "demo": 80, "seed": 1200}[name]


def grid_jobs(base: EqJob, settings: GridSettings, prefix: str) -> list[EqJob]:
    """Trainings that go on from a finished run, optimiser, average and lambda restored, each with another controller.

    Raises:
        ConfigError: for a floor above a maximum.
    """
    jobs = []
    for floor, target, most in settings.settings():
        mark = hashlib.sha256(repr((floor, target, most)).encode()).hexdigest()[:6]
        changes = {"floor": floor, "target": target, "most": most, "steps": settings.steps, "warmup": 0, "prewarm": 0, "snapshots": ()}
        changes["eval_every"] = max(1, settings.steps // 4)
        jobs += [base.changed(f"{prefix}-grid-{mark}", seed=seed, warm=str(base.run_name), **changes) for seed in settings.seeds]
    return jobs


def grid(base: EqJob, settings: GridSettings, prefix: str, root: Path | None = None, **how: Any) -> Result:
    """exp5: does another floor, target or ceiling of lambda take a plateau further down?

    Args:
        base: the training that all go on from; made first where it is missing.
        settings: what is tried.
        prefix: of the runs' names.
        root: run store.
        how: `workers` and `on_progress`, as `train_all`.
    """
    watch = Stopwatch()
    jobs = grid_jobs(base, settings, prefix)
    (start,) = train_all([base], root, **how)
    found = train_all(jobs, root, **how)
    count = len(settings.seeds)
    rows = []
    for place, (floor, target, most) in enumerate(settings.settings()):
        part = found[place * count : (place + 1) * count]
        rows.append({"setting": f"{floor:g}/{target:g}/{most:g}", "floor": floor, "target": target, "jr_max": most, **_grid_row(part)})
    noise = _noise(found, count)
    best = rows[foremost([-row["best_val"] for row in rows]) or 0]
    summary = {
        "start_val": found[0].manifest["log"][0]["val"],
        "best_setting": best["setting"],
        "best_delta": best["delta"],
        "noise_sd": noise,
        "spread": max(row["best_val"] for row in rows) - best["best_val"],
        "settings": len(rows),
    }
    summary["finding"] = (
        f"From {summary['start_val']:.3f} nats, {len(rows)} settings by {count} seeds: the best is {best['setting']} "
        f"(floor/target/jr_max) with {best['delta']:+.3f}{_level(rows, best['best_val'], noise)}; settings spread over "
        f"{summary['spread']:.3f}, seeds of one setting have a standard deviation of {noise:.3f}."
    )
    return made("grid", "setting", rows, GRID, summary, describe([base, *jobs], [start, *found], watch, "grid"), {})


def _level(rows: Sequence[Mapping[str, Any]], best: float, noise: float) -> str:
    """How many other settings lie within the seeds' standard deviation of the best loss, in nats: they are as good."""
    count = sum(not beyond(row["best_val"], best, noise=max(noise, rounding(best))) for row in rows) - 1
    return f" ({count} more within the seeds' standard deviation of it)" if count else ""


def _grid_row(part: Sequence[runs.Run]) -> dict[str, Any]:
    logs = [run.manifest["log"] for run in part]
    best = [_number(run.manifest["best_val"]) for run in part]
    lams = [run.manifest["series"]["lam"] for run in part]
    most = part[0].manifest["config"]["recipe"]["control"]["most"]
    pinned = [sum(value >= most * (1 - 1e-9) for value in lam) / max(1, len(lam)) for lam in lams]
    odd = [f"{run.name.seed} {run.manifest['status']}" for run in part if run.manifest["status"] != "done"]

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    return {
        "seeds": len(part),
        "best_val": mean(best),
        "best_val_low": min(best),
        "best_val_high": max(best),
        "delta": mean([value - log[0]["val"] for value, log in zip(best, logs, strict=True)]),
        "final_val": mean([_number(log[-1]["val"]) for log in logs]),
        "res": max(_number(log[-1]["res"]) for log in logs),
        "lam_end": mean([_number(log[-1]["lam"]) for log in logs]),
        "at_most_share": mean(pinned),
        "skips": mean([_number(log[-1]["skips"]) for log in logs]),
        "excursions": sum(log[-1]["excursions"] for log in logs),
        "status": ", ".join(odd) or "done",
    }


def _noise(found: Sequence[runs.Run], count: int) -> float:
    """Pooled standard deviation of the best validation loss over the seeds of one setting."""
    total = 0.0
    for place in range(0, len(found), count):
        best = [_number(run.manifest["best_val"]) for run in found[place : place + count]]
        centre = sum(best) / count
        total += sum((value - centre) ** 2 for value in best)
    return math.sqrt(total / max(1, len(found) - len(found) // count))
