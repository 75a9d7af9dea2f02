"""The shape of a decoder's states by layer: how many dimensions they take, whether they point one way, whether labels part them.

Participation ratio tr(C)^2 / tr(C^2) of the centred states' covariance C, beside d n / (n + d), about what n isotropic Gaussian
states of width d have; anisotropy, the mean cosine between tokens of different texts (Ethayarajh 2019, arXiv:1909.00512); between-class
over within-class variance beside the same for permuted labels. First tokens, often sinks, are left out of the figures `_no_first`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe import models
from wallprobe.errors import ConfigError
from wallprobe.findings import beyond, foremost, rounding
from wallprobe.hooks.attach import gathering
from wallprobe.hooks.attach.labelled import Labelled
from wallprobe.hooks.attach.prompt_sets import PromptSet
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset

KIND = "geometry_states"
STATES = 4096  # tokens at most: inner products of all pairs are held
BYTES = 1 << 29  # of states held at once
GROUPS = 20  # of texts, each left out once for the interval
PERMUTATIONS = 199
SIGNIFICANT = 0.05
FIGURES: Mapping[str, tuple[str, str]] = {
    "participation": ("dimensions", "participation ratio of the centred states"),
    "anisotropy": ("cosine", "mean cosine between tokens of different texts"),
    "anisotropy_centred": ("cosine", "the same after the mean state is taken away"),
}
SEPARATION: Mapping[str, tuple[str, str]] = {
    "separation": ("ratio", "between-class over within-class sum of squares, at the labelled places; infinite where classes are points"),
    "separation_permuted": ("ratio", f"the same for permuted labels, mean of {PERMUTATIONS}"),
    "between_share": ("fraction", "between-class share of the variance at the labelled places"),
    "between_share_permuted": ("fraction", f"the same for permuted labels, mean of {PERMUTATIONS}"),
    "separation_p": ("probability", "share of permutations that part the states as much, the labels themselves counted among them"),
}


def participation(gram: Float[Tensor, "state state"], keep: Float[Tensor, " state"]) -> float:
    """Participation ratio of the kept states, centred, from inner products alone; NaN where fewer than two differ.

    Args:
        gram: inner products of all states (fp64).
        keep: 1 for a state that is kept, else 0.
    """
    count = float(keep.sum())
    if count < 2:
        return math.nan
    sums = (gram @ keep) * keep
    total = float(sums.sum())
    trace = float(gram.diagonal() @ keep) - total / count
    squared = float(keep @ (gram.square() @ keep)) - 2 / count * float(sums.square().sum()) + total**2 / count**2
    scale = float((gram.diagonal().abs() * keep).max())
    if trace <= 1e-12 * scale * count or squared <= 0:
        return math.nan
    return trace**2 / squared


def anisotropy(states: Float[Tensor, "state width"], text: Int[Tensor, " state"], keep: Float[Tensor, " state"]) -> float:
    """Mean cosine between kept states of different texts; NaN where there are no two texts."""
    unit = F.normalize(states, dim=-1) * keep[:, None]
    texts = int(text.max()) + 1
    sums = torch.zeros(texts, states.shape[1], dtype=states.dtype).index_add_(0, text, unit)
    counts = torch.zeros(texts, dtype=states.dtype).index_add_(0, text, keep)
    pairs = float(counts.sum() ** 2 - counts.square().sum())
    return float(sums.sum(0).square().sum() - sums.square().sum()) / pairs if pairs > 0 else math.nan


def bounded(figure: Any, keep: Float[Tensor, " state"], text: Int[Tensor, " state"]) -> tuple[float, float, float]:
    """A figure of the kept states with its 95 % interval, by leaving out a twentieth of the texts at a time (delete-a-group jackknife).

    Args:
        figure: from `keep`.
        keep: 1 for a state that is kept, else 0.
        text: of each state.
    """
    value = figure(keep)
    groups = min(GROUPS, int(text.max()) + 1)
    if groups < 3:
        return value, math.nan, math.nan
    left = torch.tensor([figure(keep * (text % groups != group)) for group in range(groups)], dtype=torch.float64)
    error = math.sqrt(float((left - left.mean()).square().sum()) * (groups - 1) / groups)
    return value, value - 1.96 * error, value + 1.96 * error


def permuted(labels: Int[Tensor, " place"], groups: Int[Tensor, " place"], seed: int) -> Int[Tensor, "permutation place"]:
    """Labels in other orders: over whole texts where each text has one label, else within each text."""
    rng = generator(seed, "permuted labels")
    known, number = torch.unique(groups, return_inverse=True)
    of_text = torch.zeros(len(known), dtype=labels.dtype).scatter_(0, number, labels)
    if bool((of_text[number] == labels).all()):
        return torch.stack([of_text[torch.randperm(len(known), generator=rng)][number] for _ in range(PERMUTATIONS)])
    within = number.argsort(stable=True)
    made = []
    for _ in range(PERMUTATIONS):
        drawn = torch.rand(len(labels), generator=rng, dtype=torch.float64) + number  # sorted by text, at random within each
        order = labels.clone()
        order[within] = labels[drawn.argsort()]
        made.append(order)
    return torch.stack(made)


def between_shares(states: Float[Tensor, "place width"], labels: Int[Tensor, "draw place"], classes: int) -> Float[Tensor, " draw"]:
    """Between-class share of the sum of squares, for each draw of labels; NaN where the states do not differ."""
    centred = states.double() - states.double().mean(0)
    total = centred.square().sum()
    if total <= 1e-12 * states.double().square().sum():  # what is less is rounding
        return torch.full((len(labels),), math.nan, dtype=torch.float64)
    found = []
    for drawn in labels:
        sums = torch.zeros(classes, states.shape[1], dtype=torch.float64).index_add_(0, drawn, centred)
        counts = drawn.bincount(minlength=classes).clamp(min=1)
        found.append((sums.square().sum(1) / counts).sum() / total)
    return torch.stack(found)


def shape(
    loaded: models.Loaded,
    read: PromptSet | Labelled,
    *,
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    seed: int = 0,
    device: str = "cpu",
    follow: gathering.Follow = gathering.silent,
) -> Result:
    """The shape of a model's states at every layer.

    Args:
        loaded: the model.
        read: texts; labelled ones are asked for class separation too.
        site: one of `models.SITES`.
        layers: None for all; of `resid_post` then also what enters the first block (layer -1).
        seed: of the permutations.
        device: of the model, for the manifest.
        follow: told (layers done, of all).

    Returns:
        Result of kind "geometry_states", table over layer.

    Raises:
        UnknownNameError: for a site there is not.
        ConfigError: for a layer there is not, or fewer than three states.
        InstrumentError: if a hook does not fire exactly once.
    """
    watch = Stopwatch()
    hooks = gathering.hooks_of(loaded, site, layers)
    prompts, labelled = (read.prompts(), read) if isinstance(read, Labelled) else (read, None)
    row, index, used = _tokens(prompts.tokens)
    orders = None if labelled is None else torch.cat([labelled.label[None], permuted(labelled.label, labelled.groups, seed)])
    columns: dict[str, list[float]] = {}
    ratios: list[Tensor] = []
    held = max(1, BYTES // (4 * len(row) * loaded.d_model))
    names = list(hooks.values())
    for first in range(0, len(names), held):
        some = names[first : first + held]
        states = gathering.states_at(loaded, prompts.tokens[:used], row, index, some)
        marked = None if labelled is None else gathering.states_at(loaded, labelled.tokens, labelled.row, labelled.index, some)
        for place in range(len(some)):
            for name, value in _figures(states[place], row, index).items():
                columns.setdefault(name, []).append(value)
            if marked is not None and labelled is not None and orders is not None:
                ratios.append(between_shares(marked[place], orders, len(labelled.classes)))
            follow(first + place + 1, len(names))
    if ratios:
        columns |= _separation(torch.stack(ratios))
    variables: dict[str, tuple[tuple[str, ...], Any, str, str]] = {
        name: (("layer",), np.array(values), *_describe(name)) for name, values in columns.items()
    }
    attrs = {"model": loaded.name, "site": site, "prompts": prompts.name}
    data = dataset({"layer": list(hooks)}, variables, **attrs)
    summary = _summary(data, attrs, (len(row), used), ratios, labelled)
    digest = prompts.data_hash if labelled is None else labelled.data_hash
    manifest = provenance(
        config=attrs
        | {"layers": list(hooks), "labels": labelled is not None, "seed": seed}
        | {"weight_hash": loaded.weight_hash, "data_hash": digest},
        device=device,
        dtype="float32 model, float64 figures",
        watch=watch,
        subject=loaded.name,
        weight_hash=loaded.weight_hash,
        weight_processing=loaded.processing,
        seeds={"permutations": seed, "prompts": prompts.seed},
    )
    return Result(KIND, data, ("layer",), summary, manifest)


def _tokens(rows: Sequence[Int[Tensor, "_"]]) -> tuple[Int[Tensor, " state"], Int[Tensor, " state"], int]:
    """Text and index of every token of the first texts that have `STATES` tokens together, and how many texts these are."""
    total, used = 0, 0
    for one in rows:
        if used and total + len(one) > STATES:
            break
        total, used = total + len(one), used + 1
    row = torch.cat([torch.full((len(one),), number) for number, one in enumerate(rows[:used])])[:STATES]
    index = torch.cat([torch.arange(len(one)) for one in rows[:used]])[:STATES]
    if len(row) < 3:
        raise ConfigError(f"{len(row)} tokens have no shape; give three or more")
    return row, index, used


def _figures(states: Float[Tensor, "state width"], text: Int[Tensor, " state"], index: Int[Tensor, " state"]) -> dict[str, float]:
    """Every figure of `FIGURES` with its bounds, of all tokens and without first ones."""
    exact = states.double()
    shifted = exact - exact.mean(0)
    gram = shifted @ shifted.T  # centring beforehand keeps digits where all states share a large part
    made: dict[str, float] = {}
    for suffix, keep in (("", torch.ones(len(states), dtype=torch.float64)), ("_no_first", (index > 0).double())):
        count, width = float(keep.sum()), states.shape[1]
        kept = exact - (exact * keep[:, None]).sum(0) / max(count, 1.0)

        def ratio(one: Tensor) -> float:
            return participation(gram, one)

        def cosine(one: Tensor) -> float:
            return anisotropy(exact, text, one)

        def centred(one: Tensor, kept: Tensor = kept) -> float:
            return anisotropy(kept, text, one)

        for name, figure in (("participation", ratio), ("anisotropy", cosine), ("anisotropy_centred", centred)):
            for end, value in zip(("", "_low", "_high"), bounded(figure, keep, text), strict=True):
                made[f"{name}{suffix}{end}"] = value
        made[f"participation_isotropic{suffix}"] = width * count / (width + count) if count else math.nan
    return made


def _separation(shares: Float[Tensor, "layer draw"]) -> dict[str, list[float]]:
    """How far the labels (the first draw) part the states, beside permutations of them."""
    within = torch.where(1 - shares > 1e-9, 1 - shares, 0.0)  # what is less is rounding
    ratios, own, others = shares / within, shares[:, 0], shares[:, 1:]
    found = (ratios[:, 0], ratios[:, 1:].mean(1), own, others.mean(1), as_much(own, others))
    return {name: values.tolist() for name, values in zip(SEPARATION, found, strict=True)}


def _describe(name: str) -> tuple[str, str]:
    if name in SEPARATION:
        return SEPARATION[name]
    without = ", first tokens left out" if "_no_first" in name else ""
    stem = name.removesuffix("_low").removesuffix("_high").removesuffix("_no_first")
    if stem == "participation_isotropic":
        return "dimensions", f"about what as many isotropic Gaussian states of that width have{without}"
    return FIGURES[stem][0], FIGURES[stem][1] + without


def as_much(own: Float[Tensor, " layer"], others: Float[Tensor, "layer draw"]) -> Float[Tensor, " layer"]:
    """The share of draws that are not less than the labels' own, by more than rounding, these counted among them; NaN where own is."""
    reached = others >= (own - own.abs() * rounding(1.0))[:, None]
    return torch.where(own.isnan(), math.nan, (1 + reached.sum(1).double()) / (1 + others.shape[1]))


