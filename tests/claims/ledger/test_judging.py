"""Judging: verdicts, intervals, what is missing; and where measurements are taken from."""

import json
import math

import pytest

from tests.claims.conftest import evaluation, write_measurement, write_run
from wallprobe.claims import bundle
from wallprobe.claims.ledger import measurements, rules
from wallprobe.claims.ledger.claim import Area, Claim, areas, differing, get_area, judge, judge_all, summary, t_interval
from wallprobe.claims.ledger.measurements import OTHER, read_measurements
from wallprobe.claims.ledger.quantities import Quantity
from wallprobe.claims.ledger.quantities import summary as measured_summary
from wallprobe.claims.ledger.record import in_words, make_result, markdown
from wallprobe.claims.ledger.wording import figure, gone, kept, more, wall_ratio
from wallprobe.errors import ConfigError, UnknownNameError
from wallprobe.store.results import load_result

pytestmark = pytest.mark.usefixtures("unbundled")
FIGURE = figure("c0.ratio", "T", "The ratio.", 76.0, wall_ratio("c0"), "ratio", "ratio", pattern="c0.wall")
WALL = kept("c0.wall", "T", "The wall stands.", "c0", published=76.0)
GONE = gone("c1.gone", "T", "The wall is gone.", "c1")


def store_of(tmp_path, **runs):
    for name, instruments in runs.items():
        write_run(tmp_path, name.replace("_", "@"), instruments)
    return read_measurements("small", tmp_path)


def test_a_figure_in_its_band_is_reproduced_with_the_bootstrap_of_the_one_run(tmp_path):
    found = judge(FIGURE, store_of(tmp_path, c0=evaluation(80.0, half=4.0)))
    assert (found.verdict, found.measured, found.low, found.high) == ("reproduced", 80.0, 76.0, 84.0)
    assert (found.interval, found.seeds, found.settled) == ("bootstrap, seed 42", (42,), True)


def test_a_figure_off_its_band_is_not_reproduced_while_its_pattern_holds(tmp_path):
    store = store_of(tmp_path, c0=evaluation(40.0, half=1.0))
    off, held = judge(FIGURE, store), judge(WALL, store)
    assert (off.verdict, off.settled, held.verdict) == ("not reproduced", True, "reproduced")
    assert differing((off, held)) == [(off, held)]


def test_an_interval_across_the_edge_is_unsettled(tmp_path):
    found = judge(FIGURE, store_of(tmp_path, c0=evaluation(50.0, half=4.0)))
    assert (found.verdict, found.settled) == ("reproduced", False)


def test_two_seeds_and_more_get_students_interval(tmp_path):
    low, high = t_interval([1.0, 2.0, 3.0])
    assert (low, high) == (pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-6), pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-6))
    found = judge(FIGURE, store_of(tmp_path, c0=evaluation(70.0, half=1.0), c0_7=evaluation(80.0, half=1.0)))
    assert (found.measured, found.interval, found.seeds) == (75.0, "t, 2 seeds", (42, 7))
    assert found.high - found.measured == pytest.approx(12.706205 * 5.0, rel=1e-6)


def test_what_no_seed_touches_keeps_the_interval_over_sequences(tmp_path):
    fixed = Quantity(wall_ratio("c0").read, "", (("c0", "eval"),), over_seeds=False)
    claim = figure("exact", "T", "Exact.", 2.0, fixed, "reference")
    found = judge(claim, store_of(tmp_path, c0=evaluation(2.0, half=0.1), c0_7=evaluation(2.0, half=0.1)))
    assert (found.low, found.high, found.interval) == (pytest.approx(1.9), pytest.approx(2.1), "bootstrap, seed 42")


def test_a_comparison_takes_the_seeds_that_have_both(tmp_path):
    claim = more("order", "T", "c1 over c0.", wall_ratio("c1"), wall_ratio("c0"), "ratio")
    store = store_of(tmp_path, c0=evaluation(1.0), c0_7=evaluation(5.0), c1_7=evaluation(6.0), c1_8=evaluation(9.0))
    found = judge(claim, store)
    assert (found.verdict, found.measured, found.seeds) == ("reproduced", 1.0, (7,))
    equal = store_of(tmp_path / "equal", c0=evaluation(5.0), c1=evaluation(5.0))
    assert judge(claim, equal).verdict == "not reproduced"


