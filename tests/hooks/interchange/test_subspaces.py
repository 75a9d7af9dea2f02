"""Subspaces against answers worked out by hand, and interchange and ablation inside one against raw torch hooks."""

import math

import pytest
import torch
from sklearn.linear_model import LogisticRegression

from wallprobe import models
from wallprobe.errors import ConfigError, InstrumentError, UnknownNameError
from wallprobe.hooks.attach.interventions import Swap
from wallprobe.hooks.interchange import subspaces
from wallprobe.hooks.interchange.ablation import METRICS, Ablation, ablate, reading
from wallprobe.hooks.interchange.engines import PointHooks
from wallprobe.hooks.interchange.pairs import Pairs
from wallprobe.hooks.interchange.places import Place
from wallprobe.hooks.interchange.request import Request
from wallprobe.hooks.interchange.run import interchange
from wallprobe.hooks.interchange.subspaces import InSubspace, NormMatchedInside, parse, principal_axes, random_axes, row_span, share_inside
from wallprobe.hooks.probes.measure import STRENGTHS, Split
from wallprobe.hooks.probes.targets import Labels
from wallprobe.rng import generator
from wallprobe.store.runs import resolve_run
from wallprobe.tasks.recurrence import RecurrenceTask
from wallprobe.training.wall import lean

SHAPE = lean.Shape(n_layers=3, d_model=24, n_heads=3, n_ctx=16, vocabulary=17)


@pytest.fixture(scope="module")
def store(tmp_path_factory, write_run):
    root = tmp_path_factory.mktemp("runs")
    for name, seed in (("c0", 1), ("p5", 2)):
        rng = generator(seed, "subspace test")
        params = {key: value + 0.3 * torch.randn(value.shape, generator=rng) for key, value in lean.init_params(SHAPE, seed).items()}
        write_run(root, name, params, SHAPE)
    return root


def request(**rest):
    return Request("p5", "c0", **{"layers": (1,), "pairs": 120, **rest})


def test_a_swap_inside_one_axis_by_hand():
    base, donor = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[10.0, 20.0, 30.0]])
    second = torch.tensor([[0.0], [1.0], [0.0]])
    assert InSubspace(Swap(), second)(base, donor).tolist() == [[1.0, 20.0, 3.0]]
    diagonal = torch.tensor([[1.0], [1.0], [0.0]]) / math.sqrt(2)
    # (donor - base) . (1, 1, 0)/sqrt 2 = 27/sqrt 2, back along the axis: 13.5 each
    torch.testing.assert_close(InSubspace(Swap(), diagonal)(base, donor), torch.tensor([[14.5, 15.5, 3.0]]), rtol=0, atol=1e-5)


def test_its_own_state_or_no_dimension_changes_nothing_to_the_bit():
    base, donor = (torch.randn(50, 24, generator=generator(name)) for name in ("base", "donor"))
    axes = random_axes(24, 7, "axes")
    assert torch.equal(InSubspace(Swap(), axes)(base, base), base)
    assert torch.equal(InSubspace(Swap(), torch.zeros(24, 0))(base, donor), base)


def test_the_norm_control_keeps_what_is_outside_and_the_length_inside():
    base, donor = (torch.randn(50, 24, generator=generator(name)) for name in ("base", "donor"))
    axes = random_axes(24, 7, "axes")
    patched = NormMatchedInside(Swap(), axes, 0)(base, donor)
    torch.testing.assert_close((patched @ axes).norm(dim=1), (donor @ axes).norm(dim=1), rtol=1e-4, atol=1e-5)
    outside = torch.eye(24) - axes @ axes.mT
    torch.testing.assert_close(patched @ outside, base @ outside, rtol=0, atol=1e-5)
    assert torch.nn.functional.cosine_similarity(patched @ axes, donor @ axes).abs().max().item() < 0.99


