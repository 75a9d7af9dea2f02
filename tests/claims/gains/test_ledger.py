"""The ledger of the gains: recomputed figures, what the published data do not support, and where measured models come from."""

import json

import pytest

from wallprobe.claims import bundle
from wallprobe.claims.gains import published as gains_published
from wallprobe.claims.gains.area import area
from wallprobe.claims.ledger.claim import judge_all
from wallprobe.hooks.gains.scaling import fit, published_points
from wallprobe.store.results import Result, dataset


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory):
    nowhere = tmp_path_factory.mktemp("nowhere")
    found = judge_all(area(), gains_published.measurements("published", nowhere, bundled=False))
    return {item.claim.id.removeprefix("gains."): item for item in found}


@pytest.mark.parametrize(
    ("name", "measured", "verdict"),
    [
        ("attention.invariably", 100 * 180 / 182, "not reproduced"),
        ("attention.pooled", 98.9, "reproduced"),
        ("attention.low", 100 * 31 / 32, "reproduced"),
        ("final.70m", 1.5, "reproduced"),
        ("final.12b", 7.71, "reproduced"),
        ("net.low", 87.5, "not reproduced"),
        ("net.high", 100.0, "not reproduced"),
        ("mlp.small_low", 75.0, "reproduced"),
        ("mlp.small_high", 87.5, "reproduced"),
        ("mlp.12b", 100 * 2 / 36, "reproduced"),
        ("mlp.small_above", 100 * 22 / 24 - 87.5, "not reproduced"),
        ("law.alpha", 0.26500, "reproduced"),
        ("law.alpha_se", 0.07885, "reproduced"),
        ("law.robust", 0.0721, "not reproduced"),
        ("ahead.70b", 9.62, "not reproduced"),
        ("ahead.10t", 35.8, "not reproduced"),
        ("prompts.single", 4.0, "not reproduced"),
    ],
)
def test_the_seed_against_its_own_data(verdicts, name, measured, verdict):
    """Counts by hand from the author's per-layer results."""
    assert verdicts[name].measured == pytest.approx(measured, rel=0.005)
    assert verdicts[name].verdict == verdict


def test_what_was_not_measured_says_why(verdicts):
    assert verdicts["beyond.final"].note == "no measurement of smollm2-135m"
    assert verdicts["final.12b_here"].note == "no measurement of pythia-12b"
    assert verdicts["open.critical"].note.startswith("of two pure power laws the ratio is monotone")
    assert all(item.note for item in verdicts.values() if item.verdict == "not measured")


def measured(model, weight_hash, final, **more):
    summary = {"model": model, "definition": "sublayer", "prompts": "seed4", "tokens": "ratio_of_means", "final_mlp_gain": final, **more}
    manifest = {"subject": model, "weight_hash": weight_hash, "config": {"model": model, **more}, "created": "2026"}
    return Result("gains", dataset({"layer": [0]}, {"mlp_gain": (("layer",), [final], "1", "gain")}), ("layer",), summary, manifest)


def test_a_measured_pythia_counts_by_its_name_and_only_if_measured_the_seeds_way(tmp_path):
    measured("EleutherAI/pythia-70m", "weights", 1.4961).save(tmp_path)
    measured("EleutherAI/pythia-12b", "others", 7.7, definition="update_ratio").save(tmp_path)
    found = {item.claim.id: item for item in judge_all(area(), gains_published.measurements("published", tmp_path, bundled=False))}
    assert (found["gains.final.70m_here"].verdict, found["gains.final.70m_here"].measured) == ("reproduced", 1.4961)
    assert found["gains.final.12b_here"].verdict == "not measured"


def test_a_local_measurement_of_the_bundled_weights_shadows_it(tmp_path, monkeypatch):
    folder = tmp_path / "bundled"
    folder.mkdir()
    record = {
        "summary": {"final_mlp_gain": 5.0, "n_params": 1e8, "attn_contracting": "3/4"},
        "values": [],
        "manifest": {"weight_hash": "w"},
    }
    (folder / "smollm2-135m.json").write_text(json.dumps({"weight_hash": "w", "measurements": {"gains": record}}))
    monkeypatch.setattr(gains_published, "FOLDER", folder)
    found = {item.claim.id: item for item in judge_all(area(), gains_published.measurements("published", tmp_path / "none"))}
    assert found["gains.beyond.final"].measured == 5.0
    assert found["gains.beyond.attention"].measured == 75.0
    points = published_points()
    _, _, high = fit([point.n_params for point in points], [point.gain for point in points]).predict(1e8)
    assert found["gains.beyond.law"].measured == pytest.approx(5.0 / high)
    assert found["gains.beyond.law"].verdict == "not reproduced"
    measured("anything.gguf", "w", 0.5).save(tmp_path / "results")
    found = {item.claim.id: item for item in judge_all(area(), gains_published.measurements("published", tmp_path / "results"))}
    assert (found["gains.beyond.final"].verdict, found["gains.beyond.final"].measured) == ("not reproduced", 0.5)


def test_every_claim_accepts_what_it_quotes_and_names_its_pattern():
    claims = area().claims
    assert len(claims) >= 50
    for claim in claims:
        assert claim.id.startswith("gains.")
        for value in claim.published or ():
            assert value in claim.accepted, claim.id


def test_the_command_prints_the_ledger_and_reproduce_says_what_to_do(invoke, tmp_path):
    code, out, err = invoke("claims", "gains", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["summary"]["area"] == "gains"
    assert found["summary"]["total"] == len(found["values"])
    assert set(found["manifest"]["rules"]) == {"printed figure", "rough figure", "literal inequality"}
    code, out, err = invoke("reproduce", "gains")
    assert (code, out) == (2, "")
    assert "'gains' trains nothing; measure models (wallprobe gains MODEL...), then: wallprobe claims gains" in err


def test_the_page_names_its_sources(tmp_path):
    page = bundle.bundled_ledger(area(), "small")
    assert "--area gains --docs docs/ledger-gains.md" in page
    assert "recomputed from the authors' published per-layer gains" in page
    assert "at least 100" in page
