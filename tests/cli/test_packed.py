"""Tables with more columns than room: every cell is printed whole, at any width, under the first column again."""

import io
import re

import pytest
from rich.console import Console

from wallprobe.cli.packed import Packed

HEADS = ("layer", "first\nhead", "second", "a third one", "last")
ROWS = [[str(row), f"{row}.25 [dim]±0.1[/dim]", f"{row}00.5", f"-{row}.125", f"{row}e-9"] for row in range(3)]


def printed(width: int, caption: str = "") -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(Packed("A title", HEADS, ROWS, caption))
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [21, *range(22, 60, 3), 80])
def test_no_cell_is_cut_and_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = printed(width)
    text = " ".join(lines)
    assert "…" not in text
    assert max(map(len, lines)) <= width
    for row in ROWS:
        for cell in row[1:]:
            assert text.count(re.sub(r"\[/?dim\]", "", cell)) == 1, cell


def test_the_first_column_stands_on_every_part_and_a_wide_terminal_gets_one_table() -> None:
    heads = [sum("layer" in line for line in printed(width)) for width in (80, 28)]
    assert heads[0] == 1
    assert heads[1] == len(list(Packed("", HEADS, ROWS).parts(28))) > 1


def test_the_caption_is_below_all_parts() -> None:
    assert printed(28, "said below")[-1].strip() == "said below"
    assert sum("said below" in line for line in printed(28, "said below")) == 1
