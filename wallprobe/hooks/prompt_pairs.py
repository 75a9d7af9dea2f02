"""Pairs of prompts from a JSON Lines file: a clean one, a corrupt one as long, the answer to the clean one and a wrong one.

{"clean": "The capital of France is", "corrupt": "The capital of Italy is", "answer": " Paris", "wrong": " Rome"}
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from wallprobe.errors import ConfigError, UnknownNameError

FIELDS = ("clean", "corrupt", "answer", "wrong")


@dataclass(frozen=True)
class PromptPairs:
    """Prompts as token ids, all of one length; nothing is padded and no first token added.

    Attributes:
        clean: run in src.
        corrupt: run in dst.
        answer: first token of the clean prompt's answer.
        wrong: first token of the wrong one.
        pieces: tokens of each clean prompt as text.
        data_hash: SHA-256 of the file.
    """

    clean: Int[Tensor, "pair index"]
    corrupt: Int[Tensor, "pair index"]
    answer: Int[Tensor, " pair"]
    wrong: Int[Tensor, " pair"]
    pieces: tuple[tuple[str, ...], ...]
    data_hash: str


def read_pairs(path: Path, tokenizer: Any) -> PromptPairs:
    """Read and tokenize a file of pairs.

    Raises:
        UnknownNameError: if it is not there.
        ConfigError: naming the first line that is no pair, whose prompts differ in length from the others, or whose answers begin alike.
    """
    if not path.is_file():
        raise UnknownNameError(f"no file {path}; give a .jsonl file of pairs, one object a line with {', '.join(FIELDS)}")
    content = path.read_text(encoding="utf-8")
    rows: list[tuple[list[int], list[int], int, int]] = []
    for number, line in enumerate(content.splitlines(), 1):
        if line.strip():
            rows.append(_row(f"line {number} of {path.name}", line, tokenizer))
            if len(rows[-1][0]) != len(rows[0][0]):
                raise ConfigError(
                    f"line {number} of {path.name} has prompts of {len(rows[-1][0])} tokens, the first {len(rows[0][0])}: an index "
                    "would not mean the same place; give prompts of one length a file"
                )
    if len(rows) < 2:
        raise ConfigError(f"{path.name} holds {len(rows)} pairs; give at least 2, for the random donor is another pair's")
    clean, corrupt, answer, wrong = (torch.tensor(column) for column in zip(*rows, strict=True))
    pieces = tuple(tuple(tokenizer.decode([token]) for token in row[0]) for row in rows)
    return PromptPairs(clean, corrupt, answer, wrong, pieces, hashlib.sha256(content.encode()).hexdigest())


def _row(where: str, line: str, tokenizer: Any) -> tuple[list[int], list[int], int, int]:
    try:
        given = json.loads(line)
        texts = [given[field] for field in FIELDS]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{where} is no JSON object with {', '.join(FIELDS)} ({error})") from error
    if not all(isinstance(text, str) and text for text in texts):
        raise ConfigError(f"{where}: {', '.join(FIELDS)} must be texts that are not empty")
    clean, corrupt, answer, wrong = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts)
    if len(clean) != len(corrupt):
        raise ConfigError(f"{where}: clean has {len(clean)} tokens, corrupt {len(corrupt)}; they must be as long as each other")
    if clean == corrupt:
        raise ConfigError(f"{where}: clean and corrupt are the same tokens")
    if answer[0] == wrong[0]:
        raise ConfigError(
            f"{where}: answer and wrong begin with the same token, {tokenizer.decode([answer[0]])!r}; they cannot be told apart"
        )
    return clean, corrupt, answer[0], wrong[0]
