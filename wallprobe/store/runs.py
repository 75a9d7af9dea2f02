"""The run store: a Run is a folder with weights (safetensors) and a manifest; found by name locally, then among the bundled.

Names are `condition` (seed 42) or `condition@seed`; the folder of a run is always `condition@seed`. A run of a task other than the
recurrence has the task behind its condition: `c0-quadratic`.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wallprobe.errors import CheckpointError, StoreError, UnknownNameError
from wallprobe.store.staging import recover
from wallprobe.store.storage import read_json, sha256_file

DEFAULT_SEED = 42
BUNDLED = Path(__file__).resolve().parents[1] / "bundled" / "runs"
WEIGHTS, MANIFEST, EVALUATION, SNAPSHOTS = "weights.safetensors", "manifest.json", "eval", "snapshots"
RUN, EQUILIBRIUM = "run", "equilibrium"  # kinds: a decoder (HookedTransformer), or one block at its fixed point
NAME = re.compile(r"^(?P<condition>[a-z][a-z0-9_-]*)(?:@(?P<seed>\d+))?$")


def default_root() -> Path:
    """`$WALLPROBE_RUNS`, else `./runs`."""
    return Path(os.environ.get("WALLPROBE_RUNS", "runs"))


@dataclass(frozen=True)
class RunName:
    """A condition, with its task behind it where that is a variant (`c0-quadratic`), and a seed."""

    condition: str
    seed: int = DEFAULT_SEED

    def __str__(self) -> str:
        return self.condition if self.seed == DEFAULT_SEED else f"{self.condition}@{self.seed}"

    @property
    def folder(self) -> str:
        """Name of the run's folder in a store."""
        return f"{self.condition}@{self.seed}"

    @classmethod
    def parse(cls, text: str) -> "RunName":
        """Read `c0` or `c0@7`.

        Raises:
            UnknownNameError: if the text is neither.
        """
        match = NAME.match(text)
        if match is None:
            raise UnknownNameError(f"'{text}' is not a run name; give condition or condition@seed, such as c0 or c0@1337")
        seed = match["seed"]
        return cls(match["condition"], DEFAULT_SEED if seed is None else int(seed))


@dataclass(frozen=True)
class Run:
    """A trained model on disk.

    Attributes:
        name: condition and seed.
        path: its folder.
        manifest: what made it (see `wallprobe.store.manifest`), with `shape`, `task`, `recipe` and `weight_hash`.
        bundled: True if it came with the package.
    """

    name: RunName
    path: Path
    manifest: dict[str, Any]
    bundled: bool

    @property
    def kind(self) -> str:
        """`RUN` or `EQUILIBRIUM`: what kind of model the weights are of."""
        return str(self.manifest.get("kind", RUN))

    @property
    def weights_path(self) -> Path:
        """The safetensors file."""
        return self.path / WEIGHTS

    def verify(self) -> None:
        """Check the weights against the manifest.

        Raises:
            CheckpointError: if they are missing, truncated or altered.
        """
        path = self.weights_path
        if not path.is_file():
            raise CheckpointError(f"run {self.name} has no weights at {path}; retrain it: wallprobe train {self.name} --force")
        expected_bytes = self.manifest.get("weight_bytes")
        size = path.stat().st_size
        if expected_bytes is not None and size != expected_bytes:
            raise CheckpointError(
                f"{path} is {size} bytes where its manifest says {expected_bytes}: truncated or replaced; "
                f"restore it or retrain: wallprobe train {self.name} --force"
            )
        found = sha256_file(path)
        if found != self.manifest["weight_hash"]:
            raise CheckpointError(
                f"{path} has SHA-256 {found[:12]}... where its manifest says {self.manifest['weight_hash'][:12]}...: the file was "
                f"altered; restore it or retrain: wallprobe train {self.name} --force"
            )

    def snapshots(self) -> dict[int, Path]:
        """Files of the weights kept during training, by step, the last step left out: that is the run itself."""
        found = {}
        for path in sorted((self.path / SNAPSHOTS).glob("step-*.safetensors")):
            digits = path.stem.removeprefix("step-")
            if digits.isdigit():
                found[int(digits)] = path
        return found

    def tensors(self) -> dict[str, Any]:
        """The verified weights by HookedTransformer parameter name (fp32, CPU).

        Raises:
            CheckpointError: as `verify`, or if the file is not safetensors.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        self.verify()
        try:
            return dict(load_file(self.weights_path))
        except (SafetensorError, ValueError) as error:
            raise CheckpointError(f"{self.weights_path} is not a safetensors file ({error}); restore it or retrain") from error


def snapshot_path(folder: Path, step: int) -> Path:
    """Where a run keeps the weights after so many steps."""
    return folder / SNAPSHOTS / f"step-{step:08d}.safetensors"


def open_run(path: Path, *, bundled: bool = False) -> Run:
    """The run in a folder.

    Raises:
        CheckpointError: if its manifest is missing or damaged.
    """
    try:
        manifest = read_json(path / MANIFEST)
        condition = str(manifest["condition"])
        name = RunName(str(manifest.get("run", condition)), int(manifest["seed"]))
        for key in ("weight_hash", "shape", "task"):
            manifest[key]
        trained = manifest.get("config", {}).get("condition", {}).get("name", condition)
        if trained != condition:
            raise ValueError(f"it says condition {condition}, but was trained as {trained}")
    except (StoreError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has no readable run manifest ({error}); retrain it with wallprobe train ... --force") from error
    return Run(name, path, manifest, bundled)


def is_run_folder(path: Path) -> bool:
    """True if the folder looks like a run of ours."""
    return (path / MANIFEST).is_file() and not (path / "config.json").exists()


def find_run(name: str, root: Path | None = None) -> Run:
    """The run of that name in `root`, else the bundled one.

    Raises:
        UnknownNameError: if there is none; the message lists those there are.
        CheckpointError: if it is there but damaged.
    """
    parsed = RunName.parse(name)
    recover(root or default_root())
    local = (root or default_root()) / parsed.folder
    if (local / MANIFEST).is_file() or (local / WEIGHTS).is_file():
        return open_run(local)
    if (BUNDLED / parsed.folder).is_dir():
        return open_run(BUNDLED / parsed.folder, bundled=True)
    known = ", ".join(str(run.name) for run in list_runs(root)) or "none"
    unfinished = f" (a training of it is unfinished in {local}: run it again to resume)" if local.is_dir() else ""
    raise UnknownNameError(
        f"no run named '{name}' in {root or default_root()} or bundled{unfinished}; there are: {known}. "
        f"If it is a condition, train it: wallprobe train {name}"
    )


def resolve_run(source: str, root: Path | None = None) -> Run:
    """The run in a folder, if `source` is one, else the run of that name.

    Raises:
        UnknownNameError, CheckpointError: as `find_run`.
    """
    path = Path(source)
    return open_run(path) if is_run_folder(path) else find_run(source, root)


def list_runs(root: Path | None = None) -> list[Run]:
    """Every readable finished run: local ones first, then the bundled ones they do not shadow, by name."""
    found: dict[str, Run] = {}
    recover(root or default_root())
    for folder, bundled in ((root or default_root(), False), (BUNDLED, True)):
        if not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or not (path / MANIFEST).is_file():
                continue
            try:
                run = open_run(path, bundled=bundled)
            except CheckpointError:
                continue
            found.setdefault(run.name.folder, run)
    return sorted(found.values(), key=lambda run: (run.name.condition, run.name.seed))
