"""The training loop: one condition, one recipe, one seed -> a Run. Interrupted anywhere, it resumes to the same bytes.

Every draw depends on (seed, what, step) alone, so a checkpoint holds parameters, moments and a step number, nothing else.
"""

import json
import math
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from wallprobe import runs
from wallprobe.errors import CheckpointError, ConfigError, DivergedError, WallprobeError
from wallprobe.manifest import Stopwatch, provenance, source_commit
from wallprobe.rng import derive_seed, generator
from wallprobe.storage import ensure_directory, exclusive, sha256_file, write_atomic, write_json
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.tasks.task import Posterior, Task
from wallprobe.training import lean, optim
from wallprobe.training.conditions import Condition
from wallprobe.training.recipes import Recipe
from wallprobe.training.signals import ROUTES, SCALAR_ROUTES, SIGNALS, Output, StepData

CHECKPOINT = "checkpoint.safetensors"
DRAW = 64  # steps whose data are drawn in one go
LOG_EVERY = 50


class StopTraining(Exception):  # noqa: N818
    """Raised by an `on_progress` callback to end a training early: it leaves a checkpoint behind, and the exception goes on."""


@dataclass(frozen=True)
class Progress:
    """What a progress callback is told, every `LOG_EVERY` steps."""

    step: int
    steps: int
    cross_entropy: float
    signal: float


@dataclass(frozen=True)
class Job:
    """Everything that decides a run's bytes, besides machine and library versions."""

    condition: Condition
    recipe: Recipe
    seed: int = runs.DEFAULT_SEED
    task: Task = field(default_factory=RecurrenceTask)

    @property
    def name(self) -> runs.RunName:
        """The run's name."""
        return runs.RunName(self.condition.name + self.task.suffix, self.seed)

    @property
    def horizon(self) -> int:
        """The last supervised position: K after the task's header."""
        return self.task.start + self.recipe.horizon

    @property
    def shape(self) -> lean.Shape:
        """Sizes of the network."""
        recipe = self.recipe
        return lean.Shape(recipe.n_layers, recipe.d_model, recipe.n_heads, self.task.context, self.task.vocabulary)

    def config(self) -> dict[str, Any]:
        """Plain JSON: what a checkpoint must agree with to be resumed. How often it is saved changes nothing."""
        recipe = {key: value for key, value in self.recipe.config().items() if key != "checkpoint_every"}
        config = {"condition": self.condition.config(), "recipe": recipe, "seed": self.seed, "task": self.task.config()}
        return dict(json.loads(json.dumps(config)))


