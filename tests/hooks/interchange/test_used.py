"""What a probe reads, edited: against an edit written out by hand, a label that the model itself makes, and labels that mean nothing."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hooks.tiny_models import ARCHITECTURES, WORDS, save_model
from wallprobe import models
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.hooks.attach import gathering, labelled
from wallprobe.hooks.attach.labelled import Labelled
from wallprobe.hooks.interchange.used import answers_of, spans, used
from wallprobe.hooks.probes import arrays
from wallprobe.models import Loaded
from wallprobe.store.results import load_result


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    root = tmp_path_factory.mktemp("models")
    return {name: models.load(str(save_model(name, root / name))) for name in ARCHITECTURES}


def texts(number: int, seed: int = 0) -> list[str]:
    rng, made = random.Random(seed), dict[str, None]()
    while len(made) < number:
        made[" ".join(rng.choices(WORDS, k=rng.randint(3, 6)))] = None
    return list(made)


def own_choice(model: Loaded, number: int, seed: int = 0) -> Labelled:
    """Texts labelled by which of two words the model itself finds likelier next."""
    fox, dog = (model.tokenizer(word)["input_ids"][0] for word in ("fox", "dog"))
    rows = []
    for text in texts(number, seed):
        with torch.no_grad():
            last = model.model(torch.tensor([model.tokenizer(text)["input_ids"]]))[0, -1]  # type: ignore[operator]
        rows.append({"text": text, "label": "fox" if last[fox] > last[dog] else "dog"})
    return labelled.given(model, rows)


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "neox"])
def test_what_decides_the_answer_is_used(loaded: dict[str, Loaded], architecture: str) -> None:
    model = loaded[architecture]
    result = used(model, own_choice(model, 150), layers=[2])
    summary = result.summary
    assert summary["capable"] == 1.0
    assert summary["self_patch_max_change"] == 0.0
    assert summary["swap_effect_excess_low"] > 0
    assert summary["remove_effect"] > 0
    assert "more than the control" in summary["finding"]


def test_random_labels_read_nothing_that_is_used(loaded: dict[str, Loaded]) -> None:
    """Over 10 seeds: at most two intervals lie above a control that is itself the strongest of six draws."""
    model, above = loaded["gpt2"], 0
    for seed in range(10):
        rng = random.Random(seed)
        data = labelled.given(model, [{"text": text, "label": rng.choice(["fox", "dog"])} for text in texts(60, seed)])
        above += used(model, data, layers=[1], seed=seed).summary["remove_effect_excess_low"] > 0
    assert above <= 2


def test_the_swap_is_what_is_written_out_by_hand(loaded: dict[str, Loaded]) -> None:
    model = loaded["llama"]
    data = own_choice(model, 60)
    result = used(model, data, layers=[1])
    division = arrays.divide(data.label, data.groups, 0)
    controls = arrays.control_labels(data.label, data.groups, None, "shuffled", 0)
    hook = "blocks.1.hook_resid_post"
    x = gathering.states_at(model, data.tokens, data.row, data.index, [hook])[0]
    span, answers = spans(x, data.label, 2, division, controls), answers_of(model, data)
    falls = []
    for place in division.test.tolist():
        tokens, label = data.tokens[place][None], int(data.label[place])
        target = x[place] + ((span.of_class[1 - label] - x[place]) @ span.axes[0].T) @ span.axes[0]

        def put(value: Any, hook: Any, target: Any = target) -> Any:
            made = value.clone()
            made[0, -1] = target
            return made

        with torch.no_grad():
            before = model.model(tokens)[0, -1, answers]  # type: ignore[operator]
            after = model.model.run_with_hooks(tokens, fwd_hooks=[(hook, put)])[0, -1, answers]  # type: ignore[operator]
        falls.append(float((before - after)[label] - (before - after)[1 - label]))
    assert float(result.data["effect"].sel(layer=1, edit="swap")) == pytest.approx(sum(falls) / len(falls), abs=1e-4)


def test_three_labels_every_layer_stored_and_the_same_twice(loaded: dict[str, Loaded], tmp_path: Path) -> None:
    model = loaded["neox_sequential"]
    rows = [{"text": f"{text} {word}", "label": word} for number, text in enumerate(texts(60)) for word in [WORDS[number % 3]]]
    data = labelled.given(model, rows)
    first, second = (used(model, data) for _ in range(2))
    assert first.data.identical(second.data)
    assert first.data["layer"].values.tolist() == [-1, 0, 1, 2]
    assert load_result(first.save(tmp_path)).summary["finding"] == first.summary["finding"]


def test_spans_are_orthonormal_and_of_one_dimension_less_than_labels() -> None:
    rng = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    x = torch.randn(120, 8, generator=rng) + 4 * torch.eye(8)[labels]
    division = arrays.divide(labels, torch.arange(120), 0)
    found = spans(x, labels, 3, division, arrays.control_labels(labels, torch.arange(120), None, "shuffled", 0))
    assert found.axes.shape == (1 + arrays.DRAWS, 2, 8)
    torch.testing.assert_close(found.axes @ found.axes.mT, torch.eye(2).expand(4, 2, 2), rtol=0, atol=1e-5)
    assert float(found.axes[0, :, :3].square().sum()) > 1.5  # nearly all of it lies where the labels do


def test_what_is_refused(loaded: dict[str, Loaded]) -> None:
    model = loaded["gpt2"]
    data = labelled.given(model, [{"text": "the fox", "label": "a"}, {"text": "the dog", "label": "b"}])
    with pytest.raises(ConfigError, match="label 'b' begins with the token of another label's answer"):
        used(model, data)
    with pytest.raises(ConfigError, match=r"--answers name 'c', which is no label of given; there are: a, b"):
        used(model, data, answers={"c": "fox"})
    assert answers_of(model, data, {"a": "fox", "b": "dog"}).tolist() == [model.tokenizer(word)["input_ids"][0] for word in ("fox", "dog")]
    with pytest.raises(ConfigError, match="too few to fit and to score"):
        used(model, data, answers={"a": "fox", "b": "dog"})
    by_token = labelled.given(model, [{"text": "the fox", "label": ["a", "b"]}])
    with pytest.raises(ConfigError, match="has a label a token"):
        used(model, by_token)


def test_where_states_do_not_differ_there_is_nothing_to_edit(loaded: dict[str, Loaded]) -> None:
    """All texts end in one token: before the first block of a rotary model its states are the same, and after it they are not."""
    model = loaded["llama"]
    rows = [{"text": f"{text} {word} the", "label": word} for number, text in enumerate(texts(40)) for word in [("fox", "dog")[number % 2]]]
    data = labelled.given(model, rows)
    result = used(model, data)
    assert bool(result.data["effect"].sel(layer=-1).isnull().all())
    assert bool(result.data["effect"].sel(layer=[0, 1, 2]).notnull().all())
    assert result.summary["layer"] >= 0
    with pytest.raises(InstrumentError, match="do not differ between texts"):
        used(model, data, site="resid_pre", layers=[0])
