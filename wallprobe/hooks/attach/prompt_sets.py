"""What a model is read on: built-in prompts, a text file, or sequences of a run's own task. Token ids, never padded.

No first token is added: the gains study's prompts went in without BOS (the author's code).
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Int
from torch import Tensor

from wallprobe.errors import ConfigError
from wallprobe.hooks.attach.prompt_texts import DATASET, DATASET_TOKENS, PROMPT_SETS, read_texts
from wallprobe.models import Limits, Loaded, limits
from wallprobe.rng import generator
from wallprobe.tasks.registry import from_manifest

__all__ = ["FIRST_TOKEN", "PROMPT_SETS", "PromptSet", "Prompts", "as_prompts", "batches", "encode", "prompt_set", "read_texts"]

FIRST_TOKEN = "none added"
MAX_TOKENS = 1024  # a batch; bounds the logits some models make whether asked or not
WRAP_IT = ", or its tokenizer: wallprobe.wrap(model, tokenizer)"


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


Prompts: TypeAlias = str | PromptSet | Tensor | Sequence[str] | Sequence[Tensor] | Sequence[Sequence[int]] | None


def as_prompts(loaded: Loaded, what: Prompts = None) -> PromptSet:
    """The prompts that a function of ours was given, whichever way.

    Args:
        loaded: the model; what it cannot read is refused.
        what: None as `prompt_set` has it; the name of a set, a file or a data set; texts; token ids as a `[prompt, index]` tensor of
            integers or one row of ids a prompt; or a PromptSet.

    Raises:
        UnknownNameError, ConfigError: as `prompt_set`, or if it is none of these.
    """
    if what is None or isinstance(what, str):
        return prompt_set(loaded, what)
    if isinstance(what, PromptSet):
        _check_ids(loaded, what.tokens, what.texts)
        return what
    rows: Any = list(what)
    if rows and all(isinstance(row, str) for row in rows):
        if loaded.tokenizer is None:
            raise ConfigError(f"model {loaded.name} has no tokenizer for texts; give token ids{WRAP_IT if loaded.origin else ''}")
        return encode_texts(loaded.name, loaded.tokenizer, limits(loaded), "texts", tuple(rows))
    tokens = tuple(_ids(row) for row in rows)
    if not tokens:
        raise ConfigError("no prompt is given; give texts, or token ids as [prompt, index]")
    decode = loaded.tokenizer.decode if loaded.tokenizer is not None else lambda ids: str(ids[0])
    pieces = tuple(tuple(str(decode([number])) for number in row.tolist()) for row in tokens)
    _check_ids(loaded, tokens, tuple(" ".join(str(number) for number in row.tolist()) for row in tokens))
    return PromptSet("tokens", tuple(("" if loaded.tokenizer is not None else " ").join(row) for row in pieces), tokens, pieces)


def _ids(row: Any) -> Int[Tensor, "_"]:
    """One prompt's ids.

    Raises:
        ConfigError: if they are no row of whole numbers.
    """
    try:
        found = torch.as_tensor(row).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0, 0)
    if found.shape == (0,):
        return found.to(torch.int64)
    if found.ndim != 1 or found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise ConfigError(
            f"prompts of {type(row).__name__} are neither texts nor token ids; give a list of texts, or token ids as [prompt, index]"
        )
    return found.to(torch.int64)


def _check_ids(loaded: Loaded, tokens: Sequence[Tensor], texts: Sequence[str]) -> None:
    bounds = limits(loaded)
    for row, text in zip(tokens, texts, strict=True):
        bounds.check(loaded.name, f"prompt '{_short(text)}'", row.tolist())


def _short(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."


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
        remedy = WRAP_IT if loaded.origin else "; save one beside its weights (tokenizer.save_pretrained)"
        raise ConfigError(f"model {loaded.name} came without a tokenizer{remedy}")
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
    return encode_texts(model, tokenizer, bounds, name, texts, cut)


def encode_texts(model: str, tokenizer: Any, bounds: Limits, name: str, texts: tuple[str, ...], cut: int | None = None) -> PromptSet:
    """Texts as a tokenizer's ids.

    Args:
        model, tokenizer, bounds: as `encode`.
        name: what the set is called.
        texts: one a prompt.
        cut: tokens of each that are kept, None for all.
    """
    tokens, pieces = [], []
    for text in texts:
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])[:cut]
        bounds.check(model, f"prompt '{_short(text)}'", ids)
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


def batches(prompts: PromptSet) -> Iterator[list[int]]:
    """Indices of prompts of one length, at most `MAX_TOKENS` tokens together."""
    lengths: dict[int, list[int]] = {}
    for index, row in enumerate(prompts.tokens):
        lengths.setdefault(len(row), []).append(index)
    for length, members in sorted(lengths.items()):
        size = max(1, MAX_TOKENS // length)
        yield from (members[start : start + size] for start in range(0, len(members), size))
