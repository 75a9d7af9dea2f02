"""The exhibit of a sweep: the strongest site first, a heatmap for each, cells that cannot matter left empty."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from wallprobe.gallery.exhibits import sweep


@pytest.fixture
def swept(samples):
    """Two sites: an interchange, and a fainter copy whose last layer is empty."""
    one = samples.interchange()
    cells = one.data[[name for name in one.data if one.data[name].dims == ("layer", "index")]]
    faint = (cells * 0.1).where(cells["layer"] < 5)
    data = xr.concat([faint, cells], dim="site").assign_coords(site=["z", "resid_pre"]).transpose("site", "layer", "index")
    data.attrs = dict(one.data.attrs)
    return replace(one, kind="sweep", data=data, table=("site", "layer", "index"))


def test_every_site_has_a_heatmap_and_the_strongest_is_shown_first(swept):
    made = sweep.exhibit(swept)
    heat, bars = made.sections
    assert [frame.label.partition(":")[0] for frame in heat.frames] == ["resid_pre", "z"]
    assert "site resid_pre" in heat.title
    assert heat.stepper == "site"
    drawn = heat.frames[1].panels[0].spec["data"][0]["z"]
    assert drawn[5] == [None, None]
    assert drawn[4][1] == pytest.approx(0.1 * float(swept.data["p_import"].sel(site="resid_pre", layer=4, index=4)))
    assert "layer 5, index 4" in bars.title


def test_the_glance_is_the_strongest_site(swept):
    glance = sweep.exhibit(swept).glance
    assert np.allclose(np.array(glance.values), swept.data["p_import"].sel(site="resid_pre").values)


def test_a_sweep_without_its_grid_still_has_a_page(swept):
    made = sweep.exhibit(replace(swept, data=swept.data.isel(site=0, drop=True), table=("layer", "index")))
    assert made.sections
