"""The definitions that are no ratios of norms, the reductions, the positions and folding, each against its own oracle."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.hooks.tiny_models import ARCHITECTURES, save_model, save_run
from wallprobe import models
from wallprobe.errors import ConfigError, UnknownNameError
from wallprobe.hooks.attach.prompt_sets import PromptSet, prompt_set
from wallprobe.hooks.gains import definitions
from wallprobe.hooks.gains.definitions import Norms
from wallprobe.hooks.gains.measure import gains
from wallprobe.hooks.gains.operators import DIRECTIONS, spectral, tangents
from wallprobe.hooks.gains.published import PYTHIA
from wallprobe.hooks.gains.regimes import argmin, regime, regime_of
from wallprobe.models import Loaded, hook_name
from wallprobe.models.folding import folded
from wallprobe.rng import generator

TEXTS = "the quick brown fox jumps\nparis is the capital of france\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    (root / "prompts.txt").write_text(TEXTS)
    return {name: save_model(name, root / name) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    root = tmp_path_factory.mktemp("runs")
    return {name: models.load(str(folder)) for name, folder in folders.items()} | {"run": models.load(save_run(root), root=root)}


def read(model: Loaded, folders: dict[str, Path]) -> PromptSet:
    return prompt_set(model, None if model.run else str(folders["neox"].parent / "prompts.txt"), sequences=4)


def sublayers(model: Loaded, tokens: Tensor, layer: int, push: Tensor) -> tuple[Tensor, Tensor]:
    """What both sub-layers add when the residual they read is pushed by a vector; attention's change does not reach the MLP."""
    points: Any = model.model.hook_dict  # type: ignore[union-attr]
    seen: dict[str, Tensor] = {}

    def keep(site: str, first: Tensor | None = None) -> Any:
        def hook(value: Tensor, hook: Any = None) -> Tensor:
            seen[site] = value.clone()
            return value if first is None else first

        return hook

    def run(hooks: dict[str, Any]) -> None:
        for site, hook in hooks.items():
            points[hook_name(layer, site)].add_hook(hook)
        with torch.no_grad():
            model.model(tokens, return_type=None, **({} if model.run else {"attention_mask": torch.ones_like(tokens)}))
        for site in hooks:
            points[hook_name(layer, site)].remove_hooks()

    run({"attn_out": keep("unmoved")})
    run(
        {
            "resid_pre": lambda value, hook=None: value + push,
            "attn_out": keep("attn_out", seen["unmoved"]),
            "mlp_out": keep("mlp_out"),
        }
    )
    return seen["attn_out"], seen["mlp_out"]


@pytest.mark.parametrize("name", [*ARCHITECTURES, "run"])
def test_the_jacobian_is_that_of_finite_differences(name: str, loaded: dict[str, Loaded], folders: dict[str, Path]) -> None:
    model = loaded[name]
    tokens = read(model, folders).tokens[0][None]
    (terms,) = tangents(model, tokens, seed=3)
    layer, step = 1, 3e-3
    expected = torch.zeros(2, tokens.shape[1], dtype=torch.float64)
    for draw in range(DIRECTIONS):
        direction = torch.randn((tokens.shape[1], model.d_model), generator=generator(3, draw, "jacobian", layer))
        above, below = (sublayers(model, tokens, layer, sign * step * direction) for sign in (1, -1))
        for row in range(2):
            expected[row] += ((above[row] - below[row]) / (2 * step)).double().square().sum(-1)[0]
    torch.testing.assert_close(terms.attn_over[layer], expected[0], rtol=0.02, atol=1e-4)
    torch.testing.assert_close(terms.mlp_over[layer], expected[1], rtol=0.02, atol=1e-4)
    assert float(terms.attn_under[layer].mean()) == pytest.approx(DIRECTIONS * model.d_model, rel=0.2)


def test_the_jacobian_alone_is_of_the_function(folders: dict[str, Path]) -> None:
    """gamma x 2 with W_in / 2 is the same function: `sublayer` halves, `jacobian` stays."""
    plain, scaled = (models.load(str(folders["llama"])) for _ in range(2))
    original: Any = scaled.model.original_model  # type: ignore[operator]
    with torch.no_grad():
        for layer in original.model.layers:
            layer.post_attention_layernorm.weight.mul_(2.0)
            for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
                linear.weight.mul_(0.5)
    chosen = read(plain, folders)
    for definition, factor in (("sublayer", 0.5), ("jacobian", 1.0)):
        before, after = (gains(model, chosen, definition).data["mlp_gain"].values for model in (plain, scaled))
        torch.testing.assert_close(torch.from_numpy(after), factor * torch.from_numpy(before), rtol=1e-4, atol=1e-9)


