"""What an audit measures at one moment of a training, state by state (the audit study). Norms and cosines in fp64.

The reference g_l is the derivative of the summed loss over n_ref, a fixed number, so that no figure depends on how many samples were
looked at. Two cosines stand side by side: the usual one, whose denominator is clamped at eps, and one without a clamp.
"""

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from wallprobe.errors import InstrumentError
from wallprobe.rng import generator
from wallprobe.training.estimators.feedback import still
from wallprobe.training.estimators.nets import Net, matrices
from wallprobe.training.estimators.protocol import Batch, CreditEstimator, QuickCredits, Seen

CHUNK = 256  # samples a pass
NUDGED = 64  # samples a nudged pass
Row = npt.NDArray[np.float64]

# per-layer quantity -> (units, what it is)
LAYERED: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "h_norm": ("", "mean norm of the state h_l"),
        "g_norm": ("", "mean norm of the reference g_l, loss summed over n_ref"),
        "g_median": ("", "median norm of the reference"),
        "below_eps": ("fraction", "share of samples whose reference is shorter than eps"),
        "elasticity": ("", "mean norm of the state times mean norm of the reference"),
        "a_norm": ("", "mean norm of the credit a_l of one sample"),
        "gamma_clamped": ("cosine", "mean of F.cosine_similarity(a_l, g_l), denominator clamped at eps"),
        "gamma_exact": ("cosine", "mean cosine without a clamp"),
        "undefined": ("fraction", "share of samples with a zero or non-finite credit or reference, left out of the exact cosine"),
        "clamp_bias": ("cosine", "distance of the two cosines"),
        "sign_flip": ("", "1 where the two cosines have opposite signs"),
        "g32_g64": ("cosine", "least cosine over samples of the reference in fp32 and in fp64"),
        "null_low": ("cosine", "2.5 % quantile of the exact cosine over fresh random feedback"),
        "null_high": ("cosine", "97.5 % quantile of the same"),
        "nudge_1e-3": ("nats", "change of the mean loss, state moved against the credit by 0.001 of its norm"),
        "nudge_1e-3_low": ("nats", "lower 95 % bound of that change along random directions"),
        "nudge_1e-2": ("nats", "change of the mean loss, state moved against the credit by 0.01 of its norm"),
        "nudge_1e-2_low": ("nats", "lower 95 % bound of that change along random directions"),
        "block_ratio": ("ratio", "norm of the state over that of the state before"),
        "weight_delta": ("ratio", "largest |W - W0| / |W0| of the block's matrices"),
        "weight_product": ("ratio", "product of |W| / |W0| over the block's last two matrices"),
        "sigma_product": ("", "product of the largest singular values of the block's last two matrices"),
    }
)
ETAS = {"nudge_1e-3": 1e-3, "nudge_1e-2": 1e-2}


@dataclass(frozen=True)
class Lens:
    """How an audit looks.

    Attributes:
        n_ref: what summed losses are divided by.
        eps: clamp of the usual cosine, torch's default.
        samples: test samples looked at, fewer where there are fewer.
        nulls: draws of fresh random feedback.
        nudge_samples, directions: samples, and random directions, of the nudges.
    """

    n_ref: int = 1024
    eps: float = 1e-8
    samples: int = 1024
    nulls: int = 100
    nudge_samples: int = 256
    directions: int = 12


def exact_cosine(a: Float[Tensor, "batch width"], b: Float[Tensor, "batch width"]) -> Float[Tensor, " batch"]:
    """Cosine in fp64 without a clamp: each vector is first divided by its own largest entry.

    Returns:
        NaN where either vector is zero or not finite, never 0 or 1.
    """

    def unit(vector: Tensor) -> Tensor:
        wide = vector.double()
        scaled: Tensor = wide / wide.abs().amax(1, keepdim=True)
        found: Tensor = scaled / scaled.norm(dim=1, keepdim=True)
        return found

    product = (unit(a) * unit(b)).sum(1)
    return torch.where(product.isfinite(), product, torch.nan)


def clamped_cosine(a: Float[Tensor, "batch width"], b: Float[Tensor, "batch width"], eps: float) -> Float[Tensor, " batch"]:
    """The usual figure: each norm is taken to be at least eps. In fp64, so that rounding is no part of the bias."""
    cosine: Tensor = F.cosine_similarity(a.double(), b.double(), dim=1, eps=eps)
    return cosine


