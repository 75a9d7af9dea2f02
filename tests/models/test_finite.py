"""A foreign decoder with a NaN among its weights is refused when it is read, streamed or not."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.hooks.tiny_models import save_model
from wallprobe import models
from wallprobe.errors import CheckpointError
from wallprobe.models.loading import load_plain


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    """A tiny llama with one NaN in its second block."""
    folder = save_model("llama", tmp_path_factory.mktemp("llama"))
    path = folder / "model.safetensors"
    state = load_file(path)
    state["model.layers.1.mlp.up_proj.weight"][2, 3] = torch.nan
    save_file(state, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("load", [models.load, load_plain])
def test_a_nan_among_the_weights_is_refused(broken, load):
    with pytest.raises(CheckpointError, match=r"parameter model.layers.1.mlp.up_proj.weight has 1 of 2,048 numbers"):
        load(str(broken))


@pytest.mark.parametrize("command", [("gains",), ("flow",), ("gains", "--stream")])
def test_commands_say_so_on_one_line_and_store_nothing(invoke, broken, tmp_path, command):
    code, out, err = invoke(command[0], str(broken), *command[1:], "--prompts", "seed4")
    assert (code, out) == (2, "")
    assert [line for line in err.splitlines() if "finite" in line] == err.splitlines()[-1:]  # streaming says before what it will take
    assert not (tmp_path / "results").exists()
