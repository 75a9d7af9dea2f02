"""How a command ends: whatever is raised becomes one line on stderr and an exit code."""

import contextlib
import errno
import itertools
import os
import sys
import traceback
from typing import Any

from wallprobe.errors import ConfigError, WallprobeError

BAD_INPUT, INTERNAL, INTERRUPTED, BROKEN_PIPE = 2, 70, 130, 141  # 128 + SIGINT, 128 + SIGPIPE
TRACEBACK = "WALLPROBE_TRACEBACK"  # set: what has no line of its own is shown whole
AGAIN = "interrupted; run the same command again to go on"
MEMORY = "there is not enough memory for this; ask for less at once (fewer sequences, pairs or prompts, a smaller --budget or model)"


def end(error: BaseException) -> int:
    """Say on one line how a command ended.

    Args:
        error: what it raised.

    Returns:
        The exit code: 2 for bad input and for what the machine refuses, 70 for a fault of ours, 130 for an interrupt, 141 silently where
        nobody reads what is printed.
    """
    if os.environ.get(TRACEBACK) and not isinstance(error, KeyboardInterrupt):
        traceback.print_exception(error)
    code, line = told(error)
    if line:
        _say(f"wallprobe: {' '.join(line.split())}")
    if code == BROKEN_PIPE or isinstance(error, OSError):
        _let_go()
    return code


def told(error: BaseException) -> tuple[int, str]:
    """Exit code and the line's text, empty for none."""
    if isinstance(error, WallprobeError):
        return BAD_INPUT, str(error)
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, AGAIN
    if hasattr(error, "format_message"):  # the parser's; typer has had click's own class and one of its own
        return BAD_INPUT, usage(error)
    if isinstance(error, BrokenPipeError) or (isinstance(error, OSError) and error.errno == errno.EPIPE):
        return BROKEN_PIPE, ""
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError | ImportError | OSError) and _of_memory(error)):
        return BAD_INPUT, MEMORY
    if isinstance(error, OSError):
        return BAD_INPUT, _of_system(error)
    if isinstance(error, UnicodeError):
        return (
            BAD_INPUT,
            f"text that is not UTF-8, or that this terminal cannot show ({error}); set PYTHONIOENCODING=utf-8, or mend the text",
        )
    if isinstance(error, RecursionError):
        return BAD_INPUT, "something given is nested too deeply to be read; give a flatter one"
    where = traceback.extract_tb(error.__traceback__)[-1:]
    place = f" at {os.path.basename(where[0].filename)}:{where[0].lineno}" if where else ""
    return INTERNAL, f"internal error: {type(error).__name__}{place}: {error}; set {TRACEBACK}=1, run it again and report what it shows"


def usage(error: Any) -> str:
    """What the parser says, and where to read on."""
    context, options = getattr(error, "ctx", None), getattr(getattr(error, "param", None), "opts", ())
    typed = sys.argv[1:]
    after = [value for name, value in itertools.pairwise(typed) if name in options]
    within = [word.partition("=")[2] for word in typed if word.partition("=")[0] in options and "=" in word]
    given = f" (given: {(after + within)[-1]})" if after + within else ""
    return f"{error.format_message().rstrip('.')}{given}; see: {getattr(context, 'command_path', 'wallprobe')} --help"


def _of_memory(error: Exception) -> bool:
    return type(error).__name__ == "OutOfMemoryError" or any(
        words in str(error)
        for words in (
            "not enough memory",
            "out of memory",
            "can't allocate memory",
            "Invalid buffer size",
            "failed to map segment",
            "Cannot allocate memory",
        )
    )


def _of_system(error: OSError) -> str:
    reason = error.strerror or str(error) or type(error).__name__
    if error.filename is None:
        return f"the system refuses: {reason}" + ("; free some space, or write elsewhere" if error.errno == errno.ENOSPC else "")
    names = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
    return f"cannot use {names}: {reason}; give another path, or change its permissions"


def _say(line: str) -> None:
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except (OSError, ValueError):  # nobody reads that either
        _let_go()


def _let_go() -> None:
    """Send what is still buffered nowhere, so that the interpreter's own last flush does not complain."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                os.dup2(nowhere, stream.fileno())


def check_folder() -> None:
    """Refuse to start in a folder that is gone: libraries end the process there without a word that helps.

    Raises:
        ConfigError: if it is.
    """
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError("the current folder is gone; change to one that is there (cd) and run this again") from error


def forgiving() -> None:
    """What a terminal cannot show is shown as an escape, and ends no command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
