"""A command's imports, in processes that have not imported torch yet, and in those that have."""

import subprocess
import sys

import pytest

MAKE_CYCLES = """
import gc, sys
from sat_ssvae.commands._imports import uncollected
if sys.argv[1] == "True":
    sys.modules["torch"] = sys
collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
with uncollected():
    kept = [[] for _ in range(100_000)]
print(bool(collections), gc.isenabled(), gc.get_freeze_count() > len(kept))
"""


@pytest.mark.parametrize("torch_was_there", [False, True])
def test_nothing_is_collected_while_torch_is_imported_for_a_command(torch_was_there):
    command = [sys.executable, "-c", MAKE_CYCLES, str(torch_was_there)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == (["True", "True", "False"] if torch_was_there else ["False", "True", "True"])


def test_the_collector_returns_where_an_import_fails():
    code = MAKE_CYCLES.replace("with uncollected():", "try:\n  with uncollected(): import no_such\nexcept ImportError:")
    done = subprocess.run([sys.executable, "-c", code, "False"], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "True"
