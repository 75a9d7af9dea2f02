"""The exhibit of kind "sweep": where, over layers, indices and sites, the donor's answer or its rule crosses."""

from dataclasses import replace

import numpy as np

from wallprobe.findings import foremost
from wallprobe.gallery import charts
from wallprobe.gallery.exhibit import Exhibit, Figure, Frame, Glance, Table
from wallprobe.gallery.exhibits.interchange import answers, floor, heatmaps, strongest
from wallprobe.gallery.exhibits.table import headline, tables
from wallprobe.store.results import Result


def exhibit(result: Result) -> Exhibit:
    """Heatmaps of every site to step through, and the strongest cell of each against its controls."""
    src, dst = (str(result.data.attrs.get(key) or key) for key in ("src", "dst"))
    otherwise = f"Interchange from {src} to {dst}, every site"
    if not charts.has(result, "p_import", "p_rule") or result.data["p_import"].dims != ("site", "layer", "index"):
        return Exhibit(headline(result, otherwise), tables(result))
    sites = [str(site) for site in result.data["site"].values.tolist()]
    cut = {site: replace(result, data=result.data.isel(site=place, drop=True)) for place, site in enumerate(sites)}
    best = sites[foremost([float(np.nanmax(cut[site].data["p_import"].values)) for site in sites]) or 0]
    frames, height = [], 0
    for site in sorted(sites, key=lambda site: site != best):
        drawn = heatmaps(cut[site], src, dst)
        answer, rule = (charts.chance(float(np.nanmax(cut[site].data[name].values))) for name in ("p_import", "p_rule"))
        frames.append(Frame(drawn.frames[0].panels, f"{site}: answer {answer}, rule {rule}"))
        height = max(height, drawn.height)
    shown = heatmaps(cut[best], src, dst)
    title = f"{shown.title} (site {best})"
    sections: list[Figure | Table] = [replace(shown, title=title, frames=tuple(frames), height=height, stepper="site")]
    sections.append(answers(cut[best], *strongest(cut[best])))
    grid = cut[best].data["p_import"].values.astype(float)
    glance = Glance("cells", tuple(tuple(None if np.isnan(cell) else float(cell) for cell in row) for row in grid), floor(result))
    return Exhibit(headline(result, otherwise), tuple(sections), glance)
