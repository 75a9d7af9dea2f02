"""The ledger's page: what did not reproduce first, figures against the published ones, and no claim lost."""

import pytest

from tests.claims.conftest import evaluation, write_run
from wallprobe.claims.ledger.claim import get_area, judge_all
from wallprobe.claims.ledger.measurements import read_measurements
from wallprobe.claims.ledger.record import make_result
from wallprobe.gallery import build_site
from wallprobe.gallery.exhibit import Figure, Table
from wallprobe.gallery.exhibits.claims import FURTHEST, exhibit

pytestmark = pytest.mark.usefixtures("unbundled")


@pytest.fixture
def result(tmp_path):
    write_run(tmp_path / "runs", "c0", evaluation(40.0, half=1.0, bayes_best_mass=0.06))
    write_run(tmp_path / "runs", "p5", evaluation(0.8, half=0.1, bayes_best_mass=0.06, bayes_best_mass_geomean=1e-12))
    area = get_area("wall")
    store = read_measurements("small", tmp_path / "runs")
    return make_result(area, store, judge_all(area, store))


def test_every_claim_stands_in_the_table_of_its_verdict(result):
    page = exhibit(result)
    assert page.title == result.summary["finding"]
    tables = [section for section in page.sections if isinstance(section, Table)]
    assert [table.title.partition(":")[0] for table in tables] == ["Not reproduced", "Reproduced", "Not measured"]
    counts = [result.summary[key] for key in ("not_reproduced", "reproduced", "unmeasured")]
    assert [len(table.rows) for table in tables] == counts
    assert {row[-1] for table in tables for row in table.rows} == {row["id"] for row in result.values}


def test_the_forest_has_a_frame_a_verdict_and_a_mark_a_figure(result):
    forest = exhibit(result).sections[0]
    assert isinstance(forest, Figure)
    assert [frame.label.partition(" (")[0] for frame in forest.frames] == ["not reproduced", "reproduced"]
    drawn = {}
    for frame in forest.frames:
        band, points = frame.panels[0].spec["data"]
        labels = frame.panels[0].spec["layout"]["yaxis"]["ticktext"]
        assert len(points["x"]) == len(band["x"]) == len(labels)
        drawn |= {
            label: (x, base, base + width) for label, x, base, width in zip(labels, points["x"], band["base"], band["x"], strict=True)
        }
    measured = [row for row in result.values if row["kind"] == "figure" and row["measured"] is not None]
    assert set(drawn) == {row["id"].removeprefix("wall.") for row in measured}
    assert drawn["c0.wall_ratio"] == (pytest.approx(40 / 76), pytest.approx(48.64 / 76), pytest.approx(118.75 / 76))
    assert drawn["p5.mass_typical"][0] == pytest.approx(1 / FURTHEST)
    assert all(low <= high for _, low, high in drawn.values())
    assert "c0.wall_ratio" in forest.alt


def test_the_page_is_built_and_an_empty_ledger_has_one_too(result, tmp_path):
    result.save(tmp_path / "results")
    site = build_site(tmp_path / "results", tmp_path / "site", exhibits={"claims": exhibit})
    page = next((tmp_path / "site" / "results").glob("*.html")).read_text()
    assert (site.pages, site.damaged) == (1, 0)
    assert result.summary["finding"] in page
    assert "failed" not in page
    area, store = get_area("wall"), read_measurements("small", tmp_path / "nothing")
    empty = exhibit(make_result(area, store, judge_all(area, store)))
    assert [section.title.partition(":")[0] for section in empty.sections] == ["Not measured"]