def test_principal_axes_and_shares_of_variance_by_hand():
    # variances 9, 4 and 1 along known axes, not through the origin
    grid = torch.cartesian_prod(*(torch.tensor([-1.0, 1.0]) for _ in range(3))) * torch.tensor([3.0, 2.0, 1.0]) + 5.0
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator("turn"))).Q
    states = grid @ turn
    axes = principal_axes(states, 2)
    torch.testing.assert_close((axes.mT @ turn.mT).abs(), torch.eye(2, 3), rtol=0, atol=1e-5)
    assert share_inside(states, axes) == pytest.approx(13 / 14, abs=1e-6)
    assert share_inside(states, random_axes(3, 3, "all")) == pytest.approx(1.0, abs=1e-6)


def test_the_row_span_is_of_differences_of_rows():
    rows = torch.tensor([[1.0, 0.0, 0.0, 5.0], [0.0, 1.0, 0.0, 5.0], [-1.0, -1.0, 0.0, 5.0]])  # the last column is common to all
    axes = row_span([rows])
    assert axes.shape == (4, 2)
    torch.testing.assert_close(axes @ axes.mT, torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0])), rtol=0, atol=1e-6)
    weak = torch.tensor([[0.0, 0.0, 1e-6, 0.0], [0.0, 0.0, -1e-6, 0.0]])
    assert row_span([rows, weak]).shape == (4, 3)  # a strongly penalised probe counts


def test_probe_rows_are_those_of_scikit_learn_in_raw_coordinates():
    rng = generator("probe rows")
    states = torch.randn(1, 800, 6, generator=rng) * torch.tensor([1.0, 20.0, 0.1, 1.0, 3.0, 1.0]) + 7.0
    label = (states[0, :, 1] / 20 + 0.5 * torch.randn(800, generator=rng) > 0.35).long()
    everyone = torch.ones(800, dtype=torch.bool)
    wanted = Labels("class", 2, 0.5, label[:, None], torch.ones(800, 1).double(), everyone[:, None], everyone)
    split = Split.of(800)
    rows, accuracy = subspaces.probe_rows(states, label[None], wanted, split)
    standard = (states[0] - states[0, :500].mean(0)) / states[0, :500].std(0, correction=0)
    scores, least = (states[0].double() @ (rows[0, 1] - rows[0, 0]).double()), math.inf
    for strength in STRENGTHS:  # the path's own choice is among them; of two classes, |W|^2 is half of |w|^2
        theirs = LogisticRegression(C=2 / (500 * strength), tol=1e-8, max_iter=2000).fit(standard[:500], label[:500])
        wanted_scores = torch.tensor(theirs.decision_function(standard))
        apart = (scores - scores.mean()) - (wanted_scores - wanted_scores.mean())
        least = min(least, float(apart.norm() / (wanted_scores - wanted_scores.mean()).norm()))
    assert least < 0.03  # the path stops within 3e-4 nats of the optimum
    assert accuracy.item() > 0.75


def test_what_a_subspace_is_asked_for_by_name():
    assert parse("probes:a,b,a").targets == ("a", "b")
    assert (parse("pca:8").kind, parse("random:3").dims, str(parse("pca:8"))) == ("pca", 3, "pca:8")
    for text in ("pca", "pca:0", "pca:-1", "pca:x", "ball:3", "", "random:"):
        with pytest.raises(ConfigError, match=r"is no subspace; give probes:a,b, pca:8 or random:8"):
            parse(text)
    for text in ("probes:", "probes:entropy"):
        with pytest.raises(UnknownNameError, match=r"no probe target '.*'; there are: token, a, b, class"):
            parse(text)


def raw_patch(store, run, tokens, layer, index, patch, read):
    """Log-probabilities by torch's own forward hook on a plain call of the model."""
    model = models.load(run, root=store).model

    def overwrite(module, args, output):
        output = output.clone()
        output[:, index] = patch(output[:, index])
        return output

    handle = model.get_submodule(f"blocks.{layer}.hook_resid_pre").register_forward_hook(overwrite)
    with torch.no_grad():
        logits = model(tokens)
    handle.remove()
    return logits[:, read].double().log_softmax(-1)


def states_of(store, run, tokens, layer, index):
    seen = []
    model = models.load(run, root=store).model
    handle = model.get_submodule(f"blocks.{layer}.hook_resid_pre").register_forward_hook(lambda *given: seen.append(given[2].detach()))
    with torch.no_grad():
        model(tokens)
    handle.remove()
    return seen[0][:, index]


