"""Temperature sweep: can any rescaling of a run's logits recover the exact answer, and where?

KL(P || softmax(beta z)) is convex in the inverse temperature beta = 1/T, so its minimum is the only one and is found by Newton's
method inside a bracket. beta = 0 (T infinite, the uniform guess) is allowed: it is the best one can do with logits that point away
from the answer. Source: the wall study, "The substrate exists everywhere".
"""

import math
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

GRID = tuple(10 ** (step / 10) for step in range(-10, 21))  # 0.1 to 100, 1 among them
HIGHEST_INVERSE = 100.0
# Of the KL of a uniform guess, the share that the best temperature must take away before we say that it recovers Bayes.
RECOVERED = 0.9
NAT = 1 / math.log(2.0)  # bits


@dataclass(frozen=True)
class Readout:
    """What KL(P || Q_T) needs of a run's predictions and of P, whatever the temperature.

    Attributes:
        logits: log Q(v) - max log Q.
        expected: E_P of these.
        negentropy: E_P log P, nats.
    """

    logits: Float[Tensor, "batch position vocab"]
    expected: Float[Tensor, "batch position"]
    negentropy: Float[Tensor, "batch position"]

    @classmethod
    def of(cls, log_probs: Float[Tensor, "batch position vocab"], predictive: Float[Tensor, "batch position vocab"]) -> "Readout":
        """From the run's log-probabilities (fp64) and P."""
        logits = log_probs - log_probs.amax(-1, keepdim=True)
        return cls(logits, (predictive * logits).sum(-1), torch.special.xlogy(predictive, predictive).sum(-1))

    def part(self, positions: slice) -> "Readout":
        """Some positions only."""
        return Readout(self.logits[:, positions], self.expected[:, positions], self.negentropy[:, positions])

    def kl(self, inverse: Float[Tensor, " position"]) -> Float[Tensor, "batch position"]:
        """KL(P || Q_T) in nats at one beta = 1/T a position."""
        return self.negentropy - inverse * self.expected + (self.logits * inverse[:, None]).exp().sum(-1).log()

    def derivatives(self, inverse: Float[Tensor, " position"]) -> tuple[Float[Tensor, "batch position"], Float[Tensor, "batch position"]]:
        """First and second derivative of `kl` in beta: E_q z - E_P z, and Var_q z."""
        raised = (self.logits * inverse[:, None]).exp()
        total = raised.sum(-1)
        mean = (raised * self.logits).sum(-1) / total
        return mean - self.expected, (raised * self.logits.square()).sum(-1) / total - mean.square()


@dataclass(frozen=True)
class Optimum:
    """The best inverse temperature of each position and the KL (nats) there, with 95 % bootstrap bounds."""

    inverse: Float[Tensor, " position"]
    inverse_low: Float[Tensor, " position"]
    inverse_high: Float[Tensor, " position"]
    kl: Float[Tensor, " position"]
    kl_draws: Float[Tensor, "draws position"]


def best_inverse(readout: Readout, *, pooled: bool = False) -> Float[Tensor, " position"]:
    """The beta = 1/T that minimises mean KL(P || Q_T), in [0, `HIGHEST_INVERSE`].

    Args:
        readout: of sequences by positions.
        pooled: one for all positions, instead of one for each.
    """
    positions = readout.logits.shape[1]

    def slopes(inverse: Tensor) -> tuple[Tensor, Tensor]:
        slope, curvature = (values.mean(0) for values in readout.derivatives(inverse))
        return (slope.mean().expand(positions), curvature.mean().expand(positions)) if pooled else (slope, curvature)

    low = torch.zeros(positions, dtype=torch.float64)
    high = torch.full_like(low, HIGHEST_INVERSE)
    # A slope of nothing but rounding: every logit alike, or P uniform. The uniform guess is then as good as any.
    floor, ceiling = slopes(low)[0] >= -1e-12, slopes(high)[0] <= 0
    inverse = torch.ones_like(low)
    for _ in range(100):
        slope, curvature = slopes(inverse)
        low, high = torch.where(slope < 0, inverse, low), torch.where(slope < 0, high, inverse)
        newton = inverse - slope / curvature
        inside = (newton > low) & (newton < high)  # False for NaN too, where the curvature has vanished
        following = torch.where(inside, newton, (low + high) / 2)
        moved = (following - inverse).abs().masked_fill(floor | ceiling, 0.0).max()
        inverse = following
        if moved < 1e-9:
            break
    return inverse.masked_fill(floor, 0.0).masked_fill(ceiling, HIGHEST_INVERSE)


