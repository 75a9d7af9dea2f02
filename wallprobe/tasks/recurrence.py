"""The recurrence task: half the sequences follow x' = a x + b (mod p), half are noise; the exact Bayesian answer is known.

Index i is the place of x_i. Position t is the prediction OF x_t from x_0..x_{t-1}; positions run from 1 to length - 1,
and arrays over positions hold position t in column t - 1. Source: seed 000, spec wall.md section 2.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wallprobe.errors import ConfigError


def is_prime(number: int) -> bool:
    """True for primes; trial division, as moduli here are small."""
    return number >= 2 and all(number % divisor for divisor in range(2, math.isqrt(number) + 1))


@dataclass(frozen=True)
class Sequences:
    """Sampled sequences. `slope` and `offset` are the drawn a and b; on noise rows they are drawn but unused."""

    tokens: Int[Tensor, "batch index"]
    is_program: Bool[Tensor, " batch"]
    slope: Int[Tensor, " batch"]
    offset: Int[Tensor, " batch"]


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
class RecurrenceTask:
    """Linear recurrences modulo a prime mixed with uniform noise.

    Args:
        modulus: p, prime; also the vocabulary size.
        length: T, tokens a sequence.
        program_prior: probability that a sequence is a program.

    Raises:
        ConfigError: if the modulus is not prime, the length below 3, or the prior outside (0, 1).
    """

    modulus: int = 17
    length: int = 16
    program_prior: float = 0.5

    name = "recurrence"

    def __post_init__(self) -> None:
        if not is_prime(self.modulus):
            raise ConfigError(f"modulus {self.modulus} is not prime; the rule's inverse needs a field: give 3, 5, 7, 11, 13, 17, 19, ...")
        if self.length < 3:
            raise ConfigError(f"length {self.length} is too short; a recurrence shows itself from 3 tokens on")
        if not 0.0 < self.program_prior < 1.0:
            raise ConfigError(f"program_prior {self.program_prior} is outside (0, 1)")

    def config(self) -> dict[str, int | float]:
        """The fields by name, for a manifest."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_manifest(cls, entry: Mapping[str, Any]) -> "RecurrenceTask":
        """The task of a run's manifest entry `task` (its name beside the fields).

        Raises:
            ConfigError: as the constructor.
        """
        return cls(**{key: value for key, value in entry.items() if key != "name"})

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.modulus

    def roll_out(
        self, start: Int[Tensor, " batch"], slope: Int[Tensor, " batch"], offset: Int[Tensor, " batch"]
    ) -> Int[Tensor, "batch index"]:
        """The program sequences with the given first token and rule, `length` tokens each."""
        columns = [start]
        for _ in range(self.length - 1):
            columns.append((slope * columns[-1] + offset) % self.modulus)
        return torch.stack(columns, dim=1)

    def sample_programs(self, count: int, generator: torch.Generator) -> Sequences:
        """Program sequences only, with a, b and x_0 uniform on Z_p."""
        slope, offset, start = (torch.randint(self.modulus, (count,), generator=generator) for _ in range(3))
        return Sequences(self.roll_out(start, slope, offset), torch.ones(count, dtype=torch.bool), slope, offset)

    def sample(self, count: int, generator: torch.Generator) -> Sequences:
        """Sequences from the mixture: each a program with probability `program_prior`, else uniform noise.

        Args:
            count: number of sequences.
            generator: a CPU generator; the draw depends on nothing else.

        Returns:
            Sequences with int64 tokens in [0, p), on CPU.
        """
        programs = self.sample_programs(count, generator)
        noise = torch.randint(self.modulus, (count, self.length), generator=generator)
        is_program = torch.rand(count, generator=generator) < self.program_prior
        tokens = torch.where(is_program[:, None], programs.tokens, noise)
        return Sequences(tokens, is_program, programs.slope, programs.offset)

    def posterior(self, tokens: Int[Tensor, "batch index"], dtype: torch.dtype = torch.float64) -> Posterior:
        """The exact Bayesian answer, in closed form over the batch.

        With c_k the number of rules (a, b) that agree with the first k tokens, the Bayes factor of program against
        noise is c_k p^(k-3), and P = w P_program + (1 - w) / p (spec wall.md section 2).

        Args:
            tokens: sequences of `length` or fewer tokens (at least 2), any device.
            dtype: floating type of the answer.

        Returns:
            Posterior at positions 1..index-1 on the same device.
        """
        p = self.modulus
        batch, length = tokens.shape
        first, second = tokens[:, 0], tokens[:, 1]
        steps = (tokens[:, 1:] - tokens[:, :-1]) % p
        constant = steps[:, 0] == 0
        inverse = torch.tensor([pow(value, -1, p) if value else 0 for value in range(p)], device=tokens.device)
        # A two-token prefix has no second step; the slope is then never read.
        ratio = steps[:, 1] if length > 2 else torch.zeros_like(first)
        slope = (ratio * inverse[steps[:, 0]]) % p
        offset = (second - slope * first) % p

        # agrees[:, k-3]: some rule fits the first k tokens, k = 3..length
        fits = torch.where(constant[:, None], steps[:, 1:] == 0, steps[:, 1:] == (slope[:, None] * steps[:, :-1]) % p)
        agrees = fits.to(torch.int64).cumprod(dim=1).bool()

        seen = torch.arange(1, length, device=tokens.device)
        rules = torch.where(constant, float(p), 1.0).to(dtype)
        factor = torch.ones(batch, length - 1, dtype=dtype, device=tokens.device)
        powers = float(p) ** (seen[2:] - 3).to(dtype)
        factor[:, 2:] = agrees[:, : length - 3] * rules[:, None] * powers
        odds = factor * (self.program_prior / (1.0 - self.program_prior))
        weight = odds / (1.0 + odds)

        forced_next = torch.where(constant[:, None], first[:, None], (slope[:, None] * tokens[:, :-1] + offset[:, None]) % p)
        known = torch.zeros(batch, length - 1, dtype=torch.bool, device=tokens.device)
        known[:, 1:2] = constant[:, None]
        known[:, 2:] = agrees[:, : length - 3]
        forced = torch.where(known, forced_next, -1)

        mass = torch.where(known, weight, 0.0)
        predictive = ((1.0 - mass) / p)[..., None].expand(-1, -1, p).clone()
        predictive.scatter_add_(2, forced.clamp(min=0)[..., None], mass[..., None])
        entropy = -torch.special.xlogy(predictive, predictive).sum(-1) / math.log(2.0)
        return Posterior(predictive, weight, forced, entropy, predictive.argmax(-1))
