"""A whole site as one file: a zip that opens anywhere, or one HTML page; and one Result as a page for a notebook's cell."""

import base64
import hashlib
import html
import json
import re
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from wallprobe.gallery import assets
from wallprobe.gallery.build import COMPARE, DATA, INDEX, WRITTEN, Site, build_site
from wallprobe.gallery.render import environment, sealed
from wallprobe.store.storage import read_json, write_atomic

if TYPE_CHECKING:
    from wallprobe.store.results import Result
    from wallprobe.store.runs import Run

TOP = "wallprobe-gallery"  # the folder within the zip
CARRIED = 500_000  # bytes of a data file that the single page still carries
MAIN = re.compile(r'<main id="main" tabindex="-1">(.*?)</main>', re.DOTALL)
TITLE = re.compile(r"<title>(.*?)</title>", re.DOTALL)
HELD = re.compile(r'<script type="application/json" id="([a-z]+)">(.*?)</script>', re.DOTALL)


def write_zip(
    results_root: Path | None, target: Path, *, runs: "Sequence[Run]" = (), damaged_runs: Sequence[tuple[Path, str]] = ()
) -> Site:
    """The site as a zip; the same store gives the same bytes.

    Raises:
        StoreError: if `target` cannot be written.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        site = build_site(results_root, folder, runs=runs, damaged_runs=damaged_runs)
        packed = BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in read_json(folder / WRITTEN):
                # ZipInfo's own date is 1980: no clock gets into the bytes.
                entry = zipfile.ZipInfo(f"{TOP}/{name}")
                entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
                archive.writestr(entry, (folder / name).read_bytes())
        write_atomic(target, packed.getvalue())
    return replace(site, index=target)


def write_single(
    results_root: Path | None, target: Path, *, runs: "Sequence[Run]" = (), damaged_runs: Sequence[tuple[Path, str]] = ()
) -> Site:
    """The site as one HTML page; data files above `CARRIED` bytes stay behind.

    Raises:
        StoreError: if `target` cannot be written.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        site = build_site(results_root, folder, runs=runs, damaged_runs=damaged_runs)
        names = [str(name) for name in read_json(folder / WRITTEN)]
        # Bytes of a text that was no UTF-8 have become question marks when the pages were written.
        texts = {name: (folder / name).read_text(encoding="utf-8") for name in names if not name.startswith("assets/")}
    whole = single_page({name: text for name, text in texts.items() if len(text) <= CARRIED or not name.endswith((".csv", ".json"))})
    write_atomic(target, whole.encode())
    return replace(site, index=target)


def single_page(texts: Mapping[str, str], first: str = INDEX, *, inline: bool = False) -> str:
    """Pages and data files, by name, as one page that needs no other file.

    Args:
        texts: as `build_site` writes them, the assets left out.
        first: the page shown at first.
        inline: without the bar and the foot, for a frame within another page.
    """
    pages = {name: f"page-{place}" for place, name in enumerate(sorted(name for name in texts if name.endswith(".html")))}
    files = {name: f"file-{place}" for place, name in enumerate(sorted(name for name in texts if name.endswith((".csv", ".json"))))}
    held = [(pages[name], sealed(_page(texts[name]))) for name in pages] + [(files[name], sealed(texts[name])) for name in files]
    prefix = f"{DATA}/"
    payloads = [
        (name.removeprefix(prefix).removesuffix(".js"), Markup(text.removeprefix("wallprobeData(").rstrip().removesuffix(");")))
        for name, text in sorted(texts.items())
        if name.startswith(prefix)
    ]
    shared = {name: data.decode() for name, data in assets.files().items()}
    drawn = [name for name in (assets.PLOTLY_JS, assets.CIRCUITSVIS_JS) if _needed(name, texts)]
    own = ["gallery.js", *(name for name, page in (("index.js", INDEX), ("compare.js", COMPARE)) if page in texts), "single.js"]
    scripts = [_inline(shared[name]) for name in (*drawn, *own)]
    theme = _inline(shared["theme.js"])
    return (
        environment()
        .get_template("single.html")
        .render(
            title="wallprobe gallery",
            hashes=Markup(" ".join(f"'sha256-{_hash(script)}'" for script in (theme, *scripts))),
            theme=theme,
            style=Markup(shared["gallery.css"]),
            site=sealed({"first": first, "pages": pages, "files": files}),
            held=held,
            payloads=payloads,
            scripts=scripts,
            inline=inline,
        )
    )


def cell(result: "Result") -> str:
    """One Result as a frame that shows its exhibit in a notebook, offline: the frame carries all it needs."""
    from wallprobe.gallery.build import render
    from wallprobe.plugins import load_group

    page, exhibit = render(result, load_group("wallprobe.exhibits"), "result")
    whole = single_page({"results/result.html": page}, "results/result.html", inline=True)
    frame = 'style="width:100%;height:46rem;border:1px solid #ddd;border-radius:8px" sandbox="allow-scripts allow-downloads" loading="lazy"'
    return f'<iframe title="{html.escape(exhibit.title)}" {frame} srcdoc="{html.escape(whole)}"></iframe>'


def _page(text: str) -> dict[str, Any]:
    """What a page consists of beside what all share."""
    main, title = MAIN.search(text), TITLE.search(text)
    if main is None or title is None:
        raise ValueError("a page without a main part or a title")
    return {"title": html.unescape(title[1]), "main": main[1], "data": {name: json.loads(data) for name, data in HELD.findall(text)}}


def _needed(script: str, texts: Mapping[str, str]) -> bool:
    return any(f"assets/{script}" in text for name, text in texts.items() if name.endswith(".html"))


def _inline(script: str) -> Markup:
    """A script that its own text cannot end early: within a program's strings the escape reads the same."""
    return Markup(re.sub(r"</(script)", r"<\\/\1", script, flags=re.IGNORECASE).replace("<!--", "\\x3c!--"))


def _hash(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
