"""One training to make: model, task, estimator, optimiser, controller; and the presets (the equilibrium study)."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from wallprobe.errors import ConfigError, UnknownNameError
from wallprobe.models.equilibrium import EqConfig
from wallprobe.store.runs import DEFAULT_SEED, RunName
from wallprobe.tasks.text import TextSpec

BP = "bp"  # the arm without an equilibrium: a one-layer HookedTransformer of the same shape
ARMS: Mapping[str, str] = MappingProxyType({"ep": "eqprop", "bptt": "bptt", "bp": BP})  # the study's name -> estimator
NUDGED = ("eqprop", "eqprop-4", "eqprop-plain")  # what gate_mode "ep" gates
GATE_MODES = ("ep", "all")


@dataclass(frozen=True)
class Control:
    """Contraction controller, validity gate and fuse.

    Attributes:
        gate: with a free-phase residual from here on, the task's gradient is left out of the step.
        gate_mode: "all" gates every estimator, "ep" only those that nudge.
        unit: what lambda = 1 weighs the penalty with. 1e-3 suits widths of tens; 1 is the study's raw scale.
        start: lambda at first, brought within its limits.
        floor, most: lambda's limits (the study's jr_floor, jr_max).
        target: the residual lambda steers to (res_target).
        kappa: gain of that servo, a step.
        fuse: a residual above it for `patience` steps on end stops the training.
        patience: see `fuse`.
    """

    gate: float = 1e-2
    gate_mode: str = "all"
    unit: float = 1e-3
    start: float = 1.0
    floor: float = 0.1
    most: float = 32.0
    target: float = 1.5e-3
    kappa: float = 0.1
    fuse: float = 0.1
    patience: int = 50

    def __post_init__(self) -> None:
        if self.floor > self.most:
            raise ConfigError(f"lambda's floor {self.floor:g} lies above its maximum {self.most:g}; give floor <= jr_max")
        if self.floor < 0 or self.target <= 0 or self.gate <= 0 or self.fuse <= 0:
            raise ConfigError("the controller needs floor >= 0, and res_target, gate and fuse above 0")
        if self.gate_mode not in GATE_MODES:
            raise UnknownNameError(f"no gate mode '{self.gate_mode}'; there are: {', '.join(GATE_MODES)}")


@dataclass(frozen=True)
class Recipe:
    """How to train.

    Attributes:
        model: shape and dynamics; the vocabulary is the text's.
        text: what to read.
        control: contraction.
        batch: windows a step.
        steps: optimiser steps.
        lr: AdamW's, beta .9 and .95, no decay.
        warmup: steps of linear warm-up.
        prewarm: steps before step 0 with the contraction penalty alone, at full lr.
        clip: of the joint gradient norm.
        pema: of the averaged parameters that are evaluated: min(pema, (1 + s) / (10 + s)).
        eval_every: steps between evaluations.
        val_windows: held-out windows of each.
        snapshots: steps whose state is kept as a run of its own.
        checkpoint_every: steps between checkpoints.
        probe: compare the first task gradient that the gate lets through with BPTT's.
    """

    model: EqConfig
    text: TextSpec = field(default_factory=TextSpec)
    control: Control = field(default_factory=Control)
    batch: int = 16
    steps: int = 400
    lr: float = 3e-3
    warmup: int = 20
    prewarm: int = 0
    clip: float = 1.0
    pema: float = 0.999
    eval_every: int = 25
    val_windows: int = 64
    snapshots: tuple[int, ...] = ()
    checkpoint_every: int = 25
    probe: bool = False

    def __post_init__(self) -> None:
        for name in ("batch", "steps", "eval_every", "val_windows", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} trains nothing; give 1 or more")
        if self.lr <= 0 or self.warmup < 0 or self.prewarm < 0 or not 0 <= self.pema < 1:
            raise ConfigError("training needs lr above 0, warmup and prewarm of 0 or more, and 0 <= pema < 1")
        beyond = [step for step in self.snapshots if not 0 <= step <= self.steps]
        if beyond:
            raise ConfigError(f"snapshot at step {beyond[0]} lies outside 0..{self.steps}")


LONGEST_NAME = 100  # characters of a run's name, which becomes a folder's


@dataclass(frozen=True)
class EqJob:
    """A training to make.

    Attributes:
        name: of the run, without seed.
        recipe: how.
        method: a registered estimator, or `BP` for the one-layer transformer.
        options: of the estimator.
        seed: of initialisation and every draw.
        warm: a run whose last training state (parameters, moments, average, lambda) it goes on from; None begins afresh.
    """

    name: str
    recipe: Recipe
    method: str = "eqprop"
    options: tuple[tuple[str, Any], ...] = ()
    seed: int = DEFAULT_SEED
    warm: str | None = None

    def __post_init__(self) -> None:
        if len(self.name) > LONGEST_NAME:
            raise ConfigError(f"a run's name of {len(self.name)} characters is too long; give at most {LONGEST_NAME}")
        RunName.parse(f"{self.name}@{self.seed}")

    @property
    def run_name(self) -> RunName:
        """Name of the run."""
        return RunName(self.name, self.seed)

    @property
    def fixed_point(self) -> bool:
        """Whether it trains an equilibrium model."""
        return self.method != BP

    @property
    def gated(self) -> bool:
        """Whether the validity gate acts on its task gradient."""
        return self.fixed_point and (self.recipe.control.gate_mode == "all" or self.method in NUDGED)

    def snapshot(self, step: int) -> RunName:
        """Name of the state kept at a step."""
        return RunName(f"{self.name}-s{step}", self.seed)

    def config(self) -> dict[str, Any]:
        """Plain JSON: what a checkpoint must agree with. How often it is written does not count."""
        whole = asdict(self) | {"options": dict(self.options)}
        del whole["recipe"]["checkpoint_every"]
        return dict(json.loads(json.dumps(whole)))

    def changed(self, name: str, *, seed: int | None = None, warm: str | None = None, **changes: Any) -> "EqJob":
        """The job under another name with other fields of recipe, model or control, wherever they belong."""
        recipe = self.recipe
        control = {key: value for key, value in changes.items() if key in Control.__dataclass_fields__}
        model = {key: value for key, value in changes.items() if key in EqConfig.__dataclass_fields__}
        own = {key: value for key, value in changes.items() if key not in control and key not in model}
        recipe = replace(recipe, control=replace(recipe.control, **control), model=replace(recipe.model, **model), **own)
        return replace(self, name=name, recipe=recipe, seed=self.seed if seed is None else seed, warm=self.warm if warm is None else warm)


def _tiny() -> Recipe:
    model = EqConfig(2, d_model=16, n_heads=2, n_ctx=8, eps=0.25, T1=40, T2=12)
    return Recipe(model, batch=2, steps=12, warmup=4, eval_every=4, val_windows=8, checkpoint_every=5, snapshots=(0, 6, 12))


def _demo() -> Recipe:
    return Recipe(EqConfig(2), steps=400, snapshots=(0, 50, 100, 200, 400))


def _seed() -> Recipe:
    model = EqConfig(2, d_model=512, n_heads=16, n_ctx=256, eps=0.1, T1=150, T2=40, emb_std=0.02)
    text = TextSpec("tinystories", "bpe", 4096)
    return Recipe(
        model,
        text,
        Control(unit=1.0),
        batch=24,
        steps=20_000,
        lr=8e-4,
        warmup=800,
        eval_every=100,
        snapshots=(0, 200, 800, 2000, 20_000),
        checkpoint_every=50,
    )


PRESETS = MappingProxyType({"tiny": _tiny, "demo": _demo, "seed": _seed})


def preset(name: str) -> Recipe:
    """A recipe by name: tiny (tests), demo (minutes on a laptop), seed (the published scale: a large GPU and days).

    The vocabulary's size is filled in from the text when a training begins.

    Raises:
        UnknownNameError: for another name.
    """
    if name not in PRESETS:
        raise UnknownNameError(f"no preset '{name}'; there are: {', '.join(PRESETS)}")
    return PRESETS[name]()


def from_config(config: Mapping[str, Any]) -> EqJob:
    """The job of a manifest's `config`."""
    given = dict(config)
    recipe = dict(given.pop("recipe"))
    recipe |= {"model": EqConfig(**recipe["model"]), "text": TextSpec(**recipe["text"]), "control": Control(**recipe["control"])}
    recipe["snapshots"] = tuple(recipe["snapshots"])
    return EqJob(**given | {"recipe": Recipe(**recipe), "options": tuple(given["options"].items())})
