"""A user's own torch model through an adapter, a finished run by its name, and the networks' states through the shared cache."""

import json
import re
from pathlib import Path

import pytest
import torch

from wallprobe import models
from wallprobe.errors import InstrumentError, UnknownNameError
from wallprobe.hooks.attach.cache import capture
from wallprobe.hooks.audit.check import check, load_subject
from wallprobe.hooks.audit.subject import Subject
from wallprobe.tasks.images import load_images
from wallprobe.training.audit.quantities import Lens
from wallprobe.training.estimators.nets import NETS, Sizes, build_net

DIGITS = load_images("digits")
QUICK = Lens(samples=64, nulls=20, nudge_samples=32, directions=3)
ADAPTER = """
import torch
from torch import nn
from wallprobe.hooks.audit.subject import Subject
from wallprobe.training.estimators.nets import Net

class Inflated(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.scale = nn.Linear(8, 8), 1.0
    def forward(self, h):
        return self.scale * (h + self.first(h).relu())

def subject():
    torch.manual_seed(0)
    nets = [Net(nn.Linear(4, 8), [Inflated()], nn.Sequential(nn.LayerNorm(8, eps=0), nn.Linear(8, 3)), (8, 8), 3) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    nets[1].blocks[0].scale = 1e8
    return Subject(nets[1], torch.randn(64, 4), torch.arange(64) % 3, method="dfa", start=nets[0], name="inflated")

def broken():
    raise ValueError("no weights here")

def nothing():
    return 3
"""


@pytest.fixture
def adapter(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(ADAPTER)
    return str(path)


def test_an_inflated_model_of_ones_own_is_degenerate_by_its_units(adapter):
    found = check(load_subject(f"{adapter}:subject"), lens=QUICK)
    record = found.summary
    assert record["verdict"] == "DEGENERATE"
    assert record["h_ratio"] == pytest.approx(1e8, rel=1e-3)
    assert record["g_ratio"] == pytest.approx(1e-8, rel=1e-3)
    assert record["elasticity_ratio"] == pytest.approx(1.0, rel=1e-3)
    exact, clamped = (found.data[name].values[0, :, -1] for name in ("gamma_exact", "gamma_clamped"))
    assert exact[1] == pytest.approx(exact[0], abs=1e-5)
    assert abs(clamped[1]) < abs(exact[1]) / 10


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("broken", InstrumentError, "failed: ValueError"),
        ("nothing", InstrumentError, "returned int; return a wallprobe.hooks.audit.subject.Subject"),
        ("absent", UnknownNameError, "give module:function or file.py:function"),
    ],
)
def test_bad_adapters_say_what_is_wrong(adapter, name, error, message):
    with pytest.raises(error, match=message):
        load_subject(f"{adapter}:{name}")


def test_a_model_that_does_not_fit_its_samples_is_refused_on_one_line():
    net = build_net("resmlp", DIGITS.shape, 10, 0, Sizes(width=8, depth=1))
    with pytest.raises(InstrumentError, match="small cannot be audited: ") as caught:
        check(Subject(net, torch.randn(8, 3), torch.zeros(8, dtype=torch.long), name="small"), lens=QUICK)
    assert "\n" not in str(caught.value)


def test_check_from_the_command_line_and_of_a_finished_run(invoke, tmp_path, adapter):
    code, out, err = invoke("audit", "check", f"{adapter}:subject", "--samples", "64", "--json")
    assert code == 0, err
    assert json.loads(out)["summary"]["verdict"] == "DEGENERATE"
    run = ["--data", "synthetic", "--epochs", "1", "--width", "16", "--depth", "1", "--no-baseline"]
    assert invoke("audit", "run", *run)[0] == 0
    code, out, err = invoke("audit", "check", "resmlp-dfa-synthetic", "--json")
    assert code == 0, err
    (name,) = [path.name for path in (tmp_path / "runs" / "audit").iterdir() if not path.name.startswith(".")]
    stored = json.loads((tmp_path / "runs" / "audit" / name / "audit" / "result.json").read_text())["summary"]
    found = json.loads(out)["summary"]
    for key in ("h_ratio", "g_ratio", "gamma_exact", "accuracy"):
        assert found[key] == pytest.approx(stored[key], rel=1e-4, abs=1e-6)
    code, out, err = invoke("audit", "check", "vit-dfa")
    assert (code, out) == (2, "")
    assert err.startswith("wallprobe: no audit run 'vit-dfa'; there are: resmlp-dfa-synthetic")


@pytest.mark.parametrize("arch", NETS)
def test_the_shared_cache_reads_every_state(arch):
    net = build_net(arch, DIGITS.shape, 10, 0, Sizes(width=16, depth=2)).eval()
    loaded = models.hooked(net)
    x = DIGITS.test_x[:5]
    with torch.no_grad():
        states = net.states(x)
    rows = [h[:, None] if h.ndim == 2 else h.flatten(2).transpose(1, 2) if h.ndim == 4 else h for h in states]
    for name, row in (("hook_embed", rows[0]), ("blocks.0.hook_resid_pre", rows[0]), ("blocks.1.hook_resid_post", rows[2])):
        found = capture(loaded, x, [name], keep=range(row.shape[1]))[name]
        torch.testing.assert_close(found, row, rtol=0, atol=0)
    torch.testing.assert_close(loaded.model(x), net(x))


@pytest.mark.parametrize("method", ["bp", "dfa", "fa"])
def test_a_run_of_the_wall_is_held_to_its_own_gradient(method):
    """c0 at its end and at its initialisation, on the supervised prefix; the reference against HookedTransformer's own loss."""
    from wallprobe.training.audit.quantities import reference
    from wallprobe.training.estimators.protocol import Batch

    subject = load_subject("c0", method=method)
    x, y = subject.x[:16], subject.y[:16]
    seen = reference(subject.net, Batch(x, y))
    model = models.load("c0").model
    captured = {}

    def keep(value, hook):
        captured["h"] = value

    logits = model.run_with_hooks(x, fwd_hooks=[("blocks.5.hook_resid_post", keep)])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="sum") / y.shape[1]
    (grad,) = torch.autograd.grad(loss, captured["h"])
    torch.testing.assert_close(seen.states[-1], captured["h"].detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen.grads[-1], grad, rtol=1e-3, atol=1e-6)
    record = check(subject, lens=QUICK).summary
    assert record["first_firing_b"] is None
    if method == "bp":
        assert record["gamma_deep_exact"] == pytest.approx(1.0, abs=1e-9)
    else:
        assert abs(record["gamma_deep_exact"]) < 0.5


def test_the_documented_adapter_works(tmp_path):
    page = (Path(__file__).resolve().parents[3] / "docs" / "audit.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    (tmp_path / "mine.py").write_text(code)
    found = check(load_subject(f"{tmp_path / 'mine.py'}:subject"), lens=QUICK)
    assert (found.summary["arch"], found.summary["method"], found.summary["h_ratio"]) == ("own", "dfa", 1.0)
    assert found.data.sizes["layer"] == 4