def reference(net: Net, batch: Batch) -> Seen:
    """States, derivatives of the summed loss by them, and the logits, by autograd through the whole net."""
    with still(net):
        states = [net.embed(batch.x).detach().requires_grad_(True)]
        for block in net.blocks:
            states.append(block(states[-1]))
        logits: Tensor = net.readout(states[-1])
        grads = torch.autograd.grad(net.losses(logits, batch.y).sum(), states)
    return Seen([state.detach() for state in states], list(grads), logits.detach())


@contextmanager
def at_rest(net: nn.Module) -> Iterator[None]:
    """In evaluation mode while the block runs."""
    training = net.training
    net.eval()
    try:
        yield
    finally:
        net.train(training)


@dataclass(frozen=True)
class Common:
    """What a look finds whoever trains the net: at the start, the same for every method.

    Attributes:
        along: change of the mean loss along random directions [state, direction, step length], nats.
        precision: least cosine of the reference in fp32 and in fp64, state by state.
    """

    along: npt.NDArray[np.float64]
    precision: Row


def common(net: Net, batch: Batch, lens: Lens, seed: int) -> Common:
    """What `observe` would find for any estimator, and spends most of its time on."""
    few = slice(lens.nudge_samples)
    with at_rest(net):
        with torch.no_grad():
            states = net.states(batch.x[few])
        return Common(_along_random(net, states, batch.y[few], lens, seed), _precision(net, batch))


def observe(
    net: Net,
    start: Net,
    estimator: CreditEstimator,
    batch: Batch,
    lens: Lens,
    seed: int,
    *,
    full: bool,
    precise: bool,
    known: Common | None = None,
) -> dict[str, Row]:
    """Every layered quantity now.

    Args:
        net: the net under training.
        start: the same at its initialisation.
        estimator: whose credits are audited.
        batch: test samples.
        lens: how to look.
        seed: of nulls and directions.
        full: also nulls, nudges and singular values, which cost more than the rest.
        precise: also the reference in fp64.
        known: what `common` found for this net; it is not measured again.

    Returns:
        Name -> one figure for each of h_0..h_L, NaN where it is not defined or was not measured. Those of weights and the block ratio
        stand at the state that the block makes.

    Raises:
        InstrumentError: if the estimator's credits do not have the states' shapes.
    """
    with at_rest(net):
        kept: list[dict[str, list[Tensor]]] = [{} for _ in range(net.depth + 1)]
        nulls, few = [], _Few(lens.nudge_samples)
        fresh = _fresh(net, lens, seed) if full else []
        for rows in torch.split(torch.arange(len(batch.x)), CHUNK):
            part = Batch(batch.x[rows], batch.y[rows])
            seen = reference(net, part)
            credits = estimator.credits_from(net, part, seen) if isinstance(estimator, QuickCredits) else estimator.credits(net, part)
            if [credit.shape for credit in credits] != [state.shape for state in seen.states]:
                raise InstrumentError(f"the credits have shapes {[tuple(credit.shape) for credit in credits]}, not the states'")
            for place, (h, g, a) in enumerate(zip(seen.states, seen.grads, credits, strict=True)):
                for name, value in _samples(h, g / lens.n_ref, a.detach(), lens).items():
                    kept[place].setdefault(name, []).append(value)
            if full:
                nulls.append(_nulls(net, seen.grads, net.error(seen.logits, part.y), fresh))
                few.add(seen, credits, part.y)
        found = _summaries(kept, lens) | _growth(net, start, full)
        ratio = found["h_norm"][1:] / found["h_norm"][:-1]
        found["block_ratio"] = np.concatenate([[math.nan], ratio])
        if full:
            drawn = torch.cat(nulls, -1).nanmean(-1)  # layer, draw
            found["null_low"], found["null_high"] = (np.quantile(drawn.numpy(), level, axis=1) for level in (0.025, 0.975))
            found["deep_null"] = np.quantile(drawn[1:].mean(0).numpy(), [0.025, 0.975])
            found |= _nudges(net, few, lens, seed, None if known is None else known.along)
        if precise:
            found["g32_g64"] = _precision(net, batch) if known is None else known.precision
    empty = np.full(net.depth + 1, math.nan)
    return {name: found.get(name, empty) for name in LAYERED} | {"deep_null": found.get("deep_null", np.full(2, math.nan))}


