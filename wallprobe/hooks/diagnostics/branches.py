"""How much each branch adds to the stream it reads, and what attention does with it (the equilibrium study, experiment 6).

Ratios are of mean token norms; entropy is in nats over the keys of a query, and uniform causal attention would have ln(T!)/T over
T queries. Attention logits are told by their spread over the keys of a query, which is all that the softmax sees of them.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wallprobe.hooks.attach import cache
from wallprobe.hooks.attach.subjects import Subject, real
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset
from wallprobe.training.estimators.gradients import lens_names
from wallprobe.training.estimators.protocol import Batch

WEIGHTS: Mapping[str, re.Pattern[str]] = {
    "wo": re.compile(r"\.attn\.(W_O|o\.weight)$"),
    "pj": re.compile(r"\.mlp\.(W_out|out\.weight)$"),
    "fc": re.compile(r"\.mlp\.(W_in|in\.weight)$"),
}
FIGURES = {
    "attn_xin": ("1", "mean norm of what attention adds over that of the stream it reads"),
    "ffn_xin": ("1", "mean norm of what the MLP adds over that of the stream entering the block"),
    "wo": ("Frobenius norm", "attention's output weights"),
    "pj": ("Frobenius norm", "the MLP's output weights"),
    "fc": ("Frobenius norm", "the MLP's input weights"),
    "h_attn": ("nats", "attention entropy, mean over heads and queries"),
    "h_max": ("nats", "the same of uniform causal attention"),
    "q_rms": ("1", "root mean square of queries"),
    "k_rms": ("1", "root mean square of keys"),
    "qk_rms": ("1", "root mean square of queries and keys together"),
    "attn_logit_std": ("nats", "spread of attention logits over the keys of a query, mean over queries with two or more"),
}


def measure(found: Subject, on_progress: Callable[[int, int], None] | None = None) -> dict[str, list[float]]:
    """Every figure of `FIGURES`, one a layer, over all batches; and `logit_std`, one alone.

    Raises:
        InstrumentError: if a hook does not fire exactly once.
    """
    layers = found.loaded.n_layers
    sums = [_Sums() for _ in range(layers)]
    spread, tokens = 0.0, 0
    for number, batch in enumerate(found.batches, 1):
        counted = real(found, batch)
        logits = _read(found, batch, counted, sums)
        spread += float(logits.double().std(-1)[counted].sum())
        tokens += int(counted.sum())
        if on_progress is not None:
            on_progress(number, len(found.batches))
    weights = _weights(found, layers)
    made = {name: [made[name] for made in (one.figures() for one in sums)] for name in FIGURES if name not in WEIGHTS}
    return made | weights | {"logit_std": [spread / tokens]}


class _Sums:
    """Running sums of one layer, fp64."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}

    def add(self, name: str, values: Tensor) -> None:
        """Sum and number of some values."""
        self.sums[name] = self.sums.get(name, 0.0) + float(values.double().sum())
        self.sums[f"n_{name}"] = self.sums.get(f"n_{name}", 0.0) + values.numel()

    def mean(self, name: str) -> float:
        """Their mean; NaN of none."""
        count = self.sums.get(f"n_{name}", 0.0)
        return self.sums[name] / count if count else math.nan

    def figures(self) -> dict[str, float]:
        """What `FIGURES` says of a layer, the weights' norms left out."""
        squares = [self.mean(name) for name in ("q", "k")]
        both = self.sums["q"] + self.sums["k"], self.sums["n_q"] + self.sums["n_k"]
        return {
            "attn_xin": self.mean("attn") / self.mean("xin"),
            "ffn_xin": self.mean("ffn") / self.mean("xin"),
            "h_attn": self.mean("entropy"),
            "h_max": self.mean("uniform"),
            "q_rms": math.sqrt(squares[0]),
            "k_rms": math.sqrt(squares[1]),
            "qk_rms": math.sqrt(both[0] / both[1]),
            "attn_logit_std": self.mean("logits"),
        }


def _read(found: Subject, batch: Batch, counted: Tensor, sums: Sequence[_Sums]) -> Tensor:
    """One forward pass whose hooks add to the sums; its logits."""
    fired: dict[str, Tensor] = {}
    hooks: dict[str, Callable[..., None]] = {}

    def at(name: str, tell: Callable[[Tensor], None]) -> None:
        def part(value: Tensor) -> Tensor:
            tell(value.detach())
            return value.new_zeros(())

        hooks[name] = cache.recorder(fired, name, part)

    for layer, one in enumerate(sums):
        block = f"blocks.{layer}"
        for name, hook in (("xin", "hook_resid_pre"), ("attn", "hook_attn_out"), ("ffn", "hook_mlp_out")):
            at(f"{block}.{hook}", lambda value, one=one, name=name: one.add(name, value.double().norm(dim=-1)[counted]))  # type: ignore[misc]
        for name in ("q", "k"):
            at(f"{block}.attn.hook_{name}", lambda value, one=one, name=name: one.add(name, value.double().square()[counted]))  # type: ignore[misc]
        at(f"{block}.attn.hook_pattern", lambda value, one=one: _entropy(one, value, counted))  # type: ignore[misc]
        at(f"{block}.attn.hook_attn_scores", lambda value, one=one: _scores(one, value, counted))  # type: ignore[misc]
    logits = cache.run(found.loaded, batch.x, hooks)
    cache.check_fired(found.loaded, list(hooks), fired)
    return logits


