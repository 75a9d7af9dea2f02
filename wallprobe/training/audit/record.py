"""An audit as a Result of kind "audit", judged; and several of them side by side in one."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from wallprobe.rng import generator
from wallprobe.stats import interval, resamples
from wallprobe.store.results import Result, dataset, plain
from wallprobe.training.audit.diagnostics import VERDICTS, Baseline, Diagnosis, Series, diagnose, early_stop
from wallprobe.training.audit.job import AuditJob
from wallprobe.training.audit.quantities import LAYERED
from wallprobe.training.audit.thresholds import Thresholds
from wallprobe.training.audit.wall import HORIZON

TABLE = ("run", "moment", "layer")
ALONG = {
    "epoch": ("epochs", "epochs behind it"),
    "step": ("optimiser steps", "steps behind it"),
    "train_loss": ("nats", "mean training loss of the epoch so far"),
    "accuracy": ("fraction", "accuracy on the test part"),
}
FIRST = ("a", "a_prime", "b", "b_prime", "d", "e", "f")


@dataclass(frozen=True)
class Described:
    """What a Result says of its subject.

    Attributes:
        arch, method, data, seed: as typed.
        epochs: of the whole training.
        eps, n_ref: of the lens.
    """

    arch: str
    method: str
    data: str
    seed: int
    epochs: int
    eps: float
    n_ref: int

    @property
    def label(self) -> str:
        """For people: `resmlp dfa @42`."""
        return f"{self.arch} {self.method} @{self.seed}"

    @classmethod
    def of(cls, job: AuditJob) -> "Described":
        """A job's."""
        return cls(job.arch, job.method, job.data, job.seed, job.epochs, job.lens.eps, job.lens.n_ref)


def make_result(
    job: Described,
    series: Series,
    moments: Sequence[dict[str, Any]],
    correct: npt.NDArray[np.bool_],
    manifest: dict[str, Any],
    diverged: bool,
    bits: Tensor | None = None,
) -> Result:
    """One run's audit, judged by the usual thresholds, without its baseline.

    Args:
        job: what was trained.
        series: what was seen.
        moments: the same, with losses.
        correct: which test samples are labelled right at the end.
        manifest: see `wallprobe.store.manifest`.
        diverged: whether the training's loss ceased to be finite.
        bits: of the wall's task, mean |H(P) - H(Q)| at positions 1..T-1.
    """
    correct = correct.reshape(-1)
    depth = series.layered["h_norm"].shape[1]
    variables: dict[str, tuple[tuple[str, ...], Any, str, str]] = {}
    for name, (units, what) in LAYERED.items():
        variables[name] = (TABLE, series.layered[name][None], units, what)
    for name, (units, what) in ALONG.items():
        # The same at every layer, so that each record of the long table says when it was taken.
        values = np.asarray([moment[name] for moment in moments], dtype=float)[None, :, None]
        variables[name] = (TABLE, np.broadcast_to(values, (1, len(moments), depth)), units, what)
    for place, end in enumerate(("low", "high")):
        what = f"{'2.5' if end == 'low' else '97.5'} % quantile, over random feedback, of the mean exact cosine over layers 1..L"
        variables[f"deep_null_{end}"] = (TABLE[:2], series.deep_null[None, :, place], "cosine", what)
    variables["correct"] = (("run", "sample"), correct[None].astype(np.int8), "", "1 where a test sample is labelled right at the end")
    for name in ("arch", "method", "data"):
        variables[name] = (("run",), [getattr(job, name)], "", name)
    variables["seed"] = (("run",), [job.seed], "", "seed")
    coords: dict[str, Any] = {"run": [job.label], "moment": range(len(moments)), "layer": range(depth), "sample": range(len(correct))}
    if bits is not None:
        what = "mean distance of the model's entropy from the exact predictive's, at the end"
        variables["mae"] = (("run", "position"), bits.numpy()[None], "bits", what)
        coords["position"] = range(1, len(bits) + 1)
    attrs: dict[str, Any] = {
        "eps": job.eps,
        "n_ref": job.n_ref,
        "diverged": int(diverged),
        "data_name": job.data,
        "epochs": job.epochs,
    }
    data = dataset(coords, variables, **attrs)
    return judged(Result("audit", data, TABLE, {}, manifest), Thresholds())


def series_of(result: Result) -> Series:
    """What was seen, from one run's Result."""
    at = result.data.isel(run=0)
    null = np.stack([at["deep_null_low"].values, at["deep_null_high"].values], 1)
    layered = {name: at[name].values for name in LAYERED}
    return Series(at["epoch"].values[:, 0], layered, null, at["accuracy"].values[:, 0], float(result.data.attrs["eps"]))


