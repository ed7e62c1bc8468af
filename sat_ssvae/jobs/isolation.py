"""Calls in separate processes: a crash costs one item, not the program.

with IsolatedCalls(convert, workers=4) as calls:
    for result in calls.map(items, ahead=8):          # in the items' order; a Crashed where convert ended its process
        ...
"""

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")

TRIES = 2
"""How many processes an item may crash before it is given up."""
_WATCH = 1.0  # seconds between checks that the process at the other end is alive


@dataclass(frozen=True)
class Crashed:
    """Every process that worked on an item died."""

    reason: str


class IsolatedCalls(Generic[T, R]):
    """A function called in `workers` processes, one item at a time in each.

    `ProcessPoolExecutor` loses all pending calls when one process dies. Here it is known which item killed a process:
    that item is tried again in a new process, and after a second crash its result is `Crashed`.

    The function's exceptions reach the caller. Items and results are pickled, the function only if processes cannot
    be forked.
    """

    def __init__(self, function: Callable[[T], R], workers: int) -> None:
        self._function = function
        self._idle: queue.SimpleQueue[_Process | None] = queue.SimpleQueue()
        for _ in range(workers):
            self._idle.put(None)
        self._threads = ThreadPoolExecutor(workers)
        self._forking = threading.Lock()
        self._running: set[_Process] = set()
        # At exit, before multiprocessing waits for these processes, which wait for work.
        self._kill = Finalize(self, _kill_all, (self._running,), exitpriority=10)

    def __enter__(self) -> "IsolatedCalls[T, R]":
        return self

    def __exit__(self, error: object, *_rest: object) -> None:
        if error is not None:
            self._kill()
        self._threads.shutdown(cancel_futures=True)
        for process in list(self._running):
            process.finish()
        self._kill.cancel()

    def map(self, items: Iterable[T], ahead: int) -> Iterator[R | Crashed]:
        """The results in the items' order, at most `ahead` of them waiting behind a slow item."""
        return in_order(self._threads, self.call, items, ahead)

    def call(self, item: T) -> R | Crashed:
        """The result for one item; waits for a free process."""
        process, reason = self._idle.get(), ""
        try:
            for _ in range(TRIES):
                process = process or self._start()
                try:
                    result: R = process.call(item)
                    return result
                except EOFError as error:
                    self._running.discard(process)
                    process, reason = None, f"{error}, {TRIES} times"
                if not self._kill.still_active():
                    raise RuntimeError("the calls were ended")
            return Crashed(reason)
        finally:
            self._idle.put(process)

    def _start(self) -> "_Process":
        with self._forking:  # a process forked meanwhile would hold this one's end of the connection open
            process = _Process(self._function)
        self._running.add(process)
        return process


class _Process:
    """A process that calls a function, and the connection to it."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        # Forked, as DataLoader's workers are: with other ways every process imports torch again.
        method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
        context: Any = multiprocessing.get_context(method)
        self._connection, theirs = context.Pipe()
        self._process: BaseProcess = context.Process(target=_serve, args=(function, theirs, os.getpid()), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, item: Any) -> Any:
        """The function's result or exception; EOFError, with the reason, if the process died."""
        try:
            self._connection.send((item,))
            while not wait([self._connection, self._process.sentinel], _WATCH):
                pass
            # Anything it sent before it died can still be read.
            result, error = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            self._connection.close()
            raise EOFError(cause_of_death(self._process.exitcode)) from None
        if error is not None:
            raise error
        return result

    def finish(self) -> None:
        """Let the process end; it must be idle."""
        with contextlib.suppress(OSError):
            self._connection.send(())
        self._process.join()
        self._connection.close()

    def kill(self) -> None:
        self._process.kill()


def _kill_all(processes: set[_Process]) -> None:
    for process in list(processes):
        process.kill()


def cause_of_death(code: int | None) -> str:
    """The meaning of a `Process.exitcode`."""
    if code is not None and code < 0:
        with contextlib.suppress(ValueError):
            return f"the process was ended by {signal.Signals(-code).name}"
    return f"the process ended with status {code}"


def in_order(threads: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """`threads.map` with at most `ahead` results waiting behind a slow item."""
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(threads.submit(function, item))
            if len(pending) >= ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        for future in pending:
            future.cancel()


def _serve(function: Callable[[Any], Any], connection: Connection, parent: int) -> None:
    """Call the function with each item that arrives, until the connection closes."""
    for name in ("SIGINT", "SIGTERM"):  # sent to the whole group; the parent decides what ends
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    while True:
        # The connection does not close when the parent dies: forked siblings hold it open.
        while not connection.poll(_WATCH):
            if os.getppid() != parent:
                return
        try:
            message = connection.recv()
        except (EOFError, OSError):
            return
        if not message:
            return
        try:
            answer: tuple[Any, Exception | None] = (function(*message), None)
        except Exception as error:
            answer = (None, error)
        connection.send(answer)
