"""A build remembers: what has not changed is not parsed again, what has changed is, and nothing it remembers is trusted blindly."""

import json
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from wallprobe.gallery import build_site, store
from wallprobe.store import results
from wallprobe.store.runs import find_run


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the Results that were parsed."""
    seen: list[str] = []
    load = results.load_result

    def counting(folder: Path) -> results.Result:
        seen.append(folder.name)
        return load(folder)

    monkeypatch.setattr(results, "load_result", counting)
    return seen


def files(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file() and path.name != store.MEMORY
    }


def test_second_build_parses_nothing_and_writes_nothing(samples: ModuleType, parsed: list[str], tmp_path: Path) -> None:
    root, out = tmp_path / "results", tmp_path / "site"
    samples.evaluation().save(root)
    samples.interchange().save(root)
    first = build_site(root, out)
    assert (first.rendered, first.changed, len(parsed)) == (2, True, 2)
    before = files(out)
    second = build_site(root, out)
    assert (second.rendered, second.changed, second.pages, len(parsed)) == (0, False, 2, 2)
    assert files(out) == before


def test_only_the_new_result_is_parsed_and_the_pages_equal_a_fresh_build(samples: ModuleType, parsed: list[str], tmp_path: Path) -> None:
    root = tmp_path / "results"
    samples.evaluation().save(root)
    build_site(root, tmp_path / "site")
    parsed.clear()
    new = samples.evaluation("p5").save(root)
    assert build_site(root, tmp_path / "site").rendered == 1
    assert parsed == [new.name]
    build_site(root, tmp_path / "fresh")
    assert files(tmp_path / "site") == files(tmp_path / "fresh")


def test_a_result_made_again_with_the_same_content_is_not_parsed(samples: ModuleType, parsed: list[str], tmp_path: Path) -> None:
    root, out = tmp_path / "results", tmp_path / "site"
    samples.evaluation().save(root)
    build_site(root, out)
    samples.evaluation().save(root)
    assert build_site(root, out).rendered == 0
    assert len(parsed) == 1


def test_a_result_altered_without_changing_its_size_or_date_is_found_damaged(samples: ModuleType, tmp_path: Path) -> None:
    root, out = tmp_path / "results", tmp_path / "site"
    arrays = samples.evaluation().save(root) / "arrays.nc"
    build_site(root, out)
    seen = arrays.stat()
    altered = bytearray(arrays.read_bytes())
    altered[-1] ^= 1
    arrays.write_bytes(bytes(altered))
    os.utime(arrays, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    again = build_site(root, out)
    assert (again.pages, again.damaged) == (0, 1)
    assert build_site(root, out).damaged == 1
    assert not list((out / "results").glob("*.html"))


def test_a_page_that_was_edited_or_lost_is_made_again(samples: ModuleType, tmp_path: Path) -> None:
    root, out = tmp_path / "results", tmp_path / "site"
    stem = samples.evaluation().save(root).name
    build_site(root, out)
    before = files(out)
    (out / "results" / f"{stem}.html").write_text("edited")
    (out / "data" / f"{stem}.js").unlink()
    assert build_site(root, out).rendered == 1
    assert files(out) == before


def test_other_code_makes_every_page_again(samples: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = tmp_path / "results", tmp_path / "site"
    samples.evaluation().save(root)
    build_site(root, out)
    monkeypatch.setattr(store, "code", lambda: "another release")
    assert build_site(root, out).rendered == 1


@pytest.mark.parametrize("memory", ["", "[]", '{"version": 1}', '{"version": 1, "code": "CODE", "known": {"results/x": {"no": "field"}}}'])
def test_a_broken_memory_costs_a_full_build_and_nothing_else(samples: ModuleType, tmp_path: Path, memory: str) -> None:
    root, out = tmp_path / "results", tmp_path / "site"
    samples.evaluation().save(root)
    build_site(root, out)
    code = json.loads((out / store.MEMORY).read_text())["code"]
    (out / store.MEMORY).write_text(memory.replace("CODE", code))
    assert build_site(root, out).rendered == 1


def test_a_hostile_memory_is_escaped_like_a_result(samples: ModuleType, tmp_path: Path) -> None:
    root, out = tmp_path / "results", tmp_path / "site"
    samples.evaluation().save(root)
    build_site(root, out)
    told: Any = json.loads((out / store.MEMORY).read_text())
    (known,) = told["known"].values()
    known["card"] |= {"title": samples.ATTACK, "subject": samples.ATTACK, "glance": None}
    (out / store.MEMORY).write_text(json.dumps(told))
    build_site(root, out)
    text = (out / "index.html").read_text(encoding="utf-8")
    assert "&lt;/script&gt;" in text
    assert samples.ATTACK not in text
    assert "<img" not in text


def test_a_runs_page_follows_its_results(samples: ModuleType, tmp_path: Path) -> None:
    root, out, run = tmp_path / "results", tmp_path / "site", find_run("c0")
    build_site(root, out, runs=[run])
    page = out / "runs" / "c0@42.html"
    assert "wallprobe attention c0" in page.read_text(encoding="utf-8")
    samples.attention().save(root)
    assert build_site(root, out, runs=[run]).rendered == 2
    assert "AttentionHeads" in page.read_text(encoding="utf-8")
    samples.evaluation("p1").save(root)
    assert build_site(root, out, runs=[run]).rendered == 1
    shutil.rmtree(root)
    assert build_site(root, out, runs=[run]).pages == 0
    assert "AttentionHeads" not in page.read_text(encoding="utf-8")


def test_an_unchanged_store_needs_no_xarray(samples: ModuleType, tmp_path: Path) -> None:
    import subprocess
    import sys

    root, out = tmp_path / "results", tmp_path / "site"
    samples.evaluation().save(root)
    build_site(root, out)
    script = (
        "import sys; from pathlib import Path; from wallprobe.gallery import build_site;"
        f"site = build_site(Path({str(root)!r}), Path({str(out)!r}));"
        "print(site.rendered, [name for name in ('xarray', 'pandas', 'plotly', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "0 []"
