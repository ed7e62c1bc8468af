"""On the disk and not only on its way there, so that a machine that dies does not take it along."""

import os
from pathlib import Path


def sync(*paths: Path) -> None:
    """Wait until files, and the names in folders, are on the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
