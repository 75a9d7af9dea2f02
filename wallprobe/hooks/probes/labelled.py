"""Probes of any decoder on labelled text, and of plain arrays: accuracy on texts that no probe was fitted on, control and baselines."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from wallprobe import models
from wallprobe.errors import ConfigError
from wallprobe.findings import foremost, side
from wallprobe.hooks.attach import gathering
from wallprobe.hooks.attach.labelled import Labelled
from wallprobe.hooks.probes import arrays
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset

KIND = "probe_labels"
BASELINES = {
    "majority": "the label that most training rows have",
    "token_type": "the label that the same type of token has most often in training",
    "bag": f"a softmax probe on how often each of the {arrays.WORDS} commonest tokens occurs up to the place",
}
FIGURES = {
    "accuracy": ("fraction", "share of held-out places whose label the probe tells"),
    "control_accuracy": ("fraction", f"the same for probes fitted to and scored on control labels, mean of {arrays.DRAWS} draws"),
    "selectivity": ("fraction", "accuracy minus control accuracy"),
    "gain": ("fraction", "accuracy minus that of the best baseline"),
}


@dataclass(frozen=True)
class Asked:
    """What a probe of labels was asked for, and what it is told by.

    Attributes:
        name: of the labels.
        labels: class of each row.
        groups: text of each row.
        classes: their names.
        control: one of `arrays.CONTROLS`.
        seed: of splits, control labels and bootstrap.
    """

    name: str
    labels: Int[Tensor, " row"]
    groups: Int[Tensor, " row"]
    classes: tuple[str, ...]
    control: str
    seed: int


def probe_labelled(
    loaded: models.Loaded,
    labelled: Labelled,
    *,
    layers: Sequence[int] | None = None,
    site: str = "resid_post",
    control: str | None = None,
    seed: int = 0,
    device: str = "cpu",
    follow: gathering.Follow = gathering.silent,
) -> Result:
    """Softmax probes of the labels at every layer of a site.

    Args:
        loaded: the model.
        labelled: texts and labels.
        layers: None for all; of `resid_post` then also what enters the first block (layer -1).
        site: one of `models.SITES`.
        control: as `arrays.control_labels`; None for "types" where labels are a token's, "shuffled" where they are a text's.
        seed: of the split of the texts, the control labels and the bootstrap.
        device: of the model, for the manifest.
        follow: told (layers probed, of all).

    Returns:
        Result of kind "probe_labels", table over layer.

    Raises:
        UnknownNameError: for a site there is not.
        ConfigError: for a layer there is not, or a label that too few texts have.
        InstrumentError: if a hook does not fire exactly once.
    """
    watch = Stopwatch()
    hooks = gathering.hooks_of(loaded, site, layers)
    picked = control or ("types" if labelled.by_token else "shuffled")
    asked = Asked(labelled.name, labelled.label, labelled.groups, labelled.classes, picked, seed)
    arrays.check_classes(asked.labels, asked.groups, asked.classes)
    division = arrays.divide(asked.labels, asked.groups, seed)
    x = gathering.states_at(loaded, labelled.tokens, labelled.row, labelled.index, list(hooks.values()))
    guesses = {
        "token_type": arrays.by_type(asked.labels, labelled.types, division),
        "bag": arrays.bag(asked.labels, labelled.prefixes(), len(asked.classes), division),
    }
    attrs = {"model": loaded.name, "site": site, "labels": labelled.name, "kind_of_label": "token" if labelled.by_token else "text"}
    told = provenance(
        config=attrs
        | {"layers": list(hooks), "control": picked, "seed": seed, "weight_hash": loaded.weight_hash, "data_hash": labelled.data_hash},
        device=device,
        dtype="float32 model and probes, float64 scores",
        watch=watch,
        subject=loaded.name,
        weight_hash=loaded.weight_hash,
        weight_processing=loaded.processing,
        seeds={"texts": seed},
    )
    return _result(x, asked, division, labelled.types, guesses, ("layer", list(hooks)), attrs, told, watch, follow)


def probe_arrays(
    acts: Shaped[Tensor, "..."],
    labels: Any,
    *,
    groups: Any | None = None,
    types: Any | None = None,
    control: str = "shuffled",
    seed: int = 0,
    name: str = "arrays",
    follow: gathering.Follow = gathering.silent,
) -> Result:
    """Softmax probes of labels on any activations.

    Args:
        acts: activations, [sample, width] or [place, sample, width].
        labels: a sequence, tensor or array of one a sample, names or integers.
        groups: which text each sample is of; no text is on two sides of the split. None where each sample is a text of its own.
        types: of each sample, for control "types".
        control: "shuffled", or "types".
        seed: of the split, the control labels and the bootstrap.
        name: for tables.
        follow: told (places probed, of all).

    Returns:
        Result of kind "probe_labels", table over place.

    Raises:
        ConfigError: for arrays that do not fit each other, figures that are not finite, or a label that too few texts have.
    """
    watch = Stopwatch()
    if acts.ndim not in (2, 3) or 0 in acts.shape:
        raise ConfigError(f"activations are of shape {list(acts.shape)}; give [sample, width] or [place, sample, width]")
    x = (acts[None] if acts.ndim == 2 else acts).detach().float().cpu()
    if not bool(x.isfinite().all()):
        raise ConfigError("activations hold NaN or infinities; leave those samples out")
    names, number = _numbers(labels, x.shape[1], "labels")
    of_text = torch.arange(x.shape[1]) if groups is None else _numbers(groups, x.shape[1], "groups")[1]
    of_type = None if types is None else _numbers(types, x.shape[1], "types")[1]
    asked = Asked(name, number, of_text, names, control, seed)
    arrays.check_classes(number, of_text, names)
    division = arrays.divide(number, of_text, seed)
    guesses = {} if of_type is None else {"token_type": arrays.by_type(number, of_type, division)}
    attrs = {"model": name, "site": "given", "labels": "given", "kind_of_label": "given"}
    digest = hashlib.sha256()
    for part in (x, number, of_text):
        digest.update(part.contiguous().numpy().tobytes())
    told = provenance(
        config=attrs | {"control": control, "seed": seed, "data_hash": digest.hexdigest()},
        device="cpu",
        dtype="float32 probes, float64 scores",
        watch=watch,
        subject=name,
        weight_hash=None,
        weight_processing="none",
        seeds={"texts": seed},
    )
    return _result(x, asked, division, of_type, guesses, ("place", list(range(len(x)))), attrs, told, watch, follow)


def _numbers(given: Any, samples: int, what: str) -> tuple[tuple[str, ...], Int[Tensor, " row"]]:
    """Names of the values there are, and which of them each sample has."""
    values = given.tolist() if isinstance(given, (Tensor, np.ndarray)) else list(given)
    if len(values) != samples:
        raise ConfigError(f"there are {len(values)} {what} for {samples} samples; give one each")
    if any(type(one) not in (str, int, bool) for one in values) or len({type(one) for one in values}) > 1:
        raise ConfigError(f"{what} are no names and no integers; give one kind")
    known: list[Any] = sorted(set(values))
    place = {value: number for number, value in enumerate(known)}
    return tuple(map(str, known)), torch.tensor([place[value] for value in values])


def _result(
    x: Float[Tensor, "place row width"],
    asked: Asked,
    division: arrays.Division,
    types: Int[Tensor, " row"] | None,
    guesses: Mapping[str, Bool[Tensor, " test"]],
    places: tuple[str, list[int]],
    attrs: Mapping[str, str],
    manifest: dict[str, Any],
    watch: Stopwatch,
    follow: gathering.Follow,
) -> Result:
    """Probe, score and report."""
    controls = arrays.control_labels(asked.labels, asked.groups, types, asked.control, asked.seed)
    held = arrays.held_out(x, asked.labels, len(asked.classes), division, controls, follow)
    baselines = {"majority": arrays.majority(asked.labels, division), **guesses}
    by_text = arrays.ByText.of(asked.groups[division.test], asked.seed)
    means = {name: by_text.figures(hits) for name, hits in baselines.items()}
    best = strongest({name: float(mean) for name, (mean, _, _) in means.items()})
    hits = held.hits.double()
    rows = {
        "accuracy": hits,
        "control_accuracy": held.control_hits,
        "selectivity": hits - held.control_hits,
        "gain": hits - baselines[best].double(),
    }
    dim, labels_of_dim = places
    variables: dict[str, tuple[tuple[str, ...], Any, str, str]] = {}
    for name, values in rows.items():
        units, words = FIGURES[name]
        for end, figure in zip(("", "_low", "_high"), by_text.figures(values), strict=True):
            variables[f"{name}{end}"] = ((dim,), figure.numpy(), units, words)
    for name, (mean, _, _) in means.items():
        same = np.full(len(labels_of_dim), float(mean))
        variables[f"{name}_accuracy"] = ((dim,), same, "fraction", f"held-out accuracy of {BASELINES[name]}; the same at every {dim}")
    variables["validation_loss"] = ((dim,), held.loss.double().numpy(), "nats", "loss on the texts that chose the penalty")
    variables["strength"] = ((dim,), held.strength.double().numpy(), "1", "strength of the penalty, chosen by the validation loss")
    variables["converged"] = ((dim,), held.converged.numpy().astype("int32"), "1", "1 where every fit converged")
    data = dataset({dim: labels_of_dim}, variables, **attrs, control=asked.control)
    at = foremost([-loss for loss in held.loss.double().tolist()]) or 0
    summary: dict[str, Any] = {**attrs, dim: labels_of_dim[at], "control": asked.control, "n_classes": len(asked.classes)}
    summary |= {"classes": ", ".join(asked.classes[:20]), "n_texts": len(torch.unique(asked.groups)), "n_places": len(asked.labels)}
    summary |= {
        "n_train_texts": len(torch.unique(asked.groups[division.train])),
        "n_test_texts": len(torch.unique(asked.groups[division.test])),
    }
    summary |= {"n_train": len(division.train), "n_test": len(division.test)}
    summary |= {f"{name}{end}": float(data[f"{name}{end}"][at]) for name in FIGURES for end in ("", "_low", "_high")}
    summary |= {f"{name}_accuracy": (float(means[name][0]) if name in means else None) for name in BASELINES}
    summary |= {"best_baseline": best, "seconds": watch.seconds()}
    manifest["wall_time_s"] = watch.seconds()
    return Result(KIND, data, (dim,), summary | {"finding": finding(summary, dim)}, manifest)


def strongest(accuracies: Mapping[str, float]) -> str:
    """The first baseline whose accuracy no other's is above by more than rounding."""
    return list(accuracies)[foremost(list(accuracies.values())) or 0]


