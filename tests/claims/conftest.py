"""Run stores made by hand: manifests and measurements as JSON, no weights and no arrays."""

import json

from wallprobe.claims.ledger.measurements import TASK
from wallprobe.store.storage import write_json
from wallprobe.training.wall.conditions import get_condition
from wallprobe.training.wall.recipes import RECIPES


def write_run(store, name, instruments=None, *, weight_hash=None, recipe=None, task=None):
    """A run folder of preset small; `instruments` is instrument -> (summary, values)."""
    condition, _, seed = name.partition("@")
    seed = int(seed or 42)
    weight_hash = weight_hash or f"hash of {condition}@{seed}"
    folder = store / f"{condition}@{seed}"
    config = {"condition": get_condition(condition).config(), "recipe": RECIPES["small"].config() | (recipe or {})}
    manifest = {
        "condition": condition,
        "seed": seed,
        "preset": "small",
        "steps": 1,
        "shape": {},
        "task": dict(TASK) | (task or {}),
        "config": config,
        "weight_hash": weight_hash,
        "log": [{"step": 50, "cross_entropy": 2.0, "signal": 0.0}],
    }
    write_json(folder / "manifest.json", json.loads(json.dumps(manifest)))
    for instrument, (summary, values) in (instruments or {}).items():
        write_measurement(folder, instrument, summary, values, weight_hash)
    return folder


def write_measurement(folder, instrument, summary, values, weight_hash):
    record = {"kind": instrument, "summary": summary, "values": values, "manifest": {"weight_hash": weight_hash}}
    write_json(folder / instrument / "result.json", record)


def evaluation(ratio, *, trained=0.05, half=0.0, **more):
    """An eval's summary with intervals `half` wide to either side."""
    figures = {"wall_ratio": ratio, "trained_mae": trained, "untrained_mae": ratio * trained, **more}
    bounds = {f"{key}{end}": value + sign * half for key, value in figures.items() for end, sign in (("_low", -1), ("_high", 1))}
    return {"eval": (figures | bounds, [])}
