"""Gains against oracles that import nothing from the engine, against a model worked out by hand, and the guards."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from tests.hooks.tiny_models import ARCHITECTURES, save_model, save_run, save_tokenizer
from wallprobe import models
from wallprobe.errors import ConfigError, InstrumentError, UnknownNameError
from wallprobe.hooks.attach.prompt_sets import PromptSet, prompt_set
from wallprobe.hooks.gains.definitions import DEFINITIONS
from wallprobe.hooks.gains.measure import gains, measure_norms
from wallprobe.models import Loaded
from wallprobe.rng import generator
from wallprobe.store.results import load_result

PROMPTS = "the quick brown fox jumps\nparis is the capital of france\nover the lazy dog near river\n<pad> the tower <pad> is known\n"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    (root / "prompts.txt").write_text(PROMPTS)
    return {name: save_model(name, root / name) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path]) -> dict[str, Loaded]:
    return {name: models.load(str(folder)) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def prompts(folders: dict[str, Path], loaded: dict[str, Loaded]) -> PromptSet:
    return prompt_set(loaded["neox"], str(folders["neox"].parent / "prompts.txt"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    root = tmp_path_factory.mktemp("runs")
    return models.load(save_run(root), root=root)


def blocks_of(model: Any) -> list[tuple[nn.Module, nn.Module]]:
    """Attention and MLP modules of a transformers model, by hand."""
    if hasattr(model, "gpt_neox"):
        return [(layer.attention, layer.mlp) for layer in model.gpt_neox.layers]
    if hasattr(model, "transformer"):
        return [(layer.attn, layer.mlp) for layer in model.transformer.h]
    return [(layer.self_attn, layer.mlp) for layer in model.model.layers]


def oracle_sublayer(folder: Path, texts: list[str]) -> Tensor:
    """The gains study's own measurement: forward hooks on the modules, argument against output; [branch, layer], mean over prompts."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    seen: dict[tuple[int, int], list[float]] = {}

    def watch(key: tuple[int, int]) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            given = args[0] if args else kwargs["hidden_states"]
            out = output[0] if isinstance(output, tuple) else output
            seen.setdefault(key, []).append(float(out.norm(dim=-1).mean() / given.norm(dim=-1).mean()))

        return hook

    pairs = blocks_of(model)
    for layer, pair in enumerate(pairs):
        for branch, module in enumerate(pair):
            module.register_forward_hook(watch((branch, layer)), with_kwargs=True)
    with torch.no_grad():
        for text in texts:
            model(torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]]), use_cache=False)
    return torch.tensor([[sum(seen[branch, layer]) / len(texts) for layer in range(len(pairs))] for branch in (0, 1)])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_agrees_with_plain_torch_hooks(architecture: str, folders: dict[str, Path], loaded: dict[str, Loaded], prompts: PromptSet) -> None:
    result = gains(loaded[architecture], prompts)
    expected = oracle_sublayer(folders[architecture], list(prompts.texts))
    for branch, name in enumerate(("attn_gain", "mlp_gain")):
        measured = torch.from_numpy(result.data[name].values).float()
        torch.testing.assert_close(measured, expected[branch], rtol=1e-5, atol=1e-7)
    assert result.summary["residual_identity_error"] < 1e-6
    assert loaded[architecture].parallel == (architecture == "neox")


def oracle_run(state: dict[str, Tensor], tokens: Tensor, heads: int) -> list[dict[str, Tensor]]:
    """A pre-norm GPT written out: the norms of every block, [batch, index]."""
    x = state["embed.W_E"][tokens] + state["pos_embed.W_pos"][: tokens.shape[1]]
    rows = []
    layers = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    future = torch.ones(tokens.shape[1], tokens.shape[1]).triu(1).bool()
    for layer in range(layers):
        p = {name.split(".", 2)[2]: tensor for name, tensor in state.items() if name.startswith(f"blocks.{layer}.")}
        given = F.layer_norm(x, x.shape[-1:], p["ln1.w"], p["ln1.b"], 1e-5)
        q, k, v = (torch.einsum("bid,hde->bhie", given, p[f"attn.W_{one}"]) + p[f"attn.b_{one}"][None, :, None] for one in "QKV")
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(future, -torch.inf)
        attn = torch.einsum("bhie,hed->bid", scores.softmax(-1) @ v, p["attn.W_O"]) + p["attn.b_O"]
        mid = x + attn
        inner = F.layer_norm(mid, x.shape[-1:], p["ln2.w"], p["ln2.b"], 1e-5)
        mlp = F.gelu(inner @ p["mlp.W_in"] + p["mlp.b_in"]) @ p["mlp.W_out"] + p["mlp.b_out"]
        named = {
            "resid_pre": x,
            "attn_in": given,
            "attn_out": attn,
            "mlp_read": mid,
            "mlp_in": inner,
            "mlp_out": mlp,
            "resid_post": mid + mlp,
        }
        rows.append({name: value.norm(dim=-1) for name, value in named.items()})
        x = mid + mlp
    return rows