def by_hand(folder: Path, architecture: str, layer: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Per head W_O W_V [d_model, d_model], W_in and W_out, from the file; 4 heads of 8, GPT-NeoX interleaved per head."""
    state = load_file(folder / "model.safetensors")
    if architecture.startswith("neox"):
        p = {key.split(f"layers.{layer}.")[1]: value for key, value in state.items() if f"layers.{layer}." in key}
        value = p["attention.query_key_value.weight"].view(4, 3, 8, 32)[:, 2]
        out = p["attention.dense.weight"].view(32, 4, 8)
        return [out[:, h] @ value[h] for h in range(4)], p["mlp.dense_h_to_4h.weight"], p["mlp.dense_4h_to_h.weight"]
    if architecture == "gpt2":
        p = {key.split(f"h.{layer}.")[1]: value for key, value in state.items() if f"h.{layer}." in key}
        value = p["attn.c_attn.weight"][:, 64:].T.reshape(4, 8, 32)
        out = p["attn.c_proj.weight"].T.reshape(32, 4, 8)
        return [out[:, h] @ value[h] for h in range(4)], p["mlp.c_fc.weight"], p["mlp.c_proj.weight"]
    p = {key.split(f"layers.{layer}.")[1]: value for key, value in state.items() if f"layers.{layer}." in key}
    value, out = p["self_attn.v_proj.weight"].view(2, 8, 32), p["self_attn.o_proj.weight"].view(32, 4, 8)
    return [out[:, h] @ value[h // 2] for h in range(4)], p["mlp.up_proj.weight"], p["mlp.down_proj.weight"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_spectral_norms_from_the_file(architecture: str, folders: dict[str, Path], loaded: dict[str, Loaded]) -> None:
    attn, mlp = spectral(loaded[architecture])
    for layer in range(3):
        heads, inner, outer = by_hand(folders[architecture], architecture, layer)
        expected = max(float(torch.linalg.svdvals(head.double())[0]) for head in heads)
        assert float(attn[layer]) == pytest.approx(expected, rel=1e-6)
        both = torch.linalg.svdvals(inner.double())[0] * torch.linalg.svdvals(outer.double())[0]
        assert float(mlp[layer]) == pytest.approx(float(both), rel=1e-6)
    result = gains(loaded[architecture], read(loaded[architecture], folders), "spectral")
    torch.testing.assert_close(torch.from_numpy(result.data["attn_gain"].values), attn)
    torch.testing.assert_close(torch.from_numpy(result.data["mlp_gain_no_sink"].values), mlp)


@pytest.mark.parametrize(
    ("name", "expected"), [("ratio_of_means", 14 / 7), ("mean_of_ratios", 7 / 3), ("geomean", 8 ** (1 / 3)), ("median", 2.0)]
)
def test_reductions_by_hand(name: str, expected: float) -> None:
    """Three tokens count: 4 over 1, 8 over 4, 2 over 2; the fourth does not."""
    over, under = torch.tensor([[4.0, 8.0, 2.0, 99.0]]).double(), torch.tensor([[1.0, 4.0, 2.0, 1.0]]).double()
    keep = torch.tensor([True, True, True, False])
    reduction = definitions.get_reduction(name)[1]
    assert float(definitions.reduce(reduction, over, under, keep)) == pytest.approx(expected)
    assert float(definitions.reduce(reduction, over, under, keep, 2)) == pytest.approx(expected**0.5)
    assert definitions.reduce(reduction, over, under, ~keep & keep).isnan().all()


def test_positions_by_hand() -> None:
    quiet = torch.ones(2, 5, dtype=torch.float64)
    loud = quiet.clone()
    loud[1, 2] = 11.0
    norms = Norms(loud, *(quiet for _ in range(12)))
    kept = {name: keep.tolist() for name, keep in definitions.keeps(norms).items()}
    assert kept == {
        "all": [True] * 5,
        "no_sink": [True, True, False, True, True],
        "no_first": [False, True, True, True, True],
        "last": [False, False, False, False, True],
    }


def test_positions_and_reductions_reach_the_result(loaded: dict[str, Loaded], folders: dict[str, Path]) -> None:
    chosen = read(loaded["gpt2"], folders)
    result = gains(loaded["gpt2"], chosen, tokens="median", positions="no_first")
    assert (result.summary["tokens"], result.summary["positions"]) == ("median", "no_first")
    assert result.manifest["reduction"].startswith("median over tokens")
    single = PromptSet("one", chosen.texts[:1], (chosen.tokens[0][-1:],), (chosen.pieces[0][-1:],))
    alone = gains(loaded["gpt2"], single)
    assert alone.summary["final_mlp_gain_last"] == alone.summary["final_mlp_gain"]
    assert alone.to_json()["summary"]["final_mlp_gain_no_first"] is None
    for name in ("reduction", "positions"):
        with pytest.raises(UnknownNameError, match="there are: "):
            gains(loaded["gpt2"], chosen, **{"tokens" if name == "reduction" else name: "nothing"})


def test_nets_by_hand(loaded: dict[str, Loaded], folders: dict[str, Path]) -> None:
    model = loaded["llama"]
    chosen = read(model, folders)
    result, cache = gains(model, chosen), []
    for row in chosen.tokens:
        _, one = model.model.run_with_cache(row[None])  # type: ignore[operator]
        cache.append(one)
    for layer in range(3):
        x = [one[hook_name(layer, "resid_pre")][0].norm(dim=-1).mean() for one in cache]
        after = [one[hook_name(layer, "resid_post")][0].norm(dim=-1).mean() for one in cache]
        expected = torch.stack([up / down for up, down in zip(after, x, strict=True)]).mean()
        assert float(result.data["net_block"][layer]) == pytest.approx(float(expected), rel=1e-5)
        both = [(one[hook_name(layer, "attn_out")] + one[hook_name(layer, "mlp_out")])[0].norm(dim=-1).mean() for one in cache]
        given = [one[f"blocks.{layer}.ln1.hook_out"][0].norm(dim=-1).mean() for one in cache]
        expected = torch.stack([up / down for up, down in zip(both, given, strict=True)]).mean()
        assert float(result.data["net_sum"][layer]) == pytest.approx(float(expected), rel=1e-5)
    below = int((result.data["net_product"].values < 1).sum())
    assert result.summary["net_contracting"] == f"{below}/3"


def test_folding_keeps_the_logits_and_moves_the_gains_to_the_unit_gauge(folders: dict[str, Path]) -> None:
    raw, other = (models.load(str(folders["llama"])) for _ in range(2))
    chosen = read(raw, folders)
    unit = gains(raw, chosen, "sublayer_unit").data
    plain = gains(raw, chosen).data
    with torch.no_grad():
        before = raw.model(chosen.tokens[0][None]).log_softmax(-1)
        bent = folded(other)
        after = bent.model(chosen.tokens[0][None]).log_softmax(-1)
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    result = gains(bent, chosen)
    assert result.manifest["weight_processing"] == "norms folded (transformer-lens)"
    for name in ("attn_gain", "mlp_gain"):
        got = torch.from_numpy(result.data[name].values)
        torch.testing.assert_close(got, torch.from_numpy(unit[name].values), rtol=1e-3, atol=1e-6)
        assert not torch.allclose(got, torch.from_numpy(plain[name].values), rtol=0.05)


def test_a_folding_that_changes_the_model_is_refused(folders: dict[str, Path]) -> None:
    """transformer-lens 3.9 folds GPT-2's final norm into a tied unembedding."""
    with pytest.raises(ConfigError, match=r"changes what .*gpt2 predicts .* --gain sublayer_unit has the folded gains"):
        folded(models.load(str(folders["gpt2"])))


def test_the_regime_rule_gives_the_seeds_labels_and_says_when_it_cannot() -> None:
    assert [regime(one.early, one.middle, one.final_mlp_gain).name for one in PYTHIA] == [one.regime for one in PYTHIA]
    assert regime(0.3, 0.4, 1.0).name == "UNCLASSIFIED"
    found = regime_of([0.5, 0.25, 1.0, 1.0, 4.0, 2.0, 1.0, 8.0])  # q = 2: early (0.5, 0.25), middle (1, 1, 4, 2)
    assert (found.early, found.middle, found.final) == (pytest.approx(0.125**0.5), pytest.approx(8**0.25), 8.0)
    assert (found.name, found.margins["final"]) == ("VASE", 7.0)
    assert (argmin([3.0, float("nan"), 1.0, 1.0]), argmin([float("nan")])) == (2, None)
