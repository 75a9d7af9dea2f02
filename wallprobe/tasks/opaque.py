"""The task `opaque`: the recurrence under a fresh random relabelling of its symbols, which a header gives.

Layout: s(0) s(1) ... s(p-1), the separator (token p), then s(x_0) s(x_1) ... The relabelling s is uniform over all p! and drawn anew
for each sequence, so no symbol means a number by itself. Source: Misra's code; the layout is ours.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from wallprobe.errors import ConfigError
from wallprobe.tasks.recurrence import RecurrenceTask, linear_posterior
from wallprobe.tasks.task import Drawn, Posterior, PrimeTask, from_predictive


@dataclass(frozen=True)
class OpaqueTask(PrimeTask):
    """Relabelled linear recurrences mixed with relabelled noise, each behind its header.

    Args:
        modulus: p.
        length: T, header and separator included: p + 1 + tokens of the body.
        program_prior: as in the recurrence.

    Raises:
        ConfigError: if the modulus is not prime, the body shorter than 3, or the prior outside (0, 1).
    """

    length: int = 34

    name = "opaque"

    @property
    def shortest(self) -> int:
        """Header, separator and three tokens."""
        return self.modulus + 4

    @property
    def vocabulary(self) -> int:
        """Number of tokens: p symbols and the separator."""
        return self.modulus + 1

    @property
    def start(self) -> int:
        """Index of s(x_0), after header and separator."""
        return self.modulus + 1

    def sample(self, count: int, generator: torch.Generator) -> Drawn:
        """Header, separator and relabelled sequence."""
        p = self.modulus
        header = torch.rand(count, p, generator=generator, dtype=torch.float64).argsort(dim=1)
        drawn = RecurrenceTask(p, self.length - self.start, self.program_prior).sample(count, generator)
        separator = torch.full((count, 1), p)
        return Drawn(torch.cat([header, separator, header.gather(1, drawn.tokens)], dim=1), drawn.is_program)

    def posterior(self, tokens: Int[Tensor, "batch index"], dtype: torch.dtype = torch.float64) -> Posterior:
        """The exact answer: in the header uniform over the symbols not yet given, then the separator, then the recurrence's
        answer to the decoded body, encoded again. The header says nothing of the class: w is the prior there.

        Raises:
            ConfigError: if a header repeats a symbol or the separator stands elsewhere.
        """
        p, batch, length = self.modulus, *tokens.shape
        header = self._header(tokens)
        predictive = torch.zeros(batch, length - 1, p + 1, dtype=dtype, device=tokens.device)
        weight = torch.full((batch, length - 1), self.program_prior, dtype=dtype, device=tokens.device)
        forced = torch.full((batch, length - 1), -1, device=tokens.device)
        used = torch.nn.functional.one_hot(header, p + 1).cumsum(dim=1)[:, : length - 1]
        inside = min(p - 1, length - 1)  # positions 1..p-1 predict the rest of the header
        left = (p - torch.arange(1, inside + 1, device=tokens.device)).to(dtype)
        predictive[:, :inside, :p] = (1 - used[:, :inside, :p]).to(dtype) / left[:, None]
        predictive[:, p - 1 : p, p] = 1.0
        predictive[:, p : p + 1, :p] = 1.0 / p
        if length >= self.start + 2:
            decode = header.argsort(dim=1)
            exact = linear_posterior(decode.gather(1, tokens[:, self.start :]), p, self.program_prior, p, dtype)
            known = exact.forced >= 0
            body = decode[:, None].expand(-1, exact.forced.shape[1], -1)
            predictive[:, self.start :, :p] = exact.predictive.gather(2, body)
            weight[:, self.start :] = exact.program_weight
            forced[:, self.start :] = torch.where(known, header.gather(1, exact.forced.clamp(min=0)), -1)
        return from_predictive(predictive, weight, forced)

    def _header(self, tokens: Int[Tensor, "batch index"]) -> Int[Tensor, "batch symbol"]:
        """The header, checked."""
        p = self.modulus
        header, separator = tokens[:, :p], tokens[:, p : p + 1]
        ordered = header.sort(dim=1).values
        repeated = (ordered[:, 1:] == ordered[:, :-1]).any()
        if bool(repeated | (header >= p).any() | (separator != p).any() | (tokens[:, p + 1 :] >= p).any()):
            raise ConfigError(
                f"a sequence of task opaque opens with each of 0..{p - 1} once, then the separator {p}, and has it nowhere else"
            )
        return header
