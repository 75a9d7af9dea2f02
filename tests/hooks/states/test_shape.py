"""The shape of states: figures against formulas written out, planted classes, nothing on random labels, every architecture."""

import math
import random
from pathlib import Path

import pytest
import torch

from tests.hooks.tiny_models import ARCHITECTURES, WORDS, save_model, save_run
from wallprobe import models
from wallprobe.errors import ConfigError
from wallprobe.hooks.attach import labelled
from wallprobe.hooks.attach.prompt_sets import PromptSet, prompt_set
from wallprobe.hooks.states import shape as instrument
from wallprobe.hooks.states.shape import anisotropy, any_layer, between_shares, bounded, participation, permuted, shape
from wallprobe.models import Loaded
from wallprobe.store.results import load_result


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    root = tmp_path_factory.mktemp("models")
    made = {name: models.load(str(save_model(name, root / name))) for name in ARCHITECTURES}
    return made | {"run": models.load(save_run(root / "runs"), root=root / "runs")}


def texts(number: int, seed: int = 0) -> list[str]:
    rng, made = random.Random(seed), dict[str, None]()
    while len(made) < number:
        made[" ".join(rng.choices(WORDS, k=rng.randint(3, 6)))] = None
    return list(made)


def test_participation_is_that_of_the_eigenvalues() -> None:
    states = torch.randn(40, 7, generator=torch.Generator().manual_seed(0)).double() * torch.arange(1, 8) + 5
    keep = (torch.arange(40) % 3 > 0).double()
    values = torch.linalg.eigvalsh(states[keep > 0].T.cov())
    assert participation(states @ states.T, keep) == pytest.approx(float(values.sum() ** 2 / values.square().sum()), rel=1e-9)
    line = torch.outer(torch.arange(5).double(), torch.ones(3).double())
    assert participation(line @ line.T, torch.ones(5).double()) == pytest.approx(1.0, abs=1e-9)
    assert math.isnan(participation(torch.ones(4, 4).double(), torch.ones(4).double()))


def test_isotropic_states_have_what_is_said_of_them() -> None:
    states = torch.randn(300, 50, generator=torch.Generator().manual_seed(1)).double()
    assert participation(states @ states.T, torch.ones(300).double()) == pytest.approx(50 * 300 / 350, rel=0.05)


def test_anisotropy_is_the_mean_over_pairs_of_different_texts() -> None:
    states = torch.randn(9, 4, generator=torch.Generator().manual_seed(2)).double() + 1
    text, keep = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2]), torch.tensor([1, 1, 0, 1, 1, 1, 1, 1, 0]).double()
    pairs = [
        float(torch.cosine_similarity(states[a], states[b], dim=0))
        for a in range(9)
        for b in range(9)
        if text[a] != text[b] and keep[a] and keep[b]
    ]
    assert anisotropy(states, text, keep) == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)


def test_the_interval_of_a_mean_is_the_usual_one() -> None:
    values = torch.randn(20, generator=torch.Generator().manual_seed(3)).double()
    value, low, high = bounded(lambda keep: float((values * keep).sum() / keep.sum()), torch.ones(20).double(), torch.arange(20))
    assert value == pytest.approx(float(values.mean()), abs=1e-12)
    assert (high - low) / 2 == pytest.approx(1.96 * float(values.std()) / 20**0.5, rel=1e-9)


def test_separation_is_analysis_of_variance() -> None:
    states = torch.tensor([[0.0, 0], [2, 0], [10, 1], [12, 1]])
    ratio = between_shares(states, torch.tensor([[0, 0, 1, 1]]), 2)
    between, within = 4 * (25 + 0.25), 4.0
    assert float(ratio[0]) == pytest.approx(between / (between + within), rel=1e-9)


