"""Several measurements of gains as one Result: over models, by fraction of the depth, and over training, by step."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wallprobe import models
from wallprobe.errors import CheckpointError, ConfigError, one_line
from wallprobe.findings import difference, foremost, side
from wallprobe.store import runs
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset
from wallprobe.store.storage import sha256_file
from wallprobe.store.weights import check_finite_file, load_finite

CELLS = {
    "attn_gain": "gain of attention, all tokens",
    "mlp_gain": "gain of the MLP, all tokens",
    "attn_gain_no_sink": "gain of attention, without sink tokens",
    "mlp_gain_no_sink": "gain of the MLP, without sink tokens",
}
FINAL = ("final_mlp_gain", "final_mlp_gain_no_sink")
STEP = re.compile(r"^(?P<model>.+)@step(?P<step>\d+)$")


def over_models(measured: Sequence[Result], watch: Stopwatch) -> Result:
    """Gains of several models on one axis, the fraction of the depth: layer l of L spans l/L to (l+1)/L. Every layer is there.

    Args:
        measured: Results of kind "gains" of one definition.
        watch: started with the work.

    Returns:
        Result of kind "gains_models", table over model x depth.

    Raises:
        ConfigError: for fewer than two, two of one name, or several definitions.
    """
    names = [str(result.summary["model"]) for result in measured]
    if len(names) < 2 or len(set(names)) != len(names):
        raise ConfigError(f"models {', '.join(names)} are no two different ones to compare")
    way = _one_way(measured)
    deepest = max(result.data.sizes["layer"] for result in measured)
    depths = (np.arange(2 * deepest) + 0.5) / (2 * deepest)  # two places a layer of the deepest, so that none falls between
    layers = np.stack([np.floor(depths * result.data.sizes["layer"]).astype(int) for result in measured])
    cells = {
        name: (("model", "depth"), np.stack([r.data[name].values[at] for r, at in zip(measured, layers, strict=True)]), "ratio", words)
        for name, words in CELLS.items()
    }
    last = sum(int(np.nanargmax(result.data["mlp_gain"].values)) == result.data.sizes["layer"] - 1 for result in measured)
    clean = sum(int(np.nanargmax(result.data["mlp_gain_no_sink"].values)) == result.data.sizes["layer"] - 1 for result in measured)
    summary = way | {"n_models": len(names), "models": ", ".join(names), "last_loudest": last, "last_loudest_no_sink": clean}
    told = [_last_loudest(measured, name) for name in ("mlp_gain", "mlp_gain_no_sink")]
    summary["finding"] = models_finding(told[0], told[1], len(names), way["definition"])
    coords = {"model": names, "depth": depths.round(4)}
    data = dataset(
        coords, cells | {"layer": (("model", "depth"), layers, "layer", "layer shown at that depth")} | _along(measured, "model")
    )
    return Result("gains_models", data, ("model", "depth"), summary, _manifest(measured, watch, "models " + ", ".join(names)))


def _last_loudest(measured: Sequence[Result], name: str) -> tuple[int, int]:
    """In how many models the last MLP's gain lies above that of every other layer, and in how many it cannot be told apart from it."""
    sides = []
    for result in measured:
        gains = result.data[name].values.astype(float).tolist()
        low, high = (_bound(result, f"{name}{end}", len(gains)) for end in ("_low", "_high"))
        other = foremost(gains[:-1])
        if other is None:
            sides.append("above")  # a single layer is the loudest
        else:
            sides.append(side(gains[-1], gains[other], difference((low[-1], high[-1]), (low[other], high[other]))))
    return sides.count("above"), sides.count("level")


def _bound(result: Result, name: str, layers: int) -> list[float]:
    """Bounds by layer, NaN where a result has none."""
    return result.data[name].values.astype(float).tolist() if name in result.data else [math.nan] * layers


def models_finding(every: tuple[int, int], clean: tuple[int, int], models: int, definition: str) -> str:
    """One plain sentence: of how many models the last MLP is the loudest, and of how many within its interval; all tokens, no sinks."""
    beside = [f" ({level} more within the interval)" if level else "" for _, level in (every, clean)]
    return (
        f"The last MLP is the loudest in {every[0]} of {models} models{beside[0]}, without sink tokens in {clean[0]}{beside[1]} "
        f"(definition {definition})."
    )


def over_training(model: str, steps: Sequence[int], measured: Sequence[Result], watch: Stopwatch) -> Result:
    """Gains against the training step.

    Args:
        model: what the steps are of.
        steps: of each measurement, rising.
        measured: Results of kind "gains" of one definition and one depth.
        watch: started with the work.

    Returns:
        Result of kind "gains_training", table over step x layer; the last MLP's gain with its interval by step.

    Raises:
        ConfigError: for fewer than two steps, or measurements that differ in definition or depth.
    """
    if len(steps) < 2 or list(steps) != sorted(set(steps)):
        raise ConfigError(f"steps {', '.join(map(str, steps))} of {model} are no two different ones to compare")
    way, depths = _one_way(measured), {result.data.sizes["layer"] for result in measured}
    if len(depths) > 1:
        raise ConfigError(f"measurements of {model} have {' and '.join(map(str, sorted(depths)))} layers; they are of different models")
    cells = {name: (("step", "layer"), np.stack([r.data[name].values for r in measured]), "ratio", words) for name, words in CELLS.items()}
    final = [float(result.summary["final_mlp_gain"]) for result in measured]
    peak = foremost(final) or 0
    summary = way | {"model": model, "n_steps": len(steps), "first_step": steps[0], "last_step": steps[-1]}
    summary |= {"final_mlp_gain_first": final[0], "final_mlp_gain": final[-1], "final_mlp_gain_peak": final[peak], "peak_step": steps[peak]}
    summary["final_mlp_gain_no_sink"] = float(measured[-1].summary["final_mlp_gain_no_sink"])
    summary |= {
        "attn_contracting_first": measured[0].summary["attn_contracting"],
        "attn_contracting": measured[-1].summary["attn_contracting"],
    }
    summary["finding"] = (
        f"Over training, {model}'s last MLP goes from a gain of {final[0]:.3g} at step {steps[0]:,} to {final[-1]:.3g} at step "
        f"{steps[-1]:,} (most {final[peak]:.3g} at {steps[peak]:,}); attention stays below 1 in {summary['attn_contracting_first']} "
        f"layers at first and {summary['attn_contracting']} at the end."
    )
    data = dataset({"step": list(steps), "layer": range(depths.pop())}, cells | _along(measured, "step"), model=model)
    return Result("gains_training", data, ("step", "layer"), summary, _manifest(measured, watch, f"{model} over training"))


