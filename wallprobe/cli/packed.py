"""Tables in the house's looks; one with more columns than the terminal has room for is printed in parts, the first column on each."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions
    from rich.table import Table
    from rich.text import Text


def empty(title: Any = "", caption: str = "", **looks: Any) -> "Table":
    """A table in the house's looks; `looks` are rich's further ones."""
    from rich import box
    from rich.table import Table

    return Table(
        title=title, caption=caption, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), **looks
    )


@dataclass(frozen=True)
class Packed:
    """What rich prints as one table or several.

    Attributes:
        title: above the first.
        heads: of the columns; the first is repeated.
        rows: cells, as many as heads; rich markup counts.
        caption: below the last, as wide as the terminal.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "Iterator[Table | Text]":
        from rich.text import Text

        for place, columns in enumerate(self.parts(options.max_width)):
            table = empty("" if place else self.title)
            for column in (0, *columns):
                table.add_column(self.heads[column], justify="right", no_wrap=True)
            for row in self.rows:
                table.add_row(*(row[column] for column in (0, *columns)))
            yield table
        if self.caption:
            yield Text.from_markup(self.caption, style="dim italic")

    def parts(self, room: int) -> Iterator[list[int]]:
        """Columns that fit beside the first, part by part; one that is wider than the room stands alone."""
        first, taken, columns = 1 + self.width(0), 0, list[int]()
        for column in range(1, len(self.heads)):
            width = self.width(column)
            if columns and first + taken + width > room:
                yield columns
                columns, taken = [], 0
            columns.append(column)
            taken += width
        yield columns

    def width(self, column: int) -> int:
        """Terminal cells a column takes, its padding and one border included; the table's other border is one more."""
        from rich.text import Text

        texts = [self.heads[column], *(row[column] for row in self.rows)]
        return 2 + max(line.cell_len for text in texts for line in Text.from_markup(text).split("\n"))