def test_permutations_keep_texts_together_or_stay_within_them() -> None:
    groups = torch.arange(10).repeat_interleave(3)
    whole = permuted((torch.arange(10) % 2)[groups], groups, 0)
    assert all(len(row[groups == one].unique()) == 1 for row in whole for one in range(10))
    mixed = torch.arange(30) % 4
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    for row in permuted(mixed, groups[order], 0)[:20]:
        for one in range(10):
            assert sorted(row[groups[order] == one].tolist()) == sorted(mixed[groups[order] == one].tolist())


def test_p_is_honest_on_random_labels_and_small_on_planted_ones() -> None:
    """Over 60 seeds p over all layers is below 0.05 in 3; ten or more have a chance of 1 in 3,000."""
    low = 0
    for seed in range(60):
        rng = torch.Generator().manual_seed(seed)
        states, labels = torch.randn(3, 40, 6, generator=rng), torch.randint(2, (40,), generator=rng)
        drawn = torch.cat([labels[None], permuted(labels, torch.arange(40), seed)])
        low += any_layer([between_shares(one, drawn, 2) for one in states])[1] <= 0.05
        if seed < 6:
            states[1, :, 0] += 3 * labels
            assert any_layer([between_shares(one, drawn, 2) for one in states]) == (1, pytest.approx(1 / 200))
    assert low < 10


@pytest.mark.parametrize("architecture", [*ARCHITECTURES, "run"])
def test_every_model_on_prompts(loaded: dict[str, Loaded], architecture: str, tmp_path: Path) -> None:
    model = loaded[architecture]
    chosen = prompt_set(model, sequences=12) if model.run else _prompts(model, tmp_path)
    result = shape(model, chosen)
    assert result.data["layer"].values.tolist() == list(range(-1, model.n_layers))
    assert bool((result.data["participation"] <= result.data["participation_high"]).all())
    assert "separation" not in result.data
    with torch.no_grad():
        states = torch.cat([model.model.run_with_cache(row[None])[1]["blocks.0.hook_resid_post"][0, 1:] for row in chosen.tokens])  # type: ignore[operator]
    values = torch.linalg.eigvalsh(states.double().T.cov())
    assert float(result.data["participation_no_first"][1]) == pytest.approx(float(values.sum() ** 2 / values.square().sum()), rel=1e-3)


def _prompts(model: Loaded, folder: Path) -> PromptSet:
    (folder / "p.txt").write_text("\n".join(texts(12)))
    return prompt_set(model, str(folder / "p.txt"))


def test_labels_that_follow_the_last_token_part_the_states_and_random_ones_do_not(loaded: dict[str, Loaded], tmp_path: Path) -> None:
    model = loaded["llama"]
    rows = [{"text": f"{text} {('fox', 'dog')[number % 2]}", "label": number % 2} for number, text in enumerate(texts(30))]
    first, second = (shape(model, labelled.given(model, rows)) for _ in range(2))
    assert first.data.identical(second.data)
    assert first.summary["separation_p_any_layer"] == pytest.approx(1 / 200)
    assert "Labels part the states most at" in first.summary["finding"]
    stored = load_result(first.save(tmp_path)).data
    assert stored["separation"].values[0] == math.inf  # what enters the first block is the token itself
    assert stored["separation"].values[1] == pytest.approx(stored["between_share"].values[1] / (1 - stored["between_share"].values[1]))
    rng = random.Random(5)
    by_chance = [{"text": text, "label": rng.randint(0, 1)} for text in texts(30)]
    assert "nowhere more than permuted" in shape(model, labelled.given(model, by_chance)).summary["finding"]


def test_only_so_many_states_are_held_and_layers_in_pieces_are_the_same(
    loaded: dict[str, Loaded], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loaded["gpt2"]
    chosen = _prompts(model, tmp_path)
    whole = shape(model, chosen)
    monkeypatch.setattr(instrument, "BYTES", 1)
    assert shape(model, chosen).data.identical(whole.data)
    monkeypatch.setattr(instrument, "STATES", 20)
    assert shape(model, chosen).summary["n_states"] <= 20
    with pytest.raises(ConfigError, match="layer 5 does not exist"):
        shape(model, chosen, layers=[5])
