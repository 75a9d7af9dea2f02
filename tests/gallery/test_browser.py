"""The pages in headless Chromium from file://: all figures visible, nothing injected, nothing asked of the network."""

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.browser
KINDS = ["interchange-p5", "eval-c0", "gains-hugging", "attention-c0"]
HOSTILE = ["interchange-script", "eval-script", "gains-s-script", "attention-hostile", "echo-script"]
Opener = Callable[..., Any]


class Watch:
    """A page and everything it complained of or asked for."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.problems: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.problems.append(message.text) if message.type in ("error", "warning", "trace") else None)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def clean(self) -> None:
        assert self.problems == []
        assert [url for url in self.requests if not url.startswith(("file://", "data:", "blob:"))] == []
        assert self.page.evaluate("window.pwned") is None


@pytest.fixture(scope="module")
def contexts(browser: Any) -> Iterator[dict[tuple[str, int], Any]]:
    made = {
        (scheme, width): browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        for scheme, width in (("light", 1200), ("dark", 375))
    }
    yield made
    for context in made.values():
        context.close()


@pytest.fixture(scope="module")
def visit(contexts: dict[tuple[str, int], Any], site: Path) -> Opener:
    """Opens a page of the site; one that another test has only read is handed out again, for plotly takes a second to load."""
    opened: dict[tuple[str, str, int], Watch] = {}

    def go(start: str, scheme: str = "light", width: int = 1200, *, fresh: bool = False) -> Watch:
        if fresh or (start, scheme, width) not in opened:
            found = [path for path in sorted((site / "results").glob("*.html")) if path.name.startswith(start)]
            watch = opened[start, scheme, width] = Watch(contexts[scheme, width].new_page())
            watch.page.goto((site / "index.html" if start == "index" else found[0]).as_uri())
        return opened[start, scheme, width]

    return go


MARKS = """box => box.classList.contains('chart')
  ? [...box.querySelectorAll('.cartesianlayer .mlayer path, .cartesianlayer .mlayer image')].filter(mark => {
      const size = mark.getBoundingClientRect(); return size.width > 1 || size.height > 1; }).length
  : [...box.querySelectorAll('.colored-tokens > span, canvas')].filter(mark => mark.getBoundingClientRect().width > 5).length"""
INK = """box => [...box.querySelectorAll('canvas')].map(canvas => {
  const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
  return new Set(new Uint32Array(pixels.buffer)).size; })"""
CONTRAST = """() => {
  const light = value => { const c = value / 255; return c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4; };
  const luminance = ([r, g, b]) => .2126 * light(r) + .7152 * light(g) + .0722 * light(b);
  const rgb = text => text.match(/[\\d.]+/g).map(Number);
  const back = node => {
    for (; node; node = node.parentElement) {
      const c = rgb(getComputedStyle(node).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c;
    }
    return [255, 255, 255]; };
  return [...document.querySelectorAll('h1, h2, h3, p, a, code, th, td, summary, button, time')]
    .filter(node => node.offsetParent && !node.closest('.cv') && !node.disabled)
    .map(node => {
      const [high, low] = [luminance(rgb(getComputedStyle(node).color)), luminance(back(node))].sort((x, y) => y - x);
      return [node.outerHTML.slice(0, 80), (high + .05) / (low + .05)]; })
    .filter(([, ratio]) => ratio < 4.5); }"""


def until(holds: Callable[[], bool], seconds: float = 8.0) -> None:
    """Wait for the page; playwright's own wait_for_function needs the eval that the pages' policy forbids."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "the page did not get there"
        time.sleep(0.03)


def drawn(section: Any) -> bool:
    return section.get_attribute("data-drawn") == "yes" and all(box.evaluate(MARKS) for box in section.query_selector_all(".chart, .cv"))


def draw_all(page: Any) -> list[Any]:
    """Scroll to each figure and wait until every drawing in it has marks."""
    sections = page.query_selector_all("[data-figure]")
    for section in sections:
        section.scroll_into_view_if_needed()
        until(partial(drawn, section))
    return sections


VISITS = [(start, *view) for start in KINDS for view in (("light", 1200), ("dark", 375))]
VISITS += [("interchange-script", "dark", 375), ("eval-script", "light", 1200), ("gains-s-script", "dark", 375)]
VISITS += [("attention-hostile", "light", 1200), ("echo-script", "dark", 375)]


@pytest.mark.parametrize(("start", "scheme", "width"), VISITS)
def test_every_figure_is_visible_and_the_page_is_clean(visit: Opener, start: str, scheme: str, width: int) -> None:
    watch = visit(start, scheme, width)
    sections = draw_all(watch.page)
    assert len(sections) >= (0 if start.startswith("echo") else 3)
    for section in sections:
        for box in section.query_selector_all(".chart, .cv"):
            size = box.bounding_box()
            assert size["width"] > 100
            assert size["height"] > (150 if "chart" in box.get_attribute("class") else 20)
            assert box.evaluate(MARKS) > 0
            assert all(colors > 3 for colors in box.evaluate(INK))
    assert watch.page.evaluate(CONTRAST) == []
    assert watch.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    watch.clean()


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 375)])
def test_index_is_clean_and_leads_to_every_page(visit: Opener, scheme: str, width: int) -> None:
    watch = visit("index", scheme, width)
    assert watch.page.locator(".card").count() == 9
    assert watch.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth") <= 0
    assert watch.page.evaluate(CONTRAST) == []
    watch.page.locator(".card a").first.click()
    watch.page.wait_for_url("**/results/*.html")
    assert watch.page.locator("h1").is_visible()
    watch.clean()


