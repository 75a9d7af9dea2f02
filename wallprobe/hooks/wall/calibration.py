"""Calibration against correctness: what agreement in entropy cannot see (the wall study, "Calibration pays only part of the tax").

A run may be exactly as sure as it should be and sure of the wrong token. So the entropy error stands beside the mass on the
Bayes-best token and three expected calibration errors, which ask different things of the confidence max Q:
against the exact answer's own confidence max P (is it as sure as it should be?), against P of the token it chose (how often
is that token right, exactly?), and against the drawn token (the usual one). Each beside the exact answer, the exact answer
with every token moved on by one (right entropy, wrong token: what a perfect failure looks like), and a uniform guess.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from wallprobe import findings, models, stats
from wallprobe.errors import ConfigError
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch
from wallprobe.store.results import Result, dataset
from wallprobe.store.runs import Run
from wallprobe.training.wall import evaluate

BINS = 10
SIDES = ("trained", "unsupervised")
PREDICTORS = ("run", "exact", "relabelled", "uniform")

# figure -> (units, what it is)
FIGURES: Mapping[str, tuple[str, str]] = {
    "entropy_mae": ("bits", "mean |H(P) - H(Q)|"),
    "confidence": ("probability", "mean confidence max Q"),
    "exact_confidence": ("probability", "mean confidence of the exact answer, max P"),
    "accuracy": ("fraction", "the first choice is the drawn token"),
    "exact_accuracy": ("probability", "P of the first choice: the probability that it is right"),
    "best_mass": ("probability", "Q's mass on the Bayes-best token, where a rule is at least as likely as noise"),
    "best_mass_geomean": ("probability", "geometric mean of that mass"),
    "best_posterior": ("probability", "P's mass on that token, same sequences"),
    "ece_confidence": ("probability", "calibration error of max Q against max P: as sure as it should be?"),
    "ece_exact": ("probability", "calibration error of max Q against P of the chosen token"),
    "ece_drawn": ("probability", "calibration error of max Q against the drawn token"),
}
ERRORS = {"ece_confidence": "exact_confidence", "ece_exact": "exact_accuracy", "ece_drawn": "accuracy"}


MEANS = ("entropy_mae", "confidence", "exact_confidence", "accuracy", "exact_accuracy", "best_mass", "best_log_mass", "best_posterior")
BINNED = ("confidence", "exact_confidence", "accuracy", "exact_accuracy", "best_mass", "best_posterior", "count", "decided")


@dataclass(frozen=True)
class Moments:
    """What the figures of a predictor are made of, for each resample of the sequences.

    Attributes:
        means: reading -> mean at each position, over the sequences where it is defined.
        sums: reading -> mean over all sequences of what falls in each bin of confidence.
    """

    means: dict[str, Float[Tensor, "draws position"]]
    sums: dict[str, Float[Tensor, "draws position bin"]]

    def part(self, positions: slice) -> "Moments":
        """Some positions only."""
        return Moments(
            {name: values[:, positions] for name, values in self.means.items()},
            {name: values[:, positions] for name, values in self.sums.items()},
        )


def readings(log_probs: Float[Tensor, "batch position vocab"], sample: evaluate.Sample) -> dict[str, Float[Tensor, "batch position"]]:
    """Read a predictor's log-probabilities (fp64) against the exact answer and the drawn tokens; NaN where not defined."""
    drawn, exact = sample.drawn, sample.exact
    seen = evaluate.sequence_metrics(log_probs, drawn.tokens, drawn.is_program, exact)
    top, choice = log_probs.max(-1)
    read = {
        "entropy_mae": seen["mae"],
        "confidence": top.exp(),
        "exact_confidence": exact.predictive.amax(-1),
        "accuracy": seen["top1"],
        "exact_accuracy": exact.predictive.gather(-1, choice[..., None])[..., 0],
        "best_mass": seen["best_mass"],
        "best_log_mass": seen["best_log_mass"],
        "best_posterior": seen["best_posterior"],
        "count": torch.ones_like(top),
        "decided": (~seen["best_mass"].isnan()).to(top.dtype),
    }
    return {name: values[:, sample.task.start :] for name, values in read.items()}  # not the positions within a header


def moments(read: dict[str, Float[Tensor, "batch position"]], weights: Float[Tensor, "draws batch"], bins: int) -> Moments:
    """Readings averaged over the sequences, once for each row of weights; bins are equal and of confidence."""
    place = (read["confidence"] * bins).long().clamp(max=bins - 1)[..., None]
    size = (*place.shape[:2], bins)

    def binned(name: str) -> Tensor:
        spread = torch.zeros(size, dtype=torch.float64).scatter_(2, place, read[name].nan_to_num(0.0)[..., None])
        return (weights @ spread.flatten(1)).reshape(-1, *size[1:])

    return Moments({name: stats.masked_means(weights, read[name]) for name in MEANS}, {name: binned(name) for name in BINNED})


