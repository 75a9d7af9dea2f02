"""Pairs of programs for an interchange between runs: a donor, a base, the three answers told apart, and whose donor another pair gets."""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from wallprobe.errors import ConfigError
from wallprobe.rng import generator
from wallprobe.tasks.recurrence import RecurrenceTask


@dataclass(frozen=True)
class Pairs:
    """Donor and base programs with the three answers at the read index, and a mismatched-donor order."""

    donor: Int[Tensor, "pair index"]
    base: Int[Tensor, "pair index"]
    rule: Int[Tensor, " pair"]
    imported: Int[Tensor, " pair"]
    own: Int[Tensor, " pair"]
    shuffled: Int[Tensor, " pair"]
    mismatched: Int[Tensor, " pair"]


def draw_pairs(task: RecurrenceTask, horizon: int, count: int, seed: int) -> Pairs:
    """Pairs of programs of `horizon` tokens whose three answers differ and whose donors determine their rule.

    Raises:
        ConfigError: if fewer than 3 pairs remain.
    """
    rng = generator(seed, "interchange pairs")
    task.check_room(2 * count, "--pairs")
    donor, base = task.sample_programs(count, rng), task.sample_programs(count, rng)
    p = task.modulus
    rule = (donor.slope * base.tokens[:, horizon - 1] + donor.offset) % p
    imported, own = donor.tokens[:, horizon], base.tokens[:, horizon]
    shows_rule = donor.tokens[:, 0] != donor.tokens[:, 1]
    keep = shows_rule & (rule != imported) & (rule != own) & (imported != own)
    if int(keep.sum()) < 3:
        raise ConfigError(f"{int(keep.sum())} of {count} pairs have three distinct answers; ask for more with --pairs")
    rule, imported, own = rule[keep], imported[keep], own[keep]
    tokens = donor.tokens[keep, :horizon], base.tokens[keep, :horizon]
    # A rotation of a random order: nobody keeps their own donor.
    order = torch.randperm(len(own), generator=rng)
    shuffled = torch.empty_like(order)
    shuffled[order] = order.roll(1)
    return Pairs(*tokens, rule, imported, own, shuffled, mismatched(imported, shuffled))


def mismatched(imported: Tensor, order: Tensor) -> Tensor:
    """Like `order`, but each walks on along it to the first donor whose answer is not its own donor's."""
    chosen = order.clone()
    for _ in range(len(order)):
        clash = imported[chosen] == imported
        if not bool(clash.any()):
            return chosen
        chosen[clash] = order[chosen[clash]]
    raise ConfigError("every donor has the same answer; ask for more pairs with --pairs")
