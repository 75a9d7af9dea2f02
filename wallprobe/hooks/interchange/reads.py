"""What is read off the logits under a patch: `read(logits, pairs) -> {name: one figure a pair}`. A plugin's stand beside these by name.

Logits are `[..., pair, vocab]` at the index that is read; `pairs` has the answers and, of models without a patch, `donor_logits` and
`base_logits`. What a read gives is averaged over pairs, with an interval, for the treatment and for every control.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe.errors import ConfigError, look_up
from wallprobe.hooks.interchange.pairs import Pairs
from wallprobe.plugins import check_part, collect, first_of_name

GROUP = "wallprobe.reads"
Found = Mapping[str, Float[Tensor, "*entry pair"]]


@runtime_checkable
class Read(Protocol):
    """Something to read off logits.

    Attributes:
        name: as typed, and the stem of what it is called in a Result.
        units: of each of its figures.
    """

    @property
    def name(self) -> str:
        """See the class."""
        ...

    @property
    def units(self) -> str:
        """See the class."""
        ...

    def __call__(self, logits: Float[Tensor, "*entry pair vocab"], pairs: Pairs) -> Found:
        """Figures by name, one a pair; the name of the only one may be empty."""
        ...


def _of(values: Float[Tensor, "*entry pair vocab"], ids: Int[Tensor, " pair"]) -> Float[Tensor, "*entry pair"]:
    return values.gather(-1, ids.to(values.device).expand(values.shape[:-1])[..., None])[..., 0]


def chances(logits: Float[Tensor, "*entry pair vocab"], pairs: Pairs, name: str) -> Float[Tensor, "*entry pair"]:
    """Log-probability (fp64) of an answer, others that are as right included."""
    log, right = logits.double().log_softmax(-1), [pairs.answers[name]]
    if name in pairs.also:
        most = max(len(row) for row in pairs.also[name])
        # Those that a pair has fewer of are filled with its first, at no weight.
        return torch.stack(
            [_of(log, right[0])]
            + [
                torch.where(
                    torch.tensor([len(row) > at for row in pairs.also[name]], device=log.device),
                    _of(log, torch.tensor([row[at] if len(row) > at else 0 for row in pairs.also[name]])),
                    -torch.inf,
                )
                for at in range(most)
            ]
        ).logsumexp(0)
    return _of(log, right[0])


@dataclass(frozen=True)
class Probability:
    """Probability of each answer."""

    name: str = "p"
    units: str = "probability"

    def __call__(self, logits: Float[Tensor, "*entry pair vocab"], pairs: Pairs) -> Found:
        """By answer."""
        return {name: chances(logits, pairs, name).exp() for name in pairs.answers}


@dataclass(frozen=True)
class LogProbability:
    """Log-probability of each answer."""

    name: str = "log_p"
    units: str = "nats"

    def __call__(self, logits: Float[Tensor, "*entry pair vocab"], pairs: Pairs) -> Found:
        """By answer."""
        return {name: chances(logits, pairs, name) for name in pairs.answers}


@dataclass(frozen=True)
class LogitDifference:
    """Logit of the donor's answer less that of the other (the next one, of several)."""

    name: str = "logit_difference"
    units: str = "logits"

    def __call__(self, logits: Float[Tensor, "*entry pair vocab"], pairs: Pairs) -> Found:
        """One figure."""
        first = pairs.donors_answer
        others = [name for name in pairs.answers if name != first]
        if not others:
            raise ConfigError("read logit_difference takes pairs with two answers or more; these have one")
        return {"": (_of(logits, pairs.answers[first]) - _of(logits, pairs.answers[others[0]])).double()}


@dataclass(frozen=True)
class Rank:
    """How many tokens are likelier than each answer; 0 is the first."""

    name: str = "rank"
    units: str = "tokens"

    def __call__(self, logits: Float[Tensor, "*entry pair vocab"], pairs: Pairs) -> Found:
        """By answer."""
        return {name: (logits > _of(logits, ids)[..., None]).sum(-1).double() for name, ids in pairs.answers.items()}


