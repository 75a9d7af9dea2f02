"""The shared assets/ folder: our CSS and scripts, plotly's bundle and circuitsvis's, each a classic script that file:// can load."""

import functools
import importlib.util
from importlib import resources
from pathlib import Path

from wallprobe.errors import WallprobeError

OWN = ("gallery.css", "gallery.js", "theme.js", "index.js", "compare.js", "single.js")
PLOTLY_JS, CIRCUITSVIS_JS = "plotly.min.js", "circuitsvis.js"
NAMES = (*OWN, PLOTLY_JS, CIRCUITSVIS_JS)


def files() -> dict[str, bytes]:
    """Every shared file by name.

    Raises:
        WallprobeError: if plotly or circuitsvis is not installed.
    """
    folder = resources.files("wallprobe.gallery") / "static"
    own = {name: (folder / name).read_bytes() for name in OWN}
    return own | {PLOTLY_JS: _plotly(), CIRCUITSVIS_JS: _circuitsvis()}


@functools.cache
def _plotly() -> bytes:
    """Its browser bundle, found without importing the package: no page is drawn in Python."""
    found = importlib.util.find_spec("plotly")
    bundle = Path(found.origin).parent / "package_data" / PLOTLY_JS if found and found.origin else None
    if bundle is None or not bundle.is_file():
        raise WallprobeError("the gallery needs plotly: pip install plotly")
    return bundle.read_bytes()


@functools.cache
def _circuitsvis() -> bytes:
    """Its browser bundle, found without importing the package, whose Python side would import torch."""
    found = importlib.util.find_spec("circuitsvis")
    bundle = Path(found.origin).parent / "dist" / "cdn" / "iife.js" if found and found.origin else None
    if bundle is None or not bundle.is_file():
        raise WallprobeError("the gallery needs circuitsvis with its browser bundle: pip install 'circuitsvis>=1.43,<2'")
    # A browser's developer tools would ask for the 7 MB source map that stays behind.
    return b"\n".join(line for line in bundle.read_bytes().splitlines() if not line.startswith(b"//# sourceMappingURL="))