def test_run_agrees_with_a_written_out_transformer(run: Loaded) -> None:
    assert run.run is not None
    chosen = prompt_set(run, sequences=6)
    expected = oracle_run(load_file(run.run.weights_path), torch.stack(chosen.tokens), heads=2)
    for number, norms in enumerate(measure_norms(run, torch.stack(chosen.tokens))):
        for layer, row in enumerate(expected):
            for name, value in row.items():
                torch.testing.assert_close(getattr(norms, name)[layer].float(), value[number], rtol=1e-5, atol=1e-6, msg=name)
    result = gains(run, chosen)
    by_hand = torch.stack([(row["attn_out"].mean(-1) / row["attn_in"].mean(-1)).mean() for row in expected])
    torch.testing.assert_close(torch.from_numpy(result.data["attn_gain"].values).float(), by_hand, rtol=1e-5, atol=1e-7)


def hand_model() -> Loaded:
    """One block, d = 4, every token the vector u = (1, -1, 1, -1), which LayerNorm leaves alone (eps 0).

    |u| = 2. LN1 = 3u (6). Attention averages equal values and doubles them: A = 2 x 3u = 6u (12). x + A = 7u (14), LN2 = 5u (10).
    The MLP reads 5u, keeps its positive part 5 (1, 0, 1, 0) and writes M = 4 of it: (20, 0, 20, 0), norm 20 sqrt 2.
    """
    config = HookedTransformerConfig(
        n_layers=1,
        d_model=4,
        n_heads=1,
        d_head=4,
        d_mlp=4,
        n_ctx=5,
        d_vocab=2,
        act_fn="relu",
        normalization_type="LN",
        eps=0.0,
        init_weights=False,
        device="cpu",
    )
    model = HookedTransformer(config)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    block, eye = model.blocks[0], torch.eye(4)
    with torch.no_grad():
        model.embed.W_E.copy_(torch.tensor([[1.0, -1.0, 1.0, -1.0], [1.0, -1.0, 1.0, -1.0]]))
        block.ln1.w.fill_(3.0)
        block.ln2.w.fill_(5.0)
        model.ln_final.w.fill_(1.0)
        block.attn.W_V.copy_(eye[None])
        block.attn.W_O.copy_(2.0 * eye[None])
        block.mlp.W_in.copy_(eye)
        block.mlp.W_out.copy_(4.0 * eye)
    return Loaded("hand", "folder", model.eval(), 1, 4, None)


