"""Provenance: what made an artefact. Every Run and Result carries one of these, as plain JSON."""

import contextlib
import datetime
import functools
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = ("wallprobe", "torch", "transformer-lens", "transformers", "numpy", "xarray", "safetensors", "nnsight", "circuitsvis")


def versions() -> dict[str, str]:
    """Python and the packages that shape a figure; those not installed are left out."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


@functools.cache
def source_commit() -> dict[str, Any]:
    """Commit and dirtiness of the checkout this package is imported from; commit None when it is an installed copy."""
    here = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        run = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=10, check=True)
        return run.stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != here.parent:
            return {"commit": None, "dirty": None}
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", "wallprobe"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def command_line() -> str:
    """The command as typed, with the program's name and not its path."""
    return " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]) if sys.argv and sys.argv[0] else "python"


def peak_memory_mib() -> float | None:
    """Peak resident memory of this process so far, in MiB; None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


class Stopwatch:
    """Wall time since construction, in seconds."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def seconds(self) -> float:
        """Elapsed seconds, rounded to the millisecond."""
        return round(time.perf_counter() - self._start, 3)


def provenance(*, config: dict[str, Any], device: str, dtype: str, watch: Stopwatch, **extra: Any) -> dict[str, Any]:
    """One manifest.

    Args:
        config: the resolved configuration, JSON values only.
        device: torch device string.
        dtype: dtype the figures were computed in.
        watch: started with the work.
        extra: further JSON fields (weight hash, data hash, seeds, weight processing, ...).
    """
    import torch

    return {
        "command": command_line(),
        "config": config,
        "versions": versions(),
        "source": source_commit(),
        "device": device,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "cpu_count": os.cpu_count(),
        "wall_time_s": watch.seconds(),
        "peak_memory_mib": peak_memory_mib(),
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        **extra,
    }
