"""The page in docs is what the bundled measurements give, and those are small and sound."""

from pathlib import Path

import pytest

from wallprobe.claims import bundle
from wallprobe.claims.ledger.claim import get_area
from wallprobe.claims.ledger.measurements import BUNDLE, read_measurements

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("area", ["wall", "gains"])
def test_the_page_in_docs_is_the_bundled_ledger(area):
    page = DOCS / f"ledger-{area}.md"
    again = f"make it again: python -m wallprobe.claims.bundle --area {area} --docs {page}"
    assert page.read_text() == bundle.bundled_ledger(get_area(area), "small"), again


def test_bundled_measurements_are_small_and_name_no_machine():
    found = sorted(BUNDLE.rglob("*.json"))
    assert all(path.stat().st_size <= bundle.LIMIT for path in found)
    assert not [path for path in found for word in ("/work", "/tmp", "/root", "/home") if word in path.read_text()]
    assert not read_measurements("small", BUNDLE / "no local runs").left_out


def test_the_page_of_the_equilibrium_is_the_bundled_ledger():
    page = DOCS / "ledger-equilibrium.md"
    again = f"make it again: python -m wallprobe.claims.bundle --area equilibrium --docs {page}"
    assert page.read_text() == bundle.bundled_ledger(get_area("equilibrium"), "demo"), again
