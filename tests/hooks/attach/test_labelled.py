"""Labelled text: what is read, in which places, and one line for each thing that is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hooks.tiny_models import save_model, save_run
from wallprobe import models
from wallprobe.errors import ConfigError, UnknownNameError, WallprobeError
from wallprobe.hooks.attach import cache, gathering, labelled
from wallprobe.models import Loaded


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return models.load(str(save_model("gpt2", tmp_path_factory.mktemp("model"))))


def write(path: Path, *rows: Any) -> Path:
    path.write_text("\n".join(json.dumps(row) if not isinstance(row, str) else row for row in rows))
    return path


def test_a_label_belongs_to_the_last_token_or_to_an_index(loaded: Loaded, tmp_path: Path) -> None:
    rows = [
        {"text": "the quick brown fox", "label": "b"},
        {"tokens": [2, 3, 4], "label": "a", "index": 1},
        {"text": "the fox", "label": "b", "index": -2},
    ]
    found = labelled.read(loaded, write(tmp_path / "x.jsonl", *rows))
    assert found.classes == ("a", "b")
    assert found.row.tolist() == [0, 1, 2]
    assert found.index.tolist() == [3, 1, 0]
    assert found.label.tolist() == [1, 0, 1]
    assert not found.by_token
    assert found.types[1] == 3
    assert found.prefixes()[1] == [2, 3]


def test_a_label_a_token_leaves_out_null(loaded: Loaded, tmp_path: Path) -> None:
    rows = [{"text": "the quick fox", "label": [0, None, 10]}, {"text": "lazy dog", "label": [2, 2]}]
    found = labelled.read(loaded, write(tmp_path / "x.jsonl", *rows))
    assert found.by_token
    assert found.classes == ("0", "2", "10")  # by number, not by letters
    assert list(zip(found.row.tolist(), found.index.tolist(), found.label.tolist(), strict=True)) == [
        (0, 0, 0),
        (0, 2, 2),
        (1, 0, 1),
        (1, 1, 1),
    ]


def test_lines_with_the_same_tokens_are_one_text(loaded: Loaded) -> None:
    rows = [{"text": "the fox", "label": "a"}, {"text": "the dog", "label": "b"}, {"text": "the  fox", "label": "b"}]
    assert labelled.given(loaded, rows).groups.tolist() == [0, 1, 0]


def test_blank_lines_and_byte_order_marks_are_nothing(loaded: Loaded, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "the fox", "label": 1}\r\n\r\n{"text": "the dog", "label": 0}\r\n')
    assert labelled.read(loaded, path).classes == ("0", "1")
    assert len(labelled.read(loaded, path, limit=2).texts) == 2


GOOD = {"text": "the fox", "label": "a"}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 of labels file x.jsonl is not JSON"),
        (["the fox"], "line 2 of labels file x.jsonl is no object but list"),
        ({"text": "the", "labels": 1}, "line 2 of labels file x.jsonl has a key 'labels'; there are: text, tokens, label, index"),
        ({"label": 1}, "line 2 of labels file x.jsonl has neither of text and tokens"),
        ({"text": "a", "tokens": [1], "label": 1}, "has both of text and tokens; give one"),
        ({"text": 3, "label": 1}, "has a text that is int; write it in quotes"),
        ({"tokens": [1, True], "label": 1}, "has tokens that are no list of integers"),
        ({"text": "the fox"}, "line 2 of labels file x.jsonl has no label"),
        ({"text": "the fox", "label": 1.5}, "has a label 1.5; give a name or an integer"),
        ({"text": "the fox", "label": None}, "has a label null"),
        ({"text": "the fox", "label": " "}, "has a label that is blank"),
        ({"text": "the fox", "label": "b", "index": "1"}, 'has an index "1"; give an integer'),
        ({"text": "the fox", "label": ["b", "c"], "index": 1}, "has a label a token and an index"),
        ({"text": "the fox", "label": "b", "index": 2}, "has index 2, its text has 2 tokens; give 0 to 1, or -1 for the last"),
        ({"text": "the fox", "label": ["a", "b"]}, "has a label a token, line 1 of labels file x.jsonl one label a text; write one kind"),
        ({"text": "the fox", "label": 1}, "has names and integers as labels"),
        (GOOD, "has 1 label; give two or more"),
        ({"tokens": [99], "label": "b"}, "line 2 of labels file x.jsonl has token id 99"),
        ({"tokens": [], "label": "b"}, "line 2 of labels file x.jsonl has no tokens"),
        ({"text": "the " * 30, "label": "b"}, "has 30 tokens, "),
    ],
)
def test_what_is_wrong_is_one_line_that_names_it(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: Any, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("x.jsonl"), GOOD, line)
    with pytest.raises(ConfigError) as caught:
        labelled.read(loaded, "x.jsonl")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_list_of_another_length_says_both(loaded: Loaded) -> None:
    with pytest.raises(ConfigError, match="record 1 has 3 labels for 2 tokens of"):
        labelled.given(loaded, [{"text": "the fox", "label": ["a", "b", "a"]}])


def test_a_missing_or_blank_file_is_one_line(loaded: Loaded, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="no labels file"):
        labelled.read(loaded, tmp_path / "none.jsonl")
    (tmp_path / "blank.jsonl").write_text(" \n")
    with pytest.raises(ConfigError, match="is blank"):
        labelled.read(loaded, tmp_path / "blank.jsonl")


def test_a_run_reads_tokens_and_no_text(tmp_path: Path) -> None:
    run = models.load(save_run(tmp_path / "runs"), root=tmp_path / "runs")
    found = labelled.given(run, [{"tokens": [0, 1, 2], "label": "a"}, {"tokens": [4, 3], "label": "b"}])
    assert found.pieces == (("0", "1", "2"), ("4", "3"))
    with pytest.raises(WallprobeError, match=r"record 1 has a text, but .* has no tokenizer; give its tokens instead"):
        labelled.given(run, [{"text": "0 1", "label": "a"}])


def test_places_become_prompts(loaded: Loaded) -> None:
    found = labelled.given(loaded, [GOOD, {"text": "lazy dog", "label": "b"}])
    assert found.prompts().pieces[1] == ("lazy", "dog")
    assert labelled.enough(found, 1).tolist() == [True, True]
    assert labelled.enough(found, 2).tolist() == [False, False]
    assert torch.equal(found.prompts().tokens[0], found.tokens[0])


def test_states_that_take_more_than_a_gibibyte_are_told(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    found = labelled.given(loaded, [GOOD, {"text": "lazy dog", "label": "b"}])
    monkeypatch.setattr(gathering, "GIB", 100)
    with pytest.warns(cache.LargeCacheWarning, match=r"caching 1 hooks will take 2\.6 GiB"):
        gathering.states_at(loaded, found.tokens, found.row, found.index, ["blocks.0.hook_resid_post"])


def test_batches_are_of_one_length_and_hold_every_text() -> None:
    rows = [torch.arange(length) for length in (3, 5, 3, 1, 5, 3)]
    made = list(gathering.by_length(rows, tokens=6))
    assert [(some, tuple(tokens.shape)) for some, tokens in made] == [
        ([3], (1, 1)),
        ([0, 2], (2, 3)),
        ([5], (1, 3)),
        ([1], (1, 5)),
        ([4], (1, 5)),
    ]
