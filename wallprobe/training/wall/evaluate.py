"""Evaluation of a run against the exact Bayesian answer, position by position, with bootstrap intervals over sequences.

Entropy agreement alone certifies nothing (the wall study): every figure of calibration stands beside the mass that the model puts on
the Bayes-best token.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe import models, stats
from wallprobe.errors import ConfigError
from wallprobe.findings import beyond, difference, rounding, side
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset
from wallprobe.store.runs import Run
from wallprobe.tasks import registry
from wallprobe.tasks.task import Drawn, Posterior, Task

SEQUENCES = 2000
PUBLISHED_RATIO = 83.0
# Where the sentences draw their lines: bits of supervised error, wall ratio, share of the deserved mass on the Bayes-best token.
LEARNT_BITS, WALL_RATIO, RIGHT_SHARE = 0.3, 3.0, 0.5
EXACT_BITS = rounding(4.0)  # of an entropy of about 4 bits, a uniform guess's over 17 tokens

# metric -> (units, what it is)
METRICS: dict[str, tuple[str, str]] = {
    "entropy_exact": ("bits", "entropy of the exact predictive H(P)"),
    "entropy_model": ("bits", "entropy of the model's softmax H(Q)"),
    "mae": ("bits", "mean |H(P) - H(Q)|"),
    "kl": ("nats", "KL(P || Q)"),
    "total_variation": ("probability", "total variation between P and Q"),
    "best_mass": ("probability", "Q's mass on the Bayes-best token, where a rule is at least as likely as noise"),
    "best_log_mass": ("nats", "mean log of that mass"),
    "best_posterior": ("probability", "P's mass on that token, same sequences"),
    "class_posterior_mae": ("probability", "|class posterior read off Q's mass on the Bayes-best token - w|"),
    "class_posterior_mae_program": ("probability", "the same, program sequences only"),
    "top1": ("fraction", "Q's first choice is the actual next token"),
    "top3": ("fraction", "Bayes-best token among Q's first three, where a rule is at least as likely as noise"),
    "mean_rank": ("rank", "rank of the Bayes-best token under Q, same sequences (1 is first)"),
    "miss_margin": ("nats", "log Q(first choice) - log Q(Bayes-best), where they differ, same sequences"),
}


@dataclass(frozen=True)
class Sample:
    """Fresh sequences and the exact answer to them; the same ones for every run of that task.

    Attributes:
        task: the run's own task, unless another was asked for.
        horizon: the last position that cross-entropy reached: K, after the task's header.
        drawn: the sequences.
        exact: P at positions 1..T-1.
    """

    task: Task
    horizon: int
    drawn: Drawn
    exact: Posterior


def fresh(run: Run, sequences: int = SEQUENCES, seed: int = 0, task: Task | None = None) -> Sample:
    """Draw sequences to measure a run on.

    Raises:
        ConfigError: for fewer than 2, or for a task that the run's network has no tokens or positions for.
    """
    if sequences < 2:
        raise ConfigError(f"{sequences} sequences give no interval; give at least 2")
    own, horizon = registry.from_manifest(run.manifest["task"]), int(run.manifest["horizon"])
    if task is None:
        task = own
    horizon += task.start - own.start
    _check_fit(run, task, horizon)
    task.check_room(sequences, "--sequences")
    drawn = task.sample(sequences, generator(seed, "evaluate"))
    return Sample(task, horizon, drawn, task.posterior(drawn.tokens))


def _check_fit(run: Run, task: Task, horizon: int) -> None:
    shape = run.manifest["shape"]
    if task.vocabulary != shape["vocabulary"]:
        raise ConfigError(
            f"run {run.name} knows {shape['vocabulary']} tokens, task {task.label} has {task.vocabulary}; give a task of as many, or a run "
            "trained with more (--task modulus:symbols=N)"
        )
    if task.length > shape["n_ctx"]:
        raise ConfigError(
            f"run {run.name} has positions for {shape['n_ctx']} tokens, task {task.label} has {task.length}; give a shorter --length, or a "
            "run trained with more room (--task length:room=N)"
        )
    if task.length < horizon + 2:
        raise ConfigError(f"task {task.label} has no position beyond {horizon}, the last supervised one; give a longer --length")


def sequence_metrics(
    log_probs: Float[Tensor, "batch position vocab"],
    tokens: Int[Tensor, "batch index"],
    is_program: Tensor,
    exact: Posterior,
    symbols: int | None = None,
) -> dict[str, Float[Tensor, "batch position"]]:
    """Every metric of `METRICS` for each sequence and position 1..T-1; NaN where it is not defined.

    Args:
        log_probs: the model's log-softmax, fp64, position t in column t-1.
        tokens: the sequences.
        is_program: which were drawn as programs.
        exact: the exact answer.
        symbols: p, how many tokens noise is uniform over; all of them if None.
    """
    probs, vocab = log_probs.exp(), symbols or log_probs.shape[-1]
    best = exact.best[..., None]
    best_mass, best_log = probs.gather(-1, best)[..., 0], log_probs.gather(-1, best)[..., 0]
    rank = (log_probs > best_log[..., None]).sum(-1).double() + 1
    decided = (exact.forced >= 0) & (exact.program_weight >= 0.5)
    missed = decided & (rank > 1)
    entropy = -torch.special.xlogy(probs, probs).sum(-1) / math.log(2.0)
    implied = ((best_mass - 1 / vocab) / (1 - 1 / vocab)).clamp(0, 1)
    class_error = (implied - exact.program_weight).abs()

    def where(mask: Tensor, values: Tensor) -> Tensor:
        return torch.where(mask, values, math.nan)

    return {
        "entropy_exact": exact.entropy,
        "entropy_model": entropy,
        "mae": (exact.entropy - entropy).abs(),
        "kl": (torch.special.xlogy(exact.predictive, exact.predictive) - exact.predictive * log_probs).sum(-1),
        "total_variation": (exact.predictive - probs).abs().sum(-1) / 2,
        "best_mass": where(decided, best_mass),
        "best_log_mass": where(decided, best_log),
        "best_posterior": where(decided, exact.predictive.gather(-1, best)[..., 0]),
        "class_posterior_mae": class_error,
        "class_posterior_mae_program": where(is_program[:, None].expand_as(class_error), class_error),
        "top1": (log_probs.argmax(-1) == tokens[:, 1:]).double(),
        "top3": where(decided, (rank <= 3).double()),
        "mean_rank": where(decided, rank),
        "miss_margin": where(missed, log_probs.amax(-1) - best_log),
    }


def mode_concentration(log_probs: Float[Tensor, "batch position vocab"]) -> Float[Tensor, " position"]:
    """Share of sequences whose first choice is the most common first choice at that position (1/p where none is preferred)."""
    return _choices(log_probs).mean(0).amax(-1)


def _choices(log_probs: Float[Tensor, "batch position vocab"]) -> Float[Tensor, "batch position vocab"]:
    return torch.nn.functional.one_hot(log_probs.argmax(-1), log_probs.shape[-1]).double()


def _mode_interval(
    log_probs: Float[Tensor, "batch position vocab"], weights: Float[Tensor, "draws batch"]
) -> tuple[Float[Tensor, " position"], Float[Tensor, " position"]]:
    """Bootstrap bounds of `mode_concentration`."""
    shares = (weights @ _choices(log_probs).flatten(1)).reshape(-1, *log_probs.shape[1:])
    return stats.interval(shares.amax(-1))


def _summary(mae: Tensor, horizon: int) -> dict[str, Tensor]:
    """Summary figures from MAE per position, over any leading dims."""
    trained, untrained = mae[..., :horizon].mean(-1), mae[..., horizon:].mean(-1)
    ratio = untrained / trained
    return {
        "trained_mae": trained,
        "untrained_mae": untrained,
        "wall_ratio": ratio,
        "wall_sharpness": mae[..., horizon] - mae[..., horizon - 1],
        "erosion": 1 - (ratio - 1) / (PUBLISHED_RATIO - 1),
    }


def evaluate(run: Run, *, task: Task | None = None, sequences: int = SEQUENCES, seed: int = 0, device: str = "cpu") -> Result:
    """Measure a run on fresh sequences.

    Args:
        run: a finished run.
        task: another task than its own.
        sequences: how many; at least 2.
        seed: of the sequences and the bootstrap; the same for all runs unless given.
        device: torch device.

    Returns:
        Result of kind "eval", table over positions 1..T-1, those within a task's header left out.

    Raises:
        ConfigError: as `fresh`.
        CheckpointError: if the weights are damaged.
    """
    watch = Stopwatch()
    sample = fresh(run, sequences, seed, task)
    task, horizon, drawn = sample.task, sample.horizon, sample.drawn
    log_probs = predict(models.load_run(run, device), drawn.tokens)
    cells = sequence_metrics(log_probs, drawn.tokens, drawn.is_program, sample.exact, task.modulus)
    log_probs, cells = log_probs[:, task.start :], {key: values[:, task.start :] for key, values in cells.items()}

    weights = stats.resamples(sequences, generator(seed, "evaluate bootstrap"))
    plain = torch.full((1, sequences), 1 / sequences, dtype=torch.float64)
    variables: dict[str, tuple[tuple[str, ...], Any, str, str]] = {}
    means, draws = {}, {}
    for name, (units, what) in METRICS.items():
        means[name] = stats.masked_means(plain, cells[name])[0]
        draws[name] = stats.masked_means(weights, cells[name])
        low, high = stats.interval(draws[name])
        for suffix, values in (("", means[name]), ("_low", low), ("_high", high)):
            variables[name + suffix] = (("position",), values.numpy(), units, what)
    for suffix, shares in zip(("", "_low", "_high"), (mode_concentration(log_probs), *_mode_interval(log_probs, weights)), strict=True):
        variables[f"mode_concentration{suffix}"] = (("position",), shares.numpy(), "fraction", "share of the commonest first choice")
    positions = list(range(task.start + 1, task.length))
    name = str(run.name)
    shown = name if task == registry.from_manifest(run.manifest["task"]) else f"{name} on {task.label}"
    data = dataset({"position": positions}, variables, horizon=horizon, run=name, modulus=task.modulus)
    summary = {"run": name, "task": task.label} | _summaries(means, draws, horizon - task.start)
    manifest = run_manifest(run, watch, device, sequences=sequences, seed=seed, task=task.config())
    manifest["subject"] = shown
    return Result("eval", data, ("position",), summary | {"finding": _finding(summary | {"run": shown})}, manifest)


def run_manifest(run: Run, watch: Stopwatch, device: str, *, seed: int, **config: Any) -> dict[str, Any]:
    """The manifest of what was measured on one run.

    Args:
        run: the run.
        watch: started with the work.
        device: torch device.
        seed: of the sequences.
        config: what else decides the figures.
    """
    return provenance(
        config={"run": str(run.name), "weight_hash": run.manifest["weight_hash"], "seed": seed, **config},
        device=device,
        dtype="float32 model, float64 metrics",
        watch=watch,
        subject=str(run.name),
        weight_hash=run.manifest["weight_hash"],
        weight_processing="none",
        seeds={"sequences": seed},
    )


def predict(loaded: models.Loaded, tokens: Int[Tensor, "batch index"], batch: int = 500) -> Float[Tensor, "batch position vocab"]:
    """The model's log-softmax (fp64, CPU) at positions 1..T-1."""
    device = next(loaded.model.parameters()).device
    with torch.no_grad():
        return torch.cat([loaded.model(part.to(device)).double().log_softmax(-1).cpu() for part in torch.split(tokens[:, :-1], batch)])


