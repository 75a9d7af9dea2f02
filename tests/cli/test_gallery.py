"""`wallprobe gallery`: what it prints, and what it must not import."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import typer
from typer.testing import CliRunner

from wallprobe import cli
from wallprobe.store.runs import list_runs


@pytest.fixture
def app() -> typer.Typer:
    return cli.build_app(("gallery", "runs"))  # typer drops the name of an only command


def test_prints_the_path_and_how_many_pages(app: typer.Typer, samples: ModuleType, tmp_path: Path) -> None:
    samples.evaluation().save(tmp_path / "results")
    done = CliRunner().invoke(app, ["gallery", "--results", str(tmp_path / "results"), "--out", str(tmp_path / "site")])
    assert done.exit_code == 0, done.output
    assert done.stdout.replace("\n", "") == f"{tmp_path / 'site' / 'index.html'}: 1 result page, {len(list_runs(tmp_path))} run pages"


def test_json_is_one_object(app: typer.Typer, samples: ModuleType, tmp_path: Path) -> None:
    samples.evaluation().save(tmp_path / "results")
    done = CliRunner().invoke(app, ["gallery", "--results", str(tmp_path / "results"), "--out", str(tmp_path / "site"), "--json"])
    stated = json.loads(done.stdout)
    assert stated["kind"] == "gallery"
    runs = len(list_runs(tmp_path))
    index = str(tmp_path / "site" / "index.html")
    assert stated["summary"] == {"index": index, "pages": 1, "damaged": 0, "runs": runs, "rendered": 1 + runs}


def test_empty_store_names_the_command_that_fills_it(app: typer.Typer, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["gallery", "--results", str(tmp_path / "results"), "--out", str(tmp_path / "site")])
    assert done.exit_code == 0
    assert "wallprobe interchange --src p5 --dst c0 --layer 3" in done.stdout


def test_open_hands_the_page_to_the_browser(app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    CliRunner().invoke(app, ["gallery", "--results", str(tmp_path / "results"), "--out", str(tmp_path / "site"), "--open"])
    assert opened == [(tmp_path / "site" / "index.html").as_uri()]


def test_building_imports_neither_torch_nor_circuitsvis(samples: ModuleType, tmp_path: Path) -> None:
    samples.attention().save(tmp_path / "results")
    script = (
        "import sys; from pathlib import Path; from wallprobe.gallery import build_site;"
        f"build_site(Path({str(tmp_path / 'results')!r}), Path({str(tmp_path / 'site')!r}));"
        "print([name for name in ('torch', 'circuitsvis', 'transformer_lens') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
