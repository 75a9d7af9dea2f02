"""The collapse of a nudged estimate by a few sequences: larger nudges, until some sequence leaves the linear range.

At a converged state, equilibrium propagation is held to the implicit gradient at growing radii r. One sequence whose nudged state runs
away carries the whole estimate: cos goes to nothing and k up by orders of magnitude, while the gradient itself is as clean as before.
`lin`, the change of the credit when r is halved, and the largest over the median credit tell it beforehand.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from wallprobe.errors import ConfigError
from wallprobe.findings import beyond, side
from wallprobe.hooks.attach.subjects import Subject
from wallprobe.hooks.diagnostics.triangulate import Places
from wallprobe.models.equilibrium import Equilibrium
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset
from wallprobe.training.equilibrium.estimators import EqProp, Implicit
from wallprobe.training.estimators import gradients
from wallprobe.training.estimators.protocol import Batch, GradResult

RADII = (2e-3, 2e-2, 0.05, 0.1, 0.2, 0.5, 1.0)
LIN, OUTLIER = 0.02, 5.0  # what a trustworthy estimate stays below
FAITHFUL = 0.9  # cosine that it stays above
FREE = 10  # times T1: steps of the free phase, so that it has converged
NUDGED = 4  # times T2
FIGURES = {
    "cos": "cosine to the implicit gradient, blocks",
    "k": "norm over the implicit gradient's, blocks",
    "cos_kept": "the same without the sequences whose credit is above 5 times the median",
    "dropped": "how many sequences those are",
    "amp": "how far the nudge moves the state over its norm",
    "lin": "change of the credit when the radius is halved",
    "outlier": "largest over median norm of a sequence's credit",
}


def collapse(
    found: Subject, *, radii: Sequence[float] = RADII, steps: int | None = None, on_progress: Callable[[int, int], None] | None = None
) -> Result:
    """Equilibrium propagation at growing radii on the first batch.

    Args:
        found: an equilibrium checkpoint.
        radii: of the nudge, each above 0.
        steps: of the nudged phase; None for four times T2.
        on_progress: told (done, in all).

    Returns:
        Result of kind "collapse", table over radius; norms over radius x sequence.

    Raises:
        ConfigError: for another kind of model, or radii that nudge nothing.
    """
    model = found.loaded.model
    if not isinstance(model, Equilibrium):
        raise ConfigError(f"{found.name} has no nudged phase; give an equilibrium run, such as one that wallprobe equilibrium train makes")
    if not radii or any(not r > 0 for r in radii):
        raise ConfigError(f"radii {', '.join(map(str, radii)) or 'none'}: give one or more above 0")
    watch, batch, places = Stopwatch(), found.batches[0], Places.of_model(model)
    free, nudged = FREE * model.cfg.T1, steps or NUDGED * model.cfg.T2
    exact = Implicit(free_steps=free)(model, batch)
    rows, norms = [], []
    for number, r in enumerate(sorted(radii), 1):
        ep = EqProp(r=r, steps=nudged, free_steps=free, probe=True)(model, batch)
        row = {name: float(ep.aux[name]) for name in ("amp", "lin", "outlier")}
        row["cos"], row["k"] = _held_to(ep, exact, places)
        rows.append(row | _without(model, batch, ep, r, nudged, free, places))
        norms.append((ep.aux["a_norms"] / exact.aux["a_norms"]).tolist())
        if on_progress is not None:
            on_progress(number, len(radii))
    coords = {"radius": sorted(radii), "sequence": list(range(len(batch.x)))}
    variables: dict[str, Any] = {name: (("radius",), [row[name] for row in rows], "1", words) for name, words in FIGURES.items()}
    variables["norm_ratio"] = (("radius", "sequence"), np.asarray(norms), "1", "norm of a sequence's credit over the exact one's")
    res = float(exact.aux["res"])
    data = dataset(coords, variables, ckpt=found.name, res=res, steps=nudged, lin_gate=LIN, outlier_gate=OUTLIER)
    manifest = provenance(
        config={"ckpt": found.name, "radii": sorted(radii), "steps": nudged, "free_steps": free, "data_hash": found.data_hash},
        device=str(next(model.parameters()).device),
        dtype="float32 model, float64 inner products",
        watch=watch,
        subject=found.name,
        weight_hash=found.loaded.weight_hash,
        weight_processing="none",
        data=found.data,
    )
    return Result("collapse", data, ("radius",), _summary(found, sorted(radii), rows, res), manifest)


def _held_to(ep: GradResult, exact: GradResult, places: Places) -> tuple[float, float]:
    mask, size = places.scope("block"), len(places.names)
    pairs = ((ep.grads, exact.grads), (ep.grads, ep.grads), (exact.grads, exact.grads))
    cross, own, theirs = (float(gradients.inner_by(left, right, places.of, size)[mask].sum()) for left, right in pairs)
    return gradients.cosine(cross, own, theirs)[0], gradients.ratio(own, theirs)[0]


def _without(model: Equilibrium, batch: Batch, ep: GradResult, r: float, steps: int, free: int, places: Places) -> dict[str, float]:
    """The cosine on the sequences whose credit is not an outlier."""
    sizes: Tensor = ep.aux["a_norms"]
    finite = sizes.isfinite()
    kept = finite & (sizes <= OUTLIER * (sizes[finite].median() if bool(finite.any()) else 0.0))
    dropped = float((~kept).sum())
    if not bool(kept.any()):
        return {"cos_kept": math.nan, "dropped": dropped}
    part = Batch(batch.x[kept], batch.y[kept], None if batch.mask is None else batch.mask[kept])
    # r weighs the loss summed over labels, so that fewer sequences leave each one's nudge what it was
    again = EqProp(r=r, steps=steps, free_steps=free)(model, part)
    return {"cos_kept": _held_to(again, Implicit(free_steps=free)(model, part), places)[0], "dropped": dropped}


def _summary(found: Subject, radii: Sequence[float], rows: Sequence[Mapping[str, float]], res: float) -> dict[str, Any]:
    """Flat: where the figures stop being good, and what the gates would have said there."""
    last = rows[-1]
    lost = next((r for r, row in zip(radii, rows, strict=True) if not beyond(row["cos"], FAITHFUL)), None)
    gated = next((r for r, row in zip(radii, rows, strict=True) if not (beyond(LIN, row["lin"]) and beyond(OUTLIER, row["outlier"]))), None)
    made: dict[str, Any] = {"ckpt": found.name, "res": res, "lost_at": lost, "gated_at": gated}
    made |= {f"{name}_last": value for name, value in last.items()} | {"r_last": radii[-1], "cos_first": rows[0]["cos"]}
    told = f"stays above {FAITHFUL:g} up to r = {radii[-1]:g}"
    if lost is not None:
        level = side(rows[list(radii).index(lost)]["cos"], FAITHFUL) == "level"
        told = f"{'is no longer told apart from' if level else 'falls below'} {FAITHFUL:g} at r = {lost:g}"
    gate = f"the gates (lin < {LIN:g}, outlier < {OUTLIER:g}) close at r = {gated:g}" if gated is not None else "the gates never close"
    finding = (
        f"{found.name}: the cosine to the implicit gradient {told}; at r = {radii[-1]:g} it is {last['cos']:.3f} at {last['k']:.3g} times "
        f"the norm, {last['cos_kept']:.3f} without {last['dropped']:.0f} of {len(found.batches[0].x)} sequences; {gate}."
    )
    return made | {"finding": finding}
