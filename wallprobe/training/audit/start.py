"""What every method's run of a seed finds before its first step: measured by the first that comes to it, read by the others.

The methods of a seed start from the same weights and are looked at on the same samples, and most of that look asks nothing of the
method. What is shared lies in a folder of whoever runs them and goes with it, so that nothing of an older version is ever read.
"""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wallprobe.store.storage import write_atomic
from wallprobe.training.audit.job import AuditJob
from wallprobe.training.audit.quantities import Common

DECIDING = ("arch", "data", "seed", "sizes", "lens")  # of a job's settings


@dataclass(frozen=True)
class Start:
    """An untrained net's look, as far as no method has a part in it.

    Attributes:
        common: of the states.
        right: which test samples it labels right.
    """

    common: Common
    right: np.ndarray[Any, np.dtype[np.bool_]]


def start_of(job: AuditJob, shared: Path | None, measure: Callable[[], Start]) -> Start:
    """A job's start: measured, or read from the shared folder if a run with the same start has left it there.

    Args:
        job: whose.
        shared: where starts are left; None measures and leaves nothing.
        measure: what finds it.

    Raises:
        StoreError: if the folder cannot be written.
    """
    if shared is None:
        return measure()
    settings = {key: value for key, value in job.config().items() if key in DECIDING}
    path = shared / f"{hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]}.npz"
    if path.is_file():
        with np.load(path) as kept:
            return Start(Common(kept["along"], kept["precision"]), kept["right"])
    found, whole = measure(), io.BytesIO()
    np.savez(whole, along=found.common.along, precision=found.common.precision, right=found.right)
    write_atomic(path, whole.getvalue())
    return found
