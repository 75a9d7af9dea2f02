"""Hook modules against raw torch hooks on a module of somebody's own, on a disk that is cut off in the middle, and by hand."""

import signal
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import wallprobe as wp
from wallprobe.hooks.attach.modules.watching import figures

IDS = torch.tensor([[1, 2, 3, 4], [4, 3, 2, 1], [5, 6, 7, 0]])


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = nn.Linear(width, width)
        self.ffn = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x):
        x = x + self.self_attn(self.norm1(x))
        return x + self.ffn(self.norm2(x)), None  # a tuple, as many decoders' blocks give


class Net(nn.Module):
    def __init__(self, width=8, depth=2):
        super().__init__()
        self.embed = nn.Embedding(10, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(depth))
        self.final_norm, self.lm_head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x, _ = layer(x)
        return self.lm_head(self.final_norm(x))


@pytest.fixture
def net():
    made = Net()
    source = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=source) * 0.5)
    yield made
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in made.modules())


def raw(net, ids, layer):
    """The oracle: torch's own hook."""
    seen = []
    handle = net.layers[layer].register_forward_hook(lambda module, given, out: seen.append(out[0].detach()))
    net(ids)
    handle.remove()
    return seen[0]


def test_a_cache_follows_the_users_own_calls(net):
    with wp.ResidualCache(net, "blocks.*.hook_resid_post", index=[0, -1]) as cache:
        net(IDS).sum().backward()
        net(IDS[:1])
    assert cache.names == ("blocks.0.hook_resid_post", "blocks.1.hook_resid_post")
    assert_close(cache["blocks.1.hook_resid_post"], torch.cat([raw(net, IDS, 1), raw(net, IDS[:1], 1)])[:, [0, -1]], rtol=0, atol=0)
    assert cache.bytes_held == cache.predicted_bytes(4, 4) == 4 * 2 * 4 * 2 * 8
    assert not cache["blocks.1.hook_resid_post"].requires_grad


def test_passes_of_other_lengths_stay_apart(net):
    with wp.ResidualCache(net, "blocks.0.hook_resid_pre") as cache:
        net(IDS)
        net(IDS[:, :2])
    assert [value.shape for value in cache.passes("blocks.0.hook_resid_pre")] == [(3, 4, 8), (3, 2, 8)]
    with pytest.raises(wp.WallprobeError, match="different lengths"):
        cache["blocks.0.hook_resid_pre"]
    with pytest.raises(wp.WallprobeError, match="holds no 'blocks"):
        cache["blocks.1.hook_resid_pre"]


