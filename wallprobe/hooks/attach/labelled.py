"""Labelled text: the one reader of JSON Lines `{"text"|"tokens": ..., "label": ..., "index"?: int}`, checked against a model.

A label is a name or a number and belongs to one index of its text (by default the last token), or a list: one a token, null where a
token has none. Every fault is one line that names the line of the file.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from wallprobe.errors import ConfigError
from wallprobe.hooks.attach.prompt_sets import PromptSet
from wallprobe.models import Limits, Loaded, limits
from wallprobe.store.texts import json_lines, read_text

ACCEPTED = 'JSON Lines of {"text": ..., "label": ...}, with "tokens" (token ids) instead of "text" where you like, and "index" (of a token)'
KEYS = ("text", "tokens", "label", "index")
MOST = 1000  # classes


@dataclass(frozen=True)
class Labelled:
    """Texts as token ids, and the places in them that have a label.

    Attributes:
        name: of the file.
        texts: one a line of the file; the ids joined by blanks where tokens were given.
        tokens: token ids of each text, lengths may differ.
        pieces: the tokens of each text as text.
        classes: names of the labels.
        row: text of each place.
        index: token of each place.
        label: class of each place.
        by_token: whether labels are given a token, not a text.
    """

    name: str
    texts: tuple[str, ...]
    tokens: tuple[Int[Tensor, "_"], ...]
    pieces: tuple[tuple[str, ...], ...]
    classes: tuple[str, ...]
    row: Int[Tensor, " place"]
    index: Int[Tensor, " place"]
    label: Int[Tensor, " place"]
    by_token: bool

    @property
    def groups(self) -> Int[Tensor, " place"]:
        """Which text each place is of, lines with the same tokens counted as one text."""
        known: dict[tuple[int, ...], int] = {}
        lines = [known.setdefault(tuple(ids.tolist()), len(known)) for ids in self.tokens]
        return torch.tensor(lines, dtype=torch.int64)[self.row]

    @property
    def types(self) -> Int[Tensor, " place"]:
        """The token id at each place."""
        return torch.tensor([int(self.tokens[row][at]) for row, at in zip(self.row.tolist(), self.index.tolist(), strict=True)])

    @property
    def data_hash(self) -> str:
        """SHA-256 of token ids, places and labels."""
        content = [[ids.tolist() for ids in self.tokens], self.classes, *(part.tolist() for part in (self.row, self.index, self.label))]
        return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()

    def prompts(self) -> PromptSet:
        """The texts alone, as what reads prompts takes them."""
        return PromptSet(self.name, self.texts, self.tokens, self.pieces)

    def prefixes(self) -> list[list[int]]:
        """The tokens that the model has seen at each place."""
        return [self.tokens[row][: at + 1].tolist() for row, at in zip(self.row.tolist(), self.index.tolist(), strict=True)]


@dataclass(frozen=True)
class _Line:
    text: str
    ids: list[int]
    places: list[int]
    labels: list[str | int]
    listed: bool


def read(loaded: Loaded, source: str | Path, *, limit: int | None = None) -> Labelled:
    """The labelled texts of a file, in a model's tokens.

    Args:
        loaded: the model; its tokenizer makes the ids. Runs have none: their lines give `tokens`.
        source: a JSON Lines file.
        limit: how many lines to take at most.

    Raises:
        UnknownNameError: if there is no such file.
        ConfigError: naming the first line that is no labelled text, that the model cannot read, or that has labels of another kind.
    """
    path = Path(source)
    values = check(path)
    return parse(loaded, values[:limit], path.name)


def check(source: str | Path) -> list[tuple[str, Any]]:
    """The values of the file with their lines as named in messages: what can be said without a model, before it is loaded.

    Raises:
        UnknownNameError, ConfigError: as `read`.
    """
    text = read_text(source, "labels file", ACCEPTED)
    values = list(json_lines(text, f"labels file {source}", "one object a line"))
    for where, value in values:
        _check_shape(where, value)
    return values


def given(loaded: Loaded, records: Iterable[Mapping[str, Any]], name: str = "given") -> Labelled:
    """The same from objects in memory, as the lines of a file would be.

    Raises:
        ConfigError: as `read`, naming the record.
    """
    values = [(f"record {number}", dict(record)) for number, record in enumerate(records, 1)]
    for where, value in values:
        _check_shape(where, value)
    return parse(loaded, values, name)


def _check_shape(where: str, value: Any) -> None:
    """Refuse a line that is no labelled text whatever the model."""
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is no object but {type(value).__name__}; write {ACCEPTED}")
    unknown = [key for key in value if key not in KEYS]
    if unknown:
        raise ConfigError(f"{where} has a key '{unknown[0]}'; there are: {', '.join(KEYS)}")
    if ("text" in value) == ("tokens" in value):
        raise ConfigError(f"{where} has {'both' if 'text' in value else 'neither'} of text and tokens; give one")
    if "text" in value and not isinstance(value["text"], str):
        raise ConfigError(f"{where} has a text that is {type(value['text']).__name__}; write it in quotes")
    if "tokens" in value and not (isinstance(value["tokens"], list) and all(type(one) is int for one in value["tokens"])):
        raise ConfigError(f"{where} has tokens that are no list of integers; write such as [3, 17, 4]")
    if "label" not in value:
        raise ConfigError(f"{where} has no label; write {ACCEPTED}")
    label, index = value["label"], value.get("index")
    listed = isinstance(label, list)
    wrong = [one for one in (label if listed else [label]) if type(one) not in (str, int) and not (listed and one is None)]
    if wrong:
        raise ConfigError(f"{where} has a label {json.dumps(wrong[0])[:40]}; give a name or an integer, or a list of one a token")
    if any(isinstance(one, str) and not one.strip() for one in (label if listed else [label])):
        raise ConfigError(f"{where} has a label that is blank; give it a name")
    if index is not None and type(index) is not int:
        raise ConfigError(f"{where} has an index {json.dumps(index)[:40]}; give an integer, negative from the end")
    if listed and index is not None:
        raise ConfigError(f"{where} has a label a token and an index; leave the index out")


def parse(loaded: Loaded, values: list[tuple[str, Any]], name: str) -> Labelled:
    """Labelled texts from checked lines.

    Args:
        loaded: the model.
        values: as `check` gives them.
        name: of the whole, for tables.

    Raises:
        ConfigError: as `read`.
    """
    bounds = limits(loaded)
    lines = [_line(loaded, bounds, where, value) for where, value in values]
    for (where, _), line in zip(values, lines, strict=True):
        if line.listed != lines[0].listed:
            kinds = ("one label a text", "a label a token")
            raise ConfigError(f"{where} has {kinds[line.listed]}, {values[0][0]} {kinds[lines[0].listed]}; write one kind")
    found = [(number, at, label) for number, line in enumerate(lines) for at, label in zip(line.places, line.labels, strict=True)]
    if not found:
        raise ConfigError(f"labels file {name} has no label that is not null; give some")
    if len({type(label) for _, _, label in found}) > 1:
        raise ConfigError(f"labels file {name} has names and integers as labels; write one kind")
    classes: list[Any] = sorted({label for _, _, label in found})
    if not 2 <= len(classes) <= MOST:
        few = len(classes) < 2
        raise ConfigError(
            f"labels file {name} has {len(classes)} label{'s' * (not few)}; give {'two or more' if few else f'at most {MOST}'}"
        )
    number_of = {label: number for number, label in enumerate(classes)}
    row, index, label = (
        torch.tensor(part, dtype=torch.int64) for part in zip(*((r, i, number_of[one]) for r, i, one in found), strict=True)
    )
    return Labelled(
        name,
        tuple(line.text for line in lines),
        tuple(torch.tensor(line.ids, dtype=torch.int64) for line in lines),
        tuple(tuple(_piece(loaded, one) for one in line.ids) for line in lines),
        tuple(str(one) for one in classes),
        row,
        index,
        label,
        lines[0].listed,
    )


def _piece(loaded: Loaded, number: int) -> str:
    return str(number) if loaded.tokenizer is None else str(loaded.tokenizer.decode([number]))


def _line(loaded: Loaded, bounds: Limits, where: str, value: Mapping[str, Any]) -> _Line:
    if "tokens" in value:
        ids = [int(one) for one in value["tokens"]]
        text = " ".join(map(str, ids))
    elif loaded.tokenizer is None:
        raise ConfigError(f"{where} has a text, but {loaded.name} has no tokenizer; give its tokens instead")
    else:
        text = value["text"]
        ids = list(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])
    bounds.check(loaded.name, where, ids)
    label = value["label"]
    if isinstance(label, list):
        if len(label) != len(ids):
            raise ConfigError(f"{where} has {len(label)} labels for {len(ids)} tokens of {loaded.name}; give one a token, null for none")
        pairs = [(place, one) for place, one in enumerate(label) if one is not None]
        return _Line(text, ids, [place for place, _ in pairs], [one for _, one in pairs], True)
    index = -1 if value.get("index") is None else int(value["index"])
    if not -len(ids) <= index < len(ids):
        raise ConfigError(f"{where} has index {index}, its text has {len(ids)} tokens; give 0 to {len(ids) - 1}, or -1 for the last")
    return _Line(text, ids, [index % len(ids)], [label], False)


def enough(labelled: Labelled, least: int) -> Bool[Tensor, " class"]:
    """Which classes occur in at least so many texts."""
    groups = labelled.groups
    return torch.tensor([len(torch.unique(groups[labelled.label == number])) >= least for number in range(len(labelled.classes))])
