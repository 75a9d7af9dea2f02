"""Entry points, found lazily: a plugin that fails to load is named in a warning and skipped."""

import functools
import warnings
from collections.abc import Mapping
from importlib import metadata
from types import MappingProxyType
from typing import Any

GROUPS = (
    "wallprobe.tasks",
    "wallprobe.conditions",
    "wallprobe.instruments",
    "wallprobe.estimators",
    "wallprobe.exhibits",
    "wallprobe.claims",
)


class PluginWarning(UserWarning):
    """A plugin that could not be loaded."""


@functools.cache
def load_group(group: str) -> Mapping[str, Any]:
    """The loaded objects of one entry-point group, by entry-point name.

    Args:
        group: one of `GROUPS`.

    Returns:
        A read-only mapping; broken plugins are missing from it and named in a `PluginWarning`.

    Raises:
        ValueError: for a group that wallprobe does not define.
    """
    if group not in GROUPS:
        raise ValueError(f"'{group}' is no plugin group; there are: {', '.join(GROUPS)}")
    loaded = {entry.name: _load(entry) for entry in sorted(metadata.entry_points(group=group), key=lambda entry: entry.name)}
    return MappingProxyType({name: value for name, value in loaded.items() if value is not None})


def _load(entry: metadata.EntryPoint) -> Any | None:
    try:
        return entry.load()
    except Exception as error:
        owner = entry.dist.name if entry.dist else "unknown distribution"
        warnings.warn(f"plugin {entry.name} of {owner} ({entry.value}) was skipped: {error!r}", PluginWarning, stacklevel=4)
        return None
