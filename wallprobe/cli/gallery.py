"""`wallprobe gallery`: every Result in the store as pages that open offline."""

from pathlib import Path
from typing import Annotated

import typer

from wallprobe.cli import common


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(name="gallery")(gallery)


def gallery(
    out: Annotated[Path, typer.Option(help="Folder to write the pages into.")] = Path("gallery"),
    open_: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    results: common.Results = None,
    json: common.Json = False,
) -> None:
    """Render every stored result into a folder of pages that opens without a network."""
    from wallprobe.gallery import build_site
    from wallprobe.gallery.build import EMPTY_HINT

    site = build_site(results, out)
    if json:
        common.print_json(
            {
                "kind": "gallery",
                "summary": {"index": str(site.index), "pages": site.pages, "damaged": site.damaged},
                "values": [],
                "manifest": {},
            }
        )
    else:
        damaged = f", {site.damaged} damaged listed" if site.damaged else ""
        common.out().print(f"{site.index}: {site.pages} result page{'' if site.pages == 1 else 's'}{damaged}", soft_wrap=True, markup=False)
        if not site.pages:
            common.out().print(f"The store is empty. {EMPTY_HINT}", soft_wrap=True, markup=False)
    if open_:
        import webbrowser

        webbrowser.open(site.index.resolve().as_uri())
