"""What a task is: sequences to draw and the exact Bayesian answer to them. The recurrence and each of its variants is one.

Index i is the place of a token. Position t is the prediction OF token t from the tokens before it; positions run from 1 to
length - 1, and arrays over positions hold position t in column t - 1.
"""

import abc
import math
import re
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wallprobe.errors import ConfigError
from wallprobe.store.memory import require

COPIES = 12  # of a table of answers that a measurement holds at once, measured on `eval` (16) and rounded down


def is_prime(number: int) -> bool:
    """True for primes; trial division, as moduli here are small."""
    return number >= 2 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


@dataclass(frozen=True)
class Drawn:
    """Sampled sequences (int64, CPU) and which of them were drawn as programs."""

    tokens: Int[Tensor, "batch index"]
    is_program: Bool[Tensor, " batch"]


@dataclass(frozen=True)
class Posterior:
    """The exact Bayesian answer at positions 1..T-1.

    Attributes:
        predictive: P_t, the probability of each token.
        program_weight: w_t, the posterior probability that the sequence is a program.
        forced: the next token that a program would force, -1 where none is forced yet.
        entropy: H(P_t) in bits.
        best: the Bayes-best token, argmax of P_t (the lowest one on ties).
    """

    predictive: Float[Tensor, "batch position vocab"]
    program_weight: Float[Tensor, "batch position"]
    forced: Int[Tensor, "batch position"]
    entropy: Float[Tensor, "batch position"]
    best: Int[Tensor, "batch position"]


@dataclass(frozen=True)
class Task(abc.ABC):
    """A mixture of program and noise sequences whose posterior is known in closed form. Subclasses are frozen dataclasses that
    give the fields their defaults.

    Attributes:
        name: as typed on the command line, `[a-z][a-z0-9-]*`.
        modulus: p, the number of symbols that noise is uniform over.
        length: T, tokens a sequence.
        program_prior: probability that a sequence is a program.
    """

    modulus: int
    length: int
    program_prior: float

    name: ClassVar[str]

    @property
    @abc.abstractmethod
    def vocabulary(self) -> int:
        """Number of tokens a network for this task knows; at least the modulus."""

    @property
    def start(self) -> int:
        """Index of the first token after the header. Supervised positions are start + 1..start + K."""
        return 0

    @property
    def context(self) -> int:
        """Tokens that a network for this task has position embeddings for; at least the length."""
        return self.length

    @property
    def label(self) -> str:
        """The task's name and each field that is not its default, such as `modulus-modulus-19`; fit for a run's name."""
        changed = [field for field in fields(self) if getattr(self, field.name) != field.default]
        parts = [self.name, *(f"{field.name}-{getattr(self, field.name)}" for field in changed)]
        return re.sub(r"[^a-z0-9-]", "_", "-".join(parts).lower())

    @property
    def suffix(self) -> str:
        """What a run of this task appends to its condition's name."""
        return f"-{self.label}"

    @abc.abstractmethod
    def sample(self, count: int, generator: torch.Generator) -> Drawn:
        """Draw sequences from the mixture; the draw depends on the CPU generator alone."""

    @abc.abstractmethod
    def posterior(self, tokens: Int[Tensor, "batch index"], dtype: torch.dtype = torch.float64) -> Posterior:
        """The exact Bayesian answer to sequences of 2 to `length` tokens, on their device; no loop over sequences."""

    def check_room(self, count: int, option: str) -> None:
        """Refuse more sequences than memory holds with their exact answers and a network's.

        Args:
            count: sequences.
            option: what asks for them, such as `--sequences`.

        Raises:
            ConfigError: if they do not fit.
        """
        answers = float(count) * self.length * self.vocabulary * 8  # in fp64
        require(COPIES * answers, f"{count:,} sequences of {self.length} tokens", f"a smaller {option}")

    def config(self) -> dict[str, Any]:
        """Name and fields as plain JSON; `registry.from_manifest` reads it back."""
        return {"name": self.name} | {field.name: getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class PrimeTask(Task):
    """A task over Z_p of the usual sizes whose tokens are the p symbols.

    Raises:
        ConfigError: if the modulus is not prime, the length below `shortest`, or the prior outside (0, 1).
    """

    modulus: int = 17
    length: int = 16
    program_prior: float = 0.5

    def __post_init__(self) -> None:
        check_field(self.modulus, self.length, self.program_prior, self.shortest)

    @property
    def shortest(self) -> int:
        """Tokens from which on the task shows itself."""
        return 3

    @property
    def vocabulary(self) -> int:
        """Number of tokens: p."""
        return self.modulus


def check_field(modulus: int, length: int, program_prior: float, shortest: int = 3) -> None:
    """Refuse what no task over Z_p takes.

    Raises:
        ConfigError: if the modulus is not prime, the length below `shortest`, or the prior outside (0, 1).
    """
    if not is_prime(modulus):
        raise ConfigError(f"modulus {modulus} is not prime; the rule's inverse needs a field: give 3, 5, 7, 11, 13, 17, 19, ...")
    if length < shortest:
        raise ConfigError(f"length {length} is too short; this task shows itself from {shortest} tokens on")
    if not 0.0 < program_prior < 1.0:
        raise ConfigError(f"program_prior {program_prior} is outside (0, 1)")


def peaked(
    token: Int[Tensor, "batch position"],
    mass: Float[Tensor, "batch position"],
    weight: Float[Tensor, "batch position"],
    forced: Int[Tensor, "batch position"],
    modulus: int,
    vocabulary: int,
) -> Posterior:
    """The answer P = mass at one token + (1 - mass) / p at each of the p symbols, with its entropy in closed form.

    Args:
        token: the token that stands out.
        mass: how much; 0 leaves P uniform, a negative one takes from that token what the others share.
        weight: w.
        forced: as in `Posterior`.
        modulus: p; tokens at or above it get nothing.
        vocabulary: size of the last dim.
    """
    rest = (1.0 - mass) / modulus
    top = (rest + mass).clamp_(min=0.0)
    predictive = rest.new_zeros((*rest.shape, vocabulary))
    predictive[..., :modulus] = rest[..., None]
    predictive.scatter_(2, token[..., None], top[..., None])
    entropy = (torch.special.xlogy(top, top) + (modulus - 1) * torch.special.xlogy(rest, rest)) / -math.log(2.0)
    best = torch.where(mass > 0, token, ((mass < 0) & (token == 0)).long())
    return Posterior(predictive, weight, forced, entropy, best)


def from_predictive(
    predictive: Float[Tensor, "batch position vocab"], weight: Float[Tensor, "batch position"], forced: Int[Tensor, "batch position"]
) -> Posterior:
    """The answer with any predictive."""
    entropy = torch.special.xlogy(predictive, predictive).sum(-1) / -math.log(2.0)
    return Posterior(predictive, weight, forced, entropy, predictive.argmax(-1))


def class_weight(factor: Float[Tensor, "*shape"], prior: float) -> Float[Tensor, "*shape"]:
    """w = prior BF / (prior BF + 1 - prior), also where the Bayes factor BF is infinite in its type."""
    return 1.0 / (1.0 + (1.0 - prior) / prior / factor)


def mix(program: Bool[Tensor, " batch"], programs: Int[Tensor, "batch index"], noise: Int[Tensor, "batch index"]) -> Drawn:
    """Program rows where `program`, noise elsewhere."""
    return Drawn(torch.where(program[:, None], programs, noise), program)
