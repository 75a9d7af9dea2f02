"""Time to the wall: from an empty folder to c0 with trained MAE <= 0.020 bits and wall ratio >= 76, against the published training.

    python benchmarks/time_to_wall.py [--seeds 42,1337,2024] [--threads 2] [--preset small] [--steps N] [--continuations N] [--json FILE]

Each seed is a process of its own with an empty run store and an empty compiler cache, so that importing and compiling count. Beside
it, in the same run and on as many threads, one step of the published implementation is timed, before and after every seed, for other
people's work comes and goes on a shared machine (HookedTransformer, 6 x 192, batch 64, 16 tokens, AdamW, fp32, eager; the mean of the
two medians); the published training is 150,000 of them.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from wallprobe import models
from wallprobe.rng import generator
from wallprobe.store.results import load_result
from wallprobe.store.runs import EVALUATION, find_run
from wallprobe.store.storage import read_json
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.training.wall import lean
from wallprobe.training.wall.recipes import get_recipe

PUBLISHED_STEPS = 150_000
TARGET_MAE, TARGET_RATIO = 0.020, 76.0
CAPTION = (
    "Seconds with imports, compiling and evaluation. Faster than what the published training takes here; '-' where the wall is not reached."
)
TRAIN = """
import json, sys, torch
from dataclasses import replace
from pathlib import Path
from wallprobe.training.wall.compiler import wants_compile
from wallprobe.training.wall.conditions import get_condition
from wallprobe.training.wall.evaluate import evaluate
from wallprobe.training.wall.jobs import Job
from wallprobe.training.wall.loop import train
from wallprobe.training.wall.recipes import get_recipe
root, preset, seed, threads, changes = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), json.loads(sys.argv[5])
torch.set_num_threads(threads)
run = train(Job(get_condition("c0"), replace(get_recipe(preset), **changes), seed), root, compile=wants_compile("auto"))
evaluate(run).save_at(run.path / "eval")
"""


def main() -> None:
    """Train, evaluate, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="42")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--preset", default="small")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--continuations", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    changes = {name: getattr(options, name) for name in ("steps", "continuations") if getattr(options, name) is not None}
    recipe = replace(get_recipe(options.preset), **changes)
    console = Console()
    console.print(f"recipe {json.dumps(recipe.config())}, {options.threads} threads", soft_wrap=True)
    steps, records = [published_step(options.threads)], []
    for seed in options.seeds.split(","):
        made = record(int(seed), options.preset, options.threads, changes)
        steps.append(published_step(options.threads))
        made["published_step"] = statistics.mean(steps[-2:])
        reached = made["trained_mae"] <= TARGET_MAE and made["wall_ratio"] >= TARGET_RATIO
        made["speedup_vs_published"] = PUBLISHED_STEPS * made["published_step"] / made["seconds"] if reached else None
        records.append(made)
    console.print(table_of(records))
    for row in records:
        curve = row["curve"][:: max(1, len(row["curve"]) // 12)]
        points = "  ".join(f"{point['step']}: {point['cross_entropy']:.3f}" for point in curve)
        console.print(f"cross-entropy by step, seed {row['seed']} (nats): {points}", soft_wrap=True)
    if len(records) > 1:
        for name in ("seconds", "trained_mae", "wall_ratio", "speedup_vs_published"):
            values = [row[name] for row in records if row[name] is not None]
            if len(values) < 2:
                continue
            console.print(f"{name}: mean {statistics.mean(values):.4g}, standard deviation over seeds {statistics.stdev(values):.2g}")
    if options.json is not None:
        options.json.write_text(json.dumps({"recipe": recipe.config(), "threads": options.threads, "records": records}, indent=1))


def table_of(records: list[dict[str, Any]]) -> Table:
    """A row for each seed."""
    table = Table(
        "seed",
        "seconds",
        "trained MAE, bits",
        "wall ratio",
        "published",
        "faster by",
        "reached",
        title="time to the wall: c0",
        caption=CAPTION,
    )
    for row in records:
        speedup = row["speedup_vs_published"]
        published = row["published_step"]
        table.add_row(
            str(row["seed"]),
            f"{row['seconds']:.0f}",
            f"{row['trained_mae']:.4f}",
            f"{row['wall_ratio']:.0f}",
            f"{1e3 * published:.0f} ms a step, {PUBLISHED_STEPS * published / 3600:.1f} h",
            f"{speedup:.0f} x" if speedup else "-",
            "yes" if speedup else "no",
        )
    return table


def record(seed: int, preset: str, threads: int, changes: dict[str, int]) -> dict[str, Any]:
    """Train c0 with one seed in a fresh process; its time, scores and loss curve."""
    with tempfile.TemporaryDirectory() as folder:
        # The precompiled headers lie beside the compiler's cache, wherever that is told to be.
        environment = os.environ | {"TMPDIR": folder, "OMP_NUM_THREADS": str(threads)}
        environment.pop("TORCHINDUCTOR_CACHE_DIR", None)
        started = time.perf_counter()
        told = f"{folder}/runs", preset, str(seed), str(threads), json.dumps(changes)
        subprocess.run([sys.executable, "-c", TRAIN, *told], check=True, env=environment)
        seconds = time.perf_counter() - started
        run = find_run(f"c0@{seed}", Path(folder) / "runs")
        summary = load_result(run.path / EVALUATION).summary
        curve = read_json(run.path / "manifest.json")["log"]
    return {
        "recipe": preset,
        "seed": seed,
        "seconds": seconds,
        "trained_mae": summary["trained_mae"],
        "wall_ratio": summary["wall_ratio"],
        "curve": curve,
    }


def published_step(threads: int, rounds: int = 15) -> float:
    """Median seconds of one optimiser step of the published implementation."""
    torch.set_num_threads(threads)
    sizes = {"n_layers": 6, "d_model": 192, "n_heads": 6, "n_ctx": 16, "vocabulary": 17}
    shape = lean.Shape(**sizes)
    model = models.build(sizes, lean.to_hooked(lean.init_params(shape, 0), shape)).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.01)
    tokens = RecurrenceTask().sample(64, generator("benchmark")).tokens
    times = []
    for turn in range(rounds + 3):
        start = time.perf_counter()
        loss = F.cross_entropy(model(tokens)[:, :5].flatten(0, 1), tokens[:, 1:6].flatten())
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if turn >= 3:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
