"""Freed memory is kept, in a process of its own: the C library's settings are nobody else's."""

import resource
import subprocess
import sys

import pytest

from wallprobe.training.engines import allocator

FAULTS = """
import ctypes, resource, sys
import torch
from wallprobe.training.engines import allocator
torch.set_num_threads(1)
kept = allocator.keep_freed()
if sys.argv[1] == "usual":  # what glibc starts with
    ctypes.CDLL(None).mallopt(-1, 128 << 10)
    ctypes.CDLL(None).mallopt(-2, 0)
    ctypes.CDLL(None).mallopt(-3, 128 << 10)
def step():
    return [torch.ones(3_000_000) for _ in range(3)][0][0].item()
for _ in range(10):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> tuple[int, int]:
    done = subprocess.run([sys.executable, "-c", FAULTS, how], check=True, capture_output=True, text=True)
    known, found = done.stdout.split()
    return int(known), int(found)


def test_kept_memory_is_not_fetched_again_and_elsewhere_it_is():
    known, kept = faults("keep")
    if not known:
        pytest.skip("this C library knows no mallopt")
    _, usual = faults("usual")
    pages = 10 * 3 * 12_000_000 // resource.getpagesize()
    assert kept < pages / 100
    assert usual > pages / 4  # of pages that are not huge


def test_a_c_library_without_it_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocator.sys, "platform", "darwin")
    assert allocator.keep_freed() is False
