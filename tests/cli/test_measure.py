"""`wallprobe measure`: any instrument by name, the same figures as its own command, and one line for what it refuses."""

import json

import pytest

from wallprobe.hooks import registry as instruments
from wallprobe.hooks.registry import Instrument, parse_options


def test_the_list_names_every_instrument_with_its_options(invoke):
    code, out, err = invoke("measure")
    assert (code, err) == (0, "")
    assert all(name in out for name in instruments.built_in())
    rows = {row["name"]: row for row in json.loads(invoke("measure", "--json")[1])["summary"]}
    assert rows["eval"]["options"] == {"sequences": 2000, "seed": 0}
    assert rows["gains"]["needs"] == "prompts"


def test_it_measures_what_the_command_of_that_name_measures(invoke):
    own = json.loads(invoke("calibration", "c0", "--sequences", "60", "--json")[1])
    found = json.loads(invoke("measure", "calibration", "c0", "--set", "sequences=60", "--json")[1])
    assert found["summary"] == own["summary"]
    assert found["values"] == own["values"]


def test_several_models_and_an_instrument_that_reads_prompts(invoke, tmp_path):
    code, out, err = invoke("measure", "gains", "c0", "c1", "--set", "draws=50", "--set", "definition=sublayer_unit")
    assert code == 0, err
    assert out.count("sublayer_unit") >= 2
    assert len(list((tmp_path / "results").glob("gains-*"))) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("hum", "c0"), "no instrument named 'hum'; there are: eval, attention"),
        (("eval",), "nothing to measure: wallprobe measure eval MODEL..."),
        (("eval", "c0", "--set", "sequences"), "--set 'sequences' is not key=value"),
        (("eval", "c0", "--set", "sequences=few"), "sequences 'few' of instrument eval is no int; the default is 2000"),
        (("eval", "c0", "--set", "colour=red"), "instrument eval has no option 'colour'; it takes: sequences, seed"),
        (("maps", "c0", "--set", "a=1"), "instrument maps has no option 'a'; it takes: none"),
        (("eval", "c0", "--prompts", "seed4"), "instrument eval takes no prompts; leave --prompts, --column and --limit out"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(invoke, tmp_path, arguments, message):
    code, out, err = invoke("measure", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("wallprobe: ")
    assert len(err.splitlines()) == 1
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_a_switch_is_read_as_true_or_false():
    def measure(run, loud: bool = False, factor: float = 1.5):
        return None

    instrument = Instrument("switch", measure, "run")
    assert parse_options(instrument, ("loud=True", "factor=2")) == {"loud": True, "factor": 2.0}
    with pytest.raises(instruments.ConfigError, match="loud 'yes' of instrument switch is no bool"):
        parse_options(instrument, ("loud=yes",))


def test_what_is_no_result_is_refused():
    with pytest.raises(instruments.InstrumentError, match="instrument odd returned dict, not a Result; nothing stored"):
        instruments.run_instrument(Instrument("odd", lambda run, device: {}, "run"), "c0", {})
    with pytest.raises(instruments.ConfigError, match="instrument odd: needs 'nothing' is none of run, model, prompts"):
        Instrument("odd", lambda run: {}, "nothing")
