"""The imports of a command.

with uncollected():
    from ..training.trainer import train
"""

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Import torch and what needs it without the garbage collector, which would find nothing to collect in modules.

    The collector ignores what they created from then on. A process that already had torch is the caller's, and stays as
    it is.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
