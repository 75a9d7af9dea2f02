"""The task `hello`: a program greets back. Its sequences alternate between two symbols, x y x y ...; noise is uniform."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from wallprobe.tasks.task import Drawn, Posterior, Task, check_field, class_weight, mix, peaked


@dataclass(frozen=True)
class HelloTask(Task):
    """Alternating sequences mixed with uniform noise.

    Args:
        modulus: p, how many symbols there are.
        length: T.
        program_prior: probability that a sequence alternates.

    Raises:
        ConfigError: if p is not prime, the length below 3, or the prior outside (0, 1).
    """

    modulus: int = 7
    length: int = 12
    program_prior: float = 0.5

    name = "hello"

    def __post_init__(self) -> None:
        check_field(self.modulus, self.length, self.program_prior)

    @property
    def vocabulary(self) -> int:
        """Number of tokens: p."""
        return self.modulus

    def sample(self, count: int, generator: torch.Generator) -> Drawn:
        """Each sequence alternates with probability `program_prior`, else is uniform noise."""
        noise = torch.randint(self.modulus, (count, self.length), generator=generator)
        is_program = torch.rand(count, generator=generator) < self.program_prior
        return mix(is_program, noise[:, torch.arange(self.length) % 2], noise)

    def posterior(self, tokens: Int[Tensor, "batch index"], dtype: torch.dtype = torch.float64) -> Posterior:
        """The exact answer, position t from the t tokens before it.

        An alternating sequence has probability p^-2, noise p^-t, so that the Bayes factor is p^(t-2) while every token equals the
        one two before it, and 0 from the first that does not. Two tokens say nothing yet.
        """
        p, given = self.modulus, tokens.shape[1]
        alike = torch.ones_like(tokens, dtype=torch.bool)
        alike[:, 2:] = tokens[:, 2:] == tokens[:, :-2]
        keeps = alike.cummin(dim=1).values[:, :-1]
        seen = torch.arange(1, given, device=tokens.device)
        factor = keeps.to(dtype) * torch.tensor(float(p), dtype=dtype, device=tokens.device) ** (seen - 2).clamp(min=0)
        weight = class_weight(factor, self.program_prior)
        echo = tokens[:, :-1].clone()
        echo[:, 1:] = tokens[:, :-2]
        known = keeps & (seen >= 2)
        return peaked(echo, torch.where(known, weight, 0.0), weight, torch.where(known, echo, -1), p, p)