def _summaries(means: dict[str, Tensor], draws: dict[str, Tensor], horizon: int) -> dict[str, float]:
    pairs = {key: (value, _summary(draws["mae"], horizon)[key]) for key, value in _summary(means["mae"], horizon).items()}
    for key, metric, start in (
        ("kl_nats", "kl", 0),
        ("class_posterior_mae", "class_posterior_mae", 3),
        ("class_posterior_mae_program", "class_posterior_mae_program", 3),
        ("bayes_best_mass", "best_mass", horizon),
        ("bayes_best_posterior", "best_posterior", horizon),
        ("bayes_best_log_mass", "best_log_mass", horizon),
        ("untrained_top1", "top1", horizon),
    ):
        pairs[key] = (means[metric][start:].nanmean(), draws[metric][:, start:].nanmean(-1))
    summary: dict[str, float] = {}
    for key, (value, drawn) in pairs.items():
        low, high = stats.interval(drawn)
        summary |= {key: float(value), f"{key}_low": float(low), f"{key}_high": float(high)}
    # A confident wrong guess is right once in p: the mean hides how little the usual sequence gets.
    for suffix in ("", "_low", "_high"):
        summary[f"bayes_best_mass_geomean{suffix}"] = math.exp(summary.pop(f"bayes_best_log_mass{suffix}"))
    return summary


