"""What no option takes, whatever it is called: numbers that are none or that nothing holds, empty or unprintable text, paths of no use."""

import inspect
import math
import os
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from wallprobe.errors import ConfigError

LARGEST, LARGEST_SEED = 10**9, 2**63 - 1
LONGEST, DEEPEST = 1000, 4096  # characters of one text, and of a path
SEEDS = ("seed", "prompt_seed")
STORES = ("runs", "results")
FILES = ("prompts", "text", "unigram", "labels")  # read, and never made
NO_NUMBER = re.compile(r"(^|[,=:])\s*[+-]?(nan|inf|infinity)\s*($|[,:])", re.IGNORECASE)


def refuse_empty(arguments: Sequence[str]) -> None:
    """Refuse `--out ''` and `--out=` as typed: a path of nothing would be the current folder.

    Raises:
        ConfigError: naming the option.
    """
    for before, word in pairwise(["", *arguments]):
        if not word.strip() or re.fullmatch(r"--[a-z-]+=\s*", word):
            option = word.partition("=")[0] or (before if before.startswith("--") else "an argument")
            raise ConfigError(f"{option} is empty; give a value, or leave it out")


def check(given: Mapping[str, Any], declared: Mapping[str, inspect.Parameter]) -> None:
    """Refuse what an option cannot mean, before anything is imported for it.

    Args:
        given: option or argument -> what was typed, as its type.
        declared: the same -> how typer was told of it.

    Raises:
        ConfigError: naming the option, what was given and what is accepted.
    """
    for name, value in given.items():
        if name in declared:
            typed = _typed(name, declared[name])
            for one in value if isinstance(value, list | tuple) else (value,):
                _check(name, typed, one)


def _check(name: str, typed: str, value: Any) -> None:
    if isinstance(value, bool) or value is None:
        return
    if isinstance(value, int):
        most = LARGEST_SEED if name in SEEDS else LARGEST
        if not -most <= value <= most:
            raise ConfigError(f"{typed} {value:.4g} is more than anything here holds; give at most {most}")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{typed} {value} is no finite number; give one such as 0.5")
    elif isinstance(value, Path):
        _path(name, typed, value)
    elif isinstance(value, str):
        _text(typed, value)
        if NO_NUMBER.search(value):
            raise ConfigError(f"{typed} '{value}' holds what is no finite number; give one such as 0.5")


def _text(typed: str, value: str, longest: int = LONGEST) -> None:
    if not value.strip():
        raise ConfigError(f"{typed} is empty; give a value, or leave it out")
    if len(value) > longest:
        raise ConfigError(f"{typed} is {len(value)} characters long; give at most {longest}")
    if not value.isprintable() and any(ord(letter) < 32 or ord(letter) == 127 or 0xD800 <= ord(letter) < 0xE000 for letter in value):
        raise ConfigError(f"{typed} {value[:40]!a} has characters that cannot be printed; give plain text")


def _path(name: str, typed: str, value: Path) -> None:
    _text(typed, str(value), DEEPEST)
    part = max((len(os.fsencode(part)) for part in value.parts), default=0)
    if part > 255:
        raise ConfigError(f"{typed} has a name of {part} bytes in it; a file system holds at most 255")
    if name in FILES and not value.is_file():
        raise ConfigError(f"{typed} {value} is no file; give an existing one")
    if name not in STORES:
        return
    there = next((folder for folder in (value, *value.absolute().parents) if folder.exists()), Path())
    if not there.is_dir():
        raise ConfigError(f"{typed} {value} lies in {there}, which is no folder; give a folder, there or to be made")
    if not os.access(there, os.R_OK | os.X_OK):
        raise ConfigError(f"{typed} {value} cannot be read; give another folder, or change its permissions")
    if name == "results" and not os.access(there, os.W_OK):
        raise ConfigError(f"{typed} {value} cannot be written; give another folder, or change its permissions")


def _typed(name: str, declared: inspect.Parameter) -> str:
    """How an option is typed; an argument by its name in the usage."""
    told = next((one for one in get_args(declared.annotation) if hasattr(one, "param_decls")), None)
    words = [word for word in (getattr(told, "default", None), *(getattr(told, "param_decls", None) or ())) if isinstance(word, str)]
    options = [word for word in words if word.startswith("--")]
    if options:
        return options[0].partition("/")[0]
    metavar = getattr(told, "metavar", None)
    return metavar.strip(".") if metavar else name.upper() if type(told).__name__ == "ArgumentInfo" else "--" + name.replace("_", "-")
