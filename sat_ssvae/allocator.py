"""Freed memory stays with the process, if the C library is glibc.

By default glibc maps every large block separately and unmaps it at once, so that for a network on a CPU the kernel
clears the same pages for every activation.
"""

import ctypes
import os

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt(3)."""
_LARGEST_KEPT = 2**30
"""Bytes: smaller blocks come from kept memory, of which up to this much may be unused at the end of the heap."""
_GROWTH = 2**26
"""Smallest growth of the heap, in bytes."""


def keep_freed_memory() -> bool:
    """Make glibc keep freed blocks for the next allocation; worth it before long work on a CPU.

    MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ have priority.

    Returns:
        Whether it does so now; False with another C library.
    """
    if {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & os.environ.keys():
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # musl and others have none
        return False
    parameters = ((_MMAP_THRESHOLD, _LARGEST_KEPT), (_TRIM_THRESHOLD, _LARGEST_KEPT), (_TOP_PAD, _GROWTH))
    return all(mallopt(parameter, value) for parameter, value in parameters)
