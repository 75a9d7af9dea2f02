"""One step along each gradient over a grid of learning rates: how much loss does it buy? (the equilibrium study, experiment 2)

w - lr g, the loss of the same batch (or of held-out sequences) minus what it was; then the parameters are put back, bit for bit.
`first_order` is -lr <g, g_ref>, what the change would be if the loss were straight: where the two part, the step has left the slope.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from wallprobe.errors import ConfigError, InstrumentError, WallprobeError
from wallprobe.findings import EPS, foremost
from wallprobe.hooks.attach.subjects import Subject
from wallprobe.hooks.diagnostics.contracted import JAC
from wallprobe.hooks.diagnostics.triangulate import Chosen, Places, labels, made, usual
from wallprobe.models.equilibrium import Equilibrium
from wallprobe.store.manifest import Stopwatch, provenance
from wallprobe.store.results import Result, dataset
from wallprobe.training.estimators import gradients
from wallprobe.training.estimators.protocol import Batch

LRS = tuple(10 ** (power / 2) for power in range(-8, 1))
NORMALISE = ("none", "unit", "match")
EVALUATE = ("same", "heldout")
ANGLES = {"cos": "cosine to the reference, blocks", "k": "norm over the reference's, blocks"}
DIVERGED = 1.0  # nats lost from which a step counts as diverged


def usual_gradients(found: Subject) -> Chosen:
    """What a model is stepped along unless others are asked for; of an equilibrium run, EP with its contraction penalty too."""
    model = found.loaded.model
    if not isinstance(model, Equilibrium):
        whole = usual(found)  # the ceiling's step is the reference's
        return Chosen(tuple(spec for spec in whole.specs if spec != whole.ceiling), whole.reference)
    exact, run = f"bptt:steps={model.cfg.T1}", found.loaded.run
    penalised = (f"eqprop{JAC}",) if run is not None and run.manifest.get("lam") is not None else ()
    return Chosen((exact, "eqprop", *penalised, "eqprop-plain"), exact)


def lr_sweep(
    found: Subject,
    chosen: Chosen,
    *,
    lrs: Sequence[float] = LRS,
    normalise: str = "none",
    evaluate: str = "same",
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Sweep one checkpoint on its first batch.

    Args:
        found: the model and its batches.
        chosen: estimators; cosines and `first_order` are to the reference.
        lrs: learning rates, each above 0.
        normalise: "none" takes a gradient as it is, "unit" gives it norm 1, "match" the reference's norm, all over all parameters.
        evaluate: the loss of the "same" batch or of the "heldout" one.
        seed: of whatever an estimator draws.
        on_progress: told (done, in all).

    Returns:
        Result of kind "lr_sweep", table over gradient x lr; `delta` is NaN where `diverged`.

    Raises:
        ConfigError: for another word, or a learning rate that is not above 0.
        InstrumentError: if the parameters were not restored.
    """
    check(lrs, normalise, evaluate)
    watch, model, batch = Stopwatch(), found.loaded.model, found.batches[0]
    grads, reasons = _gradients(found, chosen, batch, seed)
    there = batch if evaluate == "same" else found.held_out
    scale, angles = _scales(grads, chosen.reference, normalise), _angles(found, grads, chosen.reference)
    before = _loss(model, there)
    losses = _losses(model, {spec: (grads.get(spec), scale.get(spec, math.nan)) for spec in chosen.specs}, lrs, there, on_progress)
    if _loss(model, there) != before:
        raise InstrumentError(f"the parameters of {found.name} are not what they were before the sweep")
    short = labels(chosen.specs)
    coords = {"gradient": list(short.values()), "lr": list(lrs)}
    straight = [[-lr * scale.get(spec, math.nan) * angles[spec][2] for lr in lrs] for spec in chosen.specs]
    data = _data(coords, [losses[spec] for spec in chosen.specs], before, straight)
    for place, (name, words) in enumerate(ANGLES.items()):
        data[name] = (("gradient",), [angles[spec][place] for spec in chosen.specs], {"units": "1", "long_name": words})
    data["reason"] = (("gradient",), [reasons.get(spec, "") for spec in chosen.specs], {"units": "text", "long_name": "why there is none"})
    data.attrs |= {"reference": short[chosen.reference], "normalise": normalise, "evaluate": evaluate}
    config = {"ckpt": found.name, "gradients": list(chosen.specs), "lrs": list(lrs), "normalise": normalise, "evaluate": evaluate}
    manifest = provenance(
        config=config | {"reference": chosen.reference, "seed": seed, "data_hash": found.data_hash},
        device=str(next(model.parameters()).device),
        dtype="float32 model, float64 losses from its logits",
        watch=watch,
        subject=found.name,
        weight_hash=found.loaded.weight_hash,
        weight_processing=found.loaded.processing,
        data=found.data,
        seeds={"batches": seed},
        restored="bitwise",
    )
    return Result("lr_sweep", data, ("gradient", "lr"), _summary(found, chosen, data, before, reasons), manifest)