def snapshots(source: str, root: Path | None) -> tuple[str, list[int]]:
    """A run's name and the steps at which there are weights of it, its end included.

    Raises:
        ConfigError: if it kept no snapshot.
        WallprobeError: as finding the run.
    """
    run = runs.resolve_run(source, root)
    kept = list(run.snapshots())
    if not kept:
        raise ConfigError(
            f"run {run.name} kept no snapshots of its training; train one that does: wallprobe train {run.name.condition} "
            "--snapshot-every 300 --force"
        )
    run.verify()
    for path in run.snapshots().values():
        check_finite_file(path, f"snapshot {path.name} of run {run.name}", "train it again")
    return str(run.name), sorted({*kept, _last_step(run)})


def _last_step(run: runs.Run) -> int:
    """Steps of the whole training.

    Raises:
        CheckpointError: if the manifest does not tell.
    """
    steps = run.manifest.get("steps")
    if steps is None:
        raise CheckpointError(f"{run.path / runs.MANIFEST} tells no steps; train it again: wallprobe train {run.name} --force")
    return int(steps)


def load_step(source: str, step: int, root: Path | None, device: str) -> models.Loaded:
    """A run as it was after so many steps.

    Raises:
        CheckpointError: if the weights kept then cannot be read.
    """
    run = runs.resolve_run(source, root)
    if step == _last_step(run):
        return models.load_run(run, device)
    path, shape = runs.snapshot_path(run.path, step), run.manifest["shape"]
    if not path.is_file():
        raise CheckpointError(f"{path} is no snapshot of run {run.name}; train it again with --snapshot-every")
    state = load_finite(path, f"snapshot {path.name} of run {run.name}", "train it again")
    try:
        model = models.build(shape, state, device)
    except (CheckpointError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{path} is no snapshot of run {run.name} ({one_line(error)}); train it again") from error
    return models.Loaded(f"{run.name} step {step}", "run", model, shape["n_layers"], shape["d_model"], sha256_file(path), run=run)


def named_steps(sources: Sequence[str]) -> tuple[str, list[tuple[int, str]]]:
    """The model and the (step, source) pairs, steps rising, of sources such as `EleutherAI/pythia-70m@step1000`.

    Raises:
        ConfigError: for a source without `@step`, or sources of several models.
    """
    found = [STEP.match(source) for source in sources]
    wrong = [source for source, match in zip(sources, found, strict=True) if match is None]
    if wrong:
        raise ConfigError(f"--over-training takes one run, or several checkpoints MODEL@stepN; '{wrong[0]}' names no step")
    pairs = sorted((int(match["step"]), source) for source, match in zip(sources, found, strict=True) if match)
    named = sorted({match["model"] for match in found if match})
    if len(named) > 1:
        raise ConfigError(f"--over-training follows one model, not {' and '.join(named)}")
    return named[0], pairs


def _one_way(measured: Sequence[Result]) -> dict[str, Any]:
    """Definition, tokens and prompts, which must be the same."""
    ways = [{key: result.summary[key] for key in ("definition", "tokens")} for result in measured]
    if any(way != ways[0] for way in ways):
        raise ConfigError("gains of several definitions or token reductions cannot stand on one axis; measure them alike")
    return ways[0]


def _along(measured: Sequence[Result], dim: str) -> dict[str, Any]:
    """The last MLP's gain with its interval, and size where it is known, along one dim."""

    def column(key: str) -> list[float]:
        values = [result.summary.get(key) for result in measured]
        return [math.nan if value is None else float(value) for value in values]

    keys = [f"{name}{end}" for name in FINAL for end in ("", "_low", "_high")]
    found = {
        key: ((dim,), column(key), "ratio", "gain of the last MLP" + (", bound" if key[-4:] in ("_low", "high") else "")) for key in keys
    }
    return found | {"n_params": ((dim,), column("n_params"), "parameters", "parameters, embeddings included")}


def _manifest(measured: Sequence[Result], watch: Stopwatch, subject: str) -> dict[str, Any]:
    first = measured[0].manifest
    return provenance(
        config={"parts": [result.manifest["config"] for result in measured]},
        device=first["device"],
        dtype=first["dtype"],
        watch=watch,
        subject=subject,
        weight_hash=[result.manifest["weight_hash"] for result in measured],
        weight_processing=first["weight_processing"],
        formula=first["formula"],
        data_hash=first["data_hash"],
    )
