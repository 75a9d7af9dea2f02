"""How far a token's influence reaches, and the loss at every position (the equilibrium study, experiment 7).

I(d) = mean |h_q(x + e u) - h_q(x - e u)| / 2e: the embedding is nudged along random unit vectors u at d positions before the query q,
h is the last residual stream, e a hundredth of the mean norm |x|. rel = I |x| / |h| takes both scales out. A row counts if half of e
says the same to 10 %; of an equilibrium model h is the state, and it must have converged. What comes before the nudge must not move by
a bit, and the mean of the losses must be the evaluation's.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.findings import beyond
from wallprobe.hooks.attach import cache
from wallprobe.hooks.attach.subjects import Subject, evaluation_losses, real
from wallprobe.models.equilibrium import Equilibrium
from wallprobe.rng import generator
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset
from wallprobe.training.estimators.gradients import masked_mean, token_losses
from wallprobe.training.estimators.protocol import Batch

DISTANCES = (1, 2, 4, 8, 16, 32, 64, 128, 200, 256, 512)
DELTA, DIRECTIONS = 1e-2, 4
MOST_STEPS = 3000  # of a relaxation
AGREE = 0.1  # between delta and half of it
LOSS_AGREES = 1e-4  # nats, between the mean over positions and the evaluation's
EMBED = "hook_embed"


@dataclass(frozen=True)
class Settings:
    """How to probe.

    Attributes:
        distances: positions before the query; None for the powers of two that fit.
        query: the index that is read; None for the last that every sequence has.
        delta: of the mean norm of the embedding.
        directions: random unit vectors a distance and sequence.
        seed: of them.
    """

    distances: tuple[int, ...] | None = None
    query: int | None = None
    delta: float = DELTA
    directions: int = DIRECTIONS
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what measures nothing.

        Raises:
            ConfigError: naming it.
        """
        if not self.delta > 0 or self.directions < 1:
            raise ConfigError(f"delta {self.delta:g} and {self.directions} directions probe nothing; give a positive delta, 1 or more")
        if self.distances is not None and (not self.distances or min(self.distances) < 1):
            raise ConfigError(f"distances {', '.join(map(str, self.distances)) or 'none'}: give 1 or more, commas between")

    def places(self, last: int) -> tuple[int, tuple[int, ...]]:
        """Query and distances for sequences whose last common index is `last`.

        Raises:
            ConfigError: if the query is beyond it, or a distance beyond the query.
        """
        query = last if self.query is None else self.query
        if not 1 <= query <= last:
            raise ConfigError(f"query {query} is not among the indices 1..{last} that every sequence has")
        chosen = self.distances or tuple(d for d in DISTANCES if d <= query)
        if max(chosen) > query:
            raise ConfigError(f"distance {max(chosen)} reaches before the first token from query {query}; give {query} or less")
        return query, chosen


@dataclass(frozen=True)
class Mixed:
    """What one checkpoint says.

    Attributes:
        found: the checkpoint.
        query: the index read.
        influence: distance -> (I at delta, I at half of it, why it does not count or an empty text).
        x_norm, h_norm: mean norms of the embedding and of what is read.
        losses: mean cross-entropy of each position, nats.
        counts: labels of each.
        val: mean over the labels that count, from these losses.
        evaluated: the same by the model's own evaluation.
    """

    found: Subject
    query: int
    influence: dict[int, tuple[float, float, str]]
    x_norm: float
    h_norm: float
    losses: list[float]
    counts: list[int]
    val: float
    evaluated: float


def measure(found: Subject, settings: Settings | None = None, on_progress: Callable[[int, int], None] | None = None) -> Mixed:
    """Probe one checkpoint on its first batch.

    Raises:
        ConfigError: as `Settings.places`.
        InstrumentError: if a nudge moves what comes before it, or the losses are not those of the evaluation.
    """
    settings = settings or Settings()
    batch = found.batches[0]
    counted = real(found, batch)
    query, distances = settings.places(int(counted.sum(-1).min()) - 1)
    losses, counts, val, evaluated = _losses(found, batch)
    steps = _steps(found, batch.x, settings)
    x, h, _ = _pass(found, batch.x, None, steps)
    x_norm, h_norm = (float(value.double().norm(dim=-1)[counted].mean()) for value in (x, h))
    rows = batch.x[:, : query + 1]
    influence = {}
    for number, distance in enumerate(distances, 1):
        influence[distance] = _influence(found, rows, query - distance, x_norm, steps, settings)
        if on_progress is not None:
            on_progress(number, len(distances))
    return Mixed(found, query, influence, x_norm, h_norm, losses, counts, val, evaluated)


