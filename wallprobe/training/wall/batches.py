"""The data of a training, drawn for many steps in one go; every draw depends on (seed, what, block) alone."""

from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from wallprobe.rng import derive_seed, generator
from wallprobe.tasks.task import Posterior, Task

DRAW = 64  # steps whose data are drawn in one go


@dataclass(frozen=True)
class Block:
    """Data of consecutive steps, one after the other.

    Attributes:
        tokens: the sequences.
        label: 1.0 for programs, 0.0 for noise.
        posterior: the exact Bayesian answer in fp32, where a signal needs it.
        next_tokens: share of each token among the continuations drawn at each supervised prefix, where the recipe draws several.
    """

    tokens: Int[Tensor, "sequence index"]
    label: Float[Tensor, " sequence"]
    posterior: Posterior | None
    next_tokens: Float[Tensor, "sequence position vocab"] | None

    def rows(self, step: int, batch: int) -> "Block":
        """The part that belongs to one step (counted from the start of the training)."""
        rows = slice(step % DRAW * batch, (step % DRAW + 1) * batch)
        posterior = self.posterior
        if posterior is not None:
            posterior = Posterior(**{entry.name: getattr(posterior, entry.name)[rows] for entry in fields(posterior)})
        return Block(self.tokens[rows], self.label[rows], posterior, None if self.next_tokens is None else self.next_tokens[rows])


def draw_block(
    task: Task, seed: int, number: int, batch: int, supervised: slice, continuations: int, whole: bool, device: str = "cpu"
) -> Block:
    """The data of steps number * DRAW ... (number + 1) * DRAW - 1.

    Args:
        task: what the sequences are.
        seed: the run's seed.
        number: of the block, from 0.
        batch: sequences a step.
        supervised: columns of the predictive (position - 1) that cross-entropy reaches.
        continuations: next tokens drawn at each supervised prefix; 1 leaves the sequence's own.
        whole: keep the posterior.
        device: torch device of the tensors.
    """
    drawn = task.sample(DRAW * batch, generator(seed, "data", number))
    tokens = drawn.tokens.to(device)
    posterior = task.posterior(tokens, torch.float32) if whole or continuations > 1 else None
    next_tokens = None
    if posterior is not None and continuations > 1:
        draws = np.random.default_rng(derive_seed(seed, "continuations", number))
        next_tokens = draw_continuations(posterior.predictive[:, supervised].cpu(), continuations, draws).to(device)
    return Block(tokens, drawn.is_program.to(device, torch.float32), posterior if whole else None, next_tokens)


def draw_continuations(
    predictive: Float[Tensor, "sequence position vocab"], number: int, draws: np.random.Generator
) -> Float[Tensor, "sequence position vocab"]:
    """Shares of the tokens among `number` next tokens drawn at each prefix.

    `predictive` is the exact probability, under the task, of each next token given the prefix: drawing from it is drawing that many
    sequences that begin with this prefix and looking at their next token. The mean loss over them has the expectation of the loss
    on one, and less variance.
    """
    chances = predictive.double().numpy()
    counts = draws.multinomial(number, chances / chances.sum(-1, keepdims=True))
    return torch.from_numpy(counts).to(torch.float32) / number
