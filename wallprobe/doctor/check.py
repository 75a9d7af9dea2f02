"""One check and what came of it. Whatever a check raises is what it found."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wallprobe.errors import WallprobeError, one_line
from wallprobe.plugins import PluginWarning


class FailedError(Exception):
    """What a check found to be wrong, in one line."""


@dataclass(frozen=True)
class Check:
    """A check that was made.

    Attributes:
        of: what was looked at: a model, or a part with its distribution and entry point.
        what: what must hold.
        passed: whether it does; None where it means nothing here.
        told: the figure behind it, or the reason it does not hold, on one line.
    """

    of: str
    what: str
    passed: bool | None
    told: str = ""

    def record(self) -> dict[str, Any]:
        """Plain JSON."""
        return {"of": self.of, "check": self.what, "passed": self.passed, "told": self.told}


def made(of: str, what: str, asked: Callable[[], str | None]) -> Check:
    """Make a check.

    Args:
        of: see `Check`.
        what: see `Check`.
        asked: returns what to tell of a check that holds, or None where it means nothing; raises where it does not hold.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PluginWarning)  # what is skipped is told by its own checks
            told = asked()
    except (FailedError, WallprobeError) as error:
        return Check(of, what, False, one_line(error))
    except Exception as error:  # foreign code: whatever it raises is its author's to read
        return Check(of, what, False, f"{type(error).__name__}: {one_line(error)}")
    return Check(of, what, None, "not here") if told is None else Check(of, what, True, told)


def hold(holds: bool, otherwise: str) -> None:
    """Raise `FailedError` with these words unless it holds."""
    if not holds:
        raise FailedError(otherwise)
