"""What a model is read on: built-in prompts, a text file, or sequences of a run's own task. Token ids, never padded.

No first token is added: the seed's prompts went in without BOS (specification of the gains, B1).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor

from wallprobe.errors import ConfigError, UnknownNameError
from wallprobe.models import Loaded
from wallprobe.rng import generator
from wallprobe.tasks.registry import from_manifest

FIRST_TOKEN = "none added"

SEED4 = (
    "The capital of France is Paris, which is known for the Eiffel Tower.",
    "In mathematics, the Pythagorean theorem states that in a right triangle",
    "The quick brown fox jumps over the lazy dog near the river bank.",
    "Artificial intelligence has made significant progress in recent years",
)
PROMPT_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType({"seed4": SEED4, "single": ("The capital of France is",)})


@dataclass(frozen=True)
class PromptSet:
    """Prompts as token ids.

    Attributes:
        name: "seed4", "single", a file's name or "task".
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


def read_texts(source: str) -> tuple[str, tuple[str, ...]]:
    """Name and prompts of a built-in set or of a text file, one prompt a line; blank lines are skipped.

    Raises:
        UnknownNameError: if it is neither.
        ConfigError: if the file holds no prompt or is not UTF-8 text.
    """
    if source in PROMPT_SETS:
        return source, PROMPT_SETS[source]
    path = Path(source)
    if not path.is_file():
        raise UnknownNameError(
            f"no prompt set or file '{source}'; give a text file, one prompt a line, or one of: {', '.join(PROMPT_SETS)}"
        )
    try:
        texts = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"prompt file {source} cannot be read as UTF-8 text ({error}); save it as UTF-8, one prompt a line") from error
    if not texts:
        raise ConfigError(f"prompt file {source} holds no prompt; write one a line")
    return path.name, texts


def prompt_set(loaded: Loaded, source: str | None = None, *, sequences: int = 64, seed: int = 42) -> PromptSet:
    """The prompts to read a model on.

    Args:
        loaded: the model; its tokenizer makes the ids. A run has none: sequences of its own task are drawn.
        source: a built-in set or a text file; None for `seed4`, and for a run's task.
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
    name, texts = read_texts(source or "seed4")
    tokens, pieces = [], []
    for text in texts:
        ids = list(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
        _check(loaded, text, ids)
        tokens.append(torch.tensor(ids, dtype=torch.int64))
        pieces.append(tuple(str(loaded.tokenizer.decode([number])) for number in ids))
    return PromptSet(name, texts, tuple(tokens), tuple(pieces))


def _drawn(loaded: Loaded, sequences: int, seed: int) -> PromptSet:
    assert loaded.run is not None
    drawn = from_manifest(loaded.run.manifest["task"]).sample(sequences, generator(seed, "gains", "sequences")).tokens
    rows = [[str(number) for number in row.tolist()] for row in drawn]
    return PromptSet("task", tuple(" ".join(row) for row in rows), tuple(drawn), tuple(tuple(row) for row in rows), seed)


def _check(loaded: Loaded, text: str, ids: list[int]) -> None:
    config = cast(Any, loaded.model).cfg
    shown = text if len(text) <= 40 else f"{text[:37]}..."
    if not ids:
        raise ConfigError(f"prompt '{shown}' has no tokens under the tokenizer of {loaded.name}; change or remove it")
    if len(ids) > config.n_ctx:
        raise ConfigError(f"prompt '{shown}' has {len(ids)} tokens, {loaded.name} reads at most {config.n_ctx}; shorten it")
    if max(ids) >= config.d_vocab:
        raise ConfigError(
            f"prompt '{shown}' has token id {max(ids)}, {loaded.name} knows {config.d_vocab}: its tokenizer is another model's"
        )
