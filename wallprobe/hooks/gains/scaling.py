"""The scaling law: log10 of the last MLP's gain against log10 of size, by least squares, with all that says how far to believe it.

One model is one point, so eight models are eight points: beside the standard error stand a t interval, a bootstrap over models, the fit
without each model, two rank-based estimates and other measures of size. Source: the gains study, 6.1 and 6.5.1.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from wallprobe.errors import ConfigError
from wallprobe.findings import beyond
from wallprobe.hooks.gains.critical import Critical, critical_size
from wallprobe.hooks.gains.published import EXTRAPOLATED, PYTHIA
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset

Array = npt.NDArray[np.float64]
LEAST, LEVEL, BEYOND = 3, 0.95, 10.0  # models; of the intervals; times the largest model, from where a prediction is marked
PREDICTORS: Mapping[str, str] = MappingProxyType(
    {
        "n_params": "parameters, embeddings included",
        "n_params_non_embedding": "parameters without embeddings",
        "d_model": "width of the residual stream",
        "n_layers": "layers",
    }
)
DEFAULT_PREDICTOR = "n_params"
QUANTITIES = ("final_mlp_gain", "final_mlp_gain_no_sink", "final_mlp_gain_no_first", "final_mlp_gain_last")


@dataclass(frozen=True)
class Point:
    """One model.

    Attributes:
        model: its name.
        n_params, n_params_non_embedding, d_model, n_layers: measures of size.
        gain: the last MLP's.
        by_prompt: that gain on each prompt, where it was measured on several.
        quality: ln V - loss, nats, where it was measured.
    """

    model: str
    n_params: float
    n_params_non_embedding: float
    d_model: float
    n_layers: float
    gain: float
    by_prompt: tuple[float, ...] = ()
    quality: float = math.nan


@dataclass(frozen=True)
class Fit:
    """log10 y = alpha log10 x + intercept by least squares.

    Attributes:
        alpha, alpha_se: slope and its standard error.
        intercept: at log10 x = 0.
        r2: share of the variance of log10 y.
        p: two-sided, of alpha = 0, t with n - 2 degrees of freedom.
        ci_low, ci_high: 95 % t interval of alpha.
        residual: standard deviation of the residuals, n - 2 degrees of freedom.
        n, centre, spread: number of points, mean of log10 x and sum of squares about it.
    """

    alpha: float
    alpha_se: float
    intercept: float
    r2: float
    p: float
    ci_low: float
    ci_high: float
    residual: float
    n: int
    centre: float
    spread: float

    def predict(self, x: float) -> tuple[float, float, float]:
        """y at x with the 95 % interval of one new model: 10^(fit +- t s sqrt(1 + 1/n + (log x - centre)^2 / spread))."""
        at = math.log10(x)
        middle = self.intercept + self.alpha * at
        half = _t(self.n - 2) * self.residual * math.sqrt(1 + 1 / self.n + (at - self.centre) ** 2 / self.spread)
        return 10**middle, 10 ** (middle - half), 10 ** (middle + half)


def _t(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + LEVEL) / 2))


def fit(x: Sequence[float], y: Sequence[float]) -> Fit:
    """Least squares through at least three points of positive values.

    Raises:
        ConfigError: if there are fewer, if a value is not positive, or if all x are equal.
    """
    from scipy.stats import linregress

    if len(x) < LEAST:
        raise ConfigError(f"a scaling law needs at least {LEAST} models, got {len(x)}; give more: wallprobe gains MODEL MODEL MODEL --fit")
    if not all(math.isfinite(value) and value > 0 for value in (*x, *y)):
        raise ConfigError("a scaling law needs sizes and gains above 0; a model here has a gain that is unknown or not positive")
    across, up = np.log10(np.asarray(x, dtype=float)), np.log10(np.asarray(y, dtype=float))
    spread = float(((across - across.mean()) ** 2).sum())
    if spread < 1e-12:
        raise ConfigError(f"all {len(x)} models have the same size ({x[0]:g}); a scaling law needs models of different sizes")
    found: Any = linregress(across, up)
    alpha, error = float(found.slope), float(found.stderr)
    half = _t(len(x) - 2) * error
    residual = math.sqrt(float(((up - found.intercept - alpha * across) ** 2).sum()) / (len(x) - 2))
    return Fit(
        alpha,
        error,
        float(found.intercept),
        float(found.rvalue) ** 2,
        float(found.pvalue),
        alpha - half,
        alpha + half,
        residual,
        len(x),
        float(across.mean()),
        spread,
    )


def bootstrap(x: Sequence[float], y: Sequence[Sequence[float]], rng: torch.Generator, draws: int = 10_000) -> tuple[float, float]:
    """95 % percentile interval of alpha over resampled models, those draws kept that hold three distinct sizes or more.

    Args:
        x: sizes.
        y: each model's gains by prompt, resampled within the model as well; a single one stays as it is.
        rng: of the draws.
        draws: how many to keep.

    Returns:
        Lower and upper bound; NaN below four models, where every draw is the same.
    """
    n = len(x)
    if n <= LEAST:
        return math.nan, math.nan
    kept: list[Array] = []
    while sum(map(len, kept)) < draws:
        picks = torch.randint(n, (draws, n), generator=rng).numpy()
        ordered = np.sort(np.asarray(x)[picks], axis=1)
        kept.append(picks[1 + (np.diff(ordered, axis=1) != 0).sum(axis=1) >= LEAST])
    chosen = np.concatenate(kept)[:draws]
    across, up = np.log10(np.asarray(x, dtype=float))[chosen], np.empty(chosen.shape)
    for model, values in enumerate(y):
        each = torch.tensor(list(values), dtype=torch.float64)
        again = torch.randint(len(each), (*chosen.shape, len(each)), generator=rng)
        up = np.where(chosen == model, np.log10(each[again].mean(dim=-1).numpy()), up)
    across = across - across.mean(axis=1, keepdims=True)
    slopes = (across * up).sum(axis=1) / (across**2).sum(axis=1)
    low, high = np.quantile(slopes, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def published_points() -> list[Point]:
    """The eight Pythia models as published (`published`)."""
    return [
        Point(
            one.model,
            float(one.n_params),
            float(one.n_params_non_embedding),
            float(one.d_model),
            float(one.n_layers),
            one.final_mlp_gain,
        )
        for one in PYTHIA
    ]


def points_of(results: Sequence[Result], quantity: str = QUANTITIES[0]) -> list[Point]:
    """One point a Result.

    Args:
        results: of kind "gains", or of kind "flow", which know the loss too; all by one definition, reduction and prompt set.
        quantity: one of `QUANTITIES`.

    Raises:
        ConfigError: if they were measured in different ways, if one has no size, or if the quantity is unknown.
    """
    if quantity not in QUANTITIES:
        raise ConfigError(f"no quantity '{quantity}' to fit; there are: {', '.join(QUANTITIES)}")
    kinds = {result.kind for result in results}
    if len(kinds) > 1 or not kinds <= {"gains", "flow"}:
        raise ConfigError(
            f"a scaling law is fitted to results of kind gains, or all of kind flow, not {' and '.join(sorted(kinds))}; "
            "make them: wallprobe gains MODEL"
        )
    texts = {result.manifest.get("data_hash") for result in results}
    if kinds == {"flow"} and len(texts) > 1:
        raise ConfigError(
            "these models read different tokens (their tokenizers differ), so their losses do not compare; leave --efficiency out"
        )
    for key in ("definition", "tokens", "prompts"):
        ways = sorted({str(result.summary.get(key)) for result in results})
        if len(ways) > 1:
            raise ConfigError(f"these results differ in {key} ({', '.join(ways)}), one law cannot go through them; measure them alike")
    points = []
    for result in results:
        summary = result.summary
        sizes = [float(summary[name]) for name in PREDICTORS if summary.get(name)]
        if len(sizes) != len(PREDICTORS):
            raise ConfigError(f"the result of {summary.get('model')} does not say its size; measure it again: wallprobe gains MODEL")
        name = quantity.replace("final_", "") + "_by_prompt"
        known = result.data[name].values[-1] if name in result.data else np.array([])
        each = tuple(float(value) for value in known if math.isfinite(value) and value > 0)
        told = (math.nan if summary.get(key) is None else float(summary[key]) for key in (quantity, "quality"))
        value, quality = told
        points.append(Point(str(summary["model"]), sizes[0], sizes[1], sizes[2], sizes[3], value, each, quality))
    return points


def scaling(
    points: Sequence[Point],
    *,
    quantity: str = QUANTITIES[0],
    source: str = "measured",
    targets: Sequence[float] | None = None,
    seed: int = 42,
    draws: int = 10_000,
) -> Result:
    """The scaling law of these models.

    Args:
        points: at least three models of different sizes.
        quantity: what the gain is, for the record.
        source: "published" for the study's own models, else where the points come from.
        targets: parameters to extrapolate to; by default the published ones.
        seed: of the bootstrap.
        draws: bootstrap resamples.

    Returns:
        Result of kind "scaling". Table by row; `part` says of what: "model" (a point), "fit" (by a measure of size), "without" (the fit
        without that model), "robust" (rank-based or without the two largest) or "extrapolation".

    Raises:
        ConfigError: as `fit`.
    """
    watch = Stopwatch()
    gains = [point.gain for point in points]
    fits = {name: _try_fit([getattr(point, name) for point in points], gains) for name in PREDICTORS}
    sizes = [point.n_params for point in points]
    law = fit(sizes, gains)
    spread = bootstrap(sizes, [[gain] for gain in gains], generator(seed, "scaling", "models"), draws)
    nested = (math.nan, math.nan)
    if any(len(point.by_prompt) > 1 for point in points):
        nested = bootstrap(sizes, [point.by_prompt or (point.gain,) for point in points], generator(seed, "scaling", "prompts"), draws)
    without = _without(points) if len(points) > LEAST else {}
    robust = _robust(points)
    published = source == "published"
    ahead = _extrapolation(law, points, list(EXTRAPOLATED) if targets is None else list(targets), published=published)
    rows = _rows(points, law, fits, without, robust, ahead)
    summary = _summary(points, law, spread, nested, without, robust) | {"quantity": quantity, "source": source}
    summary |= _critical(points, seed)
    summary["finding"] = _finding(summary)
    models = {point.model: [point.n_params, point.gain] for point in points}
    manifest = provenance(
        config={"models": models, "quantity": quantity, "seed": seed, "draws": draws}
        | ({} if targets is None else {"targets": list(targets)}),
        device="cpu",
        dtype="float64",
        watch=watch,
        subject=f"{source} {len(points)} models",
        weight_hash=None,
        weight_processing="none",
        seeds={"bootstrap": seed},
        formula="log10 gain = alpha log10 size + intercept, ordinary least squares",
    )
    return Result("scaling", _dataset(rows, quantity, source), ("row",), summary, manifest)


def _critical(points: Sequence[Point], seed: int) -> dict[str, Any]:
    """Efficiency's trend and N*, or why there is none."""
    quality = [point.quality for point in points]
    if all(math.isnan(value) for value in quality):
        why = "no losses here; measure them: wallprobe flow MODEL..., then wallprobe scaling MODEL... --efficiency"
        found, trend = Critical.none(why), None
    else:
        sizes, gains = [point.n_params for point in points], [point.gain for point in points]
        found = critical_size(sizes, quality, gains, generator(seed, "scaling", "critical"))
        etas = [value / gain for value, gain in zip(quality, gains, strict=True)]
        trend = _try_fit(sizes, etas) if all(eta > 0 for eta in etas) else None
    return {
        "n_star": found.n_star,
        "n_star_low": found.low,
        "n_star_high": found.high,
        "n_star_unbounded": found.unbounded,
        "n_star_reason": found.reason or None,
        "quality_limit": found.limit,
        "quality_rate": found.rate,
        "eta_alpha": math.nan if trend is None else trend.alpha,
        "eta_alpha_low": math.nan if trend is None else trend.ci_low,
        "eta_alpha_high": math.nan if trend is None else trend.ci_high,
    }