def finding(summary: Mapping[str, Any], dim: str = "layer") -> str:
    """One plain sentence, of the place that the validation loss chose, held to the best baseline and to control labels."""
    where = "what enters the first block" if summary[dim] == gathering.EMBEDDING and dim == "layer" else f"{dim} {summary[dim]}"
    rival = summary["best_baseline"]
    against = summary[f"{rival}_accuracy"]
    told = side(summary["accuracy"], against, (summary["gain_low"], summary["gain_high"]))
    selective = side(summary["accuracy"], summary["control_accuracy"], (summary["selectivity_low"], summary["selectivity_high"]))
    beats = {"above": "more than", "below": "less than", "level": "no more than"}
    words = {"majority": "the majority label", "token_type": "the type of token alone", "bag": "a bag of the tokens"}
    return (
        f"{summary['model']}, {where} ({summary['site']}, chosen on other texts): a linear probe tells {summary['labels']} in "
        f"{summary['accuracy']:.3f} of {summary['n_test']} places in {summary['n_test_texts']} held-out texts "
        f"[{summary['accuracy_low']:.3f}, {summary['accuracy_high']:.3f}], {beats[told]} {words[rival]} ({against:.3f}) and "
        f"{beats[selective]} control labels ({summary['control_accuracy']:.3f})."
    )