def _losses(found: Subject, batch: Batch) -> tuple[list[float], list[int], float, float]:
    """Mean loss and number of labels by position; over those that count, by this way and by the evaluation's.

    Raises:
        InstrumentError: if the two ways differ.
    """
    with torch.no_grad():
        own = token_losses(found.loaded.model, batch, torch.float64).cpu()
    theirs = evaluation_losses(found, batch)
    mask = None if batch.mask is None else batch.mask.cpu()
    plain = Batch(batch.x.cpu(), batch.y.cpu(), mask)
    val, evaluated = float(masked_mean(own, plain)), float(masked_mean(theirs, plain))
    if not abs(val - evaluated) <= LOSS_AGREES:
        raise InstrumentError(
            f"the losses by position of {found.name} have mean {val:.6f} and its evaluation says {evaluated:.6f}: the probe does not see "
            "the model that was evaluated"
        )
    counted = real(found, batch).cpu()
    counts = counted.sum(0)
    means = torch.where(counted, own, 0.0).sum(0) / counts
    return means.tolist(), counts.tolist(), val, evaluated


def _pass(found: Subject, x: Tensor, added: Tensor | None, steps: int | None) -> tuple[Tensor, Tensor, float]:
    """Embedding and last residual stream of one forward pass, with something added to the embedding; of an equilibrium, its state."""
    if isinstance(found.loaded.model, Equilibrium):
        embedded = found.loaded.model.embedded(x).detach()
        given = embedded if added is None else embedded + added.to(embedded)
        relaxed = found.loaded.model.relax(given, steps=steps)
        return embedded, relaxed.z, relaxed.res
    seen: dict[str, Tensor] = {}
    last = f"blocks.{found.loaded.n_layers - 1}.hook_resid_post"
    keep = cache.recorder(seen, EMBED, lambda value: value)

    def embed(value: Tensor, hook: Any) -> Tensor:
        keep(value, hook)
        return value if added is None else value + added.to(value)

    cache.run(found.loaded, x, {EMBED: embed, last: cache.recorder(seen, last, lambda value: value)})
    cache.check_fired(found.loaded, [EMBED, last], seen)
    return seen[EMBED], seen[last], 0.0


