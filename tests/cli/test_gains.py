"""`wallprobe gains` through the real entry point: tables, one JSON object, and one line for whatever is wrong."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.hooks.tiny_models import save_model, save_run
from wallprobe import cli
from wallprobe.store.results import list_results

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    save_model("neox", root / "tiny-neox")
    save_model("llama", root / "tiny-llama")
    save_run(root / "runs")
    return root


@pytest.fixture
def command(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.chdir(place)
        monkeypatch.setenv("COLUMNS", "120")
        options = ["--results", str(tmp_path / "results"), "--runs", "runs", "--device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["wallprobe", "gains", *words, *options])
        with pytest.raises(SystemExit) as end:
            cli.main()
        printed = capsys.readouterr()
        return int(end.value.code or 0), printed.out, printed.err

    return run


def test_a_folder_gives_a_table_a_finding_and_a_stored_result(command: Command, tmp_path: Path) -> None:
    code, out, err = command("tiny-neox")
    assert (code, err) == (0, "")
    assert "Gains of tiny-neox: sublayer = |out| / |LN(x)|" in out
    assert "attention stays below 1 in" in out
    assert "residual identity error:" in out
    assert "quieter │ louder" in out
    ((folder, result),), damaged = list_results(tmp_path / "results")
    assert not damaged
    assert str(folder) in out.replace("\n", "")
    assert result.kind == "gains"
    assert result.summary["n_layers"] == 3


def test_json_of_a_run_is_one_object_and_nothing_else(command: Command) -> None:
    code, out, err = command("c0", "--json", "--gain", "sublayer_unit")
    record = json.loads(out)
    assert (code, err) == (0, "")
    assert list(record) == ["kind", "summary", "values", "manifest"]
    wanted = "model definition n_layers attn_contracting mlp_contracting final_mlp_gain residual_identity_error"
    assert {key: record["summary"][key] for key in ("model", "definition", "n_layers", "n_prompts")} == {
        "model": "c0",
        "definition": "sublayer_unit",
        "n_layers": 2,
        "n_prompts": 64,
    }
    assert set(wanted.split()) < record["summary"].keys()
    assert [row["layer"] for row in record["values"]] == [0, 1]
    assert record["manifest"]["subject"] == "c0"
    assert record["manifest"]["seeds"] == {"bootstrap": 42, "sequences": 42}


def test_several_models_are_compared(command: Command, place: Path) -> None:
    (place / "two.txt").write_text("the quick brown fox\n\nparis is the capital\n")
    code, out, _ = command("tiny-neox", "tiny-llama", "--prompts", "two.txt")
    assert code == 0
    assert "Compared" in out
    assert "2 prompts (two.txt)" in out
    code, out, _ = command("tiny-neox", "tiny-llama", "c0", "--json")
    record = json.loads(out)
    assert [row["model"] for row in record["summary"]] == ["tiny-neox", "tiny-llama", "c0"]
    assert {row["model"] for row in record["values"]} == {"tiny-neox", "tiny-llama", "c0"}


def test_copies_under_two_names_are_pointed_out(command: Command, place: Path) -> None:
    shutil.copytree(place / "tiny-neox", place / "copied-neox", dirs_exist_ok=True)
    code, out, err = command("tiny-neox", "copied-neox", "tiny-llama", "--json")
    assert code == 0
    assert len(json.loads(out)["summary"]) == 3
    assert "tiny-neox, copied-neox have identical weights" in err


def _without_a_parameter(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:3000])


def _not_finite(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _missing_shard(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _encoder(folder: Path) -> None:
    from transformers import BertConfig, BertModel
    from transformers.utils import logging

    logging.disable_progress_bar()

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 32}
    BertModel(BertConfig(**sizes)).save_pretrained(folder)


def _without_tokenizer(folder: Path) -> None:
    for path in folder.glob("token*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_without_a_parameter, "lacks 1 parameters its config asks for (gpt_neox.layers.1.mlp.dense_h_to_4h.weight"),
        (_truncated, "shard model.safetensors of "),
        (_not_finite, "of 2,048 numbers that are NaN or infinite, so no figure of it would mean anything"),
        (_missing_shard, "lacks the shard model-00001-of-00001.safetensors; fetch it again"),
        (_encoder, "is an encoder (bert): it predicts no next token; give a causal decoder"),
        (_without_tokenizer, "has no tokenizer beside its weights"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded as a causal language model"),
        (lambda folder: (folder / "config.json").unlink(), "is neither a run (manifest.json) nor a Hugging Face model (config.json)"),
    ],
)
def test_damaged_folders(command: Command, place: Path, tmp_path: Path, damage: Callable[[Path], Any], message: str) -> None:
    shutil.copytree(place / "tiny-neox", tmp_path / "damaged")
    damage(tmp_path / "damaged")
    code, out, err = command(str(tmp_path / "damaged"))
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert message in err
    assert not (tmp_path / "results").exists()


def test_a_gated_model_says_so(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_: object, **__: object) -> None:
        response = httpx.Response(403, request=httpx.Request("GET", "https://hub"))
        raise GatedRepoError("Cannot access gated repo for url https://hub. Ask for access.", response=response)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    code, out, err = command("someone/gated")
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert "model 'someone/gated' is gated: accept its terms on the hub and log in (hf auth login)" in err


def test_a_model_beyond_the_budget_is_streamed_and_says_so(command: Command, tmp_path: Path) -> None:
    code, whole, _ = command("tiny-neox", "--json")
    assert code == 0
    code, out, err = command("tiny-neox", "--stream", "--json")
    assert (code, err.count("\n")) == (0, 1)
    assert re.match(r"streaming tiny-neox: about \d\.\d\d GiB of memory, whole it would take 0\.00\n", err)
    found, other = json.loads(out), json.loads(whole)
    assert found["summary"]["streamed"] is True
    assert found["summary"]["final_mlp_gain"] == pytest.approx(other["summary"]["final_mlp_gain"], rel=1e-5, abs=0)
    assert not (tmp_path / "results" / ".streams" / "tiny-neox").exists()
    code, out, err = command("tiny-neox", "--max-ram", "500M")
    assert (code, out) == (2, "")
    assert re.search(r"streaming tiny-neox takes about \d\.\d\d GiB, 0\.59 of it for Python and torch themselves", err)
    assert "--max-ram allows 0.49" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tiny-neox", "--max-ram", "plenty"], "--max-ram 'plenty' is no size; give for instance 8GiB"),
        (["tiny-neox", "--stream", "--fold"], "--fold and --l-star need the whole model in memory"),
        (["tiny-neox", "--gain", "jacobian", "--stream"], "--gain jacobian needs the whole model in memory"),
        (["tiny-neox", "--tokens", "sum"], "no token reduction named 'sum'; there are: ratio_of_means"),
        (["tiny-neox", "--positions", "first"], "no positions named 'first'; there are: all, no_sink, no_first, last"),
        (["c9"], "no run named 'c9'"),
        (["gpt2"], "model 'gpt2' could not be fetched: it is unknown to the hub, not in the local cache"),
        (["EleutherAI/pythia-70m"], "model 'EleutherAI/pythia-70m' could not be fetched: it is unknown to the hub, not in the local cache"),
        (["nobody/nothing"], "model 'nobody/nothing' could not be fetched"),
        (["missing.gguf"], "no file missing.gguf"),
        (["noise.gguf"], "noise.gguf cannot be loaded as a causal language model"),
        (["tiny-neox", "--gain", "loudness"], "no gain definition named 'loudness'; there are: sublayer, sublayer_unit"),
        (["tiny-neox", "--prompts", "nowhere.txt"], "no prompt file 'nowhere.txt'"),
        (["tiny-neox", "--prompts", "empty.txt"], "prompt file empty.txt is blank"),
        (["tiny-neox", "--prompts", "binary.txt"], "prompt file binary.txt cannot be read as UTF-8 text"),
        (["c0", "--prompts", "seed4"], "leave --prompts out for runs"),
        (["tiny-neox", "c9"], "no run named 'c9'"),
    ],
)
def test_bad_input_is_one_line_and_nothing_written(command: Command, place: Path, tmp_path: Path, words: list[str], message: str) -> None:
    (place / "noise.gguf").write_bytes(bytes(range(256)) * 8)
    (place / "empty.txt").write_text("\n  \n")
    (place / "binary.txt").write_bytes(b"\xff\xfe\x00")
    code, out, err = command(*words)
    assert (code, out, err.count("\n")) == (2, "", 1), err
    assert message in err
    assert not (tmp_path / "results").exists()
