"""Every head's statistics: figures worked out by hand, batched as single, every architecture, and an induction head that is one."""

import math
from pathlib import Path

import pytest
import torch

from tests.hooks.tiny_models import ARCHITECTURES, save_model, save_run
from wallprobe import models
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.hooks.attach.prompt_sets import prompt_set
from wallprobe.hooks.states import heads as instrument
from wallprobe.hooks.states.heads import STATISTICS, heads, statistics, uniform
from wallprobe.models import Loaded
from wallprobe.store.results import load_result


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    root = tmp_path_factory.mktemp("models")
    made = {name: models.load(str(save_model(name, root / name))) for name in ARCHITECTURES}
    return made | {"run": models.load(save_run(root / "runs"), root=root / "runs")}


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "four.txt"
    path.write_text("the quick brown fox jumps\nparis is the capital of france\nthe lazy dog over river bank\nthe fox\n")
    return path


def test_figures_worked_out_by_hand() -> None:
    """Three queries: the second looks back, the third half at the first token and half at itself."""
    pattern = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0.5, 0, 0.5]])[None, None]
    found = dict(zip(STATISTICS, statistics(pattern)[0, 0].tolist(), strict=True))
    assert found == pytest.approx({"entropy": math.log(2) / 2, "first": 0.75, "itself": 0.25, "previous": 0.5, "distance": 1.0}, abs=1e-12)


def test_uniform_attention_is_what_its_sums_say() -> None:
    found = dict(zip(STATISTICS, uniform(4).tolist(), strict=True))
    share = (1 / 2 + 1 / 3 + 1 / 4) / 3
    assert found["first"] == found["itself"] == found["previous"] == pytest.approx(share, abs=1e-12)
    assert found["entropy"] == pytest.approx((math.log(2) + math.log(3) + math.log(4)) / 3, abs=1e-12)
    assert found["distance"] == pytest.approx((0.5 + 1 + 1.5) / 3, abs=1e-12)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batched_equals_single(loaded: dict[str, Loaded], prompts: Path, architecture: str) -> None:
    model = loaded[architecture]
    chosen = prompt_set(model, str(prompts))
    result = heads(model, chosen)
    single = []
    for row in chosen.tokens:
        with torch.no_grad():
            _, cache = model.model.run_with_cache(row[None])  # type: ignore[operator]
        single.append(torch.stack([statistics(cache[f"blocks.{layer}.attn.hook_pattern"])[0] for layer in range(model.n_layers)]))
    mean = torch.stack(single).mean(0)
    for place, name in enumerate(STATISTICS):
        torch.testing.assert_close(torch.tensor(result.data[name].values), mean[..., place], rtol=1e-5, atol=1e-6)
        assert (result.data[f"{name}_low"] <= result.data[name] + 1e-12).all()
    assert result.data.sizes == {"layer": 3, "head": 4}


def test_a_run_and_its_store(loaded: dict[str, Loaded], tmp_path: Path) -> None:
    chosen = prompt_set(loaded["run"], sequences=8)
    first, second = (heads(loaded["run"], chosen) for _ in range(2))
    assert first.data.identical(second.data)
    assert load_result(first.save(tmp_path)).summary["n_prompts"] == 8


def test_a_head_that_copies_what_followed_is_told(loaded: dict[str, Loaded], prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tokens repeat, the pattern of one head is set to look at what followed the first occurrence, as an induction head's would."""
    model = loaded["gpt2"]
    real = instrument.cache.run

    def planted(loaded_: Loaded, tokens, hooks, **more):  # type: ignore[no-untyped-def]
        def over(name, inner):  # type: ignore[no-untyped-def]
            def record(value, hook):  # type: ignore[no-untyped-def]
                made, half = value.clone(), tokens.shape[1] // 2
                if name == "blocks.1.attn.hook_pattern" and torch.equal(tokens[:, :half], tokens[:, half:]):
                    made[:, 2] = 0
                    for query in range(tokens.shape[1]):
                        made[:, 2, query, max(query - half + 1, 0)] = 1
                return inner(made, hook)

            return record

        return real(loaded_, tokens, {name: over(name, hook) for name, hook in hooks.items()}, **more)

    monkeypatch.setattr(instrument.cache, "run", planted)
    summary = heads(model, prompt_set(model, str(prompts))).summary
    assert (summary["induction_layer"], summary["induction_head"]) == (1, 2)
    assert summary["induction"] == pytest.approx(1.0)
    assert "the strongest induction score is head 1.2's (1.00," in summary["finding"]


def test_random_models_have_no_induction_head(loaded: dict[str, Loaded], prompts: Path) -> None:
    found = [heads(loaded[name], prompt_set(loaded[name], str(prompts)), seed=seed).data for name in ARCHITECTURES for seed in range(3)]
    assert max(float(data["induction_excess"].max()) for data in found) < 0.5


def test_a_pattern_that_is_no_distribution_raises(loaded: dict[str, Loaded], prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded["llama"]
    monkeypatch.setattr(instrument, "TOLERANCE", -1.0)
    with pytest.raises(InstrumentError, match="miss 1 by"):
        heads(model, prompt_set(model, str(prompts)))


def test_prompts_of_one_token_are_refused(loaded: dict[str, Loaded], tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("the\nfox\n")
    with pytest.raises(ConfigError, match=r"no prompt of one.txt has two tokens; give longer ones"):
        heads(loaded["gpt2"], prompt_set(loaded["gpt2"], str(tmp_path / "one.txt")))
