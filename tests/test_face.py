"""The public face: whatever a researcher has in memory goes in, the same figures come out, and nothing of it is changed."""

import contextlib
import copy
import math
import subprocess
import sys

import pytest
import torch
import transformers
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from torch import nn
from torch.testing import assert_close
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.model_bridge import TransformerBridge

import wallprobe as wp
from wallprobe.training.wall.recipes import get_recipe

WORDS = ["the", "capital", "of", "france", "is", "paris", "which", "known", "for", "tower", "quick", "brown", "fox", "jumps"]
TEXTS = ["the capital of france is paris", "quick brown fox jumps", "paris is the capital of france"]
IDS = torch.tensor([[2, 3, 4, 5, 6, 7], [11, 12, 13, 2, 3, 4], [7, 6, 2, 3, 4, 5]])
SHAPE = {
    "vocab_size": 32,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 24,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GROUPED = SHAPE | {"num_key_value_heads": 2}
DECODERS = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=32, n_embd=32, n_layer=2, n_head=4, n_positions=24, bos_token_id=0, eos_token_id=0)
    ),
    "neox": lambda: transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**SHAPE)),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**GROUPED)),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**GROUPED, head_dim=8, pad_token_id=0)),
    "mixtral": lambda: transformers.MixtralForCausalLM(transformers.MixtralConfig(**GROUPED, num_local_experts=4)),
}


def words():
    vocabulary = {word: number for number, word in enumerate(["<pad>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>", eos_token="<pad>")


def drawn(model):
    """Weights that are no library's defaults; norms' scales differ from 1."""
    source = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.3 + (1.5 if scale else 0.0))
    return model


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn, self.mlp = Mixer(), nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class Mixer(nn.Module):
    """The mean of what stands before."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return self.scale * x.cumsum(1) / torch.arange(1, x.shape[1] + 1)[:, None]


class Net(nn.Module):
    """A decoder of somebody's own: no library's class, no hook of its own, and dropout, which must rest while it is measured."""

    def __init__(self, width=16, depth=3):
        super().__init__()
        self.embed, self.drop = nn.Embedding(32, width), nn.Dropout(0.5)
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 32)

    def forward(self, ids):
        x = self.drop(self.embed(ids))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def hooked():
    config = HookedTransformerConfig(
        n_layers=2, d_model=32, n_heads=4, d_head=8, d_mlp=64, n_ctx=24, d_vocab=32, act_fn="gelu", normalization_type="LN", seed=3
    )
    return HookedTransformer(config)


def bridged():
    folder_tokenizer = words()
    return TransformerBridge.boot_transformers("mine", hf_model=DECODERS["llama"](), tokenizer=folder_tokenizer, device="cpu")


MAKERS = {"hooked": hooked, "bridge": bridged, **DECODERS, "own": Net}


@pytest.fixture(params=sorted(MAKERS))
def model(request):
    with contextlib.redirect_stdout(None):
        made = drawn(MAKERS[request.param]())
    made(IDS)  # the bridge adds hooks of its own at its first call
    made.train()  # as it is in the middle of a training
    next(made.parameters()).requires_grad_(False)
    next(made.parameters()).grad = None
    made.register_forward_hook(noted)
    return made


def noted(module, given, out):
    """A hook of the user's own, which is to stay."""


def found_in(model):
    """All of a model that a tool could change."""
    parameters = {name: (id(one), one.dtype, one.device, one.requires_grad, one.grad is None) for name, one in model.named_parameters()}
    values = {name: one.detach().clone() for name, one in [*model.named_parameters(), *model.named_buffers()]}
    modules = [
        (name, id(one), type(one), one.training, sorted(name for name in vars(one) if name[0] != "_"))
        for name, one in model.named_modules()
    ]
    hooks = [
        (name, list(one._forward_hooks.items()), list(one._forward_pre_hooks.items()), list(one._backward_hooks.items()))
        for name, one in model.named_modules()
    ]
    config = getattr(model, "config", None)
    return parameters, values, modules, hooks, copy.deepcopy(config.to_dict()) if hasattr(config, "to_dict") else None


def assert_as_found(model, before):
    after = found_in(model)
    assert after[0] == before[0]
    assert after[1].keys() == before[1].keys()
    assert all(torch.equal(after[1][name], value) for name, value in before[1].items())
    assert after[2:] == before[2:]


def test_each_model_is_measured_and_left_as_it_was_found(model):
    before = found_in(model)
    mine = wp.wrap(model, name="mine")
    acts = wp.capture(mine, IDS, "blocks.*.hook_resid_post", index=-1)
    assert acts.dims == ("hook", "prompt", "index", "d_model")
    assert acts.shape == (mine.n_layers, 3, 1, mine.d_model)
    assert math.isfinite(float(abs(acts).sum()))
    gains = wp.gains(mine, IDS)
    assert gains.manifest["wrapped"]["mine"] == {"class": wp_class(model), "weight_hash": mine.weight_hash}
    assert len(gains.values) == mine.n_layers
    assert wp.flow(mine, IDS).summary["n_prompts"] == 3
    assert wp.rescale(mine, IDS, [1]).summary["n_prompts"] == 3
    if type(model) is not Net:
        assert wp.maps(mine, IDS).summary["n_layers"] == mine.n_layers
    assert_as_found(model, before)


def pairs_of_ids():
    donor, base = IDS[:, :4], IDS.flip(1)[:, :4]
    answers = {"own": torch.tensor([3, 4, 5]), "import": torch.tensor([6, 7, 8])}
    return wp.Pairs(donor, base, answers, donors="import", slots={"subject": torch.tensor([1, 2, 1])})


def test_each_model_is_patched_probed_and_ablated_and_left_as_it_was_found(model):
    before = found_in(model)
    mine = wp.wrap(model, name="mine")
    sites = ["resid_pre"] if type(model) is Net else ["resid_pre", "mlp_out"]
    reads, half = [wp.reads.LogitDifference(), margin], lambda base, source: (base + source) / 2
    result = wp.interchange(mine, mine, pairs_of_ids(), layers="all", indices=["subject", 3], sites=sites, reads=reads, intervention=half)
    assert {"p_own", "p_import", "logit_difference", "margin", "p_import_random", "base_margin"} <= set(result.data)
    assert result.summary["self_patch_max_change"] == 0.0
    assert result.manifest["wrapped"]["mine"]["weight_hash"] == mine.weight_hash
    by_object = wp.interchange(model, model, pairs_of_ids(), indices=["subject", 3], sites=sites, reads=reads, intervention=half)
    assert by_object.data["p_import"].equals(result.data["p_import"])
    acts = wp.capture(mine, IDS, "blocks.1.hook_resid_post", index=-1)
    assert acts.shape == (1, 3, 1, mine.d_model)
    assert wp.ablate(mine, IDS, sites=("resid_pre",), methods=("zero",)).kind
    assert len(wp.geometry(mine, IDS).values)
    if type(model) is not Net:
        assert wp.attention(mine, IDS).kind
    with pytest.raises(ZeroDivisionError):
        wp.interchange(mine, mine, pairs_of_ids(), on_cell=lambda done, total: 1 // 0)
    assert_as_found(model, before)


def margin(logits, pairs):
    return logits.amax(-1) - logits.mean(-1)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "gemma2"])
