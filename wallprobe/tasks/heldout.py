"""The task `heldout-prefix`: the recurrence with one in five of its openings kept from training.

A generic prefix is x_0, x_1, x_2 with x_1 != x_0: it fixes the rule. SHA-256 puts each into one of five buckets. Programs and noise are
kept from the held bucket alike, or the prefix itself would tell noise from programs. Source: Misra's code; the hash, the
definition of generic and the posterior's conditioning are ours.
"""

import functools
import hashlib
import itertools
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wallprobe.errors import ConfigError
from wallprobe.tasks.recurrence import linear_posterior, roll_out
from wallprobe.tasks.task import Drawn, Posterior, PrimeTask, from_predictive, mix

BUCKETS = 5
SPLITS = ("train", "held", "full")


@functools.cache
def buckets(modulus: int) -> Int[Tensor, "first second third"]:
    """The bucket, 0..4, of each generic three-token prefix; -1 where x_1 = x_0."""
    table = torch.full((modulus,) * 3, -1)
    for prefix in itertools.product(range(modulus), repeat=3):
        if prefix[0] != prefix[1]:
            digest = hashlib.sha256(",".join(map(str, prefix)).encode()).digest()
            table[prefix] = int.from_bytes(digest[:8], "big") % BUCKETS
    return table


@functools.cache
def _allowed(modulus: int, bucket: int, split: str) -> Bool[Tensor, "first second third"]:
    """The prefixes that a split draws from."""
    table = buckets(modulus)
    return torch.ones_like(table, dtype=torch.bool) if split == "full" else (table == bucket) == (split == "held")


@functools.cache
def _programs(modulus: int, length: int, bucket: int, split: str) -> Int[Tensor, "program index"]:
    """The program sequences that a split draws from, one for each (x_0, a, b)."""
    start, slope, offset = torch.cartesian_prod(*[torch.arange(modulus)] * 3).unbind(1)
    every = roll_out(start, slope, offset, modulus, length)
    return every[_allowed(modulus, bucket, split)[every[:, 0], every[:, 1], every[:, 2]]]


@functools.cache
def _openings(modulus: int, bucket: int, prior: float) -> tuple[Float[Tensor, "first vocab"], Float[Tensor, "first second vocab"]]:
    """P_1 given x_0 and P_2 given x_0, x_1 under the split "train" (fp64)."""
    allowed = _allowed(modulus, bucket, "train").double()
    pairs = allowed.sum(2)
    third = torch.where(pairs[..., None] > 0, allowed / pairs[..., None].clamp(min=1), 1 / modulus)
    constant = torch.eye(modulus, dtype=torch.float64)
    third = torch.where(constant.bool()[..., None], prior * constant[:, None] + (1 - prior) / modulus, third)
    return pairs / pairs.sum(1, keepdim=True), third


@dataclass(frozen=True)
class HeldoutTask(PrimeTask):
    """Linear recurrences and noise whose three-token prefix lies in chosen buckets.

    Args:
        modulus: p.
        length: T.
        program_prior: as in the recurrence.
        bucket: the one kept from training, 0..4.
        split: "train" draws from everything but the held bucket (prefixes with x_1 = x_0 included), "held" from that bucket
            alone, "full" from the plain recurrence.

    Raises:
        ConfigError: as the recurrence, for another bucket or split, or if a small p leaves the bucket empty.
    """

    bucket: int = 0
    split: str = "train"

    name = "heldout-prefix"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bucket not in range(BUCKETS):
            raise ConfigError(f"bucket {self.bucket} does not exist; give 0 to {BUCKETS - 1}")
        if self.split not in SPLITS:
            raise ConfigError(f"split '{self.split}' is none of {', '.join(SPLITS)}")
        if not bool((buckets(self.modulus) == self.bucket).any()):
            raise ConfigError(f"modulus {self.modulus} leaves bucket {self.bucket} empty; give a larger one")

    def sample(self, count: int, generator: torch.Generator) -> Drawn:
        """Programs uniform over the (a, b, x_0), noise over the sequences, whose prefix the split allows."""
        p = self.modulus
        programs = _programs(p, self.length, self.bucket, self.split)
        triples = _allowed(p, self.bucket, self.split).nonzero()
        chosen = programs[torch.randint(len(programs), (count,), generator=generator)]
        noise = torch.randint(p, (count, self.length), generator=generator)
        noise[:, :3] = triples[torch.randint(len(triples), (count,), generator=generator)]
        return mix(torch.rand(count, generator=generator) < self.program_prior, chosen, noise)

    def posterior(self, tokens: Int[Tensor, "batch index"], dtype: torch.dtype = torch.float64) -> Posterior:
        """The exact answer: under the training distribution for the split "train", under the full one otherwise.

        Both classes lose the same probability with a bucket, so w and, from position 3 on, P are the recurrence's whichever
        prefixes are allowed; that is the yardstick on held prefixes too, and continues "train" to prefixes it never
        draws. Only P_1 and P_2 differ: where x_1 != x_0 both classes make x_2 uniform over those allowed. On "held" they
        stay the full distribution's, as nothing a network saw tells it the bucket.
        """
        exact = linear_posterior(tokens, self.modulus, self.program_prior, self.modulus, dtype)
        if self.split != "train":
            return exact
        first, second = (table.to(tokens.device, dtype) for table in _openings(self.modulus, self.bucket, self.program_prior))
        predictive = exact.predictive.clone()
        predictive[:, 0] = first[tokens[:, 0]]
        third = second[tokens[:, :1], tokens[:, 1:2]][:, : tokens.shape[1] - 2]
        predictive[:, 1:2] = third
        only = third.amax(-1) == 1.0  # for a small p, one x_2 may be all that is left
        exact.forced[:, 1:2] = torch.where(only, third.argmax(-1), exact.forced[:, 1:2])
        return from_predictive(predictive, exact.program_weight, exact.forced)
