"""Pairs of prompts from a JSON Lines file: a clean one, a corrupt one as long, the answer to the clean one and a wrong one, a token each.

{"clean": "The capital of France is", "corrupt": "The capital of Italy is", "answer": " Paris", "wrong": " Rome"}
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from wallprobe.errors import ConfigError
from wallprobe.models import Limits
from wallprobe.store.texts import json_lines, read_text

FIELDS = ("clean", "corrupt", "answer", "wrong")


@dataclass(frozen=True)
class PromptPairs:
    """Prompts as token ids, all of one length; nothing is padded and no first token added.

    Attributes:
        clean: run in src.
        corrupt: run in dst.
        answer: the token that answers the clean prompt.
        wrong: the token it is held against.
        pieces: tokens of each clean prompt as text.
        corrupt_pieces: tokens of each corrupt prompt as text.
        answers: the answer and the wrong one as text.
        data_hash: SHA-256 of the file.
    """

    clean: Int[Tensor, "pair index"]
    corrupt: Int[Tensor, "pair index"]
    answer: Int[Tensor, " pair"]
    wrong: Int[Tensor, " pair"]
    pieces: tuple[tuple[str, ...], ...]
    corrupt_pieces: tuple[tuple[str, ...], ...]
    answers: tuple[tuple[str, str], ...]
    data_hash: str

    def check(self, model: str, bounds: Limits) -> None:
        """Refuse pairs that a model cannot read.

        Raises:
            ConfigError: naming the first, if its prompts are too long or hold tokens that the model does not know.
        """
        for number, row in enumerate(torch.cat([self.clean, self.corrupt], dim=1).tolist(), 1):
            half = len(row) // 2
            bounds.check(model, f"the clean prompt of pair {number}", row[:half])
            bounds.check(model, f"the corrupt prompt of pair {number}", row[half:])
        answers = Limits(2, bounds.vocabulary)
        for number, pair in enumerate(zip(self.answer.tolist(), self.wrong.tolist(), strict=True), 1):
            answers.check(model, f"an answer of pair {number}", pair)


def read_pairs(path: Path, tokenizer: Any) -> PromptPairs:
    """Read and tokenize a file of pairs.

    Raises:
        UnknownNameError: if it is not there.
        ConfigError: if it is not UTF-8 text, or all answers are one; naming the first line that is no pair, whose prompts differ in
            length from the others, or whose answers are not one token each.
    """
    accepted = f"a .jsonl file of pairs, one object a line with {', '.join(FIELDS)}"
    content = read_text(path, "file of pairs", accepted)
    rows: list[tuple[list[int], list[int], int, int]] = []
    for where, given in json_lines(content, path.name, f"an object with {', '.join(FIELDS)}"):
        rows.append(_row(where, given, tokenizer))
        if len(rows[-1][0]) != len(rows[0][0]):
            raise ConfigError(
                f"{where} has prompts of {len(rows[-1][0])} tokens, the first {len(rows[0][0])}: an index "
                "would not mean the same place; give prompts of one length a file"
            )
    if len(rows) < 2:
        raise ConfigError(f"{path.name} holds {len(rows)} pairs; give at least 2, for the random donor is another pair's")
    clean, corrupt, answer, wrong = (torch.tensor(column) for column in zip(*rows, strict=True))
    if len(set(answer.tolist())) < 2:
        raise ConfigError(
            f"every pair of {path.name} has the answer {tokenizer.decode([rows[0][2]])!r}: there is no donor with another one; "
            "give pairs with at least 2 answers"
        )
    pieces, corrupt_pieces = (
        tuple(tuple(tokenizer.decode([token]) for token in row) for row in side.tolist()) for side in (clean, corrupt)
    )
    answers = tuple((tokenizer.decode([row[2]]), tokenizer.decode([row[3]])) for row in rows)
    return PromptPairs(clean, corrupt, answer, wrong, pieces, corrupt_pieces, answers, hashlib.sha256(content.encode()).hexdigest())


def _row(where: str, given: Any, tokenizer: Any) -> tuple[list[int], list[int], int, int]:
    if not isinstance(given, dict):
        raise ConfigError(f"{where} is no JSON object; write one with {', '.join(FIELDS)}")
    missing = [field for field in FIELDS if field not in given]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}; a pair has {', '.join(FIELDS)}")
    texts = {field: given[field] for field in FIELDS}
    if not all(isinstance(text, str) and text for text in texts.values()):
        raise ConfigError(f"{where}: {', '.join(FIELDS)} must be texts that are not empty")
    tokens = {field: list(tokenizer(text, add_special_tokens=False)["input_ids"]) for field, text in texts.items()}
    clean, corrupt, answer, wrong = (tokens[field] for field in FIELDS)
    if not clean or len(clean) != len(corrupt):
        raise ConfigError(f"{where}: clean has {len(clean)} tokens, corrupt {len(corrupt)}; they must be as long as each other")
    if clean == corrupt:
        raise ConfigError(f"{where}: clean and corrupt are the same tokens")
    for field in ("answer", "wrong"):
        if len(tokens[field]) != 1:
            cut = " + ".join(repr(tokenizer.decode([token])) for token in tokens[field])
            raise ConfigError(
                f"{where}: {field} {texts[field]!r} is {len(tokens[field])} tokens ({cut}); give a word of one token, in most models "
                "with a blank before it"
            )
    if answer == wrong:
        raise ConfigError(f"{where}: answer and wrong are the same token, {texts['answer']!r}; they cannot be told apart")
    return clean, corrupt, answer[0], wrong[0]
