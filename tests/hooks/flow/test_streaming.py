"""Flow block by block says what flow of the whole model says, also after an interruption."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hooks.gains.test_streaming import TEXTS, Stopped, read, sharded
from tests.hooks.tiny_models import ARCHITECTURES, save_model
from wallprobe import models
from wallprobe.hooks.flow import lens_strips
from wallprobe.hooks.flow.lens import flow
from wallprobe.hooks.flow.streaming import stream_flow
from wallprobe.models.streamed import open_streamed
from wallprobe.store.results import Result


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    (root / "prompts.txt").write_text(TEXTS)
    return {name: save_model(name, root / name) for name in ARCHITECTURES}


def same(ours: Result, theirs: Result, rtol: float) -> None:
    assert set(ours.data.data_vars) == set(theirs.data.data_vars)
    for name in theirs.data.data_vars:
        mine, other = (torch.from_numpy(one.data[name].values) for one in (ours, theirs))
        torch.testing.assert_close(mine, other, rtol=rtol, atol=1e-6, equal_nan=True, msg=str(name))
    for name, value in theirs.summary.items():
        if isinstance(value, float) and name not in ("lens_error", "peak_gib"):
            assert ours.summary[name] == pytest.approx(value, rel=max(rtol, 1e-12), abs=1e-6, nan_ok=True), name


@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_equals_the_whole_model(architecture: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(lens_strips, "ROWS", 5)
    model = open_streamed(str(sharded(folders[architecture], tmp_path / "sharded")))
    prompts = read(model, folders)
    ours, theirs = stream_flow(model, prompts), flow(models.load(str(folders[architecture])), prompts)
    same(ours, theirs, 1e-4)
    assert (ours.summary["streamed"], theirs.summary["streamed"]) == (True, False)
    assert ours.summary["n_states_ranked"] == ours.summary["n_states"] == sum(map(len, prompts.tokens))


def test_an_interrupted_flow_goes_on_at_its_block(folders: dict[str, Path], tmp_path: Path) -> None:
    model = open_streamed(str(folders["llama"]))
    prompts, whole = read(model, folders), stream_flow(model, read(model, folders))

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise Stopped

    with pytest.raises(Stopped):
        stream_flow(model, prompts, state=tmp_path / "state", every=0.0, on_progress=stop)
    seen: list[int] = []
    again = stream_flow(model, prompts, state=tmp_path / "state", on_progress=lambda done, _: seen.append(done))
    assert seen == [3]
    same(again, whole, 0.0)
    assert not (tmp_path / "state").exists()
