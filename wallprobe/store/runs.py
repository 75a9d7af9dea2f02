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
from wallprobe.store.reading import entries, is_folder, is_there
from wallprobe.store.staging import recover
from wallprobe.store.storage import read_json, sha256_file
from wallprobe.store.weights import check_finite_file, load_finite

DEFAULT_SEED = 42
BUNDLED = Path(__file__).resolve().parents[1] / "bundled" / "runs"
WEIGHTS, MANIFEST, EVALUATION, SNAPSHOTS = "weights.safetensors", "manifest.json", "eval", "snapshots"
TEXT = "text"  # the task without an exact answer, hence without a horizon
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
        """Check that it can be measured: its manifest is whole, its weights are those the manifest names, and every one is finite.

        Raises:
            CheckpointError: if anything of it is missing, truncated, altered, or NaN or infinite.
        """
        self._check_whole()
        self._check_bytes()
        check_finite_file(self.weights_path, f"run {self.name}", self._retrain)

    @property
    def _retrain(self) -> str:
        return f"restore it or retrain: wallprobe train {self.name} --force"

    def _check_whole(self) -> None:
        """Whether the manifest tells all that a measurement asks of it; a ledger reads runs that tell less."""
        from wallprobe.store import schema

        shape, task = self.manifest["shape"], self.manifest["task"]
        try:
            schema.check(schema.EquilibriumShape if self.kind == EQUILIBRIUM else schema.DecoderShape, shape)
            if task.get("name") != TEXT and "horizon" not in self.manifest:
                raise StoreError("horizon is missing")
            for key, most in (("length", shape["n_ctx"]), ("modulus", shape["vocabulary"])):
                if isinstance(task.get(key), int) and not 1 <= task[key] <= most:
                    raise StoreError(f"{key} {task[key]} of its task does not fit a model of {most}")
        except StoreError as error:
            raise CheckpointError(f"{self.path / MANIFEST} describes no model ({error}); {self._retrain}") from error

    def check_size(self) -> None:
        """The part of `verify` that reads no byte of the weights.

        Raises:
            CheckpointError: if they are missing, or not as many bytes as the manifest says.
        """
        path = self.weights_path
        try:
            is_file, size = path.is_file(), path.stat().st_size
        except OSError:
            is_file, size = False, 0
        if not is_file:
            raise CheckpointError(f"run {self.name} has no weights at {path}; retrain it: wallprobe train {self.name} --force")
        expected_bytes = self.manifest.get("weight_bytes")
        if expected_bytes is not None and size != expected_bytes:
            raise CheckpointError(
                f"{path} is {size} bytes where its manifest says {expected_bytes}: truncated or replaced; {self._retrain}"
            )

    def _check_bytes(self) -> None:
        self.check_size()
        path = self.weights_path
        try:
            found = sha256_file(path)
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}; {self._retrain}") from error
        if found != self.manifest["weight_hash"]:
            raise CheckpointError(
                f"{path} has SHA-256 {found[:12]}... where its manifest says {self.manifest['weight_hash'][:12]}...: the file was "
                f"altered; {self._retrain}"
            )

    def snapshots(self) -> dict[int, Path]:
        """Files of the weights kept during training, by step, the last step left out: that is the run itself."""
        found = {}
        for path in sorted((self.path / SNAPSHOTS).glob("step-*.safetensors")):
            digits = path.stem.removeprefix("step-")
            if digits.isdecimal() and len(digits) < 16:
                found[int(digits)] = path
        return found

    def tensors(self) -> dict[str, Any]:
        """The verified weights by HookedTransformer parameter name (fp32, CPU).

        Raises:
            CheckpointError: as `verify`, or if the file is not safetensors.
        """
        self._check_whole()
        self._check_bytes()
        return load_finite(self.weights_path, f"run {self.name}", self._retrain)


def snapshot_path(folder: Path, step: int) -> Path:
    """Where a run keeps the weights after so many steps."""
    return folder / SNAPSHOTS / f"step-{step:08d}.safetensors"


