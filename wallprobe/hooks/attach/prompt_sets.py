"""What a model is read on: built-in prompts, a text file, or sequences of a run's own task. Token ids, never padded.

No first token is added: the gains study's prompts went in without BOS (the author's code).
"""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from wallprobe.errors import ConfigError
from wallprobe.hooks.attach.prompt_texts import DATASET, DATASET_TOKENS, PROMPT_SETS, read_texts
from wallprobe.models import Limits, Loaded, limits
from wallprobe.rng import generator
from wallprobe.tasks.registry import from_manifest

__all__ = ["FIRST_TOKEN", "PROMPT_SETS", "PromptSet", "encode", "prompt_set", "read_texts"]

FIRST_TOKEN = "none added"


@dataclass(frozen=True)
class PromptSet:
    """Prompts as token ids.

    Attributes:
        name: a built-in set's, a file's, a data set's, or "task".
        texts: one text a prompt; the ids joined by blanks for runs.
        tokens: one `[index]` int64 tensor a prompt, lengths may differ.
        pieces: the tokens of each prompt as text.
        seed: of the draw, None where nothing was drawn.
    """

    name: str
    texts: tuple[str, ...]
    tokens: tuple[Int[Tensor, "_"], ...]
    pieces: tuple[tuple[str, ...], ...]
    seed: int | None = None

    @property
    def data_hash(self) -> str:
        """SHA-256 of texts and token ids."""
        content = json.dumps([list(self.texts), [row.tolist() for row in self.tokens]], ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()


def prompt_set(
    loaded: Loaded,
    source: str | None = None,
    *,
    column: str | None = None,
    limit: int | None = None,
    sequences: int = 64,
    seed: int = 42,
) -> PromptSet:
    """The prompts to read a model on.

    Args:
        loaded: the model; its tokenizer makes the ids. A run has none: sequences of its own task are drawn.
        source: as `prompt_texts.read_texts`; None for `seed4`, and for a run's task.
        column, limit: as `prompt_texts.read_texts`.
        sequences: how many to draw, for runs.
        seed: of that draw.

    Raises:
        UnknownNameError, ConfigError: as `read_texts`; if a prompt is longer than the model's context; if a run is given a source.
    """
    if loaded.run is not None:
        if source is not None:
            raise ConfigError(f"run {loaded.name} has no tokenizer and reads sequences of its own task; leave --prompts out for runs")
        return _drawn(loaded, sequences, seed)
    if loaded.tokenizer is None:
        raise ConfigError(f"model {loaded.name} came without a tokenizer; save one beside its weights (tokenizer.save_pretrained)")
    return encode(loaded.name, loaded.tokenizer, limits(loaded), source, column, limit)


def encode(
    model: str, tokenizer: Any, bounds: Limits, source: str | None, column: str | None = None, limit: int | None = None
) -> PromptSet:
    """Prompts as a tokenizer's ids. Those of a data set are cut at 128 tokens; any other that is too long is refused.

    Args:
        model: name, for messages.
        tokenizer: Hugging Face tokenizer.
        bounds: how many tokens the model reads and knows.
        source, column, limit: as `prompt_set`.
    """
    name, texts = read_texts(source or "seed4", column, limit)
    cut = min(DATASET_TOKENS, bounds.context) if (source or "").startswith(DATASET) else None
    tokens, pieces = [], []
    for text in texts:
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])[:cut]
        bounds.check(model, f"prompt '{text if len(text) <= 40 else text[:37] + '...'}'", ids)
        tokens.append(torch.tensor(ids, dtype=torch.int64))
        pieces.append(tuple(str(tokenizer.decode([number])) for number in ids))
    return PromptSet(name, texts, tuple(tokens), tuple(pieces))


def _drawn(loaded: Loaded, sequences: int, seed: int) -> PromptSet:
    assert loaded.run is not None
    task = from_manifest(loaded.run.manifest["task"])
    task.check_room(sequences, "--sequences")
    drawn = task.sample(sequences, generator(seed, "gains", "sequences")).tokens
    rows = [[str(number) for number in row.tolist()] for row in drawn]
    return PromptSet("task", tuple(" ".join(row) for row in rows), tuple(drawn), tuple(tuple(row) for row in rows), seed)