def test_what_is_missing_is_named(tmp_path):
    store = store_of(tmp_path, c0=None, c1_7=evaluation(1.0))
    assert (judge(FIGURE, store).verdict, judge(FIGURE, store).note) == ("not measured", "no eval of c0")
    claim = more("order", "T", "p5 over c1.", wall_ratio("p5"), wall_ratio("c1"), "ratio")
    assert judge(claim, store).note == "no run p5"
    apart = store_of(tmp_path / "apart", c0=evaluation(1.0), c1_7=evaluation(1.0))
    claim = more("order", "T", "c0 over c1.", wall_ratio("c0"), wall_ratio("c1"), "ratio")
    assert judge(claim, apart).note == "no seed has all the runs it compares"
    nobody = figure("nobody", "T", "Nobody measures it.", 1.0, None, "error", note="too large")
    assert (judge(nobody, store).verdict, judge(nobody, store).note) == ("not measured", "too large")


def test_what_is_not_a_number_is_not_measured_and_a_lost_seed_is_told(tmp_path):
    undefined = {"eval": ({"wall_ratio": None, "trained_mae": 0.05}, [])}
    found = judge(FIGURE, store_of(tmp_path, c0=undefined))
    assert (found.verdict, found.note) == ("not measured", "not defined in these runs")
    assert math.isnan(found.measured)
    found = judge(FIGURE, store_of(tmp_path, c0_7=evaluation(80.0)))
    assert (found.verdict, found.seeds, found.note) == ("reproduced", (7,), "not defined for seed 42")


def test_a_network_that_has_not_learnt_has_neither_a_wall_nor_none(tmp_path):
    found = judge(GONE, store_of(tmp_path, c1=evaluation(1.0, trained=1.5)))
    assert (found.verdict, found.note) == ("not reproduced", "needs trained_mae of c1 (eval) at most 0.3, has 1.5 at seed 42")
    assert judge(GONE, store_of(tmp_path / "learnt", c1=evaluation(1.0))).verdict == "reproduced"


def test_a_measurement_of_other_weights_does_not_count(tmp_path):
    folder = write_run(tmp_path, "c0", evaluation(80.0))
    write_measurement(folder, "eval", {"wall_ratio": 80.0}, [], "another hash")
    assert judge(FIGURE, read_measurements("small", tmp_path)).note == "no eval of c0"


def test_a_damaged_measurement_does_not_count(tmp_path):
    folder = write_run(tmp_path, "c0", evaluation(80.0))
    for text in ("{", "[]", '{"summary": {}}'):
        (folder / "eval" / "result.json").write_text(text)
        assert judge(FIGURE, read_measurements("small", tmp_path)).verdict == "not measured"


@pytest.mark.parametrize(
    ("changed", "words"),
    [({"recipe": {"steps": 3}}, "trained with steps 3 instead of"), ({"task": {"modulus": 5}}, "modulus 5 instead of 17")],
)
def test_a_run_of_another_recipe_or_task_is_left_out_and_named(tmp_path, changed, words):
    write_run(tmp_path, "c0", evaluation(80.0), **changed)
    store = read_measurements("small", tmp_path)
    assert not store.sources
    assert len(store.left_out) == 1
    assert words in store.left_out[0]


def test_the_seeds_task_is_the_default_one():
    from wallprobe.tasks.recurrence import RecurrenceTask

    task = RecurrenceTask()
    assert {"name": task.name, **task.config()}.items() >= dict(measurements.TASK).items()


def test_an_interchange_counts_for_both_weights(tmp_path):
    folder = write_run(tmp_path, "p5")
    write_run(tmp_path, "c0")
    write_measurement(folder, "interchange-c0", {}, [], {"src": "hash of p5@42", "dst": "hash of c0@42"})
    assert read_measurements("small", tmp_path).lookup(42)("p5", "interchange-c0") is not None
    write_measurement(folder, "interchange-c0", {}, [], {"src": "hash of p5@42", "dst": "an older c0"})
    assert read_measurements("small", tmp_path).lookup(42)("p5", "interchange-c0") is None


