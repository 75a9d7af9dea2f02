"""Triangulation: one gradient by several estimators on several batches. `triangulate_report` tells of it.

The equilibrium study, experiment 1. What is kept of a gradient are inner products by group of parameters: of the gradients themselves,
those of the reference alone stay.
"""

import contextlib
import itertools
import math
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from wallprobe.errors import ConfigError, WallprobeError, look_up
from wallprobe.hooks.attach.subjects import Subject
from wallprobe.hooks.diagnostics.contracted import JAC, contracted
from wallprobe.models.equilibrium import Equilibrium
from wallprobe.training.estimators import gradients
from wallprobe.training.estimators.protocol import Estimator, make_estimator, makers

IMPLICIT = "implicit"
LARGE = 20_000_000  # parameters from which one direction of spsa has to do


@dataclass(frozen=True)
class Chosen:
    """Estimators by the names they are given, and two roles.

    Attributes:
        specs: `name` or `name:option=value:...`; the first that has no role is the one under test.
        reference: what the others are held to.
        ceiling: a second reference: how far the reference agrees with itself by another way; None for none.
    """

    specs: tuple[str, ...]
    reference: str
    ceiling: str | None = None

    def __post_init__(self) -> None:
        """Refuse roles that nobody has.

        Raises:
            ConfigError: naming them.
        """
        for role in (self.reference, self.ceiling):
            if role is not None and role not in self.specs:
                raise ConfigError(f"'{role}' is none of the estimators {', '.join(self.specs)}; name it among them")
        if len(set(self.specs)) < len(self.specs):
            raise ConfigError(f"an estimator is named twice: {', '.join(self.specs)}")

    @property
    def tested(self) -> str:
        """The estimator the row is about."""
        others = [spec for spec in self.specs if spec not in (self.reference, self.ceiling)]
        return others[0] if others else self.ceiling or self.reference


