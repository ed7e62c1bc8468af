"""Memory that is freed stays with the process, where the C library is glibc.

By default glibc maps every large block afresh and gives it back at once, so that a network on a CPU makes the kernel
clear the same pages for every activation.
"""

import ctypes
import os

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt(3)."""
_LARGEST_KEPT = 2**30
"""Bytes: blocks below it come from memory that is kept, and as much of it may lie unused at the heap's end."""
_GROWTH = 2**26
"""Bytes that the heap grows by at least."""


def keep_freed_memory() -> bool:
    """Have glibc keep freed blocks for the next allocation; worth it before long work on a CPU.

    What the user sets by MALLOC_MMAP_THRESHOLD_ or MALLOC_TRIM_THRESHOLD_ stays.

    Returns:
        Whether it does so from now on; False with another C library.
    """
    if {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl and others have none
        return False
    parameters = ((_MMAP_THRESHOLD, _LARGEST_KEPT), (_TRIM_THRESHOLD, _LARGEST_KEPT), (_TOP_PAD, _GROWTH))
    return all(mallopt(parameter, value) for parameter, value in parameters)
