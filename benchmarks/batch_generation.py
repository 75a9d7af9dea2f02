"""One batch of sequences with its exact Bayesian answer, side by side in one run: the vectorised task against a loop over sequences.

    python benchmarks/batch_generation.py [--batch 64] [--length 16] [--threads 1] [--rounds 50]

The variants take turns, so that a noisy machine hits them alike, and their answers are held to each other (1e-12 in fp64).
"""

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table

from wallprobe.rng import generator
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.tasks.registry import tasks


def plain_answer(sequence: list[int], p: int, prior: float) -> list[tuple[float, list[float], float]]:
    """(class posterior, predictive, entropy) at each position, as one would write it for one sequence, without tensors."""
    answers = []
    slope = offset = None
    agrees = True
    for seen in range(1, len(sequence)):
        last = sequence[seen - 1]
        same = seen >= 2 and sequence[0] == sequence[1]
        if seen == 3 and not same:
            slope = (sequence[2] - sequence[1]) * pow(sequence[1] - sequence[0], -1, p) % p
            offset = (sequence[1] - slope * sequence[0]) % p
        if seen >= 3:
            agrees = agrees and (last == sequence[0] if same else last == (slope * sequence[seen - 2] + offset) % p)
        rules = p**2 if seen == 1 else p if seen == 2 or same else 1
        factor = rules * float(p) ** (seen - 3) if agrees else 0.0
        weight = prior * factor / (prior * factor + 1 - prior)
        forced = None
        if agrees and (same or seen >= 3):
            forced = last if same else (slope * last + offset) % p
        mass = 0.0 if forced is None else weight
        predictive = [(1 - mass) / p] * p
        if forced is not None:
            predictive[forced] += mass
        answers.append((weight, predictive, -sum(value * math.log2(value) for value in predictive if value)))
    return answers


def main() -> None:
    """Time the variants and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    task = RecurrenceTask(length=options.length)
    draws = generator("benchmark")
    compare(task, task.sample(options.batch, draws).tokens)

    def whole(dtype: torch.dtype) -> Callable[[], object]:
        return lambda: task.posterior(task.sample(options.batch, draws).tokens, dtype)

    def by_sequence() -> object:
        return [plain_answer(row, task.modulus, task.program_prior) for row in task.sample(options.batch, draws).tokens.tolist()]

    variants = {
        "draw and answer, fp64": whole(torch.float64),
        "draw and answer, fp32": whole(torch.float32),
        "draw alone": lambda: task.sample(options.batch, draws),
        "draw, answer in a Python loop": by_sequence,
    }
    times = timed(variants, options.rounds)
    slow = times["draw, answer in a Python loop"]
    size = f"{options.batch} x {options.length}, p = {task.modulus}"
    title = f"A batch of {size}; {options.threads} threads, median of {options.rounds}, torch {torch.__version__}, {platform.machine()}"
    table = Table("variant", "ms", "ratio", title=title)
    for name, value in times.items():
        table.add_row(name, f"{value:.3f}", f"{slow / value:.0f} x")
    Console().print(table)

    others = {name: kind() for name, kind in tasks().items()}
    each = {name: (lambda other=other: other.posterior(other.sample(options.batch, draws).tokens)) for name, other in others.items()}
    table = Table("task", "T", "ms", title=f"Every task at its own length, batch {options.batch}, fp64")
    for name, value in timed(each, options.rounds).items():
        table.add_row(name, str(others[name].length), f"{value:.3f}")
    Console().print(table)


def compare(task: RecurrenceTask, tokens: torch.Tensor) -> None:
    """Refuse to time two things that are not the same."""
    exact = task.posterior(tokens)
    for row, sequence in enumerate(tokens.tolist()):
        for column, (weight, predictive, entropy) in enumerate(plain_answer(sequence, task.modulus, task.program_prior)):
            expected = torch.tensor([weight, entropy, *predictive], dtype=torch.float64)
            found = torch.cat([exact.program_weight[row, column, None], exact.entropy[row, column, None], exact.predictive[row, column]])
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def timed(variants: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each variant, the variants taking turns after two warm-ups."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 2):
        for name, variant in variants.items():
            start = time.perf_counter()
            variant()
            if turn >= 2:
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


if __name__ == "__main__":
    main()
