"""wallprobe: does this network carry a rule, or only the answer? The public face; names load on first use, torch with them."""

import importlib
from typing import Any

_HOMES = {
    "Result": "results",
    "load_result": "results",
    "list_results": "results",
    "Run": "runs",
    "find_run": "runs",
    "list_runs": "runs",
    "load": "models",
    "Loaded": "models",
    "WallprobeError": "errors",
    "RecurrenceTask": "tasks.recurrence",
    "Condition": "training.conditions",
    "Job": "training.loop",
    "train": "training.loop",
    "evaluate": "training.evaluate",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wallprobe' has no attribute '{name}'")
    return getattr(importlib.import_module(f"wallprobe.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