def _try_fit(x: list[float], y: list[float]) -> Fit | None:
    """None where this measure of size does not vary."""
    return None if len(set(x)) < 2 else fit(x, y)


def _without(points: Sequence[Point]) -> dict[str, Fit]:
    """The fit without each model; those whose rest is of one size are left out."""
    found = {}
    for left in points:
        rest = [point for point in points if point is not left]
        again = _try_fit([point.n_params for point in rest], [point.gain for point in rest])
        if again is not None:
            found[left.model] = again
    return found


def _robust(points: Sequence[Point]) -> dict[str, dict[str, float]]:
    """Theil-Sen's slope, Spearman's correlation, and the fit without the two largest models."""
    from scipy.stats import spearmanr, theilslopes

    across, up = np.log10([point.n_params for point in points]), np.log10([point.gain for point in points])
    slope, _, low, high = (float(value) for value in theilslopes(up, across, LEVEL))
    rank: Any = spearmanr(across, up)
    found = {
        "Theil-Sen": {"alpha": slope, "low": low, "high": high},
        "Spearman": {"correlation": float(rank.statistic), "p": float(rank.pvalue)},
    }
    rest = sorted(points, key=lambda point: point.n_params)[:-2]
    if len(rest) >= LEAST:
        small = _try_fit([point.n_params for point in rest], [point.gain for point in rest])
        if small is not None:
            found["without the two largest"] = _told(small)
    return found


