"""`wallprobe train`: make runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wallprobe.cli import common, options, sweeping

if TYPE_CHECKING:
    from wallprobe.training.wall.jobs import Job
    from wallprobe.training.wall.loop import Progress
    from wallprobe.training.wall.work import Done

LOG_LINE = 1000  # steps


def train(
    names: Annotated[
        list[str] | None, typer.Argument(help="Conditions, or condition@seed: c0 c1 p5@7.", metavar="[CONDITION...]", show_default=False)
    ] = None,
    matrix: Annotated[str | None, typer.Option(help="A set of conditions: wall (the thirteen), axes, all.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of those given without one.", show_default="42")] = None,
    seeds: options.SeedsIfAny = None,
    jobs: options.Jobs = None,
    engine: options.Engine = "local",
    preset: Annotated[str, typer.Option(help="Recipe: small (a laptop), paper (the published one), tiny (seconds).")] = "small",
    steps: options.Steps = None,
    task: Annotated[
        str, typer.Option(help="What the sequences are: recurrence, quadratic, ..., with fields if need be (length:length=8).")
    ] = "recurrence",
    modulus: Annotated[int | None, typer.Option(help="p of the task, a prime.", show_default="17")] = None,
    checkpoint_every: Annotated[int | None, typer.Option(help="Steps between checkpoints.", min=1)] = None,
    snapshot_every: Annotated[
        int | None, typer.Option(help="Steps between weights that stay with the run (wallprobe gains RUN --over-training).", min=1)
    ] = None,
    compile: Annotated[
        str, typer.Option("--compile", help="auto, on or off: compile the step (auto: where there is a C++ compiler).")
    ] = "auto",
    threads: Annotated[int | None, typer.Option(help="CPU threads of each run.", show_default="cores // runs at once", min=1)] = None,
    force: options.Force = False,
    device: options.Device = "auto",
    runs: options.Runs = None,
    json: options.Json = False,
) -> None:
    """Train and evaluate runs, several side by side; run the same command again to go on after an interruption, to the same bytes."""
    import torch

    from wallprobe import models
    from wallprobe.store.runs import default_root
    from wallprobe.tasks.registry import change, parse_task
    from wallprobe.training.wall.compiler import wants_compile
    from wallprobe.training.wall.recipes import get_recipe

    recipe = get_recipe(preset, steps=steps, checkpoint_every=checkpoint_every, snapshot_every=snapshot_every)
    wanted = parse_task(task) if modulus is None else change(parse_task(task), modulus=modulus)
    todo = sweeping.chosen_jobs(sweeping.chosen_names(names, matrix, seeds, seed), recipe, wanted)
    place, compiled = models.pick_device(device), wants_compile(compile)
    manifest: dict[str, Any]
    if len(todo) > 1 or matrix or seeds or jobs or engine != "local":
        manifest = {"recipe": recipe.config(), "matrix": matrix, "seeds": sorted({job.seed for job in todo})}
        settings: dict[str, Any] = {"workers": jobs, "threads": threads, "device": place, "compile": compiled, "force": force}
        sweeping.run_sweep(todo, runs, json=json, manifest=manifest, engine=engine, **settings)
        return
    if threads is not None:
        torch.set_num_threads(threads)
    manifest = {"recipe": recipe.config(), "device": place, "threads": torch.get_num_threads(), "compiled": compiled}
    _print_one(_train_one(todo[0], runs or default_root(), place, compiled, force), manifest if json else None)


def _print_one(done: "Done", manifest: dict[str, Any] | None) -> None:
    """One JSON object where there is a manifest for it, else the finding."""
    if manifest is None:
        seconds = done.run.manifest["wall_time_s"]
        common.out().print(f"{done.run.path}: {seconds:.0f} s. {done.summary['finding']}", soft_wrap=True)
    else:
        common.print_json({"kind": "train", "summary": [done.record()], "values": [], "manifest": manifest})


def _train_one(job: "Job", root: Path, device: str, compiled: bool, force: bool) -> "Done":
    """One run in this process, under a progress bar."""
    from wallprobe.training.wall.work import complete

    with common.progress() as view:
        bar = view.add_task(f"train {job.name}", total=job.recipe.steps)

        def follow(at: "Progress") -> None:
            told = f"train {job.name}  CE {at.cross_entropy:.3f} nats  signal {at.signal:.3f}"
            view.update(bar, completed=at.step, description=told)
            # A log file gets a line now and then instead of the bar.
            if not view.console.is_terminal and at.step % LOG_LINE == 0:
                view.console.print(f"{told}  step {at.step} of {at.steps}", soft_wrap=True)

        return complete(job, root, device=device, compile=compiled, force=force, on_progress=follow)
