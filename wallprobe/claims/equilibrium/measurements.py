"""Where the equilibrium study's ledger reads: the figures the study prints, and the campaign stored under RESULTS or bundled.

Of a stored experiment the last one of the demo preset counts; of a bundled one, summary and long table are kept.
"""

import json
from pathlib import Path
from typing import Any

from wallprobe.claims.ledger.measurements import BUNDLE, Measurements, Source
from wallprobe.claims.ledger.quantities import Record
from wallprobe.errors import ConfigError, UnknownNameError
from wallprobe.store.results import Result, list_results
from wallprobe.store.runs import RunName
from wallprobe.store.storage import read_json, write_atomic

PRESET, PUBLISHED, DEMO = "demo", "published", "demo"
KINDS = ("triangulate", "lr_sweep", "matched", "gate", "grid", "branches", "mixing")
PREFIX = "eq-demo"
LEFT = ("command", "cpu_count", "records")
# What the study prints of its run at C = 512 on TinyStories, experiment by experiment.
COLUMNS = ("ckpt", "val", "res", "ep_bptt", "bptt_bptt", "k", "ep_self", "bptt_self")
ROWS: tuple[tuple[Any, ...], ...] = (
    ("step0", 9.90, 2.1e-2, 0.261, 0.459, 0.319, 0.654, 0.617),
    ("step200", 6.07, 4.2e-9, 0.989, 1.000, 1.000, 0.371, 0.376),
    ("step800", 4.11, 3.9e-4, 0.964, 0.935, 0.844, 0.755, 0.721),
    ("step2000", 3.56, 2.9e-4, 0.885, 0.845, 0.675, 0.445, 0.358),
    ("plateau", 2.40, 2.6e-5, -0.045, 1.000, 4223.0, -0.273, 0.957),
)
DISTANCES = (1, 8, 16, 64, 200)
INFLUENCE = {"bp": (5.34, 1.81, 0.88, 0.15, 0.003), "ep": (0.238, 0.102, 0.071, 0.019, 0.006)}
STEPS = {"best_bptt": -0.161, "best_ep": -0.042, "cos": 0.107, "k": 486.0}
GRID = {"start": 2.404, "base": 2.463, "jr_max_8": 2.3648}


def published() -> dict[str, Record]:
    """The published figures as records."""
    influence = [
        {"ckpt": name, "distance": d, "influence": value}
        for name, row in INFLUENCE.items()
        for d, value in zip(DISTANCES, row, strict=True)
    ]
    return {
        "triangulate": {"summary": {}, "values": [dict(zip(COLUMNS, row, strict=True)) for row in ROWS], "manifest": {}},
        "lr_sweep": {"summary": STEPS, "values": [], "manifest": {}},
        "grid": {"summary": GRID, "values": [], "manifest": {}},
        "mixing": {"summary": {}, "values": influence, "manifest": {}},
    }


def read(preset: str = PRESET, root: Path | None = None, *, bundled: bool = True) -> Measurements:
    """The published figures and the demo campaign.

    Args:
        preset: "demo".
        root: Result store; default as `results.default_root`.
        bundled: False leaves out what came with the package.

    Raises:
        UnknownNameError: for another preset.
    """
    if preset != PRESET:
        raise UnknownNameError(f"no preset '{preset}' of the campaign; there is: {PRESET}")
    stored = _packed() if bundled else {}
    found, damaged = list_results(root)
    for result in sorted((result for _, result in found if _counts(result)), key=lambda result: str(result.manifest.get("created"))):
        stored[result.kind] = result.to_json()
    sources = {(PUBLISHED, 42): Source(RunName(PUBLISHED), "", "published", None, published())}
    if stored:
        sources[DEMO, 42] = Source(RunName(DEMO), "", "local" if found else "bundled", None, stored)
    basis = "On the published figures and a demo campaign (64 wide, characters of Genesis, one seed)"
    lost = tuple((str(path), why) for path, why in damaged)
    return Measurements(preset, {key: _anonymous(source) for key, source in sources.items()}, basis=basis, damaged=lost)


def _anonymous(source: Source) -> Source:
    """The records as the ledger looks them up: by kind, whatever weights they are of."""
    stored = {
        kind: {**record, "manifest": {**record["manifest"], "weight_hash": source.weight_hash}} for kind, record in source.stored.items()
    }
    return Source(source.name, source.weight_hash, source.where, None, stored)


def _counts(result: Result) -> bool:
    """Whether a Result is of the demo campaign: more than one checkpoint where it compares checkpoints."""
    named = PREFIX in str(result.manifest.get("subject", ""))
    return result.kind in KINDS and named and (result.kind not in ("triangulate", "mixing") or result.data.sizes.get("ckpt", 0) > 1)


def _packed() -> dict[str, Any]:
    path = BUNDLE / "equilibrium" / f"{DEMO}.json"
    return dict(read_json(path)) if path.is_file() else {}


def pack_all(root: Path, target: Path = BUNDLE / "equilibrium") -> list[Path]:
    """Write what the ledger reads of a Result store's demo campaign into the package.

    Raises:
        ConfigError: if there is none.
    """
    measured = read(root=root, bundled=False).sources.get((DEMO, 42))
    if measured is None:
        raise ConfigError("there is no demo campaign to pack; make it: wallprobe equilibrium campaign --preset demo")
    whole = {
        kind: {
            "summary": record["summary"],
            "values": record["values"],
            "manifest": {key: value for key, value in record["manifest"].items() if key not in LEFT},
        }
        for kind, record in measured.stored.items()
    }
    path = target / f"{DEMO}.json"
    write_atomic(path, (json.dumps(whole, separators=(",", ":"), sort_keys=True, ensure_ascii=False) + "\n").encode())
    return [path]