def test_tokens_read_as_they_are(visit: Opener, samples: Any) -> None:
    watch = visit("attention-hostile")
    draw_all(watch.page)
    shown = watch.page.eval_on_selector_all(".colored-tokens > span > span", "spans => spans.map(span => span.textContent)")
    assert shown[:4] == [token.replace(" ", "\u00a0") for token in samples.HOSTILE[:4]]
    assert shown[6] == "&lt;b&gt;"


def test_figures_wait_until_they_are_scrolled_to(visit: Opener) -> None:
    watch = visit("gains-hugging", "dark", 375, fresh=True)
    until(lambda: watch.page.locator("[data-figure]").first.get_attribute("data-drawn") == "yes")
    last = watch.page.locator("[data-figure]").last
    assert last.get_attribute("data-drawn") is None
    last.scroll_into_view_if_needed()
    until(lambda: last.get_attribute("data-drawn") == "yes")
    watch.clean()


def test_stepping_shows_another_example_by_keyboard(visit: Opener, samples: Any) -> None:
    watch = visit("interchange-p5")
    draw_all(watch.page)
    wanted = [str(token) for token in samples.interchange().data["example_src_token"].values[1]]
    section = watch.page.locator("[data-figure]").last
    section.locator("[data-step='1']").focus()
    watch.page.keyboard.press("Enter")
    assert section.locator("select").input_value() == "1"
    row = section.locator(".colored-tokens").first
    until(lambda: row.text_content() == "".join(wanted))
    watch.clean()


def test_attention_keeps_its_size_when_the_window_is_resized(visit: Opener) -> None:
    watch = visit("attention-c0", fresh=True)
    draw_all(watch.page)
    for width, height in ((700, 900), (1200, 2500), (1200, 900)):
        watch.page.set_viewport_size({"width": width, "height": height})
        watch.page.wait_for_timeout(250)
        widths = watch.page.eval_on_selector_all(".AttentionHeads canvas", "all => all.map(one => one.getBoundingClientRect().width)")
        assert max(widths) > 400
        assert min(widths) > 60
    watch.clean()


def test_attention_head_is_chosen_by_keyboard(visit: Opener) -> None:
    watch = visit("attention-c0")
    draw_all(watch.page)
    tile = watch.page.get_by_role("button", name="Show head 5.3")
    tile.focus()
    watch.page.keyboard.press("Enter")
    watch.page.get_by_text("5.3 Zoomed").wait_for()
    assert watch.page.get_by_text("5.3 Zoomed").is_visible()
    watch.clean()


def test_theme_button_changes_page_and_charts_and_is_remembered(visit: Opener) -> None:
    watch = visit("eval-c0", fresh=True)
    draw_all(watch.page)
    paper = "getComputedStyle(document.body).backgroundColor"
    line = "[...document.querySelector('.chart').querySelectorAll('.cartesianlayer .js-line')].at(-1).style.stroke"
    light, light_line = watch.page.evaluate(paper), watch.page.evaluate(line)
    watch.page.get_by_role("button", name="Switch to the dark theme").click()
    until(lambda: watch.page.evaluate(paper) != light)
    until(lambda: watch.page.evaluate(line) != light_line)
    watch.page.reload()
    assert watch.page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert watch.page.evaluate(paper) != light
    watch.page.evaluate("localStorage.clear()")
    watch.clean()


def test_heatmap_keeps_our_scale_with_the_floor_in_grey(visit: Opener) -> None:
    watch = visit("interchange-p5")
    draw_all(watch.page)
    scale = watch.page.evaluate("document.querySelector('.chart')._fullLayout.coloraxis.colorscale")
    theme = watch.page.evaluate(
        "['ramp-floor', 'ramp-6'].map(name => getComputedStyle(document.documentElement).getPropertyValue('--' + name).trim())"
    )
    assert [color for _, color in scale[:2]] == [theme[0], theme[0]]
    assert scale[1][0] == pytest.approx((1 / 17) / 0.3888, rel=1e-3)
    assert scale[-1] == [1, theme[1]]


def test_copy_button_copies_the_exact_command(visit: Opener, contexts: dict[tuple[str, int], Any], samples: Any) -> None:
    contexts["light", 1200].grant_permissions(["clipboard-read", "clipboard-write"])
    watch = visit("echo-script")
    watch.page.get_by_role("button", name="Copy").click()
    watch.page.get_by_text("Copied").wait_for()
    assert watch.page.evaluate("navigator.clipboard.readText()") == samples.ATTACK
    watch.clean()
