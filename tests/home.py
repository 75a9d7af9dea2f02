"""Keeps the tests at home: caches and stores of the user's are out of sight, and a guard tells which test looked for them.

Imported by `tests/conftest.py` before anything that reads a cache's place when it is imported.
"""

import atexit
import getpass
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
STORES = ("runs", "results", "gallery", "gallery.html", "gallery.zip")
# What says where a library keeps its cache; without them it is somewhere below $HOME or $XDG_CACHE_HOME.
CACHES = (
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HUGGINGFACE_HUB_CACHE",
    "HF_DATASETS_CACHE",
    "HF_ASSETS_CACHE",
    "HF_XET_CACHE",
    "HF_MODULES_CACHE",
    "HF_TOKEN_PATH",
    "TRANSFORMERS_CACHE",
    "TORCH_HOME",
    "TORCHINDUCTOR_CACHE_DIR",
    "TORCH_EXTENSIONS_DIR",
    "TRITON_CACHE_DIR",
    "TRITON_HOME",
    "MPLCONFIGDIR",
    "NUMBA_CACHE_DIR",
    "SCIKIT_LEARN_DATA",
)
OURS = ("WALLPROBE_RUNS", "WALLPROBE_RESULTS", "WALLPROBE_DATA", "WALLPROBE_WORKER")
PROTECTED = "WALLPROBE_TESTS_PROTECTED"  # tells a worker of pytest-xdist what the first process saw
SYSTEM = ("listdir", "scandir", "mkdir", "rename", "remove", "rmdir", "link", "symlink", "truncate")
EVENTS = frozenset({"open", "sqlite3.connect", *(f"os.{name}" for name in SYSTEM)})


class Guard:
    """Hears of every file that Python opens, lists, makes, moves or removes, and keeps those below the protected folders.

    Attributes:
        strays: what was done to which path, since the last `take`.
    """

    def __init__(self, protected: list[str]) -> None:
        self.strays: list[str] = []
        # Python itself, the checkout or the temporary folder may lie below a cache.
        homes = {sys.prefix, sys.base_prefix, tempfile.gettempdir(), str(ROOT / "tests"), str(ROOT / "wallprobe")}
        self._allowed = tuple(f"{home}{os.sep}" for home in homes if any(_below(home, place) for place in protected))
        self._protected = tuple(protected)
        sys.addaudithook(self._hear)

    def take(self) -> list[str]:
        """The strays so far, each once; they are forgotten."""
        found, self.strays = list(dict.fromkeys(self.strays)), []
        return found

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if event not in EVENTS:
            return
        for given in arguments[: 2 if event in ("os.rename", "os.link", "os.symlink") else 1]:
            if not isinstance(given, (str, bytes, os.PathLike)):
                continue  # a descriptor
            try:
                path = os.path.abspath(os.fsdecode(given))
            except (OSError, ValueError):
                continue  # the working folder is gone, or no path
            if any(_below(path, place) for place in self._protected) and not path.startswith(self._allowed or ("\0",)):
                if event == "os.listdir" and sys._getframe(1).f_globals.get("__name__") == "pkgutil":
                    continue  # whoever asks for all modules there are has every folder of sys.path's looked into
                self.strays.append(f"{event} {path}")


def _below(path: str, place: str) -> bool:
    return path == place or path.startswith(place + os.sep)


def protected(environ: dict[str, str], start: Path) -> list[str]:
    """Folders and files that no test may touch: stores where pytest was started and in the checkout, and caches."""
    home = Path(environ.get("HOME") or Path.home())
    places = [folder / name for folder in (start, ROOT) for name in STORES]
    places += [home / name for name in (".cache", ".config/matplotlib", ".config/nnsight", ".triton", ".matplotlib", "Library/Caches")]
    places += [Path(environ[name]) for name in (*CACHES, *OURS) if os.sep in environ.get(name, "")]
    places.append(Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}")
    code = (ROOT / "tests", ROOT / "wallprobe")  # started from there, gallery/ is a folder of code
    return sorted({os.path.abspath(place) for place in places if not any(place.absolute().is_relative_to(folder) for folder in code)})


def leave() -> Guard:
    """Point caches at a temporary home, forget stores that the environment names, and watch the places left behind."""
    if "PYTEST_XDIST_WORKER" in os.environ and PROTECTED in os.environ:
        return Guard(json.loads(os.environ[PROTECTED]))  # the environment is that of the first process, which has left
    places = protected(dict(os.environ), Path.cwd())
    home = Path(tempfile.mkdtemp(prefix="wallprobe-home-"))
    made_by = os.getpid()
    atexit.register(lambda: os.getpid() == made_by and shutil.rmtree(home, ignore_errors=True))
    for name in (*CACHES, *OURS):
        os.environ.pop(name, None)
    os.environ |= {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "TORCHINDUCTOR_CACHE_DIR": str(home / ".cache" / "torchinductor"),
        PROTECTED: json.dumps(places),
        # A test's own process starts in another folder, and the package need not be installed.
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    return Guard(places)
