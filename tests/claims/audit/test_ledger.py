"""The audit study's ledger: what it reads, when a share of seeds holds, and its page in docs."""

import json
import math
from pathlib import Path

import pytest

from wallprobe.claims import bundle
from wallprobe.claims.audit import area as audit
from wallprobe.claims.audit import measurements as audit_measurements
from wallprobe.claims.audit.measurements import AUDIT, JOBS
from wallprobe.claims.ledger.claim import get_area, judge
from wallprobe.claims.ledger.measurements import BUNDLE, Measurements, Source
from wallprobe.errors import UnknownNameError
from wallprobe.store.runs import RunName

PAGE = Path(__file__).resolve().parents[3] / "docs" / "ledger-audit.md"


def record(h=(10.0, 50.0, 500.0, 2000.0, 9000.0), fires=None, **summary):
    """An audit whose |h_L| takes these values; the reference falls as it grows."""
    rows = [
        {
            "layer": layer,
            "epoch": float(epoch),
            "h_norm": value,
            "g_norm": 1e-2 / value,
            "elasticity": 1e-2,
            "clamp_bias": 0.0,
            "below_eps": 0.0,
        }
        for epoch, value in enumerate(h)
        for layer in (0, 4)
    ]
    rows += [{"layer": 4, "epoch": 0.5, "h_norm": 1e9, "g_norm": 1.0, "elasticity": 1.0, "clamp_bias": 1.0, "below_eps": 0.0}]
    found = {"slope": -1.0, "h_ratio": h[-1] / h[0], "first_firing_b": fires, "first_firing_a_prime": None}
    return {"summary": found | summary, "values": rows, "manifest": {"weight_hash": "w"}}


def measured(**records):
    sources = {}
    for name, seeds in records.items():
        for seed, one in enumerate(seeds):
            run = RunName(name.replace("_", "-"), seed)
            sources[run.condition, seed] = Source(run, "w", "local", None, {AUDIT: one})
    return Measurements("campaign", sources)


def claim(name):
    return next(one for one in audit.area().claims if one.id == f"audit.{name}")


def test_all_seeds_must_do_it_unless_it_says_how_many():
    grown, short = record(), record(h=(10.0, 20.0, 30.0, 40.0, 50.0))
    assert judge(claim("dfa.inflates"), measured(resmlp_dfa=[grown, grown])).verdict == "reproduced"
    found = judge(claim("dfa.inflates"), measured(resmlp_dfa=[grown, short]))
    assert (found.verdict, found.measured) == ("not reproduced", 0.5)
    fired = measured(resmlp_dfa=[record(fires=4), record(), record()])
    assert judge(claim("b.fires"), fired).verdict == "reproduced"
    assert judge(claim("b.fires_all"), fired).verdict == "not reproduced"
    assert judge(claim("b.first_epoch"), fired).measured == 4.0


def test_only_whole_epochs_at_the_top_are_read():
    found = judge(claim("clamp.idle"), measured(resmlp_dfa=[record()]))
    assert found.verdict == "reproduced"
    assert judge(claim("dfa.h_at_0"), measured(resmlp_dfa=[record()])).measured == 10.0


def test_what_never_fires_and_what_is_not_there():
    quiet, loud = record(), record(first_firing_a_prime=3)
    assert judge(claim("bp.quiet"), measured(resmlp_bp=[quiet])).verdict == "reproduced"
    assert judge(claim("bp.quiet"), measured(resmlp_bp=[loud])).verdict == "not reproduced"
    missing = judge(claim("vit.fires"), measured(resmlp_bp=[quiet]))
    assert (missing.verdict, missing.note) == ("not measured", "no run vit-dfa")
    assert math.isnan(missing.measured)


def test_the_campaign_has_48_runs_and_the_ledger_names_each():
    from wallprobe.training.audit.campaign import campaign

    jobs = campaign((42, 1337, 2024))
    assert len({job.name for job in jobs}) == 48
    named = {make(seed).name for make in JOBS.values() for seed in (42, 1337, 2024)}
    assert {job.name for job in jobs} <= named
    assert len(named) == len(JOBS) * 3


def test_another_preset_is_refused():
    with pytest.raises(UnknownNameError, match="no preset 'small' of audits; there is: campaign"):
        audit_measurements.read("small")


def test_a_packed_audit_is_read_back(tmp_path, invoke, monkeypatch):
    small = JOBS["resmlp-dfa"](42)
    quick = audit_measurements.variant(small, data="synthetic", epochs=2, width=16, depth=1)
    monkeypatch.setattr(audit_measurements, "JOBS", {"resmlp-dfa": lambda seed: quick})
    arguments = ["--data", "synthetic", "--epochs", "2", "--width", "16", "--depth", "1", "--batch", "128", "--no-baseline"]
    code, _, err = invoke("audit", "run", *arguments)
    assert code == 0, err
    (path,) = audit_measurements.pack_all(tmp_path / "runs", tmp_path / "packed" / "campaign")
    stored = json.loads(path.read_text())
    assert path.name == "resmlp-dfa@42.json"
    assert [row["epoch"] for row in stored["values"]] == [0, 1, 2]
    monkeypatch.setattr(audit_measurements, "BUNDLE", tmp_path / "packed")
    (source,) = audit_measurements.read(root=tmp_path / "no runs").sources.values()
    assert (source.where, source.record(AUDIT)["summary"]["arch"]) == ("bundled", "resmlp")


def test_the_page_in_docs_is_the_bundled_ledger():
    again = "make it again: python -m wallprobe.claims.bundle --area audit --docs docs/ledger-audit.md"
    assert PAGE.read_text() == bundle.bundled_ledger(get_area("audit"), "campaign"), again


def test_bundled_audits_are_small_and_there():
    found = sorted((BUNDLE / "campaign").glob("*.json"))
    assert found
    assert all(path.stat().st_size <= 20 * 1024 for path in found)


def test_a_share_of_seeds_has_no_students_interval():
    found = judge(claim("dfa.inflates"), measured(resmlp_dfa=[record(), record(h=(10.0, 20.0, 30.0, 40.0, 50.0)), record()]))
    assert (found.measured, found.interval, found.settled) == (pytest.approx(2 / 3), "", None)
    assert math.isnan(found.low)