def judged(result: Result, limits: Thresholds, frozen: Result | None = None) -> Result:
    """One run's Result with the summary that these thresholds and this baseline give.

    Args:
        result: of one run.
        limits: thresholds.
        frozen: the baseline of the same seed, trained as long.
    """
    series = series_of(result)
    baseline = None if frozen is None else compare(result, frozen)
    found = diagnose(series, limits, baseline)
    manifest = result.manifest | {"thresholds": limits.config(), "evidence": dict(found.evidence)}
    stop = early_stop(series, limits)
    return replace(result, summary=plain(_summary(result, series, found, baseline, stop)), manifest=manifest)


def compare(result: Result, frozen: Result) -> Baseline | None:
    """Accuracy less the baseline's, with a bootstrap over the test samples, which both were tested on; None for the baseline itself."""
    mine, theirs = (np.asarray(one.data["correct"].values[0], dtype=float) for one in (result, frozen))
    if str(result.data["method"].values[0]) == "frozen" or len(mine) != len(theirs):
        return None
    return paired(mine - theirs)


def paired(difference: npt.NDArray[np.float64]) -> Baseline:
    """Mean of paired differences with its 95 % bootstrap interval."""
    import torch

    drawn = resamples(len(difference), generator("frozen", len(difference)), draws=400) @ torch.from_numpy(difference)
    low, high = interval(drawn[:, None])
    return Baseline(float(difference.mean()), float(low), float(high))


def _summary(result: Result, series: Series, found: Diagnosis, baseline: Baseline | None, stop: tuple[int, float] | None) -> dict[str, Any]:
    """The flat record of one run."""
    data = result.data
    h, g = series.top("h_norm"), series.top("g_norm")
    names = {name: str(data[name].values[0]) for name in ("arch", "method", "data")}
    record: dict[str, Any] = names | {"seed": int(data["seed"].values[0]), "verdict": found.verdict}
    record |= {f"first_firing_{name}": found.first.get(name) for name in FIRST}
    gap = baseline or Baseline(math.nan, math.nan, math.nan)
    record |= {
        "h_ratio": h[-1] / h[0],
        "g_ratio": g[-1] / g[0],
        "h_norm": h[-1],
        "g_norm": g[-1],
        "elasticity_ratio": series.top("elasticity")[-1] / series.top("elasticity")[0],
        "slope": found.slope,
        "gamma_clamped": series.top("gamma_clamped")[-1],
        "gamma_exact": series.top("gamma_exact")[-1],
        "gamma_deep_clamped": series.layered["gamma_clamped"][-1, 1:].mean(),
        "gamma_deep_exact": series.layered["gamma_exact"][-1, 1:].mean(),
        "below_eps": series.top("below_eps")[-1],
        "accuracy": series.accuracy[series.whole][-1],
        "accuracy_minus_frozen": gap.difference,
        "accuracy_minus_frozen_low": gap.low,
        "accuracy_minus_frozen_high": gap.high,
        "epochs": int(series.epochs[-1]),
        "stopped_early": bool(series.epochs[-1] < data.attrs["epochs"]) and not data.attrs["diverged"],
        "epochs_saved": int(data.attrs["epochs"] - series.epochs[-1]),
        "stop_epoch": None if stop is None else stop[0],
        "accuracy_at_stop": None if stop is None else stop[1],
        "diverged": bool(data.attrs["diverged"]),
        "mae_supervised": _bits(result, slice(None, HORIZON)),
        "mae_beyond": _bits(result, slice(HORIZON, HORIZON + 1)),
        "cause": found.cause,
        "reason": found.reason,
    }
    return record | {"finding": _finding(record)}


def _bits(result: Result, positions: slice) -> float:
    """Of the wall's task, mean |H(P) - H(Q)| over some positions in bits; NaN of others."""
    return float(result.data["mae"].values[0, positions].mean()) if "mae" in result.data else math.nan


def _finding(record: dict[str, Any]) -> str:
    """One plain sentence."""
    who = f"{record['arch']} {record['method']} on {record['data']}, seed {record['seed']}"
    grown = f"|h_L| x {record['h_ratio']:.3g}, |g_L| x {record['g_ratio']:.2g}"
    cause = f" ({record['cause']})" if record["cause"] else ""
    stopped = f" Stopped with {record['epochs_saved']} epochs saved." if record["stopped_early"] else ""
    diverged = " Its loss ceased to be finite." if record["diverged"] else ""
    if math.isfinite(record["mae_supervised"]):
        supervised, beyond = record["mae_supervised"], record["mae_beyond"]
        diverged += f" Entropy off the exact answer's by {supervised:.2f} bits at supervised positions, {beyond:.2f} one later."
    return f"{who}: {record['verdict']}{cause}. {grown}; {record['reason']}.{stopped}{diverged}"


