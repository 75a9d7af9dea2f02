"""wallprobe audit from the command line: records, tables, refusals; the digits run that fires (b)."""

import json

import pytest

KEYS = {
    *("arch", "method", "seed", "verdict", "first_firing_a", "first_firing_a_prime", "first_firing_b", "first_firing_b_prime"),
    *("h_ratio", "g_ratio", "gamma_clamped", "gamma_exact", "accuracy", "accuracy_minus_frozen"),
}
SMALL = ["--data", "synthetic", "--epochs", "2", "--width", "16", "--depth", "1", "--jobs", "1"]


def test_three_seeds_are_three_records_and_one_stored_result(invoke, tmp_path):
    code, out, err = invoke("audit", "run", "--arch", "resmlp", "--method", "dfa", "--seeds", "3", *SMALL, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["kind"] == "audit"
    assert [record["seed"] for record in found["summary"]] == [42, 1337, 2024]
    for record in found["summary"]:
        assert record.keys() >= KEYS
        assert not [value for value in record.values() if isinstance(value, (list, dict))]
        assert record["accuracy_minus_frozen"] is not None
    assert {record["run"] for record in found["values"]} == {"resmlp dfa @42", "resmlp dfa @1337", "resmlp dfa @2024"}
    assert found["values"][0].keys() >= {"moment", "layer", "epoch", "h_norm", "g_norm", "gamma_clamped", "gamma_exact"}
    assert len(list((tmp_path / "results").glob("audit-*"))) == 1


def test_one_run_is_one_record_and_the_second_time_nothing_is_trained(invoke, tmp_path):
    arguments = ["audit", "run", "--method", "bp", *SMALL, "--no-baseline", "--json"]
    first, again = invoke(*arguments), invoke(*arguments)
    assert first[0] == again[0] == 0
    record = json.loads(first[1])["summary"]
    assert (record["method"], record["accuracy_minus_frozen"]) == ("bp", None)
    assert json.loads(again[1])["summary"] == record
    assert json.loads(again[1])["manifest"]["wall_time_s"] == json.loads(first[1])["manifest"]["wall_time_s"]


def test_report_judges_what_is_stored_by_other_thresholds(invoke):
    assert invoke("audit", "run", "--method", "dfa,bp", *SMALL)[0] == 0
    code, out, _ = invoke("audit", "report", "--json")
    assert code == 0
    assert {record["method"] for record in json.loads(out)["summary"]} == {"bp", "dfa", "frozen"}
    code, out, _ = invoke("audit", "report", "--method", "dfa", "--tau-inflation", "0.5", "--tau-floor", "1e9", "--json")
    assert code == 0
    record = json.loads(out)["summary"]
    assert (record["verdict"], record["first_firing_a"], record["first_firing_b"]) == ("DEGENERATE", 0, 0)


def test_tables_name_the_thresholds_and_print_the_evidence(invoke):
    code, out, err = invoke("audit", "run", *SMALL, "--tau-inflation", "7")
    assert code == 0, err
    for words in (
        "At the last epoch",
        "Γ_L exact",
        "First epoch at which",
        "The first epochs",
        "fires above 7",
        "inflation 7",
        "slope of log |g_L|",
    ):
        assert words in out
    assert max(len(line) for line in out.splitlines() if line.startswith(" ")) <= 200


def test_where_an_early_stop_would_have_ended_the_run_is_a_table_of_its_own(invoke):
    code, out, err = invoke("audit", "run", *SMALL, "--no-baseline")
    assert (code, "Early stop (" in out) == (0, False), err
    code, out, err = invoke("audit", "report", "--tau-growth", "0.5")
    assert code == 0, err
    (line,) = [line for line in out[out.index("Early stop (") :].splitlines() if line.startswith(" resmlp dfa")][:1]
    assert line.split()[3] == "1"


@pytest.mark.parametrize(
    ("command", "words"), [("run", "--tau-floor"), ("report", "Trains nothing"), ("check", "RUN|ADAPTER"), ("campaign", "--seeds")]
)
def test_each_command_has_its_own_help(invoke, command, words):
    code, out, _ = invoke("audit", command, "--help")
    assert code == 0
    assert f"Usage: wallprobe audit {command}" in out
    assert words in out


REFUSALS = [
    (["run", "--arch", "rnn"], "no architecture named 'rnn'; there are: resmlp, vit, student, bncnn"),
    (["run", "--method", "hebb"], "no training method named 'hebb'; there are: bp, fa, dfa, ep, frozen"),
    (["run", "--arch", "wall", "--data", "synthetic"], "architecture wall does not read synthetic"),
    (["run", "--arch", "wall", "--method", "ep"], "ep does not settle on wall"),
    (["run", "--data", "mnist"], "no data named 'mnist'; there are: digits"),
    (["run", "--stop-on", "boredom"], "--stop-on 'boredom' is none of degenerate"),
    (["run", "--option", "beta"], "--option 'beta' is no key=value, such as beta=0.01"),
    (["run", "--growth", "size"], "growth statistic 'size' is none of block_ratio"),
    (["run", "--arch", "vit", "--method", "ep"], "ep does not settle on vit"),
    (["run", "--seeds", "many"], "--seeds 'many' is neither how many"),
    (["run", "--label-noise", "2", "--data", "synthetic"], "label noise 2 is no share"),
    (["report"], "no finished audit of that kind; make one first: wallprobe audit run"),
    (["check", "resmlp"], "no audit run 'resmlp'"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSALS, ids=[" ".join(arguments) for arguments, _ in REFUSALS])
def test_bad_input_gets_one_line_and_leaves_no_result(invoke, tmp_path, arguments, message):
    code, out, err = invoke("audit", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert err.startswith("wallprobe: ")
    assert not (tmp_path / "results").exists()


def test_method_options_reach_the_method(invoke):
    code, out, err = invoke(
        "audit", "run", "--method", "ep", *SMALL, "--option", "beta=0.5", "--option", "steps=5", "--no-baseline", "--json"
    )
    assert code == 0, err
    assert json.loads(out)["manifest"]["config"]["options"] == {"beta": 0.5, "steps": 5}
    code, _, err = invoke("audit", "run", "--method", "dfa", *SMALL, "--option", "beta=1", "--no-baseline")
    assert code == 2
    assert "training method dfa does not take " in err


def test_digits_by_dfa_fire_b_and_the_clamp_sets_the_figure(invoke):
    """The audit's whole point in one run: about 10 s of one core."""
    code, out, err = invoke("audit", "run", "--method", "dfa", "--seeds", "1337,", "--epochs", "40", "--no-baseline", "--json")
    assert code == 0, err
    record = json.loads(out)["summary"]
    assert record["verdict"] == "DEGENERATE"
    assert 0 < record["first_firing_a"] < record["first_firing_b"] <= 40
    assert record["h_ratio"] > 1e4
    assert -1.15 <= record["slope"] <= -0.75
    assert record["cause"] == "unit collapse: LN Jacobian"
    assert abs(record["gamma_clamped"]) < abs(record["gamma_exact"])


@pytest.mark.parametrize("method", ["bp", "frozen"])
def test_digits_by_backpropagation_fire_nothing_of_scale(invoke, method):
    code, out, err = invoke("audit", "run", "--method", method, "--seeds", "1337,", "--epochs", "5", "--no-baseline", "--json")
    assert code == 0, err
    record = json.loads(out)["summary"]
    assert [record[f"first_firing_{name}"] for name in ("a", "a_prime", "b", "b_prime")] == [None] * 4
    assert record["gamma_exact"] == pytest.approx(1.0, abs=1e-6)
