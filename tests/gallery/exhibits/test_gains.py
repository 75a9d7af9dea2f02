"""Pages of the gains' instruments: what they show is what was measured, and a Result without its arrays still gets a page."""

from dataclasses import replace

import numpy as np
import pytest

from tests.gallery.samples import gains, manifest
from wallprobe.gallery.build import render
from wallprobe.gallery.exhibits import gains as gains_exhibit
from wallprobe.gallery.exhibits import inside, scaling
from wallprobe.hooks.gains.scaling import published_points
from wallprobe.hooks.gains.scaling import scaling as fit_law
from wallprobe.store.results import Result, dataset

LAYERS = 5


def by_layer(kind: str, names: list[str]) -> Result:
    values = {name: (("layer",), np.linspace(1, 2, LAYERS) + place, "1", name) for place, name in enumerate(names)}
    summary = {"model": "m", "n_prompts": 4, "finding": f"A finding on {kind}."}
    return Result(kind, dataset({"layer": list(range(LAYERS))}, values, model="m"), ("layer",), summary, manifest("m"))


def test_the_scaling_page_has_points_band_and_the_published_rows() -> None:
    result = fit_law(published_points(), source="published", draws=50)
    page = scaling.exhibit(result)
    law = page.sections[0].frames[0].panels[0].spec
    names = [trace.get("name") for trace in law["data"]]
    assert names == [None, "95 % of a new model", "fitted", "measured", "published extrapolation"]
    points = law["data"][3]
    assert points["y"][-1] == pytest.approx(7.714583)
    low, high = law["data"][0]["y"], law["data"][1]["y"]
    assert all(below < above for below, above in zip(low, high, strict=True))
    assert law["data"][4]["y"] == [13.0, 18.0, 30.0, 50.0]
    assert "p exceeds 0.05 for 2" in page.sections[1].title
    text, _ = render(result, {"scaling": scaling.exhibit}, "scaling")
    assert "failed" not in text
    assert "anchored at the largest model" in text


def test_efficiency_by_size_is_drawn_with_the_critical_size_or_the_reason_for_none() -> None:
    points = [replace(point, quality=0.9 * point.n_params**0.1) for point in published_points()]
    result = fit_law(points, draws=50)
    figure = scaling.exhibit(result).sections[-1]
    spec = figure.frames[0].panels[0].spec
    assert spec["data"][0]["y"] == pytest.approx([point.quality / point.gain for point in points])
    assert figure.title == "No critical size: eta over these models"
    assert result.summary["n_star_reason"] in figure.caption
    known = [replace(point, quality=8.0 - 900 * point.n_params**-0.3, gain=0.02 * point.n_params**0.25) for point in points]
    figure = scaling.exhibit(fit_law(known, draws=50)).sections[-1]
    assert figure.title.startswith("A unit of gain buys most at ")
    assert len(figure.frames[0].panels[0].spec["layout"]["shapes"]) == 2


def test_the_flow_page_shows_first_choices_and_both_efficiencies() -> None:
    result = by_layer("flow", [*inside.ENTROPY, *inside.LOSS, *inside.FIRST, *inside.RANKS])
    for name in ("eta", "eta_ppl"):
        for suffix in ("", "_no_sink"):
            result.summary.update({f"{name}{suffix}{end}": 0.5 for end in ("", "_low", "_high")})
    result.summary["unigram_reason"] = None
    page = inside.flow(result)
    assert len(page.sections) == 5
    assert page.sections[2].title.startswith("The lens puts 400.0% of next tokens first")
    assert [row[:2] for row in page.sections[4].rows][2] == ["PPL unigram / PPL, per unit of gain", "all tokens"]
    result.summary["unigram_reason"] = "too few"
    assert len(inside.flow(result).sections[4].rows) == 2


def test_flow_and_maps_pages() -> None:
    flow = by_layer("flow", [*inside.ENTROPY, *inside.LOSS, *inside.RANKS])
    page = inside.flow(flow)
    assert len(page.sections) == 3
    assert page.sections[0].title == "The lens is surest after layer 0, at 1 nats"
    maps = by_layer("maps", [*inside.MAPS, *inside.ENERGY, "sigma_v", "sigma_ov", "contracting_share", "trace", "gap", "harmonic_share"])
    page = inside.maps(maps)
    assert [type(section).__name__ for section in page.sections] == ["Figure", "Figure", "Table"]
    assert len(page.sections[2].rows) == LAYERS
    for result, maker in ((flow, inside.flow), (maps, inside.maps)):
        assert "failed" not in render(result, {result.kind: maker}, "x")[0]