def _steps(found: Subject, x: Tensor, settings: Settings) -> int | None:
    """Euler steps of every relaxation, the same for all so that what is not nudged ends bit for bit the same: half as many again as it
    takes a plain one to come far below the residual a row needs."""
    model = found.loaded.model
    if not isinstance(model, Equilibrium):
        return None
    plain = model.relax(model.embedded(x).detach(), steps=MOST_STEPS, tol=1e-4 * settings.delta)
    return min(MOST_STEPS, max(model.cfg.T1, plain.steps * 3 // 2))


def _influence(found: Subject, x: Tensor, place: int, x_norm: float, steps: int | None, settings: Settings) -> tuple[float, float, str]:
    """I at delta and at half of it, of a nudge at one index on the last one, and why it does not count."""
    sizes = settings.delta * x_norm, settings.delta * x_norm / 2
    rng = generator(settings.seed, "mixing", x.shape[1] - 1 - place)
    sums, worst = [0.0, 0.0], 0.0
    for _ in range(settings.directions):
        u = torch.randn(len(x), found.loaded.d_model, generator=rng)
        u = u / u.norm(dim=-1, keepdim=True)
        for which, size in enumerate(sizes):
            added = torch.zeros(*x.shape, found.loaded.d_model)
            added[:, place] = size * u
            (_, above, first), (_, below, second) = (_pass(found, x, sign * added, steps) for sign in (1, -1))
            worst = max(worst, first, second)
            if not torch.equal(above[:, :place], below[:, :place]):
                raise InstrumentError(f"a nudge at index {place} of {found.name} moves what comes before it: the model looks ahead")
            sums[which] += float((above[:, -1].double() - below[:, -1].double()).norm(dim=-1).mean()) / (2 * size)
    full, half = (total / settings.directions for total in sums)
    if not worst < 1e-2 * settings.delta:
        return full, half, f"unconverged: residual {worst:.1e} after {steps} steps"
    return full, half, _doubt(full, half)


def _doubt(full: float, half: float) -> str:
    if not (math.isfinite(full) and math.isfinite(half)):
        return "not finite"
    if half <= 0:
        return "" if full <= 0 else "half of delta moves nothing"
    off = abs(full / half - 1)
    return "" if off <= AGREE else f"not straight: delta and half of it differ by {off:.0%}"


def report(measured: Sequence[Mixed], watch: Stopwatch, settings: Settings | None = None) -> Result:
    """The Result of kind "mixing": table over ckpt x distance, losses over ckpt x position; NaN where a model has no such place."""
    settings = settings or Settings()
    names = [one.found.name for one in measured]
    distances = sorted({d for one in measured for d in one.influence})
    positions = max(len(one.losses) for one in measured)
    shape = len(measured), len(distances)
    grids = {name: np.full(shape, math.nan) for name in ("influence", "influence_half", "over_d1", "rel")}
    status = np.full(shape, "n/a: no such distance", dtype=object)
    losses, counts = np.full((len(measured), positions), math.nan), np.zeros((len(measured), positions), dtype=np.int32)
    for row, one in enumerate(measured):
        base = one.influence.get(1, (math.nan, math.nan, ""))[0]
        for d, (full, half, doubt) in one.influence.items():
            at = row, distances.index(d)
            grids["influence"][at], grids["influence_half"][at] = full, half
            grids["over_d1"][at], grids["rel"][at] = full / base if base else math.nan, full * one.x_norm / one.h_norm
            status[at] = doubt or "ok"
        losses[row, : len(one.losses)], counts[row, : len(one.counts)] = one.losses, one.counts
    dims = ("ckpt", "distance")
    words = {
        "influence": "movement of the query's last residual a unit of the nudge",
        "influence_half": "the same with half of the nudge",
        "over_d1": "over that at distance 1",
        "rel": "times |x| / |h|",
    }
    variables: dict[str, Any] = {name: (dims, grids[name], "1", text) for name, text in words.items()}
    variables["status"] = (dims, status.astype(str), "text", "ok, or why the row does not count")
    variables["ce"] = (("ckpt", "position"), losses, "nats", "mean cross-entropy of the prediction of token t")
    variables["labels"] = (("ckpt", "position"), counts, "labels", "how many")
    coords = {"ckpt": names, "distance": distances, "position": list(range(1, positions + 1))}
    horizons = {one.found.horizon for one in measured}
    data = dataset(coords, variables)
    if len(horizons) == 1 and None not in horizons:
        data.attrs["horizon"] = horizons.pop()
    config = {"ckpts": names, "distances": distances, "queries": [one.query for one in measured], "delta": settings.delta}
    found = [one.found for one in measured]
    manifest = provenance(
        config=config | {"directions": settings.directions, "seed": settings.seed, "data_hash": [one.data_hash for one in found]},
        device=str(next(found[0].loaded.model.parameters()).device),
        dtype="float32 model, float64 norms and losses",
        watch=watch,
        subject=", ".join(names),
        weight_hash=[one.loaded.weight_hash for one in found],
        weight_processing=found[0].loaded.processing,
        data=[one.data for one in found],
        seeds={"directions": settings.seed},
        earlier_positions="moved by exactly 0",
    )
    return Result("mixing", data, dims, summary_of(measured[-1]), manifest)


def reach(influence: dict[int, tuple[float, float, str]]) -> tuple[int | None, float]:
    """The least distance measured at which I is below I(1) / e, and the mean distance by I; rows that do not count are left out."""
    seen = {d: full for d, (full, _, doubt) in sorted(influence.items()) if not doubt}
    total = sum(seen.values())
    length = next((d for d, value in seen.items() if 1 in seen and beyond(seen[1] / math.e, value)), None)
    return length, sum(d * value for d, value in seen.items()) / total if total else math.nan


def falls(influence: dict[int, tuple[float, float, str]], length: int | None) -> str:
    """From which distance on the influence is below I(1) / e; rows that do not count are left out."""
    if length is None:
        return "nowhere below I(1)/e"
    farther = [full for d, (full, _, doubt) in influence.items() if d >= length and not doubt]
    lasting = all(beyond(influence[1][0] / math.e, full) for full in farther)
    return f"below I(1)/e from distance {length} on" if lasting else f"below I(1)/e at distance {length}, though not everywhere behind it"


def summary_of(one: Mixed) -> dict[str, Any]:
    """One flat record a checkpoint."""
    length, mean = reach(one.influence)
    bad = sum(bool(doubt) for _, _, doubt in one.influence.values())
    made: dict[str, Any] = {"ckpt": one.found.name, "query": one.query, "influence_length": length, "mean_distance": mean}
    made |= {f"i_{d}": full for d, (full, _, _) in sorted(one.influence.items())}
    made |= {"x_norm": one.x_norm, "h_norm": one.h_norm, "val": one.val, "evaluated": one.evaluated}
    made |= {"rows_not_counted": bad, "earlier_moved": 0.0, "data": one.found.data}
    first, last = min(one.influence), max(one.influence)
    near, far = one.influence[first][0], one.influence[last][0]
    fall = falls(one.influence, length)
    finding = (
        f"{one.found.name}: a nudge {first} before the query moves it by {near:.3g} a unit, {last} before by {far:.3g}, {fall}; "
        f"cross-entropy is {one.val:.3f} nats, as its evaluation says."
    )
    return made | {"finding": finding}


def mixing(subjects: Sequence[Subject], settings: Settings | None = None) -> Result:
    """Mixing of checkpoints that are in memory together; see `measure` and `report`."""
    watch = Stopwatch()
    return report([measure(found, settings) for found in subjects], watch, settings)
