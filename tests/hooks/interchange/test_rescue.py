"""Writer-state rescue: matched indices by hand, moves against raw torch hooks, and a network that is rescued by construction."""

import pytest
import torch

from wallprobe import models
from wallprobe.errors import ConfigError
from wallprobe.hooks.interchange.rescue import draw_matched, finding, matches, rescue, stages
from wallprobe.rng import generator
from wallprobe.store.results import load_result
from wallprobe.store.runs import resolve_run
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.training.wall import lean

SHAPE = lean.Shape(n_layers=2, d_model=24, n_heads=3, n_ctx=16, vocabulary=17)


def shaken(seed, shape=SHAPE):
    rng = generator(seed, "rescue test")
    return {name: tensor + 0.3 * torch.randn(tensor.shape, generator=rng) for name, tensor in lean.init_params(shape, seed).items()}


@pytest.fixture(scope="module")
def store(tmp_path_factory, write_run):
    root = tmp_path_factory.mktemp("runs")
    write_run(root, "c0", shaken(1), SHAPE)
    return root


@pytest.fixture(scope="module")
def measured(store):
    return rescue(resolve_run("c0", store), sequences=60)


def test_matched_indices_by_hand():
    """x' = 4 x (mod 17) from 1 has period 4; x' = 2 x period 8; a sequence that stands still has none, nor one that never returns."""
    rows = [[1, 4, 16, 13] * 4, [1, 2, 4, 8, 16, 15, 13, 9] * 2, [3] * 16, list(range(16))]
    found = matches(torch.tensor(rows), 5)
    pairs = [{(source + 2, target + 5) for source, target in row.nonzero().tolist()} for row in found]
    assert pairs[0] == {(s, u) for s in (2, 3, 4) for u in range(5, 15) if (u - s) % 4 == 0}
    assert pairs[1] == {(2, 10), (3, 11), (4, 12)}
    assert pairs[2] == pairs[3] == set()


def test_drawn_pairs_hold_one_token_and_have_one_answer():
    matched = draw_matched(RecurrenceTask(), 5, 300, 0)
    rows = torch.arange(300)
    assert torch.equal(matched.tokens[rows, matched.source], matched.tokens[rows, matched.target])
    assert torch.equal(matched.tokens[rows, matched.source + 1], matched.answer)
    assert torch.equal(matched.tokens[rows, matched.target + 1], matched.answer)
    assert (int(matched.source.min()), int(matched.source.max())) == (2, 4)
    assert (int(matched.target.min()), int(matched.target.max())) == (5, 14)
    assert not bool((matched.answer[matched.other] == matched.answer).any())
    for row in range(40):
        x = matched.tokens[matched.other[row]].tolist()
        slope = (x[2] - x[1]) * pow(x[1] - x[0], -1, 17) % 17
        assert matched.rule[row].item() == (slope * (matched.tokens[row, matched.target[row]].item() - x[0]) + x[1]) % 17


def test_every_stage_equals_raw_torch_hooks(store, measured):
    matched, model = draw_matched(RecurrenceTask(), 5, 60, 0), models.load("c0", root=store).model
    rows, tokens = torch.arange(60), matched.tokens[:, :-1]
    for block, hook in enumerate(stages(2)):
        module, seen = model.get_submodule(hook), []
        handle = module.register_forward_hook(lambda module, given, output, seen=seen: seen.append(output.detach().clone()))
        with torch.no_grad():
            plain = model(tokens)
        handle.remove()
        for donors, answer, name in (
            (rows, matched.answer, "accuracy"),
            (matched.other, matched.answer[matched.other], "accuracy_redirect"),
        ):
            moved = seen[0][donors, matched.source[donors]]

            def overwrite(module, given, output, moved=moved):
                output = output.clone()
                output[rows, matched.target] = moved
                return output

            handle = module.register_forward_hook(overwrite)
            with torch.no_grad():
                logits = model(tokens)[rows, matched.target]
            handle.remove()
            assert float(measured.data[name][block]) == pytest.approx((logits.argmax(1) == answer).double().mean().item(), abs=1e-9)
        before = (plain[rows, matched.target].argmax(1) == matched.answer).double().mean().item()
        assert measured.summary["accuracy_before"] == pytest.approx(before, abs=1e-9)
    assert measured.summary["self_patch_max_change"] == 0.0