@pytest.mark.parametrize(("subspace", "index"), [("pca:5", 4), ("random:5", 3)])
def test_an_interchange_in_a_subspace_equals_raw_torch_hooks(store, subspace, index):
    record = interchange(request(indices=(index,), subspace=subspace), root=store).values[0]
    pairs = Pairs.programs(RecurrenceTask(), 120, horizon=5, seed=0)
    if subspace.startswith("pca"):
        fresh = RecurrenceTask().sample(4000, generator(0, "subspace")).tokens
        states = states_of(store, "c0", fresh, 1, index)
        axes = torch.linalg.svd(states - states.mean(0), full_matrices=False).Vh[:5].mT
    else:
        axes = random_axes(24, 5, 0, "treatment", 1, index)
    donor = states_of(store, "p5", pairs.donor, 1, index)
    # base and donor taken apart: everything outside the span from base, the inside from the donor
    keep, take = torch.eye(24) - axes @ axes.mT, axes @ axes.mT
    expected = raw_patch(store, "c0", pairs.base, 1, index, lambda base: base @ keep + donor @ take, 4).exp()
    for name, answer in (("rule", pairs.rule), ("import", pairs.imported), ("own", pairs.own)):
        assert abs(record[f"p_{name}"] - expected.gather(1, answer[:, None]).mean().item()) < 1e-5
    assert record["subspace_dims"] == 5
    assert record["self_patch_max_change"] == 0.0


def test_no_dimension_and_its_own_state_leave_the_answer_to_the_bit(store):
    pairs = Pairs.programs(RecurrenceTask(), 60, horizon=5, seed=0)
    dst = models.load("c0", root=store)
    whole, place = PointHooks("c0", lambda: dst, None), Place("resid_pre", 1, 3)
    seen, base = whole.look(pairs.base, [place])
    clean = seen[place]
    for axes, state in ((torch.zeros(24, 0), clean.roll(1, 0)), (random_axes(24, 9, "nine"), clean)):
        logits, at_hook = whole.patch(pairs.base, place, InSubspace(Swap(), axes)(clean, state))
        assert at_hook == 0.0
        assert torch.equal(logits, base)


@pytest.mark.parametrize("align", ["none", "ridge"])
def test_all_dimensions_are_the_whole_interchange(store, align):
    whole = interchange(request(align=align), root=store).values
    for kind in ("pca:24", "random:24"):
        for one, other in zip(interchange(request(align=align, subspace=kind), root=store).values, whole, strict=True):
            for name in ("rule", "import", "own"):
                assert abs(one[f"p_{name}"] - other[f"p_{name}"]) < 1e-5
                assert one[f"p_{name}_whole"] == other[f"p_{name}"]
                assert abs(one[f"p_{name}_span"] - other[f"p_{name}"]) < 1e-5
            assert one["subspace_variance"] == pytest.approx(1.0, abs=1e-5)


def test_probe_spans_are_said_with_their_size_accuracy_and_control(store):
    result = interchange(request(subspace="probes:token,class"), root=store)
    for record in result.values:
        assert 1 <= record["subspace_dims"] <= 17
        assert 0 <= record["probe_accuracy"] <= 1
        assert 0 < record["span_variance"] < 1
        assert record["p_own_span"] != record["p_own"]
    assert "in the span probes:token,class into c0" in result.summary["finding"]
    assert result.data.attrs["subspace"] == result.summary["subspace"] == "probes:token,class"
    assert interchange(request(subspace="probes:token,class"), root=store).values == result.values


def test_too_many_dimensions_are_refused(store):
    with pytest.raises(ConfigError, match=r"--subspace pca:25: the states have 24 dimensions; give at most 24"):
        interchange(request(subspace="pca:25"), root=store)


