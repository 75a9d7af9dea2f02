"""The trainer: one job -> a run in the store; killed anywhere, it goes on to the same bytes.

Step: free phase, gate, task gradient, contraction penalty, clip, AdamW, lambda's servo, average. Every draw depends on (seed, what,
step) alone, so a checkpoint holds tensors, a step number and the log.
"""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from wallprobe import models
from wallprobe.errors import CheckpointError, ConfigError, StoreError, look_up
from wallprobe.models.equilibrium import PlainEquilibrium, init
from wallprobe.rng import generator
from wallprobe.store import runs
from wallprobe.store.manifest import Stopwatch, provenance, source_commit
from wallprobe.store.results import plain
from wallprobe.store.staging import sweep
from wallprobe.store.storage import discard, ensure_directory, sha256_file, write_atomic, write_json
from wallprobe.tasks.text import Text, load_text
from wallprobe.training.equilibrium.control import Watch, penalty, servo
from wallprobe.training.equilibrium.estimators import Free, TwoPhase, cross_entropy
from wallprobe.training.equilibrium.job import EqJob
from wallprobe.training.estimators.gradients import named_grads
from wallprobe.training.estimators.protocol import Batch, GradResult, make_estimator, makers
from wallprobe.training.wall.loop import CHECKPOINT, own

STATE = "state.safetensors"  # of a finished run or a snapshot: what a warm start needs
TRANSFORMER_ACT = "gelu_new"
WIDE = 256  # from this width on a training takes all threads
BETAS = (0.9, 0.95)
VAL_BATCH = 64
ROW = ("step", "val", "val_raw", "res", "lam", "skips", "excursions", "lr", "cos_task_jac")


@dataclass(frozen=True)
class Progress:
    """What a callback is told after every evaluation and checkpoint."""

    job: EqJob
    step: int
    val: float
    res: float
    lam: float


