"""What decides a training's bytes: condition, recipe, seed, task, and the network it learns from, if any."""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from wallprobe.errors import ConfigError, UnknownNameError, look_up
from wallprobe.store import runs
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.tasks.task import Task
from wallprobe.training.wall import lean
from wallprobe.training.wall.conditions import Condition
from wallprobe.training.wall.recipes import Recipe
from wallprobe.training.wall.signals import routes, signals


@dataclass(frozen=True)
class Job:
    """Everything that decides a run's bytes, besides machine and library versions.

    Attributes:
        condition: what is trained.
        recipe: how.
        seed: of data, initialisation and every other draw.
        task: what the sequences are.
        teacher: run name (any seed, width or depth) or run folder to learn from instead of the condition's own teacher.
    """

    condition: Condition
    recipe: Recipe
    seed: int = runs.DEFAULT_SEED
    task: Task = field(default_factory=RecurrenceTask)
    teacher: str | None = None

    def __post_init__(self) -> None:
        look_up("signal", self.condition.signal, signals())
        look_up("route", self.condition.route, routes())

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
        if self.teacher is not None:
            config["teacher"] = self.teacher
        return dict(json.loads(json.dumps(config)))


@dataclass(frozen=True)
class Teacher:
    """A frozen network to learn from.

    Attributes:
        name: its run's name, or "untrained".
        params: its parameters.
        shape: its sizes.
        weight_hash: SHA-256 of its run's weights; None for "untrained", which the seed alone decides.
    """

    name: str
    params: lean.Params
    shape: lean.Shape
    weight_hash: str | None = None


def teacher_name(job: Job) -> str | None:
    """The run (by name, or its folder) that the job learns from; None if it learns from none, or from an untrained network."""
    source = job.teacher or job.condition.teacher
    if source is None or (source == "untrained" and job.teacher is None):
        return None
    return source if job.teacher or "@" in source else str(runs.RunName(source + job.task.suffix, job.seed))


def load_teacher(job: Job, root: Path | None = None) -> Teacher | None:
    """The run the job learns from; None if it learns from none, or from an untrained network.

    Raises:
        ConfigError: if that run is not there or cannot teach this job, or if a teacher is given to a condition without one.
        CheckpointError: if it is damaged.
    """
    condition = job.condition
    if job.teacher is not None and condition.signal != "teacher":
        raise ConfigError(f"condition {condition.name} learns from no teacher, but {job.teacher} was given; teachers are for c4")
    name = teacher_name(job)
    if name is None:
        return None
    try:
        run = runs.resolve_run(name, root)
    except UnknownNameError as error:
        raise ConfigError(
            f"condition {condition.name} learns from run {name}, which is not there; train it first: wallprobe train {name}"
        ) from error
    run.verify()
    shape = lean.Shape(**{field.name: run.manifest["shape"][field.name] for field in fields(lean.Shape)})
    if job.teacher is None and shape != job.shape:
        raise ConfigError(
            f"teacher {name} has shape {run.manifest['shape']}, this training {asdict(job.shape)}; train {name} with the same preset"
        )
    if shape.vocabulary != job.shape.vocabulary or shape.n_ctx < job.shape.n_ctx:
        raise ConfigError(
            f"teacher {name} knows {shape.vocabulary} tokens and {shape.n_ctx} indices, this training has {job.shape.vocabulary} and "
            f"{job.shape.n_ctx}; give a teacher of the same task"
        )
    return Teacher(str(run.name), lean.from_hooked(run.tensors(), shape), shape, run.manifest["weight_hash"])