def any_layer(shares: Sequence[Float[Tensor, " draw"]]) -> tuple[int, float]:
    """The layer whose share stands out most from its permutations', and p of the largest over all layers, which looks at all of them.

    Layers whose states do not differ (NaN) are left out; p is NaN where all are.
    """
    stacked = torch.stack(list(shares))
    standing = stacked / stacked[:, 1:].mean(1, keepdim=True)
    place = foremost(standing[:, 0].tolist())
    if place is None:
        return 0, math.nan
    largest = standing[~standing[:, 0].isnan()].max(0).values
    return place, float(as_much(largest[:1], largest[None, 1:]))


def parting(where: str, own: float, other: float, p: float) -> str:
    """Whether labels part the states: the end of the finding.

    Args:
        where: the layer at which they do most.
        own: between-class share there.
        other: the same for permuted labels.
        p: over all layers; NaN where no states differ.
    """
    if beyond(SIGNIFICANT, p):
        return f" Labels part the states most at {where}: {own:.3f} of their variance, permuted {other:.3f} (p {p:.3f} over all layers)."
    if math.isnan(p):
        return " The states at the labelled places do not differ."
    return f" Labels part the states nowhere more than permuted ones ({own:.3f} of their variance, permuted {other:.3f}, p {p:.2f})."