def figures(found: Moments) -> dict[str, Float[Tensor, " draws"]]:
    """Every one of `FIGURES`, over all positions of the moments.

    Means are those over positions of each position's mean. An expected calibration error pools sequences and positions: the sum
    over bins of share x |mean confidence - mean reference|. A sum of absolute values, it is above zero for a perfect predictor of
    finite data (see the exact answer's), and its resamples lie somewhat above it.
    """
    made = {name: values.nanmean(-1) for name, values in found.means.items()}
    made["best_mass_geomean"] = made.pop("best_log_mass").exp()
    sums, positions = found.sums, found.sums["count"].shape[1]
    for error, reference in ERRORS.items():
        made[error] = (sums["confidence"] - sums[reference]).sum(1).abs().sum(-1) / positions
    return made


def reliability(found: Moments) -> dict[str, Float[Tensor, "draws bin"]]:
    """The reliability diagram: share of predictions in each bin and the means there, NaN in an empty bin."""
    sums = {name: values.sum(1) for name, values in found.sums.items()}
    made = {"share": sums["count"] / found.sums["count"].shape[1]}
    for name in ("confidence", "exact_confidence", "accuracy", "exact_accuracy"):
        made[name] = sums[name] / sums["count"]
    for name in ("best_mass", "best_posterior"):
        made[name] = sums[name] / sums["decided"]
    return made


def predictors(log_probs: Float[Tensor, "batch position vocab"], sample: evaluate.Sample) -> dict[str, Tensor]:
    """Log-probabilities of the run and of the three references."""
    exact = sample.exact.predictive.clamp(min=1e-300).log()
    return dict(
        zip(PREDICTORS, (log_probs, exact, exact.roll(1, dims=-1), torch.full_like(exact, -math.log(exact.shape[-1]))), strict=True)
    )


def calibration(run: Run, *, bins: int = BINS, sequences: int = evaluate.SEQUENCES, seed: int = 0, device: str = "cpu") -> Result:
    """Audit a run's calibration and its correctness apart, on the sequences of `evaluate`.

    Args:
        run: a finished run.
        bins: equal bins of confidence, at least 2.
        sequences: how many; at least 2.
        seed: of the sequences and the bootstrap.
        device: torch device.

    Returns:
        Result of kind "calibration", table over positions 1..T-1; reliability over side x bin and the references over
        side x predictor beside it.

    Raises:
        ConfigError: for fewer than 2 bins or 2 sequences.
        CheckpointError: if the weights are damaged.
    """
    if bins < 2:
        raise ConfigError(f"{bins} bins show no reliability; give at least 2")
    watch = Stopwatch()
    sample = evaluate.fresh(run, sequences, seed)
    log_probs = evaluate.predict(models.load_run(run, device), sample.drawn.tokens)
    # The first row is the sample itself, the others its bootstrap resamples.
    weights = torch.cat(
        [
            torch.full((1, sequences), 1 / sequences, dtype=torch.float64),
            stats.resamples(sequences, generator(seed, "calibration bootstrap")),
        ]
    )
    supervised = sample.horizon - sample.task.start
    parts = {"trained": slice(0, supervised), "unsupervised": slice(supervised, None)}
    reads = {who: readings(logs, sample) for who, logs in predictors(log_probs, sample).items()}
    found = moments(reads["run"], weights, bins)
    sides = {side: figures(found.part(part)) for side, part in parts.items()}
    plain = {who: moments(read, weights[:1], bins) for who, read in reads.items()}
    references = {who: [_floats(figures(made.part(part))) for part in parts.values()] for who, made in plain.items()}
    name = str(run.name)
    edges = [(place + 0.5) / bins for place in range(bins)]
    data = dataset(
        {
            "position": list(range(sample.task.start + 1, sample.task.length)),
            "side": list(SIDES),
            "bin": edges,
            "predictor": list(PREDICTORS),
        },
        _by_position(found) | _by_bin([reliability(found.part(part)) for part in parts.values()]) | _by_predictor(references),
        horizon=sample.horizon,
        run=name,
        modulus=sample.task.modulus,
    )
    summary = _summary(name, sides, references) | {"bins": bins, "n_sequences": sequences}
    manifest = evaluate.run_manifest(run, watch, device, sequences=sequences, seed=seed, bins=bins, task=sample.task.config())
    return Result("calibration", data, ("position",), summary | {"finding": _finding(summary, _margins(sides))}, manifest)


Variables = dict[str, tuple[tuple[str, ...], Any, str, str]]


def _with_bounds(name: str, dims: tuple[str, ...], values: Float[Tensor, "draws *cells"], described: tuple[str, str]) -> Variables:
    """A figure from its first row, its bounds from the others."""
    low, high = stats.interval(values[1:])
    return {name + suffix: (dims, part.numpy(), *described) for suffix, part in (("", values[0]), ("_low", low), ("_high", high))}


def _floats(made: dict[str, Tensor]) -> dict[str, float]:
    return {name: float(value[0]) for name, value in made.items()}


def _by_position(found: Moments) -> Variables:
    columns = [figures(found.part(slice(place, place + 1))) for place in range(found.sums["count"].shape[1])]
    variables: Variables = {}
    for name, described in FIGURES.items():
        variables |= _with_bounds(name, ("position",), torch.stack([column[name] for column in columns], dim=-1), described)
    return variables