def _entropy(one: _Sums, pattern: Tensor, counted: Tensor) -> None:
    """Entropy of each head and query, and what uniform causal attention would have."""
    entropy = -torch.special.xlogy(pattern.double(), pattern.double()).sum(-1)
    one.add("entropy", entropy.transpose(1, 2)[counted])
    keys = torch.arange(1, pattern.shape[-2] + 1, device=pattern.device).double().log()
    one.add("uniform", keys.expand(len(pattern), -1)[counted])


def _scores(one: _Sums, scores: Tensor, counted: Tensor) -> None:
    """Spread of the logits over the keys of each query that has two or more."""
    length = scores.shape[-1]
    seen = torch.ones(length, length, dtype=torch.bool, device=scores.device).tril()
    keys = seen.sum(-1).double()
    values = torch.where(seen, scores.double(), 0.0)
    mean = values.sum(-1) / keys
    spread = (torch.where(seen, values - mean[..., None], 0.0).square().sum(-1) / keys).sqrt()
    one.add("logits", spread[:, :, 1:].transpose(1, 2)[counted[:, 1:]])


def _weights(found: Subject, layers: int) -> dict[str, list[float]]:
    """Frobenius norms of the branches' weights, NaN where a layer has none by that name."""
    made = {name: [math.nan] * layers for name in WEIGHTS}
    lens = lens_names(found.loaded.model)
    for name, value in found.loaded.model.named_parameters():
        where = re.match(r"blocks\.(\d+)\.", lens[name])
        for kind, pattern in WEIGHTS.items():
            if where and pattern.search(lens[name]):
                made[kind][int(where[1])] = float(value.detach().double().norm())
    return made


def report(subjects: Sequence[Subject], measured: Sequence[Mapping[str, list[float]]], watch: Stopwatch, *, seed: int = 0) -> Result:
    """The Result of kind "branches": table over ckpt x layer, NaN where a model has fewer layers."""
    layers = max(found.loaded.n_layers for found in subjects)
    names = [found.name for found in subjects]
    variables: dict[str, Any] = {}
    for name, (unit, words) in FIGURES.items():
        grid = np.full((len(subjects), layers), math.nan)
        for row, figures in enumerate(measured):
            grid[row, : len(figures[name])] = figures[name]
        variables[name] = (("ckpt", "layer"), grid, unit, words)
    logit = [figures["logit_std"][0] for figures in measured]
    variables["logit_std"] = (("ckpt",), logit, "nats", "spread of the output logits over the vocabulary, mean over tokens")
    data = dataset({"ckpt": names, "layer": list(range(layers))}, variables)
    manifest = provenance(
        config={"ckpts": names, "data_hash": [found.data_hash for found in subjects]},
        device=str(next(subjects[0].loaded.model.parameters()).device),
        dtype="float32 model, float64 sums",
        watch=watch,
        subject=", ".join(names),
        weight_hash=[found.loaded.weight_hash for found in subjects],
        weight_processing=subjects[0].loaded.processing,
        data=[found.data for found in subjects],
        seeds={"batches": seed},
    )
    summary = summary_of(subjects[-1], measured[-1])
    return Result("branches", data, ("ckpt", "layer"), summary, manifest)


def summary_of(found: Subject, figures: Mapping[str, list[float]]) -> dict[str, Any]:
    """One flat record a checkpoint: the mean over layers of every figure, and the least and the largest ratio."""
    made: dict[str, Any] = {"ckpt": found.name, "n_layers": found.loaded.n_layers, "data": found.data}
    made |= {name: float(np.nanmean(values)) if not np.isnan(values).all() else None for name, values in figures.items()}
    for name in ("attn_xin", "ffn_xin"):
        made |= {f"{name}_low": min(figures[name]), f"{name}_high": max(figures[name])}
    share = made["h_attn"] / made["h_max"] if made["h_max"] else math.nan
    finding = (
        f"{found.name}: attention adds {made['attn_xin']:.3g} of the norm it reads and the MLP {made['ffn_xin']:.3g} (means over "
        f"{found.loaded.n_layers} layers); attention's entropy is {made['h_attn']:.2f} nats, {share:.0%} of uniform."
    )
    return made | {"finding": finding}


def branches(subjects: Sequence[Subject], *, seed: int = 0) -> Result:
    """Branches of checkpoints that are in memory together; see `measure` and `report`."""
    watch = Stopwatch()
    return report(subjects, [measure(found) for found in subjects], watch, seed=seed)
