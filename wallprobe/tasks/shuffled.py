"""The task `shuffled`: the recurrence's sequence cut into triples, which are presented in random order.

Triple m is (x_3m, x_3m+1, x_3m+2); the order is uniform over all. Within a triple the rule forces the next token; its first token is
that of a triple not shown yet, which one being unknown. Noise is uniform. Source: Misra's code; the reading is ours.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wallprobe.errors import ConfigError
from wallprobe.tasks.recurrence import RecurrenceTask, inverses
from wallprobe.tasks.task import Drawn, Posterior, PrimeTask, class_weight, from_predictive, mix, peaked


@dataclass(frozen=True)
class ShuffledTask(PrimeTask):
    """Linear recurrences in shuffled triples, mixed with uniform noise.

    Args:
        modulus: p.
        length: T, a multiple of 3.
        program_prior: as in the recurrence.

    Raises:
        ConfigError: as the recurrence, or if the length is no multiple of 3 or below 6.
    """

    length: int = 15

    name = "shuffled"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length % 3:
            raise ConfigError(f"length {self.length} is no multiple of 3; give 15, 18, 21, ...")

    @property
    def shortest(self) -> int:
        """Two triples."""
        return 6

    def sample(self, count: int, generator: torch.Generator) -> Drawn:
        """Each sequence a program in shuffled triples with probability `program_prior`, else uniform noise."""
        p, triples = self.modulus, self.length // 3
        programs = RecurrenceTask(p, self.length).sample_programs(count, generator).tokens.view(count, triples, 3)
        order = torch.rand(count, triples, generator=generator, dtype=torch.float64).argsort(dim=1)
        noise = torch.randint(p, (count, self.length), generator=generator)
        is_program = torch.rand(count, generator=generator) < self.program_prior
        return mix(is_program, programs.gather(1, order[..., None].expand(-1, -1, 3)).flatten(1), noise)

    def posterior(self, tokens: Int[Tensor, "batch index"], dtype: torch.dtype = torch.float64) -> Posterior:
        """The exact answer.

        The first triple gives the rule, unless it is constant (x, x, x): then the rule is (0, x), whose first triple may differ,
        or one of the p - 1 with a != 0 that keep x. A rule and x_0 fix how often each symbol opens a triple; S_k, the sum
        over x_0 (and the rules left) of the chance to see the openings so far drawn without replacement, gives the Bayes factor
        S_k p^(k-3), and the next opening's probabilities are ratios of such sums. Before the rule is known: position 1
        prefers x_0 by (n-1)/(n p), since all triples but one of a rule with a = 0 are constant; S_2 = p - 1 + 1/n where
        x_1 != x_0, and then x_2 = x_1, which takes a = 0 and the first triple, is n times less likely than any other token.
        """
        p, triples, given = self.modulus, self.length // 3, tokens.shape[1]
        slope, offset, equal = self._candidate(tokens)
        fits, constant = self._fits(tokens, slope, offset), (tokens == tokens[:, :1]).cummin(dim=1).values & equal[:, None]
        sums, openings, forced_opening = self._openings(tokens, slope, offset, fits, constant)

        seen = torch.arange(1, given, device=tokens.device)
        early = p - 1 + 1 / triples
        sums[:, 1:2] = torch.where(equal[:, None], sums[:, 1:2], early)
        sums[:, 0] = p**2
        power = torch.tensor(float(p), dtype=torch.float64, device=tokens.device) ** (seen - 3)
        weight = class_weight(sums * power, self.program_prior).to(dtype)

        following = (slope[:, None] * tokens[:, :-1] + offset[:, None]) % p
        known = (sums > 0) & (seen % 3 != 0) & ((seen > 2) | equal[:, None])
        known[:, 0] = False
        forced = torch.where(known, following, -1)
        forced[:, 2::3] = forced_opening
        share = torch.ones_like(weight)
        share[:, 0] = (triples - 1) / (triples * p)
        share[~equal, 1:2] = 1.0 - p / early
        token = following.clone()
        token[:, 0] = tokens[:, 0]
        token[:, 1:2] = torch.where(equal, tokens[:, 0], tokens[:, 1])[:, None][:, : given - 2]
        answer = peaked(token, weight * share, weight, forced, p, p)
        at_openings = weight[:, 2::3, None] * openings.to(dtype) + (1.0 - weight[:, 2::3, None]) / p
        answer.predictive[:, 2::3] = at_openings
        return from_predictive(answer.predictive, weight, forced)

    def _candidate(self, tokens: Int[Tensor, "batch index"]) -> tuple[Int[Tensor, " batch"], Int[Tensor, " batch"], Bool[Tensor, " batch"]]:
        """The rule of the first triple (slope, offset), (0, x) where its first two tokens are x, and whether they are."""
        p, first, second = self.modulus, tokens[:, 0], tokens[:, 1]
        third = tokens[:, 2] if tokens.shape[1] > 2 else second
        slope = (third - second) * inverses(p).to(tokens.device)[(second - first) % p] % p
        return slope, (second - slope * first) % p, first == second

    def _fits(
        self, tokens: Int[Tensor, "batch index"], slope: Int[Tensor, " batch"], offset: Int[Tensor, " batch"]
    ) -> Bool[Tensor, "batch index"]:
        """Whether every step within a triple, up to and with this token, is the candidate rule's."""
        fits = torch.ones_like(tokens, dtype=torch.bool)
        fits[:, 1:] = tokens[:, 1:] == (slope[:, None] * tokens[:, :-1] + offset[:, None]) % self.modulus
        fits[:, ::3] = True
        return fits.cummin(dim=1).values

    def _openings(
        self,
        tokens: Int[Tensor, "batch index"],
        slope: Int[Tensor, " batch"],
        offset: Int[Tensor, " batch"],
        fits: Bool[Tensor, "batch index"],
        constant: Bool[Tensor, "batch index"],
    ) -> tuple[Float[Tensor, "batch position"], Float[Tensor, "batch opening vocab"], Int[Tensor, "batch opening"]]:
        """S_k at positions 1..index-1; P_program at openings 3, 6, ... before the last token, and the token forced there (else -1).

        Counts are kept whole (times n (n-1) ...), so that "forced" is an equality of integers.
        """
        p, triples, (batch, given) = self.modulus, self.length // 3, tokens.shape
        left = self._multiplicities(slope, offset)
        ways = torch.ones(batch, p, dtype=torch.float64, device=tokens.device)
        sums = torch.empty(batch, given - 1, dtype=torch.float64, device=tokens.device)
        openings, forced = [], []
        orders = 1.0  # n (n-1) ... of the openings seen
        for triple in range(triples):
            at = 3 * triple
            if at >= given:
                break
            if triple:
                # position `at`: the next opening, `at` tokens seen
                others = orders * (p - 1) * constant[:, at - 1].double()
                ahead = torch.einsum("bh,bhv->bv", ways, left) * fits[:, at - 1, None]
                ahead.scatter_add_(1, tokens[:, :1], (triples - triple) * others[:, None])
                total = ahead.sum(1, keepdim=True)
                openings.append(torch.where(total > 0, ahead / total, 1.0 / p))
                top = ahead.max(dim=1, keepdim=True)
                forced.append(torch.where((top.values == total) & (total > 0), top.indices, -1))
            orders *= triples - triple
            opening = tokens[:, at, None]
            shown = left.gather(2, opening[:, None].expand(-1, p, -1))
            ways = ways * shown[..., 0]
            left.scatter_add_(2, opening[:, None].expand(-1, p, -1), torch.full_like(shown, -1.0))
            for index in range(at, min(at + 3, given - 1)):
                sums[:, index] = ways.sum(1) / orders * fits[:, index] + (p - 1) * constant[:, index]
        if not openings:
            return sums, sums.new_empty(batch, 0, p), tokens.new_empty(batch, 0)
        count = len(range(2, given - 1, 3))
        return sums, torch.stack(openings[:count], dim=1), torch.cat(forced[:count], dim=1)

    def _multiplicities(self, slope: Int[Tensor, " batch"], offset: Int[Tensor, " batch"]) -> Float[Tensor, "batch start vocab"]:
        """How many triples each symbol opens, for each x_0, under each sequence's rule."""
        p = self.modulus
        opening = torch.arange(p, device=slope.device).expand(len(slope), p)
        counts = torch.zeros(len(slope), p, p, dtype=torch.float64, device=slope.device)
        for _ in range(self.length // 3):
            counts.scatter_add_(2, opening[..., None], torch.ones_like(counts[..., :1]))
            for _ in range(3):
                opening = (slope[:, None] * opening + offset[:, None]) % p
        return counts
