"""The seven experiments read together: what each measures, and which of the equilibrium study's three plateaus its numbers are signs of.

(1) invalid: the gate keeps the task out. (2) over-contracted: valid and contracted, and far from what the architecture without a fixed
point reaches. (3) a fight: estimator and controller pull apart, or the estimate is not the gradient. A sign is a number beside a mark;
the marks are ours and say nothing of causes. What was not measured is told as such.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wallprobe.findings import beyond
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset

TYPES = {1: "invalid", 2: "over-contracted", 3: "fight"}
EXPERIMENTS = {
    "triangulate": "exp1",
    "lr_sweep": "exp2",
    "matched": "exp3",
    "gate": "exp4",
    "grid": "exp5",
    "branches": "exp6",
    "mixing": "exp7",
}


@dataclass(frozen=True)
class Sign:
    """One number.

    Attributes:
        kind: the experiment's kind of Result.
        what: the number in words.
        value: NaN where it is not there.
        plateau: 1, 2 or 3: of which it is a sign.
        above: whether it is one above its mark, or below.
        mark: where.
    """

    kind: str
    what: str
    value: float
    plateau: int
    above: bool
    mark: float

    @property
    def past(self) -> float:
        """1 past the mark by more than rounding, 0 short of it, NaN without a value."""
        if math.isnan(self.value):
            return math.nan
        return float(beyond(self.value, self.mark) if self.above else beyond(self.mark, self.value))


def signs(results: Sequence[Result], watch: Stopwatch | None = None) -> Result:
    """The report.

    Args:
        results: of the seven kinds, in any order; the last of a kind counts, and those of other kinds are left out.
        watch: started with the work.

    Returns:
        Result of kind "signs", table over sign; `finding_*` in the summary is what each experiment says of itself.
    """
    found = {result.kind: result for result in results if result.kind in EXPERIMENTS}
    rows = [sign for read in (_matched, _gate, _triangulate, _lr_sweep, _grid, _branches, _mixing) for sign in read(found)]
    names = [f"{EXPERIMENTS[sign.kind]} {sign.what}" for sign in rows]
    text = "text"
    variables = {
        "experiment": (("sign",), [EXPERIMENTS[sign.kind] for sign in rows], text, "which of the seven"),
        "what": (("sign",), [sign.what for sign in rows], text, "the number in words"),
        "value": (("sign",), [sign.value for sign in rows], "see what", "the number"),
        "plateau": (("sign",), [TYPES[sign.plateau] for sign in rows], text, "of which plateau it is a sign"),
        "side": (("sign",), ["above" if sign.above else "below" for sign in rows], text, "on which side of its mark"),
        "mark": (("sign",), [sign.mark for sign in rows], "see what", "the mark, ours"),
        "past": (("sign",), [sign.past for sign in rows], "1", "1 past the mark, 0 short of it"),
    }
    manifest = provenance(
        config={"results": sorted(result.identity for result in found.values())},
        device="none",
        dtype="float64",
        watch=watch or Stopwatch(),
        subject=", ".join(sorted({str(result.manifest.get("subject")) for result in found.values()}))[:80],
        weight_processing="none",
        parts={kind: result.manifest.get("subject") for kind, result in found.items()},
        seconds={kind: result.manifest.get("wall_time_s") for kind, result in found.items()},
    )
    return Result("signs", dataset({"sign": names}, variables), ("sign",), _summary(found, rows), manifest)


def _summary(found: Mapping[str, Result], signs: Sequence[Sign]) -> dict[str, Any]:
    made: dict[str, Any] = {"experiments": len(found), "missing": ", ".join(kind for kind in EXPERIMENTS if kind not in found)}
    told = []
    for place, name in TYPES.items():
        there = [sign.past for sign in signs if sign.plateau == place and not math.isnan(sign.past)]
        key = name.replace("-", "_")
        made |= {f"{key}_past": int(sum(there)), f"{key}_signs": len(there)}
        told.append(f"{name} {int(sum(there))} of {len(there)}")
    made |= {f"finding_{kind}": str(result.summary.get("finding", "")) for kind, result in found.items()}
    return made | {"finding": f"Signs past their mark, by kind of plateau: {', '.join(told)} ({len(found)} of 7 experiments measured)."}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan


def _arm(result: Result, name: str) -> int | None:
    arms = [str(arm).lower() for arm in result.data["arm"].values]
    return arms.index(name) if name in arms else None


def _matched(found: Mapping[str, Result]) -> list[Sign]:
    result = found.get("matched")
    skip = most = over = gap = rule = flips = cos = math.nan
    if result is not None:
        gap, rule = (_number(result.summary.get(key)) for key in ("architecture_gap", "rule_gap"))
        place = _arm(result, "ep")
        if place is not None and "step_res" in result.data:
            skip, most, over, flips = _second_half(result, place)
        if place is not None and "log_cos_task_jac" in result.data:
            seen = result.data["log_cos_task_jac"].values[place]
            seen = seen[np.isfinite(seen)]
            cos = float(np.median(seen[len(seen) // 2 :])) if len(seen) else math.nan
    return [
        Sign("matched", "share of steps gated, second half of EP's training", skip, 1, True, 0.5),
        Sign("matched", "share of steps with λ at its maximum, same half", most, 1, True, 0.5),
        Sign("matched", "median residual over its target, same half", over, 2, False, 1.0),
        Sign("matched", "architecture gap BPTT+ctl − BP, nats", gap, 2, True, 0.05),
        Sign("matched", "rule gap EP − BPTT+ctl, nats", rule, 3, True, 0.05),
        Sign("matched", "share of steps at which λ turns round, same half", flips, 3, True, 0.4),
        Sign("matched", "cosine of task and penalty gradient, same half", cos, 3, False, -0.5),
    ]


def _second_half(result: Result, place: int) -> tuple[float, float, float, float]:
    """Gated share, share at the maximum, residual over target, share of turns: of one arm's later steps."""
    data = result.data
    res = data["step_res"].values[place]
    there = np.isfinite(res)
    start = int(there.sum()) // 2
    res, lam, gated = (data[name].values[place][there][start:] for name in ("step_res", "step_lam", "step_skipped"))
    control = result.manifest["config"]["runs"][place]["recipe"]["control"]
    if not len(res):
        return math.nan, math.nan, math.nan, math.nan
    moves = np.diff(lam)
    moves = np.sign(moves[moves != 0])
    turns = float((moves[1:] != moves[:-1]).sum()) / len(lam)
    pinned = float((lam >= control["most"] * (1 - 1e-9)).mean())
    return float(gated.mean()), pinned, float(np.median(res)) / float(control["target"]), turns