@pytest.mark.parametrize(("method", "index", "read"), [("mean", 4, 4), ("zero", 3, 4), ("mean", 9, 9)])
def test_an_ablation_equals_raw_torch_hooks(store, method, index, read):
    found = ablate(resolve_run("c0", store), Ablation("random:6", (1,), (index,), method=method, sequences=80)).values[0]
    drawn = RecurrenceTask().sample_programs(80, generator(0, "ablation")).tokens
    tokens = drawn[drawn[:, 0] != drawn[:, 1]]
    fresh = RecurrenceTask().sample(4000, generator(0, "subspace")).tokens
    mean = states_of(store, "c0", fresh, 1, index).mean(0) if method == "mean" else torch.zeros(24)
    axes = random_axes(24, 6, 0, "treatment", 1, index)
    keep, take = torch.eye(24) - axes @ axes.mT, axes @ axes.mT
    log = raw_patch(store, "c0", tokens, 1, index, lambda base: base @ keep + mean @ take, read)
    plain = raw_patch(store, "c0", tokens, 1, index, lambda base: base, read)
    answer = tokens[:, read + 1]
    assert found["p_answer"] == pytest.approx(log.exp()[torch.arange(len(answer)), answer].mean().item(), abs=1e-5)
    assert found["p_answer_base"] == pytest.approx(plain.exp()[torch.arange(len(answer)), answer].mean().item(), abs=1e-6)
    assert found["accuracy"] == pytest.approx((log.argmax(1) == answer).double().mean().item(), abs=1e-9)
    assert found["entropy"] == pytest.approx(-(log.exp() * log).sum(1).mean().item() / math.log(2), abs=1e-5)
    assert found["kl"] == pytest.approx(torch.nn.functional.kl_div(log, plain, log_target=True, reduction="batchmean").item(), abs=1e-5)
    assert found["self_patch_max_change"] == 0.0


def test_metrics_by_hand():
    log = torch.tensor([[0.5, 0.25, 0.25], [0.25, 0.5, 0.25]], dtype=torch.float64).log()
    base = torch.tensor([[0.25, 0.5, 0.25], [0.25, 0.5, 0.25]], dtype=torch.float64).log()
    found = reading(log, base, torch.tensor([0, 2]))
    assert found["accuracy"].tolist() == [1.0, 0.0]
    assert found["p_answer"].tolist() == pytest.approx([0.5, 0.25])
    assert found["entropy"].tolist() == pytest.approx([1.5, 1.5])
    assert found["kl"].tolist() == pytest.approx([0.25 * math.log(2), 0.0])  # 1/4 ln(1/2) + 1/2 ln 2


def test_an_ablation_of_everything_is_that_of_the_whole_state(store):
    result = ablate(resolve_run("c0", store), Ablation("random:24", None, (3, 4), sequences=60))
    assert len(result.values) == 6
    for record in result.values:
        for name in METRICS:
            assert record[name] == pytest.approx(record[f"{name}_whole"], abs=1e-5)
            assert record[name] == pytest.approx(record[f"{name}_span"], abs=1e-5)
        assert record["kl_base"] == 0.0
        assert record["p_answer_low"] <= record["p_answer"] <= record["p_answer_high"]
    assert "costs no more than random spans" in result.summary["finding"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": (3,)}, r"layer 3 does not exist in c0; give 0 to 2"),
        ({"indices": (15,)}, r"index 15 predicts no token of the sequence; give 0 to 14"),
        ({"method": "noise"}, r"--method noise is none of mean, zero"),
        ({"subspace": "pca:99"}, r"give at most 24"),
        ({"site": "nose"}, r"no site named 'nose'"),
        ({"site": "attn_out", "layers": (2,), "indices": (1,)}, r"read at its own index alone: give --index 4 or more"),
    ],
)
def test_what_cannot_be_ablated_is_named(store, change, message):
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        ablate(resolve_run("c0", store), Ablation(**({"subspace": "pca:2", "sequences": 40} | change)))


def test_an_ablation_that_changes_nothing_is_an_error(tmp_path, write_run):
    """Without attention nothing of index 3 reaches index 4."""
    params = lean.init_params(SHAPE, 0)
    params["W_O"], params["b_O"] = torch.zeros_like(params["W_O"]), torch.zeros_like(params["b_O"])
    run = write_run(tmp_path, "c0", params, SHAPE)
    with pytest.raises(InstrumentError, match=r"index 3 changed nothing"):
        ablate(run, Ablation("pca:2", (1,), (3,), sequences=40))
