"""The one reader of a user's text files: UTF-8 with or without a byte order mark, CRLF as well; only a line feed ends a line.

The other characters that Unicode lets end lines (U+2028, U+0085, form feed) are text: a prompt may hold them.
"""

import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wallprobe.errors import ConfigError, StoreError, UnknownNameError
from wallprobe.store.reading import json_value, read_file

LARGEST = 4 << 30  # bytes of a text that is read whole


def read_text(path: str | Path, what: str, accepted: str) -> str:
    """A text file, whole, its lines ended by line feeds.

    Args:
        path: where it is.
        what: what it is to the user ("prompt file"), for messages.
        accepted: what to give, for messages.

    Raises:
        UnknownNameError: if there is no such file.
        ConfigError: if it cannot be read, is no UTF-8, or is blank.
    """
    file = Path(path)
    try:
        there = file.is_file()
    except (OSError, ValueError):
        there = False
    if not there:
        raise UnknownNameError(f"no {what} '{path}'; give {accepted}")
    try:
        text = read_file(file, LARGEST).decode("utf-8-sig").replace("\r\n", "\n")
    except (UnicodeDecodeError, StoreError) as error:
        raise ConfigError(f"{what} {path} cannot be read as UTF-8 text ({error}); give {accepted}") from error
    if not text.strip():
        raise ConfigError(f"{what} {path} is blank; give {accepted}")
    return text


def lines(text: str) -> list[str]:
    """The lines of a text, which end at line feeds and nowhere else."""
    return text.removesuffix("\n").split("\n")


def json_lines(text: str, where: str, accepted: str) -> Iterator[tuple[str, Any]]:
    """The values of a JSON Lines text, blank lines skipped, each with its line as named in messages ("line 3 of pairs.jsonl").

    Args:
        text: as `read_text`.
        where: the file, for messages.
        accepted: what a line should be, for messages.

    Raises:
        ConfigError: naming the first line that is no JSON: nested too deeply, with integers beyond 64 bits, or with half a character.
    """
    for number, line in enumerate(lines(text), 1):
        if line.strip():
            named = f"line {number} of {where}"
            try:
                value = json_value(line.encode())
            except ValueError as error:
                raise ConfigError(f"{named} is not JSON ({error}); write {accepted}") from error
            yield named, value


def table(text: str, where: str) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV text with a header; a field may be of any length and hold line feeds within quotes.

    Args:
        text: as `read_text`.
        where: the file, for messages.

    Raises:
        ConfigError: naming the first row that is no CSV.
    """
    before = csv.field_size_limit(sys.maxsize)
    rows = csv.DictReader((f"{line}\n" for line in lines(text)), strict=True)
    try:
        return list(rows.fieldnames or []), [{name: value or "" for name, value in row.items() if name is not None} for row in rows]
    except csv.Error as error:
        raise ConfigError(
            f"line {rows.line_num} of {where} is not CSV ({error}); write a header and one row a line, text in quotes"
        ) from error
    finally:
        csv.field_size_limit(before)
