"""Lens, rank, restriction maps and causal scaling against formulas written out, and the guards."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.hooks.tiny_models import save_model, save_run
from wallprobe import models
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.hooks.attach.prompt_sets import PromptSet, prompt_set
from wallprobe.hooks.flow.lens import flow, ranks_of
from wallprobe.hooks.flow.sheaf import head_figures, maps
from wallprobe.hooks.gains.rescale import rescale
from wallprobe.models import Loaded, hook_name
from wallprobe.store.results import load_result


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    root = tmp_path_factory.mktemp("models")
    names = ("neox", "gpt2", "llama")
    made = {name: models.load(str(save_model(name, root / name))) for name in names}
    return made | {"run": models.load(save_run(root / "runs"), root=root / "runs")}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory, loaded: dict[str, Loaded]) -> PromptSet:
    path = tmp_path_factory.mktemp("texts") / "two.txt"
    path.write_text("the quick brown fox jumps\nparis is the capital of france\n")
    return prompt_set(loaded["neox"], str(path))


def read(model: Loaded, prompts: PromptSet) -> PromptSet:
    return prompt_set(model, sequences=4) if model.run else prompts


@pytest.mark.parametrize("name", ["neox", "gpt2", "llama", "run"])
def test_the_last_row_of_the_lens_is_the_logits(name: str, loaded: dict[str, Loaded], prompts: PromptSet) -> None:
    model, chosen = loaded[name], read(loaded[name], prompts)
    result = flow(model, chosen)
    assert result.summary["lens_error"] < 1e-5
    entropies, losses = [], []
    for row in chosen.tokens:
        with torch.no_grad():
            log_p = model.model(row[None])[0].log_softmax(-1).double()
        entropies.append(float(-(log_p[-1].exp() * log_p[-1]).sum()))
        losses.append(float(-log_p[:-1].gather(-1, row[1:, None]).mean()))
    assert float(result.data["lens_entropy"][-1]) == pytest.approx(sum(entropies) / len(entropies), rel=1e-4)
    loss = sum(losses) / len(losses)
    assert result.summary["nll"] == pytest.approx(loss, rel=1e-4)
    vocabulary = model.model.cfg.d_vocab  # type: ignore[union-attr]
    assert result.summary["eta"] == pytest.approx((math.log(vocabulary) - loss) / result.summary["final_mlp_gain"], rel=1e-4)


def test_a_lens_that_is_not_the_logits_raises(loaded: dict[str, Loaded], prompts: PromptSet) -> None:
    handle = loaded["gpt2"].model.register_forward_hook(lambda module, given, logits: None if logits is None else logits * 1.01)
    try:
        with pytest.raises(InstrumentError, match="the logit lens after the last layer differs from the logits"):
            flow(loaded["gpt2"], prompts)
    finally:
        handle.remove()


def test_ranks_by_hand() -> None:
    """Singular values 3 and 1 of centred states: shares 0.9 and 0.1."""
    states = torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0], [0.0, -1.0]]).double()
    erank, participation = ranks_of(states + 7.0)
    assert erank == pytest.approx(math.exp(-0.9 * math.log(0.9) - 0.1 * math.log(0.1)))
    assert participation == pytest.approx(1 / (0.81 + 0.01))
    assert math.isnan(ranks_of(states[:1])[0])


def random_head(n: int = 5, d: int = 7, width: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    source = torch.Generator().manual_seed(2)
    scores = torch.randn(1, n, n, generator=source, dtype=torch.float64).masked_fill(torch.ones(n, n).triu(1).bool(), -torch.inf)
    return scores.softmax(-1), torch.randn(n, d, generator=source).double(), torch.randn(1, d, width, generator=source).double()


def test_the_sheaf_laplacian_written_out() -> None:
    """The coboundary has a row sqrt(A_ij) W_V (x_i - x_j) an edge; energy is x^T L x and the trace tr L, 2 (n - tr A) |W_V|^2."""
    pattern, given, value = random_head()
    n, d, width = 5, 7, 3
    rows = []
    for i in range(n):
        for j in range(i):
            row = torch.zeros(width, n * d, dtype=torch.float64)
            row[:, i * d : (i + 1) * d] = pattern[0, i, j].sqrt() * value[0].T
            row[:, j * d : (j + 1) * d] = -pattern[0, i, j].sqrt() * value[0].T
            rows.append(row)
    coboundary = torch.cat(rows)
    laplacian = coboundary.T @ coboundary
    found = head_figures(pattern, given, value, torch.ones(n, dtype=torch.bool))
    x, size = given.flatten(), (given @ value[0]).square().sum()
    assert float(found["energy"]) == pytest.approx(float(x @ laplacian @ x / size))
    assert float(found["graph_trace"] * value.square().sum() * n) == pytest.approx(float(laplacian.trace()))
    assert float(laplacian.trace()) == pytest.approx(float(2 * (n - pattern[0].trace()) * value.square().sum()))
    rank = int(torch.linalg.matrix_rank(laplacian))
    assert n * d - rank == n * d - (n - 1) * width  # harmonic dimension, one connected component
    squares = torch.linalg.eigvalsh(laplacian)
    smallest = float(squares[squares > 1e-9][0])
    sigma = torch.linalg.svdvals(value[0])[-1]
    assert float(found["gap"] * sigma**2) == pytest.approx(smallest)


def test_a_token_that_nothing_reads_is_a_component_of_its_own() -> None:
    """Five tokens, the last of which reads itself alone and is read by none: two components, and the gap is the other four's."""
    pattern, given, value = random_head()
    pattern[0, 4] = torch.tensor([0.0, 0.0, 0.0, 0.0, 1.0])
    found = head_figures(pattern, given, value, torch.ones(5, dtype=torch.bool))
    without = head_figures(pattern[:, :4, :4], given[:4], value, torch.ones(4, dtype=torch.bool))
    assert float(found["joined_share"]) == pytest.approx(3 / 5)
    assert float(found["gap"]) == pytest.approx(float(without["gap"]))