def optimum(readout: Readout, weights: Float[Tensor, "draws batch"], *, pooled: bool = False) -> Optimum:
    """`best_inverse`, the mean KL there, and both over bootstrap resamples, each minimised anew by one Newton step.

    Pooled figures are means over positions, with one temperature for all.
    """
    inverse = best_inverse(readout, pooled=pooled)
    kl, (slope, curvature) = readout.kl(inverse), readout.derivatives(inverse)
    if pooled:
        inverse = inverse[:1]
        kl, slope, curvature = (values.mean(1, keepdim=True) for values in (kl, slope, curvature))
    slopes, curvatures = weights @ slope, weights @ curvature
    moved = (inverse - torch.where(curvatures > 0, slopes / curvatures, 0.0)).clamp(0.0, HIGHEST_INVERSE)
    step = moved - inverse
    low, high = stats.interval(moved)
    return Optimum(inverse, low, high, kl.mean(0), weights @ kl + slopes * step + curvatures * step.square() / 2)


def sweep(readout: Readout, temperatures: tuple[float, ...]) -> Float[Tensor, "position temperature"]:
    """Mean KL(P || Q_T) in bits at each temperature."""
    ones = torch.ones(readout.logits.shape[1], dtype=torch.float64)
    return torch.stack([readout.kl(ones / value).mean(0) for value in temperatures], dim=-1) * NAT


def temperature(
    run: Run,
    *,
    temperatures: tuple[float, ...] = GRID,
    sequences: int = evaluate.SEQUENCES,
    seed: int = 0,
    device: str = "cpu",
) -> Result:
    """KL(P || Q_T) over temperatures, and each position's best one, on the sequences of `evaluate`.

    The best temperature is fitted on the sequences it is measured on, one for each position: a bound that no calibration of
    the logits by a temperature can beat.

    Args:
        run: a finished run.
        temperatures: of the sweep, above 0.
        sequences: how many; at least 2.
        seed: of the sequences and the bootstrap.
        device: torch device.

    Returns:
        Result of kind "temperature", table over positions 1..T-1; `kl_bits` over position x temperature beside it.

    Raises:
        ConfigError: for fewer than 2 sequences, or a temperature that is not above 0 and finite.
        CheckpointError: if the weights are damaged.
    """
    check_temperatures(temperatures)
    watch = Stopwatch()
    sample = evaluate.fresh(run, sequences, seed)
    task, skip = sample.task, slice(sample.task.start, None)  # positions within a header predict nothing of the sequence
    log_probs = evaluate.predict(models.load_run(run, device), sample.drawn.tokens)[:, skip]
    drawn, exact = sample.drawn.tokens[:, 1:][:, skip], sample.exact
    readout = Readout.of(log_probs, exact.predictive[:, skip])
    weights = stats.resamples(sequences, generator(seed, "temperature bootstrap"))
    best = optimum(readout, weights)
    cells = {
        "kl_at_one": readout.kl(torch.ones(drawn.shape[1], dtype=torch.float64)) * NAT,
        "kl_uniform": (math.log2(task.vocabulary) - exact.entropy[:, skip]).clamp(min=0),
        "top1": (log_probs.argmax(-1) == drawn).double(),
        "top1_exact": (exact.best[:, skip] == drawn).double(),
    }
    draws = {name: weights @ values for name, values in cells.items()} | {"kl_best": best.kl_draws * NAT}
    means = {name: values.mean(0) for name, values in cells.items()} | {"kl_best": best.kl * NAT}
    grid = tuple(sorted(set(temperatures)))
    data = dataset(
        {"position": list(range(task.start + 1, task.length)), "temperature": list(grid)},
        _variables(best, means, draws) | {"kl_bits": (("position", "temperature"), sweep(readout, grid).numpy(), "bits", "KL(P || Q_T)")},
        horizon=sample.horizon,
        run=str(run.name),
        modulus=task.modulus,
    )
    supervised = sample.horizon - task.start
    sides = {"trained": slice(0, supervised), "unsupervised": slice(supervised, None)}
    pooled = {side: optimum(readout.part(part), weights, pooled=True) for side, part in sides.items()}
    summary = {"run": str(run.name), "n_sequences": sequences} | _summary(means, draws, pooled, sides)
    config = {"sequences": sequences, "temperatures": list(grid), "task": task.config()}
    manifest = evaluate.run_manifest(run, watch, device, seed=seed, **config)
    return Result("temperature", data, ("position",), summary | {"finding": _finding(summary)}, manifest)


def parse_temperatures(text: str) -> tuple[float, ...]:
    """Read `0.5,1,2`.

    Raises:
        ConfigError: if one is no number, or none that can be swept.
    """
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ConfigError(f"temperatures '{text}' are not numbers; give finite ones above 0, such as 0.5,1,2") from error
    check_temperatures(found)
    return found


