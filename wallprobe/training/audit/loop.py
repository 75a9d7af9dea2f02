"""The audited training: Adam on an estimator's gradients, looked at after every epoch; killed anywhere, it goes on to the same bytes.

A run is a folder under `RUNS/audit`: weights, manifest and the audit's Result. While it is unfinished a checkpoint stands there instead,
written after each epoch; every draw depends on (seed, what, epoch) alone.
"""

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from wallprobe.errors import CheckpointError, ConfigError
from wallprobe.rng import generator
from wallprobe.store import runs
from wallprobe.store.manifest import Stopwatch, provenance, source_commit
from wallprobe.store.results import Result, load_result
from wallprobe.store.staging import sweep
from wallprobe.store.storage import discard, ensure_directory, sha256_file, write_atomic, write_json
from wallprobe.store.weights import load_finite
from wallprobe.tasks.images import Images
from wallprobe.training.audit.diagnostics import Series, should_stop
from wallprobe.training.audit.job import EARLY, AuditJob
from wallprobe.training.audit.quantities import LAYERED, at_rest, common, observe
from wallprobe.training.audit.start import Start, start_of
from wallprobe.training.audit.wall import Sequences, distance
from wallprobe.training.estimators.nets import Net
from wallprobe.training.estimators.protocol import Batch, CreditEstimator, make_estimator
from wallprobe.training.wall.loop import CHECKPOINT, own

FOLDER, AUDIT = "audit", "audit"
EVAL_BATCH = 100  # maps of more leave the cache: half the speed


@dataclass(frozen=True)
class Progress:
    """What a callback is told after every epoch."""

    job: AuditJob
    epoch: int
    loss: float
    accuracy: float


