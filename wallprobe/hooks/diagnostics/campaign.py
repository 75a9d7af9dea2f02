"""The equilibrium study's seven experiments in one go: trainings, then instruments on their checkpoints, then one page of figures.

Trainings go on where they were; an experiment whose Result is stored for these very weights is not made again. What each says is told in
figures; the plateau's label is one of three whose thresholds are ours, and stands beside the numbers it was read off.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wallprobe import models
from wallprobe.errors import WallprobeError
from wallprobe.hooks.attach.subjects import Subject, Wanted, subject
from wallprobe.hooks.diagnostics import branches, lr_sweep, mixing, signs, triangulate, triangulate_report
from wallprobe.store import results, runs
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, load_result, plain
from wallprobe.training.equilibrium import experiments
from wallprobe.training.equilibrium.job import EqJob, Recipe
from wallprobe.training.equilibrium.record import made
from wallprobe.training.equilibrium.work import Told

TITLES = MappingProxyType(
    {
        "triangulate": "exp1: is the estimate the gradient?",
        "lr_sweep": "exp2: what does one step buy?",
        "matched": "exp3: architecture or rule?",
        "gate": "exp4: warm-up against the gate",
        "grid": "exp5: floor, target, ceiling of lambda",
        "branches": "exp6: branches and attention",
        "mixing": "exp7: how far does influence reach?",
    }
)
COLUMNS = MappingProxyType({"what": ("", "question"), "says": ("", "figures"), "seconds": ("s", "wall time of its last making")})


@dataclass(frozen=True)
class Plan:
    """A campaign.

    Attributes:
        preset: tiny, demo or seed.
        recipe: of the matched arms; the others follow from it.
        seed: of everything.
        grid: controllers tried.
        batches: that gradients are estimated on.
    """

    preset: str
    recipe: Recipe
    seed: int = runs.DEFAULT_SEED
    grid: experiments.GridSettings = field(default_factory=experiments.GridSettings)
    batches: int = 4

    @property
    def prefix(self) -> str:
        """Of every run's name."""
        return f"eq-{self.preset}"

    def arms(self) -> list[EqJob]:
        """The matched trainings."""
        return [experiments.job(self.preset, arm, seed=self.seed, recipe=self.recipe) for arm in ("ep", "bptt", "bp")]

    def gate(self) -> list[EqJob]:
        """The gate study's."""
        settings = experiments.gate_settings(self.preset)
        return experiments.gate_jobs(replace(settings, recipe=replace(settings.recipe, text=self.recipe.text)), self.prefix, self.seed)


def plan(preset: str, recipe: Recipe, seed: int) -> Plan:
    """The campaign at a preset; tiny tries three controllers on two batches."""
    grid = experiments.GridSettings(steps=experiments.grid_steps(preset), seeds=(seed, seed + 1))
    if preset == "tiny":
        return Plan(preset, recipe, seed, replace(grid, floors=(0.1,), targets=(1.5e-3, 3e-3), jr_maxs=(8.0, 32.0)), batches=2)
    return Plan(preset, recipe, seed, grid)


@dataclass(frozen=True)
class _Making:
    """Where things are kept while a campaign is made."""

    plan: Plan
    root: Path | None
    store: Path | None
    workers: int | None
    told: Told | None

    def once(self, name: str, weights: Sequence[str], make: Callable[[], Result]) -> Result:
        """The stored Result for these weights and settings, else a new one, stored."""
        key = [name, self.plan.preset, self.plan.seed, self.plan.batches, list(weights)]
        mark = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
        folder = (self.root or runs.default_root()) / f".{self.plan.prefix}-campaign" / f"{name}-{mark}"
        try:
            result = load_result(folder)
        except WallprobeError:
            result = make()
            result.save_at(folder)
        result.save(self.store or results.default_root())
        if self.told is not None:
            self.told(f"{name} of the campaign", 1, 1)
        return result

    def follow(self, name: str) -> Callable[[int, int], None] | None:
        """A progress callback of an instrument."""
        told = self.told
        return None if told is None else lambda done, total: told(name, done, total)


def campaign(
    wanted: Plan, root: Path | None = None, store: Path | None = None, *, workers: int | None = None, on_progress: Told | None = None
) -> tuple[Result, dict[str, Result]]:
    """Make what is missing of a campaign.

    Args:
        wanted: the plan.
        root: run store.
        store: Result store; every experiment's Result goes there, and the overview.
        workers: trainings at once.
        on_progress: told (what, done, of how many).

    Returns:
        The overview, of kind "campaign", and the seven Results by name, with their signs of the three plateaus.

    Raises:
        WallprobeError: as the trainings and instruments.
    """
    watch, making = Stopwatch(), _Making(wanted, root, store, workers, on_progress)
    how: dict[str, Any] = {"workers": workers, "on_progress": on_progress}
    arms = wanted.arms()
    trained = experiments.matched(arms, root, **how)
    weights = list(trained.manifest["weight_hashes"].values())
    parts: dict[str, Result] = {"matched": making.once("matched", weights, lambda: trained)}
    study = experiments.gate_study(wanted.gate(), root, **how)
    parts["gate"] = making.once("gate", list(study.manifest["weight_hashes"].values()), lambda: study)
    tried = experiments.grid(arms[0], wanted.grid, wanted.prefix, root, **how)
    parts["grid"] = making.once("grid", list(tried.manifest["weight_hashes"].values()), lambda: tried)
    last, plain_arm = (models.load_run(runs.find_run(str(arm.run_name), root)) for arm in (arms[0], arms[2]))
    names = [arms[0].snapshot(step) for step in wanted.recipe.snapshots] + [arms[0].run_name]
    kept = [runs.find_run(str(name), root) for name in names]
    want = Wanted(batches=wanted.batches, seed=wanted.seed)
    marks = [run.manifest["weight_hash"] for run in kept]
    parts["triangulate"] = making.once("triangulate", marks, lambda: _triangulated(kept, want, making))
    parts["branches"] = making.once("branches", [*marks, str(plain_arm.weight_hash)], lambda: _branched(kept, plain_arm, want))
    both = [str(last.weight_hash), str(plain_arm.weight_hash)]
    parts["mixing"] = making.once("mixing", both, lambda: mixing.mixing([subject(one, want) for one in (last, plain_arm)]))
    parts["lr_sweep"] = making.once("lr_sweep", both[:1], lambda: _swept(subject(last, want), making))
    overview = _overview(wanted, parts, runs.find_run(str(arms[0].run_name), root), watch)
    overview.save(store)
    parts["signs"] = signs.signs(list(parts.values()), watch)
    parts["signs"].save(store)
    return overview, parts


