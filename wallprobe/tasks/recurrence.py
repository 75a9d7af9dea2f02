"""The recurrence task: half the sequences follow x' = a x + b (mod p), half are noise; the exact Bayesian answer is known.

Positions and indices as in `task`. Source: Misra's essay; the wall study, "The wall is real".
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wallprobe.errors import ConfigError
from wallprobe.tasks.task import Drawn, Posterior, PrimeTask, class_weight, is_prime, peaked

__all__ = ["Posterior", "RecurrenceTask", "Sequences", "is_prime"]


@dataclass(frozen=True)
class Sequences(Drawn):
    """Sampled sequences. `slope` and `offset` are the drawn a and b; on noise rows they are drawn but unused."""

    slope: Int[Tensor, " batch"]
    offset: Int[Tensor, " batch"]


@functools.cache
def inverses(modulus: int) -> Int[Tensor, " symbol"]:
    """The inverse of each symbol modulo p, 0 for 0."""
    return torch.tensor([pow(value, -1, modulus) if value else 0 for value in range(modulus)])


@functools.cache
def _powers(modulus: int, length: int) -> tuple[Int[Tensor, "symbol index"], Int[Tensor, "symbol index"]]:
    """a^t and 1 + a + ... + a^(t-1) modulo p, so that x_t = a^t x_0 + (1 + ... + a^(t-1)) b."""
    powers, sums = [torch.ones(modulus, dtype=torch.int64)], [torch.zeros(modulus, dtype=torch.int64)]
    for _ in range(length - 1):
        sums.append((sums[-1] + powers[-1]) % modulus)
        powers.append(powers[-1] * torch.arange(modulus) % modulus)
    return torch.stack(powers, dim=1), torch.stack(sums, dim=1)


@functools.cache
def _weights(modulus: int, length: int, prior: float) -> Float[Tensor, "kind position"]:
    """w at positions 1..length-1 (fp64) while some rule still fits: first two tokens different, and equal."""
    exponents = [[max(0, seen - 3 + equal * (seen > 2)) for seen in range(1, length)] for equal in (0, 1)]
    return class_weight(torch.tensor(float(modulus), dtype=torch.float64) ** torch.tensor(exponents), prior)


@dataclass(frozen=True)
class Reading:
    """What the tokens seen so far say of the rule, at positions 1..index-1.

    Attributes:
        equal: the first two tokens are the same.
        agrees: some rule fits all tokens seen.
        known: it forces the next one.
        following: that token (meaningless where not `known`).
        slope: a, where three tokens determine it; 0 where the first two are equal.
    """

    equal: Bool[Tensor, " batch"]
    agrees: Bool[Tensor, "batch position"]
    known: Bool[Tensor, "batch position"]
    following: Int[Tensor, "batch position"]
    slope: Int[Tensor, " batch"]


def read(tokens: Int[Tensor, "batch index"], modulus: int) -> Reading:
    """Which rules x' = a x + b fit each prefix, by steps d_i = x_i - x_{i-1}: a rule fits where d_{i+1} = a d_i throughout."""
    length = tokens.shape[1]
    steps = (tokens[:, 1:] - tokens[:, :-1]) % modulus
    equal = steps[:, 0] == 0
    # A two-token prefix has no second step; the slope is then never read.
    second = steps[:, 1] if length > 2 else torch.zeros_like(steps[:, 0])
    slope = second * inverses(modulus).to(tokens.device)[steps[:, 0]] % modulus
    next_steps = slope[:, None] * steps % modulus
    agrees = torch.ones(len(tokens), length - 1, dtype=torch.bool, device=tokens.device)
    agrees[:, 2:] = (steps[:, 1:-1] == next_steps[:, :-2]).cummin(dim=1).values if length > 3 else True
    known = agrees.clone()
    known[:, 0] = False
    known[:, 1:2] = equal[:, None]
    following = tokens[:, :-1].clone()
    following[:, 1:] += next_steps[:, :-1]
    return Reading(equal, agrees, known, following % modulus, slope)


def linear_posterior(
    tokens: Int[Tensor, "batch index"], modulus: int, prior: float, vocabulary: int, dtype: torch.dtype = torch.float64
) -> Posterior:
    """The exact answer for linear recurrences modulo p against uniform noise, for any number of tokens from 2 on.

    With c_k the number of rules (a, b) that agree with the first k tokens, the Bayes factor of program against
    noise is c_k p^(k-3), and P = w P_program + (1 - w) / p.
    """
    seen = read(tokens, modulus)
    weights = _weights(modulus, tokens.shape[1], prior).to(tokens.device, dtype)
    weight = torch.where(seen.agrees, weights[seen.equal.long()], 0.0)
    mass = torch.where(seen.known, weight, 0.0)
    forced = torch.where(seen.known, seen.following, -1)
    return peaked(seen.following, mass, weight, forced, modulus, vocabulary)


def roll_out(
    start: Int[Tensor, " batch"], slope: Int[Tensor, " batch"], offset: Int[Tensor, " batch"], modulus: int, length: int
) -> Int[Tensor, "batch index"]:
    """The sequences x' = a x + b (mod p) with the given first token and rule."""
    powers, sums = _powers(modulus, length)
    return (powers[slope] * start[:, None] + sums[slope] * offset[:, None]) % modulus


@dataclass(frozen=True)
class RecurrenceTask(PrimeTask):
    """Linear recurrences modulo a prime mixed with uniform noise.

    Args:
        modulus: p, prime; also the vocabulary size.
        length: T, tokens a sequence.
        program_prior: probability that a sequence is a program.

    Raises:
        ConfigError: if the modulus is not prime, the length below 3, or the prior outside (0, 1).
    """

    name = "recurrence"

    def config(self) -> dict[str, int | float]:
        """The fields by name, for a manifest."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @classmethod
    def from_manifest(cls, entry: Mapping[str, Any]) -> "RecurrenceTask":
        """The task of a run's manifest entry `task` (its name beside the fields).

        Raises:
            ConfigError: as the constructor, or if the entry is of another task; `registry.from_manifest` reads any.
        """
        if entry.get("name", cls.name) != cls.name:
            raise ConfigError(f"this instrument reads linear recurrences, not task '{entry['name']}'; give a run of the task {cls.name}")
        return cls(**{key: value for key, value in entry.items() if key not in ("name", "plugin")})

    @property
    def suffix(self) -> str:
        """Nothing: this is the task that a bare condition's name means."""
        return ""

    def sample_programs(self, count: int, generator: torch.Generator) -> Sequences:
        """Program sequences only, with a, b and x_0 uniform on Z_p."""
        slope, offset, start = (torch.randint(self.modulus, (count,), generator=generator) for _ in range(3))
        tokens = roll_out(start, slope, offset, self.modulus, self.length)
        return Sequences(tokens, torch.ones(count, dtype=torch.bool), slope, offset)

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
        """The exact Bayesian answer, in closed form over the batch; see `linear_posterior`.

        Args:
            tokens: sequences of `length` or fewer tokens (at least 2), any device.
            dtype: floating type of the answer.

        Returns:
            Posterior at positions 1..index-1 on the same device.
        """
        return linear_posterior(tokens, self.modulus, self.program_prior, self.modulus, dtype)