def test_a_readout_is_found_by_the_receivers_seed(tmp_path):
    folder = write_run(tmp_path, "p5")
    for name in ("c0", "c0@7", "c0@9"):
        write_run(tmp_path, name)
    hashes = {seed: {"src": "hash of p5@42", "dst": f"hash of c0@{seed}"} for seed in (42, 7, 9)}
    write_measurement(folder, "readout-c0", {"gain": 1}, [], hashes[42])
    write_measurement(folder, "readout-c0@9", {"gain": 9}, [], hashes[9])
    lookup = read_measurements("small", tmp_path).lookup(42)
    found = {name: lookup("p5", f"readout-{name}") for name in ("c0", "c0@9", "c0@7", "c0@42", "c0@other")}
    assert {name: record and record["summary"]["gain"] for name, record in found.items()} == {
        "c0": 1,
        "c0@9": 9,
        "c0@7": None,
        "c0@42": None,
        "c0@other": 9,
    }
    write_measurement(folder, "readout-c0@9", {"gain": 9}, [], hashes[7])
    assert read_measurements("small", tmp_path).lookup(42)("p5", "readout-c0@other") is None


def test_a_readout_from_another_seed_that_nobody_made_says_so(tmp_path):
    write_run(tmp_path, "c0")
    write_run(tmp_path, "p5")
    claim = more("q", "T", "q.", measured_summary("p5", f"readout-c0{OTHER}", "gain"), wall_ratio("c0"), "ratio")
    assert "no readout into c0 of another seed of p5" in judge(claim, read_measurements("small", tmp_path)).note


def test_packed_measurements_judge_as_the_store_does_and_local_runs_shadow_them(tmp_path, monkeypatch):
    target = tmp_path / "packed"
    store = tmp_path / "store"
    rows = [{"position": place, "mae": 0.01 * place} for place in range(1, 16)]
    write_run(store, "c0", {"eval": (evaluation(80.0, half=1.0)["eval"][0], rows), "probe": ({"token_accuracy_5": 0.55}, [{"layer": 0}])})
    monkeypatch.setattr(measurements, "BUNDLE", target)
    assert [path.name for path in bundle.pack_all(store, "small", target)] == ["c0@42.json"]
    packed = json.loads((target / "small" / "c0@42.json").read_text())
    assert "log" not in packed["manifest"]
    assert (packed["measurements"]["eval"]["values"], packed["measurements"]["probe"]["values"]) == (rows, [])
    area = get_area("wall")
    local, bundled = (read_measurements("small", root) for root in (store, tmp_path / "empty"))
    assert [source.where for source in bundled.sources.values()] == ["bundled"]
    there, here = ([(item.verdict, item.low, item.note) for item in judge_all(area, found)] for found in (local, bundled))
    assert str(there) == str(here)
    assert [verdict for verdict, _, _ in there].count("not measured") < len(there)
    write_run(store, "c0", evaluation(5.0), weight_hash="new")
    assert judge(FIGURE, read_measurements("small", store)).measured == 5.0
    assert read_measurements("small", tmp_path / "empty", bundled=False).sources == {}


def test_packing_refuses_nothing_and_too_much(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="holds no run of preset small; train one"):
        bundle.pack_all(tmp_path / "empty", "small", tmp_path / "packed")
    write_run(tmp_path / "store", "c0", evaluation(80.0))
    monkeypatch.setattr(bundle, "LIMIT", 100)
    with pytest.raises(ConfigError, match="measurements of c0 pack to"):
        bundle.pack_all(tmp_path / "store", "small", tmp_path / "packed")
    assert not (tmp_path / "packed").exists()


def test_the_wall_has_its_claims_and_accepts_the_seeds_own_values():
    area = get_area("wall")
    assert set(areas()) >= {"wall"}
    assert len(area.claims) >= 60
    assert {claim.kind for claim in area.claims} == {"pattern", "figure"}
    for claim in area.claims:
        assert claim.id.startswith("wall.")
        for value in claim.published or ():
            assert value in claim.accepted, claim.id
    from wallprobe.training.wall.conditions import conditions

    assert {*area.conditions, *area.axes} <= set(conditions())
    needed = {condition for claim in area.claims if claim.quantity for condition, _ in claim.quantity.needs}
    assert needed <= {*area.conditions, *area.axes}
    with pytest.raises(UnknownNameError, match=r"no claims named 'roof'; there are: .*wall"):
        get_area("roof")


