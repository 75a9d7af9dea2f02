"""`wallprobe gallery`: every Result and run as pages that open offline; build, open, serve, export, compare."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from wallprobe.cli import common, options

if TYPE_CHECKING:
    from wallprobe.gallery import Site

Out = Annotated[Path, typer.Option(help="Folder to write the pages into.")]
Open = Annotated[bool, typer.Option("--open", help="Open it in the browser.")]
Single = Annotated[bool, typer.Option("--single-file", help="Write everything into one HTML file instead: --out, or gallery.html.")]

FOLDER, ZIP = Path("gallery"), Path("gallery.zip")


def build(
    out: Out = FOLDER,
    show: Open = False,
    single_file: Single = False,
    results: options.Results = None,
    runs: options.Runs = None,
    json: options.Json = False,
) -> None:
    """Build the pages; what has not changed since the last build is left as it stands."""
    from wallprobe.gallery.asked import gallery

    site = gallery(None if out == FOLDER else out, results=results, runs=runs, single_file=single_file)
    _told(site, json)
    if show:
        _show(site.index.resolve().as_uri())


def open_(out: Out = FOLDER, results: options.Results = None, runs: options.Runs = None) -> None:
    """Build the pages and open them in the browser."""
    build(out, True, False, results, runs, False)


def serve(
    out: Out = FOLDER,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.", min=0, max=65535)] = 8765,
    show: Open = False,
    results: options.Results = None,
    runs: options.Runs = None,
) -> None:
    """Serve the pages to this machine alone, and reload them as results arrive. Ends with Ctrl-C."""
    from wallprobe.gallery.server import Gallery

    with Gallery(lambda: _site(out, results, runs), out, port, _say) as served:
        common.out().print(f"{served.url}  (Ctrl-C ends it)", soft_wrap=True, markup=False)
        if show:
            _show(served.url)
        served.watch()


def export(
    out: Annotated[Path, typer.Option(help="The zip to write.")] = ZIP,
    results: options.Results = None,
    runs: options.Runs = None,
    json: options.Json = False,
) -> None:
    """Write everything into one zip that opens anywhere: unpack it, open index.html."""
    from wallprobe.gallery.single import write_zip

    _told(write_zip(results, out, **_runs(runs)), json)


def compare(
    names: Annotated[
        list[str], typer.Argument(help="Two or more results of one kind: folder names, or their beginning.", metavar="RESULT...")
    ],
    out: Out = FOLDER,
    show: Open = False,
    results: options.Results = None,
    runs: options.Runs = None,
) -> None:
    """Put results of one kind on one axis: build the pages and print the address of the comparison."""
    from urllib.parse import quote

    from wallprobe.errors import UnknownNameError
    from wallprobe.gallery.build import COMPARE, page_stem
    from wallprobe.gallery.store import folders
    from wallprobe.store.results import default_root, load_result

    there = [path.name for path in folders(results or default_root())]
    chosen = []
    for name in names:
        found = [folder for folder in there if folder == Path(name).name] or [folder for folder in there if folder.startswith(name)]
        if len(found) != 1:
            known = ", ".join(found or there) or "none"
            raise UnknownNameError(f"'{name}' names {len(found)} results in {results or default_root()}; there are: {known}")
        load_result((results or default_root()) / found[0])  # a damaged one is told, not compared
        chosen.append(page_stem(found[0]))
    site = _site(out, results, runs)
    common.tell_damaged(site.reasons)
    address = f"{(site.index.resolve().parent / COMPARE).as_uri()}#{'&'.join(quote(stem, safe='') for stem in chosen)}"
    common.out().print(address, soft_wrap=True, markup=False)
    if show:
        _show(address)


COMMANDS: Mapping[str, Callable[..., None]] = MappingProxyType(
    {"build": build, "open": open_, "serve": serve, "export": export, "compare": compare}
)


class BuildUnlessTold(typer.core.TyperGroup):
    """A group whose first command stands for the group: `wallprobe gallery --open` is `wallprobe gallery build --open`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command in where the arguments begin with none."""
        told = bool(args) and (args[0] in self.commands or args[0] == "--help")
        return super().parse_args(ctx, args if told else ["build", *args])


def group(only: str | None = None) -> typer.Typer:
    """The commands of the group, or one of them by itself."""
    told = "Render every stored result and run into pages that open without a network. Without a command: build."
    return common.group(COMMANDS, only, help=told, cls=BuildUnlessTold)


def _runs(root: Path | None) -> dict[str, Any]:
    """The runs of a store as `build_site` takes them."""
    from wallprobe.store.runs import survey_runs

    sound, damaged = survey_runs(root)
    return {"runs": sound, "damaged_runs": damaged}


def _say(line: str) -> None:
    import sys

    sys.stderr.write(f"wallprobe: {common.one_line(line)}\n")
    sys.stderr.flush()


def _site(out: Path, results: Path | None, runs: Path | None) -> "Site":
    from wallprobe.gallery import build_site

    return build_site(results, out, **_runs(runs))


def _told(site: "Site", json: bool) -> None:
    from wallprobe.gallery.build import EMPTY_HINT

    listed = common.tell_damaged(site.reasons)
    if json:
        summary = {"index": str(site.index), "pages": site.pages, "damaged": site.damaged, "runs": site.runs, "rendered": site.rendered}
        common.print_json({"kind": "gallery", "summary": summary, "values": [], "manifest": {}, "damaged": listed})
        return
    said = f"{site.pages} result page{'' if site.pages == 1 else 's'}"
    said += f", {site.runs} run page{'' if site.runs == 1 else 's'}" if site.runs else ""
    said += f", {site.damaged} damaged listed" if site.damaged else ""
    common.out().print(f"{site.index}: {said}", soft_wrap=True, markup=False)
    if not site.pages:
        common.out().print(f"The store holds no result. {EMPTY_HINT}", soft_wrap=True, markup=False)


def _show(address: str) -> None:
    import webbrowser

    webbrowser.open(address)