def worst(verdicts: Sequence[str]) -> str:
    """The worst of some verdicts."""
    return max(verdicts, key=VERDICTS.index)


def combine(results: Sequence[Result], subject: str, manifest: dict[str, Any]) -> Result:
    """Judged audits of single runs in one Result: moments and layers padded, the records beside them along `run`.

    Args:
        results: each of one run.
        subject: what they are together.
        manifest: of the whole; the parts' own are kept within it.
    """
    if len(results) == 1:
        return results[0]
    names = _labels(results)
    moments, layers = (max(result.data.sizes[dim] for result in results) for dim in ("moment", "layer"))
    variables: dict[str, tuple[tuple[str, ...], Any, str, str]] = {}
    for name, array in results[0].data.data_vars.items():
        if array.dims in (TABLE, TABLE[:2]):
            shape = (len(results), moments, layers)[: array.ndim]
            whole = np.full(shape, math.nan)
            for place, result in enumerate(results):
                values = result.data[name].values[0]
                whole[place][tuple(slice(size) for size in values.shape)] = values
            variables[str(name)] = (array.dims, whole, array.attrs["units"], array.attrs["long_name"])
    for key in results[0].summary:
        column = [result.summary[key] for result in results]
        text = any(isinstance(value, str) for value in column)
        filled = [str(value or "") if text else math.nan if value is None else float(value) for value in column]
        variables[f"run_{key}"] = (("run",), filled, "", f"{key} of the run's record")
    variables["run_variant"] = (("run",), variants(results), "", "settings that set the run apart from others of its kind")
    variables["run_depth"] = (("run",), [result.data.sizes["layer"] - 1 for result in results], "", "blocks")
    coords = {"run": names, "moment": range(moments), "layer": range(layers)}
    eps, n_ref = (plain(results[0].data.attrs[key]) for key in ("eps", "n_ref"))
    data = dataset(coords, variables, eps=eps, n_ref=n_ref)
    parts = {name: result.manifest for name, result in zip(names, results, strict=True)}
    return Result("audit", data, TABLE, _together(results), manifest | {"subject": subject, "parts": parts})


def _labels(results: Sequence[Result]) -> list[str]:
    """One name a run, told apart by data and settings where need be."""
    plain_names = [str(result.data["run"].values[0]) for result in results]
    if len(set(plain_names)) == len(plain_names):
        return plain_names
    return [str(result.manifest.get("run", name)) for result, name in zip(results, plain_names, strict=True)]


def variants(results: Sequence[Result]) -> list[str]:
    """In words, the settings of each run that differ from the commonest ones of its architecture and method: runs that differ in more
    than the seed are no seeds of one another. Empty for the commonest.
    """
    configs = [_flat(result.manifest.get("config", {})) for result in results]
    kinds = [(result.summary["arch"], result.summary["method"]) for result in results]
    told = []
    for kind, config in zip(kinds, configs, strict=True):
        peers = [json.dumps(other, sort_keys=True) for other, its in zip(configs, kinds, strict=True) if its == kind]
        usual = json.loads(max(dict.fromkeys(peers), key=peers.count))
        apart = [f"{key} {config.get(key)}" for key in sorted({*config, *usual}) if config.get(key) != usual.get(key)]
        told.append(", ".join(apart))
    return told


def _flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """A job's settings without its name and seed, one level deep, as JSON has them."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if key in ("arch", "method", "seed", "thresholds"):
            continue
        found |= _flat(value) if isinstance(value, Mapping) else {key: value}
    return dict(json.loads(json.dumps(found)))


def _together(results: Sequence[Result]) -> dict[str, Any]:
    """Flat counts over several runs, and the worst verdict of each architecture, method and setting in words."""
    groups: dict[str, list[str]] = {}
    for result, variant in zip(results, variants(results), strict=True):
        record = result.summary
        name = f"{record['arch']} {record['method']}" + (f" ({variant})" if variant else "")
        groups.setdefault(name, []).append(record["verdict"])
    found: dict[str, Any] = {"runs": len(results), "verdict": worst([result.summary["verdict"] for result in results])}
    found |= {verdict.lower(): sum(result.summary["verdict"] == verdict for result in results) for verdict in VERDICTS}
    judged_as = {verdict: [name for name, all_ in groups.items() if worst(all_) == verdict] for verdict in VERDICTS}
    said = "; ".join(f"{verdict}: {', '.join(names)}" for verdict, names in reversed(judged_as.items()) if names)
    return found | {"finding": f"{len(results)} runs, the worst verdict over seeds. {said}."}
