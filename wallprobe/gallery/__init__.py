"""The gallery: Results -> pages that open from a folder, offline. Knows nothing of models; nothing here imports torch."""

from wallprobe.gallery.build import Site, build, build_site
from wallprobe.gallery.exhibit import Exhibit, Figure, Frame, Glance, Panel, Table, chart

__all__ = ["Exhibit", "Figure", "Frame", "Glance", "Panel", "Site", "Table", "build", "build_site", "chart"]
