"""Gains through nnsight, on the way they would take to NDIF: the same figures as through hooks, and only norms come back."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hooks import tiny_models
from wallprobe import models
from wallprobe.errors import ConfigError, InstrumentError
from wallprobe.hooks.attach import remote
from wallprobe.hooks.attach.prompt_sets import PromptSet, encode, prompt_set
from wallprobe.hooks.gains.measure import gains
from wallprobe.hooks.gains.over_nnsight import remote_gains
from wallprobe.hooks.gains.report import Settings

pytestmark = pytest.mark.usefixtures("nnsight_unmounted")


@pytest.fixture(scope="module", params=list(tiny_models.ARCHITECTURES))
def folder(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tiny_models.save_model(request.param, tmp_path_factory.mktemp(f"remote_{request.param}"))
    (place / "prompts.txt").write_text("the quick brown fox\nthe capital of france is\nthe lazy brown dog\n", encoding="utf-8")
    return place


def texts(plain: models.Plain, folder: Path) -> PromptSet:
    return encode(plain.name, plain.tokenizer, models.limits(plain), str(folder / "prompts.txt"))


@pytest.mark.parametrize("definition", ["sublayer", "update_ratio"])
def test_the_way_to_ndif_gives_the_figures_of_hooks(folder: Path, definition: str) -> None:
    plain, settings = models.load_plain(str(folder)), Settings.make(definition, "ratio_of_means", "all")
    found = remote_gains(plain, texts(plain, folder), settings, "local")
    loaded = models.load(str(folder))
    own = gains(loaded, prompt_set(loaded, str(folder / "prompts.txt")), definition)
    assert found.manifest["engine"] == {"backend": "nnsight", "remote": "local"}
    assert found.data.keys() == own.data.keys()
    for name in set(own.data) - {"identity_error"}:
        theirs, ours = (torch.tensor(result.data[name].values) for result in (found, own))
        torch.testing.assert_close(theirs, ours, rtol=1e-5, atol=1e-6, equal_nan=True, msg=str(name))
    for key in ("n_params", "n_params_non_embedding", "attn_contracting", "n_sinks", "regime", "l_star"):
        assert found.summary[key] == own.summary[key], key
    assert found.summary["residual_identity_error"] < 1e-6


def test_what_comes_back_is_a_few_numbers_a_token(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[tuple[int, ...]] = []
    real = remote.Tracer.inner_products

    def watched(self: Any, tokens: Any, blocks: Any, *more: Any) -> Any:
        figures, seam = real(self, tokens, blocks, *more)
        sizes.append((figures.numel(), len(blocks) * tokens.numel()))
        return figures, seam

    monkeypatch.setattr(remote.Tracer, "inner_products", watched)
    plain = models.load_plain(str(folder))
    remote_gains(plain, texts(plain, folder), Settings.make("sublayer", "ratio_of_means", "all"))
    assert len(sizes) == 2  # two lengths
    assert all(numbers == 13 * places for numbers, places in sizes)


def test_a_block_that_reads_something_else_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = remote.Tracer.inner_products
    monkeypatch.setattr(remote.Tracer, "inner_products", lambda *given: (real(*given)[0], 0.5))
    plain = models.load_plain(str(folder))
    with pytest.raises(InstrumentError, match="a block reads what the one before did not write"):
        remote_gains(plain, texts(plain, folder), Settings.make("sublayer", "ratio_of_means", "all"))


def test_what_needs_more_than_norms_is_refused(folder: Path) -> None:
    plain = models.load_plain(str(folder))
    with pytest.raises(ConfigError, match="--gain jacobian needs more than norms"):
        remote_gains(plain, texts(plain, folder), Settings.make("jacobian", "ratio_of_means", "all"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--remote", "mars"), "--remote mars is none of none, local"),
        (("--remote", "local", "--fold"), "--remote local sends back norms alone; leave --fold, --stream and --l-star out"),
        (("--remote", "local", "--over-training"), "leave --fold, --stream, --l-star, --fit and --remote out"),
    ],
)
def test_the_command_refuses(invoke: Any, tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    code, out, err = invoke("gains", "c0", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert list(tmp_path.iterdir()) == []


def test_the_command_runs(invoke: Any, folder: Path, tmp_path: Path) -> None:
    code, out, err = invoke("gains", str(folder), "--remote", "local", "--prompts", str(folder / "prompts.txt"))
    assert code == 0, err
    assert "Held against the module's own input" in out
    assert len(list((tmp_path / "results").glob("gains-*"))) == 1
    code, _, err = invoke("gains", "c0", "--remote", "local")
    assert code == 2
    assert "'c0' is no language model" in err