def test_interchange_of_an_object_and_of_its_folder_are_equal(kind, tmp_path):
    model = drawn(DECODERS[kind]())
    model.save_pretrained(tmp_path / "saved")
    words().save_pretrained(tmp_path / "saved")
    by_object, by_name = (wp.interchange(one, one, pairs_of_ids(), indices=["subject"]) for one in (model, str(tmp_path / "saved")))
    for name in ("p_import", "p_own_low", "p_import_norm"):
        found = [torch.tensor(result.data[name].values) for result in (by_object, by_name)]
        assert_close(*found, rtol=0 if kind != "gemma2" else 1e-5, atol=0 if kind != "gemma2" else 1e-6)


def test_the_cards_command_in_python():
    result = wp.interchange("p5", "c0", 200, layers=3)
    assert result.kind == "interchange"
    assert result.data.sizes["layer"] == 1
    objects = wp.interchange(wp.load("p5"), wp.load("c0"), 200, layers=[3])
    assert objects.values == result.values


def test_probes_take_arrays_and_labels():
    source = torch.Generator().manual_seed(2)
    labels = torch.randint(2, (200,), generator=source)
    acts = torch.randn(200, 8, generator=source)
    acts[:, 3] += 3 * labels
    assert wp.probe(acts, labels, control="shuffled").summary["accuracy"] > 0.85


def wp_class(model):
    return f"{type(model).__module__.partition('.')[0]}.{type(model).__name__}"


