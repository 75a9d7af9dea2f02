"""The gallery: Results -> pages that open from a folder, offline. Knows nothing of models; nothing here imports torch.

The package can be called: `wallprobe.gallery(...)` builds the pages (see `asked.gallery`).
"""

import sys
from types import ModuleType
from typing import Any

from wallprobe.gallery.asked import gallery
from wallprobe.gallery.build import Site, build, build_site
from wallprobe.gallery.exhibit import Exhibit, Figure, Frame, Glance, Panel, Table, chart

__all__ = ["Exhibit", "Figure", "Frame", "Glance", "Panel", "Site", "Table", "build", "build_site", "chart", "gallery"]


class _Callable(ModuleType):
    """A folder and a function share the name `wallprobe.gallery`: importing the one must not hide the other."""

    def __call__(self, *arguments: Any, **options: Any) -> Site:
        return gallery(*arguments, **options)


sys.modules[__name__].__class__ = _Callable
