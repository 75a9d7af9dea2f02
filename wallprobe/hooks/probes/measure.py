"""Probes: what a linear reader finds in the residual stream, at every layer and index.

Softmax probes for the Bayes-best next token, a, b and the class, ridge for H(P); beside each the same probe on shuffled labels.
All layers, indices, targets and controls of one shape are one batched solve (`fit`). A probe finds what is there, not what is used.
The probe for the next token is the roof experiment's (the wall study, "The substrate exists everywhere"); the others are ours.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wallprobe import models
from wallprobe.errors import ConfigError
from wallprobe.hooks.attach import cache
from wallprobe.hooks.attach.labelled import Labelled
from wallprobe.hooks.probes import fit as probes_fit
from wallprobe.hooks.probes.labelled import probe_arrays, probe_labelled
from wallprobe.hooks.probes.report import Scores, make_result
from wallprobe.hooks.probes.targets import RULES, Labels, check_targets, classification
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch
from wallprobe.store.results import Result
from wallprobe.store.runs import Run
from wallprobe.tasks.registry import from_manifest

STRENGTHS = probes_fit.STRENGTHS
RIDGES = tuple(10.0**-power for power in range(7))
SHARES = (0.625, 0.125)  # of the sequences: training, validation; the rest is the test
LEAST = 80  # sequences
FORWARD = 250  # sequences a forward pass: what a processor's cache holds
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Split:
    """Sequences for fitting, for choosing the strength, and for the score."""

    train: Int[Tensor, " train"]
    validation: Int[Tensor, " validation"]
    test: Int[Tensor, " test"]

    @classmethod
    def of(cls, sequences: int) -> "Split":
        """The first 5/8, the next 1/8 and the last 1/4 of sequences that were drawn independently."""
        first, second = (round(sequences * share) for share in SHARES)
        everyone = torch.arange(sequences)
        return cls(everyone[:first], everyone[first : first + second], everyone[first + second :])

    def among(self, chosen: Bool[Tensor, " batch"]) -> "Split":
        """The chosen sequences of each part."""
        return Split(self.train[chosen[self.train]], self.validation[chosen[self.validation]], self.test[chosen[self.test]])

    @property
    def order(self) -> Int[Tensor, " row"]:
        """Training, validation and test sequences, in that order."""
        return torch.cat([self.train, self.validation, self.test])


def probe(
    run_or_model: Run | models.Loaded | Tensor | npt.NDArray[Any],
    labels: Any = None,
    *,
    labelled: Labelled | None = None,
    groups: Any = None,
    types: Any = None,
    control: str | None = None,
    layers: tuple[int, ...] | None = None,
    site: str = "resid_post",
    targets: tuple[str, ...] | None = None,
    n: int = 4000,
    seed: int = 0,
    device: str = "cpu",
    on_progress: Progress | None = None,
) -> Result:
    """Fit and score every probe: of a run, of any model on labelled text, or of activations and labels that are at hand.

    Args:
        run_or_model: a finished run, or a run's model already loaded; with `labelled` any model; with `labels` activations
            [sample, width] or [place, sample, width].
        labels: of activations, one a sample; the Result is that of `labelled.probe_arrays`.
        labelled: labelled text; the Result is that of `labelled.probe_labelled`.
        groups, types: of activations, as `labelled.probe_arrays`.
        control: "shuffled" or "types", for labels of either kind; the probes of a run have shuffled labels.
        layers: layers, all by default.
        site: one of `models.SITES`.
        targets: some of `targets.TARGETS`, by default all that the task has (a and b are the recurrence's).
        n: sequences drawn from the run's own task; 5/8 to fit, 1/8 to choose the strength, 1/4 to score. Probes of a and b take the
            programs among them.
        seed: of the sequences, the shuffles and the bootstrap.
        device: torch device of the model; probes are fitted on the CPU.
        on_progress: told what is being done.

    Returns:
        Result of kind "probe", table over layer x index x target.

    Raises:
        UnknownNameError: for a site or target there is not.
        ConfigError: for a model that is no run's, a layer it has not, or too few sequences.
        CheckpointError: if the weights are damaged.
    """
    watch, tell = Stopwatch(), on_progress or (lambda doing: None)
    if isinstance(run_or_model, (Tensor, np.ndarray)):
        if labels is None:
            raise ConfigError("activations alone tell nothing; give their labels, one a sample")
        return probe_arrays(torch.as_tensor(run_or_model), labels, groups=groups, types=types, control=control or "shuffled", seed=seed)
    if labels is not None:
        raise ConfigError("labels are given beside a model; give them as labelled text (labelled=), or activations in the model's place")
    if labelled is not None:
        chosen_model = models.load_run(run_or_model, device) if isinstance(run_or_model, Run) else run_or_model
        return probe_labelled(chosen_model, labelled, layers=layers, site=site, control=control, seed=seed, device=device)
    run = run_or_model if isinstance(run_or_model, Run) else run_or_model.run
    if run is None:
        raise ConfigError("probes of a model that is no run need labelled text; give labelled=, or --labels FILE")
    if n < LEAST:
        raise ConfigError(f"{n} sequences are too few to fit and score a probe on; give at least {LEAST}")
    models.hook_name(0, site)
    chosen = _layers(run, layers)
    task = from_manifest(run.manifest["task"])
    task.check_room(n, "number of sequences")
    drawn = task.sample(n, generator(seed, "probe"))
    wanted = check_targets(targets, drawn, task)
    tell("load")
    loaded = models.load_run(run, device) if isinstance(run_or_model, Run) else run_or_model
    tell("activations")
    states = activations(loaded, drawn.tokens, chosen, site)
    exact = task.posterior(drawn.tokens)
    labels = {name: classification(task, drawn, exact, name) for name in wanted if name != "entropy"}
    fitting = Stopwatch()
    scores = all_scores(states, Split.of(n), labels, exact.entropy if "entropy" in wanted else None, seed, tell)
    config = {"run": str(run.name), "weight_hash": run.manifest["weight_hash"], "site": site, "layers": list(chosen)}
    config |= {"targets": list(wanted), "n": n, "seed": seed}
    return make_result(run, task, config, scores, fitting.seconds(), device, watch)


def _layers(run: Run, layers: tuple[int, ...] | None) -> tuple[int, ...]:
    depth = int(run.manifest["shape"]["n_layers"])
    wrong = [layer for layer in layers or () if not 0 <= layer < depth]
    if wrong:
        raise ConfigError(f"layer {wrong[0]} does not exist in {run.name}; give 0 to {depth - 1}, or 'all'")
    return tuple(range(depth)) if layers is None else layers


def activations(
    loaded: models.Loaded, tokens: Int[Tensor, "batch token"], layers: tuple[int, ...], site: str
) -> Float[Tensor, "layer index batch width"]:
    """The site's activations at indices 0..T-2, from one forward pass over the named hooks alone."""
    names = [models.hook_name(layer, site) for layer in layers]
    seen = cache.capture(loaded, tokens[:, :-1], names, batch=FORWARD)
    return torch.stack([seen.pop(name).transpose(0, 1) for name in names])


def all_scores(
    states: Float[Tensor, "layer index batch width"],
    split: Split,
    labels: Mapping[str, Labels],
    entropy: Float[Tensor, "batch index"] | None,
    seed: int,
    tell: Progress = lambda doing: None,
) -> list[Scores]:
    """Scores of each target; those of one shape (sequences and classes) are solved together.

    Args:
        states: activations.
        split: of the batch.
        labels: classification targets by name.
        entropy: target of the ridge; None for none.
        seed: of the shuffles.
        tell: told what is being done.

    Raises:
        ConfigError: if too few sequences have a target.
    """
    everyone = [labels[name] for name in ("token", "class") if name in labels]
    works = [softmax_work([target], split, states.shape[0], seed) for target in everyone]
    if entropy is not None:
        works.append(ridge_work(entropy, split, states.shape[0], seed))
    scores = _solve(states, split, works, tell)
    rules = [labels[name] for name in RULES if name in labels]
    if rules:
        programs = split.among(rules[0].sequences)
        if min(map(len, (programs.train, programs.validation, programs.test))) < 2:
            raise ConfigError(f"too few of the {states.shape[2]} sequences are programs to probe for a and b; raise --n")
        scores += _solve(states, programs, [softmax_work(rules, programs, states.shape[0], seed)], tell)
    return scores


@dataclass(frozen=True)
class Work:
    """Probes that share their rows.

    Attributes:
        targets: their names.
        solve: from the features of some cells (the slice), what `score` needs, one row a cell.
        score: the scores, from what `solve` made of all layers and indices.
    """

    targets: tuple[str, ...]
    solve: Callable[[probes_fit.Features, slice], tuple[Tensor, ...]]
    score: Callable[..., list[Scores]]


def _solve(states: Float[Tensor, "layer index batch width"], split: Split, works: Sequence[Work], tell: Progress) -> list[Scores]:
    """All works on one split, some cells after the other; training rows first, then validation, then test."""
    if not works:
        return []
    (layers, indices, batch), order = states.shape[:3], split.order
    whole = len(order) == batch and bool((order == torch.arange(batch)).all())
    names = ", ".join(name for work in works for name in work.targets)
    parts = []
    chunks = probes_fit.in_chunks(states.flatten(0, 1), len(split.train), len(split.validation), order=None if whole else order)
    for some, given in chunks:
        tell(f"probes of {names}: {some.start} of {layers * indices} cells")
        parts.append([work.solve(given, some) for work in works])
    made = [[_by_cell(torch.cat(pieces), layers) for pieces in zip(*each, strict=True)] for each in zip(*parts, strict=True)]
    return [score for work, figures in zip(works, made, strict=True) for score in work.score(*figures)]


def _by_cell(values: Tensor, layers: int) -> Tensor:
    return values.reshape(layers, -1, *values.shape[1:])


def shuffles(cells: int, rows: int, seed: int, name: str) -> Int[Tensor, "cell row"]:
    """An order of the rows for each cell: the control's labels are the treatment's, in that order."""
    rng = generator(seed, "probe shuffle", name)
    return torch.rand(cells, rows, generator=rng).argsort(1)


def softmax_work(targets: Sequence[Labels], split: Split, layers: int, seed: int) -> Work:
    """Targets of one shape and their controls along the path; of each, the strength with the least validation loss."""
    order = split.order
    problems = []
    for target in targets:
        true = target.label[order].T.repeat(layers, 1)
        problems += [true, true.gather(1, shuffles(len(true), true.shape[1], seed, target.name))]
    labels = torch.stack(problems, dim=1)

    def solve(given: probes_fit.Features, some: slice) -> tuple[Tensor, ...]:
        fit = probes_fit.softmax_path(given, labels[some, :, : given.fitted], targets[0].classes, STRENGTHS)
        return probes_fit.best(fit.weights, given.columns[..., given.fitted :]) == labels[some, :, given.fitted :], fit.strength

    def score(right: Bool[Tensor, "layer index problem test"], strength: Float[Tensor, "layer index problem"]) -> list[Scores]:
        return [
            Scores(
                target.name,
                treated=right[:, :, 2 * place],
                control=right[:, :, 2 * place + 1],
                strength=strength[:, :, 2 * place],
                chance=target.chance,
                ceiling=target.ceiling[split.test].T,
                identified=target.identified[split.test].T,
                train=len(split.train),
            )
            for place, target in enumerate(targets)
        ]

    return Work(tuple(target.name for target in targets), solve, score)


def ridge_work(entropy: Float[Tensor, "batch index"], split: Split, layers: int, seed: int) -> Work:
    """Ridge for the entropy and its control; of each, the strength with the least validation error."""
    true = entropy[split.order].T.repeat(layers, 1)
    target = torch.stack([true, true.gather(1, shuffles(len(true), true.shape[1], seed, "entropy"))], dim=1)

    def solve(given: probes_fit.Features, some: slice) -> tuple[Tensor, ...]:
        path = probes_fit.ridge_path(given, target[some, :, : given.train], RIDGES)
        columns = given.columns[..., given.train :].double()
        errors = torch.stack([weights[..., :-1] @ columns + weights[..., -1:] - target[some, :, given.train :] for weights in path])
        best = errors[..., : given.validation].square().mean(3).argmin(0)
        left = errors[..., given.validation :].gather(0, best[None, ..., None].expand(1, *errors[0, ..., given.validation :].shape))[0]
        return left, torch.tensor(RIDGES, dtype=torch.float32)[best], target[some, :, given.fitted :]

    def score(left: Tensor, strength: Tensor, truth: Float[Tensor, "layer index arm test"]) -> list[Scores]:
        nothing = torch.full((left.shape[1], len(split.test)), math.nan, dtype=torch.float64)
        return [
            Scores(
                "entropy",
                treated=left[:, :, 0],
                control=left[:, :, 1],
                strength=strength[:, :, 0],
                chance=0.0,
                ceiling=nothing,
                identified=torch.zeros_like(nothing, dtype=torch.bool),
                train=len(split.train),
                truth=truth,
            )
        ]

    return Work(("entropy",), solve, score)
