"""The pages as one call: what `wallprobe gallery` takes, as a function. `wallprobe.gallery(...)` is it."""

import webbrowser
from pathlib import Path
from typing import TYPE_CHECKING

from wallprobe.gallery.build import build_site

if TYPE_CHECKING:
    from wallprobe.gallery.build import Site

FOLDER, FILE = Path("gallery"), Path("gallery.html")


def gallery(
    out: str | Path | None = None,
    *,
    results: str | Path | None = None,
    runs: str | Path | None = None,
    single_file: bool = False,
    show: bool = False,
) -> "Site":
    """Every stored Result and run as pages that open without a network; what has not changed since the last build is left as it stands.

    Args:
        out: folder for the pages, by default ./gallery; of a single file its name, by default gallery.html.
        results: store of Results, default as `results.default_root`.
        runs: store of runs, default as `runs.default_root`.
        single_file: everything as one HTML file.
        show: open it in the browser.

    Returns:
        What was built; `index` is the page to open.

    Raises:
        StoreError: if it cannot be written, or the store not listed.
    """
    from wallprobe.store.runs import survey_runs

    sound, damaged = survey_runs(None if runs is None else Path(runs))
    store = None if results is None else Path(results)
    if single_file:
        from wallprobe.gallery.single import write_single

        site = write_single(store, FILE if out is None else Path(out), runs=sound, damaged_runs=damaged)
    else:
        site = build_site(store, FOLDER if out is None else Path(out), runs=sound, damaged_runs=damaged)
    if show:
        webbrowser.open(site.index.resolve().as_uri())
    return site
