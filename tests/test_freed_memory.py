"""What large tensors leave is taken by the next ones, without the kernel's pages being mapped anew."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from safelens.freed_memory import give_back_freed_memory, keep_freed_memory
def faults(keep):
    keep_freed_memory(keep)
    held = [torch.ones(1) for _ in range(2)]
    for _ in range(20):  # the heap grows to what is needed
        held[0], held[1] = torch.ones(16 * 2**20), torch.ones(20 * 2**20)  # 64 and 80 MB
    del held
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
print(keep_freed_memory(), faults(False), faults(True))
before = resident()
give_back_freed_memory()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries do as they like")
def test_pages_are_kept_until_told_otherwise():
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True
    )
    known, usual, kept, given_back = done.stdout.split()
    assert known == "True"
    assert int(kept) < 200
    assert int(usual) > 100 * max(1, int(kept))
    assert int(given_back) > 60e6
