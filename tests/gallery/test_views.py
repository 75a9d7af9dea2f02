"""The index' search and tray, the compare view and the pages of runs in headless Chromium; and axe-core over all of them."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote

import pytest

pytestmark = pytest.mark.browser
READY = "[data-drawn='yes'] .js-line, [data-drawn='yes'] .mlayer path, [data-drawn='yes'] canvas, [data-drawn='yes'] .colored-tokens"


class Visit:
    """A page, and what it complained of or asked for."""

    def __init__(self, context: Any, url: str) -> None:
        self.page = context.new_page()
        self.problems: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.problems.append(message.text) if message.type in ("error", "warning") else None)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(url)

    def close(self) -> None:
        """Clean, no wider than the screen, and closed."""
        assert self.problems == []
        assert [url for url in self.asked if not url.startswith(("file://", "data:", "blob:"))] == []
        assert self.page.evaluate("window.pwned") is None
        assert self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
        self.page.close()


@pytest.fixture(scope="module", params=[("light", 1200), ("dark", 375)], ids=["light", "phone"])
def context(request: pytest.FixtureRequest, browser: Any) -> Iterator[Any]:
    scheme, width = request.param
    made = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
    yield made
    made.close()


@pytest.fixture(scope="module")
def desk(browser: Any) -> Iterator[Any]:
    made = browser.new_context(viewport={"width": 1200, "height": 900}, offline=True)
    yield made
    made.close()


def titles(page: Any) -> list[str]:
    return page.locator(".card:visible h3").all_inner_texts()


def shows(page: Any, count: int) -> None:
    """Wait until so many cards are shown."""
    page.wait_for_function("count => [...document.querySelectorAll('.card')].filter(card => card.offsetParent).length === count", arg=count)


def stems(whole: Path, start: str) -> list[str]:
    return sorted(path.stem for path in (whole / "results").glob(f"{start}*.html"))


def test_index_filters_sorts_and_remembers_in_its_address(desk: Any, whole: Path) -> None:
    visit = Visit(desk, (whole / "index.html").as_uri())
    page = visit.page
    assert len(titles(page)) == 11
    page.locator("select[name=kind]").select_option("Evaluation")
    assert page.locator("#found").inner_text() == "3 of 11"
    page.locator("select[name=condition]").select_option("p5")
    assert [title.split(":")[0] for title in titles(page)] == ["p5"]
    page.get_by_role("button", name="Clear").click()
    shows(page, 11)  # the page comes to it after the form has
    page.locator("select[name=verdict]").select_option("SOUND")
    assert titles(page) == ["Judged SOUND."]
    assert page.locator("select[name=seed] option").all_inner_texts() == ["any", "7 (1)", "42 (9)"]
    page.get_by_role("button", name="Clear").click()
    shows(page, 11)
    page.locator("input[name=from]").fill("2026-01-03")
    assert len(titles(page)) == 2  # the runs; every sample is of the day before
    page.locator("input[name=from]").fill("")
    page.locator("select[name=model]").select_option("p5")
    assert page.locator("#found").inner_text() == "4 of 11"  # its evaluation, its page, and two interchanges from it
    assert "#model=p5" in page.url
    page.reload()
    assert page.locator("select[name=model]").input_value() == "p5"
    assert 0 < len(titles(page)) < 11
    page.get_by_role("searchbox").fill("nothing says this")
    assert page.locator("#found").inner_text().startswith("Nothing fits")
    assert page.locator(".group:visible").count() == 0
    visit.close()


def test_index_is_led_by_the_keyboard_from_search_to_a_page(desk: Any, whole: Path) -> None:
    visit = Visit(desk, (whole / "index.html").as_uri())
    page = visit.page
    page.keyboard.press("/")
    page.keyboard.type("wall stands c0")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.closest('.card') !== null")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("Enter")
    page.wait_for_url("**/results/eval-c0-*.html")
    visit.close()


def test_tray_leads_two_results_of_one_kind_to_the_compare_page(desk: Any, whole: Path) -> None:
    visit = Visit(desk, (whole / "index.html").as_uri())
    page = visit.page
    boxes = page.get_by_role("checkbox", name="Compare: c0 imports")
    assert page.locator("#tray").is_hidden()
    boxes.first.check()
    page.get_by_role("checkbox", name="Compare: p5: entropy error").check()
    assert "choose results of one kind" in page.locator("#tray-told").inner_text()
    assert page.locator("#tray-go").is_hidden()
    page.get_by_role("checkbox", name="Compare: p5: entropy error").uncheck()
    boxes.nth(1).focus()
    page.keyboard.press("Space")
    page.locator("#tray-go").click()
    page.locator("#difference .hm, #difference image").first.wait_for()
    assert page.locator("#chosen li").count() == 2
    visit.close()


def test_compare_opens_where_two_differ_most_and_is_right_about_it(desk: Any, whole: Path, samples: ModuleType) -> None:
    first, second = stems(whole, "interchange")
    visit = Visit(desk, f"{(whole / 'compare.html').as_uri()}#{first}&{second}")
    page = visit.page
    page.locator("#difference .hm, #difference image").first.wait_for()
    told = page.locator("#told").inner_text()
    one, two = (samples.interchange(lift=lift).data["p_import"].values[5, 1] for lift in (0.1, 0.0))
    assert first.startswith("interchange-p1")
    assert "differ most in p_import at layer 5, index 4" in told
    assert f"{one:.4g} and {two:.4g}" in told
    assert told.endswith("the intervals do not overlap")
    drawn = page.evaluate("document.getElementById('difference').data[0].z")
    wanted = samples.interchange().data["p_import"].values - samples.interchange(lift=0.1).data["p_import"].values
    assert [value for row in drawn for value in row] == pytest.approx(wanted.T.ravel().tolist(), abs=1e-6)
    page.locator("#selects label", has_text="Along").locator("select").select_option("index")
    assert page.evaluate("document.getElementById('lines').data.filter(one => one.name).map(one => one.x)") == [[3, 4], [3, 4]]
    page.get_by_role("button", name="Remove p1 to c0").click()
    page.locator("#difference-panel").wait_for(state="hidden")
    page.locator("#add").select_option(first)
    page.locator("#difference .hm, #difference image").first.wait_for()
    assert page.locator("#chosen li").count() == 2
    visit.close()


def test_compare_tells_of_names_it_does_not_know_and_of_mixed_kinds(desk: Any, whole: Path) -> None:
    known, other = stems(whole, "eval-p5")[0], stems(whole, "interchange")[0]
    attack = quote("<img src=x onerror=window.pwned=9>", safe="")
    visit = Visit(desk, f"{(whole / 'compare.html').as_uri()}#{known}&{other}&{attack}&..%2F..%2Fx")
    visit.page.locator("#trouble").wait_for()
    told = visit.page.locator("#trouble").inner_text()
    assert "No result here is called <img src=x" in told
    assert "Only results of one kind share an axis" in told
    assert visit.page.locator("#chosen li").count() == 1
    visit.close()


def test_run_page_shows_curve_evaluation_and_every_example(desk: Any, whole: Path) -> None:
    visit = Visit(desk, (whole / "runs" / "c0@42.html").as_uri())
    page = visit.page
    page.locator("[data-figure='0'] .js-line").first.wait_for()
    heads = page.locator("[data-figure]", has=page.get_by_role("heading", name="Where each head looks, on 2 examples"))
    heads.scroll_into_view_if_needed()
    heads.locator("canvas").first.wait_for()
    choices = heads.locator("select option").all_inner_texts()
    assert len(choices) == 12
    assert {choices[0], choices[6]} == {"example 1 (c0), layer 0", "example 2 (c0 noise), layer 0"}
    heads.locator("[data-step='1']").focus()
    page.keyboard.press("Enter")
    assert heads.locator("select").input_value() == "6"
    assert page.locator("#measured").is_visible()
    assert page.locator(".plain a").count() == 6
    visit.close()


def test_a_dark_page_prints_light_with_all_its_figures(desk: Any, whole: Path) -> None:
    visit = Visit(desk, (whole / "results" / f"{stems(whole, 'eval-c0')[0]}.html").as_uri())
    page, paper = visit.page, "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="dark")
    page.locator(READY).first.wait_for()
    dark = page.evaluate(paper)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(paper) == "rgb(251, 250, 247)" != dark
    assert page.locator("[data-figure][data-drawn='yes']").count() == page.locator("[data-figure]").count() >= 3
    ink = "document.querySelector('.chart').layout.font.color"
    assert page.evaluate(ink) == "#1c1e21"
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(paper) == dark
    assert page.evaluate(ink) == "#e9e7e2"
    visit.close()


AXE_PAGES = ["index.html", "COMPARE", "runs/c0@42.html", "interchange-p5", "eval-script"]


@pytest.mark.parametrize("name", AXE_PAGES)
def test_axe_finds_no_serious_violation(context: Any, whole: Path, name: str) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python", reason="the accessibility run needs axe-playwright-python (pip install 'wallprobe[dev]')"
    )
    source = (Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
    if name == "COMPARE":
        url = f"{(whole / 'compare.html').as_uri()}#{'&'.join(stems(whole, 'interchange'))}"
    else:
        url = (whole / name if name.endswith(".html") else whole / "results" / f"{stems(whole, name)[0]}.html").as_uri()
    visit = Visit(context, url)
    for section in visit.page.query_selector_all("[data-figure]"):
        section.scroll_into_view_if_needed()
        visit.page.wait_for_timeout(100)
    if name not in ("index.html", "COMPARE"):
        visit.page.locator(READY).first.wait_for()
    visit.page.evaluate(source)
    found = visit.page.evaluate("axe.run(document, {resultTypes: ['violations'], preload: false}).then(found => found.violations)")
    serious = [f"{item['id']}: {item['nodes'][0]['html'][:120]}" for item in found if item["impact"] in ("serious", "critical")]
    assert serious == []
    visit.close()
