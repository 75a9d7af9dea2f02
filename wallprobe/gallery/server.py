"""Serving the pages to this machine alone, with a reload as results arrive. Reads files of the site and nothing else.

Pages may not ask the network (their policy forbids it), so the script that watches loads a script: `/live.js?...` answers with
whether the page's file has changed since.
"""

import contextlib
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from wallprobe.errors import ConfigError, WallprobeError
from wallprobe.gallery import store
from wallprobe.gallery.build import Site
from wallprobe.gallery.render import sealed
from wallprobe.store.reading import told

HOST, PERIOD = "127.0.0.1", 1.0
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
}
WATCHER, ANSWER = "/live/watch.js", "/live/answer.js"


class Gallery:
    """A served site; a context that ends the serving.

    Attributes:
        url: where it is.
    """

    def __init__(self, make: Callable[[], Site], out: Path, port: int, tell: Callable[[str], None] = lambda line: None) -> None:
        """Build it and start to serve.

        Args:
            make: builds the site into `out`; called again and again, so it must be quick where nothing changed.
            out: the site's folder.
            port: on 127.0.0.1; 0 for a free one.
            tell: given a line for each Result or run that is found damaged, and for each failing build, once.

        Raises:
            ConfigError: if the port cannot be had.
            WallprobeError: if the first build fails.
        """
        self._make, self._tell, self._told = make, tell, set[str]()
        self.site = make()
        self._say([f"{name}: {reason}" for name, reason in self.site.reasons])
        try:
            self._server = _Server((HOST, port), _handler(out.resolve()))
        except OSError as error:
            raise ConfigError(f"port {port} on {HOST} cannot be had ({error.strerror}); give another with --port, or --port 0") from error
        self.url = f"http://{HOST}:{self._server.server_address[1]}/index.html"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> "Gallery":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def refresh(self) -> bool:
        """Build again; whether any page changed. Whatever a build ends with, the pages of the last one are still served."""
        try:
            self.site = self._make()
        except Exception as error:
            why = str(error) if isinstance(error, WallprobeError) else told(error)
            self._say([f"the pages could not be built again, those of the last build are served: {why}"])
            return False
        self._say([f"{name}: {reason}" for name, reason in self.site.reasons])
        return self.site.changed

    def _say(self, lines: list[str]) -> None:
        """What has not been said since it was last true."""
        for line in lines:
            if line not in self._told:
                self._tell(line)
        self._told = set(lines)

    def watch(self, period: float = PERIOD) -> None:
        """Build again and again until interrupted."""
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(period)
                self.refresh()


class _Server(ThreadingHTTPServer):
    """Answers in threads that end with the process; a visitor who hangs up is no news."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: the terminal is the user's."""


def _handler(root: Path) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        """GET and HEAD of the site's files."""

        server_version, sys_version = "wallprobe", ""

        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def _answer(self, body: bool) -> None:
            # A page elsewhere may point its own name at this address: only our own names are answered.
            host = (self.headers.get("Host") or "").rsplit(":", 1)[0]
            if host not in (HOST, "localhost"):
                self.send_error(403)
                return
            try:
                asked = urlsplit(self.path)
                found = _served(root, asked.path, parse_qs(asked.query))
            except (OSError, ValueError, RuntimeError):  # no address, or none that a file can have
                found = None
            if found is None:
                self.send_error(404)
                return
            kind, data = found
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store" if asked.path.startswith("/live/") else "no-cache")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            if body:
                with contextlib.suppress(ConnectionError):
                    self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing: the terminal is the user's."""

    return Handler


def _served(root: Path, path: str, query: dict[str, list[str]]) -> tuple[str, bytes] | None:
    """Type and content of what a path stands for; None for anything that is not a page's file."""
    if path == WATCHER:
        return TYPES[".js"], (resources.files("wallprobe.gallery") / "static" / "live.js").read_bytes()
    if path == ANSWER:
        page = _file(root, query.get("page", [""])[0])
        return TYPES[".js"], f"wallprobeLive({sealed(_version(page))});".encode()
    found = _file(root, path)
    if found is None:
        return None
    try:
        data = found.read_bytes()
    except OSError:
        return None
    if found.suffix == ".html":
        data = data.replace(b"</head>", f'<script defer src="{WATCHER}"></script>\n</head>'.encode(), 1)
    return TYPES[found.suffix], data


def _version(page: Path | None) -> str:
    found = store.stamp(page) if page else None
    return "gone" if found is None else "-".join(map(str, found))


def _file(root: Path, path: str) -> Path | None:
    """The file of the site that a path names; None where it is none, hidden, of another type, or outside the site."""
    parts = [part for part in unquote(path).split("/") if part]
    if any(part.startswith(".") or "\\" in part or "\0" in part for part in parts):
        return None
    found = root.joinpath(*(parts or ["index.html"])).resolve()
    return found if found.is_relative_to(root) and found.suffix in TYPES and found.is_file() else None
