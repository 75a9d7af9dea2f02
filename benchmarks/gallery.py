"""How long the gallery takes: a first build, a rebuild with nothing new, one with one new Result, and a page of 30 figures in a browser.

    python benchmarks/gallery.py [--results 200] [--cards 1000]

Results are made by numpy after the instruments' schemas (tests/gallery/samples.py). Wall time and CPU time; each
rebuild is told twice: within the process (as `gallery serve` does it) and as the command, start-up included.
"""

import argparse
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from wallprobe.gallery import Exhibit, Figure, build_site
from wallprobe.gallery.exhibits import attention, evaluation, gains, interchange
from wallprobe.gallery.pages import result_page
from wallprobe.store.runs import list_runs

HERE = Path(__file__).resolve().parent


def samples() -> ModuleType:
    spec = importlib.util.spec_from_file_location("samples", HERE.parent / "tests" / "gallery" / "samples.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def store(made: ModuleType, root: Path, count: int) -> None:
    """`count` Results, an attention of 6 layers and 4 heads among every ten."""
    for number in range(count):
        name = f"run{number}"
        kinds: list[Callable[[], Any]] = [
            lambda name=name: made.attention(name),
            *[lambda name=name: made.interchange(f"{name} to c0", indices=tuple(range(15)))] * 3,
            *[lambda name=name: made.evaluation(name)] * 3,
            *[lambda name=name: made.gains(name)] * 3,
        ]
        kinds[number % 10]().save(root)


def cpu_seconds() -> float:
    """CPU time of this process and of the commands it ran."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def timed(what: str, work: Callable[[], Any]) -> Any:
    wall, cpu = time.perf_counter(), cpu_seconds()
    found = work()
    print(f"{what:<58} {time.perf_counter() - wall:7.2f} s wall {cpu_seconds() - cpu:7.2f} s CPU")
    return found


def command(root: Path, out: Path) -> None:
    script = "import sys; from wallprobe.cli import main; sys.argv[0] = 'wallprobe'; main()"
    arguments = ["gallery", "--results", str(root), "--out", str(out), "--runs", str(root)]
    subprocess.run([sys.executable, "-c", script, *arguments], check=True, stdout=subprocess.DEVNULL)


def in_browser(pages: dict[str, Path]) -> None:
    """Time from the navigation to the first paint and to the first figure (or the filters), in headless Chromium; medians of 5 visits."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        print("no chromium: the browser was left out")
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for what, path in pages.items():
            took, painted = [], []
            for _ in range(5):
                page = browser.new_page(viewport={"width": 1200, "height": 900})
                start = time.perf_counter()
                page.goto(path.as_uri())
                if "figure" in what:
                    page.locator("[data-drawn='yes'] .js-line, [data-drawn='yes'] .mlayer path").first.wait_for()
                else:
                    page.locator("#filters").wait_for()
                took.append(time.perf_counter() - start)
                painted.append(page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1e3)
                if "cards" in what:
                    typed = time.perf_counter()
                    page.get_by_role("searchbox").fill("run17")
                    page.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
                    searched = time.perf_counter() - typed
                page.close()
            extra = f", a search in {searched:.2f} s" if "cards" in what else ""
            told = f"painted after {sorted(painted)[2]:.2f} s, {path.stat().st_size / 1e6:.2f} MB{extra}"
            print(f"{what:<58} {sorted(took)[2]:7.2f} s wall, {told}")
        browser.close()


def many_figures(made: ModuleType, out: Path, count: int = 30) -> Path:
    """One page with that many figures beside the site's assets."""
    result = made.interchange(indices=tuple(range(15)))
    drawn: list[Figure] = []
    for maker, each in ((interchange, result), (evaluation, made.evaluation()), (gains, made.gains()), (attention, made.attention())):
        drawn += [section for section in maker.exhibit(each).sections if isinstance(section, Figure)]
    sections = tuple((drawn * count)[:count])
    path = out / "results" / "figures.html"
    path.write_text(result_page(result, Exhibit("Thirty figures", sections), "figures"), encoding="utf-8")
    return path


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--results", type=int, default=200)
    parser.add_argument("--cards", type=int, default=1000)
    given = parser.parse_args()
    made = samples()
    with tempfile.TemporaryDirectory() as temporary:
        root, out = Path(temporary) / "results", Path(temporary) / "site"
        store(made, root, given.results)
        runs = list_runs(root)
        timed(f"first build, {given.results} results and {len(runs)} runs", lambda: build_site(root, out, runs=runs))
        timed("again, nothing new", lambda: build_site(root, out, runs=runs))
        made.evaluation("new").save(root)
        timed("again, one result new", lambda: build_site(root, out, runs=runs))
        timed("the command, nothing new", lambda: command(root, out))
        made.evaluation("newer").save(root)
        timed("the command, one result new", lambda: command(root, out))
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file() and path.parent.name != "assets")
        print(f"the site without its shared bundles: {size / 1e6:.1f} MB")
        pages = {"a page of 30 figures, to the first one drawn": many_figures(made, out)}
        many = Path(temporary) / "many"
        for number in range(given.cards):
            made.evaluation(f"run{number}").save(many)
        timed(f"first build, {given.cards} results", lambda: build_site(many, Path(temporary) / "much"))
        timed("again, nothing new", lambda: build_site(many, Path(temporary) / "much"))
        pages[f"an index of {given.cards} cards"] = Path(temporary) / "much" / "index.html"
        in_browser(pages)


if __name__ == "__main__":
    main()
