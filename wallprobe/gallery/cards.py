"""The index: one card a Result and a run, as JSON values until the page is made, so that a build can remember them."""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wallprobe.gallery import facets, glance, glossary, render
from wallprobe.gallery.exhibit import Exhibit, Glance

if TYPE_CHECKING:
    from wallprobe.store.results import Result

Card = dict[str, Any]
EMPTY_HINT = "Make a result first, for instance: wallprobe interchange --src p5 --dst c0 --layer 3"


def of_result(result: "Result", exhibit: Exhibit, stem: str, comparable: bool) -> Card:
    """What the index says of one Result."""
    return {
        "kind": result.kind,
        "title": exhibit.title,
        "subject": str(result.manifest.get("subject", "")),
        "created": str(result.manifest.get("created", "")),
        "command": str(result.manifest.get("command", "")),
        "stem": stem,
        "href": f"results/{stem}.html",
        "glance": thumbnail(exhibit.glance),
        "facets": facets.raw(result),
        "comparable": comparable,
    }


def thumbnail(given: Glance | None) -> dict[str, Any] | None:
    """A Glance as JSON values; three digits are more than a thumbnail shows."""
    if given is None:
        return None
    rows = [[None if value is None or not math.isfinite(value) else float(f"{value:.3g}") for value in row] for row in given.values]
    return {"shape": given.shape, "values": rows, "mark": given.mark}


def _drawn(given: Mapping[str, Any] | None) -> Glance | None:
    return None if given is None else Glance(given["shape"], tuple(map(tuple, given["values"])), given["mark"])


def entry(card: Card, runs: Collection[str]) -> dict[str, Any]:
    """What the index' script knows of a card: what it filters and sorts by."""
    return {
        "stem": card["stem"],
        "kind": render.kind_title(card["kind"])[0],
        "created": card["created"],
        "date": card["created"][:10],
        "subject": card["subject"],
        "command": card["command"],
        "comparable": bool(card["comparable"]),
    } | facets.of_card(card, runs)


def grouped(cards: Sequence[Card]) -> list[dict[str, Any]]:
    """Cards by kind, newest first, each with its place in the page."""
    groups: list[dict[str, Any]] = []
    for kind in sorted({str(card["kind"]) for card in cards}, key=render.kind_order):
        heading, question = render.kind_title(kind)
        # Two stable sorts: newest first, and names decide between results of the same second.
        chosen = sorted((card for card in cards if card["kind"] == kind), key=lambda card: str(card["stem"]))
        chosen.sort(key=lambda card: str(card["created"]), reverse=True)
        groups.append({"anchor": f"kind-{len(groups)}", "heading": heading, "question": question, "cards": chosen})
    return groups


def index_page(cards: Sequence[Card], damaged: Sequence[tuple[str, str]], runs: Collection[str] = ()) -> str:
    """The first page: cards by kind, newest first, then what is damaged and why."""
    groups = grouped(cards)
    entries = [entry(card, runs) for group in groups for card in group["cards"]]
    for group in groups:
        group["cards"] = [card | {"drawing": glance.svg(_drawn(card["glance"]))} for card in group["cards"]]
    return (
        render.environment()
        .get_template("index.html")
        .render(
            root="",
            groups=groups,
            damaged=damaged,
            count=sum(card["kind"] != "run" for card in cards),
            runs=sum(card["kind"] == "run" for card in cards),
            hint=EMPTY_HINT,
            scripts={"index"},
            entries=render.sealed(entries),
            figures=None,
        )
    )


def compare_page(cards: Sequence[Card]) -> str:
    """The page that puts Results of one kind on one axis; what it may choose from stands in it, the figures in data/."""
    listed = [
        {key: card[key] for key in ("stem", "title", "subject", "created", "href")} | {"kind": group["heading"]}
        for group in grouped(cards)
        for card in group["cards"]
        if card["comparable"]
    ]
    return (
        render.environment()
        .get_template("compare.html")
        .render(root="", scripts={"plotly", "compare"}, figures=None, choices=render.sealed(listed))
    )


def glossary_page() -> str:
    """Every term that a page may use, explained."""
    return render.environment().get_template("glossary.html").render(root="", entries=glossary.entries(), scripts=set(), figures=None)
