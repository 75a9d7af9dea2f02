"""Result and Exhibit -> HTML and data files, as text. Every string from a Result is hostile here: jinja escapes, JSON is sealed."""

import functools
import html
import json
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from wallprobe.gallery import charts, glance
from wallprobe.gallery.exhibit import PLOTLY, Exhibit, Figure, Panel, Table
from wallprobe.results import Result, plain

KINDS = {
    "claims": ("Ledger", "Which of the published claims hold here, and which do not?"),
    "interchange": ("Interchange", "Does the receiving model carry the donor's rule, or only its answer?"),
    "eval": ("Evaluation", "Where does the wall stand, and is the mass on the right token?"),
    "calibration": ("Calibration", "As sure as it should be, and sure of the right token?"),
    "temperature": ("Temperature", "Can any temperature recover the exact answer?"),
    "geometry": ("Geometry", "Where do the states behind the wall lie?"),
    "gains": ("Gains", "How loud is each layer?"),
    "scaling": ("Scaling law", "Does the last MLP grow louder with size, and how sure is that?"),
    "flow": ("Flow", "What would the model say after each layer?"),
    "maps": ("Restriction maps", "Does attention shrink what it carries?"),
    "rescale": ("Scaled sub-layers", "Does the loud layer matter?"),
    "audit": ("Audit", "Is that alignment figure a measurement at all?"),
    "attention": ("Attention", "Where does each head look?"),
    "campaign": ("Campaign", "Why does training stop here: the rule, the architecture, or its controller?"),
    "signs": ("Signs", "Which kind of plateau do the numbers look like?"),
    "triangulate": ("Triangulation", "Is an estimated gradient the gradient?"),
    "lr_sweep": ("Learning rates", "What does one step along each gradient buy?"),
    "branches": ("Branches", "How much does each branch add, and how wide does attention look?"),
    "mixing": ("Mixing", "How far back does a token still matter?"),
    "collapse": ("Collapse", "How hard a nudge does the estimate stand?"),
    "matched": ("Matched arms", "Is it the architecture, or the rule?"),
    "gate": ("Validity gate", "When is each arm first allowed to learn?"),
    "grid": ("Controller grid", "Does another floor, target or ceiling help, beyond the seeds' noise?"),
    "equilibrium": ("Equilibrium training", "How did loss, residual and contraction go?"),
}
# circuitsvis writes these props with innerHTML; the attention heatmaps draw theirs on a canvas, where an escape would show.
HTML_SINKS = {
    "ColoredTokens": ("tokens",),
    "ColoredTokensMulti": ("tokens",),
    "TokenLogProbs": ("prompt", "topKTokens"),
    "TopkTokens": ("tokens",),
}
EMPTY_HINT = "Make a result first, for instance: wallprobe interchange --src p5 --dst c0 --layer 3"


@functools.cache
def environment() -> jinja2.Environment:
    """The templates, with autoescape always on."""
    loader = jinja2.PackageLoader("wallprobe.gallery", "templates")
    made = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters["number"] = charts.number
    return made


def kind_title(kind: str) -> tuple[str, str]:
    """Heading and question of a kind; a plugin's kind is its own heading."""
    return KINDS.get(kind, (kind[:1].upper() + kind[1:], ""))


def sealed(value: Any) -> Markup:
    """JSON that cannot leave the `<script type="application/json">` it stands in."""
    dumped = json.dumps(plain(value), allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    for sign, escape in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u2028", "\\u2028"), ("\u2029", "\\u2029")):
        dumped = dumped.replace(sign, escape)
    return Markup(dumped)


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


def _sections(exhibit: Exhibit) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    views: list[dict[str, Any]] = []
    figures: list[dict[str, Any]] = []
    for section in exhibit.sections:
        if isinstance(section, Table):
            views.append({"type": "table"} | table_view(section))
        else:
            views.append({"type": "figure", "id": len(figures), "figure": section})
            figures.append(figure_json(section))
    return views, figures


def summary_rows(result: Result) -> list[tuple[str, str]]:
    """The summary, the finding left out: it is the page's heading."""
    return [(key, charts.number(plain(value))) for key, value in result.summary.items() if key != "finding"]


def _scripts(exhibit: Exhibit) -> set[str]:
    shown = {
        panel.element for figure in exhibit.sections if isinstance(figure, Figure) for frame in figure.frames for panel in frame.panels
    }
    return {"plotly" if element == PLOTLY else "circuitsvis" for element in shown}


def result_page(result: Result, exhibit: Exhibit, stem: str) -> str:
    """The page of one Result; its data files stand beside it under the same stem."""
    sections, figures = _sections(exhibit)
    heading, question = kind_title(result.kind)
    return (
        environment()
        .get_template("result.html")
        .render(
            root="../",
            kind=heading,
            question=question,
            exhibit=exhibit,
            sections=sections,
            figures=sealed(figures),
            scripts=_scripts(exhibit),
            subject=str(result.manifest.get("subject", "")),
            created=str(result.manifest.get("created", "")),
            command=str(result.manifest.get("command", "")),
            summary=summary_rows(result),
            manifest=json.dumps(plain(result.manifest), indent=2, ensure_ascii=False, sort_keys=True),
            stem=stem,
        )
    )


def card(result: Result, exhibit: Exhibit, stem: str) -> dict[str, Any]:
    """What the index says of one Result."""
    return {
        "kind": result.kind,
        "title": exhibit.title,
        "subject": str(result.manifest.get("subject", "")),
        "created": str(result.manifest.get("created", "")),
        "stem": stem,
        "glance": glance.svg(exhibit.glance),
    }


def index_page(cards: Sequence[Mapping[str, Any]], damaged: Sequence[tuple[str, str]]) -> str:
    """The first page: cards by kind, newest first, then what is damaged and why."""
    known = list(KINDS)
    kinds = sorted({str(item["kind"]) for item in cards}, key=lambda kind: (known.index(kind) if kind in known else len(known), kind))
    groups: list[dict[str, Any]] = []
    for kind in kinds:
        heading, question = kind_title(kind)
        # Two stable sorts: newest first, and names decide between results of the same second.
        chosen = sorted((item for item in cards if item["kind"] == kind), key=lambda item: str(item["stem"]))
        chosen.sort(key=lambda item: str(item["created"]), reverse=True)
        groups.append({"anchor": f"kind-{len(groups)}", "heading": heading, "question": question, "cards": chosen})
    return (
        environment()
        .get_template("index.html")
        .render(root="", groups=groups, damaged=damaged, count=len(cards), hint=EMPTY_HINT, scripts=set(), figures=None)
    )