def test_every_measurement_that_a_claim_needs_is_planned():
    from wallprobe.claims.ledger.reproduce import _steps, wanted_runs

    area = get_area("wall")
    steps = list(_steps(area, wanted_runs(area, (42, 1337), axes=True)))
    assert {step.partner.seed for step in steps if step.name.seed == 42 and "@" in step.instrument} == {1337}
    planned = {(step.name.condition, step.instrument.replace("@1337", OTHER)) for step in steps}
    assert {need for claim in area.claims if claim.quantity for need in claim.quantity.needs} <= planned


def test_an_area_refuses_double_ids_and_unknown_patterns():
    with pytest.raises(ValueError, match="ids repeat"):
        Area("wall", "", (WALL, WALL), ())
    with pytest.raises(ValueError, match=r"wall\.c0\.ratio"):
        Area("wall", "", (FIGURE,), ())
    with pytest.raises(ValueError, match="kind 'guess'"):
        Claim("x", "", "guess", "", None, None, "error", rules.above(0.0))


def test_the_record_of_a_ledger(tmp_path):
    area = Area("wall", "The wall", (WALL, FIGURE, GONE), ("c0", "c1"))
    store = store_of(tmp_path, c0=evaluation(40.0, half=1.0))
    verdicts = judge_all(area, store)
    found = summary(area, store, verdicts)
    counts = [found[key] for key in ("area", "total", "reproduced", "not_reproduced", "unmeasured", "figures_off_pattern_held")]
    assert counts == ["wall", 3, 1, 1, 1, 1]
    assert found["finding"] == (
        "At preset small, 1 of 1 measured patterns hold and 0 of 1 measured figures agree (1 of the others with their pattern); "
        "1 of 3 claims are not measured."
    )
    result = make_result(area, store, verdicts)
    again = load_result(result.save(tmp_path / "results"))
    assert again.values == result.values
    assert again.summary == result.summary
    row = again.values[1]
    assert {"id", "statement", "seed_value", "measured", "ci", "verdict", "preset"} <= row.keys()
    assert (row["id"], row["seed_value"], row["measured"], row["ci"], row["verdict"], row["preset"], row["pattern"]) == (
        "wall.c0.ratio",
        76.0,
        40.0,
        "39 to 41",
        "not reproduced",
        "small",
        "wall.c0.wall",
    )
    assert (again.values[2]["measured"], again.values[2]["note"]) == (None, "no run c1")
    assert again.manifest["weight_hash"] == {"c0": "hash of c0@42"}


def test_what_did_not_reproduce_is_said_plainly(tmp_path):
    area = Area("wall", "The wall", (WALL, FIGURE, GONE), ("c0", "c1"))
    store = store_of(tmp_path, c0=evaluation(40.0, half=1.0), c1=evaluation(9.0))
    verdicts = judge_all(area, store)
    assert in_words(area, verdicts) == [
        "Patterns that did not hold here: c1.gone 9 (claimed below 3).",
        "Figures that differ while their pattern holds: c0.ratio 40 (published 76).",
        "Other figures that differ: none.",
    ]
    page = markdown(area, store, verdicts, verdicts)
    assert "| The ratio. <br>`c0.ratio`, figure | 76 | 40 (39 to 41) | 48.6 to 119 | **not reproduced** |" in page
    assert "- Patterns that did not hold here: c1.gone 9 (claimed below 3)." in page
    assert [name for name, rule in rules.RULES.items() if rule in page] == ["ratio", "wall"]


def test_an_empty_ledger_says_so(tmp_path):
    area = Area("wall", "The wall", (WALL, GONE), ())
    store = read_measurements("small", tmp_path)
    assert summary(area, store, judge_all(area, store))["finding"] == "None of the 2 claims is measured at preset small."
