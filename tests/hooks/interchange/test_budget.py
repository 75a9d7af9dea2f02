"""Measured peaks of a sweep stay within --budget, at several budgets; what is walked grows linearly in pairs and sites.

Measured is every allocation of torch's CPU allocator, temporaries within an operation included, by torch's own profiler; weights count too.
"""

import json
import re
import warnings

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from tests.hooks import tiny_models
from wallprobe import models
from wallprobe.errors import ConfigError
from wallprobe.hooks.attach import resume
from wallprobe.hooks.attach.stacks import RunStack
from wallprobe.hooks.interchange import budget
from wallprobe.hooks.interchange.places import TEXT_SITES
from wallprobe.hooks.interchange.request import Request
from wallprobe.hooks.interchange.run import interchange
from wallprobe.rng import generator
from wallprobe.training.wall import lean

GIB = 1 << 30
SHAPE = lean.Shape(n_layers=3, d_model=48, n_heads=3, n_ctx=16, vocabulary=17)


def peak(call):
    """Most bytes that torch held at once while this ran, and what it gave."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the profiler's own
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
            made = call()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).cumsum(0)
    return int(live.max()), made


def least(call):
    """GiB that the refusal of a budget of nearly nothing names."""
    with pytest.raises(ConfigError, match="more than the budget") as error:
        call(1e-6)
    return float(re.search(r"takes ([0-9.]+) GiB", str(error.value)).group(1)) + 1e-4


def test_the_measure_sees_what_lives_together():
    def three():
        kept = [torch.zeros(1000, 250) for _ in range(3)]
        del kept[0]
        return torch.zeros(1000, 250).softmax(0).sum() + kept[0].sum()

    assert 4_000_000 <= peak(three)[0] <= 4_010_000


@pytest.fixture(scope="module")
def store(tmp_path_factory, write_run):
    root = tmp_path_factory.mktemp("runs")
    for name, seed in (("c0", 1), ("p5", 2)):
        rng = generator(seed, "budget test")
        params = {key: value + 0.3 * torch.randn(value.shape, generator=rng) for key, value in lean.init_params(SHAPE, seed).items()}
        write_run(root, name, params, SHAPE)
    return root


@pytest.mark.parametrize(("align", "budgets"), [("none", (1.0, 1.5, 4.0)), ("procrustes", (1.0,))])
def test_a_sweep_of_runs_stays_within_its_budget(store, align, budgets):
    turns = {}

    def run(gib):
        turns[gib] = []
        request = Request("p5", "c0", (1, 2), (0,), models.SITES, align, 150, budget=gib)
        return interchange(request, root=store, on_cell=lambda done, total: turns[gib].append(done))

    smallest = least(run)
    peaks = {}
    for times in budgets:
        peaks[times], made = peak(lambda gib=times * smallest: run(gib))
        assert made.summary["n_cells"] == 7
        assert peaks[times] <= times * smallest * GIB, (times, peaks[times] / GIB, smallest)
    assert peaks[1.0] > 0.4 * smallest * GIB
    assert len(turns[smallest]) == 7  # cell by cell
    if align == "none":
        assert len(turns[4.0 * smallest]) < len(turns[1.5 * smallest]) < 7


def test_a_sweep_of_language_models_stays_within_its_budget(tmp_path):
    folder = str(tiny_models.save_model("llama", tmp_path / "llama"))
    words = tiny_models.WORDS
    rows = [
        {
            "clean": " ".join([words[number % 5], *words[5:15]]),
            "corrupt": " ".join([words[15 + number % 4], *words[5:15]]),
            "answer": words[number % 7],
            "wrong": words[8 + number % 7],
        }
        for number in range(60)
    ]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")

    turns = {}

    def run(gib):
        turns[gib] = []
        request = Request(folder, folder, pairs=str(tmp_path / "pairs.jsonl"), layers=(1,), indices=(0, 10), sites=TEXT_SITES, budget=gib)
        return interchange(request, on_cell=lambda done, total: turns[gib].append(done))

    smallest, weights = least(run), sum(parameter.nbytes for parameter in models.load_plain(folder).model.parameters())
    peaks = {}
    for times in (1.0, 3.0):
        peaks[times], _ = peak(lambda gib=times * smallest: run(gib))
        assert peaks[times] <= times * smallest * GIB + weights, (times, peaks[times] / GIB, smallest)
    assert peaks[1.0] > 0.4 * smallest * GIB
    assert len(turns[3.0 * smallest]) < len(turns[smallest])


def test_what_is_walked_grows_linearly_in_pairs_and_sites(store, monkeypatch):
    walked = []
    walk = resume.walk

    def counted(stack, clean, index, entries, reduce):
        walked.append(sum((stack.n_layers - entry.layer) * len(entry.residual) * (clean.read_index + 1 - index) for entry in entries))
        return walk(stack, clean, index, entries, reduce)

    monkeypatch.setattr(resume, "walk", counted)

    def cost(pairs, sites):
        walked.clear()
        made = interchange(Request("p5", "c0", (0, 1), None, sites, pairs=pairs, sweep=True), root=store)
        return sum(walked), made.summary["n_pairs"]

    (one, few), (three, _), (twice, many) = cost(60, ("attn_out",)), cost(60, ("attn_out", "mlp_out", "z")), cost(120, ("attn_out",))
    # 4 arms; layer 0 has two blocks above it, layer 1 one; 5 indices with 5 to 1 left.
    assert one == 4 * (2 + 1) * (5 + 4 + 3 + 2 + 1) * few
    assert three == 3 * one
    assert twice * few == one * many


def test_predictions_grow_linearly_in_pairs_sites_and_arms():
    stack = RunStack(lean.init_params(SHAPE, 0), SHAPE)
    for index in range(5):
        cells = [budget.cell_bytes(stack, pairs, 5, index, arms, 17, 24) for pairs, arms in ((10, 4), (20, 4), (10, 8))]
        assert cells[1] == cells[2] == 2 * cells[0]
    assert budget.clean_bytes(stack, 20, 5) == 2 * budget.clean_bytes(stack, 10, 5)
    assert budget.statistics_bytes(20) == 2 * budget.statistics_bytes(10)
