"""One reader of texts: what ends a line, what a file may hold, and one line for whatever cannot be read, whoever reads it."""

import json

import pytest
from transformers import PreTrainedTokenizerFast

from tests.hooks import tiny_models
from wallprobe.errors import WallprobeError
from wallprobe.hooks.attach.prompt_texts import read_texts
from wallprobe.hooks.attach.subjects import read_text as subject_text
from wallprobe.hooks.gains.efficiency import read_text as counted_text
from wallprobe.hooks.interchange.texts import FIELDS, read_pairs
from wallprobe.store.texts import json_lines, lines, read_text, table
from wallprobe.tasks.text import TextSpec, load_text

ENDS = ("\u2028", "\u2029", "\u0085", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e")  # what str.splitlines takes for the end of a line


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    tiny_models.save_tokenizer(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture
def readers(tokenizer):
    return {
        "prompts.txt": lambda path: read_texts(str(path)),
        "prompts.jsonl": lambda path: read_texts(str(path)),
        "prompts.csv": lambda path: read_texts(str(path)),
        "pairs.jsonl": lambda path: read_pairs(path, tokenizer),
        "windows.txt": lambda path: subject_text(str(path)),
        "counted.txt": lambda path: counted_text(path),
        "training.txt": lambda path: load_text(TextSpec(str(path))),
    }


@pytest.mark.parametrize("end", ENDS, ids=lambda end: f"U+{ord(end):04X}")
def test_only_a_line_feed_ends_a_line(end, tmp_path):
    whole = f"one{end}half"
    assert lines(f"{whole}\ntwo\n") == [whole, "two"]
    (tmp_path / "a.txt").write_text(f"{whole}\ntwo\n", encoding="utf-8", newline="")
    assert read_texts(str(tmp_path / "a.txt"))[1] == (whole, "two")
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(whole)}\n{json.dumps('two', ensure_ascii=False)}\n", encoding="utf-8", newline="")
    assert read_texts(str(tmp_path / "a.jsonl"))[1] == (whole, "two")
    (tmp_path / "a.csv").write_text(f'text\n"{whole}"\ntwo\n', encoding="utf-8", newline="")
    assert read_texts(str(tmp_path / "a.csv"))[1] == (whole, "two")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "mark"])
@pytest.mark.parametrize("end", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_a_mark_and_carriage_returns_change_nothing(mark, end, tmp_path):
    for name, rows in (("a.txt", ["one", "two"]), ("a.jsonl", ['"one"', '"two"']), ("a.csv", ["text", "one", "two"])):
        (tmp_path / name).write_bytes(mark + end.join([*rows, ""]).encode())
        assert read_texts(str(tmp_path / name))[1] == ("one", "two")


def test_a_csv_field_may_be_long_and_hold_lines():
    long = "word " * 100_000
    names, rows = table(f'text,more\n"{long}","a\nb"\n', "a.csv")
    assert names == ["text", "more"]
    assert rows == [{"text": long, "more": "a\nb"}]


HOSTILE = {
    "no UTF-8": b"\xff\xfe\x00a",
    "half a character": b'"\\ud800"\n',
    "digits without end": b"9" * 5000 + b"\n",
    "an integer beyond 64 bits": b"123456789012345678901234567890\n",
    "a hundred thousand brackets": b"[" * 100_000,
    "blank": b" \n \n",
    "empty": b"",
    "a cut object": b'{"text": "a',
    "a list": b"[1, 2]\n",
    "an open quote": b'text\n"never closed\nmore\n',
}


@pytest.mark.parametrize("name", ["prompts.jsonl", "pairs.jsonl"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_whatever_is_no_json_line_gets_one_line(name, kind, readers, tmp_path):
    (tmp_path / name).write_bytes(HOSTILE[kind])
    with pytest.raises(WallprobeError) as caught:
        readers[name](tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("name", ["prompts.txt", "prompts.csv", "windows.txt", "counted.txt", "training.txt"])
@pytest.mark.parametrize("kind", ["no UTF-8", "blank", "empty"])
def test_whatever_is_no_text_gets_one_line(name, kind, readers, tmp_path):
    (tmp_path / name).write_bytes(HOSTILE[kind])
    with pytest.raises(WallprobeError) as caught:
        readers[name](tmp_path / name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_reader_names_a_file_that_is_not_there(readers, tmp_path):
    for name, read in readers.items():
        with pytest.raises(WallprobeError, match=f"no .*{name}"):
            read(tmp_path / name)
        (tmp_path / name).mkdir()
        with pytest.raises(WallprobeError, match=f"no .*{name}"):
            read(tmp_path / name)


def test_a_quote_that_is_never_closed_is_named(tmp_path):
    (tmp_path / "a.csv").write_bytes(HOSTILE["an open quote"])
    with pytest.raises(WallprobeError, match=r"line \d of prompt file .*a\.csv is not CSV"):
        read_texts(str(tmp_path / "a.csv"))


def test_json_lines_name_their_line(tmp_path):
    (tmp_path / "a").write_text('"one"\n\n{"two": 2}\n')
    text = read_text(tmp_path / "a", "file", "another")
    assert list(json_lines(text, "a", "JSON")) == [("line 1 of a", "one"), ("line 3 of a", {"two": 2})]


def test_pairs_lack_fields_by_name(tokenizer, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"clean": "a"}\n')
    with pytest.raises(WallprobeError, match=f"line 1 of pairs.jsonl lacks {', '.join(FIELDS[1:])}"):
        read_pairs(tmp_path / "pairs.jsonl", tokenizer)
