"""Attention patterns of a run on one sequence, with what the run says of each token beside the exact answer."""

import math
from typing import Any

import torch
from torch import Tensor
from xarray import Dataset

from wallprobe import models
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.hooks.attach import cache
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset
from wallprobe.store.runs import Run
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.training.wall.evaluate import predict
from wallprobe.training.wall.signals import entropy_bits

EXAMPLES = ("program", "noise")


def attention(run: Run, *, example: str = "program", tokens: tuple[int, ...] | None = None, seed: int = 0, device: str = "cpu") -> Result:
    """Every head's pattern on one sequence.

    Args:
        run: a finished run.
        example: draw a "program" or a "noise" sequence.
        tokens: this very sequence instead (3 or more tokens, at most the task's length).
        seed: of the drawn sequence.
        device: torch device.

    Returns:
        Result of kind "attention", table over layer x head x query x key.

    Raises:
        ConfigError: for tokens outside the vocabulary or of a wrong number, or another kind of example.
        InstrumentError: if a pattern does not sum to 1 over its keys.
    """
    watch = Stopwatch()
    task = RecurrenceTask.from_manifest(run.manifest["task"])
    sequence = _draw(task, example, seed) if tokens is None else _checked(task, tokens)
    loaded = models.load_run(run, device)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(loaded.n_layers)]
    patterns = _patterns(loaded, sequence, names)
    title = "given sequence" if tokens is not None else f"drawn {example}"
    data = _arrays(run, task, sequence, patterns, predict(loaded, sequence)[0], title)
    manifest = provenance(
        config={"run": str(run.name), "weight_hash": run.manifest["weight_hash"], "tokens": sequence[0].tolist()},
        device=device,
        dtype="float32",
        watch=watch,
        subject=f"{run.name} {title}",
        weight_hash=run.manifest["weight_hash"],
        weight_processing="none",
        seeds={"sequence": seed},
    )
    return Result("attention", data, ("layer", "head", "query", "key"), _summary(run, sequence, patterns, title), manifest)


def _arrays(run: Run, task: RecurrenceTask, sequence: Tensor, patterns: Tensor, log_probs: Tensor, title: str) -> Dataset:
    """The patterns, and for each token what the run and the exact answer said of it beforehand (NaN for the first)."""
    exact = task.posterior(sequence)
    said = log_probs.gather(-1, sequence[0, 1:, None])[:, 0]

    def at_tokens(values: Tensor) -> list[float]:
        return [math.nan, *values.tolist()]

    indices = list(range(sequence.shape[1]))
    return dataset(
        {"layer": list(range(patterns.shape[0])), "head": list(range(patterns.shape[1])), "query": indices, "key": indices},
        {
            "pattern": (("layer", "head", "query", "key"), patterns.numpy(), "probability", "attention from query to key"),
            "token": (("query",), sequence[0].numpy().astype("int32"), "token", "the sequence"),
            "token_log_prob": (("query",), at_tokens(said), "nats", "log-probability the run gave this token beforehand"),
            "entropy_model": (("query",), at_tokens(entropy_bits(log_probs)), "bits", "entropy of the run's prediction of this token"),
            "entropy_exact": (("query",), at_tokens(exact.entropy[0]), "bits", "entropy of the exact prediction of this token"),
        },
        run=str(run.name),
        horizon=int(run.manifest["horizon"]),
        example=title,
        modulus=task.modulus,
    )


def _summary(run: Run, sequence: Tensor, patterns: Tensor, title: str) -> dict[str, Any]:
    """How much attention rests on the first token, beside what uniform causal attention would put there (first query left out)."""
    length = sequence.shape[1]
    first = float(patterns[:, :, 1:, 0].mean())
    uniform = sum(1 / (query + 1) for query in range(1, length)) / (length - 1)
    return {
        "run": str(run.name),
        "example": title,
        "tokens": " ".join(str(token) for token in sequence[0].tolist()),
        "n_layers": patterns.shape[0],
        "n_heads": patterns.shape[1],
        "attention_to_first": first,
        "uniform_attention_to_first": uniform,
        "finding": f"{run.name} on a {title} rests {first:.2f} of its attention on the first token; "
        f"uniform attention would put {uniform:.2f} there.",
    }


def _patterns(loaded: models.Loaded, sequence: Tensor, names: list[str]) -> Tensor:
    """Patterns [layer, head, query, key], checked to be distributions over keys."""
    found: dict[str, Tensor] = {}
    cache.run(loaded, sequence, {name: cache.recorder(found, name, lambda value: value[0]) for name in names})
    cache.check_fired(loaded, names, found)
    patterns = torch.stack([found[name] for name in names])
    off = float((patterns.sum(-1) - 1).abs().max())
    if off > 1e-5:
        raise InstrumentError(f"attention patterns of {loaded.name} miss 1 by {off:.1e} in their sum over keys")
    return patterns


def _draw(task: RecurrenceTask, example: str, seed: int) -> Tensor:
    if example not in EXAMPLES:
        raise ConfigError(f"example '{example}' is none of {', '.join(EXAMPLES)}")
    rng = generator(seed, "attention example")
    if example == "noise":
        return torch.randint(task.modulus, (1, task.length), generator=rng)
    drawn = task.sample_programs(64, rng)
    # One whose rule can be seen: neither constant from the start nor constant later on.
    varied = (drawn.tokens[:, 0] != drawn.tokens[:, 1]) & (drawn.slope != 0)
    return drawn.tokens[varied][:1]


def _checked(task: RecurrenceTask, tokens: tuple[int, ...]) -> Tensor:
    if not 3 <= len(tokens) <= task.length:
        raise ConfigError(f"{len(tokens)} tokens given; give 3 to {task.length}")
    wrong = [token for token in tokens if not 0 <= token < task.modulus]
    if wrong:
        raise ConfigError(f"token {wrong[0]} is outside the vocabulary 0..{task.modulus - 1}")
    return torch.tensor([tokens])
