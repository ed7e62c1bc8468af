import os
import signal
import subprocess
import sys
import time

import pytest

from sat_ssvae.jobs.isolation import Crashed, IsolatedCalls

from .processes import unmeasured


def behave(number):
    if number % 10 == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if number % 10 == 5:
        os._exit(7)
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number, b"x" * number


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_crash_costs_one_item(workers, capfd):
    with IsolatedCalls(behave, workers) as calls:
        results = list(calls.map(range(200_000, 200_010), 4))
    crashed = {
        200_003: "the process was ended by SIGKILL, 2 times",
        200_005: "the process ended with status 7, 2 times",
    }
    assert results == [
        Crashed(crashed[number]) if number in crashed else (number, b"x" * number) for number in range(200_000, 200_010)
    ]


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_exceptions_reach_the_caller_and_crashes_may_pass(tmp_path):
    def once(number):
        if not (tmp_path / str(number)).exists():
            (tmp_path / str(number)).touch()
            os._exit(1)
        return number

    with IsolatedCalls(once, 2) as calls:
        assert list(calls.map(range(5), 3)) == [0, 1, 2, 3, 4]  # the second try did it
    with pytest.raises(ValueError, match="-1 is negative"), IsolatedCalls(behave, 2) as calls:
        list(calls.map([1, -1, 2], 2))


PROGRAM = """
import os, time
from sat_ssvae.jobs.isolation import IsolatedCalls
def work(number):
    os.write(1, b"%d\\n" % os.getpid())  # in one piece; print may write the end of the line apart
    time.sleep({seconds})
calls = IsolatedCalls(work, 2)
for result in calls.map(range(2), 2):
    pass
"""


@pytest.mark.parametrize("ended", ["killed", "interrupted", "left open"])
def test_no_process_outlives_the_program(ended):
    seconds = 0 if ended == "left open" else 3
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(seconds=seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=unmeasured(),
        start_new_session=True,
    ) as program:
        workers = [int(program.stdout.readline()) for _ in range(2)]
        if ended == "killed":
            program.kill()
        elif ended == "interrupted":
            os.killpg(program.pid, signal.SIGINT)
        program.wait(60)
    deadline = time.monotonic() + 60
    while any(_is_alive(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
