"""The page in docs is what the bundled measurements give, and those are small and sound."""

from pathlib import Path

from wallprobe.claims import bundle
from wallprobe.claims.ledger import get_area
from wallprobe.claims.measurements import BUNDLE, read_measurements

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ledger-wall.md"


def test_the_page_in_docs_is_the_bundled_ledger():
    again = "make it again: python -m wallprobe.claims.bundle --docs docs/ledger-wall.md"
    assert PAGE.read_text() == bundle.bundled_ledger(get_area("wall"), "small"), again


def test_bundled_measurements_are_small_and_name_no_machine():
    found = sorted(BUNDLE.rglob("*.json"))
    assert all(path.stat().st_size <= bundle.LIMIT for path in found)
    assert not [path for path in found for word in ("/work", "/tmp", "/root", "/home") if word in path.read_text()]
    assert not read_measurements("small", BUNDLE / "no local runs").left_out