def test_each_model_is_left_as_it_was_found_when_the_instrument_raises(model):
    before = found_in(model)
    mine = wp.wrap(model)
    with pytest.raises(RuntimeError, match="stop"), wp.ResidualCache(mine, "blocks.*.hook_resid_post"):
        raise RuntimeError("stop")
    with pytest.raises(wp.WallprobeError, match="did not fire"), wp.Patch(mine, "blocks.0.hook_resid_post", wp.Swap(), torch.zeros(1)):
        pass
    with pytest.raises(wp.WallprobeError, match=r"no hook of wrapped is named 'blocks\.9"):
        wp.capture(mine, IDS, "blocks.9.hook_resid_post")
    with pytest.raises(wp.WallprobeError, match="knows 32"):
        wp.gains(mine, IDS + 30)
    with pytest.raises(ZeroDivisionError):
        wp.gains(mine, IDS, on_progress=lambda done, total: 1 // 0)
    if type(model) is Net:
        with pytest.raises(wp.WallprobeError, match="does not show W_V"):
            wp.maps(mine, IDS)
    assert_as_found(model, before)


def test_captured_states_are_those_that_the_model_itself_computes():
    net = drawn(Net()).eval()
    seen = []
    handle = net.layers[1].register_forward_hook(lambda module, given, out: seen.append(out.detach()))
    net(IDS)
    handle.remove()
    acts = wp.capture(net, IDS, ["blocks.1.hook_resid_post", "blocks.1.hook_mlp_out"], index=[0, -1])
    assert_close(torch.tensor(acts.sel(hook="blocks.1.hook_resid_post").values), seen[0][:, [0, -1]], rtol=0, atol=0)
    model = drawn(DECODERS["llama"]()).eval()
    with torch.no_grad():
        states = model(IDS, output_hidden_states=True).hidden_states[1]
    acts = wp.capture(model, IDS, "blocks.0.hook_resid_post")
    assert_close(torch.tensor(acts.values[0]), states, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_an_object_and_its_saved_folder_give_equal_values(kind, tmp_path):
    model = drawn(DECODERS[kind]())
    tokenizer = words()
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    mine = wp.wrap(model, tokenizer=tokenizer, name="mine")
    by_object, by_name = wp.gains(mine, TEXTS), wp.gains(str(tmp_path / "saved"), TEXTS)
    assert by_object.values == by_name.values
    assert by_object.manifest["weight_hash"] == mine.weight_hash != by_name.manifest["weight_hash"]
    assert str(tmp_path) not in str(by_object.to_json())
    first, second = (wp.capture(one, TEXTS, "blocks.*.hook_resid_post") for one in (mine, str(tmp_path / "saved")))
    assert first.equals(second)


def test_a_run_and_its_object_give_equal_values():
    by_name, run = wp.load("c0"), wp.load("c0")
    mine = wp.wrap(run.model, name="mine")
    ids = torch.arange(2 * 8).reshape(2, 8) % 17
    assert wp.gains(by_name, ids).values == wp.gains(mine, ids).values
    assert wp.capture("c0", ids, "blocks.*.hook_resid_post").equals(wp.capture(mine, ids, "blocks.*.hook_resid_post"))


def test_prompts_of_other_lengths_are_filled_at_the_right():
    mine = wp.wrap(drawn(Net()), tokenizer=words(), name="mine")
    acts = wp.capture(mine, TEXTS, "blocks.0.hook_resid_pre")
    assert acts.sizes["index"] == 6
    assert bool(acts.sel(prompt=TEXTS[1]).isel(index=slice(4, None)).isnull().all())
    assert not bool(acts.sel(prompt=TEXTS[1]).isel(index=slice(0, 4)).isnull().any())
    alone = wp.capture(mine, [TEXTS[1]], "blocks.0.hook_resid_pre")
    assert (alone.values[0, 0] == acts.sel(prompt=TEXTS[1]).values[0, :4]).all()


@pytest.mark.parametrize("given", [IDS, IDS.tolist(), list(IDS), IDS.to(torch.int32)], ids=["tensor", "lists", "tensors", "int32"])
def test_token_ids_come_in_any_shape(given):
    mine = wp.wrap(drawn(Net()))
    assert wp.capture(mine, given, "blocks.2.hook_resid_post").equals(wp.capture(mine, IDS, "blocks.2.hook_resid_post"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (IDS.float(), "neither texts nor token ids"),
        ([], "no prompt is given"),
        (TEXTS, "no tokenizer for texts"),
        (None, "came without a tokenizer"),
        ([[]], "has no tokens"),
        (IDS - 40, "token id -38"),
    ],
)
def test_what_is_no_prompt_is_refused_on_one_line(given, said):
    with pytest.raises(wp.WallprobeError, match=said) as error:
        wp.gains(wp.wrap(Net()), given)
    assert "\n" not in str(error.value)


class NoStack(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(4, 4), nn.Linear(4, 4)


class TwoStacks(nn.Module):
    def __init__(self):
        super().__init__()
        self.here, self.there = (nn.ModuleList(Block(4) for _ in range(2)) for _ in range(2))


def with_nan():
    net = Net()
    with torch.no_grad():
        net.layers[1].mlp[0].weight[2, 3] = math.nan
    return net


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (NoStack, "no stack of blocks"),
        (TwoStacks, "2 stacks of 2 blocks"),
        (nn.Identity, "no parameters"),
        (lambda: Net().to("meta"), "lies on meta"),
        (lambda: Net().half(), "holds float16"),
        (with_nan, "layers.1.mlp.0.weight has 1 of"),
        (lambda: transformers.BertModel(transformers.BertConfig(**SHAPE)), "is an encoder"),
        (lambda: transformers.LlamaModel(transformers.LlamaConfig(**GROUPED)), "no unembedding"),
        (lambda: torch.compile(Net()), "was compiled"),
    ],
)
def test_what_cannot_be_wrapped_is_refused_on_one_line(make, said):
    with pytest.raises(wp.WallprobeError, match=said) as error:
        wp.wrap(make())
    assert "\n" not in str(error.value)


def test_a_half_precision_decoder_is_measured_in_single_precision_and_stays_half():
    model = drawn(DECODERS["llama"]()).to(torch.bfloat16)
    before = found_in(model)
    whole = wp.gains(copy.deepcopy(model).float(), IDS)
    assert wp.gains(model, IDS).values == whole.values
    assert_as_found(model, before)


def test_a_model_that_was_trained_on_is_wrapped_anew():
    model = drawn(DECODERS["gpt2"]())
    mine = wp.wrap(model, name="mine")
    first = wp.gains(mine, IDS)
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.weight.mul_(2)  # of which the bridge holds copies
    second = wp.gains(mine, IDS)
    assert second.values != first.values
    assert second.manifest["weight_hash"] != first.manifest["weight_hash"]
    assert second.values == wp.gains(wp.wrap(model), IDS).values
    assert second.identity != first.identity  # in a store, neither takes the other's place
    with pytest.raises(wp.WallprobeError, match="was written to since it was wrapped"), wp.ResidualCache(mine, "blocks.0.hook_resid_pre"):
        pass


def test_a_result_is_a_table_a_picture_and_a_folder(tmp_path):
    result = wp.gains(wp.wrap(drawn(Net()), name="mine"), IDS)
    table = result.to_dataframe()
    assert list(table["layer"]) == [0, 1, 2]
    assert list(table["mlp_gain"]) == [row["mlp_gain"] for row in result.values]
    folder = result.save(tmp_path / "results")
    assert wp.load_result(folder).values == result.values
    picture = result.plot()
    assert picture._repr_html_().startswith("<iframe")
    assert picture.save(tmp_path / "page.html").read_text().startswith("<!doctype html>")
    site = wp.gallery(tmp_path / "pages", results=tmp_path / "results", runs=tmp_path / "none")
    assert site.pages == 1
    assert site.index.is_file()
    assert wp.gallery.build_site is not None  # the package and the function are one name


def test_a_condition_is_trained_and_evaluated_by_name(tmp_path):
    run = wp.train("c0", tmp_path, seed=5, preset="tiny", steps=2, compile=False)
    assert str(run.name) == "c0@5"
    measured = wp.evaluate(run, sequences=50)
    assert measured.values == wp.evaluate("c0@5", sequences=50, root=tmp_path).values == wp.evaluate(run.path, sequences=50).values
    job = wp.Job(wp.Condition("own", "none", "none"), get_recipe("tiny", steps=2), seed=5)
    assert wp.train(job, tmp_path).manifest["weight_hash"] == run.manifest["weight_hash"]
    with pytest.raises(TypeError, match="leave preset out"):
        wp.train(job, tmp_path, preset="tiny")
    with pytest.raises(wp.WallprobeError, match="no preset"):
        wp.train("c0", tmp_path, preset="huge")


def test_every_name_is_there_and_documented():
    for name in wp.__all__:
        assert getattr(wp, name).__doc__, name
    assert wp.__version__ == "0.1.0"
    assert {*wp.__all__, "__version__"} == set(dir(wp))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        wp.nonsense  # noqa: B018


def test_the_command_tells_its_version(invoke):
    assert invoke("--version") == (0, f"wallprobe {wp.__version__}\n", "")


def test_importing_the_face_imports_no_torch():
    code = "import sys, wallprobe; assert not {'torch', 'transformer_lens', 'xarray'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