def _gate(found: Mapping[str, Result]) -> list[Sign]:
    result, skip = found.get("gate"), math.nan
    if result is not None:
        skip = _number(float(result.data["skip_share"].values[0]))
    return [Sign("gate", "share of arm A's steps gated", skip, 1, True, 0.5)]


def _triangulate(found: Mapping[str, Result]) -> list[Sign]:
    result = found.get("triangulate")
    names = ("cos", "projection", "own", "res")
    values = dict.fromkeys(names, math.nan)
    if result is not None:
        data = result.data
        last = data.isel(ckpt=-1)
        tested, reference = (last.sel(estimator=data.attrs[role]) for role in ("tested", "reference"))
        values = {"cos": float(tested["cos"]), "projection": float(tested["projection"])}
        values |= {"own": float(reference["self_cos"]) - float(tested["self_cos"]), "res": _number(result.summary.get("res"))}
    return [
        Sign("triangulate", "residual at the last checkpoint", values["res"], 1, True, 1e-2),
        Sign("triangulate", "cosine to BPTT at the last checkpoint, faithful there", values["cos"], 2, True, 0.95),
        Sign("triangulate", "cosine to BPTT at the last checkpoint, lost there", values["cos"], 3, False, 0.5),
        Sign("triangulate", "k cos at the last checkpoint, what is left of the gradient", values["projection"], 3, False, 0.5),
        Sign("triangulate", "self-cosine of BPTT less EP's", values["own"], 3, True, 0.25),
    ]


def _lr_sweep(found: Mapping[str, Result]) -> list[Sign]:
    result, share, fall = found.get("lr_sweep"), math.nan, math.nan
    if result is not None:
        data = result.data
        rows = {str(name): data["delta"].sel(gradient=name).values for name in data["gradient"].values}
        best = {name: float(np.nanmin(row)) for name, row in rows.items() if np.isfinite(row).any()}
        reference = str(data.attrs["reference"])
        tested = next((name for name in best if name.startswith("eqprop") and "plain" not in name and "jac" not in name), None)
        fall = -best.get(reference, math.nan)
        share = best[tested] / best[reference] if tested is not None and best.get(reference) else math.nan
    return [
        Sign("lr_sweep", "best one-step fall along BPTT, nats: a direction is left", fall, 3, True, 0.05),
        Sign("lr_sweep", "EP's best one-step fall over BPTT's", share, 3, False, 0.5),
    ]


def _grid(found: Mapping[str, Result]) -> list[Sign]:
    result, gain = found.get("grid"), math.nan
    if result is not None:
        best, noise = result.data["best_val"].values, _number(result.summary.get("noise_sd"))
        gain = float((best[0] - np.nanmin(best)) / noise) if noise > 0 else math.nan
    return [Sign("grid", "best setting's gain on the base, over the seeds' standard deviation", gain, 2, True, 2.0)]


def _branches(found: Mapping[str, Result]) -> list[Sign]:
    result, ratio = found.get("branches"), math.nan
    if result is not None:
        last = result.data.isel(ckpt=-1, layer=0)
        ratio = min(float(last["attn_xin"]), float(last["ffn_xin"]))
    return [Sign("branches", "smaller branch over the stream at the last checkpoint", ratio, 2, False, 0.1)]


def _mixing(found: Mapping[str, Result]) -> list[Sign]:
    result, share = found.get("mixing"), math.nan
    if result is not None and result.data.sizes["ckpt"] >= 2:
        over = result.data["over_d1"].values
        both = np.isfinite(over[0]) & np.isfinite(over[1])
        if both.any():
            far = int(np.flatnonzero(both)[-1])
            share = float(over[0, far] / over[1, far]) if over[1, far] else math.nan
    return [Sign("mixing", "influence at the longest distance over that at 1, equilibrium over transformer", share, 2, False, 0.5)]
