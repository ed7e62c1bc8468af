"""Processes of CogVideoX's code: how they are started, what their logs say, and how they end.

    with exclusive(output) as lock:
        Launch(("python",), processes=8, lock=lock).train(arguments, log, "stock, seed 1", iterations=20000)

They run in the folder where CogVideoX's scripts lie, which is the working directory.
"""

import fcntl
import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, MappingProxyType

from ..errors import UserError
from ..progress import progress_bar
from ..storage import write_text
from .worker import SCORED, ArmJob, InitialJob

LOSS = re.compile(r"iteration\s+(\d+)/\s*\d+ \|.* total loss (\S+) \|")
"""A line of train_video.py's log: iteration, and the mean loss since the line before."""
ERROR = re.compile(
    r"^(?:\[default\d+\]:)?(?:\[rank\d+\]: )?"  # torchrun's, and torch's
    r"(?!torch\.distributed\.elastic\b)"  # torchrun's, which says no more than that a process failed
    r"(?:error: |(?:\w+\.)*UserError: |(?=(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b))(.*)",
    re.MULTILINE,
)
"""The line of a failed process that says what went wrong."""
FIRST_FAILURE = re.compile(
    r"^Root Cause \(first observed failure\):.*?\(local_rank: (\d+)\).*?^  traceback : (?:Signal \d+ \((\w+)\))?",
    re.MULTILINE | re.DOTALL,
)
"""What torchrun says at its end: which process failed first, and by which signal if one killed it."""
DOING = MappingProxyType({"initial": "drawing weights", "measure": "measuring", "score": "scoring"})
"""What a job's bar says."""
ALONE = MappingProxyType({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"})
"""Environment of a process that is not started by torchrun."""


@dataclass(frozen=True)
class Launch:
    """How CogVideoX's scripts are started, in the folder where they lie, which is the working directory."""

    python: tuple[str, ...]
    """The interpreter, and what comes before a script's name."""
    processes: int = 1
    """GPUs to train on, in this machine."""
    lock: int | None = None
    """File descriptor that the processes keep open, see `exclusive`."""

    def train(self, arguments: Sequence[str], log: Path, description: str, iterations: int) -> None:
        """train_video.py, with a bar.

        Raises:
            UserError: it failed; what it said last, and where its log lies.
        """
        command = ["train_video.py", *arguments]

        def show(line: str) -> None:
            if found := LOSS.search(line):
                bar.set_postfix(loss=found[2])
                bar.update(int(found[1]) - bar.n)

        with progress_bar(iterations, f"training {description}", "step") as bar:
            if self.processes == 1:
                self._run(command, log, show, ALONE)
                return
            with tempfile.TemporaryDirectory() as copies:
                torchrun = ["torch.distributed.run", "--standalone", f"--nproc_per_node={self.processes}"]
                # What goes to stderr comes with the number of its process, and in its order.
                numbered = ["--tee", "2", "--log_dir", copies]
                self._run(["-m", *torchrun, *numbered, *command], log, show, {})

    def work(self, job: InitialJob | ArmJob, folder: Path) -> None:
        """A job of `worker.py` in one process; job and log lie in `folder`.

        Raises:
            UserError: it failed.
        """
        path = folder / f"{job.task}.json"
        write_text(path, job.model_dump_json(indent=1))

        def show(line: str) -> None:
            if SCORED in line:
                bar.update()

        total = len(job.runs) * len(job.steps) if isinstance(job, ArmJob) and job.runs else None
        description = f"{DOING[job.task]} {job.arm}" if isinstance(job, ArmJob) else DOING[job.task]
        with progress_bar(total, description, "checkpoint") as bar:
            self._run(["-m", f"{__package__}.worker", str(path)], path.with_suffix(".log"), show, ALONE)

    def _run(
        self, command: Sequence[str], log: Path, show: Callable[[str], None], variables: Mapping[str, str]
    ) -> None:
        root = str(Path(__file__).parents[__name__.count(".")])  # where this package is imported from
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        log.parent.mkdir(parents=True, exist_ok=True)
        with (
            log.open("w", encoding="utf-8") as file,
            subprocess.Popen(
                [*self.python, *command],
                env={**os.environ, **variables, "PYTHONPATH": path},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                pass_fds=() if self.lock is None else (self.lock,),
            ) as process,
        ):
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    file.write(line)
                    file.flush()
                    show(line)
            except BaseException:
                process.terminate()
                process.stdout.close()  # what it still says finds no reader and must not wait for one
                process.wait()
                raise
        if process.returncode:
            problem = what_failed(log.read_text(encoding="utf-8"), process.returncode)
            raise UserError(f"{log.stem} failed, see {log}: {problem}")


def what_failed(log: str, status: int) -> str:
    """The line that says why a process failed.

    Args:
        log: what the process printed.
        status: how it ended; below 0 it was killed by the signal of that number.
    """
    if status < 0:
        return f"killed by signal {signal.Signals(-status).name}"
    if found := FIRST_FAILURE.search(log):
        number, killer = found.groups()
        if killer:
            return f"killed by signal {killer}"
        # The others are stopped, and may still say something, or fail because it is gone.
        log = "\n".join(line for line in log.splitlines() if line.startswith(f"[default{number}]:"))
    errors = ERROR.findall(log)
    return errors[-1] if errors else "it said nothing"


@contextmanager
def exclusive(output: Path) -> Iterator[int]:
    """Nobody else's `output`; until the end SIGTERM raises SystemExit, so that processes started meanwhile are ended.

    Yields:
        A file descriptor. Who keeps it open keeps the folder: a process, say, that outlives the one which started it.

    Raises:
        UserError: another process has the folder.
    """

    def stop(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    output.mkdir(parents=True, exist_ok=True)
    with (output / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{output}: another comparison is at work there, or a process that it left; "
                "wait for its end, stop it, or choose another --output"
            ) from None
        previous = signal.signal(signal.SIGTERM, stop)
        try:
            yield file.fileno()
        finally:
            signal.signal(signal.SIGTERM, previous)