def open_run(path: Path, *, bundled: bool = False) -> Run:
    """The run in a folder.

    Raises:
        CheckpointError: if its manifest is missing or damaged.
    """
    from wallprobe.store import schema

    try:
        manifest = read_json(path / MANIFEST)
        schema.check(schema.RunManifest, manifest)
        condition = manifest["condition"]
        name = RunName(manifest.get("run", condition), manifest["seed"])
        trained = manifest.get("config", {}).get("condition", {}).get("name", condition)
        if trained != condition:
            raise StoreError(f"it says condition {condition}, but was trained as {trained}")
        if "@" in path.name and path.name != name.folder and NAME.match(path.name):
            raise StoreError(f"it is of {name.folder}, and its folder is {path.name}; give the folder its own name again")
    except StoreError as error:
        raise CheckpointError(f"{path} has no readable run manifest ({error}); retrain it with wallprobe train ... --force") from error
    return Run(name, path, manifest, bundled)


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest in a folder as JSON, whatever it is of.

    Raises:
        CheckpointError: if it cannot be read, or is no JSON object.
    """
    try:
        found = read_json(path / MANIFEST)
    except StoreError as error:
        raise CheckpointError(f"{error}; use --force to replace what is there, or another --runs folder") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path / MANIFEST} is no manifest; use --force to replace what is there, or another --runs folder")
    return found


def is_run_folder(path: Path) -> bool:
    """True if the folder looks like a run of ours."""
    return is_folder(path) and is_there(path / MANIFEST) and not is_there(path / "config.json")


def find_run(name: str, root: Path | None = None) -> Run:
    """The run of that name in `root`, else the bundled one.

    Raises:
        UnknownNameError: if there is none; the message lists those there are.
        CheckpointError: if it is there but damaged; a bundled one of that name does not stand in for it.
    """
    parsed = RunName.parse(name)
    recover(root or default_root())
    local = (root or default_root()) / parsed.folder
    if any(is_there(local / part) for part in (MANIFEST, WEIGHTS)) or (is_there(local) and not is_folder(local)):
        return open_run(local)
    if (BUNDLED / parsed.folder).is_dir():
        return open_run(BUNDLED / parsed.folder, bundled=True)
    sound, damaged = survey_runs(root)
    known = ", ".join(str(run.name) for run in sound) or "none"
    known += f" (and damaged: {', '.join(path.name for path, _ in damaged)})" if damaged else ""
    unfinished = f" (a training of it is unfinished in {local}: run it again to resume)" if is_folder(local) else ""
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
    return survey_runs(root)[0]


def survey_runs(root: Path | None = None) -> tuple[list[Run], list[tuple[Path, str]]]:
    """The readable finished runs as `list_runs` gives them, and the damaged ones with what is wrong.

    A damaged local run still shadows a bundled one of its name, as it does for `find_run`. Folders without a manifest are trainings
    under way, not damage. Weights are not read here: see `Run.verify`.

    Raises:
        StoreError: if the store may not be listed.
    """
    found: dict[str, Run] = {}
    recover(root or default_root())
    damaged: list[tuple[Path, str]] = []
    for folder, bundled in ((root or default_root(), False), (BUNDLED, True)):
        shadowed = {*found, *(path.name for path, _ in damaged)}
        for path in entries(folder):
            if path.name in shadowed or not _stands_for_a_run(path):
                continue
            try:
                run = open_run(path, bundled=bundled)
                if run.name.folder != path.name:
                    raise CheckpointError(f"{path} holds run {run.name.folder}; give the folder that name, or move it out of the store")
            except CheckpointError as error:
                damaged.append((path, str(error)))
            else:
                found[path.name] = run
    return sorted(found.values(), key=lambda run: (run.name.condition, run.name.seed)), damaged


def _stands_for_a_run(path: Path) -> bool:
    """A folder with a manifest, or anything else under a run's name: a file, a link that leads nowhere."""
    return is_there(path / MANIFEST) if is_folder(path) else "@" in path.name and NAME.match(path.name) is not None
