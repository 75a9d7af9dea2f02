"""The task `quadratic`: programs follow x' = x^2 + b (mod p), a many-to-one map, so that no rule can be run backwards.

Program: b and x_0 uniform on Z_p; noise as in the recurrence. Source: the roof experiment, 2; the prior over b and x_0 is ours.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from wallprobe.tasks.task import Drawn, Posterior, PrimeTask, class_weight, mix, peaked


@dataclass(frozen=True)
class QuadraticTask(PrimeTask):
    """Quadratic recurrences with one parameter, mixed with uniform noise.

    Raises:
        ConfigError: if the modulus is not prime, the length below 3, or the prior outside (0, 1).
    """

    name = "quadratic"

    def sample(self, count: int, generator: torch.Generator) -> Drawn:
        """Each sequence a program with probability `program_prior`, else uniform noise."""
        offset, start = (torch.randint(self.modulus, (count,), generator=generator) for _ in range(2))
        noise = torch.randint(self.modulus, (count, self.length), generator=generator)
        is_program = torch.rand(count, generator=generator) < self.program_prior
        columns = [start]
        for _ in range(self.length - 1):
            columns.append((columns[-1] ** 2 + offset) % self.modulus)
        return mix(is_program, torch.stack(columns, dim=1), noise)

    def posterior(self, tokens: Int[Tensor, "batch index"], dtype: torch.dtype = torch.float64) -> Posterior:
        """The exact answer: two tokens determine b, so c_k is p for k = 1 and then 1 or 0, and the Bayes factor c_k p^(k-2).

        The next token is forced from position 2 on.
        """
        p, seen = self.modulus, torch.arange(1, tokens.shape[1], device=tokens.device)
        offsets = (tokens[:, 1:] - tokens[:, :-1] ** 2) % p
        agrees = torch.ones_like(offsets, dtype=torch.bool)
        agrees[:, 1:] = (offsets[:, :1] == offsets[:, :-1])[:, : len(seen) - 1].cummin(dim=1).values
        factor = torch.tensor(float(p), dtype=torch.float64, device=tokens.device) ** (seen - 2).clamp(min=0)
        weight = torch.where(agrees, class_weight(factor, self.program_prior).to(dtype), 0.0)
        known = agrees & (seen > 1)
        following = (tokens[:, :-1] ** 2 + offsets[:, :1]) % p
        mass = torch.where(known, weight, 0.0)
        return peaked(following, mass, weight, torch.where(known, following, -1), p, p)
