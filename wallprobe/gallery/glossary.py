"""Links from the words of a page to the glossary: the first mention of a term in a caption, a table's head or a summary key."""

import functools
import re
from collections.abc import Mapping

from markupsafe import Markup, escape

from wallprobe.gallery.terms import HEADINGS, Term

PAGE = "glossary.html"
ENDINGS = re.compile(r"_(low|high|first|last|trained|unsupervised|random|mismatched|norm|no_sink|at_\d+)$")


def slug(term: Term) -> str:
    """The term's anchor on the page."""
    plain = {"L*": "l-star", "R²": "r2", "|h_L|": "h-norm"}.get(term.name, term.name)
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


@functools.cache
def _spellings() -> Mapping[str, Term]:
    """Lower-case spelling -> term; a name wins over another's further spelling."""
    terms = [term for _, group in HEADINGS for term in group]
    known = {term.name.lower(): term for term in terms}
    for term in terms:
        for other in term.also:
            known.setdefault(other.lower(), term)
    return known


@functools.cache
def _keys() -> Mapping[str, Term]:
    return {key: term for _, group in HEADINGS for term in group for key in term.keys}


@functools.cache
def _pattern() -> re.Pattern[str]:
    """Every spelling as a whole word, the longest first."""
    words = sorted(_spellings(), key=len, reverse=True)
    # Not within what is no word but a name: eqprop:probe=true, floor/target.
    return re.compile(rf"(?<![\w|:=@/·])(?:{'|'.join(map(re.escape, words))})(?![\w|:=@/·])", re.IGNORECASE)


def _link(term: Term, shown: str) -> Markup:
    # Pages that mention terms lie one folder below the glossary.
    return Markup('<a class="term" href="../{}#{}" title="{}">{}</a>').format(PAGE, slug(term), term.meaning, shown)


def linked(text: object) -> Markup:
    """Text with the first mention of each term linked, everything else escaped."""
    whole, made, seen, at = str(text), Markup(""), set[str](), 0
    for match in _pattern().finditer(whole):
        term = _spellings()[match[0].lower()]
        if term.name not in seen:
            seen.add(term.name)
            made += escape(whole[at : match.start()]) + _link(term, match[0])
            at = match.end()
    return made + escape(whole[at:])


def linked_key(key: object) -> Markup:
    """A summary key or a column's name, linked as a whole where it is a term's, or one with an ending such as `_low`; else as `linked`."""
    name = str(key)
    while name not in _keys() and ENDINGS.search(name):
        name = ENDINGS.sub("", name)
    term = _keys().get(name)
    return linked(key) if term is None else _link(term, str(key))


def entries() -> list[tuple[str, list[tuple[str, Term]]]]:
    """For the page: headings with (anchor, term)."""
    return [(heading, [(slug(term), term) for term in group]) for heading, group in HEADINGS]