def _told(one: Fit) -> dict[str, float]:
    return {"alpha": one.alpha, "alpha_se": one.alpha_se, "r2": one.r2, "p": one.p, "low": one.ci_low, "high": one.ci_high}


def _extrapolation(law: Fit, points: Sequence[Point], targets: list[float], *, published: bool) -> list[dict[str, float]]:
    """The formula's value with its prediction interval, the law anchored at the largest model, and the published figure."""
    largest = max(points, key=lambda point: point.n_params)
    rows = []
    for target in targets:
        value, low, high = law.predict(target)
        anchored = largest.gain * (target / largest.n_params) ** law.alpha
        row = {"x": target, "formula": value, "low": low, "high": high, "anchored": anchored}
        row["beyond"] = float(target > BEYOND * largest.n_params)
        row["seed_says"] = EXTRAPOLATED.get(target, math.nan) if published else math.nan
        rows.append(row)
    return rows


NUMBERS: Mapping[str, str] = MappingProxyType(
    {
        "x": "size: parameters, or the row's measure of size",
        "gain": "the last MLP's gain",
        "alpha": "exponent",
        "alpha_se": "its standard error",
        "r2": "share of the variance of log10 gain",
        "p": "two-sided p-value",
        "correlation": "Spearman's rank correlation",
        "low": "lower 95 % bound, of alpha or of the gain of a new model",
        "high": "upper 95 % bound, of alpha or of the gain of a new model",
        "formula": "extrapolated gain by the fitted formula",
        "anchored": "extrapolated gain by the fitted exponent from the largest model's gain",
        "seed_says": "what the study extrapolates to",
        "beyond": "1 where the size is above 10 times the largest model's",
        "quality": "ln V - loss, nats",
        "eta": "quality over gain, nats per unit of gain",
    }
)


