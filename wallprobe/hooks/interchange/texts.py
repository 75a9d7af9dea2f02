"""Pairs of prompts from a JSON Lines file: a clean one, a corrupt one, the answer to the clean one and a wrong one.

{"clean": "The capital of France is", "corrupt": "The capital of Italy is", "answer": " Paris", "wrong": " Rome"}

An answer may have several tokens, or be a list of answers that are as right. Prompts may differ in length where `"slots"` name what is
compared: `{"country": "France"}` (its last token), `[start, end]` in characters or a token's index, or
an object of such for `clean` and `corrupt`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from wallprobe.errors import ConfigError
from wallprobe.hooks.interchange.pairs import TEXTS
from wallprobe.hooks.interchange.pairs import Pairs as Pairs
from wallprobe.store.texts import json_lines, read_text

FIELDS = ("clean", "corrupt", "answer", "wrong")
PROMPTS, ANSWERS = FIELDS[:2], FIELDS[2:]
LAST = "last"  # the slot that every file has
Row = dict[str, Any]


def read_pairs(path: Path, tokenizer: Any) -> Pairs:
    """Read and tokenize a file of pairs; nothing is padded and no first token added.

    Args:
        path: a .jsonl file.
        tokenizer: Hugging Face tokenizer.

    Returns:
        Pairs with the answers `answer` and `wrong`, the slots of the file and `last`.

    Raises:
        UnknownNameError: if it is not there.
        ConfigError: if it is not UTF-8 text, or all answers are one; naming the first line that is no pair, whose prompts differ in
            length without slots, or whose slots are not those of the others.
    """
    if tokenizer is None:
        raise ConfigError("the model came without a tokenizer to read prompts with; give it one: wrap(model, tokenizer=...)")
    content = read_text(path, "file of pairs", f"a .jsonl file of pairs, one object a line with {', '.join(FIELDS)}")
    rows: list[Row] = []
    for where, given in json_lines(content, path.name, f"an object with {', '.join(FIELDS)}"):
        row = _row(where, given, tokenizer)
        rows.append(row)
        if set(row["slots"]) != set(rows[0]["slots"]):
            named = " and ".join(", ".join(sorted(one["slots"])) or "none" for one in (row, rows[0]))
            raise ConfigError(f"{where} has other slots than the first line ({named}); give every pair the same")
        if len(row["clean"]) != len(rows[0]["clean"]) and not row["slots"]:
            raise ConfigError(
                f"{where} has prompts of {len(row['clean'])} tokens, the first {len(rows[0]['clean'])}: an index "
                'would not mean the same place; give prompts of one length a file, or say what is meant: "slots": {"subject": "France"}'
            )
    if len(rows) < 2:
        raise ConfigError(f"{path.name} holds {len(rows)} pairs; give at least 2, for the random donor is another pair's")
    if len({tuple(row["answer"][0]) for row in rows}) < 2:
        raise ConfigError(
            f"every pair of {path.name} has the answer {tokenizer.decode(rows[0]['answer'][0])!r}: there is no donor with another one; "
            "give pairs with at least 2 answers"
        )
    return _pairs(rows, content, tokenizer)


def _read(path: str | Path, model: Any) -> Pairs:
    """Pairs of prompts from a JSON Lines file, as `read_pairs`.

    Args:
        path: the file.
        model: a model with a tokenizer, its name, or the tokenizer.
    """
    from wallprobe.models import load_plain

    named = load_plain(str(model), weights=False) if isinstance(model, str | Path) else model
    return read_pairs(Path(path), getattr(named, "tokenizer", named))


Pairs.read = staticmethod(_read)  # type: ignore[attr-defined]  # the field of that name is an argument alone


def _pairs(rows: Sequence[Row], content: str, tokenizer: Any) -> Pairs:
    def sides(name: str) -> Any:
        values = [torch.tensor(row[name]) for row in rows]
        return torch.stack(values) if len({len(value) for value in values}) == 1 else values

    several = [name for name in ANSWERS if any(len(row[name][0]) > 1 for row in rows)]
    more = [name for name in ANSWERS if any(len(row[name]) > 1 for row in rows)]
    words: dict[str, Any] = {name: [tuple(tokenizer.decode([token]) for token in row[name]) for row in rows] for name in PROMPTS}
    words |= {name: [tokenizer.decode(row[name][0]) for row in rows] for name in ANSWERS}
    slots = {name: tuple(torch.tensor([row["slots"][name][side] for row in rows]) for side in (0, 1)) for name in rows[0]["slots"]}
    if slots:
        slots[LAST] = tuple(torch.tensor([len(row[side]) - 1 for row in rows]) for side in PROMPTS)
    return Pairs(
        sides("clean"),
        sides("corrupt"),
        {name: torch.tensor([row[name][0][0] for row in rows]) for name in ANSWERS},
        slots=slots,
        rest={name: [tuple(row[name][0][1:]) for row in rows] for name in several},
        also={name: [tuple(other[0] for other in row[name][1:]) for row in rows] for name in more},
        kind=TEXTS,
        words=words,
        data_hash=hashlib.sha256(content.encode()).hexdigest(),
    )


def _row(where: str, given: Any, tokenizer: Any) -> Row:
    if not isinstance(given, dict):
        raise ConfigError(f"{where} is no JSON object; write one with {', '.join(FIELDS)}")
    missing = [field for field in FIELDS if field not in given]
    if missing:
        raise ConfigError(f"{where} lacks {', '.join(missing)}; a pair has {', '.join(FIELDS)}")
    texts = {name: given[name] if isinstance(given[name], list) and name in ANSWERS else [given[name]] for name in FIELDS}
    if not all(isinstance(text, str) and text for several in texts.values() for text in several) or not all(texts.values()):
        raise ConfigError(f"{where}: {', '.join(FIELDS)} must be texts that are not empty; answer and wrong may be lists of such")
    ids = {name: [list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in several] for name, several in texts.items()}
    row: Row = {name: ids[name][0] for name in PROMPTS} | {name: ids[name] for name in ANSWERS}
    slots = given.get("slots", {})
    if not isinstance(slots, dict):
        raise ConfigError(f"{where}: slots must be an object, such as {{'subject': 'France'}}; it is {type(slots).__name__}")
    if not row["clean"] or (len(row["clean"]) != len(row["corrupt"]) and not slots):
        raise ConfigError(
            f"{where}: clean has {len(row['clean'])} tokens, corrupt {len(row['corrupt'])}; give prompts as long as each other, or slots"
        )
    if row["clean"] == row["corrupt"]:
        raise ConfigError(f"{where}: clean and corrupt are the same tokens")
    for name in ANSWERS:
        if not all(row[name]):
            raise ConfigError(f"{where}: {name} has no tokens under this tokenizer; give a word it knows")
        if len(row[name]) > 1 and any(len(one) > 1 for one in row[name]):
            raise ConfigError(
                f"{where}: {name} is a list, of which every one must be a single token; give one answer to have several tokens"
            )
    if any(one in row["wrong"] for one in row["answer"]):
        raise ConfigError(f"{where}: answer and wrong are the same tokens, {texts['answer'][0]!r}; they cannot be told apart")
    row["slots"] = {str(name): _slot(where, str(name), at, texts, tokenizer) for name, at in slots.items()}
    return row


def _slot(where: str, name: str, at: Any, texts: Mapping[str, list[str]], tokenizer: Any) -> tuple[int, int]:
    """A slot's token in the clean and in the corrupt prompt."""
    found = []
    for side in PROMPTS:
        one, text = at.get(side) if isinstance(at, dict) else at, texts[side][0]
        if isinstance(one, int) and not isinstance(one, bool):
            found.append(one)
            continue
        if isinstance(one, str) and one and one in text:
            start = text.index(one)
            one = [start, start + len(one)]
        if not (isinstance(one, list) and len(one) == 2 and all(isinstance(end, int) for end in one) and 0 <= one[0] < one[1] <= len(text)):
            raise ConfigError(
                f"{where}: slot {name} is not in the {side} prompt ({one!r}); give a part of it, [start, end] or a token's index"
            )
        if not getattr(tokenizer, "is_fast", False):
            raise ConfigError(f"{where}: this tokenizer does not tell where its tokens are; give slot {name} as a token's index")
        spans = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        inside = [index for index, (start, end) in enumerate(spans) if start < one[1] and end > one[0]]
        if not inside:
            raise ConfigError(f"{where}: slot {name} covers no token of the {side} prompt; give another part of it")
        found.append(inside[-1])
    return found[0], found[1]