def check_temperatures(temperatures: tuple[float, ...]) -> None:
    """Raise ConfigError unless there is one and all are finite and above 0."""
    wrong = [value for value in temperatures if not (0 < value < math.inf)]
    if wrong or not temperatures:
        given = f"temperature {wrong[0]:g}" if wrong else "an empty list"
        raise ConfigError(f"{given} cannot be swept; give finite temperatures above 0, such as 0.5,1,2")


Variables = dict[str, tuple[tuple[str, ...], Any, str, str]]
LONG = {
    "kl_best": ("kl_at_t_star_bits", "bits", "KL(P || Q_T) at the position's best temperature"),
    "kl_at_one": ("kl_at_one_bits", "bits", "KL(P || Q) as the run says it, T = 1"),
    "kl_uniform": ("kl_uniform_bits", "bits", "KL of the uniform guess, T infinite"),
    "top1": ("top1", "fraction", "the run's first choice is the actual next token, at any temperature"),
    "top1_exact": ("top1_exact", "fraction", "the exact answer's first choice is the actual next token"),
}


SHORT = {"kl_at_t_star_bits": "kl_best_bits"}


def _variables(best: Optimum, means: dict[str, Tensor], draws: dict[str, Tensor]) -> Variables:
    """Figures by position with their bounds; a best temperature may be infinite, its inverse never is."""
    along = ("position",)
    variables: Variables = {}
    for suffix, inverse, temperature in (
        ("", best.inverse, best.inverse),
        ("_low", best.inverse_low, best.inverse_high),
        ("_high", best.inverse_high, best.inverse_low),
    ):
        variables[f"t_star{suffix}"] = (along, (1 / temperature).numpy(), "1", "best temperature T*")
        variables[f"inverse_t_star{suffix}"] = (along, inverse.numpy(), "1", "1/T*; 0 is the uniform guess")
    for key, (name, units, what) in LONG.items():
        low, high = stats.interval(draws[key])
        for suffix, values in (("", means[key]), ("_low", low), ("_high", high)):
            variables[name + suffix] = (along, values.numpy(), units, what)
    return variables


def _summary(
    means: dict[str, Tensor], draws: dict[str, Tensor], pooled: dict[str, Optimum], sides: dict[str, slice]
) -> dict[str, float | None]:
    """Means over the supervised and the unsupervised positions; an infinite temperature is None, its inverse 0."""
    summary: dict[str, float | None] = {}

    def add(key: str, value: Tensor, drawn: Tensor) -> None:
        low, high = stats.interval(drawn)
        summary.update({key: float(value), f"{key}_low": float(low), f"{key}_high": float(high)})

    for side, part in sides.items():
        for key, (name, _, _) in LONG.items():
            add(f"{SHORT.get(name, name)}_{side}", means[key][part].mean(), draws[key][:, part].mean(-1))
        ratio = means["kl_best"][part].mean() / means["kl_uniform"][part].mean()
        add(f"recovered_{side}", 1 - ratio, 1 - draws["kl_best"][:, part].mean(-1) / draws["kl_uniform"][:, part].mean(-1))
        one = pooled[side]
        inverse, below, above = (float(value[0]) for value in (one.inverse, one.inverse_low, one.inverse_high))
        for suffix, value in (("", inverse), ("_low", above), ("_high", below)):
            summary[f"t_star_{side}{suffix}"] = 1 / value if value > 0 else None
        summary[f"inverse_t_star_{side}"] = inverse
        summary[f"kl_single_t_bits_{side}"] = float(one.kl[0]) * NAT
    return summary


def _finding(summary: dict[str, Any]) -> str:
    """One plain sentence: does any temperature recover Bayes beyond the wall?"""
    best, one, uniform, single = (
        summary[f"{name}_unsupervised"] for name in ("kl_best_bits", "kl_at_one_bits", "kl_uniform_bits", "kl_single_t_bits")
    )
    t_star = summary["t_star_unsupervised"]
    tuned = "infinite" if t_star is None or not findings.beyond(0.999 * uniform, single) else f"{t_star:.2g}"
    recovered, bounds = summary["recovered_unsupervised"], (summary["recovered_unsupervised_low"], summary["recovered_unsupervised_high"])
    verdict = {
        "above": "a temperature recovers Bayes",
        "level": f"a temperature may recover Bayes ({RECOVERED:.0%} lies within the interval)",
        "below": "no temperature recovers Bayes",
    }[findings.side(recovered, RECOVERED, findings.difference(bounds, RECOVERED))]
    return (
        f"{summary['run']}: {verdict} at unsupervised positions: KL {one:.2f} bits at T = 1, {single:.2f} at the best one (T {tuned}), "
        f"{best:.2f} with a best one for each position, {uniform:.2f} for a uniform guess; at supervised positions "
        f"{summary['kl_best_bits_trained']:.3f}. Top-1 {summary['top1_unsupervised']:.2f}, the exact answer's "
        f"{summary['top1_exact_unsupervised']:.2f}."
    )
