"""The training loop: one condition, one recipe, one seed -> a Run. Interrupted anywhere, it resumes to the same bytes.

Every draw depends on (seed, what, step) alone, so a checkpoint holds parameters, moments and a step number, nothing else.
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from wallprobe.errors import CheckpointError, ConfigError, DivergedError
from wallprobe.rng import derive_seed, generator
from wallprobe.store import runs
from wallprobe.store.manifest import Stopwatch, provenance, source_commit
from wallprobe.store.reading import is_there
from wallprobe.store.staging import sweep
from wallprobe.store.storage import discard, ensure_directory, exclusive, lock_path, sha256_file, write_atomic, write_json
from wallprobe.tasks.registry import to_manifest
from wallprobe.training.wall import lean, optim
from wallprobe.training.wall.batches import DRAW, Block, draw_block
from wallprobe.training.wall.conditions import Schedule
from wallprobe.training.wall.jobs import Job, Teacher, load_teacher
from wallprobe.training.wall.signals import (
    INTROSPECTIVE,
    SCALAR_ROUTES,
    Output,
    StepData,
    check_loss,
    check_target,
    entropy_bits,
    routes,
    signals,
)

CHECKPOINT = "checkpoint.safetensors"
LOG_EVERY = 50
CURVE_POINTS = 30  # of a scheduled run's error at supervised and other positions
CURVE_SEQUENCES = 512


class StopTraining(Exception):  # noqa: N818
    """Raised by an `on_progress` callback to end a training early: it leaves a checkpoint behind, and the exception goes on."""


@dataclass(frozen=True)
class Progress:
    """What a progress callback is told, every `LOG_EVERY` steps."""

    step: int
    steps: int
    cross_entropy: float
    signal: float


class Trainer:
    """The state of one training. `step()` advances it; `save()` and `resume()` carry it across processes."""

    def __init__(self, job: Job, folder: Path, device: str = "cpu", compile: bool = False, teacher: Teacher | None = None) -> None:
        self.job, self.folder, self.device, self.compiled = job, folder, device, compile
        self.step_number, self.seconds, self.log = 0, 0.0, list[dict[str, float]]()
        recipe, condition = job.recipe, job.condition
        self._signal, self._route = signals()[condition.signal], routes()[condition.route]
        job.shape.check_room(recipe.batch)
        fresh = lean.init_params(job.shape, job.seed, recipe.embedding_std)
        fresh |= lean.init_endogenous(job.shape, job.seed, condition.endogenous)
        if condition.route in SCALAR_ROUTES:
            fresh |= {"head_w": torch.zeros(recipe.d_model), "head_b": torch.zeros(())}
        self.params = {name: tensor.to(device) for name, tensor in fresh.items()}
        self.settings = optim.OptimSettings(recipe.muon_lr, recipe.adam_lr, recipe.weight_decay, clip=recipe.clip)
        self.moments = optim.init_state(self.params, self.settings)
        if teacher is None and condition.teacher == "untrained":
            untrained = lean.init_params(job.shape, derive_seed(job.seed, "untrained teacher"), recipe.embedding_std)
            teacher = Teacher("untrained", untrained, job.shape)
        if condition.signal == "teacher" and teacher is None:
            raise ConfigError(f"condition {condition.name} needs a teacher: give the parameters of a trained {condition.teacher}")
        self.teacher = teacher
        given = {} if teacher is None else teacher.params
        self._teacher_params = lean.by_layer({name: tensor.to(device) for name, tensor in given.items()})
        mask = condition.position_mask(job.task.length, job.horizon)
        self.mask = torch.tensor(mask, dtype=torch.float32, device=device)
        usual = recipe.teacher_weight if condition.signal == "teacher" else recipe.signal_weight
        self.weight = usual if condition.weight is None else condition.weight
        self._losses: Callable[..., tuple[Tensor, Tensor]] = self._eager_losses
        self._update, self._teach = optim.update, self._eager_teach
        if compile:
            # What this process compiled before must decide neither speed nor bytes: other lengths would make sizes symbolic, and
            # after eight trainings torch would silently compile no more.
            torch.compiler.reset()
            self._losses = torch.compile(self._eager_losses, dynamic=False)
            self._update = torch.compile(optim.update, dynamic=False)
            self._teach = torch.compile(self._eager_teach, dynamic=False)
        self._drawn: tuple[int, Block] | None = None

    def _draw(self, number: int) -> Block:
        """Data of `DRAW` consecutive steps, on the device."""
        if self._drawn is None or self._drawn[0] != number:
            job = self.job
            supervised, whole = slice(job.task.start, job.horizon), job.condition.needs_full_length
            block = draw_block(job.task, job.seed, number, job.recipe.batch, supervised, job.recipe.continuations, whole, self.device)
            self._drawn = (number, block)
        return self._drawn[1]

    def _batch(self, whole: bool = True) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """This step's tokens, its signal's target and the drawn continuations; only the supervised prefix, and no target, where the
        loss looks no further."""
        job = self.job
        block = self._draw(self.step_number // DRAW).rows(self.step_number, job.recipe.batch)
        tokens, posterior = block.tokens, block.posterior
        if posterior is None or not whole:
            return tokens[:, : job.horizon + 1], None, block.next_tokens
        logits = None
        if self.teacher is not None:
            with torch.no_grad():
                logits = self._teach(self._teacher_params, tokens)
        draws = generator(job.seed, "signal", self.step_number)
        data = StepData(tokens, block.label, posterior, logits, draws, job.condition.constant, job.recipe.d_model, symbols=job.task.modulus)
        return tokens, check_target(job.condition.signal, self._signal(data), data), block.next_tokens

    def _eager_losses(
        self, params: lean.LayerParams, tokens: Tensor, target: Tensor | None, next_tokens: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Supervised cross-entropy (nats) and the signal's loss, both means over their positions; without a target, no signal."""
        recipe, condition = self.job.recipe, self.job.condition
        logits, residual = self._forward(params, tokens, recipe.dropout)
        start, horizon = self.job.task.start, self.job.horizon
        wanted = tokens[:, start + 1 : horizon + 1].flatten() if next_tokens is None else next_tokens.flatten(0, 1)
        supervised = F.cross_entropy(logits[:, start:horizon].flatten(0, 1), wanted)
        if target is None:
            return supervised, torch.zeros((), device=tokens.device)
        head = plain = nudged = None
        if condition.route in SCALAR_ROUTES:
            read = F.layer_norm(residual, residual.shape[-1:], params["ln_w"], params["ln_b"], 1e-5)
            head = read @ params["head_w"] + params["head_b"]
        if condition.signal == "self_perturbation":
            with torch.no_grad():
                # Dropout would change the entropy more than the nudge does.
                plain = logits.detach() if not recipe.dropout else self._forward(params, tokens)[0]
                nudged = self._forward(params, tokens, nudge=target)[0]
        output = Output(logits, residual, head, plain, nudged, symbols=self.job.task.modulus)
        return supervised, self.signal_loss(output, target)

    def _eager_teach(self, params: lean.LayerParams, tokens: Tensor) -> Tensor:
        """The teacher's logits."""
        assert self.teacher is not None
        return self._forward(params, tokens, shape=self.teacher.shape)[0]

    def _forward(
        self,
        params: lean.LayerParams,
        tokens: Tensor,
        dropout: float = 0.0,
        nudge: Tensor | None = None,
        shape: lean.Shape | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits and final residual for all tokens but the last, products in the recipe's precision, results in fp32."""
        recipe = self.job.recipe
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            logits, residual = lean.forward(params, tokens[:, :-1], shape or self.job.shape, dropout, nudge)
        return logits.float(), residual.float()

    def signal_loss(self, output: Output, target: Tensor) -> Tensor:
        """Mean of the route's loss over the condition's positions; an introspective signal's target comes from the output itself."""
        condition = self.job.condition
        if condition.signal in INTROSPECTIVE:
            target = INTROSPECTIVE[condition.signal](output)
        loss = check_loss(condition.route, self._route(output, target), output)
        return (loss * self.mask).sum() / (self.mask.sum() * len(loss))

    def step(self) -> tuple[Tensor, Tensor]:
        """One optimiser step; returns the two losses (supervised cross-entropy in nats, signal) before it.

        While the condition's signal is off, the step runs on the supervised prefix alone. Attention is causal, so the gradient is the
        same, to rounding. The signal's loss is then returned only where it is logged, and is 0 elsewhere.
        """
        job = self.job
        on = job.condition.is_on(self.step_number, job.recipe.steps)
        tokens, target, next_tokens = self._batch(on)
        leaves = {name: tensor.detach().requires_grad_(True) for name, tensor in self.params.items()}
        with torch.random.fork_rng(enabled=job.recipe.dropout > 0):
            if job.recipe.dropout:
                torch.manual_seed(derive_seed(job.seed, "dropout", self.step_number))
            supervised, signal = self._losses(lean.by_layer(leaves), tokens, target, next_tokens)
            total = supervised + self.weight * signal if on and self.weight else supervised
            grads = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
            if job.condition.needs_full_length and not on and is_logged(self.step_number + 1, job.recipe.steps):
                with torch.no_grad():
                    signal = self._eager_losses(self.params, *self._batch())[1]
        by_name = {name: torch.zeros_like(leaf) if grad is None else grad for (name, leaf), grad in zip(leaves.items(), grads, strict=True)}
        with torch.no_grad():
            scale = job.recipe.factor(self.step_number)
            rates = optim.Rates.at(self.step_number, scale, self.settings, self.mask.device)
            self._update(self.params, by_name, self.moments, rates, self.settings)
        self.step_number += 1
        return supervised.detach(), signal.detach()

    def wall(self) -> dict[str, float]:
        """Mean |H(P) - H(Q)| in bits at supervised and at the other positions now, over the same fresh sequences each time."""
        job, horizon = self.job, self.job.horizon
        tokens = job.task.sample(CURVE_SEQUENCES, generator(job.seed, "curve")).tokens.to(self.device)
        with torch.no_grad():
            logits = lean.forward(self.params, tokens[:, :-1], job.shape)[0]
        error = (entropy_bits(logits) - job.task.posterior(tokens, torch.float32).entropy).abs().mean(0)
        return {"trained_mae": float(error[job.task.start : horizon].mean()), "untrained_mae": float(error[horizon:].mean())}

    def save(self) -> None:
        """Write a checkpoint, whole or not at all."""
        tensors = {f"p.{name}": tensor for name, tensor in self.params.items()} | self.moments
        state = {"step": self.step_number, "seconds": self.seconds, "log": self.log, "config": self.job.config()}
        if self.teacher is not None:
            state["teacher"] = self.teacher.weight_hash
        cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_atomic(self.folder / CHECKPOINT, save(cpu, metadata={"state": json.dumps(state)}), self.folder.parent)

    def snapshot(self) -> None:
        """Keep the weights as they are now beside the run's, under their step."""
        write_atomic(
            runs.snapshot_path(self.folder, self.step_number), save(lean.to_hooked(self.params, self.job.shape)), self.folder.parent
        )

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
        if self.teacher is not None and state.get("teacher", self.teacher.weight_hash) != self.teacher.weight_hash:
            raise CheckpointError(
                f"checkpoint {path} learnt from another teacher than run {self.teacher.name} is now; start again with --force"
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


def is_logged(step: int, steps: int) -> bool:
    """Are the losses logged after this many steps? Every `LOG_EVERY`, and at the end."""
    return step % LOG_EVERY == 0 or step == steps


def _on_curve(step: int, job: Job) -> bool:
    """Is the wall measured after this many steps? About `CURVE_POINTS` times in a run whose signal comes or goes, else never."""
    if job.condition.schedule == Schedule() or not is_logged(step, job.recipe.steps):
        return False
    return step == job.recipe.steps or step % (LOG_EVERY * max(1, job.recipe.steps // (CURVE_POINTS * LOG_EVERY))) == 0


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
        compile: compile the step, the optimiser included (needs a C++ compiler; first steps take longer).
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
    folder = (root or runs.default_root()) / job.name.folder
    sweep(folder.parent)
    if not force and is_there(folder / runs.MANIFEST):
        return _finished(folder, job)
    teacher = load_teacher(job, root)  # refused, if it is, before a folder is made
    ensure_directory(folder)
    with own(folder, wait):
        if force:
            discard(folder)
            ensure_directory(folder)
        elif is_there(folder / runs.MANIFEST):  # by whom we waited for
            return _finished(folder, job)
        trainer = Trainer(job, folder, device, compile, teacher)
        trainer.resume()
        try:
            _run_to_end(trainer, on_progress)
        except StopTraining:
            trainer.save()
            raise
        return _finish(trainer, root)


def own(folder: Path, wait: float = 0.0) -> AbstractContextManager[None]:
    """The lock of a run's folder, held by whoever writes in it.

    Raises:
        BusyError: if another process holds it.
    """
    busy = f"another process is training {folder}; wait until it has finished, end it, or use another --runs folder"
    return exclusive(lock_path(folder), busy, wait)


def _finished(folder: Path, job: Job) -> runs.Run:
    run = runs.open_run(folder)
    if run.manifest["config"] != job.config():
        theirs = _differences(run.manifest["config"], job.config())
        raise CheckpointError(
            f"{folder} holds another training of that name ({theirs}); use --force to replace it or another --runs folder"
        )
    run.verify()
    return run


def _run_to_end(trainer: Trainer, on_progress: Callable[[Progress], None] | None) -> None:
    recipe, started, already = trainer.job.recipe, time.perf_counter(), trainer.seconds
    if recipe.snapshot_every and trainer.step_number == 0:
        trainer.snapshot()
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
            if is_logged(step, recipe.steps):
                entry = {"step": step, "cross_entropy": losses[0], "signal": losses[1]}
                trainer.log.append(entry | (trainer.wall() if _on_curve(step, trainer.job) else {}))
                if on_progress is not None:
                    on_progress(Progress(step, recipe.steps, *losses))
        if recipe.snapshot_every and step % recipe.snapshot_every == 0 and step < recipe.steps:
            trainer.snapshot()
        if step % recipe.checkpoint_every == 0 and step < recipe.steps:
            trainer.save()


def _finish(trainer: Trainer, root: Path | None) -> runs.Run:
    """Write weights, then the manifest that makes them a run, then drop the checkpoint."""
    job, folder = trainer.job, trainer.folder
    state = lean.to_hooked(trainer.params, job.shape)
    write_atomic(folder / runs.WEIGHTS, save(state), folder.parent)
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
        task=to_manifest(job.task),
        parameters=sum(tensor.numel() for tensor in state.values()),
        weight_hash=sha256_file(folder / runs.WEIGHTS),
        weight_bytes=(folder / runs.WEIGHTS).stat().st_size,
        weight_processing="none",
        compiled=trainer.compiled,
        log=trainer.log,
    )
    manifest["wall_time_s"] = round(trainer.seconds, 1)
    if trainer.teacher is not None:
        manifest["teacher"] = {"name": trainer.teacher.name, "weight_hash": trainer.teacher.weight_hash}
    write_json(folder / runs.MANIFEST, manifest, folder.parent)
    (folder / CHECKPOINT).unlink(missing_ok=True)
    return runs.open_run(folder)
