"""Probes of any model and of plain arrays: splits share no text, what is planted is found, and what is not there is not."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.hooks.tiny_models import ARCHITECTURES, WORDS, save_model, save_run
from wallprobe import models
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.findings import side
from wallprobe.hooks.attach import gathering, labelled
from wallprobe.hooks.probes import arrays
from wallprobe.hooks.probes.labelled import probe_labelled
from wallprobe.hooks.probes.measure import probe
from wallprobe.models import Loaded
from wallprobe.store.results import load_result


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loaded]:
    root = tmp_path_factory.mktemp("models")
    return {name: models.load(str(save_model(name, root / name))) for name in ARCHITECTURES}


def texts(number: int, seed: int = 0) -> list[str]:
    """Different texts of three to six words."""
    rng, made = random.Random(seed), dict[str, None]()
    while len(made) < number:
        made[" ".join(rng.choices(WORDS, k=rng.randint(3, 6)))] = None
    return list(made)


def planted(seed: int, strength: float, rows: int = 240, width: int = 16) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (rows,), generator=rng)
    direction = torch.nn.functional.normalize(torch.randn(width, generator=rng), dim=0)
    return torch.randn(rows, width, generator=rng) + strength * (2 * labels[:, None] - 1) * direction, labels


@pytest.mark.parametrize("seed", range(6))
def test_a_planted_direction_is_found(seed: int) -> None:
    acts, labels = planted(seed, 3.0)
    summary = probe(acts, labels, seed=seed).summary
    assert summary["accuracy"] > 0.95
    assert summary["accuracy_low"] <= summary["accuracy"] <= summary["accuracy_high"]
    assert summary["selectivity_low"] > 0.2
    assert summary["gain_low"] > 0.2
    assert "more than the majority label" in summary["finding"]


def test_nothing_is_found_where_nothing_is() -> None:
    """Of 60 draws, an interval of 95 % lies above the baseline in about 1.5; nine or more have a chance of 1 in 20,000."""
    found = []
    for seed in range(60):
        acts, labels = planted(seed, 0.0, rows=160)
        summary = probe(acts, labels, seed=seed).summary
        found.append(
            (
                side(summary["accuracy"], summary["control_accuracy"], (summary["selectivity_low"], summary["selectivity_high"])),
                summary["accuracy"],
            )
        )
    assert sum(told == "above" for told, _ in found) < 9
    assert abs(np.mean([accuracy for _, accuracy in found]) - 0.5) < 0.05


def test_texts_are_never_on_two_sides_and_duplicates_count_as_one() -> None:
    rng = torch.Generator().manual_seed(1)
    for seed in range(40):
        groups = torch.randint(60, (300,), generator=rng)
        labels = torch.randint(3, (300,), generator=rng)
        division = arrays.divide(labels, groups, seed)
        parts = [set(groups[part].tolist()) for part in (division.train, division.validation, division.test)]
        assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]
        assert sorted(division.order.tolist()) == list(range(300))
    with pytest.raises(InstrumentError, match="on two sides"):
        arrays.Division(torch.tensor([0]), torch.tensor([1]), torch.tensor([2])).check(torch.tensor([0, 1, 0]))


def test_what_is_only_memorised_by_text_is_not_found() -> None:
    """Each text has a state of its own and a random label; a split that let a text on both sides would give accuracy 1."""
    accuracies = []
    for seed in range(12):
        rng = torch.Generator().manual_seed(seed)
        groups = torch.arange(60).repeat_interleave(4)
        labels = torch.randint(2, (60,), generator=rng)[groups]
        acts = torch.randn(60, 64, generator=rng)[groups] + 0.01 * torch.randn(240, 64, generator=rng)
        accuracies.append(probe(acts, labels, groups=groups, seed=seed).summary["accuracy"])
    assert abs(float(np.mean(accuracies)) - 0.5) < 0.12
    naive = probe(acts, labels, seed=0).summary  # each sample a text of its own: the leak that groups close
    assert naive["accuracy"] > 0.9


def test_control_labels_of_types_are_one_a_type_and_learnt() -> None:
    """The state is the type; a label that follows the type is told, and so is the control: selectivity is nothing."""
    rng = torch.Generator().manual_seed(3)
    types = torch.randint(12, (600,), generator=rng)
    acts = torch.eye(12)[types] + 0.05 * torch.randn(600, 12, generator=rng)
    drawn = arrays.control_labels(types % 2, torch.arange(600), types, "types", 0)
    for row in drawn:
        assert all(len(row[types == one].unique()) == 1 for one in range(12))
    summary = probe(acts, types % 2, types=types, control="types").summary
    assert summary["accuracy"] == 1.0
    assert summary["control_accuracy"] == 1.0
    assert summary["token_type_accuracy"] == 1.0
    assert "no more than control labels" in summary["finding"]
    assert probe(acts, types % 2, control="shuffled").summary["selectivity_low"] > 0.3


def test_shuffled_control_moves_whole_texts() -> None:
    groups = torch.arange(30).repeat_interleave(3)
    labels = (torch.arange(30) % 3)[groups]
    drawn = arrays.control_labels(labels, groups, None, "shuffled", 4)
    assert drawn.shape == (arrays.DRAWS, 90)
    for row in drawn:
        assert torch.equal(row.bincount(), labels.bincount())
        assert all(len(row[groups == one].unique()) == 1 for one in range(30))
        assert not torch.equal(row, labels)


def test_intervals_cover_what_they_say() -> None:
    """Accuracy of a probe that has been fixed is a mean over texts: of 200 draws of 50 texts, about 95 % cover."""
    covered = 0
    for seed in range(200):
        rng = torch.Generator().manual_seed(seed)
        level = torch.rand(50, generator=rng)  # texts differ in how hard they are
        groups = torch.arange(50).repeat_interleave(4)
        hits = torch.rand(200, generator=rng) < level[groups]
        _, low, high = arrays.ByText.of(groups, seed).figures(hits)
        covered += float(low) <= 0.5 <= float(high)
    assert 178 <= covered <= 199


def test_a_label_in_too_few_texts_is_refused() -> None:
    acts, labels = torch.randn(80, 4), torch.tensor([0] * 73 + [1] * 7)
    with pytest.raises(ConfigError, match="label '1' is in 7 different texts, too few to fit and to score; give at least 8 of each"):
        probe(acts, labels)
    groups = torch.cat([torch.arange(73), torch.full((7,), 80)])
    with pytest.raises(ConfigError, match="is in 1 different texts"):
        probe(acts, labels, groups=groups)


@pytest.mark.parametrize(
    ("acts", "labels", "more", "said"),
    [
        (torch.randn(4), [0, 1, 0, 1], {}, r"of shape \[4\]; give \[sample, width\]"),
        (torch.randn(4, 2), [0, 1], {}, "there are 2 labels for 4 samples"),
        (torch.full((4, 2), float("nan")), [0, 1, 0, 1], {}, "NaN or infinities"),
        (torch.randn(4, 2), [0.5, 1.0, 0.5, 1.0], {}, "labels are no names and no integers"),
        (torch.randn(40, 2), [0, 1] * 20, {"control": "none"}, "control 'none' is none of shuffled, types"),
        (torch.randn(40, 2), [0, 1] * 20, {"control": "types"}, "needs the type of each row"),
        (torch.randn(40, 2), [0] * 40, {}, "there is one label"),
        (torch.randn(40, 2), None, {}, "give their labels"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(acts: Tensor, labels: Any, more: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        probe(acts, labels, **more)


def test_arrays_of_numpy_and_several_places() -> None:
    acts, labels = planted(0, 3.0)
    both = np.stack([np.zeros_like(acts.numpy()), acts.numpy()])
    result = probe(both, np.array(["no", "yes"])[labels.numpy()])
    assert result.table == ("place",)
    assert result.summary["place"] == 1
    assert result.data["accuracy"].values[0] < 0.8 < result.data["accuracy"].values[1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_states_at_places_are_those_of_single_passes(loaded: dict[str, Loaded], architecture: str) -> None:
    model = loaded[architecture]
    found = labelled.given(model, [{"text": text, "label": number % 2, "index": number % 3} for number, text in enumerate(texts(12))])
    hooks = list(gathering.hooks_of(model, "resid_post").values())
    states = gathering.states_at(model, found.tokens, found.row, found.index, hooks)
    for place, (row, at) in enumerate(zip(found.row.tolist(), found.index.tolist(), strict=True)):
        with torch.no_grad():
            _, cache = model.model.run_with_cache(found.tokens[row][None])  # type: ignore[operator]
        alone = torch.stack([cache[name][0, at] for name in hooks])
        torch.testing.assert_close(states[:, place], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_last_token_is_read_off_any_model(loaded: dict[str, Loaded], architecture: str) -> None:
    model = loaded[architecture]
    rows = [{"text": f"{text} {word}", "label": word} for number, text in enumerate(texts(60)) for word in [("fox", "dog")[number % 2]]]
    result = probe_labelled(model, labelled.given(model, rows))
    assert result.data["layer"].values.tolist() == [-1, 0, 1, 2]
    assert result.data["accuracy"].values[0] > 0.9  # the embedding tells its own token
    assert result.summary["token_type_accuracy"] == 1.0
    assert "no more than the type of token alone" in result.summary["finding"]


def test_random_labels_of_texts_are_told_by_none(loaded: dict[str, Loaded]) -> None:
    model, above = loaded["gpt2"], 0
    for seed in range(12):
        rng = random.Random(seed)
        rows = [{"text": text, "label": rng.choice("ab")} for text in texts(80, seed)]
        summary = probe_labelled(model, labelled.given(model, rows), layers=[1], seed=seed).summary
        above += summary["gain_low"] > 0 and summary["selectivity_low"] > 0
    assert above <= 3  # P(4 or more of 12 at 2.5 %) is 2 in 10,000


def test_it_is_stored_and_the_same_twice(loaded: dict[str, Loaded], tmp_path: Path) -> None:
    model = loaded["llama"]
    rows = [{"text": text, "label": [int(word in ("the", "of")) for word in text.split()]} for text in texts(40)]
    data = labelled.given(model, rows)
    first, second = (probe(model, labelled=data) for _ in range(2))
    assert first.data.identical(second.data)
    assert first.summary["control"] == "types"
    assert load_result(first.save(tmp_path)).data.identical(first.data)


def test_a_run_is_probed_on_labelled_tokens(tmp_path: Path) -> None:
    run = models.load(save_run(tmp_path / "runs"), root=tmp_path / "runs")
    rng = random.Random(0)
    rows = [{"tokens": [rng.randrange(5) for _ in range(6)] + [number % 2], "label": number % 2} for number in range(60)]
    assert run.run is not None
    summary = probe(run.run, labelled=labelled.given(run, rows)).summary
    assert summary["accuracy"] > 0.9
    with pytest.raises(ConfigError, match="labels are given beside a model"):
        probe(run, [0, 1])


def test_other_models_without_labels_are_refused(loaded: dict[str, Loaded]) -> None:
    with pytest.raises(ConfigError, match="give labelled=, or --labels FILE"):
        probe(loaded["gpt2"])
