"""Auditing a model of yours as it stands: your network and your credits against the true gradient (the audit study).

An adapter is a function without arguments that returns a `Subject`; `wallprobe audit check module:function` (or `file.py:function`)
calls it. A finished audit run is checked the same way, by its name.
"""

import copy
import importlib
import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from wallprobe.errors import InstrumentError, UnknownNameError, look_up
from wallprobe.hooks.audit.subject import Subject
from wallprobe.hooks.audit.wall import wall_subject
from wallprobe.store import runs
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.reading import entries, is_there
from wallprobe.store.results import Result
from wallprobe.training.audit.campaign import job_in
from wallprobe.training.audit.diagnostics import Series
from wallprobe.training.audit.loop import FOLDER, load_net, series
from wallprobe.training.audit.quantities import Lens, observe
from wallprobe.training.audit.record import Described, judged, make_result
from wallprobe.training.audit.thresholds import Thresholds
from wallprobe.training.estimators.protocol import Batch, CreditEstimator, make_estimator, makers


def load_subject(source: str, root: Path | None = None, method: str | None = None) -> Subject:
    """The subject that a dotted path, a file's function, an audit run's name or a run's name stands for.

    Args:
        source: `package.module:function`, `folder/file.py:function`, a folder name in RUNS/audit, or a run such as `c0`.
        root: run store; default as `runs.default_root`.
        method: whose credits, for a run such as `c0`: "dfa" unless given. Others bring their own.

    Raises:
        UnknownNameError: if there is no such run, module or function.
        InstrumentError: if the function fails or returns something else.
    """
    if method is not None:
        look_up("training method", method, makers())
    where, sign, name = source.rpartition(":")
    if not sign:
        if _is_run(source, root):
            return wall_subject(runs.resolve_run(source, root), method or "dfa")
        return _from_run(source, root)
    try:
        maker: Callable[[], Any] = getattr(_module(where), name)
    except (ImportError, AttributeError, OSError, SyntaxError) as error:
        raise UnknownNameError(f"no adapter {source} ({error}); give module:function or file.py:function") from error
    try:
        made = maker()
    except Exception as error:
        # Foreign code: whatever it raises is its author's to read, on one line.
        raise InstrumentError(f"adapter {source} failed: {error!r}") from error
    if not isinstance(made, Subject):
        raise InstrumentError(f"adapter {source} returned {type(made).__name__}; return a wallprobe.hooks.audit.subject.Subject")
    return made


def _module(where: str) -> ModuleType:
    """A module by dotted name, the current folder's among them, or by its file."""
    if where.endswith(".py"):
        spec = importlib.util.spec_from_file_location(Path(where).stem, where)
        if spec is None or spec.loader is None:
            raise ImportError(f"{where} is no Python file")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        return importlib.import_module(where)
    finally:
        sys.path.remove(here)


def _is_run(name: str, root: Path | None) -> bool:
    """Whether a run of the wall's task has that name."""
    if runs.is_run_folder(Path(name)):
        return True
    sound, damaged = runs.survey_runs(root)
    named = {text for run in sound for text in (str(run.name), run.name.folder)}
    return name in named or any(name in (path.name, path.name.removesuffix(f"@{runs.DEFAULT_SEED}")) for path, _ in damaged)


def _from_run(name: str, root: Path | None) -> Subject:
    """A finished audit run at its end, by its folder's name or the only one that begins so."""
    folder = (root or runs.default_root()) / FOLDER
    known = [path.name for path in entries(folder) if is_there(path / runs.MANIFEST)]
    found = [one for one in known if one == name] or [one for one in known if one.startswith(name)]
    if len(found) != 1:
        what = f"{len(found)} audit runs begin with '{name}'" if found else f"no audit run '{name}'"
        listed = ", ".join(found or known) or "none"
        raise UnknownNameError(f"{what}; there are: {listed}. For a model of your own give module:function")
    path = folder / found[0]
    job = job_in(path)
    images = job.load()
    net, start = load_net(path, job, images), job.build(images)
    estimator = make_estimator(job.method, net, job.seed, **dict(job.options))
    few = slice(job.lens.samples)
    assert isinstance(estimator, CreditEstimator)
    return Subject(net, images.test_x[few], images.test_y[few], estimator, start, found[0], job.seed)


def check(subject: Subject, limits: Thresholds | None = None, lens: Lens | None = None) -> Result:
    """Audit a model as it stands against its initialisation.

    Args:
        subject: the model, its credits and samples.
        limits: thresholds of the diagnostics.
        lens: how to look.

    Returns:
        A Result of kind "audit" with two moments: the initialisation (epoch 0) and now (epoch 1).

    Raises:
        InstrumentError: if the model does not fit the samples, or its credits do not have the states' shapes.
    """
    watch, seen = Stopwatch(), lens or Lens()
    method = subject.method if isinstance(subject.method, str) else "own"
    start = subject.start if subject.start is not None else copy.deepcopy(subject.net)
    batch = Batch(subject.x[: seen.samples], subject.y[: seen.samples])
    moments = []
    try:
        for epoch, net in enumerate((start, subject.net)):
            estimator: Any = make_estimator(subject.method, net, subject.seed) if isinstance(subject.method, str) else subject.method
            if not isinstance(estimator, CreditEstimator):
                raise InstrumentError(f"method {method} of {subject.name} tells no credits; give an estimator with a `credits` method")
            found = observe(net, start, estimator, batch, seen, subject.seed, full=True, precise=True)
            with torch.no_grad():
                right = (net.eval()(batch.x).argmax(-1) == batch.y).numpy()
            row: dict[str, Any] = {name: values.tolist() for name, values in found.items()}
            moments.append(row | {"epoch": float(epoch), "step": epoch, "train_loss": math.nan, "accuracy": float(right.mean())})
    except (RuntimeError, IndexError) as error:
        raise InstrumentError(f"{subject.name} cannot be audited: {' '.join(str(error).split())}") from error
    whole: Series = series(moments, seen.eps)
    manifest = provenance(
        config={"subject": subject.name, "method": method, "seed": subject.seed},
        device="cpu",
        dtype="norms and cosines float64",
        watch=watch,
        subject=f"check {subject.name}",
        seeds=[subject.seed],
        weight_hash=_hash(subject.net),
        weight_processing="none",
    )
    described = Described("own", method, subject.name, subject.seed, epochs=1, eps=seen.eps, n_ref=seen.n_ref)
    made = make_result(described, whole, moments, np.asarray(right).reshape(-1), manifest, diverged=False)
    return judged(made, limits or Thresholds())


def _hash(net: nn.Module) -> str:
    """SHA-256 over the parameters' bytes in name order."""
    import hashlib

    digest = hashlib.sha256()
    for name, value in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
