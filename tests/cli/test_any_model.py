"""The commands that read any model on text: tables, JSON, store, pages, and one line for what is wrong."""

import json
import random

import pytest

from tests.hooks import tiny_models
from wallprobe.store import results

COMMANDS = {
    "probe": (("probe", "one", "--labels", "labels.jsonl"), "probe_labels", ("layer",)),
    "attention": (("attention", "one", "--prompts", "texts.txt"), "attention_heads", ("layer", "head")),
    "ablate": (("ablate", "one", "--prompts", "texts.txt", "--layer", "0"), "ablation_states", ("site", "layer", "replacement")),
    "readout": (("readout", "one", "--labels", "labels.jsonl", "--answers", "0=dog,1=fox"), "readout_labels", ("layer", "edit")),
    "geometry": (("geometry", "one", "--labels", "labels.jsonl"), "geometry_states", ("layer",)),
}
SAID = {
    "probe": "baselines: majority label 0.500, type of token 1.000",
    "attention": "uniform attention: first token",
    "ablate": "Putting states back changed 0.",
    "readout": "Controls change the state by as much",
    "geometry": "between labels: share of the variance",
}


@pytest.fixture(autouse=True)
def model_and_texts(tmp_path, monkeypatch, capsys):
    """Folder `one` (GPT-2), texts.txt and labels.jsonl, and a wide terminal."""
    monkeypatch.setenv("COLUMNS", "140")
    tiny_models.save_model("gpt2", tmp_path / "one")
    rng, made = random.Random(0), dict[str, None]()
    while len(made) < 40:
        made[" ".join(rng.choices(tiny_models.WORDS, k=rng.randint(3, 6)))] = None
    rows = [{"text": f"{text} {('fox', 'dog')[number % 2]}", "label": number % 2} for number, text in enumerate(made)]
    (tmp_path / "labels.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "texts.txt").write_text("\n".join(list(made)[:6]))
    capsys.readouterr()


@pytest.mark.parametrize("command", COMMANDS)
def test_table_json_store_and_page(invoke, tmp_path, command):
    arguments, kind, dims = COMMANDS[command]
    code, out, err = invoke(*arguments)
    assert code == 0, err
    assert SAID[command] in " ".join(out.split())
    (folder,) = (tmp_path / "results").iterdir()
    stored = results.load_result(folder)
    assert (stored.kind, stored.table) == (kind, dims)
    assert stored.summary["finding"] in " ".join(out.split())
    code, out, _ = invoke(*arguments, "--json")
    printed = json.loads(out)
    assert (code, printed["kind"], len(printed["values"])) == (0, kind, len(stored.values))
    assert all(not isinstance(value, (list, dict)) for value in printed["summary"].values())
    assert [path.name for path in (tmp_path / "results").iterdir()] == [folder.name]  # the same command replaces its own
    code, _, err = invoke("gallery", "build", "--out", "pages")
    assert (code, err) == (0, "")
    page = (tmp_path / "pages" / "results" / f"{folder.name}.html").read_text()
    assert "failed" not in page
    assert dims[-1] in page


def test_prompts_of_a_labels_file_and_heads(invoke):
    code, out, err = invoke(
        "ablate", "one", "--labels", "labels.jsonl", "--site", "heads", "--layer", "2", "--method", "mean", "--index", "last", "--json"
    )
    assert code == 0, err
    printed = json.loads(out)
    assert {row["site"] for row in printed["values"]} == {"z.0", "z.1", "z.2", "z.3"}
    assert {row["replacement"] for row in printed["values"]} == {"mean"}


def test_several_models_are_one_object(invoke):
    code, out, err = invoke("attention", "one", "./one", "--prompts", "texts.txt", "--json")
    assert code == 0, err
    assert len(json.loads(out)["summary"]) == 2


def test_layers_and_sites_are_chosen(invoke):
    code, out, err = invoke("probe", "one", "--labels", "labels.jsonl", "--layer", "0,2", "--site", "mlp_out", "--json")
    assert code == 0, err
    assert [row["layer"] for row in json.loads(out)["values"]] == [0, 2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("probe", "./one"), "probes of ./one, which is no run, need labelled text; give --labels FILE"),
        (("probe", "./one", "c0", "--labels", "none.jsonl"), "--labels none.jsonl is no file"),
        (("probe", "./one", "--labels", "texts.txt"), "line 1 of labels file texts.txt is not JSON"),
        (
            ("probe", "./one", "--labels", "labels.jsonl", "--targets", "token"),
            "--targets is not for labelled text (--labels); leave it out",
        ),
        (("probe", "./one", "--labels", "labels.jsonl", "--site", "mlp"), "no site named 'mlp'"),
        (("probe", "./one", "--labels", "labels.jsonl", "--layer", "9"), "layer 9 does not exist in ./one; give 0 to 2, or 'all'"),
        (("probe", "./one", "--labels", "few.jsonl"), "label 'b' is in 1 different texts, too few to fit and to score; give at least 8"),
        (("attention", "./one", "--tokens", "1,2,3"), "--tokens is not for models that are no runs"),
        (("attention", "c0", "--prompts", "texts.txt"), "--prompts is not for runs, which read sequences of their own task"),
        (("attention", "c0", "./one"), "c0 is a run, ./one is none"),
        (("attention", "./one", "--prompts", "none.txt"), "no prompt file 'none.txt'"),
        (("ablate", "./one", "--subspace", "pca:2"), "--subspace is not for models that are no runs"),
        (("ablate", "./one", "--method", "noise"), "--method noise is none of zero, mean, resample"),
        (("ablate", "./one", "--index", "3"), "--index 3 is none of all, last"),
        (("ablate", "c0", "--labels", "labels.jsonl"), "--labels is not for runs"),
        (("ablate", "./one", "--prompts", "texts.txt", "--labels", "labels.jsonl"), "--prompts is not for labelled text (--labels)"),
        (("readout", "./one", "--labels", "labels.jsonl", "--draws", "50"), "--draws is not for labelled text (--labels)"),
        (("readout", "./one", "--labels", "labels.jsonl", "--answers", "fox"), "--answers 'fox' is no list such as"),
        (("readout", "./one", "--labels", "labels.jsonl"), "label '1' begins with the token of another label's answer"),
        (("readout", "p5:c0", "--answers", "0=fox"), "--answers is not for pairs of runs"),
        (("readout", "./one"), "'./one' is no pair of runs"),
        (("geometry", "./one", "--sequences", "5"), "--sequences is not for models that are no runs"),
        (("geometry", "./one", "--site", "z"), "z"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(invoke, tmp_path, arguments, said):
    (tmp_path / "few.jsonl").write_text(
        '{"text": "the fox", "label": "b"}\n' + "\n".join(json.dumps({"text": f"fox {word}", "label": "a"}) for word in tiny_models.WORDS)
    )
    code, out, err = invoke(*arguments)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert said in err
    assert not (tmp_path / "results").exists()
