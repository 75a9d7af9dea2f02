"""One optimiser step's forward and backward pass, side by side in one run: HookedTransformer against the lean pass over its parameters.

    python benchmarks/training_step.py [--batch 128] [--threads 2] [--rounds 15]

The variants take turns, so that a noisy machine hits them alike; what counts is the ratio of medians.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table

from wallprobe import models
from wallprobe.rng import generator
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.training.wall import lean


def main() -> None:
    """Time the variants and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shape = lean.Shape(n_layers=6, d_model=128, n_heads=4, n_ctx=16, vocabulary=17)
    params = {name: tensor.requires_grad_(True) for name, tensor in lean.init_params(shape, 0).items()}
    sizes = {"n_layers": 6, "d_model": 128, "n_heads": 4, "n_ctx": 16, "vocabulary": 17}
    hooked = models.build(sizes, lean.to_hooked(params, shape)).train()
    tokens = RecurrenceTask().sample(options.batch, generator("benchmark")).tokens

    def cross_entropy(logits: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(logits.float().flatten(0, 1), given[:, 1:].flatten())

    def lean_loss(given: torch.Tensor, low: bool) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            logits = lean.forward(params, given[:, :-1], shape)[0]
        return cross_entropy(logits, given)

    compiled = torch.compile(lean_loss)
    own, theirs = list(params.values()), list(hooked.parameters())
    variants: dict[str, Callable[[torch.Tensor], object]] = {
        "HookedTransformer, fp32": lambda given: torch.autograd.grad(cross_entropy(hooked(given[:, :-1]), given), theirs),
        "lean, fp32": lambda given: torch.autograd.grad(lean_loss(given, False), own),
        "lean, bf16": lambda given: torch.autograd.grad(lean_loss(given, True), own),
        "lean, bf16, compiled": lambda given: torch.autograd.grad(compiled(given, True), own),
    }
    title = f"Forward and backward, 6 x 128, batch {options.batch}, {options.threads} threads, median of {options.rounds}"
    table = Table("variant", "16 tokens, ms", "ratio", "supervised prefix (6), ms", "ratio", title=title)
    columns = {length: timed(variants, tokens[:, :length], options.rounds) for length in (16, 6)}
    base = columns[16]["HookedTransformer, fp32"]
    for name in variants:
        cells = [cell for length in (16, 6) for cell in (f"{columns[length][name]:.1f}", f"{base / columns[length][name]:.1f} x")]
        table.add_row(name, *cells)
    Console().print(table)


def timed(variants: dict[str, Callable[[torch.Tensor], object]], tokens: torch.Tensor, rounds: int) -> dict[str, float]:
    """Median milliseconds of each variant, the variants taking turns after two warm-ups."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 2):
        for name, variant in variants.items():
            start = time.perf_counter()
            variant(tokens)
            if turn >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