@pytest.mark.parametrize("budget", [0, 1000, None])
def test_what_is_spilled_to_disk_reads_back_equal(net, tmp_path, budget):
    names = ["blocks.0.hook_attn_out", "blocks.1.hook_mlp_out"]
    batches = [IDS, IDS[:2], IDS[:, :3], IDS[:1]]
    with wp.ResidualCache(net, names) as kept, wp.ResidualCache(net, names, budget=budget, folder=tmp_path / "cache") as spilled:
        for batch in batches:
            net(batch)
        if budget == 0:
            assert spilled.bytes_held == 0
            assert not (tmp_path / "cache").exists()  # nothing half done is ever seen
    stored = wp.read_cache(tmp_path / "cache")
    assert list(stored) == names
    for name in names:
        for one, other, third in zip(kept.passes(name), spilled.passes(name), stored[name], strict=True):
            assert torch.equal(one, other)
            assert torch.equal(one, third)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_an_error_leaves_no_store_and_an_altered_one_is_refused(net, tmp_path):
    folder = tmp_path / "cache"
    with pytest.raises(ZeroDivisionError), wp.ResidualCache(net, "blocks.0.hook_resid_pre", budget=0, folder=folder):
        net(IDS).sum() / (1 // 0)
    assert not list(tmp_path.iterdir())
    with wp.ResidualCache(net, "blocks.0.hook_resid_pre", folder=folder):
        net(IDS)
    shard = folder / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(wp.WallprobeError, match="it was altered"):
        wp.read_cache(folder)
    with pytest.raises(wp.WallprobeError, match="needs a folder"):
        wp.ResidualCache(net, "blocks.0.hook_resid_pre", budget=10)


def test_a_killed_process_leaves_no_half_store(tmp_path):
    code = textwrap.dedent(
        """
        import sys, time, torch, wallprobe as wp
        from torch import nn

        class Block(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Linear(4, 4)

            def forward(self, x):
                return x + self.inner(x)

        net = nn.Sequential(nn.Embedding(10, 4), nn.Sequential(Block(), Block()))
        with wp.ResidualCache(net, "blocks.*.hook_resid_post", budget=0, folder=sys.argv[1]):
            net(torch.arange(6).reshape(2, 3))
            print("written", flush=True)
            time.sleep(60)
        """
    )
    folder = tmp_path / "cache"
    process = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    half = list(tmp_path.glob(".wallprobe/*/shard-00000.safetensors"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(half) == 1  # it was in the middle
    assert not folder.exists()
    with pytest.raises(wp.WallprobeError):
        wp.read_cache(folder)
    with wp.ResidualCache(Net(), "blocks.0.hook_resid_pre", folder=folder) as cache:
        Net()(IDS)
        cache.loaded.root(IDS)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]  # what the dead one left is swept
    assert len(wp.read_cache(folder)["blocks.0.hook_resid_pre"]) == 1


def test_a_pass_that_fails_half_way_leaves_nothing(net):
    with wp.ResidualCache(net, "blocks.1.hook_resid_pre") as cache:
        with pytest.raises(IndexError):
            net(IDS + 90)
        net(IDS)
        with pytest.raises(wp.WallprobeError, match="outside a call"):
            net.forward(IDS)
    assert len(cache.passes("blocks.1.hook_resid_pre")) == 1


def test_modules_stand_beside_each_other_and_are_entered_once(net):
    one, two = (wp.ResidualCache(net, "blocks.0.hook_resid_post") for _ in range(2))
    with one, two:
        net(IDS)
        with pytest.raises(wp.WallprobeError, match="attached to wrapped already"):
            one.__enter__()
    assert torch.equal(one["blocks.0.hook_resid_post"], two["blocks.0.hook_resid_post"])
    with one:  # a second time, from the beginning
        net(IDS[:1])
    assert one["blocks.0.hook_resid_post"].shape == (1, 4, 8)
    with pytest.raises(wp.WallprobeError, match=r"no hook of wrapped is named 'blocks\.0\.hook_z'"):
        wp.ResidualCache(net, "blocks.0.hook_z")


@pytest.mark.parametrize("index", [None, 2, -1])
def test_a_patch_is_what_a_raw_hook_does(net, index):
    source = torch.full((3, 4, 8), 0.25) if index is None else torch.full((3, 8), 0.25)

    def oracle(module, given, out):
        new = out[0].clone()
        new[(slice(None),) if index is None else (slice(None), index)] = 0.25
        return new, None

    handle = net.layers[0].register_forward_hook(oracle)
    wanted = net(IDS)
    handle.remove()
    with wp.Patch(net, ("blocks.0.hook_resid_post", index), wp.Swap(), source) as patch:
        found = net(IDS)
    assert torch.equal(found, wanted)
    assert patch.change.sequences == 3
    there = raw(net, IDS, 0) if index is None else raw(net, IDS, 0)[:, index]
    assert patch.change.largest == pytest.approx(float((there - 0.25).abs().max()), rel=1e-6)
    assert torch.equal(net(IDS), net(IDS))


def test_a_patch_of_what_is_there_is_the_identity(net):
    own = raw(net, IDS, 0)[:, 1]
    plain = net(IDS)
    with wp.Patch(net, ("blocks.0.hook_resid_post", 1), wp.Swap(), own, same=True) as patch:
        assert torch.equal(net(IDS), plain)
    assert patch.change.largest == 0
    with pytest.raises(wp.WallprobeError, match="changed nothing"), wp.Patch(net, ("blocks.0.hook_resid_post", 1), wp.Swap(), own):
        net(IDS)


def test_a_patch_that_does_not_fire_once_raises(net):
    source = torch.zeros(3, 8)
    with pytest.raises(wp.WallprobeError, match="did not fire"), wp.Patch(net, ("blocks.0.hook_resid_post", 0), wp.Swap(), source):
        pass
    with pytest.raises(wp.WallprobeError, match="more than once"), wp.Patch(net, ("blocks.0.hook_resid_post", 0), wp.Swap(), source):
        net(net(IDS).argmax(dim=-1))
    with pytest.raises(wp.WallprobeError, match="index 9 is outside"), wp.Patch(net, ("blocks.0.hook_resid_post", 9), wp.Swap(), source):
        net(IDS)
    with (
        pytest.raises(wp.WallprobeError, match=r"a source of \(2, 1, 8\)"),
        wp.Patch(net, ("blocks.0.hook_resid_post", 0), wp.Swap(), source[:2]),
    ):
        net(IDS)


def test_attention_figures_by_hand():
    pattern = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [1.0, 0, 0]])[None, None]
    found = figures(pattern)
    assert_close(found["entropy"], torch.tensor([0.6931471805599453], dtype=torch.float64), rtol=1e-12, atol=0)
    assert found["first_share"].item() == 1.5
    assert found["distance"].item() == 0.5 + 2


def test_a_watch_sees_the_patterns_of_the_model(net):
    loaded = wp.load("c0")
    ids = torch.arange(24).reshape(3, 8) % 17
    seen = {}
    loaded.model.run_with_hooks(ids, fwd_hooks=[("blocks.1.attn.hook_pattern", lambda value, hook: seen.update(all=value.detach()))])
    with wp.AttentionWatch(loaded, [1], keep="patterns") as watch:
        loaded.model(ids[:2])
        loaded.model(ids[2:])
    assert_close(torch.cat([one[1] for one in watch.patterns]), seen["all"], rtol=1e-5, atol=1e-6)
    result = watch.result()
    p = seen["all"].double()[:, :, 1:]
    assert_close(torch.tensor(result.data["first_share"].values[0]), p[..., 0].mean(dim=(0, 2)), rtol=1e-6, atol=0)
    assert result.summary["n_queries"] == 3 * 7
    with pytest.raises(wp.WallprobeError, match="were not kept"):
        _ = wp.AttentionWatch(loaded).patterns
    with pytest.raises(wp.WallprobeError, match="no query"):
        wp.AttentionWatch(loaded).result()
    with pytest.raises(wp.WallprobeError, match="layer 99 is not in"):
        wp.AttentionWatch(loaded, 99)
    with pytest.raises(wp.WallprobeError, match=r"has no hook blocks.0.attn.hook_pattern"), wp.AttentionWatch(net):
        pass
