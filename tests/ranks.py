"""Several processes as ranks of one training, started as a launcher would."""

import os
import socket
import subprocess
import sys


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_ranks(code, arguments, log, world_size=2):
    """The processes of `python -c code arguments...`, each its own group; what they print goes to `log`."""
    port = free_port()
    processes = []
    with log.open("a") as output:
        for rank in range(world_size):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
            environment = {
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "MASTER_ADDR": "127.0.0.1",
                **{name: str(value) for name, value in place.items()},
            }
            command = [sys.executable, "-c", code, *arguments]
            processes.append(
                subprocess.Popen(command, env=environment, stdout=output, stderr=output, start_new_session=True)
            )
    return processes


def run_ranks(code, arguments, log, world_size=2):
    """Run to the end; an assertion that fails in a rank fails here, with its output."""
    processes = start_ranks(code, arguments, log, world_size)
    try:
        for process in processes:
            assert process.wait(timeout=560) == 0, log.read_text()
    finally:
        for process in processes:
            process.kill()
            process.wait()
