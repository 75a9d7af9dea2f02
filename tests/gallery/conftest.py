"""Stores and sites for the gallery's tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wallprobe.gallery import build_site
from wallprobe.gallery.exhibits import attention, evaluation, gains, interchange
from wallprobe.store.runs import find_run

MAKERS = {"attention": attention.exhibit, "eval": evaluation.exhibit, "gains": gains.exhibit, "interchange": interchange.exhibit}
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]


@pytest.fixture(scope="session")
def makers() -> dict[str, Any]:
    return MAKERS


@pytest.fixture(scope="session")
def site(samples: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A built site over every kind, sound, hostile and damaged."""
    root = tmp_path_factory.mktemp("gallery")
    store = samples.hostile_store(root / "results")
    return build_site(store, root / "site", exhibits=MAKERS).index.parent


@pytest.fixture(scope="session")
def whole(samples: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with two bundled runs, Results of theirs, two Results to compare and a hostile one."""
    root = tmp_path_factory.mktemp("whole")
    store = root / "results"
    for result in (samples.interchange(), samples.evaluation(), samples.attention(), samples.evaluation("p5"), samples.gains("c0")):
        result.save(store)
    samples.interchange("p1 to c0", lift=0.1).save(store)
    samples.evaluation(samples.ATTACK).save(store)
    samples.audited("SOUND").save(store)
    samples.attention("c0 noise", run="c0").save(store)
    return build_site(store, root / "site", runs=[find_run("c0"), find_run("p5")]).index.parent


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="the browser tests need playwright (pip install 'wallprobe[dev]')")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("the browser tests need Debian's chromium (apt-get install chromium)")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=ARGUMENTS)
        yield opened
        opened.close()