class Training:
    """The state of one audited training."""

    def __init__(self, job: AuditJob, folder: Path, images: Images | Sequences, shared: Path | None = None) -> None:
        self.job, self.folder, self.shared = job, folder, shared
        self.images = images
        self.net = job.build(images)
        self.start, self.named = copy.deepcopy(self.net), dict(self.net.named_parameters())
        options: dict[str, Any] = dict(job.options) | ({"penalty": job.penalty} if job.penalty else {})
        estimator = make_estimator(job.method, self.net, job.seed, **options)
        if not isinstance(estimator, CreditEstimator):
            raise ConfigError(f"training method {job.method} tells no credits; an audit needs an estimator with a `credits` method")
        self.estimator = estimator
        self.optimiser = torch.optim.Adam(self.net.parameters(), lr=job.lr, fused=True)
        self.epoch, self.step, self.seconds, self.cpu_seconds, self.diverged = 0, 0, 0.0, 0.0, False
        self.moments: list[dict[str, Any]] = []
        self.last: np.ndarray[Any, np.dtype[np.bool_]] | None = None  # test samples labelled right at the last moment, if it ended an epoch

    @property
    def steps(self) -> int:
        """Optimiser steps of an epoch; what is left of the samples waits for another."""
        return max(1, min(self.job.samples or len(self.images.train_x), len(self.images.train_x)) // self.job.batch)

    def run_epoch(self) -> bool:
        """One epoch, with looks in between at first, and one at its end; False if the loss ceased to be finite."""
        job, images = self.job, self.images
        order = torch.randperm(len(images.train_x), generator=generator(job.seed, "order", self.epoch))
        labels = images.noisy_labels(job.label_noise, job.seed, self.epoch)
        total, seen = 0.0, 0
        self.net.train()
        for rows in torch.split(order[: self.steps * job.batch], job.batch):
            loss = self.move(Batch(images.train_x[rows], labels[rows]))
            self.step, total, seen = self.step + 1, total + loss, seen + 1
            if not math.isfinite(total):
                self.diverged = True
                return False
            if self.step in EARLY and seen < self.steps:
                self.look(self.epoch + seen / self.steps, total / seen, full=False)
        self.epoch += 1
        self.look(float(self.epoch), total / seen, full=job.full(self.epoch))
        return True

    def move(self, batch: Batch) -> float:
        """One step of the optimiser; the batch's mean loss before it."""
        found = self.estimator(self.net, batch)
        for name, parameter in self.named.items():
            grad = found.grads.get(name)
            # The fused update goes through memory, not through indices: a gradient must lie as its parameter does.
            parameter.grad = None if grad is None else grad.contiguous()
        self.optimiser.step()
        return float(found.loss)

    def look(self, epoch: float, loss: float, *, full: bool) -> None:
        """Take a moment."""
        job, few = self.job, slice(self.job.lens.samples)
        batch = Batch(self.images.test_x[few], self.images.test_y[few])
        begun = start_of(job, self.shared, lambda: self.measure(batch)) if epoch == 0 else None
        found = observe(
            self.net,
            self.start,
            self.estimator,
            batch,
            job.lens,
            job.seed,
            full=full,
            precise=epoch in (0.0, float(job.epochs)),
            known=begun.common if begun else None,
        )
        self.last = begun.right if begun else self.correct() if epoch == int(epoch) else None
        moment: dict[str, Any] = {name: values.tolist() for name, values in found.items()}
        moment |= {"epoch": epoch, "step": self.step, "train_loss": loss}
        self.moments.append(moment | {"accuracy": math.nan if self.last is None else float(self.last.mean())})

    def measure(self, batch: Batch) -> Start:
        """What any other method would find as well, before the first step."""
        return Start(common(self.net, batch, self.job.lens, self.job.seed), self.correct())

    def correct(self) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which test samples are labelled right now."""
        with torch.no_grad(), at_rest(self.net):
            parts = zip(torch.split(self.images.test_x, EVAL_BATCH), torch.split(self.images.test_y, EVAL_BATCH), strict=True)
            return np.concatenate([(self.net(x).argmax(-1) == y).numpy() for x, y in parts])

    @property
    def stopped(self) -> bool:
        """Whether the early stop says so."""
        return self.job.stop is not None and should_stop(series(self.moments, self.job.lens.eps), self.job.thresholds)

    def save(self) -> None:
        """Write a checkpoint, whole or not at all."""
        tensors: dict[str, Tensor] = {f"p.{name}": value for name, value in self.net.state_dict().items()}
        for place, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"o.{place}.{name}": value for name, value in state.items()}
        state = {"config": self.job.config(), "moments": self.moments, "epoch": self.epoch, "step": self.step}
        state |= {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
        whole = {name: value.detach().contiguous() for name, value in tensors.items()}
        write_atomic(self.folder / CHECKPOINT, save(whole, metadata={"state": json.dumps(state)}), self.folder.parent)

    def resume(self) -> None:
        """Continue from the folder's checkpoint, if there is one.

        Raises:
            CheckpointError: if it is damaged or of another configuration.
        """
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return
        try:
            with safe_open(path, framework="pt") as handle:
                state = json.loads(handle.metadata()["state"])
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            self.net.load_state_dict({name[2:]: value for name, value in tensors.items() if name.startswith("p.")})
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"checkpoint {path} is damaged ({error}); start again with --force") from error
        if state["config"] != self.job.config():
            raise CheckpointError(f"checkpoint {path} belongs to another audit; start again with --force")
        kept: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith("o."):
                _, place, key = name.split(".")
                kept.setdefault(int(place), {})[key] = value
        self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": kept})
        self.moments, self.epoch, self.step = state["moments"], state["epoch"], state["step"]
        self.seconds, self.cpu_seconds = state["seconds"], state.get("cpu_seconds", 0.0)


def series(moments: list[dict[str, Any]], eps: float) -> Series:
    """The moments as arrays."""

    def column(name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.asarray([moment[name] for moment in moments], dtype=float)

    return Series(column("epoch"), {name: column(name) for name in LAYERED}, column("deep_null"), column("accuracy"), eps)


def folder_of(job: AuditJob, root: Path | None = None) -> Path:
    """Where a job's run is kept."""
    return (root or runs.default_root()) / FOLDER / job.name


def at(job: AuditJob, root: Path | None = None) -> Progress | None:
    """How far an audit is, from what it has stored; None before its first epoch."""
    folder = folder_of(job, root)
    try:
        with safe_open(folder / CHECKPOINT, framework="pt") as handle:
            state = json.loads(handle.metadata()["state"])
        return Progress(job, state["epoch"], state["moments"][-1]["train_loss"], state["moments"][-1]["accuracy"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        if not (folder / runs.MANIFEST).is_file():
            return None
        data = load_result(folder / AUDIT).data.isel(run=0, moment=-1, layer=-1)
        return Progress(job, int(data["epoch"]), float(data["train_loss"]), float(data["accuracy"]))


def finished(job: AuditJob, root: Path | None = None) -> Result | None:
    """The stored audit of a job, None if it is not there.

    Raises:
        CheckpointError: if another configuration stands under its name.
        StoreError: if it is damaged.
    """
    folder = folder_of(job, root)
    if not (folder / runs.MANIFEST).is_file():
        return None
    if runs.read_manifest(folder).get("config") != job.config():
        raise CheckpointError(f"{folder} holds another audit; use --force to replace it or another --runs folder")
    return load_result(folder / AUDIT)


def audit(
    job: AuditJob,
    root: Path | None = None,
    *,
    force: bool = False,
    wait: float = 0.0,
    images: Images | Sequences | None = None,
    shared: Path | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Result:
    """Train and audit, or resume, or return what is already there.

    Args:
        job: what to train.
        root: run store; default as `runs.default_root`.
        force: throw away what is there of it.
        wait: seconds to wait for another process that is at it.
        images: the job's data where they are at hand; read otherwise.
        shared: folder of starts that other runs of its seed have measured or will read.
        on_progress: called after every epoch.

    Returns:
        The audit's Result, as stored beside the weights.

    Raises:
        WallprobeError: as `finished`, `Training.resume`, `load_images` and `own`.
    """
    source_commit()
    folder = folder_of(job, root)
    sweep(ensure_directory(folder.parent))
    with own(folder, wait):
        if force and folder.exists():
            discard(folder)
        done = finished(job, root)
        if done is not None:
            return done
        ensure_directory(folder)
        training = Training(job, folder, images or job.load(), shared)
        training.resume()
        if not training.moments:
            training.look(0.0, math.nan, full=True)
        while training.epoch < job.epochs and not training.stopped:
            began, busy = time.perf_counter(), time.process_time()
            if not training.run_epoch():
                break
            training.seconds += time.perf_counter() - began
            training.cpu_seconds += time.process_time() - busy
            training.save()
            if on_progress is not None:
                on_progress(Progress(job, training.epoch, training.moments[-1]["train_loss"], training.moments[-1]["accuracy"]))
        return _finish(training)


def _finish(training: Training) -> Result:
    """Store weights, the audit's Result, and last the manifest, which says that it is finished."""
    from wallprobe.training.audit.record import Described, make_result

    job, folder = training.job, training.folder
    weights = {name: value.detach().contiguous() for name, value in training.net.state_dict().items()}
    write_atomic(folder / runs.WEIGHTS, save(weights), folder.parent)
    extra = {
        "subject": f"{job.arch} {job.method} {job.data} @{job.seed}",
        "seeds": [job.seed],
        "run": job.name,
        "weight_hash": sha256_file(folder / runs.WEIGHTS),
        "weight_processing": "none",
        "data_hash": training.images.data_hash,
        "data_source": training.images.source,
        "train_seconds": round(training.seconds, 3),
        "cpu_seconds": round(training.cpu_seconds, 3),
        "steps": training.step,
    }
    manifest = provenance(
        config=job.config(), device="cpu", dtype="training float32, norms and cosines float64", watch=Stopwatch(), **extra
    )
    bits = None
    if isinstance(training.images, Sequences):
        with at_rest(training.net):
            bits = distance(training.net, training.images)
    correct = training.correct() if training.last is None or training.diverged else training.last
    result = make_result(
        Described.of(job), series(training.moments, job.lens.eps), training.moments, correct, manifest, training.diverged, bits
    )
    result.save_at(folder / AUDIT, folder.parent)
    write_json(folder / runs.MANIFEST, manifest, folder.parent)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return result


def load_net(folder: Path, job: AuditJob, images: Images | Sequences) -> Net:
    """A finished run's network.

    Raises:
        CheckpointError: if its weights cannot be read, are another network's, or NaN or infinite.
    """
    net = job.build(images)
    state = load_finite(folder / runs.WEIGHTS, f"audit run {folder.name}", "its training diverged or the file was altered: audit it again")
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{folder / runs.WEIGHTS} is no {job.arch} of this audit; restore it or audit it again") from error
    return net.eval()
