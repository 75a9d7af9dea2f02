"""Where a training step's time goes: data and signal, forward and backward, optimiser, and the rest, which is Python and the log.

    python benchmarks/step_overhead.py [--conditions c0 c1] [--steps 256] [--threads 2] [--eager | --compiled] [--cpu]

It runs the training loop itself, with its logging and its share of a checkpoint, and clocks the calls inside it. All but forward,
backward and optimiser is overhead: the goal is at most 5 % at preset small. On a busy machine `--cpu --threads 1` counts the
process's own seconds, which others do not lengthen.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from wallprobe.training.wall import batches, loop
from wallprobe.training.wall.conditions import get_condition
from wallprobe.training.wall.recipes import get_recipe

GOAL = 0.05
WARM_UP = 5  # steps: compilation, first touch of memory
# data: sequences, exact posterior, the signal's target. model: forward and backward pass.
PARTS = ("data", "model", "optimiser", "checkpoint", "rest")


class Clock:
    """Seconds spent inside the calls it was put around, by part; `now` tells the time."""

    def __init__(self, now: Callable[[], float]) -> None:
        self.now = now
        self.seconds = dict.fromkeys(PARTS, 0.0)

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time added to a part."""

        def timed(*positional: Any, **named: Any) -> Any:
            start = self.now()
            try:
                return function(*positional, **named)
            finally:
                self.seconds[part] += self.now() - start

        return timed


@contextmanager
def clocked(trainer: loop.Trainer, clock: Clock) -> Iterator[None]:
    """Put the clock around what a step calls; torch's own gradient is put back afterwards."""
    inner: Any = trainer
    inner._batch = clock.around("data", inner._batch)
    inner._losses = clock.around("model", inner._losses)
    inner._update = clock.around("optimiser", inner._update)
    original, torch.autograd.grad = torch.autograd.grad, clock.around("model", torch.autograd.grad)
    try:
        yield
    finally:
        torch.autograd.grad = original


def measure(condition: str, steps: int, compiled: bool, now: Callable[[], float]) -> dict[str, float]:
    """Milliseconds a step by part."""
    recipe = get_recipe("small", steps=WARM_UP + steps)
    every = recipe.checkpoint_every
    with tempfile.TemporaryDirectory() as folder:
        trainer = loop.Trainer(loop.Job(get_condition(condition), replace(recipe, checkpoint_every=10**9)), Path(folder), compile=compiled)
        for _ in range(WARM_UP):
            trainer.step()
        clock = Clock(now)
        with clocked(trainer, clock):
            start = now()
            loop._run_to_end(trainer, None)
            whole = now() - start
        start = now()
        trainer.save()
        saving = now() - start
    clock.seconds["rest"] = whole - sum(clock.seconds.values())
    clock.seconds["checkpoint"] = saving * steps / every
    return {part: 1e3 * seconds / steps for part, seconds in clock.seconds.items()}


def main() -> None:
    """Measure and print; exit with 1 if a share of overhead is above the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conditions", nargs="+", default=["c0", "c1"])
    parser.add_argument("--steps", type=int, default=4 * batches.DRAW, help="a multiple of 64, the steps whose data are drawn at once")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true", help="count the process's CPU seconds, not the clock's")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--eager", action="store_true")
    which.add_argument("--compiled", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    title = f"Milliseconds a step, preset small, threads: {options.threads}{', CPU time' if options.cpu else ''}"
    table = Table("step", *PARTS, "whole", "overhead", title=title)
    worst = 0.0
    for compiled in (False, True):
        if (compiled and options.eager) or (not compiled and options.compiled):
            continue
        for condition in options.conditions:
            parts = measure(condition, options.steps, compiled, time.process_time if options.cpu else time.perf_counter)
            whole = sum(parts.values())
            overhead = 1 - (parts["model"] + parts["optimiser"]) / whole
            worst = max(worst, overhead)
            kind = "compiled" if compiled else "eager"
            table.add_row(f"{condition}, {kind}", *(f"{parts[part]:.2f}" for part in PARTS), f"{whole:.1f}", f"{overhead:.1%}")
    Console().print(table)
    verdict = "within" if worst <= GOAL else "above"
    print(f"overhead outside forward, backward and optimiser: at most {worst:.1%} of a step, {verdict} the goal of {GOAL:.0%}")
    raise SystemExit(worst > GOAL)


if __name__ == "__main__":
    main()
