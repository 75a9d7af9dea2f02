"""One zip, one file, one cell of a notebook: each shows everything without another file, and lets no text of a Result out."""

import re
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wallprobe.gallery import build_site
from wallprobe.gallery.single import CARRIED, write_single, write_zip
from wallprobe.store.runs import find_run


def test_zip_holds_the_site_in_one_folder_and_no_clock(samples: ModuleType, tmp_path: Path) -> None:
    samples.evaluation().save(tmp_path / "results")
    made = write_zip(tmp_path / "results", tmp_path / "a.zip", runs=[find_run("c0")])
    write_zip(tmp_path / "results", tmp_path / "b.zip", runs=[find_run("c0")])
    assert (made.pages, made.runs, made.index) == (1, 1, tmp_path / "a.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        archive.extractall(tmp_path / "there")
    build_site(tmp_path / "results", tmp_path / "site", runs=[find_run("c0")])
    there = tmp_path / "there" / "wallprobe-gallery"
    names = {str(path.relative_to(there)) for path in there.rglob("*") if path.is_file()}
    assert {"index.html", "compare.html", "assets/plotly.min.js", "runs/c0@42.html"} < names
    assert all((there / name).read_bytes() == (tmp_path / "site" / name).read_bytes() for name in names)
    assert not any(Path(name).name.startswith(".") for name in names)


@pytest.fixture(scope="module")
def page(samples: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("single")
    store = samples.hostile_store(root / "results")
    samples.attention("big", layers=10, heads=8, length=24).save(store)
    return write_single(store, root / "all.html", runs=[find_run("c0")]).index


def test_single_file_names_no_other_file_and_ends_no_script_early(page: Path, samples: ModuleType) -> None:
    text = page.read_text(encoding="utf-8")
    head, body = text.split("<body>", 1)
    assert "script-src 'sha256-" in head
    assert "unsafe-eval" not in head
    assert not re.search(r"<script[^>]*\ssrc=|<link[^>]*stylesheet", text)
    outside = re.sub(r"<script[^>]*>.*?</script>", "", body, flags=re.DOTALL)
    assert "window.pwned" not in outside
    assert samples.ATTACK not in text


@pytest.mark.browser
def test_single_file_leads_through_its_pages_and_back(page: Path, browser: Any, samples: ModuleType) -> None:
    context = browser.new_context(viewport={"width": 1100, "height": 900}, offline=True)
    shown = context.new_page()
    problems: list[str] = []
    asked: list[str] = []
    shown.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else None)
    shown.on("pageerror", lambda error: problems.append(str(error)))
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(page.as_uri())
    assert shown.locator(".card").count() == 11
    shown.get_by_role("searchbox").fill("the wall stands")
    assert shown.locator(".card:visible").count() == 2
    shown.locator(".card:visible a", has_text="c0: entropy error").click()
    shown.locator("[data-figure='0'][data-drawn='yes'] .mlayer path, [data-figure='0'] .js-line").first.wait_for()
    assert "/results/eval-c0-" in shown.url
    with shown.expect_download() as saved:
        shown.get_by_role("link", name="Values, CSV").click()
    assert Path(saved.value.path()).read_text(encoding="utf-8").startswith("position,")
    shown.get_by_role("link", name="c0", exact=True).click()
    shown.get_by_role("heading", name="Training", exact=True).wait_for()
    shown.go_back()
    shown.go_back()
    shown.get_by_role("searchbox").wait_for()
    assert shown.get_by_role("searchbox").input_value() == "the wall stands"
    shown.goto(f"{page.as_uri()}#/compare.html#" + "&".join(name for name in self_and_other(samples)))
    shown.locator("#lines .js-line").first.wait_for()
    assert len(shown.evaluate("document.getElementById('lines').data.filter(trace => trace.name)")) == 2
    assert problems == []
    assert [url for url in asked if not url.startswith(("file://", "data:", "blob:"))] == []
    assert shown.evaluate("window.pwned") is None
    context.close()


def self_and_other(samples: ModuleType) -> list[str]:
    """Stems of two evaluations, the second a hostile one."""
    from urllib.parse import quote

    from wallprobe.gallery.build import page_stem

    return [quote(page_stem(result.identity), safe="") for result in (samples.evaluation(), samples.evaluation(samples.ATTACK))]


def test_a_file_too_large_is_left_behind(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert '"results/eval-c0' in text
    carried = re.search(r'"files":\{(.*?)\}', text)
    assert carried
    assert not re.search(r"attention-big[^\"]*\.csv", carried[1])
    assert CARRIED < 10_000_000


@pytest.mark.browser
def test_a_notebook_cell_draws_its_exhibit_offline(browser: Any, samples: ModuleType, tmp_path: Path) -> None:
    shown = samples.evaluation(samples.ATTACK)._repr_html_()
    assert shown.startswith("<iframe title=")
    assert samples.ATTACK not in shown
    (tmp_path / "notebook.html").write_text(f"<!doctype html><title>cell</title>{shown}", encoding="utf-8")
    context = browser.new_context(viewport={"width": 1100, "height": 900}, offline=True)
    page = context.new_page()
    problems: list[str] = []
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.goto((tmp_path / "notebook.html").as_uri())
    frame = page.frame_locator("iframe")
    frame.locator("[data-figure='0'] .js-line").first.wait_for(timeout=20_000)
    assert frame.locator("h1").is_visible()
    assert problems == []
    assert page.evaluate("window.pwned") is None
    context.close()
