"""Plants what a user's working folder and home may hold: runs that pass for ours, damaged ones, stores and caches of others.

    python tests/decoys.py FOLDER [HOME]

Needs the standard library alone: `.ci/run` plants before anything is installed.
"""

import hashlib
import json
import shutil
import sys
from pathlib import Path

BUNDLED = Path(__file__).resolve().parents[1] / "wallprobe" / "bundled" / "runs"
WORD = "decoy"


def plant_stores(folder: Path) -> None:
    """`runs/`, `results/` and `gallery/` in a working folder."""
    runs, results = folder / "runs", folder / "results"
    _impostor(runs / "c0@42", "c0", weights_of="p5")
    _impostor(runs / "c0@7", "c0", weights_of="c1", seed=7)
    _impostor(runs / "decoy@42", "decoy", weights_of="c2")
    cut = runs / "x@42"
    _impostor(cut, "x", weights_of="c3")
    (cut / "weights.safetensors").write_bytes((cut / "weights.safetensors").read_bytes()[:1000])
    for name, text in (
        ("broken@42", '{"condition": "broken", '),
        ("list@42", "[1, 2]"),
        ("bytes@42", "\udcff\x00"),
        ("old@1", '{"seed": 1}'),
    ):
        _write(runs / name / "manifest.json", text)
    _write(runs / "weights-only@42" / "weights.safetensors", "not safetensors")
    _write(runs / "unfinished@42" / ".checkpoint" / "state.safetensors", "half")
    _write(runs / "audit" / "bp-synthetic@0" / "manifest.json", '{"config": {"method": "decoy"}}')
    _write(runs / "audit" / "broken@0" / "manifest.json", "{")
    _write(runs / "stray.txt", WORD)
    shutil.copytree(BUNDLED / "c0@42" / "eval", results / "eval-c0-0badf00d")
    shutil.copytree(BUNDLED / "c0@42" / "eval", results / "eval-altered-0badf00d")
    (results / "eval-altered-0badf00d" / "arrays.nc").write_bytes(b"CDF\x01 and no more")
    for name, text in (
        ("eval-half-0badf00d", '{"kind": "eval"'),
        ("odd-0badf00d", '{"kind": "odd", "table": 3}'),
        ("eval-none-0badf00d", "null"),
    ):
        _write(results / name / "result.json", text)
    (results / "empty-0badf00d").mkdir()
    _write(results / "stray.json", WORD)
    _write(folder / "gallery" / "index.html", WORD)


def plant_home(home: Path) -> None:
    """Caches of libraries and stores of ours in a home folder."""
    plant_stores(home)
    hub = home / ".cache" / "huggingface"
    for model in ("models--gpt2", "models--HuggingFaceTB--SmolLM2-135M", "models--EleutherAI--pythia-70m"):
        folder = hub / "hub" / model
        _write(folder / "refs" / "main", "0" * 40)
        _write(folder / "snapshots" / ("0" * 40) / "config.json", '{"model_type": "decoy"}')
        _write(folder / "snapshots" / ("0" * 40) / "model.safetensors", WORD)
    _write(hub / "datasets" / "text" / "decoy" / "dataset_info.json", WORD)
    _write(hub / "token", "hf_decoy")
    _write(home / ".cache" / "torch" / "hub" / "checkpoints" / "decoy.pth", WORD)
    _write(home / ".cache" / "matplotlib" / "fontlist-v390.json", WORD)
    _write(home / ".cache" / "wallprobe" / "runs" / "c0@42" / "manifest.json", WORD)
    _write(home / ".config" / "matplotlib" / "matplotlibrc", "backend: decoy\n")
    _write(home / ".config" / "wallprobe" / "config.json", WORD)
    _write(home / ".triton" / "cache" / "decoy", WORD)


def fingerprint(folder: Path) -> dict[str, str]:
    """Every path below a folder, with its time of change and a hash of what it holds: a file that was touched differs."""
    found = {}
    for path in sorted(folder.rglob("*")):
        held = "folder" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(path.relative_to(folder))] = f"{path.stat().st_mtime_ns} {held}"
    return found


def _impostor(folder: Path, condition: str, *, weights_of: str, seed: int = 42) -> None:
    """A run under a name, whole by its own manifest, with the weights of another."""
    source = BUNDLED / f"{weights_of}@42"
    shutil.copytree(source, folder)
    manifest = json.loads((source / "manifest.json").read_text())
    manifest |= {"run": condition, "condition": condition, "seed": seed}
    manifest["config"]["condition"]["name"] = condition
    (folder / "manifest.json").write_text(json.dumps(manifest))


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(errors="surrogateescape"))


if __name__ == "__main__":
    plant_stores(Path(sys.argv[1]))
    for home in sys.argv[2:]:
        plant_home(Path(home))