def _triangulated(kept: Sequence[runs.Run], want: Wanted, making: _Making) -> Result:
    """exp1 on every snapshot and the best average; one model in memory at a time."""
    watch, rows = Stopwatch(), []
    for run in kept:
        found = subject(models.load_run(run), want)
        chosen = triangulate.usual(found)
        rows.append(triangulate.measure(found, chosen, seed=making.plan.seed, on_progress=making.follow(f"triangulate {run.name}")))
    result = triangulate_report.report(rows, watch, seed=making.plan.seed)
    return replace(result, manifest=result.manifest | {"records": triangulate_report.summaries(rows, "block")})


def _branched(kept: Sequence[runs.Run], transformer: models.Loaded, want: Wanted) -> Result:
    """exp6 on the same, and on the transformer."""
    watch = Stopwatch()
    found: list[Subject] = [subject(models.load_run(run), want) for run in kept] + [subject(transformer, want)]
    return branches.report(found, [branches.measure(one) for one in found], watch, seed=want.seed)


def _swept(found: Subject, making: _Making) -> Result:
    """exp2 at the end of the EP arm: its task gradient, that with the contraction penalty, and BPTT's."""
    steps = found.loaded.run.manifest["shape"]["T1"] if found.loaded.run else 60
    chosen = triangulate.Chosen(("eqprop", "eqprop+jac", f"bptt:steps={steps}"), f"bptt:steps={steps}")
    return lr_sweep.lr_sweep(found, chosen, seed=making.plan.seed, on_progress=making.follow("lr-sweep"))


def _overview(wanted: Plan, found: dict[str, Result], run: runs.Run, watch: Stopwatch) -> Result:
    """One record an experiment, and the plateau's numbers."""
    rows = []
    for name, title in TITLES.items():
        result = found[name]
        says = str(result.summary["finding"])
        rows.append({"experiment": name, "what": title, "says": says, "seconds": float(result.manifest["wall_time_s"])})
    numbers = experiments.plateau(run)
    traced, swept, arms, tried = (found[name].summary for name in ("triangulate", "lr_sweep", "matched", "grid"))
    summary: dict[str, Any] = {f"plateau_{key}" if key != "plateau" else key: value for key, value in numbers.items()}
    summary |= {
        key: traced.get(key) for key in ("ckpt", "val", "res", "ep_bptt", "bptt_bptt", "k", "ep_self", "bptt_self", "projection", "snr")
    }
    summary |= {key: value for key, value in swept.items() if key.startswith("best_")}
    summary |= {key: arms[key] for key in ("architecture_gap", "rule_gap")}
    summary |= {f"grid_{key}": tried[key] for key in ("best_setting", "best_delta", "noise_sd", "spread")}
    summary["finding"] = _finding(summary)
    config = {"preset": wanted.preset, "seed": wanted.seed, "runs": [job.config() for job in (*wanted.arms(), *wanted.gate())]}
    manifest = provenance(
        config=config,
        device="cpu",
        dtype="training float32, norms and cosines float64",
        watch=watch,
        subject=f"campaign {wanted.prefix}",
        seeds=[wanted.seed],
        weight_hash=run.manifest["weight_hash"],
        weight_processing="none",
        parts={name: result.identity for name, result in found.items()},
    )
    return made("campaign", "experiment", rows, COLUMNS, plain(summary), manifest, {})


def _finding(summary: dict[str, Any]) -> str:
    """Figures side by side."""

    def told(key: str, form: str) -> str:
        value = summary.get(key)
        return "n/a" if value is None or (isinstance(value, float) and not math.isfinite(value)) else format(value, form)

    gradient = (
        f"{summary['ckpt']}: loss {told('val', '.3f')} nats; cosine of EP to BPTT {told('ep_bptt', '+.3f')}, where two horizons agree to "
        f"{told('bptt_bptt', '.3f')}; k {told('k', '.3g')}; self-cosine {told('ep_self', '+.3f')}, BPTT's {told('bptt_self', '+.3f')}."
    )
    control = (
        f"Second half of its training: residual {told('plateau_res_over_target', '.2g')} targets, {told('plateau_skip_share', '.0%')} "
        f"skipped, lambda at its ceiling in {told('plateau_at_most_share', '.0%')}, turning in {told('plateau_flip_share', '.0%')} "
        f"of steps (label: {summary['plateau']})."
    )
    gaps = f"Gaps: architecture {told('architecture_gap', '+.3f')}, rule {told('rule_gap', '+.3f')} nats."
    return f"{gradient} {control} {gaps}"
