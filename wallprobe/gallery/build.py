"""Building the static site: a page a Result and a run, an index, one assets/ folder; no Result, however damaged, stops it.

What has not changed since the last build into the same folder is neither read nor made again (see `store`).
"""

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wallprobe.errors import StoreError
from wallprobe.gallery import assets, cards, facets, glossary, store
from wallprobe.gallery.cards import EMPTY_HINT
from wallprobe.gallery.exhibit import Exhibit
from wallprobe.gallery.store import Known
from wallprobe.plugins import load_group
from wallprobe.store.reading import told
from wallprobe.store.storage import ensure_directory, read_json, write_atomic, write_json

if TYPE_CHECKING:
    from wallprobe.store.results import Result
    from wallprobe.store.runs import Run

__all__ = ["EMPTY_HINT", "Site", "build", "build_site"]

Maker = Callable[["Result"], Exhibit]
_ANYTHING = (Exception, SystemExit)  # what foreign code may end with, short of an interrupt
INDEX, COMPARE, FOLDER, RUNS, DATA, WRITTEN = "index.html", "compare.html", "results", "runs", "data", ".wallprobe-gallery.json"


@dataclass(frozen=True)
class Site:
    """What a build made.

    Attributes:
        index: the page to open.
        pages: how many Results have one.
        damaged: how many are listed as damaged.
        runs: how many runs have one.
        rendered: how many pages were made anew; the others stood.
        changed: whether any file was written or removed.
        reasons: name and reason of each damaged one, as the index lists them.
    """

    index: Path
    pages: int
    damaged: int
    runs: int = 0
    rendered: int = 0
    changed: bool = False
    reasons: tuple[tuple[str, str], ...] = ()


def build(results_root: Path | None, out: Path, *, exhibits: Mapping[str, Maker] | None = None) -> Path:
    """Render every Result in a store; see `build_site`.

    Returns:
        The index page.
    """
    return build_site(results_root, out, exhibits=exhibits).index


def build_site(
    results_root: Path | None,
    out: Path,
    *,
    exhibits: Mapping[str, Maker] | None = None,
    runs: "Sequence[Run]" = (),
    damaged_runs: Sequence[tuple[Path, str]] = (),
) -> Site:
    """Render every Result in a store into static pages that open from file:// without a network.

    The same store gives the same bytes. Pages of Results that are gone since the last build are removed; nothing else is.

    Args:
        results_root: the store; None for the default one.
        out: folder for the pages, made when missing.
        exhibits: kind -> maker; by default the entry points `wallprobe.exhibits`. Given ones are asked anew each time.
        runs: runs that get a page each.
        damaged_runs: those that cannot, each with what is wrong; they are listed.

    Raises:
        StoreError: if `out` cannot be written, or the store not listed.
    """
    ensure_directory(out)
    lost = [(f"run {path.name}", reason.replace(str(path), path.name)) for path, reason in damaged_runs]
    fingerprint = hashlib.sha256(f"{store.code()} {sorted(run.name.folder for run in runs)}".encode()).hexdigest()
    known = store.remembered(out, fingerprint) if exhibits is None else {}
    try:
        return _build(results_root, out, fingerprint, known, exhibits, runs, lost)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        if not known:
            raise
        # Whatever the memory of the last build has become, a build without it needs none.
        return _build(results_root, out, fingerprint, {}, exhibits, runs, lost)


