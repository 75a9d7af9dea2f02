"""Training and evaluation by name: what `wallprobe train` and `wallprobe eval` take, as functions."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from wallprobe.models import pick_device
from wallprobe.store import runs
from wallprobe.store.results import Result
from wallprobe.store.runs import Run
from wallprobe.tasks.registry import change, from_manifest, parse_task, split_name
from wallprobe.tasks.task import Task
from wallprobe.training.wall import evaluate as evaluation
from wallprobe.training.wall.compiler import wants_compile
from wallprobe.training.wall.conditions import conditions, get_condition
from wallprobe.training.wall.jobs import Job
from wallprobe.training.wall.loop import Progress
from wallprobe.training.wall.loop import train as train_job
from wallprobe.training.wall.recipes import get_recipe
from wallprobe.training.wall.work import complete


def job_of(
    name: str,
    *,
    seed: int | None = None,
    preset: str = "small",
    steps: int | None = None,
    task: str | Task = "recurrence",
    modulus: int | None = None,
    checkpoint_every: int | None = None,
    snapshot_every: int | None = None,
) -> Job:
    """The training that a name and the options of `wallprobe train` stand for.

    Raises:
        UnknownNameError, ConfigError: for a condition, preset or task that is none, or a name that disagrees with the task.
    """
    recipe = get_recipe(preset, steps=steps, checkpoint_every=checkpoint_every, snapshot_every=snapshot_every)
    wanted = parse_task(task) if isinstance(task, str) else task
    wanted = wanted if modulus is None else change(wanted, modulus=modulus)
    parsed = runs.RunName.parse(name)
    condition, own = split_name(parsed.condition, conditions(), wanted)
    return Job(get_condition(condition), recipe, parsed.seed if seed is None or "@" in name else seed, own)


def train(
    what: str | Job,
    root: Path | None = None,
    *,
    device: str = "cpu",
    compile: bool | str | None = None,
    force: bool = False,
    wait: float = 0.0,
    on_progress: Callable[[Progress], None] | None = None,
    **options: Any,
) -> Run:
    """Train a run, or resume it, or return it if it is already there with the same configuration.

    Args:
        what: a condition (`c0`, `c0@7`, `c0-quadratic`), which is trained and evaluated as `wallprobe train` does; or a Job.
        root: run store; default as `runs.default_root`.
        device: auto, or a torch device.
        compile: whether to compile the step: True, False, "auto", "on" or "off"; None for "auto" by name, and False for a Job.
        force: throw away a finished or unfinished run of the same name.
        wait: seconds to wait for another process that is training this run.
        on_progress: called every so many steps with where it is.
        options: by name: seed, preset, steps, task, modulus, checkpoint_every, snapshot_every.

    Returns:
        The finished Run.

    Raises:
        UnknownNameError, ConfigError: as `job_of`; TypeError for an option that is none.
        CheckpointError, DivergedError, BusyError, StoreError: as `loop.train`.
    """
    job = what if isinstance(what, Job) else job_of(what, **options)
    if isinstance(what, Job) and options:
        raise TypeError(f"a Job has its settings already; leave {', '.join(sorted(options))} out")
    choice = ("off" if isinstance(what, Job) else "auto") if compile is None else compile
    compiled = wants_compile(choice) if isinstance(choice, str) else choice
    place = pick_device(device)
    settings: dict[str, Any] = {"device": place, "compile": compiled, "force": force, "wait": wait, "on_progress": on_progress}
    if isinstance(what, Job):
        return train_job(job, root, **settings)
    return complete(job, root or runs.default_root(), **settings).run


def asked_task(run: Run, task: str | Task | None = None, length: int | None = None, modulus: int | None = None) -> Task:
    """The task to measure a run on: its own with what is asked for changed.

    Raises:
        UnknownNameError, ConfigError: for a task or a field that is none.
    """
    own = from_manifest(run.manifest["task"])
    wanted = own if task is None else parse_task(task, own) if isinstance(task, str) else task
    return change(wanted, **{key: value for key, value in (("length", length), ("modulus", modulus)) if value is not None})


def evaluate(
    run: str | Path | Run,
    *,
    task: str | Task | None = None,
    length: int | None = None,
    modulus: int | None = None,
    sequences: int = evaluation.SEQUENCES,
    seed: int = 0,
    device: str = "cpu",
    root: Path | None = None,
) -> Result:
    """Measure a run against the exact Bayesian answer, on fresh sequences.

    Args:
        run: a Run, or its name or folder.
        task: another task, or other fields of its own (`quadratic`, `heldout-prefix:split=held`).
        length: tokens a sequence, by default the task's.
        modulus: p of the task, by default the task's.
        sequences: how many; at least 2.
        seed: of the sequences and the bootstrap.
        device: auto, or a torch device.
        root: run store.

    Returns:
        Result of kind "eval", table by position.

    Raises:
        UnknownNameError: if there is no such run or task.
        ConfigError: as `evaluate.fresh`.
        CheckpointError: if the run is damaged.
    """
    found = run if isinstance(run, Run) else runs.resolve_run(str(run), root)
    wanted = asked_task(found, task, length, modulus)
    return evaluation.evaluate(found, task=wanted, sequences=sequences, seed=seed, device=pick_device(device))
