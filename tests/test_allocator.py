"""Freed memory is used again instead of being cleared by the kernel anew."""

import os
import subprocess
import sys

import pytest

from sat_ssvae.allocator import keep_freed_memory

PROGRAM = """
import resource, torch
from sat_ssvae.allocator import keep_freed_memory
{call}
def work():
    for size in (40, 64, 48) * 5:
        torch.ones(size * 2**18)
work()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
work()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(call, **environment):
    command = [sys.executable, "-c", PROGRAM.format(call=call)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    return int(subprocess.run(command, env={**clean, **environment}, stdout=subprocess.PIPE, check=True).stdout)


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="no glibc")
def test_freed_blocks_are_used_again():
    plain, kept = page_faults(""), page_faults("assert keep_freed_memory()")
    assert kept < plain / 10


def test_what_the_user_set_stays(monkeypatch):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1048576")
    assert not keep_freed_memory()