def test_a_parallel_hooked_transformer() -> None:
    """What an official Pythia is where the hub is reachable: both branches read x, and no resid_mid exists."""
    config = HookedTransformerConfig(
        n_layers=2,
        d_model=8,
        n_heads=2,
        d_head=4,
        n_ctx=6,
        d_vocab=5,
        act_fn="gelu",
        parallel_attn_mlp=True,
        init_weights=False,
        device="cpu",
    )
    hooked, source = HookedTransformer(config).eval(), torch.Generator().manual_seed(3)
    for parameter in hooked.parameters():
        nn.init.normal_(parameter, std=0.5, generator=source)
    model = Loaded("parallel", "hub", hooked, 2, 8, None, parallel=True)
    tokens = torch.tensor([[0, 3, 1, 4, 2, 2]])
    (norms,) = measure_norms(model, tokens)
    torch.testing.assert_close(norms.mlp_read, norms.resid_pre, rtol=0.0, atol=0.0)
    _, cache = hooked.run_with_cache(tokens)
    for layer in range(2):
        x, attn, mlp = (cache[f"blocks.{layer}.hook_{site}"][0] for site in ("resid_pre", "attn_out", "mlp_out"))
        torch.testing.assert_close(norms.mlp_sum[layer].float(), (x + mlp).norm(dim=-1), rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(norms.resid_post[layer].float(), (x + attn + mlp).norm(dim=-1), rtol=1e-5, atol=1e-7)
        assert not torch.allclose(norms.mlp_sum[layer], norms.resid_post[layer], rtol=1e-3, atol=0.0)


def hand_prompts(*rows: list[int]) -> PromptSet:
    texts = tuple(" ".join(map(str, row)) for row in rows)
    return PromptSet("hand", texts, tuple(torch.tensor(row) for row in rows), tuple(tuple(map(str, row)) for row in rows))


@pytest.mark.parametrize(
    ("definition", "attn", "mlp"),
    [
        ("sublayer", 2.0, 2.0 * 2**0.5),
        ("sublayer_unit", 6.0, 10.0 * 2**0.5),
        ("update_ratio", 6.0, 20.0 * 2**0.5 / 14.0),
        ("resid_ratio", 7.0, (27.0**2 + 7.0**2) ** 0.5 * 2**0.5 / 14.0),
    ],
)
def test_integers_by_hand(definition: str, attn: float, mlp: float) -> None:
    result = gains(hand_model(), hand_prompts([0, 1, 0, 1, 0], [1, 1, 0]), definition)
    assert float(result.data["attn_gain"][0]) == pytest.approx(attn, rel=1e-7, abs=0)
    assert float(result.data["mlp_gain"][0]) == pytest.approx(mlp, rel=1e-7, abs=0)
    assert float(result.data["ln1_norm"][0]) == pytest.approx(6.0, rel=1e-7, abs=0)
    assert float(result.data["attn_mlp_cosine"][0]) == pytest.approx(0.5**0.5, rel=1e-6, abs=0)
    assert result.summary["attn_contracting"] == "0/1"
    assert result.summary["residual_identity_error"] == 0.0


def test_a_sink_is_found_listed_and_left_out() -> None:
    """Token 1 is 100 u: 50 times the median where it stands once among five, and its norm stands apart from LN's output."""
    model = hand_model()
    model.model.embed.W_E.data[1] *= 100.0  # type: ignore[union-attr,operator]
    result = gains(model, hand_prompts([0, 1, 0, 0, 0], [0, 0, 0]), "update_ratio")
    assert [(item["prompt"], item["position"], item["token"], item["times_median"]) for item in result.manifest["sinks"]] == [
        (0, 1, "1", 100.0)
    ]
    assert "prompt 0 position 1 '1' (100x)" in result.summary["sinks"]
    with_sink = (5 * 12 / (4 * 2 + 200) + 6) / 2
    assert float(result.data["attn_gain"][0]) == pytest.approx(with_sink, rel=1e-6, abs=0)
    assert float(result.data["attn_gain_no_sink"][0]) == pytest.approx(6.0, rel=1e-6, abs=0)
    assert float(result.data["attn_sink_share"][0]) == pytest.approx(0.1, rel=1e-6, abs=0)


def test_sublayer_depends_on_how_a_norm_is_written_and_sublayer_unit_does_not(folders: dict[str, Path], prompts: PromptSet) -> None:
    """gamma x 2 with W_in / 2 is the same function; the study's gain halves."""
    plain, scaled = models.load(str(folders["neox"])), models.load(str(folders["neox"]))
    original: Any = scaled.model.original_model  # type: ignore[operator]
    with torch.no_grad():
        for layer in original.gpt_neox.layers:
            for name, parameter in layer.named_parameters():
                if "post_attention_layernorm" in name:
                    parameter.mul_(2.0)
                if "dense_h_to_4h" in name and name.endswith("weight"):
                    parameter.mul_(0.5)
    for definition, factor in (("sublayer", 0.5), ("sublayer_unit", 1.0), ("update_ratio", 1.0)):
        before, after = (gains(model, prompts, definition).data["mlp_gain"].values for model in (plain, scaled))
        torch.testing.assert_close(torch.from_numpy(after), factor * torch.from_numpy(before), rtol=1e-6, atol=1e-9)


def test_batched_equals_single(loaded: dict[str, Loaded], prompts: PromptSet) -> None:
    rows = [row for row in prompts.tokens if len(row) == 6]
    assert len(rows) >= 3
    together = measure_norms(loaded["neox"], torch.stack(rows))
    for row, norms in zip(rows, together, strict=True):
        (alone,) = measure_norms(loaded["neox"], row[None])
        for name in ("resid_pre", "attn_in", "attn_out", "mlp_in", "mlp_out", "resid_post"):
            torch.testing.assert_close(getattr(norms, name), getattr(alone, name), rtol=1e-5, atol=1e-7)


def test_the_record_is_whole_and_the_same_again(loaded: dict[str, Loaded], prompts: PromptSet, tmp_path: Path) -> None:
    result, again = (gains(loaded["gpt2"], prompts, "sublayer_unit") for _ in range(2))
    assert result.to_json()["values"] == again.to_json()["values"]
    wanted = "model definition n_layers attn_contracting mlp_contracting final_mlp_gain residual_identity_error"
    assert set(wanted.split()) < result.summary.keys()
    assert result.manifest["weight_processing"] == "none"
    assert result.manifest["dtype"] == "float32"
    assert result.manifest["first_token"] == "none added"
    assert len(result.manifest["weight_hash"]) == 64
    for name, array in result.data.data_vars.items():
        assert {"units", "long_name"} <= array.attrs.keys(), name
    record = result.values[0]
    assert record["mlp_gain_low"] <= record["mlp_gain"] <= record["mlp_gain_high"]
    stored = load_result(result.save(tmp_path))
    assert stored.to_json() == result.to_json()
    assert list(stored.data["prompt"].values) == list(prompts.texts)
    torch.testing.assert_close(
        torch.from_numpy(stored.data["net_product"].values),
        torch.from_numpy(stored.data["attn_gain"].values * stored.data["mlp_gain"].values),
        rtol=1e-12,
        atol=0.0,
    )


def test_one_prompt_has_no_interval(loaded: dict[str, Loaded]) -> None:
    record = gains(loaded["llama"], prompt_set(loaded["llama"], "single")).to_json()["values"][0]
    assert record["attn_gain"] is not None
    assert record["attn_gain_low"] is None


def hooks_left(model: Any) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules()) + sum(
        len(point.fwd_hooks) for point in model.hook_dict.values()
    )