def _by_bin(sides: list[dict[str, Tensor]]) -> Variables:
    described = {"share": ("fraction", "share of the predictions"), **FIGURES}
    variables: Variables = {}
    for name in sides[0]:
        stacked = torch.stack([side[name] for side in sides], dim=1)
        variables |= _with_bounds(f"bin_{name}", ("side", "bin"), stacked, described[name])
    return variables


def _by_predictor(references: dict[str, list[dict[str, float]]]) -> Variables:
    return {
        f"reference_{name}": (
            ("side", "predictor"),
            [[references[who][place][name] for who in PREDICTORS] for place in range(2)],
            *described,
        )
        for name, described in FIGURES.items()
    }


def _summary(name: str, sides: dict[str, dict[str, Tensor]], references: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    summary: dict[str, Any] = {"run": name}
    for side, found in sides.items():
        for key in FIGURES:
            low, high = stats.interval(found[key][1:])
            values = (found[key][0], low, high)
            summary |= {f"{key}_{side}{suffix}": float(value) for suffix, value in zip(("", "_low", "_high"), values, strict=True)}
    for who in ("exact", "relabelled"):
        for key in ("entropy_mae", "accuracy", "best_mass_geomean", "ece_confidence", "ece_exact", "ece_drawn"):
            summary[f"{who}_{key}_unsupervised"] = references[who][1][key]
    learnt = summary["entropy_mae_trained"] <= evaluate.LEARNT_BITS
    summary["entropy_agrees"] = learnt and summary["entropy_mae_unsupervised"] <= evaluate.WALL_RATIO * summary["entropy_mae_trained"]
    summary["right"] = summary["best_mass_unsupervised"] >= evaluate.RIGHT_SHARE * summary["best_posterior_unsupervised"]
    summary["verdict"] = f"{'calibrated' if summary['entropy_agrees'] else 'entropy off'} and {'right' if summary['right'] else 'wrong'}"
    return summary


def _margins(sides: dict[str, dict[str, Tensor]]) -> dict[str, findings.Bounds]:
    """Bounds of what decides the verdict, of both sides in the same resamples: how far the entropy error beyond the wall lies above
    `WALL_RATIO` times that before it, and the mass of the Bayes-best token above `RIGHT_SHARE` of its due."""
    (trained, beyond), made = (sides[side] for side in ("trained", "unsupervised")), {}
    for name, drawn in (
        ("entropy", beyond["entropy_mae"] - evaluate.WALL_RATIO * trained["entropy_mae"]),
        ("mass", beyond["best_mass"] - evaluate.RIGHT_SHARE * beyond["best_posterior"]),
    ):
        low, high = stats.interval(drawn[1:])
        made[name] = (float(low), float(high))
    return made


def _told(summary: dict[str, Any], margins: Mapping[str, findings.Bounds]) -> str:
    """The verdict where the intervals bear it, else that they do not."""
    trained, low, high = (summary[f"entropy_mae_trained{end}"] for end in ("", "_low", "_high"))
    beyond, mass, due = (summary[f"{key}_unsupervised"] for key in ("entropy_mae", "best_mass", "best_posterior"))
    learnt = findings.side(trained, evaluate.LEARNT_BITS, findings.difference((low, high), evaluate.LEARNT_BITS))
    agrees = findings.side(beyond, evaluate.WALL_RATIO * trained, margins["entropy"])
    if not findings.beyond(beyond, 0.0, noise=evaluate.EXACT_BITS):
        agrees = "below"  # no error at all
    sure = "entropy off" if "above" in (learnt, agrees) else "calibrated"
    if sure == "calibrated" and "level" in (learnt, agrees):
        sure = "calibrated or not (undecided within the intervals)"
    right = {"above": "right", "below": "wrong", "level": "right or wrong (undecided within the intervals)"}
    return f"{sure} and {right[findings.side(mass, evaluate.RIGHT_SHARE * due, margins['mass'])]}"


def _finding(summary: dict[str, Any], margins: Mapping[str, findings.Bounds]) -> str:
    """One plain sentence: as sure as it should be, and sure of what?"""

    def beyond(key: str) -> float:
        return float(summary[f"{key}_unsupervised"])

    geomean = beyond("best_mass_geomean")
    mass = f"{geomean:.2f}" if geomean >= 0.01 else f"1/{round(1 / geomean):,}" if geomean > 1e-12 else "nothing"
    return (
        f"{summary['run']}, unsupervised positions: {_told(summary, margins)}. Entropy is {beyond('entropy_mae'):.3g} bits off; confidence "
        f"misses what is due by {beyond('ece_confidence'):.3f} and what comes true by {beyond('ece_drawn'):.3f} (calibration errors); the "
        f"first choice is right {beyond('accuracy'):.2f} of the time, and the Bayes-best token, due {beyond('best_posterior'):.2f}, "
        f"usually gets {mass}."
    )
