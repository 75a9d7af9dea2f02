"""From the probes' hits and misses on the test sequences to their Result: accuracy, control, selectivity, ceiling, one sentence."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from wallprobe import stats
from wallprobe.findings import beyond
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset
from wallprobe.store.runs import Run
from wallprobe.tasks.task import Task

POSITIONS = (5, 6, 10, 15)  # those the published probe figures are given for
TABLE = ("layer", "index", "target")
STILL, PARTLY = 0.9, 0.5  # shares of the way from the control to the exact answer
# name -> (units, what it is)
FIGURES = {
    "accuracy": ("fraction", "share of test sequences whose label the probe tells"),
    "control_accuracy": ("fraction", "the same for a probe fitted to and scored on shuffled labels"),
    "selectivity": ("fraction", "accuracy minus control accuracy; for the entropy, R^2 minus the control's"),
    "r2": ("R^2", "share of the variance of H(P) on test sequences that the ridge explains; NaN where H(P) does not vary"),
    "control_r2": ("R^2", "the same for a ridge fitted to and scored on shuffled values"),
    "chance": ("fraction", "accuracy of the best guess that reads nothing"),
    "ceiling": ("fraction", "accuracy of the exact posterior given the same prefix"),
    "identified": ("fraction", "share of test sequences whose prefix leaves one label (probability above 0.99)"),
    "accuracy_identified": ("fraction", "accuracy over those sequences alone"),
    "strength": ("1", "strength of the penalty, chosen by the validation loss"),
}
Reduce = Callable[[Tensor, Tensor], Tensor]
BOUNDED = ("accuracy", "selectivity", "r2")


@dataclass(frozen=True)
class Scores:
    """One target's test results.

    Attributes:
        target: its name.
        treated: hits; for the entropy, errors in bits.
        control: the same on shuffled labels.
        strength: of the penalty that validation chose for the treatment.
        chance: accuracy of the best guess that reads nothing.
        ceiling: probability that the exact posterior's best guess is right.
        identified: where the prefix leaves one label.
        train: sequences fitted on.
        truth: for the entropy, the true values of treatment and control.
    """

    target: str
    treated: Bool[Tensor, "layer index test"] | Float[Tensor, "layer index test"]
    control: Bool[Tensor, "layer index test"] | Float[Tensor, "layer index test"]
    strength: Float[Tensor, "layer index"]
    chance: float
    ceiling: Float[Tensor, "index test"]
    identified: Bool[Tensor, "index test"]
    train: int
    truth: Float[Tensor, "layer index arm test"] | None = None


def figures(scores: Scores, seed: int) -> dict[str, Float[Tensor, "layer index"]]:
    """Every figure of `FIGURES` for one target, with bounds; those that do not apply are left out."""
    layers, indices, test = scores.treated.shape
    weights = _resamples(test, seed)
    once = torch.full((1, test), 1 / test, dtype=torch.float64)
    arms = [arm.flatten(0, 1).double() for arm in (scores.treated, scores.control)]
    if scores.truth is None:
        reduce: Reduce = _mean
        names, extras = ("accuracy", "control_accuracy"), _extras(scores, arms[0], once)
    else:
        reduce, names, extras = _r2, ("r2", "control_r2"), {}
        arms = [torch.stack(pair) for pair in zip(arms, scores.truth.flatten(0, 1).double().unbind(1), strict=True)]
    made = {name: reduce(once, arm)[0] for name, arm in zip(names, arms, strict=True)}
    made["selectivity"] = made[names[0]] - made[names[1]]
    drawn = [reduce(weights, arm) for arm in arms]
    for name, draws in ((names[0], drawn[0]), ("selectivity", drawn[0] - drawn[1])):
        made[f"{name}_low"], made[f"{name}_high"] = stats.interval(draws)
    made |= extras
    return {name: value.view(layers, indices) for name, value in made.items()} | {"strength": scores.strength.double()}


def _mean(weights: Float[Tensor, "draws test"], hits: Float[Tensor, "cell test"]) -> Float[Tensor, "draws cell"]:
    return torch.mm(weights, hits.T)


def _r2(weights: Float[Tensor, "draws test"], pair: Float[Tensor, "2 cell test"]) -> Float[Tensor, "draws cell"]:
    """1 - mean squared error / variance, NaN where nothing varies."""
    errors, truth = pair
    centred = truth - truth.mean(1, keepdim=True)
    variance = weights @ centred.square().T - (weights @ centred.T).square()
    explained: Tensor = 1 - weights @ errors.square().T / torch.where(variance > 1e-12, variance, math.nan)
    return explained


def _extras(scores: Scores, hits: Tensor, once: Tensor) -> dict[str, Tensor]:
    layers = scores.treated.shape[0]
    known = scores.identified.double().repeat(layers, 1)
    return {
        "chance": torch.full((len(hits),), scores.chance, dtype=torch.float64),
        "ceiling": scores.ceiling.double().mean(1).repeat(layers),
        "identified": known.mean(1),
        "accuracy_identified": stats.masked_means(once, torch.where(known > 0, hits, math.nan).T)[0],
    }


def make_result(
    run: Run, task: Task, config: dict[str, Any], scores: Sequence[Scores], fit_seconds: float, device: str, watch: Stopwatch
) -> Result:
    """Assemble the Result of kind "probe"."""
    order = {target: place for place, target in enumerate(config["targets"])}
    scores = sorted(scores, key=lambda one: order[one.target])
    made = [figures(one, config["seed"]) for one in scores]
    layers, indices, _ = scores[0].treated.shape
    nothing = torch.full((layers, indices), math.nan, dtype=torch.float64)
    name, shape = str(run.name), (layers, indices, len(scores))
    variables: dict[str, tuple[tuple[str, ...], Any, str, str]] = {"run": (TABLE, np.full(shape, name), "name", "the run")}
    for key, (units, what) in FIGURES.items():
        for suffix in ("", "_low", "_high") if key in BOUNDED else ("",):
            stacked = torch.stack([one.get(key + suffix, nothing) for one in made], dim=-1)
            variables[key + suffix] = (TABLE, stacked.numpy(), units, what)
    coords = {"layer": config["layers"], "index": list(range(indices)), "target": config["targets"]}
    horizon = int(run.manifest["horizon"])
    attrs = {"run": name, "horizon": horizon, "start": task.start, "modulus": task.modulus, "site": config["site"]}
    data = dataset(coords, variables, **attrs)
    manifest = provenance(
        config=config,
        device=device,
        dtype="float32 model and softmax probes, float64 ridge and scores",
        watch=watch,
        subject=name,
        weight_hash=run.manifest["weight_hash"],
        weight_processing="none",
        seeds={"sequences": config["seed"]},
    )
    whole = {"run": name, "site": config["site"], "layer": config["layers"][-1], "horizon": horizon}
    summary = whole | _counts(scores) | {"chance": 1 / task.modulus}
    summary |= _token_summary(dict(zip(config["targets"], made, strict=True)).get("token"), scores, task.start, horizon, config["seed"])
    summary |= {"seconds": watch.seconds(), "fit_seconds": fit_seconds, "finding": _finding(summary)}
    return Result("probe", data, TABLE, summary, manifest)


def _counts(scores: Sequence[Scores]) -> dict[str, Any]:
    """Sequences fitted and scored on, of the mixture and of programs alone; None where nothing was probed on them."""
    found = {one.target in ("a", "b"): (one.train, one.treated.shape[2]) for one in scores}
    (n_train, n_test), (p_train, p_test) = (found.get(kind, (None, None)) for kind in (False, True))
    return {"n_train": n_train, "n_test": n_test, "n_train_programs": p_train, "n_test_programs": p_test}


def _token_summary(
    token: dict[str, Tensor] | None, scores: Sequence[Scores], start: int, horizon: int, seed: int
) -> dict[str, float | None]:
    """The last probed layer's accuracy on the next token: at the published positions (counted from the end of a header), at the last
    supervised one and its mean behind the wall; None where there is no such position, or the token was not probed."""
    keys = [f"token_accuracy_{position}" for position in POSITIONS] + ["drop_after_horizon"]
    summary: dict[str, float | None] = dict.fromkeys(f"{key}{suffix}" for key in keys for suffix in ("", "_low", "_high"))
    behind = {
        "token_accuracy_unsupervised": "accuracy",
        "token_control_unsupervised": "control_accuracy",
        "token_ceiling_unsupervised": "ceiling",
    }
    summary |= dict.fromkeys(["token_accuracy_supervised", *behind])
    if token is None:
        return summary
    indices, edge = token["accuracy"].shape[1], start + horizon
    for position in POSITIONS:
        if start + position <= indices:
            for suffix in ("", "_low", "_high"):
                summary[f"token_accuracy_{position}{suffix}"] = float(token[f"accuracy{suffix}"][-1, start + position - 1])
    summary["token_accuracy_supervised"] = float(token["accuracy"][-1, edge - 1])
    if edge < indices:
        hits = next(one.treated[-1].double() for one in scores if one.target == "token")
        low, high = stats.interval(_resamples(hits.shape[1], seed) @ (hits[edge - 1] - hits[edge]))
        drop = float((hits[edge - 1] - hits[edge]).mean())
        summary |= {"drop_after_horizon": drop, "drop_after_horizon_low": float(low), "drop_after_horizon_high": float(high)}
        summary |= {key: float(token[name][-1, edge:].mean()) for key, name in behind.items()}
    return summary


def _resamples(test: int, seed: int) -> Float[Tensor, "draws test"]:
    return stats.resamples(test, generator(seed, "probe bootstrap", test))


def _finding(summary: dict[str, Any]) -> str:
    """One plain sentence: is the answer linearly there behind the wall?"""
    run, layer, before = summary["run"], summary["layer"], summary["token_accuracy_supervised"]
    if summary["token_accuracy_unsupervised"] is None:
        return f"Linear probes of {run} at {summary['site']}, layers up to {layer}; the next token behind the wall is not among them."
    behind, ceiling, control = (summary[f"token_{key}_unsupervised"] for key in ("accuracy", "ceiling", "control"))
    there = beyond(ceiling, control)  # else even the exact answer says nothing, and there is nothing to find
    share = (behind - control) / (ceiling - control) if there else math.nan
    word = "mostly gone"
    if there and beyond(share, PARTLY):
        word = "still there" if beyond(share, STILL) else "partly there"
    return (
        f"Behind the wall the next token is {word} for a linear probe of {run}'s layer {layer}: accuracy {behind:.3f}, "
        f"where the exact answer has {ceiling:.3f}, shuffled labels {control:.3f}, and the last supervised position {before:.3f}."
    )
