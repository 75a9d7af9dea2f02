"""wallprobe: does this network carry a rule, or only the answer? The public face; names load on first use, torch with them."""

import importlib
from typing import Any

_HOMES = {
    "Result": "store.results",
    "load_result": "store.results",
    "list_results": "store.results",
    "Run": "store.runs",
    "find_run": "store.runs",
    "list_runs": "store.runs",
    "load": "models",
    "Loaded": "models",
    "WallprobeError": "errors",
    "RecurrenceTask": "tasks.recurrence",
    "Condition": "training.wall.conditions",
    "Job": "training.wall.loop",
    "train": "training.wall.loop",
    "evaluate": "training.wall.evaluate",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'wallprobe' has no attribute '{name}'")
    return getattr(importlib.import_module(f"wallprobe.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
