"""The one error tree. Each message says what was given, what is accepted and what to do next."""

import re
from collections.abc import Mapping
from typing import TypeVar

Found = TypeVar("Found")
SENTENCE = re.compile(r"(?<=[.!?;]) ")
# What a library advises that is not to be had here: options of its own, reports that nobody saw, packages to install, unpickling.
ADVICE = re.compile(
    r"above report|weights_only|weights only|trust_remote_code|ignore_mismatched_sizes|pip install|safe_globals", re.IGNORECASE
)


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


def one_line(error: BaseException, most: int = 240) -> str:
    """What a library's error says, whole, on one line: never cut at its first line break or colon, without advice that does not hold here.

    Args:
        error: any.
        most: characters; a longer text ends in "...".
    """
    sentences = SENTENCE.split(" ".join(str(error).split()))
    text = " ".join(one for one in sentences if one and not ADVICE.search(one)) or type(error).__name__
    return text if len(text) <= most else f"{text[: most - 3].rstrip()}..."
