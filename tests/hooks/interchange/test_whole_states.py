"""Whole states ablated: against hooks written out by hand, batched as single, every architecture, and what is refused."""

from pathlib import Path

import pytest
import torch

from tests.hooks.tiny_models import ARCHITECTURES, save_model, save_run
from wallprobe import models
from wallprobe.errors import ConfigError, InstrumentError, UnknownNameError
from wallprobe.hooks.attach.prompt_sets import PromptSet, prompt_set
from wallprobe.hooks.interchange import whole_states
from wallprobe.hooks.interchange.whole_states import Request, ablate_states
from wallprobe.models import Loaded
from wallprobe.store.results import load_result


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    root = tmp_path_factory.mktemp("models")
    made = {name: models.load(str(save_model(name, root / name))) for name in ARCHITECTURES}
    return made | {"run": models.load(save_run(root / "runs"), root=root / "runs")}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory, loaded: dict[str, Loaded]) -> PromptSet:
    path = tmp_path_factory.mktemp("texts") / "four.txt"
    path.write_text("the quick brown fox jumps\nparis is the capital of france\nthe lazy dog over river\nthe fox\n")
    return prompt_set(loaded["neox"], str(path))


def by_hand(model: Loaded, tokens: torch.Tensor, module: str, target: torch.Tensor, index: str) -> tuple[float, float]:
    """Loss and KL through PyTorch's own hook on the model that the bridge wraps; nothing of the engine's is used."""
    plain = model.model.original_model  # type: ignore[union-attr]

    def patch(_, given, output):  # type: ignore[no-untyped-def]
        first = output[0] if isinstance(output, tuple) else output
        made = first.clone()
        at = slice(None) if index == "all" else slice(len(tokens) - 2, len(tokens) - 1)
        made[:, at] = target[at]
        return (made, *output[1:]) if isinstance(output, tuple) else made

    with torch.no_grad():
        before = model.model(tokens[None])[0].double().log_softmax(-1)  # type: ignore[operator]
        handle = plain.get_submodule(module).register_forward_hook(patch)
        after = model.model(tokens[None])[0].double().log_softmax(-1)  # type: ignore[operator]
        handle.remove()
    read = slice(len(tokens) - 2, len(tokens) - 1) if index == "last" else slice(0, len(tokens) - 1)
    loss = (before - after)[:-1].gather(-1, tokens[1:, None])[:, 0][read]
    return float(loss.mean()), float((before.exp() * (before - after)).sum(-1)[read].mean())


@pytest.mark.parametrize(
    ("architecture", "module"), [("gpt2", "transformer.h.1.mlp"), ("llama", "model.layers.1.mlp"), ("neox", "gpt_neox.layers.1.mlp")]
)
@pytest.mark.parametrize("index", ["all", "last"])
def test_zero_is_what_a_hook_written_by_hand_says(
    loaded: dict[str, Loaded], prompts: PromptSet, architecture: str, module: str, index: str
) -> None:
    model = loaded[architecture]
    data = ablate_states(model, prompts, Request(("mlp_out",), (1,), ("zero",), index)).data
    found = [by_hand(model, row, module, torch.zeros(len(row), model.d_model), index) for row in prompts.tokens]
    assert float(data["loss"][0, 0, 0]) == pytest.approx(sum(loss for loss, _ in found) / 4, abs=1e-5)
    assert float(data["kl"][0, 0, 0]) == pytest.approx(sum(kl for _, kl in found) / 4, abs=1e-5)


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "run"])
def test_every_site_of_every_model(loaded: dict[str, Loaded], prompts: PromptSet, architecture: str) -> None:
    model = loaded[architecture]
    chosen = prompt_set(model, sequences=6) if model.run else prompts
    result = ablate_states(model, chosen, Request(("attn_out", "mlp_out", "resid", "heads")))
    heads = int(model.model.cfg.n_heads)  # type: ignore[union-attr]
    assert result.data.sizes == {"site": 3 + heads, "layer": model.n_layers, "replacement": 3}
    assert result.summary["self_patch_max_change"] == 0.0
    assert bool((result.data["kl"] >= -1e-9).all())
    assert bool((result.data["kl_low"] <= result.data["kl"] + 1e-12).all())
    control = result.data[["kl_moved", "kl_random"]].to_array().max("variable")
    assert bool((abs(result.data["kl_control"] - control) < 1e-12).all())
    assert bool((abs(result.data["kl"] - result.data["kl_control"] - result.data["kl_excess"]) < 1e-9).all())


