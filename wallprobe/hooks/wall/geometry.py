"""Geometry of the residual stream: are states behind the wall where the supervised ones are, and do states cluster with depth?

A cosine is inflated by whatever direction all states share. So each stands beside the same cosine between two different
sequences, between two of one class (two programs, or two of noise), after the mean over sequences at each index is taken away,
and in the network of the same shape and seed before training (what depth alone does: the mean-field clustering of attention,
Rigollet 2025, arXiv 2512.01868, needs no training). Source: the wall study, "The substrate exists everywhere".
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wallprobe import models, stats
from wallprobe.errors import UnknownNameError
from wallprobe.findings import side
from wallprobe.hooks.attach import cache
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch
from wallprobe.store.results import Result, dataset
from wallprobe.store.runs import Run
from wallprobe.training.wall import evaluate, lean

SEQUENCES = 1000
SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")

# name -> what it is; "cosine_" over layer and index, "pairwise_" over layer
COSINES: Mapping[str, str] = {
    "cosine_to_supervised": "cosine of the state with the same sequence's state at the last supervised index",
    "cosine_program": "the same, program sequences only",
    "cosine_noise": "the same, noise sequences only",
    "cosine_control": "with another sequence's state at the last supervised index",
    "cosine_same_class": "with that of another sequence of the same class, program or noise",
    "cosine_centred": "the same sequence's, the mean state over sequences at each index taken away",
    "cosine_centred_control": "another sequence's, the mean taken away",
    "cosine_centred_same_class": "another sequence's of the same class, the mean taken away",
}
PAIRWISE: Mapping[str, str] = {
    "mean_pairwise_cosine": "mean cosine over all pairs of indices of one sequence",
    "pairwise_control": "the same pairs of indices, between two sequences",
    "pairwise_centred": "one sequence's, the mean state over sequences at each index taken away",
    "pairwise_centred_control": "between two sequences, the mean state over sequences at each index taken away",
}


@dataclass(frozen=True)
class Cosines:
    """Cosines of each sequence, by name: to the last supervised index, and mean over pairs of indices."""

    to_supervised: dict[str, Float[Tensor, "batch layer index"]]
    pairwise: dict[str, Float[Tensor, "batch layer"]]


def partners(is_program: Bool[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """For each sequence the next one of its class, the first after the last: itself where it is the only one."""
    partner = torch.empty(len(is_program), dtype=torch.long)
    for members in (is_program.nonzero()[:, 0], (~is_program).nonzero()[:, 0]):
        partner[members] = members.roll(-1)
    return partner


def cosines(states: Float[Tensor, "layer batch index d_model"], anchor: int, is_program: Bool[Tensor, " batch"]) -> Cosines:
    """Every cosine of `COSINES` and `PAIRWISE`, one layer at a time; NaN where a sequence is not of the class.

    "Another sequence" is the next one in the sample: independent of the first, and each is used once.

    Args:
        states: activations, a site's at each layer.
        anchor: the last supervised index.
        is_program: class of each sequence.
    """
    along: dict[str, list[Tensor]] = {name: [] for name in COSINES}
    pairs: dict[str, list[Tensor]] = {name: [] for name in PAIRWISE}
    length, partner, program = states.shape[2], partners(is_program), is_program[:, None]
    alone = (partner == torch.arange(len(partner)))[:, None]
    upper = torch.triu_indices(length, length, offset=1)
    for layer in states.double():
        for suffix, values in (("", layer), ("_centred", layer - layer.mean(0))):
            unit = F.normalize(values, dim=-1)
            at, following = unit[:, anchor, None], unit.roll(-1, dims=0)
            own = (unit * at).sum(-1)
            along[f"cosine{suffix or '_to_supervised'}"].append(own)
            along[f"cosine{suffix}_control"].append((unit * following[:, anchor, None]).sum(-1))
            along[f"cosine{suffix}_same_class"].append(((unit * at[partner]).sum(-1)).masked_fill(alone, math.nan))
            if not suffix:
                along["cosine_program"].append(own.masked_fill(~program, math.nan))
                along["cosine_noise"].append(own.masked_fill(program, math.nan))
            pairs["pairwise_centred" if suffix else "mean_pairwise_cosine"].append((unit @ unit.mT)[:, upper[0], upper[1]].mean(-1))
            pairs[f"pairwise{suffix}_control"].append((unit @ following.mT)[:, upper[0], upper[1]].mean(-1))
    return Cosines(*({name: torch.stack(parts, dim=1) for name, parts in group.items()} for group in (along, pairs)))


def untrained(run: Run, device: str = "cpu") -> models.Loaded:
    """The network of a run's shape and seed as it was before the first step."""
    shape = lean.Shape(**run.manifest["shape"])
    recipe = run.manifest.get("config", {}).get("recipe", {})
    params = lean.init_params(shape, run.name.seed, recipe.get("embedding_std", 1.0))
    model = models.build(run.manifest["shape"], lean.to_hooked(params, shape), device)
    return models.Loaded(f"{run.name} untrained", "run", model, shape.n_layers, shape.d_model, None, run=run)


