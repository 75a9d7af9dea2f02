"""The probes' page: one step a target, scores beside shuffled labels, the wall; in headless Chromium in both themes and on a phone."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wallprobe.gallery import build_site
from wallprobe.gallery.exhibits.probe import exhibit
from wallprobe.store.results import load_result

TARGETS = ["the next token", "the rule's slope a", "the entropy of the next token"]
INKED = """box => [...box.querySelectorAll('.cartesianlayer .mlayer path, .cartesianlayer .mlayer image, .heatmaplayer image')]
  .filter(mark => { const size = mark.getBoundingClientRect(); return size.width > 1 || size.height > 1; }).length"""


def test_a_step_for_each_target_with_the_control_beside(samples: Any) -> None:
    result = samples.probe()
    page = exhibit(result)
    maps, lines = page.sections
    assert [frame.label for frame in maps.frames] == TARGETS
    assert [frame.label for frame in lines.frames] == TARGETS
    assert [panel.label for panel in maps.frames[0].panels] == ["accuracy", "shuffled labels", "selectivity"]
    assert [panel.label for panel in maps.frames[2].panels] == ["R²", "shuffled labels", "selectivity"]
    drawn = np.array(maps.frames[0].panels[0].spec["data"][0]["z"], dtype=float)
    np.testing.assert_allclose(drawn, result.data["accuracy"].sel(target="token").values, atol=1e-4)
    of_entropy = maps.frames[2].panels[0].spec["data"][0]["z"]
    assert all(row[0] is None and row[1] is not None for row in of_entropy)
    assert page.title == result.summary["finding"]


def test_wall_stands_after_the_last_supervised_index(samples: Any) -> None:
    for section in exhibit(samples.probe()).sections:
        (shape,) = [one for one in section.frames[0].panels[0].spec["layout"]["shapes"] if one["type"] == "line"]
        assert shape["x0"] == 4.5


def test_exact_answer_stands_beside_the_probe_where_there_is_one(samples: Any) -> None:
    lines = exhibit(samples.probe()).sections[1]
    named = [[trace["name"] for trace in frame.panels[0].spec["data"] if "name" in trace] for frame in lines.frames]
    assert named == [["probe", "exact answer", "shuffled labels"]] * 2 + [["probe", "shuffled labels"]]


def test_a_result_without_the_arrays_still_has_a_page(samples: Any, tmp_path: Path) -> None:
    bare = samples.plugin("probe", "no arrays")
    assert exhibit(load_result(bare.save(tmp_path))).title == "Echo says no arrays"


@pytest.fixture(scope="module")
def pages(samples: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("probes")
    samples.probe().save(root / "results")
    samples.probe(samples.ATTACK, layers=1, indices=7).save(root / "results")
    return sorted((build_site(root / "results", root / "site", exhibits={"probe": exhibit}).index.parent / "results").glob("*.html"))


@pytest.fixture(scope="module", params=[("light", 1200), ("dark", 375)], ids=["light", "phone"])
def context(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    scheme, width = request.param
    made = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    yield made
    made.close()


@pytest.mark.browser
def test_every_target_draws_and_nothing_is_injected(context: Any, pages: list[Path]) -> None:
    assert len(pages) == 2
    for path in pages:
        page, problems = context.new_page(), []
        page.on("console", lambda message, into=problems: into.append(message.text) if message.type in ("error", "warning") else None)
        page.on("pageerror", lambda error, into=problems: into.append(str(error)))
        page.goto(path.as_uri())
        section = page.locator("[data-figure]").first
        section.scroll_into_view_if_needed()
        for place in range(len(TARGETS)):
            section.locator("select").select_option(str(place))
            end = time.monotonic() + 8
            while not all(box.evaluate(INKED) for box in section.locator(".chart").element_handles()):
                assert time.monotonic() < end, "a heatmap was not drawn"
                time.sleep(0.05)
        assert section.locator(".chart").count() == 3
        assert page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        assert page.evaluate("window.pwned") is None
        assert problems == []
