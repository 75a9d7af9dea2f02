"""What a library's error becomes on our one line, and what is refused from the bytes it would take."""

import pytest

from wallprobe.errors import ConfigError, one_line
from wallprobe.store import memory
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.training.wall.lean import Shape


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (
            RuntimeError("Error(s) in loading state_dict for X:\n\tsize mismatch for w: 3 and 4."),
            "loading state_dict for X: size mismatch for w",
        ),
        (
            RuntimeError("Weights only load failed. Set `weights_only=False`. The pickle is bad."),
            "The pickle is bad.",
        ),
        (ValueError("Sizes differ. For details look at the above report!"), "Sizes differ."),
        (ValueError("pip install torchvision"), "ValueError"),
        (KeyError(), "KeyError"),
        (ValueError("a" * 1000), "a" * 237 + "..."),
    ],
)
def test_a_librarys_error_is_whole_on_one_line_without_advice_that_does_not_hold(raised, said):
    line = one_line(raised)
    assert said in line
    assert "\n" not in line
    assert len(line) <= 240
    assert not any(words in line for words in ("weights_only", "above report", "pip install"))


def test_what_does_not_fit_is_refused_before_it_starts(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: 2 * memory.GIB)
    memory.require(1.9 * memory.GIB, "a thing", "less")
    with pytest.raises(ConfigError, match=r"a thing take about 2\.1 GiB of memory, 2\.0 are free; give less"):
        memory.require(2.1 * memory.GIB, "a thing", "less")


def test_sequences_and_networks_are_held_to_the_memory_that_is_free(monkeypatch):
    monkeypatch.setattr(memory, "available_bytes", lambda: memory.GIB)
    RecurrenceTask().check_room(10_000, "--sequences")
    with pytest.raises(ConfigError, match=r"1,000,000 sequences of 16 tokens take about .* give a smaller --sequences"):
        RecurrenceTask().check_room(1_000_000, "--sequences")
    Shape(6, 192, 6, 16, 17).check_room(256)
    with pytest.raises(ConfigError, match=r"100 layers of width 4096 and a batch of 256 sequences of 16 tokens take about"):
        Shape(100, 4096, 8, 16, 17).check_room(256)