def usual(subject: Subject) -> Chosen:
    """The estimators a model is triangulated by unless others are asked for."""
    model = subject.loaded.model
    if isinstance(model, Equilibrium):
        near, far = (f"bptt:steps={steps}" for steps in (model.cfg.T1, model.cfg.T1 * 8 // 3))  # as the study's 150 and 400
        return Chosen(("eqprop:probe=true", near, far, "implicit", "eqprop-plain", "spsa"), near, far)
    size = sum(value.numel() for value in model.parameters())
    return Chosen(("bp", "bp64", "dfa", "spsa" if size < LARGE else "spsa:directions=1"), "bp", "bp64")


def choose(specs: str | None, reference: str | None = None, ceiling: str | None = None) -> Chosen | None:
    """Estimators as typed, commas between them; None where none are named.

    Raises:
        ConfigError: for roles without estimators, or as `Chosen`.
        UnknownNameError: for a reference that nobody has registered.
    """
    if specs is None:
        if reference is not None or ceiling is not None:
            raise ConfigError("a reference or ceiling needs its estimators beside it: --estimators bp,bp64,spsa --reference bp")
        return None
    names = tuple(part.strip() for part in specs.split(",") if part.strip())
    if not names:
        raise ConfigError("--estimators names none; give for instance bp,spsa")
    first = reference or names[0]  # another one that nobody has registered is a reason in the table
    look_up("training method", first.removesuffix(JAC).partition(":")[0], makers())
    return Chosen(names, first, ceiling)


def made(spec: str, subject: Subject, seed: int) -> Estimator:
    """The estimator of a spec such as `spsa:directions=4`; with `+jac` behind it, the run's contraction penalty is added.

    Raises:
        ConfigError, UnknownNameError: as `make_estimator`; for an option without a value.
    """
    if spec.endswith(JAC):
        return contracted(made(spec.removesuffix(JAC), subject, seed), subject, seed)
    name, *options = spec.split(":")
    given: dict[str, Any] = {}
    for option in options:
        key, equals, value = option.partition("=")
        if not equals:
            raise ConfigError(f"option '{option}' of estimator {spec} has no value; write {name}:{key}=VALUE")
        given[key] = _value(value)
    return make_estimator(name, subject.loaded.model, seed, **given)


def _value(text: str) -> Any:
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    with contextlib.suppress(ValueError):
        return float(text)
    return {"true": True, "false": False}.get(text.lower(), text)


FAMILIES = {"bp64": "bp", "eqprop": "ep", "eqprop-plain": "vf", "eqprop-4": "ep4"}  # what columns call them


def label(spec: str) -> str:
    """What tables call a spec: its name and its options' values (`bptt:steps=150` -> `bptt150`)."""
    name, *options = spec.split(":")
    values = (option.partition("=")[2] for option in options)
    return name + "-".join(value for value in values if value.lower() not in ("true", "false"))


def labels(specs: Sequence[str]) -> dict[str, str]:
    """Spec -> label; the spec itself where two labels would be the same."""
    short = [label(spec) for spec in specs]
    return {spec: name if short.count(name) == 1 else spec for spec, name in zip(specs, short, strict=True)}


def family(spec: str) -> str:
    """What a spec's column is called: the name without options."""
    name = spec.partition(":")[0]
    return FAMILIES.get(name, name)


@dataclass
class Sums:
    """Inner products of one estimator's gradients, in places of `Places`.

    Attributes:
        norms: |g_b|^2 [batch, place].
        shared: |g_b|^2 over what the reference has too [batch, place].
        theirs: |g_ref_b|^2 over what it has too.
        cross: <g_b, g_ref_b>.
        own: <g_b, g_c> [batch, batch, place].
        aux: what each batch's estimate says of itself.
        seconds: of each batch.
        missing: parameters the reference has and it has not.
        reason: why there is nothing, or an empty text.
    """

    norms: Tensor
    shared: Tensor
    theirs: Tensor
    cross: Tensor
    own: Tensor
    aux: list[Mapping[str, Any]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    reason: str = ""

    @classmethod
    def filled(cls, batches: int, places: int, value: float, reason: str = "") -> "Sums":
        """Sums of one value everywhere."""
        norms, shared, theirs, cross = (torch.full((batches, places), value, dtype=torch.float64) for _ in range(4))
        own = torch.full((batches, batches, places), value, dtype=torch.float64)
        return cls(norms, shared, theirs, cross, own, reason=reason)


@dataclass(frozen=True)
class Places:
    """Where each parameter's share of an inner product goes: its group, within the blocks or outside."""

    names: tuple[tuple[str, bool], ...]
    of: Mapping[str, int]

    @classmethod
    def of_model(cls, model: Any) -> "Places":
        """Places of a model's parameters."""
        where = {name: (gradients.group_of(lens), gradients.in_block(lens)) for name, lens in gradients.lens_names(model).items()}
        names = tuple(sorted(set(where.values())))
        return cls(names, {name: names.index(place) for name, place in where.items()})

    def scope(self, scope: str) -> Tensor:
        """Which places belong to "block" or "all", as a mask."""
        return torch.tensor([scope == "all" or inside for _, inside in self.names])

    def group(self, group: str) -> Tensor:
        """Which places are a group's, within the blocks or not."""
        return torch.tensor([name == group for name, _ in self.names])


Held = list[dict[str, Tensor]]


def _estimate(
    estimator: Estimator, subject: Subject, places: Places, reference: Held | None, tell: Callable[[], None]
) -> tuple[Sums, Held]:
    """One estimator on every batch; its gradients are returned too, for whoever is held to them."""
    count, size = len(subject.batches), len(places.names)
    sums, held = Sums.filled(count, size, 0.0), Held()
    for number, batch in enumerate(subject.batches):
        start = time.perf_counter()
        found = estimator(subject.loaded.model, batch)
        sums.seconds.append(time.perf_counter() - start)
        grads = {name: grad.detach() for name, grad in found.grads.items()}
        sums.aux.append(found.aux)
        held.append(grads)
        against = held if reference is None else reference
        theirs = against[number]
        common = {name: grad for name, grad in grads.items() if name in theirs}
        sums.missing = sorted(theirs.keys() - grads.keys())
        sums.norms[number] = gradients.inner_by(grads, grads, places.of, size)
        sums.shared[number] = gradients.inner_by(common, common, places.of, size)
        their_part = {name: theirs[name] for name in common}
        sums.theirs[number] = gradients.inner_by(their_part, their_part, places.of, size)
        sums.cross[number] = gradients.inner_by(common, theirs, places.of, size)
        if grads and next(iter(grads.values())).dtype == torch.float64:  # compared in full; kept in fp32 for the other batches
            held[number] = {name: grad.float() for name, grad in grads.items()}
        for other in range(number + 1):
            value = sums.norms[number] if other == number else gradients.inner_by(held[number], held[other], places.of, size)
            sums.own[number, other] = sums.own[other, number] = value
        tell()
    return sums, held


@dataclass(frozen=True)
class Row:
    """One checkpoint: its estimators' sums, its held-out loss, and the tested estimator's cosine to the implicit gradient."""

    subject: Subject
    chosen: Chosen
    places: Places
    sums: Mapping[str, Sums]
    val: float
    implicit: float | None = None


def measure(subject: Subject, chosen: Chosen, *, seed: int = 0, on_progress: Callable[[int, int], None] | None = None) -> Row:
    """Every estimator on every batch of one checkpoint. What cannot be estimated gets a reason.

    Raises:
        ConfigError: if the reference itself cannot be estimated.
    """
    model, places = subject.loaded.model, Places.of_model(subject.loaded.model)
    order = [chosen.reference, *(spec for spec in chosen.specs if spec != chosen.reference)]
    total, done = len(order) * len(subject.batches), itertools.count(1)

    def tell() -> None:
        if on_progress is not None:
            on_progress(next(done), total)

    found: dict[str, Sums] = {}
    reference: Held | None = None
    for spec in order:
        try:
            estimator = made(spec, subject, seed)
            found[spec], held = _estimate(estimator, subject, places, reference, tell)
        except WallprobeError as error:
            if spec == chosen.reference:
                raise
            found[spec] = Sums.filled(len(subject.batches), len(places.names), math.nan, str(error))
            continue
        reference = held if reference is None else reference
    with torch.no_grad():
        val = float(gradients.mean_loss(model, subject.held_out))
    own = _to_implicit(subject, chosen, places, seed) if IMPLICIT in chosen.specs and not found[IMPLICIT].reason else None
    return Row(subject, chosen, places, {spec: found[spec] for spec in chosen.specs}, val, own)


def _to_implicit(subject: Subject, chosen: Chosen, places: Places, seed: int) -> float | None:
    """The tested estimator's cosine to the implicit gradient over the blocks, median over batches: both at the same free state."""
    if chosen.tested == IMPLICIT:
        return None
    _, held = _estimate(made(IMPLICIT, subject, seed), subject, places, None, lambda: None)
    sums, _ = _estimate(made(chosen.tested, subject, seed), subject, places, held, lambda: None)
    mask = places.scope("block")
    rows = zip(*(part[:, mask].sum(-1).tolist() for part in (sums.cross, sums.shared, sums.theirs)), strict=True)
    return statistics.median(gradients.cosine(*row)[0] for row in rows)
