"""Text: the embedded Genesis, files, BPE, windows, and what cannot be read."""

import pytest
import torch

from wallprobe.errors import CheckpointError, ConfigError, UnknownNameError
from wallprobe.tasks.text import EMBEDDED, TextSpec, from_manifest, load_text


def spelled(text, ids):
    return "".join(text.vocabulary[place] for place in ids.tolist())


def test_genesis_is_whole_and_as_its_provenance_says():
    text = load_text(TextSpec())
    assert len(text.train) + len(text.val) == 196_818
    assert len(text.vocabulary) == 37
    assert spelled(text, text.train[:30]) == "in the beginning god created t"
    assert text.data_hash in (EMBEDDED.parent / "PROVENANCE.md").read_text()
    assert EMBEDDED.stat().st_size < 60_000


def test_windows_are_inside_their_part_and_the_next_token_is_the_label():
    text = load_text(TextSpec())
    x, y = text.batch(50, 32, 7, "x", 0)
    assert torch.equal(x[:, 1:], y[:, :-1])
    again, _ = text.batch(50, 32, 7, "x", 0)
    other, _ = text.batch(50, 32, 7, "x", 1)
    assert torch.equal(x, again)
    assert not torch.equal(x, other)
    whole = spelled(text, text.train)
    assert all(spelled(text, row) in whole for row in x[:5])


def test_held_out_windows_do_not_overlap_from_part_to_part():
    text = load_text(TextSpec())
    there = (len(text.val) - 1) // 32
    starts = set()
    for part in range(3):
        x, _ = text.held_out(there // 3, 32, part)
        for row in x:
            at = spelled(text, text.val).find(spelled(text, row))
            assert at >= 0
            starts.add(at)
    assert len(starts) == 3 * (there // 3)
    with pytest.raises(ConfigError, match="validation part has"):
        text.held_out(there, 32, 1)


def test_rare_characters_read_as_spaces_and_case_is_dropped(tmp_path):
    path = tmp_path / "wide.txt"
    path.write_text("".join(chr(0x4E00 + place) for place in range(150)) + "AbcA" * 300, encoding="utf-8")
    text = load_text(TextSpec(str(path)))
    assert len(text.vocabulary) <= 129
    assert spelled(text, text.train[-4:]) in ("abca", "bcaa", "caab", "aabc")
    assert " " in spelled(text, text.train[:150])


def test_bpe_pieces_spell_the_text(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("So it goes on and on,\nand round and round it goes.\n" * 60, encoding="utf-8")
    text = load_text(TextSpec(str(path), "bpe", 40))
    assert len(text.vocabulary) == 40
    assert spelled(text, text.train[:40]).replace("▁", " ").strip().startswith("So it goes on and on,\nand round")
    assert len(text.train) < 2700  # fewer than characters
    assert from_manifest(text.config()).vocabulary == text.vocabulary
    with pytest.raises(ConfigError, match="no BPE of 100000 pieces"):
        load_text(TextSpec(str(path), "bpe", 100_000))


def test_a_text_that_has_changed_is_refused(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("abc " * 200)
    entry = load_text(TextSpec(str(path))).config()
    path.write_text("abd " * 200)
    with pytest.raises(CheckpointError, match="not what the run was trained on"):
        from_manifest(entry)
    path.unlink()
    with pytest.raises(UnknownNameError, match="no text file"):
        from_manifest(entry)


def test_what_is_no_text_is_refused(tmp_path):
    (tmp_path / "short.txt").write_text("a")
    (tmp_path / "raw.bin").write_bytes(b"\xff\xfe\x80" * 100)
    with pytest.raises(ConfigError, match="longer one"):
        load_text(TextSpec(str(tmp_path / "short.txt")))
    with pytest.raises(ConfigError, match="UTF-8"):
        load_text(TextSpec(str(tmp_path / "raw.bin")))
    with pytest.raises(UnknownNameError, match="no tokenizer"):
        TextSpec(tokenizer="words")


def test_tinystories_without_a_network_names_the_fallback(monkeypatch):
    import datasets

    def refuse(*_, **__):
        raise ConnectionError("no route\nand more")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(ConfigError, match=r"no route and more\); leave --dataset out .* --text FILE"):
        load_text(TextSpec("tinystories"))


def test_tinystories_is_read_from_its_two_splits(monkeypatch):
    import datasets

    def stories(name, split, streaming):
        assert (name, streaming) == ("roneneldan/TinyStories", True)
        return ({"text": f"A story to {split} and of validation {number} "} for number in range(50))

    monkeypatch.setattr(datasets, "load_dataset", stories)
    text = load_text(TextSpec("tinystories"))
    assert spelled(text, text.train[:41]) == "a story to train and of validation 0\n\na s"
    assert spelled(text, text.val[:21]) == "a story to validation"