class Trainer:
    """The state of one training."""

    def __init__(self, job: EqJob, folder: Path, text: Text, root: Path | None) -> None:
        self.folder, self.text, self.root = folder, text, root
        recipe = replace(job.recipe, model=replace(job.recipe.model, d_vocab=len(text.vocabulary)))
        self.job, self.recipe, self.limits = job, recipe, recipe.control
        self.model: Any = build(job, recipe.model)
        self.named = dict(self.model.named_parameters())
        self.estimator: Any = make_estimator(job.method, self.model, job.seed, **dict(job.options)) if job.fixed_point else Backward()
        if job.fixed_point and not isinstance(self.estimator, TwoPhase):
            raise ConfigError(f"estimator {job.method} has no free phase to gate; give one such as eqprop, bptt or implicit")
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=recipe.lr, betas=BETAS, weight_decay=0.0, fused=True)
        self.average = {name: value.detach().clone() for name, value in self.named.items()}
        self.best = {name: value.detach().clone() for name, value in self.named.items()}
        self.step, self.lam, self.watch = -recipe.prewarm, min(self.limits.most, max(self.limits.floor, self.limits.start)), Watch()
        self.rows: list[dict[str, Any]] = []
        self.series: dict[str, list[float]] = {"res": [], "lam": [], "skipped": [], "cos_task_jac": [], "loss": []}
        self.seconds, self.cos, self.age = 0.0, math.nan, 0
        self.val_x, self.val_y = text.held_out(recipe.val_windows, recipe.model.n_ctx)

    def batch(self) -> Batch:
        """This step's windows."""
        labels: tuple[str | int, ...] = (self.job.seed, *([self.job.warm] if self.job.warm else []), self.step)
        return Batch(*self.text.batch(self.recipe.batch, self.recipe.model.n_ctx, *labels))

    def advance(self) -> None:
        """One step."""
        free, found = None, None
        batch, prewarming = self.batch(), self.step < 0
        if self.job.fixed_point:
            free = self.estimator.free(self.model, batch)
            valid = not self.job.gated or free.relaxed.res < self.limits.gate
            if valid and not prewarming:
                found = self.estimator.gradient(self.model, batch, free)
                if self.recipe.probe and self.watch.first_valid is None:
                    exact = make_estimator("bptt", self.model, self.job.seed)(self.model, batch)
                    self.watch.first_cos = _cosine(*({k: v for k, v in g.grads.items() if k.startswith("blocks.")} for g in (found, exact)))
        else:
            found = self.estimator(self.model, batch)
        grads = {} if found is None else found.grads
        if free is not None:
            grads = self._with_penalty(grads, free)
        self._update(grads, prewarming)
        res = 0.0 if free is None else free.relaxed.res
        if free is not None:
            self.lam = servo(self.lam, res, self.limits)
        self._note(res, found, prewarming)
        self.step += 1

    def _with_penalty(self, grads: dict[str, Tensor], free: Free) -> dict[str, Tensor]:
        """Plus lambda times the contraction penalty's."""
        draws = generator(self.job.seed, "penalty", self.step)
        pulled = named_grads(self.model, self.lam * self.limits.unit * penalty(self.model, free.relaxed.z, draws))
        self.cos = _cosine(grads, pulled) if grads else math.nan
        return {
            name: grads[name] + pulled[name] if name in grads and name in pulled else grads.get(name, pulled.get(name))  # type: ignore[misc]
            for name in self.named
            if name in grads or name in pulled
        }

    def _update(self, grads: dict[str, Tensor], prewarming: bool) -> None:
        """Clip, AdamW, average. A parameter that no gradient reaches gets zero, as in a gated step."""
        for name, parameter in self.named.items():
            grad = grads.get(name)
            parameter.grad = torch.zeros_like(parameter) if grad is None else grad
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.lr if prewarming else self.rate()
        self.optimiser.step()
        keep = min(self.recipe.pema, (1 + self.age) / (10 + self.age))
        self.age += not prewarming
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), list(self.named.values()), 1 - keep)

    def _note(self, res: float, found: GradResult | None, prewarming: bool) -> None:
        loss = math.nan if found is None else float(found.loss)
        whole = math.isfinite(res) and (found is None or math.isfinite(loss))
        if prewarming:
            self.watch.status = self.watch.status if whole else "diverged"
            return
        self.watch.see(self.step, res if whole else math.inf, found is None, self.limits)
        told = {"res": res, "lam": self.lam, "skipped": float(found is None), "cos_task_jac": self.cos, "loss": loss}
        for name, value in told.items():
            self.series[name].append(value)

    def rate(self) -> float:
        """This step's learning rate."""
        return self.recipe.lr * min(1.0, (self.step + 1) / max(1, self.recipe.warmup))

    def evaluate(self) -> None:
        """Validation loss of the average and of the parameters as they are."""
        raw = self.validate()
        with self.as_average():
            val = self.validate()
        if self.watch.judge(self.step, val if math.isfinite(val) else math.inf):
            for name, value in self.average.items():
                self.best[name].copy_(value)
        if not self.series["res"] and self.job.fixed_point:
            res = self.estimator.free(self.model, self.batch()).relaxed.res
        else:
            res = self.series["res"][-1] if self.series["res"] else 0.0
        told = (self.step, val, raw, res, self.lam, self.watch.skips, self.watch.excursions, self.rate(), self.cos)
        self.rows.append(dict(zip(ROW, told, strict=True)))

    @torch.no_grad()
    def validate(self) -> float:
        """Mean CE over the held-out windows, nats."""
        total = 0.0
        parts = zip(torch.split(self.val_x, VAL_BATCH), torch.split(self.val_y, VAL_BATCH), strict=True)
        for x, y in parts:
            total += float(cross_entropy(self.model(x), Batch(x, y))) * len(x)
        return total / len(self.val_x)

    @contextlib.contextmanager
    def as_average(self) -> Iterator[None]:
        """The model with averaged parameters while the block runs."""
        kept = {name: value.detach().clone() for name, value in self.named.items()}
        with torch.no_grad():
            for name, value in self.named.items():
                value.copy_(self.average[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in self.named.items():
                    value.copy_(kept[name])

    def packed(self, *, final: bool = False) -> bytes:
        """Everything a resumed or a warm-started training needs; `final` leaves out how long it took: one job, one state's bytes."""
        tensors: dict[str, Tensor] = {f"p.{name}": value for name, value in self.named.items()}
        tensors |= {f"a.{name}": value for name, value in self.average.items()} | {f"b.{name}": value for name, value in self.best.items()}
        for place, state in self.optimiser.state_dict()["state"].items():
            tensors |= {f"o.{place}.{name}": value for name, value in state.items()}
        state = {"config": self.job.config(), "step": self.step, "lam": self.lam, "watch": self.watch.config(), "rows": self.rows}
        state |= {"series": self.series, "cos": self.cos, "age": self.age} | ({} if final else {"seconds": self.seconds})
        state |= {"estimator": self.estimator.state()} if hasattr(self.estimator, "state") else {}
        whole = {name: value.detach().contiguous().clone() for name, value in tensors.items()}
        return bytes(save(whole, metadata={"state": json.dumps(plain(state))}))

    def unpack(self, path: Path, *, warm: bool = False) -> None:
        """Go on from what `packed` wrote; `warm` takes tensors and lambda, and leaves step, log and watch at their beginning.

        Raises:
            CheckpointError: if it is damaged, or, unless `warm`, of another configuration.
        """
        try:
            with safe_open(path, framework="pt") as handle:
                state = json.loads(handle.metadata()["state"])
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
            if not warm and state["config"] != self.job.config():
                raise CheckpointError(f"checkpoint {path} belongs to another training; start again with --force or use another --runs")
            with torch.no_grad():
                for name, value in self.named.items():
                    value.copy_(tensors[f"p.{name}"])
                    self.average[name].copy_(tensors[f"a.{name}"])
                    self.best[name].copy_(tensors[f"b.{name}"])
            kept: dict[int, dict[str, Tensor]] = {}
            for name, value in tensors.items():
                if name.startswith("o."):
                    _, place, key = name.split(".")
                    kept.setdefault(int(place), {})[key] = value
            self.optimiser.load_state_dict(self.optimiser.state_dict() | {"state": kept})
            self.lam, self.age = min(self.limits.most, max(self.limits.floor, state["lam"])), state["age"]
            if "estimator" in state and hasattr(self.estimator, "restore"):
                self.estimator.restore(state["estimator"])
            if not warm:
                self.step, self.watch = state["step"], Watch.of(state["watch"])
                self.seconds, self.cos = state["seconds"], _number(state["cos"])
                self.rows = [{name: _number(value) for name, value in row.items()} for row in state["rows"]]
                self.series = {name: [_number(value) for value in values] for name, values in state["series"].items()}
        except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"checkpoint {path} is damaged ({error}); start again with --force") from error


def _number(value: Any) -> Any:
    """A figure as JSON holds it: null is what was no number."""
    return math.nan if value is None else value


class Backward:
    """Backpropagation through a model that gives logits: the arm without an equilibrium."""

    def __call__(self, model: nn.Module, batch: Batch) -> GradResult:
        """Gradients of the mean loss."""
        loss = cross_entropy(model(batch.x), batch)
        return GradResult(named_grads(model, loss), loss.detach())


def build(job: EqJob, cfg: Any) -> nn.Module:
    """The job's model at its initialisation."""
    if job.fixed_point:
        return PlainEquilibrium(cfg, job.seed)
    shape = transformer_shape(cfg)
    drawn = init(replace(cfg, resinit=1.0), job.seed)
    # The same draws where both have the parameter; what only the transformer has begins at its neutral value.
    extra = {"ln_final.w": torch.ones(cfg.d_model), "ln_final.b": torch.zeros(cfg.d_model), "unembed.b_U": torch.zeros(cfg.d_vocab)}
    heads = torch.zeros(cfg.n_heads, cfg.d_head)
    extra |= {f"blocks.0.attn.b_{name}": heads.clone() for name in "QKV"} | {"blocks.0.attn.b_O": torch.zeros(cfg.d_model)}
    return models.build(shape, drawn | extra).train()


def transformer_shape(cfg: Any) -> dict[str, Any]:
    """The one-layer transformer's shape, as a run's manifest has it."""
    shape = {"n_layers": 1, "d_model": cfg.d_model, "n_heads": cfg.n_heads, "n_ctx": cfg.n_ctx, "vocabulary": cfg.d_vocab}
    return shape | {"act_fn": TRANSFORMER_ACT}


def _cosine(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> float:
    """Over the parameters both have, in fp64; NaN where one is nothing."""
    names = [name for name in left if name in right]
    a, b = (torch.cat([part[name].detach().double().flatten() for name in names]) for part in (left, right))
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size > 1e-30 and math.isfinite(size) else math.nan


def train(
    job: EqJob,
    root: Path | None = None,
    *,
    force: bool = False,
    wait: float = 0.0,
    on_progress: Callable[[Progress], None] | None = None,
) -> runs.Run:
    """Train, or resume, or return the run if it is there.

    Args:
        job: what to train.
        root: run store; default as `runs.default_root`.
        force: throw away what is there of it, its snapshots too.
        wait: seconds to wait for another process that is at it.
        on_progress: called after every evaluation and checkpoint; what it raises ends the training, which can be resumed.

    Raises:
        WallprobeError: for a run of another configuration, a text that cannot be had, a store that cannot be written.
    """
    source_commit()
    check(job)
    store = root or runs.default_root()
    folder = store / job.run_name.folder
    sweep(store)
    done = finished(job, root)
    if done is not None and not force:
        return done
    text, warm = load_text(job.recipe.text), None
    if job.warm is not None and not (folder / CHECKPOINT).is_file():
        warm = _warm(job, root)
    ensure_directory(folder)
    with own(folder, wait):
        done = finished(job, root)
        if done is not None and not force:
            return done
        if force:
            for path in (folder, *(store / job.snapshot(step).folder for step in job.recipe.snapshots)):
                discard(path)
            ensure_directory(folder)
        trainer = Trainer(job, folder, text, root)
        if (folder / CHECKPOINT).is_file():
            trainer.unpack(folder / CHECKPOINT)
        elif job.warm is not None:
            trainer.unpack(warm or _warm(job, root), warm=True)
        with _threads(trainer.recipe.model.d_model):
            _to_the_end(trainer, on_progress)
            return _finish(trainer)


def check(job: EqJob) -> None:
    """Refuse a job that nothing can train, before its folder is made.

    Raises:
        UnknownNameError: for an estimator that nobody has registered.
    """
    if job.fixed_point:
        look_up("training method", job.method, makers())


@contextlib.contextmanager
def _threads(width: int) -> Iterator[None]:
    """One thread for narrow models: two trainings side by side do more so, and the bytes do not depend on how many there are."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if width < WIDE else before)
        yield
    finally:
        torch.set_num_threads(before)


def _warm(job: EqJob, root: Path | None) -> Path:
    """The state a job goes on from."""
    found = runs.resolve_run(str(job.warm), root)
    found.verify()
    path = found.path / STATE
    if not path.is_file():
        raise CheckpointError(f"run {job.warm} keeps no training state ({STATE}); give an equilibrium run or a snapshot of one")
    return path


def _to_the_end(trainer: Trainer, on_progress: Callable[[Progress], None] | None) -> None:
    recipe, job = trainer.recipe, trainer.job
    while True:
        step = trainer.step
        due = step >= 0 and (step % recipe.eval_every == 0 or step in recipe.snapshots or step == recipe.steps)
        if due and (not trainer.rows or trainer.rows[-1]["step"] < step):
            began = time.perf_counter()
            trainer.evaluate()
            trainer.seconds += time.perf_counter() - began
            if step in recipe.snapshots:
                _keep(trainer)
            if on_progress is not None:
                row = trainer.rows[-1]
                on_progress(Progress(job, step, row["val"], row["res"], row["lam"]))
        if step >= recipe.steps or trainer.watch.status != "running":
            return
        began = time.perf_counter()
        trainer.advance()
        trainer.seconds += time.perf_counter() - began
        if trainer.step % recipe.checkpoint_every == 0 and trainer.step < recipe.steps:
            write_atomic(trainer.folder / CHECKPOINT, trainer.packed(), trainer.folder.parent)


def _keep(trainer: Trainer) -> None:
    """A snapshot: the parameters as they are, as a run of its own, with the training's state beside them."""
    name = trainer.job.snapshot(trainer.step)
    store = trainer.folder.parent
    _write(trainer, store / name.folder, name, trainer.named, f"as they are at step {trainer.step}")


def _finish(trainer: Trainer) -> runs.Run:
    """The run: the average at the best validation loss, and the last state for whoever goes on."""
    watch = trainer.watch
    if watch.status == "running":
        watch.status = "done" if watch.lodged_at is None else "lodged"
    if not trainer.rows or trainer.rows[-1]["step"] < trainer.step:
        trainer.evaluate()
    what = f"average (pema {trainer.recipe.pema:g}) at step {watch.best_step}, the best"
    run = _write(trainer, trainer.folder, trainer.job.run_name, trainer.best, what)
    (trainer.folder / CHECKPOINT).unlink(missing_ok=True)
    return run


def _write(trainer: Trainer, folder: Path, name: runs.RunName, weights: Mapping[str, Tensor], what: str) -> runs.Run:
    """Weights, state, and last the manifest, which makes them a run."""
    job, watch, last, store = trainer.job, trainer.watch, trainer.rows[-1], folder.parent
    ensure_directory(folder)
    write_atomic(folder / runs.WEIGHTS, save({key: value.detach().contiguous().clone() for key, value in weights.items()}), store)
    write_atomic(folder / STATE, trainer.packed(final=True), store)
    cfg = trainer.recipe.model
    manifest = provenance(
        config=job.config(),
        device="cpu",
        dtype="training float32, residuals float64",
        watch=Stopwatch(),
        kind=runs.EQUILIBRIUM if job.fixed_point else runs.RUN,
        run=name.condition,
        condition=name.condition,
        seed=job.seed,
        steps=trainer.step,
        weights=what,
        shape=cfg.shape() if job.fixed_point else transformer_shape(cfg),
        task=trainer.text.config(),
        parameters=sum(value.numel() for value in weights.values()),
        weight_hash=sha256_file(folder / runs.WEIGHTS),
        weight_bytes=(folder / runs.WEIGHTS).stat().st_size,
        weight_processing="none",
        method=job.method,
        status=watch.status,
        val=last["val"],
        val_raw=last["val_raw"],
        res=last["res"] if job.fixed_point else None,
        lam=trainer.lam if job.fixed_point else None,
        best_val=watch.best if math.isfinite(watch.best) else None,
        best_step=watch.best_step,
        residuals=watch.config(),
        log=trainer.rows,
        series=trainer.series,
    )
    manifest["wall_time_s"] = round(trainer.seconds, 1)
    write_json(folder / runs.MANIFEST, plain(manifest), store)
    return runs.open_run(folder)


def finished(job: EqJob, root: Path | None = None) -> runs.Run | None:
    """The job's run, None if it is not there.

    Raises:
        CheckpointError: if a run of that name is of another configuration, or damaged.
    """
    from wallprobe.store import schema

    folder = (root or runs.default_root()) / job.run_name.folder
    if not (folder / runs.MANIFEST).is_file():
        return None
    if runs.read_manifest(folder).get("config") != job.config():
        raise CheckpointError(f"{folder} holds another training; use --force to replace it or another --runs folder")
    run = runs.open_run(folder)
    try:
        schema.check(schema.TrainedManifest, run.manifest)
    except StoreError as error:
        raise CheckpointError(f"{folder / runs.MANIFEST} does not tell how it was trained ({error}); use --force to replace it") from error
    return run


def at(job: EqJob, root: Path | None = None) -> int:
    """Steps that are stored of a job; 0 before its first checkpoint."""
    folder = (root or runs.default_root()) / job.run_name.folder
    if (folder / runs.MANIFEST).is_file():
        return job.recipe.steps
    try:
        with safe_open(folder / CHECKPOINT, framework="pt") as handle:
            return max(0, int(json.loads(handle.metadata()["state"])["step"]))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return 0


def restore_raw(run: runs.Run) -> dict[str, Tensor]:
    """The parameters as they were at the end of a run's training, from its stored state."""
    with safe_open(run.path / STATE, framework="pt") as handle:
        return {name[2:]: handle.get_tensor(name) for name in handle.keys() if name.startswith("p.")}  # noqa: SIM118
