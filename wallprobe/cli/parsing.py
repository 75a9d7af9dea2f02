"""Lists and pairs as they are typed."""

from contextlib import suppress
from typing import Any


def words(text: str, known: tuple[str, ...] | None = None) -> list[str]:
    """Names between commas; "all" for all that are known."""
    if known and text == "all":
        return list(known)
    return list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def pairs(given: list[str]) -> tuple[tuple[str, Any], ...]:
    """`key=value` pairs, numbers as numbers.

    Raises:
        ConfigError: for one that is no pair.
    """
    from wallprobe.errors import ConfigError

    found = []
    for pair in given:
        key, sign, text = pair.partition("=")
        if not (key and sign and text):
            raise ConfigError(f"--option '{pair}' is no key=value, such as beta=0.01")
        found.append((key, _number(text)))
    return tuple(sorted(found))


def _number(text: str) -> int | float | str:
    """An integer, else a float, else the text."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def layers(text: str) -> tuple[int, ...] | None:
    """Read `3`, `0,2,4` or `all` (None).

    Raises:
        ConfigError: for anything else.
    """
    return None if text == "all" else numbers(text, "layer")


def numbers(text: str, what: str) -> tuple[int, ...]:
    """Read `3` or `3,4`, without repeats and sorted.

    Raises:
        ConfigError: for anything else.
    """
    return tuple(sorted(set(numbers_in_order(text, what))))


def numbers_in_order(text: str, what: str) -> tuple[int, ...]:
    """Read `3` or `7,3,7` as written.

    Raises:
        ConfigError: for anything else.
    """
    from wallprobe.errors import ConfigError

    parts = text.split(",")
    if not all(part.strip().lstrip("-").isdigit() for part in parts):
        raise ConfigError(f"--{what} '{text}' is not a number or a list of numbers such as 3 or 2,3,4")
    return tuple(int(part) for part in parts)


def places(text: str | None) -> tuple[int | str, ...] | None:
    """Read indices and names of slots, `3`, `subject,last` or `all` (None)."""
    if text in (None, "all"):
        return None
    parts = [part.strip() for part in str(text).split(",") if part.strip()]
    return tuple(dict.fromkeys(int(part) if part.lstrip("-").isdigit() else part for part in parts))
