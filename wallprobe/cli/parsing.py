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