def test_energy_without_sinks_leaves_out_their_edges_and_tokens() -> None:
    pattern, given, value = random_head()
    keep = torch.tensor([False, True, True, True, True])
    found = float(head_figures(pattern, given, value, keep)["energy_no_sink"])
    seen = given @ value[0]
    edges = [(i, j) for i in range(1, 5) for j in range(1, i)]
    expected = sum(pattern[0, i, j] * (seen[i] - seen[j]).square().sum() for i, j in edges) / seen[1:].square().sum()
    assert found == pytest.approx(float(expected))


@pytest.mark.parametrize("name", ["neox", "llama", "run"])
def test_maps_of_a_model(name: str, loaded: dict[str, Loaded], prompts: PromptSet, tmp_path: Path) -> None:
    model, chosen = loaded[name], read(loaded[name], prompts)
    result = maps(model, chosen)
    assert (result.data["mean_sqrt_a"].values <= 1).all()
    assert (result.data["map_v"].values <= result.data["sigma_v"].values).all()
    share = result.data["contracting_share"].values
    assert result.summary["contracting_share"] == pytest.approx(float(share.mean()))
    assert result.summary["l_star_trace_peak"] == int(result.data["trace"].values.argmax())
    stored = load_result(result.save(tmp_path))
    assert stored.to_json() == result.to_json()


def test_scaling_by_hand(loaded: dict[str, Loaded], prompts: PromptSet) -> None:
    model = loaded["llama"]
    result = rescale(model, prompts, [1], "mlp", scales=(0.0, 2.0))
    assert [int(layer) for layer in result.data["layer"]] == [1, 0, 2]
    assert result.data["is_control"].values[:, 0, 0].tolist() == [0, 1, 1]
    total, count, changes = 0.0, 0, []
    for row in prompts.tokens:
        losses: list[Tensor] = []
        for factor in (1.0, 2.0):
            hook: Any = (hook_name(1, "mlp_out"), lambda value, hook, factor=factor: value * factor)
            with torch.no_grad():
                logits = model.model.run_with_hooks(row[None], fwd_hooks=[hook])  # type: ignore[operator]
            losses.append(torch.nn.functional.cross_entropy(logits[0, :-1], row[1:], reduction="sum"))
        changes.append(float(losses[1] - losses[0]))
        total, count = total + changes[-1], count + len(row) - 1
    assert float(result.data["delta_nll"].sel(layer=1, scale=2.0, place="all")) == pytest.approx(total / count, rel=1e-3, abs=1e-6)
    low, high = (float(result.data[f"delta_nll_{end}"].sel(layer=1, scale=2.0, place="all")) for end in ("low", "high"))
    each = sorted(change / (len(row) - 1) for change, row in zip(changes, prompts.tokens, strict=True))
    assert (low, high) == (pytest.approx(each[0], rel=1e-3), pytest.approx(each[1], rel=1e-3))  # a quarter of the resamples each
    one = result.data["delta_nll"].sel(scale=1.0, place="all").values
    assert (one == 0).all()
    for row in result.to_json()["values"]:
        if row["place"] == "sink":
            assert row["delta_nll"] is None  # these prompts have no sink


def test_scaling_refuses(loaded: dict[str, Loaded], prompts: PromptSet) -> None:
    for settings, words in (
        ({"branch": "norm"}, "no sub-layer 'norm'; there are: attn, mlp"),
        ({"layers": [3]}, "has no layer 3; there are 0 to 2"),
    ):
        with pytest.raises(ConfigError, match=words):
            rescale(loaded["llama"], prompts, **settings)
    short = PromptSet("one", ("the",), (prompts.tokens[0][:1],), (("the",),))
    with pytest.raises(ConfigError, match="has no next token"):
        rescale(loaded["llama"], short)


def test_the_commands_print_and_gains_fills_in_every_bottleneck(invoke: Any, loaded: dict[str, Loaded], tmp_path: Path) -> None:
    name = loaded["gpt2"].name
    for words, told in (
        (("flow", name), "the logit lens, and the rank of centred states"),
        (("maps", name), "means over heads and prompts"),
        (("rescale", name, "--layers", "1", "--prompts", "single"), "times 1 changed nothing"),
        (("gains", name, "--l-star"), "by logit-lens entropy, layer"),
    ):
        code, out, err = invoke(*words, "--device", "cpu")
        assert (code, err) == (0, ""), err
        assert told in out
    code, out, err = invoke("rescale", name, "--layers", "last")
    assert (code, out) == (2, "")
    assert "--layers 'last' is no list of whole numbers; give for instance 11,28" in err
