"""`wallprobe train`: make runs."""

from typing import Annotated

import typer

from wallprobe.cli import common


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
    from wallprobe.training.evaluate import evaluate
    from wallprobe.training.loop import Job
    from wallprobe.training.loop import train as train_run
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
        with common.progress() as view:
            bar = view.add_task(f"train {job.name}", total=recipe.steps)
            run = train_run(
                job,
                runs,
                device=place,
                compile=compiled,
                force=force,
                on_progress=lambda at, bar=bar, view=view, job=job: view.update(  # type: ignore[misc]
                    bar, completed=at.step, description=f"train {job.name}  CE {at.cross_entropy:.3f} nats  signal {at.signal:.3f}"
                ),
            )
        result = evaluate(run, device=place)
        result.save_at(run.path / "eval")
        summaries.append(
            {
                "name": str(run.name),
                "path": str(run.path),
                "steps": run.manifest["steps"],
                "wall_time_s": run.manifest["wall_time_s"],
                "weight_hash": run.manifest["weight_hash"],
                "trained_mae": result.summary["trained_mae"],
                "wall_ratio": result.summary["wall_ratio"],
            }
        )
        if not json:
            common.out().print(f"{run.path}: {run.manifest['wall_time_s']:.0f} s. {result.summary['finding']}", soft_wrap=True)
    if json:
        manifest = {"recipe": recipe.config(), "device": place, "threads": torch.get_num_threads(), "compiled": compiled}
        common.print_json({"kind": "train", "summary": summaries, "values": [], "manifest": manifest})