def _losses(
    model: Any,
    steps: Mapping[str, tuple[Mapping[str, Tensor] | None, float]],
    lrs: Sequence[float],
    there: Batch,
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, list[float]]:
    """For each (gradient, its scale) the loss after a step of every learning rate; the parameters are put back."""
    losses: dict[str, list[float]] = {spec: [] for spec in steps}
    with gradients.restored(model) as kept:
        for done, ((spec, (grad, scale)), lr) in enumerate(itertools.product(steps.items(), lrs), 1):
            losses[spec].append(_stepped(model, kept, grad, lr * scale, there))
            if on_progress is not None:
                on_progress(done, len(lrs) * len(steps))
    return losses


def check(lrs: Sequence[float], normalise: str, evaluate: str) -> None:
    """Refuse words and learning rates that mean nothing, before anything is computed.

    Raises:
        ConfigError: naming what was given and what is accepted.
    """
    for word, accepted, what in ((normalise, NORMALISE, "normalisation"), (evaluate, EVALUATE, "evaluation")):
        if word not in accepted:
            raise ConfigError(f"{what} '{word}' is none of {', '.join(accepted)}")
    wrong = [lr for lr in lrs if not (lr > 0 and math.isfinite(lr))]
    if wrong or not lrs:
        raise ConfigError(f"learning rates {', '.join(map(str, lrs)) or 'none'}: give one or more above 0")


def _gradients(found: Subject, chosen: Chosen, batch: Batch, seed: int) -> tuple[dict[str, dict[str, Tensor]], dict[str, str]]:
    """Every estimator's gradient, and why there is none."""
    grads: dict[str, dict[str, Tensor]] = {}
    reasons: dict[str, str] = {}
    for spec in chosen.specs:
        try:
            result = made(spec, found, seed)(found.loaded.model, batch)
        except WallprobeError as error:
            if spec == chosen.reference:
                raise
            reasons[spec] = str(error)
            continue
        grads[spec] = {name: grad.detach().float() for name, grad in result.grads.items()}
        if not all(bool(grad.isfinite().all()) for grad in grads[spec].values()):
            reasons[spec] = "not finite"
    return grads, reasons


def _norm(grads: Mapping[str, Tensor]) -> float:
    return math.sqrt(sum(gradients.inner(grad, grad) for grad in grads.values()))


def _scales(grads: Mapping[str, Mapping[str, Tensor]], reference: str, normalise: str) -> dict[str, float]:
    """What each gradient is multiplied by; NaN for one without a norm, where one is asked for."""
    target = {"none": math.nan, "unit": 1.0, "match": _norm(grads[reference])}[normalise]
    made = {}
    for spec, grad in grads.items():
        size = _norm(grad)
        made[spec] = 1.0 if normalise == "none" else target / size if math.isfinite(size) and size >= gradients.SMALLEST else math.nan
    return made


