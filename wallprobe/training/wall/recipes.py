"""Recipes: everything a training needs besides its condition and seed, as one frozen dataclass; `small`, `paper`, `tiny`."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from wallprobe.errors import ConfigError, look_up


@dataclass(frozen=True)
class Recipe:
    """Sizes, optimiser and schedule of a training.

    Attributes:
        horizon: K, the last supervised position.
        decay_from: fraction of the run after which the linear decay starts (ignored by "cosine").
        muon_lr: learning rate of the block matrices; 0 gives everything to AdamW.
        signal_weight: weight of a condition's signal unless the condition says otherwise.
        teacher_weight: the same for a teacher's signal.
        precision: "bf16" runs the matrix products under autocast, "fp32" does not; weights and moments are fp32 always.
        continuations: next tokens drawn at each supervised prefix; with several, the cross-entropy is its mean over them: the same
            expected gradient with less noise. 1 is the usual training on the sequence itself.
        checkpoint_every: steps between checkpoints.
        snapshot_every: steps between snapshots, weights that stay with the run; 0 keeps none.
    """

    preset: str
    n_layers: int
    d_model: int
    n_heads: int
    steps: int
    batch: int
    horizon: int = 5
    schedule: str = "linear"
    warmup: int = 200
    decay_from: float = 0.4
    muon_lr: float = 0.0
    adam_lr: float = 3e-4
    weight_decay: float = 0.01
    dropout: float = 0.0
    clip: float = 1.0
    embedding_std: float = 1.0
    signal_weight: float = 1.0
    teacher_weight: float = 1.0
    precision: str = "fp32"
    continuations: int = 1
    checkpoint_every: int = 500
    snapshot_every: int = 0

    def __post_init__(self) -> None:
        counts = {name: getattr(self, name) for name in ("steps", "batch", "continuations", "checkpoint_every")}
        if min(counts.values()) < 1:
            raise ConfigError(f"{', '.join(f'{name} {value}' for name, value in counts.items())} must each be at least 1")
        if self.snapshot_every < 0:
            raise ConfigError(f"snapshot_every {self.snapshot_every} is negative; give steps between snapshots, or 0 for none")
        if self.d_model % self.n_heads:
            raise ConfigError(f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}")
        if self.precision not in ("fp32", "bf16"):
            raise ConfigError(f"precision '{self.precision}' is neither fp32 nor bf16")

    def factor(self, step: int) -> float:
        """The schedule's factor on the learning rates at `step`."""
        warm = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        if self.schedule == "cosine":
            return warm * 0.5 * (1.0 + math.cos(math.pi * step / self.steps))
        start = self.decay_from * self.steps
        return warm * (1.0 if step < start else (self.steps - step) / (self.steps - start))

    def config(self) -> dict[str, Any]:
        """Plain JSON fields; `continuations` only where there are several. Snapshots change nothing in the run and are left out."""
        fields = asdict(self)
        del fields["snapshot_every"]
        if self.continuations == 1:
            del fields["continuations"]
        return fields


RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {
        "small": Recipe(
            preset="small",
            n_layers=6,
            d_model=96,
            n_heads=4,
            steps=4_500,
            batch=256,
            warmup=100,
            muon_lr=0.01,
            adam_lr=0.002,
            precision="bf16",
            signal_weight=0.1,
            teacher_weight=0.5,
            continuations=64,
        ),
        "paper": Recipe(
            preset="paper",
            n_layers=6,
            d_model=192,
            n_heads=6,
            steps=150_000,
            batch=64,
            schedule="cosine",
            warmup=0,
            dropout=0.1,
            embedding_std=0.02,
            signal_weight=0.1,
            teacher_weight=0.5,
            checkpoint_every=2_000,
        ),
        # To try a task or a condition in seconds; it learns easy tasks alone.
        "tiny": Recipe(
            preset="tiny",
            n_layers=2,
            d_model=32,
            n_heads=2,
            steps=300,
            batch=128,
            warmup=20,
            muon_lr=0.02,
            adam_lr=0.005,
            signal_weight=0.1,
            teacher_weight=0.5,
            continuations=16,
        ),
    }
)


def get_recipe(preset: str, **changed: int | None) -> Recipe:
    """The recipe of that name, with other fields (`steps`, ...) where they are not None.

    Raises:
        UnknownNameError: for an unknown preset.
    """
    given: dict[str, Any] = {name: value for name, value in changed.items() if value is not None}
    return replace(look_up("preset", preset, RECIPES), **given)