def test_leaves_no_hook_and_no_changed_output_behind(loaded: dict[str, Loaded], prompts: PromptSet) -> None:
    model: Any = loaded["neox"].model
    tokens = prompts.tokens[0][None]
    with torch.no_grad():
        before, count = model(tokens), hooks_left(model)
        gains(loaded["neox"], prompts)
        assert hooks_left(model) == count
        torch.testing.assert_close(model(tokens), before, rtol=0.0, atol=0.0)


def test_a_hook_that_is_not_what_is_added_raises() -> None:
    model = hand_model()
    model.model.add_perma_hook("blocks.0.hook_resid_post", lambda value, hook: value * 1.001)  # type: ignore[operator]
    with pytest.raises(InstrumentError, match=r"misses resid_post by 1\.0e-03 of the norm at layer 0"):
        gains(model, hand_prompts([0, 1]))
    assert hooks_left(model.model) == 1


def test_a_false_last_residual_raises() -> None:
    model = hand_model()
    model.model.ln_final.register_forward_pre_hook(lambda module, args: (args[0] * 1.01,))  # type: ignore[union-attr]
    with pytest.raises(InstrumentError, match=r"differs from the final norm's input by 9\.9e-03"):
        gains(model, hand_prompts([0, 1]))


@pytest.mark.parametrize(
    ("apply", "message"),
    [
        (lambda block, value: (block.mlp(value), block.hook_mlp_out(block.mlp(value)))[1], "mlp_in of layer 0 fired out of turn or twice"),
        (lambda block, value: block.mlp(value), "mlp_out of layer 0 did not fire"),
        (lambda block, value: block.hook_mlp_out(value), "mlp_in of layer 0 did not fire"),
    ],
)
def test_every_hook_fires_exactly_once(apply: Any, message: str) -> None:
    model = hand_model()
    block: Any = model.model.blocks[0]  # type: ignore[index]
    block.apply_mlp = lambda value: apply(block, value)
    with pytest.raises(InstrumentError, match=message):
        gains(model, hand_prompts([0, 1]))
    assert hooks_left(model.model) == 0


