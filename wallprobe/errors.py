"""The one error tree. Each message says what was given, what is accepted and what to do next."""

from collections.abc import Mapping
from typing import TypeVar

Found = TypeVar("Found")


class WallprobeError(Exception):
    """Bad input or a broken artefact; the CLI prints it on one line and exits with code 2."""


class UnknownNameError(WallprobeError):
    """A run, task, condition, site or model that no registry or store knows."""


class CheckpointError(WallprobeError):
    """A checkpoint that is missing, truncated, altered or of another configuration."""


class StoreError(WallprobeError):
    """A store that cannot be read or written."""


class BusyError(StoreError):
    """A run that another process is writing."""


class ConfigError(WallprobeError):
    """A setting outside the accepted range."""


class DivergedError(WallprobeError):
    """Training produced a loss that is not finite."""


class InstrumentError(WallprobeError):
    """A measurement that would not mean what it says: an unfired hook, a patch without effect."""


def look_up(what: str, name: str, known: Mapping[str, Found]) -> Found:
    """What has that name.

    Raises:
        UnknownNameError: if nothing has; the message says what was looked for, and lists the names there are.
    """
    if name not in known:
        raise UnknownNameError(f"no {what} named '{name}'; there are: {', '.join(known)}")
    return known[name]
