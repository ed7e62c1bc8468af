"""Start processes of CogVideoX's code, follow their logs, and say why they failed.

    with exclusive(output) as lock:
        Launch(("python",), processes=8, lock=lock).train(arguments, log, "stock, seed 1", iterations=20000)

They run in CogVideoX's sat folder, which is the working directory.
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
from types import MappingProxyType

from ..engine.run import exit_on_sigterm
from ..errors import UserError
from ..progress import progress_bar
from ..storage import write_text
from ..training.run_folder import LOCK
from .worker import SCORED, ArmJob, InitialJob

LOSS = re.compile(r"iteration\s+(\d+)/\s*\d+ \|.* total loss (\S+) \|")
"""A line of train_video.py's log: the iteration, and the mean loss since the previous line."""
ERROR = re.compile(
    r"^(?:\[default\d+\]:)?(?:\[rank\d+\]: )?"  # torchrun's, and torch's
    r"(?!torch\.distributed\.elastic\b)"  # torchrun's own error only says that a process failed
    r"(?:error: |(?:\w+\.)*UserError: |(?=(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b))(.*)",
    re.MULTILINE,
)
"""The line of a failed process that says what went wrong."""
FIRST_FAILURE = re.compile(
    r"^Root Cause \(first observed failure\):.*?\(local_rank: (\d+)\).*?^  traceback : (?:Signal \d+ \((\w+)\))?",
    re.MULTILINE | re.DOTALL,
)
"""The end of torchrun's output: which process failed first, and which signal killed it, if one did."""
DOING = MappingProxyType({"initial": "drawing weights", "measure": "measuring", "score": "scoring"})
"""Labels of progress bars."""
ALONE = MappingProxyType({"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"})
"""Environment of a process that is not started by torchrun."""


@dataclass(frozen=True)
class Launch:
    """How to start CogVideoX's scripts."""

    python: tuple[str, ...]
    """The interpreter, and the words before a script's name."""
    processes: int = 1
    """GPUs to train on, in this machine."""
    lock: int | None = None
    """File descriptor that the processes inherit, see `exclusive`."""

    def train(self, arguments: Sequence[str], log: Path, description: str, iterations: int) -> None:
        """Run train_video.py, with a progress bar.

        Raises:
            UserError: it failed; the message has its last error and the path of its log.
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
                # Each line of stderr then begins with the number of its process.
                numbered = ["--tee", "2", "--log_dir", copies]
                self._run(["-m", *torchrun, *numbered, *command], log, show, {})

    def work(self, job: InitialJob | ArmJob, folder: Path) -> None:
        """Run a job of `worker.py`; the job's file and its log go into `folder`.

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
                process.stdout.close()  # or it may block on writing to a full pipe
                process.wait()
                raise
        if process.returncode:
            problem = what_failed(log.read_text(encoding="utf-8"), process.returncode)
            raise UserError(f"{log.stem} failed, see {log}: {problem}")


def what_failed(log: str, status: int) -> str:
    """The line of a log that says why the process failed.

    `status` is its exit status; a negative one is the number of the signal that killed it.
    """
    if status < 0:
        return f"killed by signal {signal.Signals(-status).name}"
    if found := FIRST_FAILURE.search(log):
        number, killer = found.groups()
        if killer:
            return f"killed by signal {killer}"
        # The other processes were stopped, or failed because this one did.
        log = "\n".join(line for line in log.splitlines() if line.startswith(f"[default{number}]:"))
    errors = ERROR.findall(log)
    return errors[-1] if errors else "it printed no error"


@contextmanager
def exclusive(output: Path) -> Iterator[int]:
    """Lock `output`; inside, SIGTERM raises SystemExit, so that child processes are terminated.

    Yields:
        The lock's file descriptor. A child process that inherits it keeps the lock, even if it outlives its parent.

    Raises:
        UserError: another process holds the lock.
    """
    output.mkdir(parents=True, exist_ok=True)
    with (output / LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"{output}: in use by another comparison or by a process that it left running; "
                "wait for it, stop it, or choose another --output"
            ) from None
        with exit_on_sigterm():
            yield file.fileno()
