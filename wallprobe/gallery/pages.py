"""Result and Exhibit -> HTML and data files, as text. Every string from a Result is hostile here: jinja escapes, JSON is sealed."""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wallprobe.gallery import charts
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Panel, Table
from wallprobe.gallery.render import environment, kind_title, sealed
from wallprobe.store.results import Result, plain

# circuitsvis writes these props with innerHTML; the attention heatmaps draw theirs on a canvas, where an escape would show.
HTML_SINKS = {
    "ColoredTokens": ("tokens",),
    "ColoredTokensMulti": ("tokens",),
    "TokenLogProbs": ("prompt", "topKTokens"),
    "TopkTokens": ("tokens",),
}


@dataclass(frozen=True)
class Part:
    """A stretch of a page: what one Result shows there.

    Attributes:
        sections: figures and tables.
        heading: above them; empty for none.
        told: a sentence under the heading.
        command: what made them, when the page does not say it.
        href: where the whole Result is.
    """

    sections: Sequence[Figure | Table]
    heading: str = ""
    told: str = ""
    command: str = ""
    href: str = ""


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return html.escape(value)
    return [_escaped(item) for item in value] if isinstance(value, (list, tuple)) else value


def panel_json(panel: Panel) -> dict[str, Any]:
    """What gallery.js draws, with the tokens escaped wherever circuitsvis would read them as HTML."""
    sinks = HTML_SINKS.get(panel.element, ())
    return {
        "element": panel.element,
        "label": panel.label,
        "spec": {key: _escaped(value) if key in sinks else value for key, value in panel.spec.items()},
    }


def figure_json(figure: Figure) -> dict[str, Any]:
    """A figure with all its frames."""
    return {
        "first": figure.first,
        "height": figure.height,
        "alt": figure.alt,
        "frames": [{"label": frame.label, "panels": [panel_json(panel) for panel in frame.panels]} for frame in figure.frames],
    }


def _numeric(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def table_view(table: Table) -> dict[str, Any]:
    """A table for the template: cells formatted, columns of numbers known, so that they align right."""
    rows = [[plain(cell) for cell in row] for row in table.rows]
    columns = [[row[place] for row in rows] for place in range(len(table.columns))]
    numeric = [any(map(_numeric, column)) and all(cell is None or _numeric(cell) for cell in column) for column in columns]
    cells = [[{"text": charts.number(cell), "numeric": number} for cell, number in zip(row, numeric, strict=True)] for row in rows]
    return {"title": table.title, "caption": table.caption, "head": list(zip(table.columns, numeric, strict=True)), "rows": cells}


def _views(parts: Iterable[Part]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The parts for the template, their figures numbered through the page, and the figures for the script."""
    views: list[dict[str, Any]] = []
    figures: list[dict[str, Any]] = []
    for part in parts:
        sections: list[dict[str, Any]] = []
        for section in part.sections:
            if isinstance(section, Table):
                sections.append({"type": "table"} | table_view(section))
            else:
                sections.append({"type": "figure", "id": len(figures), "figure": section})
                figures.append(figure_json(section))
        views.append({"part": part, "sections": sections})
    return views, figures


def summary_rows(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The summary, the finding left out: it is the page's heading."""
    return [(key, charts.number(plain(value))) for key, value in summary.items() if key != "finding"]


def scripts(figures: Sequence[Mapping[str, Any]]) -> set[str]:
    """The bundles that draw these figures."""
    shown = {panel["element"] for figure in figures for frame in figure["frames"] for panel in frame["panels"]}
    return {"plotly" if element == PLOTLY else "circuitsvis" for element in shown}


def manifest_text(manifest: Mapping[str, Any]) -> str:
    """A manifest for reading."""
    return json.dumps(plain(manifest), indent=2, ensure_ascii=False, sort_keys=True)


def result_page(result: Result, exhibit: Exhibit, stem: str, *, runs: Sequence[tuple[str, str]] = (), comparable: bool = False) -> str:
    """The page of one Result; its data files stand beside it under the same stem.

    Args:
        result: the Result.
        exhibit: what is made of it.
        stem: name of its files.
        runs: name and address of the pages of the runs it is about.
        comparable: whether the compare page knows its figures.
    """
    views, figures = _views([Part(exhibit.sections)])
    heading, question = kind_title(result.kind)
    return (
        environment()
        .get_template("result.html")
        .render(
            root="../",
            kind=heading,
            question=question,
            title=exhibit.title,
            note=exhibit.note,
            views=views,
            figures=sealed(plain(figures)),
            scripts=scripts(figures),
            subject=str(result.manifest.get("subject", "")),
            created=str(result.manifest.get("created", "")),
            command=str(result.manifest.get("command", "")),
            summary=summary_rows(result.summary),
            manifest=manifest_text(result.manifest),
            stem=stem,
            runs=runs,
            comparable=comparable,
        )
    )


def run_page(
    *, title: str, name: str, told: str, parts: Sequence[Part], links: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any]
) -> str:
    """The page of one run: parts in reading order, then everything that was measured of it.

    Args:
        title: the finding.
        name: of the run.
        told: what was trained, in a sentence.
        parts: curve, evaluation, tokens.
        links: groups of `heading`, `question` and `cards` (`title`, `href`, `created`).
        manifest: the run's, its log left out.
    """
    views, figures = _views(parts)
    return (
        environment()
        .get_template("run.html")
        .render(
            root="../",
            title=title,
            name=name,
            told=told,
            views=views,
            links=links,
            figures=sealed(plain(figures)),
            scripts=scripts(figures),
            created=str(manifest.get("created", "")),
            command=str(manifest.get("command", "")),
            manifest=manifest_text(manifest),
        )
    )
