"""The members of a comparison, several at a time, each in a process of its own.

    share = shared_out(config.jobs, len(members), device)
    results = run_members(work, members, heldout, records, share)

The number of threads of a member does not depend on how many run at a time, so results do not either. When one fails,
or this process is asked to end, the others end too; they save a checkpoint first.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..allocator import keep_freed_memory
from ..engine.run import TERMINATED, exit_on_sigterm
from ..errors import UserError
from ..jobs.isolation import cause_of_death
from ..progress import setup_logging
from .clips import heldout_clips
from .layout import Member
from .members import MemberResult, MemberRunner, Records, Work

_WATCH = 1.0
"""Seconds between checks that the processes are alive."""


class Share(NamedTuple):
    """How a machine is divided."""

    jobs: int
    """Members at a time."""
    threads: int
    """CPU threads of each member."""


def shared_out(jobs: int | None, members: int, device: torch.device) -> Share:
    """How the machine is divided among the members.

    `jobs`: members at a time; None for one per core, or per GPU if `device` is one.

    Raises:
        UserError: more members at a time than GPUs.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    places = torch.cuda.device_count() if device.type == "cuda" else cores
    if jobs and device.type == "cuda" and jobs > places:
        raise UserError(f"jobs={jobs}: each needs a GPU and there are {places} here; leave jobs out to use all of them")
    most = max(min(members, places), 1)
    threads = min(cores // most, torch.get_num_threads())  # OMP_NUM_THREADS may say less
    return Share(min(jobs or most, members), max(threads, 1))


def run_members(
    work: Work, members: Sequence[Member], heldout: Tensor, records: Records, share: Share
) -> dict[Member, MemberResult]:
    """Finish every member; returns their results in the order of `members`.

    A member may wait for an earlier one. A single job runs in this process.

    Raises:
        UserError: a member failed, or its process was killed.
        SystemExit: SIGTERM came; checkpoints were saved.
    """
    if share.jobs > 1:
        results = _in_processes(work, members, records, share)
        return {member: results[member] for member in members}
    threads = torch.get_num_threads()
    torch.set_num_threads(share.threads)
    try:
        runner = MemberRunner(work, heldout, records)
        return {member: runner.run(member) for member in members}
    finally:
        torch.set_num_threads(threads)


def _in_processes(work: Work, members: Sequence[Member], records: Records, share: Share) -> dict[Member, MemberResult]:
    waiting, free = deque(members), list(range(share.jobs))
    running: dict[Member, _Process] = {}
    results: dict[Member, MemberResult] = {}
    with exit_on_sigterm():
        try:
            while waiting or running:
                while waiting and free:
                    member = waiting.popleft()
                    running[member] = _Process(work, member, share.threads, free.pop(0))
                wait([process.connection for process in running.values()], _WATCH)
                for member, process in list(running.items()):
                    result = process.hear(records)
                    if result is not None:
                        results[member] = result
                        free.append(running.pop(member).place)
        finally:
            for process in running.values():
                process.end()
            for process in running.values():
                process.join(records)
    return results


class _Process:
    """The process of one member, at one of the places of the machine."""

    def __init__(self, work: Work, member: Member, threads: int, place: int) -> None:
        self.name, self.place = work.layout.label(member), place
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe(duplex=False)
        verbose = logging.getLogger().isEnabledFor(logging.INFO)  # see `setup_logging`
        arguments = theirs, replace(work, device=torch.device(work.device.type)), member, threads, verbose
        self._process = context.Process(target=_run, args=arguments, name=self.name)
        with _one_gpu(work.device, place):
            self._process.start()
        theirs.close()

    def hear(self, records: Records) -> MemberResult | None:
        """Pass on the member's messages; returns its result once it has arrived.

        Raises:
            Exception: what the member raised.
            UserError: its process was killed.
            SystemExit: SIGTERM ended it.
        """
        alive = self._process.is_alive()  # asked first: a process that is dead by now has sent everything
        for what, *told in self._messages():
            if what == "result":
                self.join(records)
                result: MemberResult = told[0]
                return result
            if what == "error":
                raise told[0] from RuntimeError(told[1])
            getattr(records, what)(*told)
        if alive:
            return None
        code = self._process.exitcode
        if code in (TERMINATED, -signal.SIGTERM):
            raise SystemExit(TERMINATED)
        hint = "if memory was short, set jobs=1; the same command then continues"
        raise UserError(f"{self.name}: {cause_of_death(code)}; {hint}")

    def end(self) -> None:
        """Ask it to save a checkpoint and end."""
        self._process.terminate()

    def join(self, records: Records) -> None:
        """Wait for its end and pass on its last messages: the time spent on the stage in which it was stopped."""
        self._process.join()
        for what, *told in self._messages():
            if what not in ("result", "error"):
                getattr(records, what)(*told)
        self.connection.close()

    def _messages(self) -> Iterator[tuple[Any, ...]]:
        """What the member has sent since the last call."""
        with contextlib.suppress(EOFError):
            while self.connection.poll():
                yield self.connection.recv()


class _RemoteRecords:
    """Sends `Records` to the parent process."""

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        def sends(what: str) -> Callable[..., None]:
            return lambda *told: connection.send((what, *told))

        self.begin, self.end, self.spent, self.finished = map(sends, ("begin", "end", "spent", "finished"))


def _run(connection: "Connection[Any, Any]", work: Work, member: Member, threads: int, verbose: bool) -> None:
    # Data workers must start as they do in the parent, not as this process did. Locks made from here on are unnamed,
    # too: Python would report named ones as leaked after a SIGKILL.
    multiprocessing.set_start_method(None, force=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent decides what ends
    threading.Thread(target=_end_with_parent, daemon=True).start()
    setup_logging(verbose)
    torch.set_num_threads(threads)
    if work.device.type == "cpu":
        keep_freed_memory()
    try:
        with exit_on_sigterm():
            runner = MemberRunner(work, heldout_clips(work.layout), _RemoteRecords(connection))
            connection.send(("result", runner.run(member)))
    except Exception as error:
        connection.send(("error", error, traceback.format_exc()))


def _end_with_parent() -> None:
    """Die with the parent, however that ended: the next one will work in the same folders."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def _one_gpu(device: torch.device, number: int) -> Iterator[None]:
    """A process that is started in this context sees one of this process's GPUs, if `device` is one."""
    if device.type != "cuda":
        yield
        return
    name = "CUDA_VISIBLE_DEVICES"
    before = os.environ.get(name)
    visible = before.split(",") if before else [str(gpu) for gpu in range(torch.cuda.device_count())]
    os.environ[name] = visible[number]
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