def test_unknown_definition_names_the_known_ones(run: Loaded) -> None:
    with pytest.raises(UnknownNameError, match=", ".join(DEFINITIONS)):
        gains(run, prompt_set(run), "loudness")


def test_pythia_70m_shape(tmp_path: Path) -> None:
    """Pythia-70m's own configuration with random weights, as transformers initialises them, and a short vocabulary."""

    config = GPTNeoXConfig(
        vocab_size=512,
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=2048,
        rotary_pct=0.25,
        max_position_embeddings=2048,
        use_parallel_residual=True,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    model = models.load(str(tmp_path))
    result = gains(model, prompt_set(model))
    assert result.manifest["parallel_blocks"] is True
    assert (result.summary["n_layers"], result.summary["attn_contracting"]) == (6, "6/6")
    torch.testing.assert_close(
        torch.from_numpy(result.data["ln1_norm"].values), torch.full((6,), 512**0.5, dtype=torch.float64), rtol=0.02, atol=0.0
    )
    expected = oracle_sublayer(tmp_path, list(prompt_set(model).texts))
    torch.testing.assert_close(torch.from_numpy(result.data["mlp_gain"].values).float(), expected[1], rtol=1e-5, atol=1e-7)


def test_prompts_that_cannot_be_read(loaded: dict[str, Loaded], run: Loaded, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("fox " * 30)
    with pytest.raises(ConfigError, match=r"has 30 tokens, .* reads at most 24"):
        prompt_set(loaded["gpt2"], str(path))
    with pytest.raises(ConfigError, match="leave --prompts out for runs"):
        prompt_set(run, "seed4")
    assert [len(row) for row in prompt_set(run, sequences=3).tokens] == [8, 8, 8]
    torch.testing.assert_close(prompt_set(run).tokens[5], prompt_set(run).tokens[5], rtol=0, atol=0)


@pytest.mark.parametrize(("name", "kind"), [("EleutherAI/pythia-70m", "HookedTransformer"), ("someone/tiny", "TransformerBridge")])
def test_a_hub_id_in_the_local_cache(
    name: str,
    kind: str,
    folders: dict[str, Path],
    loaded: dict[str, Loaded],
    prompts: PromptSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An official name becomes a HookedTransformer, any other a bridge; both give the folder's gains, raw (folding would not)."""
    place = tmp_path / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("a" * 40)
    shutil.copytree(folders["neox"], place / "snapshots" / ("a" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    model = models.load(name)
    assert (type(model.model).__name__, model.kind, model.parallel) == (kind, "hub", True)
    ours, theirs = (gains(one, prompts).data for one in (model, loaded["neox"]))
    for gain in ("attn_gain", "mlp_gain"):
        torch.testing.assert_close(torch.from_numpy(ours[gain].values), torch.from_numpy(theirs[gain].values), rtol=1e-5, atol=0.0)


def test_the_interval_is_the_bootstrap_over_prompts(loaded: dict[str, Loaded], prompts: PromptSet) -> None:
    result = gains(loaded["neox"], prompts, seed=5, draws=300)
    each = torch.from_numpy(result.data["attn_gain_by_prompt"].values)
    picks = torch.randint(len(prompts.texts), (300, len(prompts.texts)), generator=generator(5, "gains", "bootstrap"))
    expected = torch.quantile(each[:, picks].mean(-1), torch.tensor([0.025, 0.975], dtype=torch.float64), dim=-1)
    for row, name in enumerate(("attn_gain_low", "attn_gain_high")):
        torch.testing.assert_close(torch.from_numpy(result.data[name].values), expected[row], rtol=1e-12, atol=0.0)