def _build(
    results_root: Path | None,
    out: Path,
    fingerprint: str,
    known: Mapping[str, Known],
    exhibits: Mapping[str, Maker] | None,
    runs: "Sequence[Run]",
    lost: Sequence[tuple[str, str]],
) -> Site:
    work = _Work(out, exhibits, known, {run.name.folder: page_stem(run.name.folder) for run in runs})
    root = results_root or Path(os.environ.get("WALLPROBE_RESULTS", "results"))
    found = {path: work.result(path) for path in store.folders(root)}
    for run in runs:
        work.run(run, found)
    made = [item.card for item in work.now.values() if item.card is not None]
    damaged = sorted([*lost, *((name.split("/", 1)[1], item.reason) for name, item in work.now.items() if item.card is None)])
    damaged = [(_printable(name), _printable(reason)) for name, reason in damaged]
    files = work.files | {f"assets/{name}": data for name, data in assets.files().items()}
    index = cards.index_page(made, damaged, set(work.runs))
    files |= {INDEX: _bytes(index), COMPARE: _bytes(cards.compare_page(made)), glossary.PAGE: _bytes(cards.glossary_page())}
    kept = {name for item in work.now.values() for name in item.files} | {f"assets/{name}" for name in assets.NAMES}
    changed = _write(out, files, kept)
    for item in work.now.values():
        item.files.update({name: store.stamp(out / name) for name in item.files})
    if exhibits is None and (changed or work.now != known):
        write_atomic(out / store.MEMORY, store.memory_bytes(fingerprint, work.now), flush=False)
    pages = sum(card["kind"] != "run" for card in made)
    return Site(out / INDEX, pages, len(damaged), len(runs), work.rendered, changed, tuple(damaged))


@dataclass
class _Work:
    """One build under way: what is remembered, what is made.

    Attributes:
        out: the site's folder.
        given: makers given by the caller.
        known: what the last build remembers.
        runs: folder name of a run -> stem of its page.
        now: what this build will remember; "results/" and "runs/" before the names.
        files: to be written.
        rendered: pages made anew.
    """

    out: Path
    given: Mapping[str, Maker] | None
    known: Mapping[str, Known]
    runs: Mapping[str, str]
    now: dict[str, Known] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    rendered: int = 0

    @property
    def makers(self) -> Mapping[str, Maker]:
        """Loaded when a page must be made, and not before."""
        return load_group("wallprobe.exhibits") if self.given is None else self.given

    def result(self, path: Path) -> Known:
        """The page of one stored Result, made or remembered."""
        parts, name = [path / part for part in store.PARTS], f"{FOLDER}/{path.name}"
        stamps, before = [store.stamp(part) for part in parts], self.known.get(name)
        stands = before is not None and before.stands(self.out)
        if before is not None and stands and before.stamps == stamps:
            self.now[name] = before
            return before
        digest = store.content(parts)
        if before is not None and stands and before.digest == digest:
            made = Known(stamps, digest, before.card, before.reason, before.files)
        else:
            card, reason, files = self._shown(path)
            made = Known(stamps, digest, card, reason, dict.fromkeys(files))
            self.files |= files
            self.rendered += card is not None
        self.now[name] = made
        return made

    def _shown(self, path: Path) -> tuple[cards.Card | None, str, dict[str, bytes]]:
        """Card, what is wrong, and files of one Result; whatever it holds, the others still get their pages."""
        from wallprobe.gallery import compare, longtable
        from wallprobe.store.results import RECORD, load_result

        try:
            result = load_result(path)
        except StoreError as error:
            # Pages are shown to others: they name the Result, not where on this machine it lies.
            return None, str(error).replace(str(path), path.name), {}
        stem = page_stem(path.name)
        try:
            related = [
                (str(facets.run_name(folder)), f"../{RUNS}/{self.runs[folder]}.html") for folder in _runs_of(result) if folder in self.runs
            ]
            data = compare.payload(result, stem)
            page, exhibit = render(result, self.makers, stem, runs=related, comparable=bool(data["variables"]))
            data["title"] = exhibit.title
            record, table = (path / RECORD).read_bytes(), longtable.as_csv(longtable.columns(result))
            card = cards.of_result(result, exhibit, stem, bool(data["variables"]))
        except _ANYTHING as error:
            # Arrays that no page can show: the Result is named, the others still get their pages.
            return None, f"it could not be shown: {told(error)}", {}
        here = f"{FOLDER}/{stem}"
        files = {f"{here}.html": _bytes(page), f"{here}.json": record, f"{here}.csv": _bytes(table)}
        if data["variables"]:
            files[f"{DATA}/{stem}.js"] = _bytes(compare.script(data))
        return card, "", files

    def run(self, run: "Run", found: Mapping[Path, Known]) -> None:
        """The page of one run, made or remembered."""
        from wallprobe.store.runs import EVALUATION, MANIFEST

        folder, stem = run.name.folder, self.runs[run.name.folder]
        about = {path: item for path, item in found.items() if item.card is not None and folder in facets.runs_of(item.card)}
        parts = [run.path / MANIFEST, *(run.path / EVALUATION / part for part in store.PARTS)]
        digest = hashlib.sha256(" ".join([store.content(parts), *(item.digest for item in about.values())]).encode()).hexdigest()
        name = f"{RUNS}/{folder}"
        before = self.known.get(name)
        if before is not None and before.digest == digest and before.stands(self.out):
            self.now[name] = before
            return
        from wallprobe.gallery import runpages

        try:
            listed = [runpages.About(item.card, path) for path, item in about.items() if item.card is not None]
            page, card = runpages.page(run, listed, self.makers, stem)
        except _ANYTHING as error:
            self.now[name] = Known([], digest, None, f"the run's page could not be made: {told(error)}", {})
            return
        files = {f"{RUNS}/{stem}.html": _bytes(page)}
        self.now[name] = Known([], digest, card, "", dict.fromkeys(files))
        self.files |= files
        self.rendered += 1