@dataclass(frozen=True)
class Divergence:
    """KL of what a model says without a patch from what is said under it: src on the donor, and dst on the base."""

    name: str = "kl"
    units: str = "nats"

    def __call__(self, logits: Float[Tensor, "*entry pair vocab"], pairs: Pairs) -> Found:
        """KL(donor || patched) and KL(base || patched)."""
        log, made = logits.double().log_softmax(-1), {}
        for name, said in (("donor", pairs.donor_logits), ("base", pairs.base_logits)):
            if said is not None:
                clean = said.to(log.device).double().log_softmax(-1)
                made[name] = (clean.exp() * (clean - log)).sum(-1)
        return made


@dataclass(frozen=True)
class FromFunction:
    """A user's function as a read: `function(logits, pairs)` gives one figure a pair, or several by name."""

    function: Callable[..., Any]
    name: str = ""
    units: str = ""

    def __call__(self, logits: Float[Tensor, "*entry pair vocab"], pairs: Pairs) -> Mapping[str, Tensor]:
        """What the function gives."""
        found = self.function(logits, pairs)
        return found if isinstance(found, Mapping) else {"": found}


def built_in() -> Mapping[str, Read]:
    """Ours, by name."""
    return {one.name: one for one in (Probability(), LogProbability(), LogitDifference(), Rank(), Divergence())}


def reads() -> Mapping[str, Read]:
    """Every registered read by name: an entry point is one, or a function that returns a mapping of them. The built-in ones win a clash."""

    def unfold(value: Any) -> Sequence[Read]:
        several = (value,) if isinstance(value, Read) else value().values()
        return [check_part(one, Read) for one in several]  # type: ignore[type-abstract]

    return first_of_name([*built_in().values(), *collect(GROUP, unfold)])


def as_read(what: Any) -> Read:
    """A read by name, one itself, or a function.

    Raises:
        UnknownNameError: for a name that no read has; the message lists those there are.
        ConfigError: for anything else.
    """
    if isinstance(what, str):
        return look_up("read", what, reads())
    if isinstance(what, Read):
        return what
    if callable(what):
        return FromFunction(what, getattr(what, "__name__", "read").strip("<>"))
    raise ConfigError(
        f"{what!r} is no read; give a name ({', '.join(reads())}), a function of (logits, pairs), or an object of wallprobe.reads"
    )


class Reader:
    """Reads on one set of pairs, packed along a last dim so that they go through any engine.

    Args:
        chosen: what to read.
        pairs: all of them.
    """

    def __init__(self, chosen: Sequence[Read], pairs: Pairs) -> None:
        self._chosen, self._pairs, self._parts = chosen, pairs, dict[int, Pairs]()
        self.names: tuple[str, ...] = ()

    def on(self, rows: Int[Tensor, " row"] | None) -> Callable[[Float[Tensor, "entry row vocab"]], Float[Tensor, "entry row figure"]]:
        """The reads on some of the pairs, all of them by default."""
        if rows is None or len(rows) == len(self._pairs):
            some = self._pairs
        else:
            some = self._parts.setdefault(int(rows[0]), self._pairs.take(rows))

        def read(logits: Float[Tensor, "entry row vocab"]) -> Float[Tensor, "entry row figure"]:
            found: dict[str, Tensor] = {}
            for one in self._chosen:
                for name, values in one(logits, some).items():
                    whole = "_".join(part for part in (one.name, name) if part)
                    if values.shape != logits.shape[:-1]:
                        raise ConfigError(
                            f"read {one.name} gives {tuple(values.shape)} of logits {tuple(logits.shape)}; it must give one figure a pair"
                        )
                    found[whole] = values.double().cpu()
            self.names = tuple(found)
            return torch.stack(list(found.values()), -1)

        return read

    def named(self, packed: Float[Tensor, "row figure"]) -> dict[str, Float[Tensor, " row"]]:
        """By name again."""
        return dict(zip(self.names, packed.unbind(-1), strict=True))
