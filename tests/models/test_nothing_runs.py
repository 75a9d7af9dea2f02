"""Reading any model of the tests starts no process, opens no connection, asks nothing and unpickles nothing.

In a process of its own, whose audit hook writes down what Python says of such things before wallprobe's guard can refuse them, and
with the hub's offline switch off: a library that wants the network would show.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hooks.tiny_models import ARCHITECTURES, save_model, save_run
from tests.models import hostile
from wallprobe.models.loading import LOCAL
from wallprobe.store import runs

READ = """
import json, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path

PROCESSES = ("subprocess.", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.system", "pty.")
WATCHED = (*PROCESSES, "socket.", "builtins.input", "pickle.find_class")
seen = []

def hear(event, given):
    if event.startswith(WATCHED) and armed:
        seen.append([doing, event, repr(given)[:200]])

armed, doing = False, ""
sys.addaudithook(hear)
from wallprobe import models
from wallprobe.models.streamed import open_streamed
import torch, transformers
import transformer_lens.model_bridge  # what is imported is not the model's

def stream(name):
    model = open_streamed(name)
    model.start(torch.arange(4)[None])
    model.head()
    model.close()

ways = {"load": models.load, "plain": models.load_plain, "layout": lambda name: models.load_plain(name, weights=False), "stream": stream}
armed, read = True, []
for source, names in json.loads(sys.argv[1]):
    for name in names:
        doing = f"{name} {source}"
        if name == "run":
            models.load(source, root=Path(sys.argv[2]))
        else:
            ways[name](source)
        read.append(doing)
armed = False
print(json.dumps({"seen": seen, "read": read}))
"""
ALL = ("load", "plain", "layout", "stream")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, tuple[str, ...]]]]:
    """What is read, and how: every architecture of the tests, from a folder, the hub's cache and a .gguf file, and runs."""
    root = tmp_path_factory.mktemp("sources")
    found: list[tuple[str, tuple[str, ...]]] = [(str(save_model(name, root / name)), ALL) for name in ARCHITECTURES]
    for name, architecture in (("EleutherAI/pythia-70m", "neox"), ("microsoft/phi-2", "neox"), ("some/one", "llama")):
        hostile.in_cache(root / architecture, root / "cache", name)
        found.append((name, ALL))
    try:
        from tests.models.tiny_gguf import save_gguf
    except ImportError:  # the extra is not installed
        pass
    else:
        found.append((str(save_gguf(root / "tiny.gguf")), ALL))
    found += [(save_run(root / "runs"), ("run",)), ("c0", ("run",))]
    found += [(str(run.name), ("run",)) for run in runs.list_runs(None) if run.kind == runs.EQUILIBRIUM][:1]
    return root, found


@pytest.mark.parametrize("offline", ["0", "1"])
def test_nothing_is_started_asked_or_fetched(sources: tuple[Path, list[tuple[str, tuple[str, ...]]]], offline: str) -> None:
    root, found = sources
    environment = os.environ | {"HF_HUB_OFFLINE": offline, "HF_HUB_CACHE": str(root / "cache"), "HF_MODULES_CACHE": str(root / "modules")}
    if offline == "0":  # a hub id is asked for there: that is what it is for
        found = [(name, ways) for name, ways in found if "/" not in name or name.startswith(str(root))]
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(found), str(root / "runs")],
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["seen"] == []
    assert len(told["read"]) == sum(len(ways) for _, ways in found)
    assert not (root / "modules").exists()


@pytest.mark.parametrize("folder", ["wallprobe", "benchmarks"])
def test_every_call_that_could_trust_code_says_that_it_does_not(folder: str) -> None:
    """By its own words, or by options that hold them."""
    names = {"from_pretrained", "from_pretrained_no_processing", "boot_transformers", "from_config"}
    found, silent = 0, []
    for path in sorted((Path(__file__).parents[2] / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in names:
                found += 1
                words = {word.arg: word.value for word in node.keywords}
                said = words.get("trust_remote_code")
                named = {ast.unparse(word.value) for word in node.keywords if word.arg is None}
                if not (isinstance(said, ast.Constant) and said.value is False) and "options" not in named:
                    silent.append(f"{path.name}:{node.lineno}")
    assert found >= 3
    assert silent == []
    assert LOCAL["trust_remote_code"] is False
