"""The plugin by itself: its posterior against enumeration, its instrument and exhibit on a run made by hand, its claim judged both ways."""

import itertools

import numpy as np
import pytest
import torch
from wallprobe_hello import claims
from wallprobe_hello.condition import HELLO, PEAK
from wallprobe_hello.exhibit import exhibit
from wallprobe_hello.instrument import hello
from wallprobe_hello.intervention import half
from wallprobe_hello.read import MARGIN
from wallprobe_hello.task import HelloTask

from wallprobe.claims.ledger.claim import judge_all
from wallprobe.errors import ConfigError
from wallprobe.gallery import Exhibit
from wallprobe.hooks.interchange.pairs import Pairs
from wallprobe.hooks.interchange.request import Request
from wallprobe.store import runs
from wallprobe.store.results import Result, dataset
from wallprobe.training.wall.jobs import Job
from wallprobe.training.wall.loop import train
from wallprobe.training.wall.recipes import Recipe
from wallprobe.training.wall.signals import Output, StepData, routes, signals

TINY = Recipe(preset="tiny", n_layers=1, d_model=8, n_heads=2, steps=3, batch=4, warmup=1)


def enumerated(p: int, length: int, prior: float) -> dict[tuple[int, ...], float]:
    """Every sequence's probability, by counting."""
    chance = dict.fromkeys(itertools.product(range(p), repeat=length), (1 - prior) / p**length)
    for x, y in itertools.product(range(p), repeat=2):
        chance[tuple((x, y)[index % 2] for index in range(length))] += prior / p**2
    return chance


def test_the_posterior_is_that_of_counting_every_sequence():
    p, length, prior = 3, 5, 0.3
    chance = enumerated(p, length, prior)
    tokens = torch.tensor(list(chance))
    answer = HelloTask(p, length, prior).posterior(tokens)
    for row, sequence in enumerate(chance):
        for position in range(1, length):
            seen = {s: c for s, c in chance.items() if s[:position] == sequence[:position]}
            wanted = [sum(c for s, c in seen.items() if s[position] == token) / sum(seen.values()) for token in range(p)]
            np.testing.assert_allclose(answer.predictive[row, position - 1].numpy(), wanted, rtol=1e-12, atol=1e-12)


def test_sequences_of_the_two_kinds_are_drawn():
    drawn = HelloTask().sample(400, torch.Generator().manual_seed(0))
    programs = drawn.tokens[drawn.is_program]
    assert 100 < len(programs) < 300
    assert bool((programs[:, 2:] == programs[:, :-2]).all())
    assert not bool((drawn.tokens[~drawn.is_program][:, 2:] == drawn.tokens[~drawn.is_program][:, :-2]).all(1).any())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(Job(HELLO, TINY, task=HelloTask()), tmp_path_factory.mktemp("runs"))


def test_the_instrument_reads_what_the_run_says(run):
    result = hello(run, sequences=50)
    assert result.summary["run"] == "hello-hello"
    assert result.data.sizes["position"] == HelloTask().length - 2
    assert result.data["program_due"].values[-1] == pytest.approx(1.0, abs=1e-6)
    np.testing.assert_allclose(result.data["noise_due"].values.min(), 1 / 7, atol=0.05)
    assert 0.0 < result.summary["noise_beyond_low"] <= result.summary["noise_beyond"] <= result.summary["noise_beyond_high"] < 1.0
    assert isinstance(exhibit(result), Exhibit)
    assert exhibit(result).title == result.summary["finding"]


def test_a_run_of_another_task_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="run c0 is of task recurrence"):
        hello(runs.find_run("c0", tmp_path), sequences=10)


@pytest.mark.parametrize(("program", "verdict"), [(0.9, "reproduced"), (0.15, "not reproduced")])
def test_the_claim_is_judged_on_stored_results(tmp_path, program, verdict):
    summary = {"run": "hello-hello", "program_beyond": program, "noise_beyond": 0.145}
    manifest = {"subject": "hello-hello", "weight_hash": "0", "created": "2026-01-01"}
    Result("hello", dataset({"position": [2]}, {}), ("position",), summary, manifest).save(tmp_path)
    area = claims.area()
    (judged,) = judge_all(area, area.read("tiny", tmp_path))
    assert judged.verdict == verdict


def test_without_a_measurement_nothing_is_claimed(tmp_path):
    area = claims.area()
    assert [item.verdict for item in judge_all(area, area.read("tiny", tmp_path))] == ["not measured"]


def test_the_signal_is_what_its_route_makes_of_the_exact_answer(tmp_path):
    run = train(Job(PEAK, TINY), tmp_path)
    assert run.manifest["config"]["condition"]["signal"] == "peak"
    tokens = HelloTask().sample(6, torch.Generator().manual_seed(1)).tokens
    exact = HelloTask().posterior(tokens, torch.float32)
    logits = exact.predictive.clamp_min(1e-30).log()
    data = StepData(tokens, torch.ones(6), exact, None, torch.Generator(), symbols=7)
    output = Output(logits, torch.zeros(6, 11, 4), None, symbols=7)
    assert float(routes()["softmax_peak"](output, signals()["peak"](data)).max()) < 1e-10


def test_the_read_gives_one_figure_a_pair():
    pairs = Pairs(torch.zeros(2, 3, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64), {"a": torch.tensor([0, 1])})
    found = MARGIN(torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]]), pairs)
    assert found[""].tolist() == [1.0, -2.0]


def test_the_intervention_goes_half_way_and_both_are_known_by_name():
    assert half(torch.zeros(2, 3), torch.full((2, 3), 4.0)).tolist() == [[2.0] * 3] * 2
    request = Request("p5", "c0", reads=("margin",), intervention="half")
    assert [one.name for one in request.read] == ["margin"]
    assert request.treatment is half
