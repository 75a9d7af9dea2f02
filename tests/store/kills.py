"""A command killed at a chosen rename or flush to the disk, in a forked process, and what is then in its stores.

    python -m tests.store.kills COMMAND FOLDER POINTS

Run by test_kills.py in a process of its own that has not computed anything, so that forking it is safe.
"""

import contextlib
import functools
import hashlib
import json
import os
import shutil
import signal
import sys
from pathlib import Path

TIMES = ("wall_time_s", "created", "time", "started", "train_seconds", "cpu_seconds", "seconds", "peak_memory_mib", "peak_gib")
TIMES += ("command", "step_ms", "arrays_hash", "eval_seconds", "threads")


def commands(folder):
    """Name -> what is typed before, to have something to replace, and what is killed."""
    swept = [
        "interchange",
        "--sweep",
        "--src",
        "p5",
        "--dst",
        "c0",
        "--site",
        "resid_pre",
        "--layer",
        "0,1",
        "--index",
        "4",
        "--pairs",
        "12",
    ]
    streamed = ["gains", str(folder / "llama"), "--stream", "--prompts", "single"]
    trained = ["train", "c1", "--preset", "tiny", "--steps", "30", "--checkpoint-every", "10", "--snapshot-every", "10", "--compile", "off"]
    return {
        "train": ([], trained),
        "matrix": (
            [],
            ["train", "c0", "p1", "--preset", "tiny", "--steps", "10", "--checkpoint-every", "5", "--compile", "off", "--jobs", "1"],
        ),
        "sweep": ([swept], swept),
        "stream": ([streamed], streamed),
        "audit": ([], ["audit", "run", "--arch", "student", "--method", "bp", "--data", "synthetic", "--epochs", "2", "--jobs", "1"]),
        "equilibrium": ([], ["equilibrium", "train", "--preset", "tiny", "--steps", "20", "--snapshots", "10"]),
        "gallery build": ([["attention", "c0"]], ["gallery", "build"]),
        "gallery export": ([["attention", "c0"], ["gallery", "export"]], ["gallery", "export"]),
        "reproduce": ([], ["reproduce", "wall"]),
    }


def prepare(name, folder):
    """What a command needs beside its stores."""
    import torch

    torch.set_num_threads(1)
    if name == "stream":
        from tests.hooks.tiny_models import save_model

        save_model("llama", folder / "llama")
    if name == "matrix":
        one_process()
    if name == "reproduce":
        from tests.cli import test_claims as small
        from wallprobe.claims.ledger import claim, measurements, reproduce
        from wallprobe.store import runs
        from wallprobe.training.wall import recipes

        recipes.RECIPES = {"small": small.MICRO}
        claim.areas = lambda: {"wall": small.SMALL_AREA}
        reproduce.sweep = _inline
        runs.BUNDLED, measurements.BUNDLE = folder / "no bundle" / "runs", folder / "no bundle" / "measurements"


def one_process():
    """A sweep's workers are killed by test_kills of the engines; here its runs are trained in the process that is killed."""
    from tests.cli.test_claims import Inline
    from wallprobe.training.engines import sweep

    sweep.make_engine = lambda name, workers, threads: Inline()


def _inline(jobs, root, **settings):
    from tests.cli.test_claims import Inline
    from wallprobe.training.engines.sweep import sweep

    return sweep(jobs, root, **settings | {"engine": Inline()})


class Faults:
    """Counts renames and flushes; before the chosen one, kill -9."""

    def __init__(self, at):
        self.at, self.count = at, 0

    def __enter__(self):
        from wallprobe.store import staging

        for owner, name in ((os, "rename"), (os, "replace"), (os, "fsync"), (staging, "exchange")):
            setattr(owner, name, self.counted(getattr(owner, name)))
        return self

    def __exit__(self, *_):
        return None

    def counted(self, function):
        @functools.wraps(function)
        def call(*arguments, **named):
            self.count += 1
            if self.count == self.at:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments, **named)

        return call


def run(arguments, at=0):
    """Run a command in a fork; how it ended, and how many points it passed."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 70
        try:
            os.close(reading)
            with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), Faults(at) as faults:
                sys.argv = ["wallprobe", *arguments]
                from wallprobe import cli

                code = 0
                try:
                    cli.main()
                except SystemExit as end:
                    code = int(end.code or 0)
            os.write(writing, str(faults.count).encode())
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as told:
        passed = told.read()
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int(passed or 0)


def listed():
    """Names of whole runs and results, and what is damaged; as every listing command sees the stores of this folder."""
    from wallprobe.store.results import list_results
    from wallprobe.store.runs import BUNDLED, list_runs

    sound, damaged = list_results(Path("results"))
    for run in (runs := [run for run in list_runs(Path("runs")) if BUNDLED not in run.path.parents]):
        run.verify()
    return {path.name for path, _ in sound} | {run.path.name for run in runs}, [str(path) for path, _ in damaged]


def plain(value):
    """Without what differs from one making to the next: times, memory, and the hash of arrays that hold them."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items() if key not in TIMES}
    return [plain(part) for part in value] if isinstance(value, list) else value


def content():
    """Every file but locks' and caches' own: its bytes' hash, times left out."""
    found = {}
    for path in sorted(Path().rglob("*")):
        if path.is_file() and path.name != ".wallprobe-gallery-memory.json":  # which holds times of files
            data = path.read_bytes()
            if path.suffix == ".json":
                data = json.dumps(plain(json.loads(data)), sort_keys=True).encode()
            # netCDF-3 holds no clock; a page and a zip hold the Result's own manifest, which is the same file here
            found[path.as_posix()] = hashlib.sha256(data).hexdigest()
    return found


def begin(folder, template):
    os.chdir(folder.parent)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template, folder)
    os.chdir(folder)


def main(name, folder, most):
    """Kill at up to `most` points, evenly spread, the first and the last rename or flush among them."""
    folder = Path(folder).resolve()
    prepare(name, folder)
    before, command = commands(folder)[name]
    template, work = folder / "template", folder / "work"
    template.mkdir()
    os.chdir(template)
    for arguments in before:
        code, _ = run(arguments)
        assert code == 0, f"{arguments} ended with {code}"
    old, _ = listed()
    begin(work, template)
    code, points = run(command)
    assert code == 0, f"{command} ended with {code}"
    wanted, (new, _) = content(), listed()
    chosen = sorted({1 + round(place * (points - 1) / max(1, most - 1)) for place in range(most)})
    faults = []
    for at in chosen:
        begin(work, template)
        code, _ = run(command, at)
        if code != -signal.SIGKILL:
            faults.append(f"{at}: ended with {code} instead of being killed")
        names, damaged = listed()
        if damaged or not old <= names or not names <= new | old:
            faults.append(f"{at}: listed {sorted(names)}, damaged {damaged}, where {sorted(old)} was there before")
        code, _ = run(command)
        if code:
            faults.append(f"{at}: the command again ended with {code}")
        found = content()
        differing = sorted(path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path))
        if differing or list(Path().rglob(".wallprobe")):
            faults.append(f"{at}: other bytes or left behind: {differing}, {list(Path().rglob('.wallprobe'))}")
    sys.stdout.write(json.dumps({"points": points, "killed": len(chosen), "faults": faults}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