def _finding(summary: dict[str, Any]) -> str:
    """One plain sentence: is there a wall, and where it is gone, is the answer right?"""

    def bounds(key: str, times: float = 1.0) -> tuple[float, float]:
        return times * summary[f"{key}_low"], times * summary[f"{key}_high"]

    ratio, run = summary["wall_ratio"], summary["run"]
    mass, true = summary["bayes_best_mass"], summary["bayes_best_posterior"]
    where = f"{summary['trained_mae']:.3f} bits off at supervised positions and {summary['untrained_mae']:.3f} beyond"
    learnt = side(summary["trained_mae"], LEARNT_BITS, difference(bounds("trained_mae"), LEARNT_BITS))
    if learnt != "below":
        return f"{run} has {'not' if learnt == 'above' else 'perhaps'} learnt the task: {where}."
    wall = side(ratio, WALL_RATIO, difference(bounds("wall_ratio"), WALL_RATIO))
    wrong_beyond = beyond(summary["untrained_mae"], 0.0, noise=EXACT_BITS)
    if wall == "above" and wrong_beyond:
        return f"{run} shows the wall: {where} (ratio {ratio:.1f})."
    clear, ratio_told = "no", f"ratio {ratio:.2f}"
    if wall == "level" and wrong_beyond:
        clear, ratio_told = "no clear", f"{ratio_told}, {WALL_RATIO:g} within its interval"
    right = f"puts {mass:.4f} on the Bayes-best token where the exact answer puts {true:.2f}"
    due = difference(bounds("bayes_best_mass"), bounds("bayes_best_posterior", RIGHT_SHARE))
    correct = side(mass, RIGHT_SHARE * true, due)
    if correct != "above" and not math.isnan(mass):
        wrong = "wrong" if correct == "below" else "perhaps wrong"
        return f"{run} shows {clear} wall in entropy ({where}, {ratio_told}), yet it {right}: calibrated and {wrong}."
    return f"{run} shows {clear} wall ({where}, {ratio_told}) and {right}."
