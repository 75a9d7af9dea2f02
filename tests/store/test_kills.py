"""kill -9 before a rename or a flush of nine commands: old or new is listed, nothing stays behind, the bytes are the same."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.store.kills import commands

ROOT = Path(__file__).resolve().parents[2]
NAMES = list(commands(Path()))
SHORT = ("train", "stream", "equilibrium", "gallery build")  # the others are alike, and longer


def killed(name, folder, most):
    ended = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.store.kills", name, str(folder), str(most)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]
    return json.loads(ended.stdout.strip().splitlines()[-1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", SHORT)
def test_killed_at_a_few_points_nothing_is_lost(tmp_path, name):
    told = killed(name, tmp_path, 2)
    assert told["faults"] == []
    assert told["killed"] == min(2, told["points"]) > 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("name", NAMES)
def test_killed_at_every_point_nothing_is_lost(tmp_path, name):
    told = killed(name, tmp_path, 10_000)
    assert told["faults"] == []
    assert told["killed"] == told["points"] > 0
