"""Is compiling the step worth a try here?"""

import os
import shutil

from wallprobe.errors import ConfigError


def wants_compile(choice: str) -> bool:
    """Resolve `auto`, `on` or `off`; auto is on where a C++ compiler is found ($CXX, g++, clang++).

    Raises:
        ConfigError: for another word, or for `on` without a compiler.
    """
    if choice not in ("auto", "on", "off"):
        raise ConfigError(f"--compile '{choice}' is none of auto, on, off")
    found = any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "g++", "clang++"))
    if choice == "on" and not found:
        raise ConfigError("--compile on needs a C++ compiler (g++, clang++ or $CXX); install one or use --compile auto")
    return choice != "off" and found
