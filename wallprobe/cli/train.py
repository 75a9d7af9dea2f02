"""`wallprobe train`: make runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wallprobe.cli import common

if TYPE_CHECKING:
    from wallprobe.results import Result
    from wallprobe.runs import Run
    from wallprobe.training.loop import Job, Progress

LOG_LINE = 1000  # steps


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(train)


def train(
    names: Annotated[list[str], typer.Argument(help="Conditions, or condition@seed: c0 c1 p5@7.", metavar="CONDITION...")],
    seed: Annotated[int, typer.Option(help="Seed of those given without one.")] = 42,
    preset: Annotated[str, typer.Option(help="Recipe: small (a laptop) or paper (the published one).")] = "small",
    steps: Annotated[int | None, typer.Option(help="Optimiser steps instead of the preset's.", min=1)] = None,
    modulus: Annotated[int, typer.Option(help="p of the recurrence, a prime; also the vocabulary.")] = 17,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.", min=1)] = None,
    compile: Annotated[
        str, typer.Option("--compile", help="auto, on or off: compile the step (auto: where there is a C++ compiler).")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads.", min=1)] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a run or an unfinished training of that name.")] = False,
    device: common.Device = "auto",
    runs: common.Runs = None,
    json: common.Json = False,
) -> None:
    """Train runs; run the same command again to resume an interrupted one to the same bytes."""
    import dataclasses

    import torch

    from wallprobe import models
    from wallprobe.runs import RunName
    from wallprobe.tasks.recurrence import RecurrenceTask
    from wallprobe.training.compiler import wants_compile
    from wallprobe.training.conditions import get_condition
    from wallprobe.training.loop import Job
    from wallprobe.training.recipes import get_recipe

    recipe = get_recipe(preset, steps=steps)
    if checkpoint_every is not None:
        recipe = dataclasses.replace(recipe, checkpoint_every=checkpoint_every)
    parsed = [RunName.parse(name if "@" in name else f"{name}@{seed}") for name in names]
    task = RecurrenceTask(modulus=modulus)
    jobs = [Job(get_condition(name.condition), recipe, name.seed, task) for name in parsed]
    if threads is not None:
        torch.set_num_threads(threads)
    place, compiled = models.pick_device(device), wants_compile(compile)
    summaries = []
    for job in jobs:
        run, result = _train_and_evaluate(job, runs, place, compiled, force)
        row = {"name": str(run.name), "path": str(run.path)}
        row |= {key: run.manifest[key] for key in ("steps", "wall_time_s", "weight_hash")}
        row |= {key: result.summary[key] for key in ("trained_mae", "wall_ratio")}
        summaries.append(row)
        if not json:
            common.out().print(f"{run.path}: {row['wall_time_s']:.0f} s. {result.summary['finding']}", soft_wrap=True)
    if json:
        manifest = {"recipe": recipe.config(), "device": place, "threads": torch.get_num_threads(), "compiled": compiled}
        common.print_json({"kind": "train", "summary": summaries, "values": [], "manifest": manifest})


def _train_and_evaluate(job: "Job", root: Path | None, device: str, compiled: bool, force: bool) -> "tuple[Run, Result]":
    """One run under a progress bar, and its evaluation, stored beside it."""
    from wallprobe.training.evaluate import evaluate
    from wallprobe.training.loop import train as train_run

    with common.progress() as view:
        bar = view.add_task(f"train {job.name}", total=job.recipe.steps)

        def follow(at: "Progress") -> None:
            told = f"train {job.name}  CE {at.cross_entropy:.3f} nats  signal {at.signal:.3f}"
            view.update(bar, completed=at.step, description=told)
            # A log file gets a line now and then instead of the bar.
            if not view.console.is_terminal and at.step % LOG_LINE == 0:
                view.console.print(f"{told}  step {at.step} of {at.steps}", soft_wrap=True)

        run = train_run(job, root, device=device, compile=compiled, force=force, on_progress=follow)
    result = evaluate(run, device=device)
    result.save_at(run.path / "eval")
    return run, result
