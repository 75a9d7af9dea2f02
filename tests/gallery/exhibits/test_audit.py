"""The audit's page: one run and several, padded layers, a sign flip in its title, hostile names."""

import numpy as np
import pytest

from wallprobe.gallery import build_site
from wallprobe.gallery.exhibit import Figure, Table
from wallprobe.gallery.exhibits.audit import exhibit
from wallprobe.training.audit.diagnostics import Series
from wallprobe.training.audit.quantities import LAYERED
from wallprobe.training.audit.record import Described, combine, judged, make_result
from wallprobe.training.audit.thresholds import Thresholds

ATTACK = "</script><img src=x onerror=window.pwned=1>"
MANIFEST = {"command": "wallprobe audit run", "config": {}, "created": "2026-01-02T03:04:05+00:00", "subject": ATTACK, "run": "r"}


TABLES = ["The audit", "The cosine", "First firing epochs", "Early stop", "The first epochs"]


def audited(arch="resmlp", method="dfa", seed=42, *, depth=4, flips=True, name="digits"):
    """Seven epochs whose state grows tenfold each; the clamped cosine flips at the end."""
    epochs, layers = 7, depth + 1
    h = np.geomspace(10, 1e7, epochs)[:, None] * np.ones(layers)
    layered = {quantity: np.zeros((epochs, layers)) for quantity in LAYERED}
    layered |= {"h_norm": h, "g_norm": 1e-2 / h, "elasticity": np.full_like(h, 1e-2), "block_ratio": np.full_like(h, 1.1)}
    layered["gamma_exact"], layered["gamma_clamped"] = np.full_like(h, 0.02), np.full_like(h, 0.02)
    if flips:
        layered["gamma_clamped"][-1], layered["sign_flip"][-1] = -0.01, 1.0
        layered["below_eps"][-2:] = 0.4
    for quantity in ("weight_delta", "weight_product", "sigma_product"):
        layered[quantity] = np.linspace(0, 50, epochs)[:, None] * np.ones(layers)
        layered[quantity][:, 0] = np.nan
    series = Series(np.arange(epochs, dtype=float), layered, np.full((epochs, 2), np.nan), np.full(epochs, 0.3), 1e-8)
    moments = [{"epoch": float(at), "step": 100 * at, "train_loss": 2.0, "accuracy": 0.3} for at in range(epochs)]
    described = Described(arch, method, name, seed, epochs=epochs - 1, eps=1e-8, n_ref=1024)
    result = make_result(described, series, moments, np.ones(20, dtype=bool), MANIFEST, diverged=False)
    return judged(result, Thresholds())


def test_one_run_has_every_figure_and_table_and_the_flip_in_a_title():
    page = exhibit(audited())
    titles = [section.title for section in page.sections]
    assert [type(section) for section in page.sections].count(Figure) == 4
    assert [section.title for section in page.sections if isinstance(section, Table)] == TABLES
    assert "ResMLP dfa @42: at h_4 the usual cosine has the wrong sign at 1 of 7 moments" in titles
    assert "must not be reported" in page.note
    assert page.title.startswith("resmlp dfa on digits, seed 42: DEGENERATE (unit collapse: LN Jacobian)")


def test_the_clamp_is_shaded_where_samples_are_below_it():
    hero = next(section for section in exhibit(audited()).sections if "wrong sign" in section.title)
    spec = hero.frames[0].panels[0].spec
    shaded = [shape for shape in spec["layout"]["shapes"] if shape["type"] == "rect"]
    assert len(shaded) == 2
    names = {trace.get("name"): trace["y"] for trace in spec["data"]}
    assert names["exact"][-1] == pytest.approx(0.02)
    assert names["clamped, as usually reported"][-1] == pytest.approx(-0.01)


def test_several_runs_of_several_depths_stand_side_by_side():
    runs = [audited(seed=1), audited(seed=2), audited("bncnn", "bp", depth=2, flips=False)]
    page = exhibit(combine(runs, "all", MANIFEST))
    table = page.sections[0]
    assert [row[:3] for row in table.rows] == [["ResMLP dfa", "degenerate", 2], ["BN-CNN bp", "degenerate", 1]]
    firings = next(section for section in page.sections if section.title == "First firing epochs")
    assert [row[0] for row in firings.rows] == ["ResMLP dfa @1", "ResMLP dfa @2", "BN-CNN bp @42"]
    # |h| exceeds 100 times its start at epoch 3, |g| 1e-7 never: 1e-2 / 1e7 = 1e-9, from epoch 5 on
    assert firings.rows[0][1] == 3
    assert firings.rows[0][3] == 5
    growth = next(section for section in page.sections if getattr(section, "caption", "").endswith("worst verdicts first."))
    assert growth.title.startswith("ResMLP dfa @1: the weights of block ")
    assert [len(frame.panels[0].spec["data"]) for frame in growth.frames] == [4, 4, 2]


def test_the_early_stop_and_the_exact_answer_are_told_where_there_is_one():
    page = exhibit(audited())
    (stop,) = [section for section in page.sections if section.title == "Early stop"]
    assert stop.rows == [["ResMLP dfa @42", 6, 0.3, 0.3, 6]]  # (b) from epoch 5 on, one more for patience
    told = audited("wall")
    told.summary.update(mae_supervised=0.5, mae_beyond=2.0)
    (table,) = [section for section in exhibit(told).sections if section.title == "Distance from the exact answer"]
    assert table.rows == [["HookedTransformer dfa @42", 0.5, 2.0, 4.0, 0.3]]


def test_pages_escape_what_results_say_and_an_odd_one_still_gets_its_table(tmp_path):
    audited(name=ATTACK).save(tmp_path / "store")
    whole = audited()
    lacking = type(whole)(whole.kind, whole.data.drop_vars("g_norm"), whole.table, whole.summary, whole.manifest | {"config": {"other": 1}})
    lacking.save(tmp_path / "store")
    site = build_site(tmp_path / "store", tmp_path / "site", exhibits={"audit": exhibit})
    assert (site.pages, site.damaged) == (2, 0)
    for page in (tmp_path / "site" / "results").glob("*.html"):
        assert ATTACK not in page.read_text()
