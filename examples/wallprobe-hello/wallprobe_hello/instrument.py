"""The instrument `hello`: does a run answer a greeting? The probability it gives to the token two back, by position.

On alternating sequences that is the rule; on noise, the control, it is a token like any other.
"""

from typing import Any

import torch

from wallprobe import models, stats
from wallprobe.errors import ConfigError
from wallprobe.hooks.registry import Instrument
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset
from wallprobe.store.runs import Run
from wallprobe.training.wall.evaluate import fresh, predict
from wallprobe_hello.task import HelloTask

SIDES = {"program": "alternating sequences", "noise": "noise sequences, the control"}


def hello(run: Run, *, sequences: int = 1000, seed: int = 0, device: str = "cpu") -> Result:
    """The mean probability of the token two back, on alternating and on noise sequences, with 95 % bootstrap intervals.

    Args:
        run: a run of the task `hello`.
        sequences: how many to draw.
        seed: of the draw and the bootstrap.
        device: torch device.

    Returns:
        Result of kind "hello", table over positions 2..T-1; the exact answer stands beside.

    Raises:
        ConfigError: for a run of another task, or so few sequences that one side has none.
    """
    watch, sample = Stopwatch(), fresh(run, sequences, seed)
    if sample.task.name != HelloTask.name:
        raise ConfigError(f"run {run.name} is of task {sample.task.name}, and instrument hello asks for hello; train one: --task hello")
    tokens, is_program = sample.drawn.tokens, sample.drawn.is_program
    if is_program.all() or not is_program.any():
        raise ConfigError(f"{sequences} sequences are too few: all drawn are of one kind; give 1000")
    echo = tokens[:, :-2, None]  # for positions 2..T-1, whose columns are 1..T-2
    said = predict(models.load_run(run, device), tokens)[:, 1:].exp().gather(-1, echo)[..., 0].double()
    due = sample.exact.predictive[:, 1:].gather(-1, echo)[..., 0]
    beyond = torch.arange(2, tokens.shape[1]) > sample.horizon
    positions, variables, summary = ("position",), dict[str, Any](), {"run": str(run.name), "horizon": sample.horizon}
    for side, what in SIDES.items():
        rows = is_program if side == "program" else ~is_program
        draws = stats.resamples(int(rows.sum()), generator(seed, "bootstrap", side)) @ said[rows]
        low, high = stats.interval(draws)
        for name, values in ((side, said[rows].mean(0)), (f"{side}_low", low), (f"{side}_high", high), (f"{side}_due", due[rows].mean(0))):
            told = "the exact answer's" if name.endswith("_due") else "the run's"
            variables[name] = (positions, values.numpy(), "probability", f"{told} probability of the token two back, {what}")
        bounds = stats.interval(draws[:, beyond].mean(1))
        summary[f"{side}_beyond"] = float(said[rows][:, beyond].mean())
        summary |= {f"{side}_beyond_{end}": float(bound) for end, bound in zip(("low", "high"), bounds, strict=True)}
        summary[f"{side}_beyond_due"] = float(due[rows][:, beyond].mean())
    summary["finding"] = (
        f"Beyond the wall, {run.name} gives the token two back {summary['program_beyond']:.2f} where the sequence alternates "
        f"(due {summary['program_beyond_due']:.2f}) and {summary['noise_beyond']:.2f} on noise (due {summary['noise_beyond_due']:.2f})."
    )
    coords = {"position": list(range(2, tokens.shape[1]))}
    manifest = provenance(
        config={"run": str(run.name), "weight_hash": run.manifest["weight_hash"], "sequences": sequences, "seed": seed},
        device=device,
        dtype="float32",
        watch=watch,
        subject=str(run.name),
        weight_hash=run.manifest["weight_hash"],
        weight_processing="none",
        seeds={"sequences": seed},
    )
    return Result("hello", dataset(coords, variables, run=str(run.name), horizon=sample.horizon), positions, summary, manifest)


HELLO = Instrument("hello", hello, "run", "whether a run of task hello answers: probability of the token two back")
