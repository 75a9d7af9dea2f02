"""Building the static site: a page a Result, an index, and one assets/ folder; no Result, however damaged, stops it."""

import contextlib
import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wallprobe.errors import StoreError
from wallprobe.gallery import assets, glossary, longtable, pages
from wallprobe.gallery.exhibit import Exhibit
from wallprobe.gallery.exhibits import table as plain_table
from wallprobe.gallery.pages import EMPTY_HINT
from wallprobe.plugins import load_group
from wallprobe.results import RECORD, Result, list_results
from wallprobe.storage import ensure_directory, read_json, write_atomic, write_json

__all__ = ["EMPTY_HINT", "Site", "build", "build_site"]

Maker = Callable[[Result], Exhibit]
INDEX, FOLDER, WRITTEN = "index.html", "results", ".wallprobe-gallery.json"


@dataclass(frozen=True)
class Site:
    """What a build made.

    Attributes:
        index: the page to open.
        pages: how many Results have one.
        damaged: how many are listed as damaged.
    """

    index: Path
    pages: int
    damaged: int


def build(results_root: Path | None, out: Path, *, exhibits: Mapping[str, Maker] | None = None) -> Path:
    """Render every Result in a store; see `build_site`.

    Returns:
        The index page.
    """
    return build_site(results_root, out, exhibits=exhibits).index


def build_site(results_root: Path | None, out: Path, *, exhibits: Mapping[str, Maker] | None = None) -> Site:
    """Render every Result in a store into static pages that open from file:// without a network.

    The same store gives the same bytes. Pages of Results that are gone since the last build are removed; nothing else is.

    Args:
        results_root: the store; None for the default one.
        out: folder for the pages, made when missing.
        exhibits: kind -> maker; by default the entry points `wallprobe.exhibits`.

    Raises:
        StoreError: if `out` cannot be written.
    """
    makers = load_group("wallprobe.exhibits") if exhibits is None else exhibits
    sound, broken = list_results(results_root)
    ensure_directory(out)
    files = {f"assets/{name}": data for name, data in assets.files().items()}
    # Pages are shown to others: they name the Result, not where on this machine it lies.
    damaged = [(path.name, reason.replace(str(path), path.name)) for path, reason in broken]
    cards = []
    for path, result in sound:
        stem = page_stem(path.name)
        try:
            page, exhibit = render(result, makers, stem)
            record, table = (path / RECORD).read_bytes(), longtable.as_csv(longtable.columns(result))
        except Exception as error:
            # Arrays that no page can show: the Result is named, the others still get their pages.
            damaged.append((path.name, f"it could not be shown: {error!r}"))
            continue
        here = f"{FOLDER}/{stem}"
        files |= {f"{here}.html": _bytes(page), f"{here}.json": record, f"{here}.csv": _bytes(table)}
        cards.append(pages.card(result, exhibit, stem))
    files[INDEX] = _bytes(pages.index_page(cards, [(_printable(name), reason) for name, reason in sorted(damaged)]))
    files[glossary.PAGE] = _bytes(pages.glossary_page())
    _write(out, files)
    return Site(out / INDEX, len(cards), len(damaged))


def render(result: Result, makers: Mapping[str, Maker], stem: str) -> tuple[str, Exhibit]:
    """The page of one Result; a failing exhibit becomes a table page that says so."""
    exhibit, page = None, ""
    note = ""
    if result.kind in makers:
        try:
            exhibit = makers[result.kind](result)
            page = pages.result_page(result, exhibit, stem)
        except Exception as error:
            # A plugin's exhibit is foreign code: whatever it raises is shown to its author, not thrown at the reader.
            exhibit, note = None, f"The exhibit for '{result.kind}' failed ({error!r}); these are the plain values."
    if exhibit is None:
        exhibit = plain_table.exhibit(result, note)
        page = pages.result_page(result, exhibit, stem)
    return page, exhibit


def page_stem(folder: str) -> str:
    """A Result's folder name as a file and URL name: kept when it is plain and short, else marked with a hash of the whole."""
    plain = re.sub(r"[^A-Za-z0-9@._-]+", "-", folder)[:120].strip(".-") or "result"
    if plain == folder:
        return plain
    return f"{plain}-{hashlib.sha256(folder.encode(errors='surrogatepass')).hexdigest()[:8]}"


def _printable(name: str) -> str:
    return name.encode(errors="backslashreplace").decode()


def _bytes(text: str) -> bytes:
    # Lone surrogates come from file names that are no UTF-8.
    return text.encode("utf-8", errors="replace")


def _write(out: Path, files: Mapping[str, bytes]) -> None:
    """Write what changed, then remove pages of an earlier build that this one did not make."""
    for name, data in files.items():
        target = out / name
        with contextlib.suppress(OSError):
            if target.stat().st_size == len(data) and target.read_bytes() == data:
                continue
        write_atomic(target, data)
    for name in _earlier(out) - set(files):
        # The list is a file in a folder of the user's: only names that this build could have written are believed.
        if re.fullmatch(rf"{FOLDER}/[A-Za-z0-9@._-]+\.(html|json|csv)", name):
            with contextlib.suppress(OSError):
                (out / name).unlink(missing_ok=True)
    write_json(out / WRITTEN, sorted(files))


def _earlier(out: Path) -> set[str]:
    try:
        listed: Any = read_json(out / WRITTEN)
    except StoreError:
        return set()
    return {name for name in listed if isinstance(name, str)} if isinstance(listed, list) else set()