def test_after_the_last_block_the_answer_is_the_donors(measured):
    assert float(measured.data["accuracy"][-1]) == measured.summary["accuracy_donor"]


def broken_beyond(shape):
    """A network without blocks' work that says x + 1 up to index 4; the position embeddings beyond tip it to say x + 2."""
    params = {name: torch.zeros_like(tensor) for name, tensor in lean.init_params(shape, 0).items()}
    for name in ("ln1_w", "ln2_w", "ln_w"):
        params[name] += 1.0
    params["W_E"][:, :17] = torch.eye(17)
    params["W_pos"][5:, 17:34] = 0.0
    params["W_pos"][5:, 17] = 4.0
    for token in range(17):
        params["W_U"][token, (token + 1) % 17] = 3.0
    params["W_U"][17, :] = torch.where(torch.arange(17) == 0, 9.0, 0.0)
    return params


def test_a_network_spoilt_by_positions_alone_is_rescued_at_the_embedding(tmp_path, write_run):
    """It answers x + 1 where the position leaves it alone and 0 beyond: the moved embedding is all it takes."""
    shape = lean.Shape(n_layers=2, d_model=36, n_heads=3, n_ctx=16, vocabulary=17)
    run = write_run(tmp_path, "c0", broken_beyond(shape), shape)
    result = rescue(run, sequences=200)
    matched = draw_matched(RecurrenceTask(), 5, 200, 0)
    said = (matched.tokens[torch.arange(200), matched.target] + 1) % 17
    expected = (said == matched.answer).double().mean().item()
    for block in range(3):
        assert float(result.data["accuracy"][block]) == pytest.approx(expected, abs=1e-9)
    assert result.summary["accuracy_donor"] == pytest.approx(expected, abs=1e-9)
    assert result.summary["accuracy_before"] == pytest.approx((matched.answer == 0).double().mean().item(), abs=1e-9)


def test_a_result_is_whole_and_survives_the_store(measured, store, tmp_path):
    assert measured.kind == "rescue"
    assert [record["block"] for record in measured.values] == [0, 1, 2]
    for key in ("accuracy_embedding", "accuracy_block1", "accuracy_redirect_block2", "accuracy_norm_block1", "accuracy_random_embedding"):
        assert measured.summary[f"{key}_low"] <= measured.summary[key] <= measured.summary[f"{key}_high"]
    by_index = measured.data["accuracy_by_index"].values[1]
    counts = measured.data["sequences_by_index"].values
    told = counts > 0
    assert float((by_index[told] * counts[told]).sum() / 60) == pytest.approx(float(measured.data["accuracy"][1]))
    assert load_result(measured.save(tmp_path)).values == measured.values
    assert rescue(resolve_run("c0", store), sequences=60).values == measured.values


@pytest.mark.parametrize(("low", "words"), [(0.5, "rescues the answer from the embedding on"), (0.1, "never rescues the answer")])
def test_the_sentence_says_what_the_intervals_allow(low, words):
    summary = {"run": "c0", "accuracy_before": 0.2, "accuracy_before_low": 0.15, "accuracy_before_high": 0.25, "chance": 1 / 17}
    for name in ("embedding", "block1", "block2", "block3"):
        summary |= {f"accuracy_{name}": 0.6, f"accuracy_{name}_low": low, f"accuracy_{name}_high": 0.7, f"accuracy_redirect_{name}": 0.3}
    assert words in finding(summary, 4)


def test_too_few_returning_sequences_are_refused(tmp_path, write_run):
    shape = lean.Shape(n_layers=1, d_model=12, n_heads=2, n_ctx=16, vocabulary=17)
    run = write_run(tmp_path, "c0", lean.init_params(shape, 0), shape)
    with pytest.raises(ConfigError, match=r"programs come back to a token behind the wall; ask for more with --sequences"):
        rescue(run, sequences=10)
    with pytest.raises(ConfigError, match=r"no index inside the wall knows the rule, or none is beyond it"):
        draw_matched(RecurrenceTask(length=6), 5, 100, 0)
