"""One value put in the place of another, in any forward pass."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from wallprobe.errors import InstrumentError
from wallprobe.hooks.attach.interventions import Intervention, Swap
from wallprobe.hooks.attach.modules.attached import Attached
from wallprobe.models import Model

Place: TypeAlias = str | tuple[str, int | None]


@dataclass(frozen=True)
class Change:
    """What a patch changed.

    Attributes:
        hook: where.
        index: at which index of each sequence; None for all.
        sequences: how many were patched.
        largest: largest absolute difference of one number.
        relative: norm of the difference over the norm of what was there.
    """

    hook: str
    index: int | None
    sequences: int
    largest: float
    relative: float


class Patch(Attached):
    """Puts a value in place while it is attached: `intervention(base, source)` for what the hook carries.

    >>> with Patch(model, ("blocks.3.hook_resid_post", -1), Swap(), donor) as patch:  # doctest: +SKIP
    ...     logits = model(tokens)
    >>> patch.change  # doctest: +SKIP

    Args:
        model: as `models.as_model`.
        place: a hook, or a hook and an index of the sequences; without an index all of them are patched.
        intervention: what to put there.
        source: the donor's values: [batch, d_model] for one index, [batch, index, d_model] for all.
        same: the value is expected to be what is there already (a patch of a model with itself): nothing changed is then no error.

    Leaving it raises InstrumentError if it did not fire exactly once, or if it changed nothing.
    """

    def __init__(
        self,
        model: Model,
        place: Place,
        intervention: Intervention | None = None,
        source: Float[Tensor, "batch *rest"] | None = None,
        *,
        same: bool = False,
    ) -> None:
        super().__init__(model)
        self.hook_name, self.index = (place, None) if isinstance(place, str) else place
        self.intervention = Swap() if intervention is None else intervention
        self.source, self.same = source, same
        self.change: Change | None = None

    def _attach(self, stack: ExitStack) -> None:
        self.change = None
        self.hook(stack, self.hook_name, self._patch())

    def _patch(self) -> Callable[..., Tensor]:
        def put(value: Tensor, hook: Any = None) -> Tensor:
            if self.change is not None:
                raise InstrumentError(f"the patch at {self.hook_name} of {self.loaded.name} fired more than once; make one pass at a time")
            index, length = self.index, value.shape[1]
            if index is not None and not -length <= index < length:
                raise InstrumentError(f"the patch at {self.hook_name}: index {index} is outside sequences of {length} tokens")
            base = value if index is None else value[:, [index]]
            patched = self._patched(base)
            moved = (patched - base).detach().double()
            size = float(base.detach().double().norm())
            self.change = Change(self.hook_name, index, len(value), float(moved.abs().max()), float(moved.norm()) / max(size, 1e-30))
            if index is None:
                return patched
            new = value.clone()
            new[:, index] = patched[:, 0]
            return new

        return put

    def _patched(self, base: Float[Tensor, "batch index width"]) -> Float[Tensor, "batch index width"]:
        """What the intervention makes of each index."""
        given = base.new_empty(len(base), base.shape[1], 0) if self.source is None else self.source.to(base)
        given = given[:, None] if given.ndim == 2 else given
        if given.ndim != 3 or given.shape[:2] != base.shape[:2]:
            raise InstrumentError(
                f"the patch at {self.hook_name}: a source of {tuple(given.shape)} for {tuple(base.shape)}; give one value a sequence, and "
                "one an index where all are patched"
            )
        parts = [self.intervention(base[:, place], given[:, place]) for place in range(base.shape[1])]
        patched = torch.stack(parts, dim=1).to(base)
        if patched.shape != base.shape:
            raise InstrumentError(
                f"the patch at {self.hook_name} gives {tuple(patched.shape)} where {tuple(base.shape)} is: its source is of another model"
            )
        return patched

    def _finish(self) -> None:
        if self.change is None:
            raise InstrumentError(f"the patch at {self.hook_name} of {self.loaded.name} did not fire; call the model once while it is on")
        if not self.change.largest and not self.same:
            raise InstrumentError(
                f"the patch at {self.hook_name} of {self.loaded.name} changed nothing; give another source, or same=True if that is meant"
            )
