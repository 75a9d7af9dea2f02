"""How many tokens a model reads at once and how many it knows: what its own configuration says, whichever word it uses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wallprobe.errors import ConfigError
from wallprobe.models.loaded import Loaded, Plain

CONTEXTS = ("max_position_embeddings", "n_positions", "max_seq_len", "max_sequence_length", "n_ctx")  # of transformers' decoders
UNBOUNDED = 1 << 20  # tokens; where a configuration names no bound (ALiBi, state spaces)


@dataclass(frozen=True)
class Limits:
    """What a model can be given.

    Attributes:
        context: tokens at once.
        vocabulary: token ids it has an embedding for.
    """

    context: int
    vocabulary: int

    def check(self, model: str, what: str, ids: Sequence[int]) -> None:
        """Refuse tokens that the model cannot read.

        Args:
            model: its name, for messages.
            what: whose tokens ("prompt 'The capital...'"), for messages.
            ids: token ids.

        Raises:
            ConfigError: if there are none, more than fit, or some that it does not know.
        """
        if not ids:
            raise ConfigError(f"{what} has no tokens under the tokenizer of {model}; change or remove it")
        if len(ids) > self.context:
            raise ConfigError(f"{what} has {len(ids)} tokens, {model} reads at most {self.context}; shorten it")
        if not 0 <= min(ids) <= max(ids) < self.vocabulary:
            wrong = max(ids) if max(ids) >= self.vocabulary else min(ids)
            raise ConfigError(f"{what} has token id {wrong}, {model} knows {self.vocabulary}: its tokenizer is another model's")


def limits(model: Loaded | Plain) -> Limits:
    """A model's limits: a transformers model's by its configuration, also behind the bridge, which assumes 2,048 without one."""
    plain: Any = model.model if isinstance(model, Plain) else getattr(model.model, "original_model", None)
    if plain is None:
        config: Any = model.model.cfg
        return Limits(int(getattr(config, "n_ctx", None) or UNBOUNDED), int(getattr(config, "d_vocab", None) or UNBOUNDED))
    rows = getattr(plain.get_input_embeddings(), "num_embeddings", None)  # may be more than the tokenizer has, or fewer
    return of_config(plain.config, rows)


def of_config(config: Any, rows: int | None = None) -> Limits:
    """The limits that a transformers configuration states.

    Args:
        config: of a decoder.
        rows: of its embedding, where that is at hand.
    """
    told = [getattr(config, name, None) for name in CONTEXTS]
    contexts = [one for one in told if isinstance(one, int) and one > 0]
    return Limits(min(contexts, default=UNBOUNDED), int(rows or config.vocab_size))
