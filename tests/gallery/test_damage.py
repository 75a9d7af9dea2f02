"""The gallery goes on: whatever arrives in the stores while it serves, and whatever one exhibit raises."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.gallery.test_server import ask
from tests.store import damage
from wallprobe.errors import StoreError
from wallprobe.gallery import build_site, store
from wallprobe.gallery.server import Gallery
from wallprobe.store import runs


@pytest.fixture
def served(samples: ModuleType, tmp_path: Path, unbundled: None) -> Iterator[tuple[Gallery, list[str]]]:
    """A served store with one sound Result, and what it has said."""
    samples.evaluation().save(tmp_path / "results")
    said: list[str] = []

    def make() -> Any:
        sound, damaged = runs.survey_runs(tmp_path / "runs")
        return build_site(tmp_path / "results", tmp_path / "site", runs=sound, damaged_runs=damaged)

    with Gallery(make, tmp_path / "site", 0, said.append) as gallery:
        yield gallery, said


def holds(served: tuple[Gallery, list[str]], name: str, site: Path) -> None:
    """The sound Result is still served, the damaged one is named once on the page and once on stderr."""
    gallery, said = served
    gallery.refresh()
    gallery.refresh()
    status, _, body = ask(gallery, "/index.html")
    page = next((site / "results").glob("eval-c0*.html")).name
    assert (status, ask(gallery, f"/results/{page}")[0]) == (200, 200)
    assert f"{name}</bdi></strong>" in body
    assert [len(line.splitlines()) for line in said if name in line] == [1]
    assert gallery.site.pages == 1


@pytest.mark.parametrize("kind", damage.some(damage.RESULTS, 5))
def test_serving_survives_a_damaged_result(served: Any, samples: ModuleType, tmp_path: Path, kind: str) -> None:
    made = samples.gains("lost", layers=4).save(tmp_path / "aside")
    damage.RESULTS[kind](made)
    shutil.move(made, tmp_path / "results" / made.name)
    holds(served, made.name, tmp_path / "site")


@pytest.mark.parametrize("kind", damage.some(damage.RUNS, 5))
def test_serving_survives_a_damaged_run(served: Any, write_run: Callable[..., Any], tmp_path: Path, kind: str) -> None:
    from wallprobe.training.wall import lean

    shape = lean.Shape(n_layers=1, d_model=8, n_heads=2, n_ctx=16, vocabulary=17)
    path = write_run(tmp_path / "aside", "c0@7", lean.init_params(shape, 0), shape).path
    damage.RUNS[kind](path)
    (tmp_path / "runs").mkdir()
    shutil.move(path, tmp_path / "runs" / "c0@7")
    holds(served, "c0@7", tmp_path / "site")


def test_a_build_that_fails_is_told_once_and_the_last_pages_are_served(samples: ModuleType, tmp_path: Path) -> None:
    samples.evaluation().save(tmp_path / "results")
    said: list[str] = []
    errors: list[BaseException] = []

    def make() -> Any:
        if errors:
            raise errors[0]
        return build_site(tmp_path / "results", tmp_path / "site")

    with Gallery(make, tmp_path / "site", 0, said.append) as gallery:
        for error in (StoreError("the disk is full"), MemoryError(), RecursionError("deep"), KeyError("x"), OSError(5, "gone")):
            errors[:] = [error]
            assert not gallery.refresh()
            assert not gallery.refresh()
            assert ask(gallery, "/index.html")[0] == 200
        errors.clear()
        gallery.refresh()
    assert len(said) == 5
    assert all(line.startswith("the pages could not be built again") for line in said)


@pytest.mark.parametrize("path", ["//[", "/" + "a" * 5000 + ".html", "/loop.html", "/results/%00.html"])
def test_an_address_that_no_file_can_have(served: Any, tmp_path: Path, path: str) -> None:
    gallery, _ = served
    (tmp_path / "site" / "loop.html").symlink_to("loop.html")
    assert ask(gallery, path)[0] == 404
    assert ask(gallery, "/index.html")[0] == 200


class Unspeakable(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("not even that")


RAISED = (MemoryError(), RecursionError("x" * 100_000), SystemExit(3), Unspeakable(), StopIteration(), AssertionError("a\nb"))


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_every_page_is_built_whatever_one_exhibit_raises(samples: ModuleType, tmp_path: Path, error: BaseException) -> None:
    def broken(result: object) -> Any:
        raise error

    for kind in ("alpha", "beta", "gamma"):
        samples.plugin(kind, "fine").save(tmp_path / "results")
    made = build_site(tmp_path / "results", tmp_path / "site", exhibits={"beta": broken})
    assert (made.pages, made.damaged) == (3, 0)
    text = next((tmp_path / "site" / "results").glob("beta-*.html")).read_text(encoding="utf-8")
    assert "The exhibit for &#39;beta&#39; failed" in text
    assert len(text) < 100_000


def test_an_endless_exhibit_of_itself_is_a_recursion_error_of_one_page(samples: ModuleType, tmp_path: Path) -> None:
    def broken(result: object) -> Any:
        return broken(result)

    samples.plugin("alpha", "fine").save(tmp_path / "results")
    samples.plugin("beta", "fine").save(tmp_path / "results")
    assert build_site(tmp_path / "results", tmp_path / "site", exhibits={"beta": broken}).pages == 2


@pytest.mark.parametrize("field", ["stamps", "digest", "card", "reason", "files"])
def test_no_memory_of_a_build_can_stop_the_next(samples: ModuleType, tmp_path: Path, field: str) -> None:
    root, out = tmp_path / "results", tmp_path / "site"
    samples.evaluation().save(root)
    build_site(root, out)
    told = json.loads((out / store.MEMORY).read_text())
    (known,) = told["known"].values()
    for value in (None, [], {}, "x", 7, {"kind": 3}, {"a": {"b": []}}):
        (out / store.MEMORY).write_text(json.dumps(told | {"known": {name: known | {field: value} for name in told["known"]}}))
        made = build_site(root, out)
        assert (made.index.is_file(), made.pages + made.damaged) == (True, 1)


def test_values_that_are_not_finite_get_a_page_and_a_card(samples: ModuleType, tmp_path: Path) -> None:
    import numpy as np

    result = samples.gains("loud", layers=4)
    result.data["mlp_gain"].values[:] = [np.inf, -np.inf, np.nan, 1e308]
    result.save(tmp_path / "results")
    made = build_site(tmp_path / "results", tmp_path / "site")
    assert (made.pages, made.damaged) == (1, 0)
    assert build_site(tmp_path / "results", tmp_path / "site").rendered == 0