def states_of(loaded: models.Loaded, tokens: Int[Tensor, "batch index"], site: str) -> Float[Tensor, "layer batch index d_model"]:
    """A site's activations at every layer."""
    names = [models.hook_name(layer, site) for layer in range(loaded.n_layers)]
    found = cache.capture(loaded, tokens, names, batch=500)
    return torch.stack([found[name] for name in names])


def geometry(run: Run, *, site: str = "resid_post", sequences: int = SEQUENCES, seed: int = 0, device: str = "cpu") -> Result:
    """Cosines of states by layer and index, on sequences of the run's own task.

    Args:
        run: a finished run.
        site: where; one as wide as the residual stream (`SITES`).
        sequences: how many; at least 2.
        seed: of the sequences and the bootstrap.
        device: torch device.

    Returns:
        Result of kind "geometry", table over layer x index; pairwise cosines over layer beside it.

    Raises:
        ConfigError: for fewer than 2 sequences.
        UnknownNameError: for a site that is none of `SITES`.
        CheckpointError: if the weights are damaged.
        InstrumentError: if a hook does not fire exactly once.
    """
    check_site(site)
    watch = Stopwatch()
    sample = evaluate.fresh(run, sequences, seed)
    start, drawn = sample.task.start, sample.drawn
    inputs, supervised = drawn.tokens[:, :-1], sample.horizon - start  # the last token predicts nothing of the sequence
    trained, before = (
        cosines(states_of(loaded, inputs, site)[:, :, start:], supervised - 1, drawn.is_program)
        for loaded in (models.load_run(run, device), untrained(run, device))
    )
    weights = stats.resamples(sequences, generator(seed, "geometry bootstrap"))
    name, n_layers = str(run.name), int(run.manifest["shape"]["n_layers"])
    data = dataset(
        {"layer": list(range(n_layers)), "index": list(range(start, sample.task.length - 1))},
        _variables(trained, before, weights),
        horizon=sample.horizon,
        run=name,
        modulus=sample.task.modulus,
        site=site,
    )
    summary = {"run": name, "site": site, "n_layers": n_layers, "n_sequences": sequences} | _summary(trained, before, weights, supervised)
    manifest = evaluate.run_manifest(run, watch, device, sequences=sequences, seed=seed, site=site, task=sample.task.config())
    return Result("geometry", data, ("layer", "index"), summary | {"finding": _finding(summary)}, manifest)


def check_site(site: str) -> None:
    """Raise UnknownNameError unless the site is one of `SITES`."""
    if site not in SITES:
        raise UnknownNameError(f"no site named '{site}' as wide as the residual stream; there are: {', '.join(SITES)}")


Variables = dict[str, tuple[tuple[str, ...], Any, str, str]]


def _variables(trained: Cosines, before: Cosines, weights: Tensor) -> Variables:
    variables: Variables = {}
    for dims, described, cells, earlier in (
        (("layer", "index"), COSINES, trained.to_supervised, before.to_supervised),
        (("layer",), PAIRWISE, trained.pairwise, before.pairwise),
    ):
        for name, what in described.items():
            variables |= _bounded(name, dims, cells[name], weights, what)
        first = next(iter(described))
        untrained_name = "cosine_untrained" if "index" in dims else "pairwise_untrained"
        variables |= _bounded(untrained_name, dims, earlier[first], weights, f"{described[first]}, in the network before training")
    return variables


def _bounded(name: str, dims: tuple[str, ...], cells: Tensor, weights: Tensor, what: str) -> Variables:
    """Mean over sequences with its bootstrap bounds."""
    low, high = stats.interval(stats.masked_means(weights, cells.flatten(1)).reshape(-1, *cells.shape[1:]))
    return {name + suffix: (dims, values.numpy(), "1", what) for suffix, values in (("", cells.nanmean(0)), ("_low", low), ("_high", high))}