class Trainer:
    """The state of one training. `step()` advances it; `save()` and `resume()` carry it across processes."""

    def __init__(self, job: Job, folder: Path, device: str = "cpu", compile: bool = False, teacher: lean.Params | None = None) -> None:
        self.job, self.folder, self.device, self.compiled = job, folder, device, compile
        self.step_number, self.seconds, self.log = 0, 0.0, list[dict[str, float]]()
        recipe, condition = job.recipe, job.condition
        self.params = {name: tensor.to(device) for name, tensor in lean.init_params(job.shape, job.seed, recipe.embedding_std).items()}
        if condition.route in SCALAR_ROUTES:
            self.params |= {"head_w": torch.zeros(recipe.d_model, device=device), "head_b": torch.zeros((), device=device)}
        self.settings = optim.OptimSettings(recipe.muon_lr, recipe.adam_lr, recipe.weight_decay, clip=recipe.clip)
        self.moments = optim.init_state(self.params, self.settings)
        self.teacher = None if teacher is None else {name: tensor.to(device) for name, tensor in teacher.items()}
        if condition.teacher == "untrained":
            fresh = lean.init_params(job.shape, derive_seed(job.seed, "untrained teacher"), recipe.embedding_std)
            self.teacher = {name: tensor.to(device) for name, tensor in fresh.items()}
        if condition.signal == "teacher" and self.teacher is None:
            raise ConfigError(f"condition {condition.name} needs a teacher: give the parameters of a trained {condition.teacher}")
        mask = condition.position_mask(job.task.length, job.horizon)
        self.mask = torch.tensor(mask, dtype=torch.float32, device=device)
        usual = recipe.teacher_weight if condition.signal == "teacher" else recipe.signal_weight
        self.weight = usual if condition.weight is None else condition.weight
        self._losses: Callable[..., tuple[Tensor, Tensor]] = self._eager_losses
        self._orthogonalise = optim.orthogonalise
        if compile:
            self._losses = torch.compile(self._eager_losses)
            self._orthogonalise = torch.compile(optim.orthogonalise)
        self._drawn: tuple[int, tuple[Tensor, Tensor, Posterior | None]] | None = None

    def _draw(self, block: int) -> tuple[Tensor, Tensor, Posterior | None]:
        """Data of `DRAW` consecutive steps, on the device."""
        if self._drawn is None or self._drawn[0] != block:
            job = self.job
            drawn = job.task.sample(DRAW * job.recipe.batch, generator(job.seed, "data", block))
            tokens = drawn.tokens.to(self.device)
            posterior = job.task.posterior(tokens, torch.float32) if job.condition.needs_full_length else None
            self._drawn = (block, (tokens, drawn.is_program.to(self.device, torch.float32), posterior))
        return self._drawn[1]

    def _batch(self) -> tuple[Tensor, Tensor]:
        """This step's tokens (cut to the supervised prefix where the loss looks no further) and its signal's target."""
        job = self.job
        tokens, label, posterior = self._draw(self.step_number // DRAW)
        start = (self.step_number % DRAW) * job.recipe.batch
        rows = slice(start, start + job.recipe.batch)
        if posterior is None:
            return tokens[rows, : job.horizon + 1], torch.zeros(())
        part = Posterior(*(getattr(posterior, name)[rows] for name in ("predictive", "program_weight", "forced", "entropy", "best")))
        logits = None
        if self.teacher is not None:
            with torch.no_grad():
                logits = lean.forward(self.teacher, tokens[rows, :-1], job.shape)[0]
        data = StepData(tokens[rows], label[rows], part, logits, generator(job.seed, "signal", self.step_number))
        return tokens[rows], SIGNALS[job.condition.signal](data)

    def _eager_losses(self, params: lean.Params, tokens: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Supervised cross-entropy (nats) and the signal's loss, both means over their positions."""
        recipe, condition = self.job.recipe, self.job.condition
        kind = torch.device(self.device).type
        with torch.autocast(kind, torch.bfloat16, enabled=recipe.precision == "bf16"):
            logits, residual = lean.forward(params, tokens[:, :-1], self.job.shape, recipe.dropout)
        logits = logits.float()
        start, horizon = self.job.task.start, self.job.horizon
        supervised = F.cross_entropy(logits[:, start:horizon].flatten(0, 1), tokens[:, start + 1 : horizon + 1].flatten())
        if not condition.needs_full_length:
            return supervised, torch.zeros((), device=tokens.device)
        head = None
        if condition.route in SCALAR_ROUTES:
            read = F.layer_norm(residual.float(), residual.shape[-1:], params["ln_w"], params["ln_b"], 1e-5)
            head = read @ params["head_w"] + params["head_b"]
        loss = ROUTES[condition.route](Output(logits, residual.float(), head), target)
        return supervised, (loss * self.mask).sum() / (self.mask.sum() * len(tokens))

    def step(self) -> tuple[Tensor, Tensor]:
        """One optimiser step; returns the two losses (supervised cross-entropy in nats, signal) before it."""
        job = self.job
        tokens, target = self._batch()
        leaves = {name: tensor.detach().requires_grad_(True) for name, tensor in self.params.items()}
        with torch.random.fork_rng(enabled=job.recipe.dropout > 0):
            if job.recipe.dropout:
                torch.manual_seed(derive_seed(job.seed, "dropout", self.step_number))
            supervised, signal = self._losses(leaves, tokens, target)
            factor = self.weight * job.condition.schedule.factor(self.step_number, job.recipe.steps)
            total = supervised + factor * signal if factor else supervised
            grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
        by_name = {name: torch.zeros_like(leaf) if grad is None else grad for (name, leaf), grad in zip(leaves.items(), grads, strict=True)}
        with torch.no_grad():
            scale = job.recipe.factor(self.step_number)
            optim.update(self.params, by_name, self.moments, self.step_number, scale, self.settings, self._orthogonalise)
        self.step_number += 1
        return supervised.detach(), signal.detach()

    def save(self) -> None:
        """Write a checkpoint, whole or not at all."""
        tensors = {f"p.{name}": tensor for name, tensor in self.params.items()} | self.moments
        state = {"step": self.step_number, "seconds": self.seconds, "log": self.log, "config": self.job.config()}
        cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_atomic(self.folder / CHECKPOINT, save(cpu, metadata={"state": json.dumps(state)}))

    def resume(self) -> bool:
        """Continue from the folder's checkpoint, if there is one.

        Raises:
            CheckpointError: if it is damaged or belongs to another configuration.
        """
        path = self.folder / CHECKPOINT
        if not path.is_file():
            return False
        try:
            with safe_open(path, framework="pt") as handle:
                state = json.loads(handle.metadata()["state"])
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"checkpoint {path} is damaged ({error}); start again with --force") from error
        if state["config"] != self.job.config():
            theirs = _differences(state["config"], self.job.config())
            raise CheckpointError(
                f"checkpoint {path} belongs to another training ({theirs}); start again with --force or use another --runs folder"
            )
        for name in self.params:
            self.params[name] = tensors[f"p.{name}"].to(self.device)
        for name in self.moments:
            self.moments[name] = tensors[name].to(self.device)
        self.step_number, self.seconds, self.log = state["step"], state["seconds"], state["log"]
        return True


def checkpoint_step(folder: Path) -> int:
    """Optimiser steps that the checkpoint in a run's folder has behind it; 0 if there is none that can be read."""
    try:
        with safe_open(folder / CHECKPOINT, framework="pt") as handle:
            return int(json.loads(handle.metadata()["state"])["step"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return 0


def _differences(theirs: dict[str, Any], ours: dict[str, Any], prefix: str = "") -> str:
    found = []
    for key in ours.keys() | theirs.keys():
        left, right = theirs.get(key), ours.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            inner = _differences(left, right, f"{prefix}{key}.")
            found += [inner] if inner else []
        elif left != right:
            found.append(f"{prefix}{key} {left} there, {right} asked")
    return ", ".join(sorted(found))


def train(
    job: Job,
    root: Path | None = None,
    *,
    device: str = "cpu",
    compile: bool = False,
    force: bool = False,
    wait: float = 0.0,
    on_progress: Callable[[Progress], None] | None = None,
) -> runs.Run:
    """Train a run, or resume it, or return it if it is already there with the same configuration.

    Args:
        job: condition, recipe, seed and task.
        root: run store; default as `runs.default_root`.
        device: torch device.
        compile: compile the forward and backward pass (needs a C++ compiler; first steps take longer).
        force: throw away a finished or unfinished run of the same name.
        wait: seconds to wait for another process that is training this run.
        on_progress: called every `LOG_EVERY` steps; may raise `StopTraining`.

    Returns:
        The finished Run: weights, manifest with recipe and loss curve.

    Raises:
        CheckpointError: if a run or checkpoint of that name has another configuration or is damaged.
        DivergedError: if the loss is not finite; the last finite checkpoint stays.
        BusyError: if another process is training it.
        StoreError: if the store cannot be written.
    """
    source_commit()  # remembered now: the checkout may move on while this process trains
    folder = ensure_directory((root or runs.default_root()) / job.name.folder)
    if not force and (folder / runs.MANIFEST).exists():
        return _finished(folder, job)
    with own(folder, wait):
        if force:
            shutil.rmtree(folder)
            ensure_directory(folder)
        elif (folder / runs.MANIFEST).exists():  # by whom we waited for
            return _finished(folder, job)
        trainer = Trainer(job, folder, device, compile, _teacher_params(job, root))
        trainer.resume()
        try:
            _run_to_end(trainer, on_progress)
        except StopTraining:
            trainer.save()
            raise
        return _finish(trainer, root)


def own(folder: Path, wait: float = 0.0) -> AbstractContextManager[None]:
    """The lock of a run's folder, held by whoever writes in it; its file lies beside the folder, which may be replaced.

    Raises:
        BusyError: if another process holds it.
    """
    busy = f"another process is training {folder}; wait until it has finished, end it, or use another --runs folder"
    return exclusive(folder.with_name(f".{folder.name}.lock"), busy, wait)


def _finished(folder: Path, job: Job) -> runs.Run:
    run = runs.open_run(folder)
    if run.manifest["config"] != job.config():
        theirs = _differences(run.manifest["config"], job.config())
        raise CheckpointError(
            f"{folder} holds another training of that name ({theirs}); use --force to replace it or another --runs folder"
        )
    run.verify()
    return run


def _teacher_params(job: Job, root: Path | None) -> lean.Params | None:
    teacher = job.condition.teacher
    if teacher is None or teacher == "untrained":
        return None
    name = str(runs.RunName(teacher + job.task.suffix, job.seed))
    try:
        run = runs.find_run(name, root)
    except WallprobeError as error:
        raise ConfigError(
            f"condition {job.condition.name} learns from run {name}, which is not there; train it first: wallprobe train {name}"
        ) from error
    if run.manifest["shape"] != asdict(job.shape):
        raise ConfigError(
            f"teacher {name} has shape {run.manifest['shape']}, this training {asdict(job.shape)}; train {name} with the same preset"
        )
    return lean.from_hooked(run.tensors(), job.shape)


def _run_to_end(trainer: Trainer, on_progress: Callable[[Progress], None] | None) -> None:
    recipe, started, already = trainer.job.recipe, time.perf_counter(), trainer.seconds
    while trainer.step_number < recipe.steps:
        supervised, signal = trainer.step()
        step = trainer.step_number
        if step % LOG_EVERY == 0 or step == recipe.steps or step % recipe.checkpoint_every == 0:
            losses = float(supervised), float(signal)
            if not all(math.isfinite(value) for value in losses):
                raise DivergedError(
                    f"training {trainer.job.name} diverged before step {step}: loss {losses[0]}, signal {losses[1]}; lower "
                    "the learning rate or the signal's weight (the last finite checkpoint is kept)"
                )
            trainer.seconds = already + time.perf_counter() - started
            if step % LOG_EVERY == 0 or step == recipe.steps:
                trainer.log.append({"step": step, "cross_entropy": losses[0], "signal": losses[1]})
                if on_progress is not None:
                    on_progress(Progress(step, recipe.steps, *losses))
        if step % recipe.checkpoint_every == 0 and step < recipe.steps:
            trainer.save()


def _finish(trainer: Trainer, root: Path | None) -> runs.Run:
    """Write weights, then the manifest that makes them a run, then drop the checkpoint."""
    job, folder = trainer.job, trainer.folder
    state = lean.to_hooked(trainer.params, job.shape)
    state |= {name.replace("_", "."): trainer.params[name].detach().cpu() for name in ("head_w", "head_b") if name in trainer.params}
    write_atomic(folder / runs.WEIGHTS, save(state))
    manifest = provenance(
        config=job.config(),
        device=trainer.device,
        dtype=f"weights fp32, products {job.recipe.precision}",
        watch=Stopwatch(),
        kind="run",
        run=job.name.condition,
        condition=job.condition.name,
        seed=job.seed,
        preset=job.recipe.preset,
        steps=job.recipe.steps,
        horizon=job.horizon,
        shape=asdict(job.shape),
        task={"name": job.task.name, **job.task.config()},
        parameters=sum(tensor.numel() for tensor in state.values()),
        weight_hash=sha256_file(folder / runs.WEIGHTS),
        weight_bytes=(folder / runs.WEIGHTS).stat().st_size,
        weight_processing="none",
        compiled=trainer.compiled,
        log=trainer.log,
    )
    manifest["wall_time_s"] = round(trainer.seconds, 1)
    write_json(folder / runs.MANIFEST, manifest)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    for stale in folder.glob(".*.tmp"):  # what a kill -9 in the middle of a write left
        stale.unlink(missing_ok=True)
    return runs.open_run(folder)