def _summary(
    data: Any, attrs: Mapping[str, str], sizes: tuple[int, int], ratios: Sequence[Tensor], labelled: Labelled | None
) -> dict[str, Any]:
    summary: dict[str, Any] = {**attrs, "n_states": sizes[0], "n_texts": sizes[1], "n_layers": data.sizes["layer"]}
    names = [f"{stem}{suffix}{end}" for stem in FIGURES for suffix in ("", "_no_first") for end in ("", "_low", "_high")]
    summary |= {f"{name}_last": float(data[name][-1]) for name in names}
    summary |= {f"participation_isotropic{suffix}": float(data[f"participation_isotropic{suffix}"][-1]) for suffix in ("", "_no_first")}
    told = ""
    summary |= dict.fromkeys(
        ("separation_layer", "between_share", "between_share_permuted", "separation_p_any_layer", "n_classes", "n_places")
    )
    if labelled is not None and ratios:
        place, p = any_layer(ratios)
        layer, own, other = int(data["layer"][place]), float(data["between_share"][place]), float(data["between_share_permuted"][place])
        summary |= {"separation_layer": layer, "between_share": own, "between_share_permuted": other}
        summary["separation_p_any_layer"] = p
        summary |= {"n_classes": len(labelled.classes), "n_places": len(labelled.label)}
        where = "what enters the first block" if layer == gathering.EMBEDDING else f"layer {layer}"
        told = parting(where, own, other, p)
    left = round(summary["anisotropy_centred_no_first_last"], 2) + 0.0
    return summary | {
        "finding": f"{attrs['model']}, {attrs['site']}: without first tokens the last layer's states take "
        f"{summary['participation_no_first_last']:.1f} dimensions, isotropic ones would take "
        f"{summary['participation_isotropic_no_first']:.1f}; tokens of different texts have cosine "
        f"{summary['anisotropy_no_first_last']:.2f}, {left:.2f} once the mean is taken away.{told}"
    }
