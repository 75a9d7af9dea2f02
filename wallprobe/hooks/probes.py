"""Probes: what a linear reader finds in the residual stream, at every layer and index. Spec wall.md section 6, seed 000.

Softmax probes for the Bayes-best next token, a, b and the class, ridge for H(P); beside each the same probe on shuffled labels.
All layers, indices, targets and controls of one shape are one batched solve (`probes_fit`). A probe finds what is there, not what is used.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wallprobe import models
from wallprobe.errors import ConfigError
from wallprobe.hooks import cache, probes_fit
from wallprobe.hooks.probes_report import Scores, make_result
from wallprobe.hooks.probes_targets import RULES, Labels, check_targets, classification
from wallprobe.manifest import Stopwatch
from wallprobe.results import Result
from wallprobe.rng import generator
from wallprobe.runs import Run
from wallprobe.tasks.registry import from_manifest

STRENGTHS = (1.0, 1e-1, 1e-2, 1e-3)
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
    run_or_model: Run | models.Loaded,
    *,
    layers: tuple[int, ...] | None = None,
    site: str = "resid_post",
    targets: tuple[str, ...] | None = None,
    n: int = 4000,
    seed: int = 0,
    device: str = "cpu",
    on_progress: Progress | None = None,
) -> Result:
    """Fit and score every probe of a run.

    Args:
        run_or_model: a finished run, or a run's model already loaded.
        layers: layers, all by default.
        site: one of `models.SITES`.
        targets: some of `probes_targets.TARGETS`, by default all that the task has (a and b are the recurrence's).
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
    run = run_or_model if isinstance(run_or_model, Run) else run_or_model.run
    if run is None:
        raise ConfigError("probes need a run, whose task has an exact answer; give a run name such as c0")
    if n < LEAST:
        raise ConfigError(f"{n} sequences are too few to fit and score a probe on; give at least {LEAST}")
    models.hook_name(0, site)
    chosen = _layers(run, layers)
    task = from_manifest(run.manifest["task"])
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
    scores: list[Scores] = []
    shape = (states.shape[0], states.shape[1])
    everyone = [labels[name] for name in ("token", "class") if name in labels]
    if everyone or entropy is not None:
        tell("features")
        given = _features(states, split)
        for target in everyone:
            tell(f"probes for {target.name}")
            scores += softmax_scores(given, [target], split, shape, seed)
        if entropy is not None:
            tell("probes for entropy")
            scores.append(ridge_scores(given, entropy, split, shape, seed))
        del given
    rules = [labels[name] for name in RULES if name in labels]
    if rules:
        tell("probes for " + " and ".join(target.name for target in rules))
        programs = split.among(rules[0].sequences)
        if min(map(len, (programs.train, programs.validation, programs.test))) < 2:
            raise ConfigError(f"too few of the {states.shape[2]} sequences are programs to probe for a and b; raise --n")
        scores += softmax_scores(_features(states, programs), rules, programs, shape, seed)
    return scores


def _features(states: Tensor, split: Split) -> probes_fit.Features:
    """One cell a layer and index; training rows first, then validation, then test."""
    return probes_fit.features(states[:, :, split.order].flatten(0, 1), len(split.train), len(split.validation))


def _by_cell(values: Tensor, shape: tuple[int, int]) -> Tensor:
    return values.reshape(*shape, *values.shape[1:])


def shuffles(cells: int, rows: int, seed: int, name: str) -> Int[Tensor, "cell row"]:
    """An order of the rows for each cell: the control's labels are the treatment's, in that order."""
    rng = generator(seed, "probe shuffle", name)
    return torch.rand(cells, rows, generator=rng).argsort(1)


def softmax_scores(given: probes_fit.Features, targets: Sequence[Labels], split: Split, shape: tuple[int, int], seed: int) -> list[Scores]:
    """Fit targets of one shape and their controls along the path; of each, score the strength with the least validation loss."""
    order, layers = split.order, shape[0]
    problems = []
    for target in targets:
        true = target.label[order].T.repeat(layers, 1)
        problems += [true, true.gather(1, shuffles(len(true), true.shape[1], seed, target.name))]
    labels = torch.stack(problems, dim=1)
    fit = probes_fit.softmax_path(given, labels[..., : given.fitted], targets[0].classes, STRENGTHS)
    right = probes_fit.logits(fit.weights, given.columns[..., given.fitted :]).argmax(2) == labels[..., given.fitted :]

    return [
        Scores(
            target.name,
            treated=_by_cell(right[:, 2 * place], shape),
            control=_by_cell(right[:, 2 * place + 1], shape),
            strength=_by_cell(fit.strength[:, 2 * place], shape),
            chance=target.chance,
            ceiling=target.ceiling[split.test].T,
            identified=target.identified[split.test].T,
            train=len(split.train),
        )
        for place, target in enumerate(targets)
    ]


def ridge_scores(
    given: probes_fit.Features, entropy: Float[Tensor, "batch index"], split: Split, shape: tuple[int, int], seed: int
) -> Scores:
    """Ridge for the entropy and its control; of each, the strength with the least validation error."""
    true = entropy[split.order].T.repeat(shape[0], 1)
    target = torch.stack([true, true.gather(1, shuffles(len(true), true.shape[1], seed, "entropy"))], dim=1)
    train, held = given.train, given.fitted
    path = probes_fit.ridge_path(given, target[:, :, :train], RIDGES)
    columns = given.columns[..., train:].double()
    errors = torch.stack([weights[..., :-1] @ columns + weights[..., -1:] - target[:, :, train:] for weights in path])
    best = errors[..., : held - train].square().mean(3).argmin(0)
    left = errors[..., held - train :].gather(0, best[None, ..., None].expand(1, *errors[0, ..., held - train :].shape))[0]
    strength = torch.tensor(RIDGES, dtype=torch.float32)[best]

    nothing = torch.full((shape[1], len(split.test)), math.nan, dtype=torch.float64)
    return Scores(
        "entropy",
        treated=_by_cell(left[:, 0], shape),
        control=_by_cell(left[:, 1], shape),
        strength=_by_cell(strength[:, 0], shape),
        chance=0.0,
        ceiling=nothing,
        identified=torch.zeros_like(nothing, dtype=torch.bool),
        train=len(split.train),
        truth=_by_cell(target[:, :, held:], shape),
    )