def test_the_rescale_page_steps_through_factors_and_marks_controls() -> None:
    shape = (2, 3, 3)
    values = {
        "delta_nll": (("layer", "scale", "place"), np.arange(18.0).reshape(shape), "nats", "change"),
        "is_control": (("layer", "scale", "place"), np.stack([np.zeros(shape[1:]), np.ones(shape[1:])]), "1", "control"),
    }
    data = dataset({"layer": [29, 11], "scale": [0.0, 1.0, 2.0], "place": ["all", "sink", "non_sink"]}, values)
    result = Result("rescale", data, ("layer", "scale", "place"), {"branch": "mlp", "finding": "F."}, manifest("m"))
    figure = inside.rescale(result).sections[0]
    assert [frame.label for frame in figure.frames] == ["times 0", "times 2"]
    bars = figure.frames[1].panels[0].spec["data"]
    assert bars[0]["x"] == ["29", "11 (control)"]
    assert bars[1]["y"] == [7.0, 16.0]


def test_sinks_are_shown_token_by_token_and_hostile_tokens_are_escaped() -> None:
    result = gains()
    result.summary["n_sinks"] = 1
    result.manifest["peaks"] = [{"tokens": ["<script>alert(1)</script>", "b"], "times_median": [120.0, 1.0]}]
    page = gains_exhibit.exhibit(result)
    panel = page.sections[-1].frames[0].panels[0]
    assert panel.element == "ColoredTokens"
    assert panel.spec["values"] == [pytest.approx(np.log10(120.0)), 0.0]
    assert "<script>alert(1)" not in render(result, {"gains": gains_exhibit.exhibit}, "x")[0]


@pytest.mark.parametrize("maker", [inside.flow, inside.maps, inside.rescale, scaling.exhibit])
def test_a_result_without_its_arrays_gets_a_plain_page(maker) -> None:
    result = by_layer("other", ["something"])
    assert maker(result).title == "A finding on other."


def test_arms_without_sinks_are_left_out_where_no_token_is_one() -> None:
    result = by_layer("flow", [*inside.ENTROPY, *inside.LOSS, *inside.RANKS])
    for name in ("erank", "participation"):
        result.data[f"{name}_no_sink"].values[:] = result.data[name].values
    ranks = inside.flow(result).sections[2]
    assert [trace["name"] for trace in ranks.frames[0].panels[0].spec["data"]] == ["effective rank", "participation ratio"]
    assert ranks.caption.endswith("No token is a sink.")
    assert ranks.title.startswith("The states' effective rank goes from ")


@pytest.mark.parametrize(("size", "told"), [(0.5, "below 1 in 5 of 5 layers"), (2.0, "below 1 in 0 of 5 layers")])
def test_the_maps_title_follows_the_data(size: float, told: str) -> None:
    maps = by_layer("maps", [*inside.MAPS, *inside.ENERGY, "sigma_v", "sigma_ov", "contracting_share", "trace", "gap", "harmonic_share"])
    maps.data["map_v"].values[:] = size
    assert told in inside.maps(maps).sections[0].title


def test_the_rescale_table_has_a_row_a_layer_and_factor_and_no_place_that_nothing_is_at() -> None:
    shape = (1, 2, 3)
    change = np.arange(6.0).reshape(shape)
    change[:, :, 1] = np.nan
    values = {
        "delta_nll": (("layer", "scale", "place"), change, "nats", "change"),
        "is_control": (("layer", "scale", "place"), np.zeros(shape), "1", "control"),
    }
    data = dataset({"layer": [3], "scale": [0.0, 2.0], "place": ["all", "sink", "non_sink"]}, values)
    page = inside.rescale(Result("rescale", data, ("layer", "scale", "place"), {"branch": "mlp"}, manifest("m")))
    assert [trace["name"] for trace in page.sections[0].frames[0].panels[0].spec["data"]] == ["all tokens", "other tokens"]
    assert page.sections[1].rows == [["3", "0", 0.0, 2.0], ["3", "2", 3.0, 5.0]]