def spearman(values: Float[Tensor, " layer"]) -> float:
    """Rank correlation of a figure with its place (1: it rises at every step); 0 for a single value. Ties keep their order."""
    count = len(values)
    if count < 2:
        return 0.0
    ranks = values.argsort(stable=True).argsort().double()
    gap = (ranks - torch.arange(count, dtype=torch.float64)).square().sum()
    return float(1 - 6 * gap / (count * (count**2 - 1)))


def _summary(trained: Cosines, before: Cosines, weights: Tensor, supervised: int) -> dict[str, float]:
    """Means over the unsupervised indices at the first and the last layer, their rise, and the controls beside."""
    beyond = {name: cells[..., supervised:].mean(-1) for name, cells in trained.to_supervised.items()}
    own, pairs = beyond["cosine_to_supervised"], trained.pairwise["mean_pairwise_cosine"]
    fresh, fresh_pairs = before.to_supervised["cosine_to_supervised"][..., supervised:].mean(-1), before.pairwise["mean_pairwise_cosine"]
    bounded = {
        "cosine_last_layer": own[:, -1],
        "cosine_first_layer": own[:, 0],
        "rises_with_depth": own[:, -1] - own[:, 0],
        "cosine_program_last_layer": beyond["cosine_program"][:, -1],
        "cosine_noise_last_layer": beyond["cosine_noise"][:, -1],
        "cosine_control_last_layer": beyond["cosine_control"][:, -1],
        "cosine_same_class_last_layer": beyond["cosine_same_class"][:, -1],
        "cosine_centred_last_layer": beyond["cosine_centred"][:, -1],
        "cosine_centred_first_layer": beyond["cosine_centred"][:, 0],
        "cosine_centred_control_last_layer": beyond["cosine_centred_control"][:, -1],
        "cosine_centred_same_class_last_layer": beyond["cosine_centred_same_class"][:, -1],
        "cosine_untrained_last_layer": fresh[:, -1],
        "rises_with_depth_untrained": fresh[:, -1] - fresh[:, 0],
        "cosine_supervised_last_layer": trained.to_supervised["cosine_to_supervised"][:, -1, : max(supervised - 1, 1)].mean(-1),
        "pairwise_cosine_last_layer": pairs[:, -1],
        "pairwise_cosine_first_layer": pairs[:, 0],
        "pairwise_rises_with_depth": pairs[:, -1] - pairs[:, 0],
        "pairwise_control_last_layer": trained.pairwise["pairwise_control"][:, -1],
        "pairwise_centred_last_layer": trained.pairwise["pairwise_centred"][:, -1],
        "pairwise_untrained_last_layer": fresh_pairs[:, -1],
    }
    summary: dict[str, float] = {}
    for key, cells in bounded.items():
        low, high = stats.interval(stats.masked_means(weights, cells[:, None])[:, 0])
        summary |= {key: float(cells.nanmean()), f"{key}_low": float(low), f"{key}_high": float(high)}
    at_last = trained.to_supervised["cosine_to_supervised"][:, -1, supervised:].mean(0)
    return summary | {
        "cosine_last_layer_lowest_index": float(at_last.min()),
        "cosine_last_layer_highest_index": float(at_last.max()),
        "spearman_with_depth": spearman(own.mean(0)),
        "pairwise_spearman_with_depth": spearman(pairs.mean(0)),
    }


def _finding(summary: dict[str, Any]) -> str:
    """One plain sentence: near the supervised state or not, rising or not, and how much of it any other sequence has too."""
    bounds = summary["rises_with_depth_low"], summary["rises_with_depth_high"]
    told = side(summary["cosine_last_layer"], summary["cosine_first_layer"], bounds)
    way = {"above": "rising", "below": "falling", "level": "neither rising nor falling beyond its interval"}[told]
    return (
        f"{summary['run']}: at the last layer, unsupervised states have cosine {summary['cosine_last_layer']:.2f} with the last supervised "
        f"one (programs {summary['cosine_program_last_layer']:.2f}, noise {summary['cosine_noise_last_layer']:.2f}), {way} with depth from "
        f"{summary['cosine_first_layer']:.2f}; another sequence of the same class has {summary['cosine_same_class_last_layer']:.2f}, "
        f"the network before training {summary['cosine_untrained_last_layer']:.2f}."
    )