def _rows(
    points: Sequence[Point],
    law: Fit,
    fits: Mapping[str, Fit | None],
    without: Mapping[str, Fit],
    robust: Mapping[str, Mapping[str, float]],
    ahead: Sequence[Mapping[str, float]],
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for point in points:
        value, low, high = law.predict(point.n_params)
        row = {"part": "model", "label": point.model, "x": point.n_params, "gain": point.gain, "formula": value, "low": low, "high": high}
        rows.append(row | {"quality": point.quality, "eta": point.quality / point.gain})
    rows += [{"part": "fit", "label": name, **_told(one)} for name, one in fits.items() if one is not None]
    rows += [{"part": "without", "label": name, **_told(one)} for name, one in without.items()]
    rows += [{"part": "robust", "label": name, **told} for name, told in robust.items()]
    return rows + [{"part": "extrapolation", "label": size_text(row["x"]), **row} for row in ahead]


def _dataset(rows: Sequence[Mapping[str, Any]], quantity: str, source: str) -> Any:
    variables: dict[str, Any] = {
        name: (("row",), [str(row[name]) for row in rows], "", what)
        for name, what in (("part", "what the row is of"), ("label", "which one"))
    }
    for name, what in NUMBERS.items():
        variables[name] = (("row",), [float(row.get(name, math.nan)) for row in rows], "1", what)
    return dataset({"row": list(range(len(rows)))}, variables, quantity=quantity, source=source)


def size_text(size: float) -> str:
    """Parameters as people write them: 70M, 1.8T."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if size >= 0.9995 * unit:
            return f"{size / unit:.3g}{letter}"
    return f"{size:.3g}"


def _summary(
    points: Sequence[Point],
    law: Fit,
    spread: tuple[float, float],
    nested: tuple[float, float],
    without: Mapping[str, Fit],
    robust: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    ranks, small = robust["Spearman"], robust.get("without the two largest", {})
    slopes, chances = [one.alpha for one in without.values()] or [math.nan], [one.p for one in without.values()] or [math.nan]
    return {
        "n_models": len(points),
        "alpha": law.alpha,
        "alpha_se": law.alpha_se,
        "intercept": law.intercept,
        "coefficient": 10**law.intercept,
        "r2": law.r2,
        "p": law.p,
        "ci_low": law.ci_low,
        "ci_high": law.ci_high,
        "bootstrap_low": spread[0],
        "bootstrap_high": spread[1],
        "bootstrap_prompts_low": nested[0],
        "bootstrap_prompts_high": nested[1],
        "loo_alpha_low": min(slopes),
        "loo_alpha_high": max(slopes),
        "loo_p_high": max(chances),
        "loo_significant": f"{sum(p < 0.05 for p in chances)}/{len(without)}" if without else None,
        "theil_sen": robust["Theil-Sen"]["alpha"],
        "theil_sen_low": robust["Theil-Sen"]["low"],
        "theil_sen_high": robust["Theil-Sen"]["high"],
        "spearman": ranks["correlation"],
        "spearman_p": ranks["p"],
        "small_alpha": small.get("alpha", math.nan),
        "small_alpha_se": small.get("alpha_se", math.nan),
        "small_p": small.get("p", math.nan),
    }


def _finding(summary: Mapping[str, Any]) -> str:
    """One plain sentence: the law, and whether it hangs on a single model."""
    law = f"gain = {summary['coefficient']:.3g} x parameters^({summary['alpha']:.3f} ± {summary['alpha_se']:.3f})"
    start = f"Over {summary['n_models']} models {law}, R² {summary['r2']:.2f}, p {summary['p']:.3g}, 95 % interval "
    start += f"{summary['ci_low']:.3f} to {summary['ci_high']:.3f}"
    if summary["loo_significant"] is None:
        return f"{start}; three points say little, and leaving one out leaves no fit."
    held, _, of = summary["loo_significant"].partition("/")
    if not beyond(0.05, summary["p"]):
        return f"{start}; the exponent cannot be told from 0."
    if held == of:
        return f"{start}; leaving out any one model keeps p below 0.05."
    return (
        f"{start}; leaving out one model lifts p to as much as {summary['loo_p_high']:.3g}, above 0.05 for {int(of) - int(held)} of {of}."
    )