def _samples(h: Tensor, g: Tensor, a: Tensor, lens: Lens) -> dict[str, Tensor]:
    """What is read of each sample at one state."""
    h, g, a = (value.flatten(1).double() for value in (h, g, a))
    return {
        "h": h.norm(dim=1),
        "g": g.norm(dim=1),
        "a": a.norm(dim=1),
        "clamped": clamped_cosine(a, g, lens.eps),
        "exact": exact_cosine(a, g),
    }


def _summaries(kept: list[dict[str, list[Tensor]]], lens: Lens) -> dict[str, Row]:
    made: dict[str, list[float]] = {}
    for pieces in kept:
        of = {name: torch.cat(values) for name, values in pieces.items()}
        exact, clamped = float(of["exact"].nanmean()), float(of["clamped"].mean())
        figures = {
            "h_norm": float(of["h"].mean()),
            "g_norm": float(of["g"].mean()),
            "g_median": float(of["g"].median()),
            "below_eps": float((of["g"] < lens.eps).double().mean()),
            "elasticity": float(of["h"].mean() * of["g"].mean()),
            "a_norm": float(of["a"].mean()),
            "gamma_clamped": clamped,
            "gamma_exact": exact,
            "undefined": float(of["exact"].isnan().double().mean()),
            "clamp_bias": abs(clamped - exact),
            "sign_flip": float(clamped * exact < 0),
        }
        for name, value in figures.items():
            made.setdefault(name, []).append(value)
    return {name: np.asarray(values) for name, values in made.items()}


def _growth(net: Net, start: Net, full: bool) -> dict[str, Row]:
    """Growth of each block's matrices since the start; NaN at h_0."""
    made: dict[str, list[float]] = {name: [math.nan] for name in ("weight_delta", "weight_product", "sigma_product")}
    with torch.no_grad():
        for block, first in zip(net.blocks, start.blocks, strict=True):
            now, before = ([value.double() for value in matrices(part)] for part in (block, first))
            deltas = [float((one - other).norm() / other.norm()) for one, other in zip(now, before, strict=True)]
            made["weight_delta"].append(max(deltas, default=math.nan))
            made["weight_product"].append(
                math.prod(float(one.norm() / other.norm()) for one, other in list(zip(now, before, strict=True))[-2:])
            )
            sound = full and all(bool(one.isfinite().all()) for one in now)
            made["sigma_product"].append(math.prod(_largest(one) for one in now[-2:]) if sound else math.nan)
    return {name: np.asarray(values) for name, values in made.items()}


def _largest(matrix: Tensor) -> float:
    """Its largest singular value, from the smaller Gram matrix: to fp64's last digits, in a quarter of a decomposition's time."""
    gram = matrix @ matrix.T if len(matrix) < matrix.shape[1] else matrix.T @ matrix
    return float(torch.linalg.eigvalsh(gram)[-1].clamp_min(0).sqrt())


def _fresh(net: Net, lens: Lens, seed: int) -> list[tuple[Tensor, Tensor]]:
    """For each state, random feedback B [draw, width, classes] that no training used, and B^T B; fp64."""
    found = []
    for place, width in enumerate(net.widths):
        drawn = torch.randn(lens.nulls, width, net.classes, generator=generator(seed, "null", place)).double()
        found.append((drawn, drawn.mT @ drawn))
    return found


def _nulls(net: Net, grads: list[Tensor], error: Tensor, fresh: list[tuple[Tensor, Tensor]]) -> Float[Tensor, "layer draw batch"]:
    """Exact cosine of each sample's reference with e B^T for fresh random B: e spans few directions, so samples are no independent
    draws, and the spread over B is what a chance alignment has."""
    rows = []
    e = error.double()
    for grad, (drawn, squared) in zip(grads, fresh, strict=True):
        seen = net.gather(grad).double()
        seen = seen / grad.flatten(1).double().norm(dim=1).view(-1, *(1,) * (seen.ndim - 1))
        projected = torch.einsum("n...d,kdc->n...kc", seen, drawn)
        dots = (projected * e[..., None, :]).sum(-1)
        squares = torch.einsum("n...c,kce,n...e->n...k", e, squared, e)
        extra = tuple(range(1, dots.ndim - 1))  # positions
        if extra:
            dots, squares = dots.sum(extra), squares.sum(extra)
        rows.append((dots / squares.sqrt()).T)
    return torch.stack(rows)


