"""Prompts from built-in sets, files and data sets, and one line for whatever is wrong with them."""

import json
from pathlib import Path

import pytest

from wallprobe.errors import ConfigError, UnknownNameError
from wallprobe.hooks.attach.prompt_texts import MIXED, read_texts


def test_built_in_sets() -> None:
    assert len(read_texts("seed4")[1]) == 4
    assert read_texts("single") == ("single", ("The capital of France is",))
    name, facts = read_texts("ffn8")
    assert (name, len(set(facts))) == ("ffn8", 8)
    assert len(set(MIXED)) == len(MIXED) >= 25
    assert read_texts("mixed", limit=3) == ("mixed", MIXED[:3])


def test_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\ufeffone\n\n two \n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text('"one"\n{"id": 1, "text": "two"}\n\n{"prompt": "three"}\n')
    (tmp_path / "a.csv").write_text('id,prompt\n1,"one, two"\n2,\n3,"three\nlines"\n')
    assert read_texts(str(tmp_path / "a.txt")) == ("a.txt", ("one", "two"))
    assert read_texts(str(tmp_path / "a.jsonl"))[1] == ("one", "two", "three")
    assert read_texts(str(tmp_path / "a.csv"))[1] == ("one, two", "three\nlines")
    assert read_texts(str(tmp_path / "a.csv"), column="id", limit=2)[1] == ("1", "2")


def test_a_data_set_from_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "poems"
    folder.mkdir()
    rows = [{"author": "a", "text": text} for text in ("first", " ", "second", "third")]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_texts(f"datasets:{folder}") == ("poems@train", ("first", "second", "third"))
    assert read_texts(f"datasets:{folder}@train", limit=1)[1] == ("first",)
    with pytest.raises(ConfigError, match="has no column 'title'; there are: author, text"):
        read_texts(f"datasets:{folder}", column="title")
    with pytest.raises(UnknownNameError, match="data set 'nobody/nothing@test' could not be read"):
        read_texts("datasets:nobody/nothing@test")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", '{"a": 1', "line 1 of prompt file .*a.jsonl is not JSON"),
        ("a.jsonl", "17\n", "line 1 of prompt file .* holds no text but int"),
        ("a.jsonl", '{"a": "x", "b": "y"}', "has columns a, b; say which one holds the text: --column NAME"),
        ("a.csv", "a,b\n1,2\n", "has columns a, b; say which one"),
        ("a.csv", "", "is blank"),
        ("a.csv", "text\n\n", "holds no prompt"),
        ("a.txt", "\n", "is blank; give a .txt file .one prompt a line"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_texts(str(tmp_path / name))
    with pytest.raises(ConfigError, match="--limit 0 leaves no prompt"):
        read_texts("seed4", limit=0)