def _runs_of(result: "Result") -> list[str]:
    return sorted(facets.runs_of({"facets": facets.raw(result)}))


def render(result: "Result", makers: Mapping[str, Maker], stem: str, **links: Any) -> tuple[str, Exhibit]:
    """The page of one Result, its `links` those of `pages.result_page`; a failing exhibit becomes a table page that says so."""
    from wallprobe.gallery import pages
    from wallprobe.gallery.exhibits import table as plain_table

    exhibit, page = None, ""
    note = ""
    if result.kind in makers:
        try:
            exhibit = makers[result.kind](result)
            page = pages.result_page(result, exhibit, stem, **links)
        except _ANYTHING as error:
            # A plugin's exhibit is foreign code: whatever it raises is shown to its author, not thrown at the reader.
            exhibit, note = None, f"The exhibit for '{result.kind}' failed ({told(error)}); these are the plain values."
    if exhibit is None:
        exhibit = plain_table.exhibit(result, note)
        page = pages.result_page(result, exhibit, stem, **links)
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


def _write(out: Path, files: Mapping[str, bytes], kept: set[str]) -> bool:
    """Write what changed, then remove pages of an earlier build that this one neither made nor kept; whether anything was done."""
    changed = False
    for name, data in files.items():
        target = out / name
        with contextlib.suppress(OSError):
            if target.stat().st_size == len(data) and target.read_bytes() == data:
                continue
        write_atomic(target, data, out, flush=False)  # a page that a power cut takes is made again by the next build
        changed = True
    listed, here = _earlier(out), set(files) | kept
    for name in listed - here:
        # The list is a file in a folder of the user's: only names that this build could have written are believed.
        if re.fullmatch(rf"({FOLDER}|{RUNS}|{DATA})/[A-Za-z0-9@_-][A-Za-z0-9@._-]*\.(html|json|csv|js)", name):
            with contextlib.suppress(OSError):
                (out / name).unlink(missing_ok=True)
                changed = True
    if listed != here:
        write_json(out / WRITTEN, sorted(here))
    return changed


def _earlier(out: Path) -> set[str]:
    try:
        listed: Any = read_json(out / WRITTEN)
    except StoreError:
        return set()
    return {name for name in listed if isinstance(name, str)} if isinstance(listed, list) else set()