def test_batched_equals_single(loaded: dict[str, Loaded], monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded["llama"]
    tokens = torch.randint(2, 20, (6, 5), generator=torch.Generator().manual_seed(0))
    rows = PromptSet("given", tuple("abcdef"), tuple(tokens), tuple(("x",) * 5 for _ in range(6)))
    together = ablate_states(model, rows, Request(layers=(0, 2))).data
    monkeypatch.setattr(whole_states, "FIGURES", 1)
    alone = ablate_states(model, rows, Request(layers=(0, 2))).data
    for name in together.data_vars:
        torch.testing.assert_close(torch.tensor(together[name].values), torch.tensor(alone[name].values), rtol=1e-4, atol=1e-5)


def test_the_state_before_the_first_block_of_another_prompt_gives_that_prompts_prediction(loaded: dict[str, Loaded]) -> None:
    """All tokens' states of a donor of equal length: the prediction is the donor's, whatever the layer."""
    model = loaded["llama"]
    tokens = torch.tensor([[2, 3, 4, 5], [6, 7, 8, 9]])
    rows = PromptSet("two", ("a", "b"), tuple(tokens), (("x",) * 4, ("y",) * 4))
    data = ablate_states(model, rows, Request(("resid_pre",), None, ("resample",))).data
    with torch.no_grad():
        log = model.model(tokens)[:, :-1].double().log_softmax(-1)  # type: ignore[operator]
    kl = (log.exp() * (log - log.flip(0))).sum(-1).mean()
    torch.testing.assert_close(torch.tensor(data["kl"].values.ravel()), kl.expand(3), rtol=1e-4, atol=1e-5)


def test_the_same_twice_and_stored(loaded: dict[str, Loaded], prompts: PromptSet, tmp_path: Path) -> None:
    first, second = (ablate_states(loaded["gpt2"], prompts, Request(("mlp_out",))) for _ in range(2))
    assert first.data.identical(second.data)
    assert load_result(first.save(tmp_path)).summary["finding"] == first.summary["finding"]


def test_what_is_refused(loaded: dict[str, Loaded], prompts: PromptSet) -> None:
    model = loaded["gpt2"]
    one = PromptSet("one", ("a", "a"), (torch.tensor([2, 3]), torch.tensor([2, 3])), (("x", "y"),) * 2)
    with pytest.raises(ConfigError, match="resample needs a state of another prompt"):
        ablate_states(model, one)
    with pytest.raises(ConfigError, match="layer 7 does not exist in"):
        ablate_states(model, prompts, Request(layers=(7,)))
    with pytest.raises(UnknownNameError, match="no site named 'mlp'"):
        Request(("mlp",))
    with pytest.raises(ConfigError, match="--method none is none of zero, mean, resample"):
        Request(methods=("none",))
    with pytest.raises(ConfigError, match="--index 3 is none of all, last"):
        Request(index="3")
    with pytest.raises(ConfigError, match=r"site z.9 does not exist: there are 4 heads"):
        ablate_states(model, prompts, Request(("z.9",)))
    short = PromptSet("short", ("a",), (torch.tensor([2]),), (("x",),))
    with pytest.raises(ConfigError, match="no prompt of short has two tokens"):
        ablate_states(model, short)


def test_an_ablation_that_changes_nothing_raises(prompts: PromptSet, tmp_path: Path) -> None:
    model = models.load(str(save_model("gpt2", tmp_path)))
    request = Request(("mlp_out",), (0,), ("zero",))
    assert ablate_states(model, prompts, request).summary["kl"] > 0
    with torch.no_grad():
        for parameter in model.model.original_model.get_submodule("transformer.h.0.mlp").parameters():  # type: ignore[union-attr]
            parameter.zero_()
    with pytest.raises(InstrumentError, match=r"zero-ablating blocks.0.hook_mlp_out changed nothing"):
        ablate_states(model, prompts, request)
