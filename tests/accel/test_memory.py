"""The memory of training steps stays in the process."""

import ctypes
import platform
import subprocess
import sys

import pytest

from nni_autorecon.accel import memory

STEPS = """
import resource, torch
from nni_autorecon.accel.memory import keep_freed_memory
torch.set_num_threads(1)

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for megabytes in [24] * 4, [16] * 8, [8] * 12, [30] * 2:  # glibc gives some of them back, as its heap lies
        tensors = [torch.ones(size * 2**18) for size in megabytes]
        while tensors:
            tensors.pop()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for keep in (bool, keep_freed_memory):
    kept = keep()
    print(kept, [faults() for _ in range(6)][-1])
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_memory_is_touched_first_only_once():
    for _ in range(10):  # where its heap lies differs, and in some places glibc gives nothing back by itself
        told = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True).stdout.split()
        assert told[::2] == ["False", "True"]
        before, after = map(int, told[1::2])
        assert after < max(before, 1000) / 10
        if before > 1000:
            return
    pytest.fail("glibc gave nothing back in any of ten processes")


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed_memory() is False
