"""Exhibit: what the gallery makes of one kind of Result. Plain frozen values; nothing here draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PLOTLY = "plotly"
CIRCUITSVIS = frozenset({"AttentionHeads", "AttentionPattern", "ColoredTokens", "ColoredTokensMulti", "TokenLogProbs", "TopkTokens"})


@dataclass(frozen=True)
class Panel:
    """One drawing.

    Attributes:
        element: "plotly", or the name of a circuitsvis element (`CIRCUITSVIS`).
        spec: for plotly `{"data": [...], "layout": {...}}`, where a colour may be a name of the theme such as "@series-1";
            for circuitsvis the element's props. Tokens are given raw: pages escape them.
        label: heading above it; empty for none.
    """

    element: str
    spec: Mapping[str, Any]
    label: str = ""

    def __post_init__(self) -> None:
        """Refuse an element that no page can draw.

        Raises:
            ValueError: naming those there are.
        """
        if self.element != PLOTLY and self.element not in CIRCUITSVIS:
            raise ValueError(f"'{self.element}' is no panel element; there are: {', '.join([PLOTLY, *sorted(CIRCUITSVIS)])}")


@dataclass(frozen=True)
class Frame:
    """One step of a figure: the panels shown together, and their name on the stepper."""

    panels: tuple[Panel, ...]
    label: str = ""


@dataclass(frozen=True)
class Figure:
    """One figure; with several frames the reader steps through them.

    Attributes:
        title: what the figure shows, as a statement.
        frames: at least one.
        alt: the figure in words, for who cannot see it.
        caption: how to read it: units, n, what the intervals are.
        stepper: what a step is ("layer", "example"); used when there are several frames.
        first: place of the frame shown at first.
        height: height of a plotly panel in pixels.
    """

    title: str
    frames: tuple[Frame, ...]
    alt: str
    caption: str = ""
    stepper: str = "step"
    first: int = 0
    height: int = 360


@dataclass(frozen=True)
class Table:
    """A table: `rows` of one cell per column; numbers are formatted by the page."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


@dataclass(frozen=True)
class Glance:
    """A thumbnail for the index.

    Attributes:
        shape: "line", "bars" or "cells".
        values: rows of numbers; a line or bars have one row. None is a gap.
        mark: for a line, between which two points the wall stands; for bars, the baseline.
    """

    shape: str
    values: tuple[tuple[float | None, ...], ...]
    mark: float | None = None


@dataclass(frozen=True)
class Exhibit:
    """A page.

    Attributes:
        title: the finding, in one sentence.
        sections: figures and tables, in reading order.
        glance: thumbnail for the index, or None.
        note: what the reader must know before believing it; empty for none.
    """

    title: str
    sections: tuple[Figure | Table, ...]
    glance: Glance | None = None
    note: str = ""


def chart(title: str, spec: Mapping[str, Any], *, alt: str, caption: str = "", height: int = 360) -> Figure:
    """A figure of one plotly drawing."""
    return Figure(title, (Frame((Panel(PLOTLY, spec),)),), alt, caption, height=height)