def _angles(found: Subject, grads: Mapping[str, Mapping[str, Tensor]], reference: str) -> dict[str, tuple[float, float, float]]:
    """Cosine and ratio of norms over the blocks, and the inner product over all parameters, to the reference."""
    places = Places.of_model(found.loaded.model)
    block, size = places.scope("block"), len(places.names)
    their: dict[str, tuple[float, float, float]] = {}
    for spec in [*grads, reference]:
        common = {name: grad for name, grad in grads[spec].items() if name in grads[reference]}
        against = {name: grads[reference][name] for name in common}
        cross, own, other = (
            gradients.inner_by(left, right, places.of, size) for left, right in ((common, against), (common, common), (against, against))
        )
        inside = [float(part[block].sum()) for part in (cross, own, other)]
        their[spec] = gradients.cosine(*inside)[0], gradients.ratio(*inside[1:])[0], float(cross.sum())
    return _Missing(their)


class _Missing(dict[str, tuple[float, float, float]]):
    """NaN for a gradient that is not there."""

    def __missing__(self, key: str) -> tuple[float, float, float]:
        return math.nan, math.nan, math.nan


@torch.no_grad()
def _loss(model: Any, batch: Batch) -> float:
    """Mean loss from fp64 softmax: small steps move it by less than fp32 tells."""
    return float(gradients.masked_mean(gradients.token_losses(model, batch, torch.float64), batch))


@torch.no_grad()
def _stepped(model: Any, kept: Mapping[str, Tensor], grads: Mapping[str, Tensor] | None, lr: float, batch: Batch) -> float:
    """The loss after a step from the kept parameters."""
    if grads is None or not math.isfinite(lr):
        return math.nan
    for name, value in model.named_parameters():
        value.copy_(kept[name] - lr * grads[name] if name in grads else kept[name])
    return _loss(model, batch)


def _data(coords: dict[str, Any], after: list[list[float]], before: float, first: list[list[float]]) -> Any:
    dims = ("gradient", "lr")
    delta = [[loss - before for loss in row] for row in after]
    gone = [[not math.isfinite(change) or change > DIVERGED for change in row] for row in delta]
    shown = [[math.nan if lost else change for lost, change in zip(*rows, strict=True)] for rows in zip(gone, delta, strict=True)]
    return dataset(
        coords,
        {
            "delta": (dims, shown, "nats", "change of the loss by one step, negative is better"),
            "diverged": (dims, [[int(lost) for lost in row] for row in gone], "1", f"1 where it rose by more than {DIVERGED:g} nat"),
            "first_order": (dims, first, "nats", "-lr <g, g_ref>: the change if the loss were straight"),
        },
        before=before,
    )


def _summary(found: Subject, chosen: Chosen, data: Any, before: float, reasons: Mapping[str, str]) -> dict[str, Any]:
    """The footer, flat: best change and its learning rate, cosine and k of every gradient."""
    made: dict[str, Any] = {"ckpt": found.name, "reference": chosen.reference, "before": before, "data": found.data}
    told, short = [], labels(chosen.specs)
    for spec in chosen.specs:
        key = short[spec]
        line = data.sel(gradient=key)
        there = [place for place, change in enumerate(line["delta"].values) if not math.isnan(change)]
        # Losses are summed in float64 of float32 logits, averaged over many tokens: one epsilon of the loss.
        lowest = foremost([-float(line["delta"].values[place]) for place in there], EPS * abs(before))
        best = None if lowest is None else there[lowest]
        change, lr = (None, None) if best is None else (float(line["delta"].values[best]), float(line["lr"].values[best]))
        gone = [float(at) for at, lost in zip(line["lr"].values, line["diverged"].values, strict=True) if lost]
        made |= {f"best_{key}": change, f"best_lr_{key}": lr, f"diverges_{key}": min(gone, default=None) if spec not in reasons else None}
        made |= {f"cos_{key}": float(line["cos"]), f"k_{key}": float(line["k"])}
        missing = f"n/a ({reasons[spec]})" if spec in reasons else "diverges at every rate"
        told.append(f"{key} {missing if change is None else f'{change:+.2e} at {lr:.1e}'}")
    return made | {"finding": f"{found.name}, best one-step change of the loss in nats: {'; '.join(told)}."}
