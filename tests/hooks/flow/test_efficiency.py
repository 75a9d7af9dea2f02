"""Efficiency: the unigram model by hand, on other prompts and on a text, where it says nothing, and both ratios with their intervals."""

import math

import pytest
import torch

from tests.hooks.tiny_models import save_model, save_run
from wallprobe import models, stats
from wallprobe.errors import ConfigError, UnknownNameError
from wallprobe.hooks.attach.prompt_sets import prompt_set
from wallprobe.hooks.flow.lens import flow
from wallprobe.hooks.gains.efficiency import Unigram, efficiency, log_probabilities, read_text, unigram
from wallprobe.rng import generator


def rows(*prompts: list[int]) -> list[torch.Tensor]:
    return [torch.tensor(prompt) for prompt in prompts]


def test_witten_and_bells_mass_by_hand() -> None:
    """Five tokens of two types over a vocabulary of four: 2 / 7 of the mass is spread evenly."""
    p = log_probabilities(torch.tensor([3.0, 2.0, 0.0, 0.0]).double()).exp()
    assert p.tolist() == pytest.approx([3.5 / 7, 2.5 / 7, 0.5 / 7, 0.5 / 7])
    assert log_probabilities(torch.zeros(4).double()).exp().tolist() == pytest.approx([0.25] * 4)


def test_each_prompt_is_read_by_the_others_counts() -> None:
    found = unigram(rows([0, 1, 1], [0, 0, 1], [1, 0, 3]), 4)
    first = log_probabilities(torch.tensor([3.0, 2.0, 0.0, 1.0]).double())  # of the second and third prompt
    third = log_probabilities(torch.tensor([3.0, 3.0, 0.0, 0.0]).double())
    assert float(found.nll[0]) == pytest.approx(-float(first[1]))
    assert float(found.nll[2]) == pytest.approx(-float(third[0] + third[3]) / 2)
    assert (found.tokens, found.types, found.reason) == (9, 3, "")
    assert found.seen == pytest.approx(5 / 6)  # token 3 stands in the third prompt alone


def test_a_text_is_counted_instead() -> None:
    text = torch.tensor([0, 0, 0, 1, 2, 2])
    found = unigram(rows([3, 0, 2]), 4, text, "genesis.txt")
    p = log_probabilities(torch.tensor([3.0, 1.0, 2.0, 0.0]).double())
    assert float(found.nll[0]) == pytest.approx(-float(p[0] + p[2]) / 2)
    assert (found.source, found.tokens, found.types, found.seen) == ("genesis.txt", 6, 3, 1.0)
    with pytest.raises(ConfigError, match=r"genesis.txt has token id 9, the model knows 4"):
        unigram(rows([3, 0]), 4, torch.tensor([9]), "genesis.txt")


@pytest.mark.parametrize(
    ("prompts", "text", "words"),
    [
        (rows([0, 1, 2], [3, 4, 5]), None, "the other prompts hold only 0 of the 4 tokens scored; give a text to count"),
        (rows([0, 1, 2, 3]), torch.tensor([1]), "a.txt holds only 1 of the 3 tokens scored; count a longer text"),
        (rows([0], [1]), None, "the prompts have no next token"),
    ],
)
def test_where_it_would_mean_nothing_there_is_a_reason_and_no_figure(prompts, text, words) -> None:
    found = unigram(prompts, 6, text, "a.txt") if text is not None else unigram(prompts, 6)
    assert bool(found.nll.isnan().all())
    assert words in found.reason


def test_both_ratios_and_their_intervals() -> None:
    nll, gain = torch.tensor([2.0, 3.0]).double(), torch.tensor([4.0, 5.0]).double()
    reference = Unigram(torch.tensor([4.0, 4.5]).double(), "the other prompts", 10, 5, 0.9)
    weights = stats.resamples(2, generator("t"), 4000)
    found = efficiency(nll, {"": gain, "_no_sink": gain / 2}, {"": 4.5, "_no_sink": 2.25}, 100, reference, weights)
    assert found["eta"] == pytest.approx((math.log(100) - 2.5) / 4.5)
    assert found["eta_no_sink"] == pytest.approx((math.log(100) - 2.5) / 2.25)
    assert found["eta_ppl"] == pytest.approx(math.exp(4.25 - 2.5) / 4.5)
    # A quarter of two prompts' resamples is the first twice, another the second twice: the interval's ends.
    ends = sorted(((math.log(100) - 2.0) / 4.0, (math.log(100) - 3.0) / 5.0))
    assert (found["eta_low"], found["eta_high"]) == (pytest.approx(ends[0]), pytest.approx(ends[1]))
    ends = sorted((math.exp(2.0) / 4.0, math.exp(1.5) / 5.0))
    assert (found["eta_ppl_low"], found["eta_ppl_high"]) == (pytest.approx(ends[0]), pytest.approx(ends[1]))
    one = Unigram(reference.nll[:1], "a.txt", 10, 5, 0.9)
    alone = efficiency(nll[:1], {"": gain[:1]}, {"": 4.0}, 100, one, torch.ones(5, 1, dtype=torch.float64))
    assert math.isnan(alone["eta_low"])


def test_flow_counts_the_prompts_or_a_text_and_says_which(tmp_path) -> None:
    model = models.load(str(save_model("gpt2", tmp_path / "model")))
    path = tmp_path / "prompts.txt"
    path.write_text("the quick brown fox jumps\nparis is the capital of france\n")
    chosen = prompt_set(model, str(path))
    alone = flow(model, chosen)
    assert alone.summary["unigram_reason"].startswith("the other prompts hold only")
    assert alone.to_json()["summary"]["eta_ppl"] is None
    assert "the other prompts hold only" in alone.manifest["unigram"]
    text = tmp_path / "words.txt"
    text.write_text("the quick brown fox jumps over paris is capital of " * 3)
    told = flow(model, chosen, unigram=text)
    counts = torch.bincount(torch.tensor(model.tokenizer(text.read_text())["input_ids"]), minlength=32).double()
    log_p = log_probabilities(counts)
    base = sum(-float(log_p[row[1:]].mean()) for row in chosen.tokens) / 2
    assert told.summary["ppl_unigram"] == pytest.approx(math.exp(base))
    ratio = math.exp(base - told.summary["nll"]) / told.summary["final_mlp_gain"]
    assert (told.summary["eta_ppl"], told.summary["unigram"]) == (pytest.approx(ratio), "words.txt")
    assert told.summary["quality"] == pytest.approx(told.summary["eta"] * told.summary["final_mlp_gain"])


def test_a_run_is_held_against_its_own_other_sequences(tmp_path) -> None:
    loaded = models.load(save_run(tmp_path), root=tmp_path)
    found = flow(loaded, prompt_set(loaded, sequences=16)).summary
    assert (found["unigram_reason"], found["unigram_tokens"]) == (None, 16 * 8)
    assert found["unigram_seen"] == 1.0
    assert 4.0 < found["ppl_unigram"] < 6.0  # five tokens, near uniform
    with pytest.raises(ConfigError, match="a run has no tokenizer to read a text with"):
        flow(loaded, prompt_set(loaded, sequences=2), unigram=__file__)


def test_a_text_that_is_missing_or_empty(tmp_path) -> None:
    with pytest.raises(UnknownNameError, match=r"no text to count tokens of 'nowhere\.txt'"):
        read_text("nowhere.txt")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(ConfigError, match="is blank; give a UTF-8 file"):
        read_text(tmp_path / "empty.txt")