@dataclass
class _Few:
    """The first samples, with what has been computed of them: those that are nudged."""

    left: int
    states: list[list[Tensor]] = field(default_factory=list)
    credits: list[list[Tensor]] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)

    def add(self, seen: Seen, credits: list[Tensor], y: Tensor) -> None:
        """Take of a chunk what is still wanted."""
        if self.left > 0:
            self.states.append([state[: self.left] for state in seen.states])
            self.credits.append([credit.detach()[: self.left] for credit in credits])
            self.logits.append(seen.logits[: self.left])
            self.labels.append(y[: self.left])
            self.left -= len(y)


@torch.no_grad()
def _nudges(net: Net, few: _Few, lens: Lens, seed: int, along: npt.NDArray[np.float64] | None) -> dict[str, Row]:
    """Change of the mean loss when a state is moved against its credit, and the lower bound of that along random directions."""
    y, states = torch.cat(few.labels), [torch.cat(parts) for parts in zip(*few.states, strict=True)]
    credits = [torch.cat(parts) for parts in zip(*few.credits, strict=True)]
    band = _along_random(net, states, y, lens, seed) if along is None else along
    plain = float(net.losses(torch.cat(few.logits), y).double().mean())
    made: dict[str, list[float]] = {f"{name}{end}": [] for name in ETAS for end in ("", "_low")}
    for place, (state, credit) in enumerate(zip(states, credits, strict=True)):
        for column, (name, value) in enumerate(zip(ETAS, _changes(net, place, state, credit, y, plain), strict=True)):
            made[name].append(value)
            made[f"{name}_low"].append(_lower(band[place, :, column]))
    return {name: np.asarray(values) for name, values in made.items()}


@torch.no_grad()
def _along_random(net: Net, states: list[Tensor], y: Tensor, lens: Lens, seed: int) -> npt.NDArray[np.float64]:
    """Change of the mean loss along random directions: [state, direction, step length]."""
    plain = float(net.losses(net.readout(states[-1]), y).double().mean())
    found = []
    for place, state in enumerate(states):
        draws = generator(seed, "nudge", place)
        drawn = (torch.randn(state.shape, generator=draws) for _ in range(lens.directions))
        found.append([_changes(net, place, state, direction, y, plain) for direction in drawn])
    return np.asarray(found)


def _changes(net: Net, place: int, state: Tensor, direction: Tensor, y: Tensor, plain: float) -> list[float]:
    """Change of the mean loss for each step length against a direction."""
    size, length = _lengths(state), _lengths(direction)
    unit = torch.where(length > 0, size / length, 0.0)
    return [_moved(net, place, state, direction, eta * unit, y) - plain for eta in ETAS.values()]


def _lengths(x: Tensor) -> Float[Tensor, " batch"]:
    """Norm of each sample in fp64."""
    found: Tensor = x.flatten(1).double().norm(dim=1)
    return found


def _moved(net: Net, place: int, state: Tensor, direction: Tensor, step: Float[Tensor, " batch"], y: Tensor) -> float:
    """Mean loss where each sample's state has gone that far against a direction; a few samples at a time, which stay in the cache."""
    total = 0.0
    wide = step.to(direction).view(-1, *(1,) * (direction.ndim - 1))
    for part in torch.split(torch.arange(len(state)), NUDGED):
        rows = slice(int(part[0]), int(part[-1]) + 1)
        total += float(net.losses(net.after(place, state[rows] - wide[rows] * direction[rows]), y[rows]).double().sum())
    return total / len(state)


def _lower(draws: Row) -> float:
    """Where one more draw of the same would lie below with a chance of 2.5 % (Student's prediction interval)."""
    from scipy.special import stdtrit

    spread = float(draws.std(ddof=1)) * math.sqrt(1 + 1 / len(draws))
    return float(draws.mean()) - float(stdtrit(len(draws) - 1, 0.975)) * spread


def _precision(net: Net, batch: Batch) -> Row:
    """Least cosine over the first samples between the reference in fp32 and in fp64, state by state."""
    batch = Batch(batch.x[:CHUNK], batch.y[:CHUNK])
    wide: Any = copy.deepcopy(net).double()
    fine = reference(wide, Batch(batch.x.double() if batch.x.is_floating_point() else batch.x, batch.y)).grads
    pairs = zip(reference(net, batch).grads, fine, strict=True)
    return np.asarray([float(np.nanmin(exact_cosine(one.flatten(1), other.flatten(1)).numpy())) for one, other in pairs])
