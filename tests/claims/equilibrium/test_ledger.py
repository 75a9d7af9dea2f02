"""The equilibrium study's ledger: its own tables judged by hand, and a demo campaign made by hand."""

import pytest

from wallprobe.claims.equilibrium import measurements as made
from wallprobe.claims.ledger.claim import get_area, judge_all
from wallprobe.errors import ConfigError, UnknownNameError
from wallprobe.store.results import Result, dataset


@pytest.fixture(autouse=True)
def unbundled(monkeypatch, tmp_path):
    monkeypatch.setattr(made, "BUNDLE", tmp_path / "no bundle")


def verdicts(root):
    area = get_area("equilibrium")
    return {verdict.claim.id.removeprefix("equilibrium."): verdict for verdict in judge_all(area, area.read(area.preset, root))}


def test_the_seeds_tables_contradict_its_sentences(tmp_path):
    found = verdicts(tmp_path)
    expected = {
        "horizon.same": ("not reproduced", 0.459),
        "horizon.ceiling": ("not reproduced", 2),
        "plateau.optimum": ("not reproduced", 0.957 - 0.721),
        "k.stable": ("not reproduced", 4223 / 486),
        "grid.beyond_noise": ("not reproduced", (2.404 - 2.3648) - (2.463 - 2.404)),
        "sweep.fourfold": ("reproduced", 0.161 / 0.042),
        "mixing.absolute": ("not reproduced", 5.34 / 0.238),
        "mixing.ep_64": ("reproduced", 0.019 / 0.238),
        "mixing.bp_64": ("not reproduced", 0.15 / 5.34),
    }
    for name, (verdict, value) in expected.items():
        assert (found[name].verdict, found[name].measured) == (verdict, pytest.approx(value)), name
    assert found["ep.faithful"].verdict == "not measured"
    assert found["paper.val.ep"].verdict == "not measured"


def test_a_demo_campaign_is_judged_and_packed(tmp_path):
    dims = ("ckpt", "estimator")
    cos = [[1.0, 0.99999, 0.7], [0.995, 0.9999, 0.6], [0.3, 0.5, 0.2]]
    variables = {
        "cos": (dims, cos, "1", "cos"),
        "self_cos": (dims, cos, "1", "self"),
        "res": (dims, [[1e-6] * 3, [1e-5] * 3, [1e-3] * 3], "1", "res"),
    }
    coords = {"ckpt": ["eq-demo-ep-s0", "eq-demo-ep-s50", "eq-demo-ep-s100"], "estimator": ["eqprop", "bptt160", "eqprop-plain"]}
    subject = {"subject": "eq-demo-ep-s0, eq-demo-ep-s50", "created": "2026-01-01"}
    Result("triangulate", dataset(coords, variables), dims, {"finding": "F."}, subject).save(tmp_path)
    found = verdicts(tmp_path)
    assert found["ep.faithful"].measured == pytest.approx(0.995)  # the third checkpoint has not converged
    assert found["ep.faithful"].verdict == found["bptt.horizons"].verdict == found["ep.corrected"].verdict == "reproduced"
    assert (found["ep.collapses"].verdict, found["ep.incoherent"].verdict) == ("reproduced", "not reproduced")
    (path,) = made.pack_all(tmp_path, tmp_path / "no bundle" / "equilibrium")
    assert path.stat().st_size < 100 * 1024
    assert verdicts(tmp_path / "nothing")["ep.faithful"].measured == pytest.approx(0.995)


def test_what_is_not_there_is_told(tmp_path):
    with pytest.raises(UnknownNameError, match="no preset 'tiny'"):
        made.read("tiny", tmp_path)
    with pytest.raises(ConfigError, match="no demo campaign to pack"):
        made.pack_all(tmp_path)
