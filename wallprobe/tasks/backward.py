"""The task `backward`: the recurrence's sequences presented last token first, so that the rule must be run against its arrow.

y_i = x_{T-1-i}. A slope a != 0 reverses into another linear rule (slope 1/a, offset -b/a); a = 0 does not: x_0, b, b, ... becomes
b, ..., b, x_0, and its last token is free. Source: the roof experiment, 2; the reading is ours.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from wallprobe.tasks.recurrence import RecurrenceTask, read
from wallprobe.tasks.task import Drawn, Posterior, PrimeTask, class_weight, peaked


@dataclass(frozen=True)
class BackwardTask(PrimeTask):
    """Reversed linear recurrences mixed with uniform noise; a, b and x_0 uniform on Z_p as in the recurrence.

    Raises:
        ConfigError: if the modulus is not prime, the length below 3, or the prior outside (0, 1).
    """

    name = "backward"

    def sample(self, count: int, generator: torch.Generator) -> Drawn:
        """The recurrence's own sequences, reversed."""
        drawn = RecurrenceTask(self.modulus, self.length, self.program_prior).sample(count, generator)
        return Drawn(drawn.tokens.flip(1), drawn.is_program)

    def posterior(self, tokens: Int[Tensor, "batch index"], dtype: torch.dtype = torch.float64) -> Posterior:
        """The exact answer.

        Of the p^3 programs, those with a != 0 are as many reversed rules with slope a' != 0; the p^2 with a = 0 show b until
        the last token. With c_k the number of programs that agree with k < T tokens given, divided by the p choices
        of y_0 (k = 1: p^2; k = 2: p - 1, or 2 p - 1 where y_1 = y_0; k >= 3: 1 or 0, or 2 p - 1 for a constant prefix),
        the Bayes factor is c_k p^(k-3). P_program = s at one token + (1 - s) / p:

        - position 1: y_0 again, s = 1/p (a = 0 makes a repetition likelier);
        - position 2, y_1 != y_0: every token but y_1, s = -1/(p - 1);
        - constant prefix: y_0, s = 1; at the last position, where a = 0 frees it, s = (p - 1)/(2 p - 1);
        - else the forced token, s = 1.
        """
        p, seen = self.modulus, torch.arange(1, tokens.shape[1], device=tokens.device)
        rule = read(tokens, p)
        equal, slope = rule.equal[:, None], rule.slope[:, None]
        fits = rule.agrees & (equal | (slope != 0) | (seen < 3))
        power = torch.tensor(float(p), dtype=torch.float64, device=tokens.device) ** (seen - 3)
        count = torch.where(equal, 2.0 * p - 1.0, torch.where(seen == 2, p - 1.0, 1.0)).double()
        count[:, 0] = p * p
        weight = torch.where(fits, class_weight(count * power, self.program_prior).to(dtype), 0.0)

        last, second = seen == self.length - 1, ~equal & (seen == 2)
        share = torch.ones_like(weight)
        share[equal & last] = (p - 1.0) / (2.0 * p - 1.0)
        share[second] = -1.0 / (p - 1.0)
        share[:, 0] = 1.0 / p
        token = torch.where(second, tokens[:, 1:2], rule.following)
        token[:, 0] = tokens[:, 0]
        known = fits & ((seen > 2) | (equal & (seen == 2))) & ~(equal & last)
        forced = torch.where(known, rule.following, -1)
        if p == 2:  # every token but y_1 is one token
            forced = torch.where(second, 1 - tokens[:, 1:2], forced)
        return peaked(token, weight * share, weight, forced, p, p)
