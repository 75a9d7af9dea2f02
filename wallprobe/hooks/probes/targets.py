"""What a probe is asked for at each index, and how well the exact answer, given the same prefix, could tell it.

Index i has seen tokens 0..i. What no prefix tells (a after two tokens, b of a constant sequence unless it is 0) is asked for all
the same: there the ceiling is chance, and a probe above it would be reading something else.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from wallprobe.errors import ConfigError, UnknownNameError
from wallprobe.tasks.recurrence import Sequences
from wallprobe.tasks.task import Drawn, Posterior, Task

TARGETS = ("token", "a", "b", "class", "entropy")
RULES = ("a", "b")
WORDS = {
    "token": "the Bayes-best next token",
    "a": "the rule's slope a, programs only",
    "b": "the rule's offset b, programs only",
    "class": "program or noise",
    "entropy": "the exact entropy H(P) of the next token",
}


@dataclass(frozen=True)
class Labels:
    """A classification target.

    Attributes:
        name: one of `TARGETS`.
        classes: number of classes.
        chance: accuracy of the best guess that reads nothing.
        label: class of each sequence at each index.
        ceiling: probability with which the exact posterior's best guess is right, given the prefix.
        identified: where that prefix leaves one answer only (probability above 0.99).
        sequences: which sequences have the target.
    """

    name: str
    classes: int
    chance: float
    label: Int[Tensor, "batch index"]
    ceiling: Float[Tensor, "batch index"]
    identified: Bool[Tensor, "batch index"]
    sequences: Bool[Tensor, " batch"]


def check_targets(names: tuple[str, ...] | None, drawn: Drawn, task: Task) -> tuple[str, ...]:
    """The targets in their own order, each once; by default all that the task has.

    Raises:
        UnknownNameError: for one that is not in `TARGETS`, or none.
        ConfigError: for a or b of a task whose programs have no slope and offset.
    """
    rules = isinstance(drawn, Sequences)
    if names is None:
        return tuple(name for name in TARGETS if rules or name not in RULES)
    unknown = [name for name in names if name not in TARGETS]
    if unknown or not names:
        raise UnknownNameError(f"no probe target '{unknown[0] if unknown else ''}'; there are: {', '.join(TARGETS)}")
    if not rules and set(names) & set(RULES):
        raise ConfigError(f"programs of task {task.name} have no slope a and offset b; give --targets token,class,entropy")
    return tuple(name for name in TARGETS if name in names)


def classification(task: Task, drawn: Drawn, exact: Posterior, name: str) -> Labels:
    """The labels of a target other than the entropy.

    `token` is the Bayes-best next token. Where none is best (no rule shown yet, or every rule ruled out) the label is the token
    that came, which no probe can tell better than the exact answer, 1 in p: noise counts against accuracy, as it does in the
    published figures, which are of the mixture.
    """
    everyone = torch.ones_like(drawn.is_program)
    if name == "token":
        first, second = exact.predictive.topk(2, dim=-1).values.unbind(-1)
        decided = first > second + 1e-9
        label = torch.where(decided, exact.best, drawn.tokens[:, 1:])
        return Labels(name, task.vocabulary, 1 / task.modulus, label, torch.where(decided, 1.0, first), decided, everyone)
    if name == "class":
        label = drawn.is_program.long()[:, None].expand_as(exact.best)
        sure = torch.maximum(exact.program_weight, 1 - exact.program_weight)
        return Labels(name, 2, max(task.program_prior, 1 - task.program_prior), label, sure, sure > 0.99, everyone)
    assert isinstance(drawn, Sequences)
    parameter, known = (drawn.slope, drawn.offset)[name == "b"], rule_known(drawn.tokens)[name == "b"]
    label, chance = parameter[:, None].expand_as(exact.best), 1 / task.modulus
    return Labels(name, task.modulus, chance, label, torch.where(known, 1.0, chance).double(), known, drawn.is_program)


def rule_known(tokens: Int[Tensor, "batch index"]) -> tuple[Bool[Tensor, "batch seen"], Bool[Tensor, "batch seen"]]:
    """Whether the first 1, 2, ... T-1 tokens of a program leave one slope, and one offset; otherwise all p are equally likely.

    Two differing steps give both. A sequence that stands still, x_1 = x_0, never shows its slope: every a has its b = x_0 (1 - a).
    And x_0 = 0 gives b = x_1 away.
    """
    seen = torch.arange(1, tokens.shape[1], device=tokens.device)
    slope = (tokens[:, 1] != tokens[:, 0])[:, None] & (seen >= 3)
    return slope, slope | ((tokens[:, 0] == 0)[:, None] & (seen >= 2))
