"""Where the audit study's ledger reads: the audits stored under RUNS/audit, and those that came with the package.

An audit counts if its settings are those of the job that the ledger names; of a bundled one, the top state's moments are kept.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from wallprobe.claims.ledger.measurements import BUNDLE, Measurements, Source
from wallprobe.errors import ConfigError, UnknownNameError
from wallprobe.store.runs import RunName
from wallprobe.store.storage import read_json, write_atomic
from wallprobe.training.audit.campaign import CAMPAIGN, METHODS, judge_with_baseline, stored, variant
from wallprobe.training.audit.job import AuditJob, make_job
from wallprobe.training.audit.thresholds import Thresholds

PRESET, DATA, AUDIT = "campaign", "fashion_mnist", "audit"
LEFT = ("command", "evidence", "cpu_count")  # what names a machine's folders, or can be made again
Make = Callable[[int], AuditJob]


def _campaign(arch: str, method: str) -> Make:
    return lambda seed: make_job(arch, method, DATA, seed, **CAMPAIGN[arch])


def _control(method: str, **changes: Any) -> Make:
    return lambda seed: variant(make_job("resmlp", method, DATA, seed), **changes)


# name in the ledger -> the job of a seed
JOBS: Mapping[str, Make] = MappingProxyType(
    {f"{arch}-{method}": _campaign(arch, method) for arch in CAMPAIGN for method in METHODS}
    | {
        "resmlp-dfa-noln": _control("dfa", terminal_ln=False),
        "resmlp-dfa-penalty": _control("dfa", penalty=1e-2),
        "resmlp-dfa-stop": _control("dfa", stop="degenerate"),
        "resmlp-dfa-slow": _control("dfa", lr=1e-3, epochs=3),
        "resmlp-frozen-slow": _control("frozen", lr=1e-3, epochs=3),
        "resmlp-ep": _control("ep", samples=6400, epochs=3),
    }
)


def audits(seeds: Sequence[int]) -> list[AuditJob]:
    """The campaign first, then the controls."""
    return [make(seed) for make in JOBS.values() for seed in seeds]


def read(preset: str = PRESET, root: Path | None = None, *, bundled: bool = True) -> Measurements:
    """The audits that the ledger names.

    Args:
        preset: "campaign".
        root: run store; default as `runs.default_root`.
        bundled: False leaves out what came with the package.

    Raises:
        UnknownNameError: for another preset.
    """
    if preset != PRESET:
        raise UnknownNameError(f"no preset '{preset}' of audits; there is: {PRESET}")
    found, damaged = stored(root)
    by_name = {job.name: (job, result) for job, result in found}
    sources: dict[tuple[str, int], Source] = dict(_packed()) if bundled else {}
    for key, make in JOBS.items():
        for seed in sorted({job.seed for job, _ in found}):
            name = make(seed).name
            if name in by_name:
                job, result = by_name[name]
                record = judge_with_baseline(job, result, Thresholds(), root).to_json()
                run = RunName(key, seed)
                sources[key, seed] = Source(run, record["manifest"]["weight_hash"], "local", None, {AUDIT: record})
    return Measurements(preset, sources, damaged=tuple(damaged))


def _packed() -> dict[tuple[str, int], Source]:
    folder = BUNDLE / PRESET
    sources = {}
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        name, record = RunName.parse(path.stem), read_json(path)
        if name.condition in JOBS and record["manifest"]["run"] == JOBS[name.condition](name.seed).name:
            sources[name.condition, name.seed] = Source(name, record["manifest"]["weight_hash"], "bundled", None, {AUDIT: record})
    return sources


def pack_all(root: Path, target: Path = BUNDLE / PRESET) -> list[Path]:
    """Write what the ledger reads of every local audit into the package: the record and the top state's whole epochs.

    Raises:
        ConfigError: if there is none.
    """
    measurements = read(root=root, bundled=False)
    if not measurements.sources:
        raise ConfigError("there is no audit of the campaign to pack; make them: wallprobe reproduce audit --seeds 3")
    written = []
    for source in measurements.sources.values():
        record = source.stored[AUDIT]
        top = max(row["layer"] for row in record["values"])
        values = [row for row in record["values"] if row["layer"] == top and row["epoch"] == int(row["epoch"])]
        manifest = {key: value for key, value in record["manifest"].items() if key not in LEFT}
        data = json.dumps({"summary": record["summary"], "values": values, "manifest": manifest}, separators=(",", ":"), sort_keys=True)
        path = target / f"{source.name.folder}.json"
        write_atomic(path, (data + "\n").encode())
        written.append(path)
    return written
