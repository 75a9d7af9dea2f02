"""The tasks `length` and `modulus`: the recurrence in a network with room for longer sequences, or for a larger modulus.

`length`: trained on T = 8 by a network with position embeddings for 50 tokens, then measured at T = 16, 32, 50. The later embeddings
are never trained. `modulus`: trained at p = 17 by a network that knows 19 tokens, then measured or trained on at p = 19.
Source: Misra's code; the shared context and vocabulary are ours.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from wallprobe.errors import ConfigError
from wallprobe.tasks.recurrence import RecurrenceTask, Sequences, linear_posterior
from wallprobe.tasks.task import Posterior, Task, check_field


@dataclass(frozen=True)
class SizedTask(Task):
    """What both share: a recurrence within larger limits."""

    modulus: int = 17
    length: int = 16
    program_prior: float = 0.5

    def sample(self, count: int, generator: torch.Generator) -> Sequences:
        """The recurrence's own sequences at this modulus and length."""
        return RecurrenceTask(self.modulus, self.length, self.program_prior).sample(count, generator)

    def posterior(self, tokens: Int[Tensor, "batch index"], dtype: torch.dtype = torch.float64) -> Posterior:
        """The recurrence's exact answer; tokens from p on get nothing."""
        return linear_posterior(tokens, self.modulus, self.program_prior, self.vocabulary, dtype)


@dataclass(frozen=True)
class LengthTask(SizedTask):
    """Short sequences in a network with room for long ones.

    Args:
        modulus: p, also the vocabulary.
        length: T of the sequences drawn.
        program_prior: as in the recurrence.
        room: tokens the network has position embeddings for.

    Raises:
        ConfigError: as the recurrence, or if the length exceeds the room.
    """

    length: int = 8
    room: int = 50

    name = "length"

    def __post_init__(self) -> None:
        check_field(self.modulus, self.length, self.program_prior)
        if self.length > self.room:
            raise ConfigError(f"length {self.length} exceeds room {self.room}; train with more room: --task length:room={self.length}")

    @property
    def vocabulary(self) -> int:
        """Number of tokens: p."""
        return self.modulus

    @property
    def context(self) -> int:
        """The room."""
        return self.room


@dataclass(frozen=True)
class ModulusTask(SizedTask):
    """A recurrence modulo p in a vocabulary that another modulus shares.

    Args:
        modulus: p of the sequences drawn.
        length: T.
        program_prior: as in the recurrence.
        symbols: tokens the network knows, at least p; those from p on never occur.

    Raises:
        ConfigError: as the recurrence, or if the modulus exceeds the symbols.
    """

    symbols: int = 19

    name = "modulus"

    def __post_init__(self) -> None:
        check_field(self.modulus, self.length, self.program_prior)
        if self.modulus > self.symbols:
            raise ConfigError(
                f"modulus {self.modulus} exceeds symbols {self.symbols}; train with more: --task modulus:symbols={self.modulus}"
            )

    @property
    def vocabulary(self) -> int:
        """Number of tokens: the symbols."""
        return self.symbols
