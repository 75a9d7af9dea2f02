"""What every head of a decoder looks at: entropy, shares of chosen tokens, mean distance, and induction on repeated random tokens.

The first query of a text has one key and is left out. Beside each figure stands that of uniform causal attention on the same texts;
beside the induction score (Olsson et al. 2022, arXiv:2209.11895) the same offset on random tokens that do not repeat.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe import models, stats
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.findings import foremost, rounding, side
from wallprobe.hooks.attach import cache, gathering
from wallprobe.hooks.attach.prompt_sets import PromptSet
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset

KIND = "attention_heads"
# name -> units, what it is
STATISTICS: Mapping[str, tuple[str, str]] = {
    "entropy": ("nats", "entropy of a query's attention over its keys"),
    "first": ("probability", "attention to the first token"),
    "itself": ("probability", "attention to the token itself"),
    "previous": ("probability", "attention to the token before"),
    "distance": ("tokens", "mean distance from a query to what it attends to"),
}
REPEATS, REPEATED = 24, 25  # sequences of random tokens, and tokens that are said twice in each
TOLERANCE = 1e-3  # by which a query's attention may miss 1 in its sum


def statistics(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head statistic"]:
    """Every statistic of `STATISTICS`, mean over the queries but the first (fp64).

    Args:
        pattern: attention, each row a distribution over the keys up to the query.
    """
    rows = pattern[:, :, 1:].double()
    length = pattern.shape[-1]
    keys = torch.arange(length, device=pattern.device)
    queries = keys[1:, None]
    found = [
        -torch.special.xlogy(rows, rows).sum(-1),
        rows[..., 0],
        rows.gather(-1, queries.expand(*rows.shape[:2], -1, 1))[..., 0],
        rows.gather(-1, (queries - 1).expand(*rows.shape[:2], -1, 1))[..., 0],
        (rows * (queries - keys).clamp(min=0)).sum(-1),
    ]
    return torch.stack([one.mean(-1) for one in found], dim=-1)


def uniform(length: int) -> Float[Tensor, " statistic"]:
    """The statistics of uniform causal attention on a text of that length."""
    even = torch.ones(length, length, dtype=torch.float64).tril()
    return statistics((even / even.sum(-1, keepdim=True))[None, None])[0, 0]


def heads(
    loaded: models.Loaded,
    prompts: PromptSet,
    *,
    seed: int = 0,
    device: str = "cpu",
    follow: gathering.Follow = gathering.silent,
) -> Result:
    """Statistics of all heads of all layers.

    Args:
        loaded: the model.
        prompts: texts of any lengths; those of one token are left out.
        seed: of the random tokens and of the bootstrap.
        device: of the model, for the manifest.
        follow: told (texts done, of all).

    Returns:
        Result of kind "attention_heads", table over layer x head; means over texts with 95 % intervals over them.

    Raises:
        ConfigError: if no text has two tokens.
        InstrumentError: if a pattern's hook does not fire once, or its rows are no distributions.
    """
    watch = Stopwatch()
    rows = [row for row in prompts.tokens if len(row) > 1]
    if not rows:
        raise ConfigError(f"no prompt of {prompts.name} has two tokens; give longer ones")
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(loaded.n_layers)]
    found: dict[int, Tensor] = {}
    off = 0.0
    for some, tokens in gathering.by_length(rows):
        seen, worst = _read(loaded, tokens, names, statistics)
        found |= dict(zip(some, seen.unbind(1), strict=True))
        off = max(off, worst)
        follow(len(found), len(rows))
    per_text = torch.stack([found[number] for number in range(len(rows))])  # text layer head statistic
    even = torch.stack([uniform(len(row)) for row in rows]).mean(0)
    induction = _induction(loaded, names, seed)
    data = _arrays(loaded, prompts, per_text, even, induction, seed)
    manifest = provenance(
        config={
            "model": loaded.name,
            "weight_hash": loaded.weight_hash,
            "prompts": prompts.name,
            "data_hash": prompts.data_hash,
            "seed": seed,
        },
        device=device,
        dtype="float32 model, float64 statistics",
        watch=watch,
        subject=loaded.name,
        weight_hash=loaded.weight_hash,
        weight_processing=loaded.processing,
        seeds={"random tokens": seed, "prompts": prompts.seed},
    )
    return Result(KIND, data, ("layer", "head"), _summary(loaded, prompts, data, len(rows), off, induction, seed), manifest)


def _read(loaded: models.Loaded, tokens: Int[Tensor, "batch index"], names: list[str], part: Any) -> tuple[Tensor, float]:
    """What `part` makes of each layer's pattern, stacked over layers, and by how much rows miss 1 in their sums.

    Raises:
        InstrumentError: if it is more than `TOLERANCE`.
    """
    missed: list[float] = []

    def reduced(pattern: Tensor) -> Tensor:
        missed.append(float((pattern.sum(-1) - 1).abs().max()))
        made: Tensor = part(pattern)
        return made

    fired: dict[str, Tensor] = {}
    cache.run(loaded, tokens, {name: cache.recorder(fired, name, reduced) for name in names}, stop_at_layer=cache.layers_needed(names))
    cache.check_fired(loaded, names, fired)
    if not max(missed) <= TOLERANCE:
        raise InstrumentError(f"attention patterns of {loaded.name} miss 1 by {max(missed):.1e} in their sum over keys")
    return torch.stack([fired[name] for name in names]), max(missed)


def _induction(loaded: models.Loaded, names: list[str], seed: int) -> tuple[Tensor, Tensor] | None:
    """For each sequence, layer and head: attention from a token's second occurrence to what followed the first, and to the same
    offset where nothing repeats. None for a model that reads too few tokens or knows too few."""
    bounds = models.limits(loaded)
    size = min(REPEATED, bounds.context // 2)
    if size < 2 or bounds.vocabulary < 4:
        return None
    rng = generator(seed, "repeated tokens")
    drawn = torch.randint(bounds.vocabulary, (REPEATS, 2 * size), generator=rng)

    def offset(pattern: Tensor) -> Tensor:
        queries = torch.arange(size, 2 * size, device=pattern.device)
        return pattern[:, :, queries, queries - size + 1].double().mean(-1)

    repeated, _ = _read(loaded, torch.cat([drawn[:, :size]] * 2, dim=1), names, offset)
    fresh, _ = _read(loaded, drawn, names, offset)
    return repeated.transpose(0, 1), fresh.transpose(0, 1)


def _arrays(
    loaded: models.Loaded,
    prompts: PromptSet,
    per_text: Float[Tensor, "text layer head statistic"],
    even: Float[Tensor, " statistic"],
    induction: tuple[Tensor, Tensor] | None,
    seed: int,
) -> Any:
    dims, shape = ("layer", "head"), per_text.shape[1:3]
    variables: dict[str, tuple[tuple[str, ...], Any, str, str]] = {}

    def add(name: str, values: Float[Tensor, "sample layer head"], units: str, words: str) -> None:
        weights = stats.resamples(len(values), generator(seed, "heads bootstrap", len(values)))
        low, high = stats.interval(weights @ values.flatten(1))
        for end, figure in zip(("", "_low", "_high"), (values.mean(0), low.reshape(shape), high.reshape(shape)), strict=True):
            variables[f"{name}{end}"] = (dims, figure.numpy(), units, words)

    for place, (name, (units, words)) in enumerate(STATISTICS.items()):
        add(name, per_text[..., place], units, f"{words}, mean over queries and prompts")
        same = np.full(shape, float(even[place]))
        variables[f"{name}_uniform"] = (dims, same, units, f"{words}: of uniform causal attention")
    if induction is not None:
        repeated, fresh = induction
        add("induction", repeated, "probability", "attention from a random token's second occurrence to what followed the first")
        add("induction_control", fresh, "probability", "attention to the same offset where nothing repeats")
        add("induction_excess", repeated - fresh, "probability", "induction score minus its control")
    coords = {"layer": list(range(shape[0])), "head": list(range(shape[1]))}
    return dataset(coords, variables, model=loaded.name, prompts=prompts.name)


def _summary(
    loaded: models.Loaded, prompts: PromptSet, data: Any, texts: int, off: float, induction: tuple[Tensor, Tensor] | None, seed: int
) -> dict[str, Any]:
    summary: dict[str, Any] = {"model": loaded.name, "prompts": prompts.name, "n_prompts": texts}
    summary |= {"n_layers": data.sizes["layer"], "n_heads": data.sizes["head"], "sum_error": off}
    for name in STATISTICS:
        summary |= {f"{name}_mean": float(data[name].mean()), f"{name}_uniform": float(data[f"{name}_uniform"][0, 0])}
    told = "; no induction score, the model reads too few tokens"
    summary |= dict.fromkeys(("induction_layer", "induction_head", "induction", "induction_control"))
    if induction is not None:
        half = len(induction[0]) // 2  # the head is chosen on one half and scored on the other: the best of many is flattered
        excess = induction[0] - induction[1]
        layer, head = divmod(foremost(excess[:half].mean(0).flatten().tolist(), rounding(1.0)) or 0, excess.shape[2])
        score, control = (float(part[half:, layer, head].mean()) for part in induction)
        summary |= {"induction_layer": layer, "induction_head": head, "induction": score, "induction_control": control}
        low, high = stats.interval(stats.resamples(len(excess) - half, generator(seed, "induction")) @ excess[half:, layer, head])
        if side(score, control, (float(low), float(high)), rounding(1.0)) == "above":
            told = f"; the strongest induction score is head {layer}.{head}'s ({score:.2f}, without repetition {control:.2f})"
        else:
            told = "; no head attends to what followed a repeated token more than to that offset anyway"
    return summary | {
        "finding": f"{loaded.name} on {prompts.name}: heads rest {summary['first_mean']:.2f} of their attention on the first token "
        f"(uniform attention {summary['first_uniform']:.2f}) and {summary['previous_mean']:.2f} on the token before "
        f"({summary['previous_uniform']:.2f}){told}."
    }
