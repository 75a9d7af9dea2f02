"""What manifests and results must hold to be read, with pydantic: strict where a value decides something, open to keys it does not know.

Imported when the first record is read, and not before: pydantic takes 0.1 s. Types are strict (no "6" and no 6.0 for 6), every number
that decides a size, a seed or a shape has a range, and none is NaN or infinite.
"""

import re
import reprlib
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wallprobe.errors import StoreError

Made = TypeVar("Made", bound=BaseModel)
SAID = 3  # faults told of one record
AN_OBJECT = re.compile(r"a valid dictionary( or instance of \w+)?")  # pydantic's words for what JSON calls so

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]*$", max_length=200)]
Word = Annotated[str, Field(pattern=r"^\P{Cc}+$", max_length=300)]  # told on one line
Count = Annotated[int, Field(ge=0, le=2**53)]
Size = Annotated[int, Field(ge=1, le=100_000_000)]
Steps = Annotated[int, Field(ge=1, le=1_000_000)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Scalar = bool | int | float | str | None


class Part(BaseModel):
    """A record or a part of one."""

    model_config = ConfigDict(strict=True, frozen=True, extra="allow", protected_namespaces=())


class Shape(Part):
    """Sizes, as far as they are told: a ledger reads runs whose shape is not."""

    n_layers: Annotated[int, Field(ge=1, le=10_000)] = 1
    d_model: Size = 1
    n_heads: Size = 1
    n_ctx: Size = 1
    vocabulary: Size = 1
    act_fn: Word = "gelu"

    @model_validator(mode="after")
    def _heads_divide(self) -> "Shape":
        if {"d_model", "n_heads"} <= self.model_fields_set and self.d_model % self.n_heads:
            raise ValueError(f"{self.n_heads} heads do not divide a width of {self.d_model}")
        return self


class DecoderShape(Shape):
    """What a decoder is built from."""

    n_layers: Annotated[int, Field(ge=1, le=10_000)]
    d_model: Size
    n_heads: Size
    n_ctx: Size
    vocabulary: Size


class EquilibriumShape(DecoderShape):
    """What an equilibrium model is built from; a key more would change its dynamics unseen."""

    model_config = ConfigDict(extra="forbid")

    n_layers: Literal[1]
    d_vocab: Size
    mlp_ratio: Annotated[int, Field(ge=1, le=1_000)] = 4
    c: Finite = 1.0
    eps: Finite = 0.25
    T1: Steps = 60
    T2: Steps = 16
    qk_norm: bool = True
    resinit: Finite = 0.1
    emb_std: Finite = 0.3

    @model_validator(mode="after")
    def _relaxes(self) -> "EquilibriumShape":
        if not 0 < self.eps * (1 + self.c) < 2:
            raise ValueError(f"eps {self.eps:g} with leak c {self.c:g} does not relax")
        return self


class Task(Part):
    """What a run was trained on; its other keys are the task's own, which checks them when it is used."""

    name: Word = "recurrence"


class Condition(Part):
    """A run's training signal."""

    name: Word = "c0"
    signal: Word = "none"
    route: Word = "none"
    summary: str = ""


class Config(Part):
    """What a run was made with; a run of text has no condition."""

    condition: Condition = Condition()
    recipe: dict[str, Any] = {}


class RunManifest(Part):
    """manifest.json of a run of the store."""

    condition: Name
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    weight_hash: Word
    shape: Shape
    task: Task
    run: Name = "run"
    kind: Literal["run", "equilibrium"] = "run"
    weight_bytes: Count | None = None
    horizon: Steps = 1
    config: Config = Config()
    preset: Word | None = None
    method: Word | None = None
    status: Word | None = None
    steps: Count | None = None
    parameters: Count | None = None
    wall_time_s: Finite | None = None
    log: list[dict[str, Any]] = []
    series: dict[str, list[Any]] = {}
    residuals: dict[str, Any] = {}
    teacher: dict[str, Any] | None = None


class Evaluated(Part):
    """An entry of an equilibrium training's log; null is what was not finite."""

    step: int
    val: float | None
    val_raw: float | None


class TrainedManifest(Part):
    """What an experiment reads of an equilibrium training beside `RunManifest`."""

    method: Word
    status: Word
    best_val: Finite | None
    best_step: Annotated[int, Field(ge=-1)]
    lam: Finite | None
    log: Annotated[list[Evaluated], Field(min_length=1)]
    series: dict[str, list[float | None]]
    residuals: dict[str, Any]


class AuditManifest(Part):
    """manifest.json of an audited training."""

    config: dict[str, Any]
    run: Word
    weight_hash: Word
    seeds: list[int]


class ResultRecord(Part):
    """result.json of a stored Result. The long table in it is made again from the arrays."""

    kind: Word
    table: list[Word]
    arrays_hash: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    summary: dict[str, Scalar | list[Scalar]]
    manifest: dict[str, Any]


class MeasurementRecord(Part):
    """result.json as a ledger reads it: figures alone, no arrays."""

    summary: dict[str, Any]
    values: list[dict[str, Any]]
    manifest: dict[str, Any]


def check(model: type[Made], value: Any) -> Made:
    """The value as that model.

    Raises:
        StoreError: if it does not fit; the message names the keys and what stands there, and no file.
    """
    try:
        return model.model_validate(value)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False)
        said = "; ".join(dict.fromkeys(_fault(dict(fault)) for fault in faults[:SAID]))
        more = f"; and {len(faults) - SAID} more" if len(faults) > SAID else ""
    except RecursionError:
        said, more = "nested too deep", ""
    raise StoreError(said + more)


def _fault(fault: dict[str, Any]) -> str:
    """`n_layers is missing`, or `seed should be a valid integer, and is inf`."""
    place = ".".join(str(part)[:40] for part in fault["loc"])
    if fault["type"] == "missing":
        return f"{place} is missing"
    message = AN_OBJECT.sub("an object", str(fault["msg"])).removeprefix("Value error, ").removeprefix("Input ")
    given = "" if fault["type"] == "value_error" else f", and is {' '.join(reprlib.repr(fault['input']).split())}"
    return f"{place or 'it'} {message}{given}" if given else f"{place}: {message}"
