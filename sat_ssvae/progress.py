"""Progress bars and log lines that share one stderr.

    setup_logging()
    with progress_bar(1000, "training ssvae", "step") as bar:
        bar.set_postfix(loss=f"{loss:.4f}")
        bar.update()

On a terminal a bar redraws itself in place. Elsewhere (in a log file, and in the processes of a comparison's members,
whose lines begin with their names) it is an occasional plain line.
"""

import atexit
import contextlib
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Sized
from typing import Any

from tqdm import tqdm

from .distributed import rank

QUIET_INTERVAL = 30.0
"""Seconds between two lines of a bar if stderr is not a terminal."""

_LINE_FORMAT = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"


def progress_bar(
    iterable_or_total: Iterable[Any] | int | None, description: str, unit: str, initial: int = 0
) -> "tqdm[Any]":
    """A bar on stderr with rate and remaining time; `bar.set_postfix(loss=...)` puts the loss at its end.

    If stderr is not a terminal, it prints a line every `QUIET_INTERVAL` seconds and one at the end.
    Only the first of several ranks shows it. Work that ends without an error leaves a full bar, even if the
    number of units differed from the total.

    Args:
        iterable_or_total: what to iterate over, or the number of units that `bar.update()` will count to, the
            `initial` ones included; None if the number is not known.
        description: a few words before the bar.
        unit: singular name of what is counted.
        initial: units done by an earlier, interrupted run, which do not count for the rate. An iterable
            yields only the remaining ones.
    """
    iterable: Iterable[Any] | None = None
    total: int | None
    if isinstance(iterable_or_total, int) or iterable_or_total is None:
        total = iterable_or_total
    else:
        iterable = iterable_or_total
        total = initial + len(iterable) if isinstance(iterable, Sized) else None
    options: dict[str, Any] = {
        "desc": f"{_own_name()}{description}",
        "unit": f" {unit}",
        "total": total,
        "initial": initial,
        "file": sys.stderr,
        "disable": rank() > 0,
    }
    if sys.stderr.isatty() and not _own_name():
        bar = _Bar(iterable, dynamic_ncols=True, **options)
    else:
        options |= {"mininterval": QUIET_INTERVAL, "miniters": 1, "delay": QUIET_INTERVAL}
        bar = _LineBar(iterable, bar_format=_LINE_FORMAT, **options)
    if iterable is not None:
        bar.iterable = bar.noting_its_end(iterable)
    return bar


def already_done(bar: "tqdm[Any]", units: int) -> None:
    """Advance a bar by the units of an earlier run, which do not count for the rate."""
    bar.initial += units
    bar.last_print_n += units
    bar.n += units


def setup_logging(verbose: bool = False) -> None:
    """Send log records to stderr, above any progress bar on it; ranks other than the first send warnings only.

    A repeated warning or notice is shown once. Calling it again replaces the earlier set-up. If stderr cannot be
    written (a full disk), lines are lost and the program goes on.

    `verbose`: show the package's debug records and other libraries' information too.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _BarHandler)]:
        root.removeHandler(handler)
    handler = _BarHandler()
    name = _own_name().replace("%", "%%")
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)s: {name}%(message)s", "%H:%M:%S"))
    handler.addFilter(lambda record: rank() == 0 or record.levelno >= logging.WARNING)
    handler.addFilter(_OnlyOnce())
    root.addHandler(handler)
    root.setLevel(logging.INFO if verbose else logging.WARNING)
    # `__package__` is sgm.sat_ssvae where the folder was copied into CogVideoX.
    logging.getLogger(__package__).setLevel(logging.DEBUG if verbose else logging.INFO)
    # Its failures end in one line of ours; it logs a traceback of each.
    logging.getLogger("gcsfs").setLevel(logging.NOTSET if verbose else logging.CRITICAL)
    atexit.unregister(_give_up_unwritten)
    atexit.register(_give_up_unwritten)


def _own_name() -> str:
    """Prefix of the lines of a process that shares its parent's stderr."""
    return f"{multiprocessing.current_process().name}: " if multiprocessing.parent_process() else ""


def _give_up_unwritten() -> None:
    """At exit: Python would retry what stderr did not take, and end with status 120."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class _OnlyOnce(logging.Filter):
    """Passes a repeated record of a logger once; errors and debug records always."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[tuple[str, str]] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno not in (logging.INFO, logging.WARNING):
            return True
        said = (record.name, record.getMessage())
        if said in self._said:
            return False
        self._said.add(said)
        return True


class _BarHandler(logging.Handler):
    """Clears the bars, writes the record, redraws the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            tqdm.write(self.format(record), file=sys.stderr)
        except (OSError, ValueError):  # stderr is closed or full: reported in logging's own way
            self.handleError(record)


class _Bar(tqdm):
    """A bar that ends full unless an error stopped it, and whose times are right when the system's clock jumps."""

    complete = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        if not self.disable:
            self._time = time.monotonic
            self.start_t = self.last_print_t = self._time()

    def noting_its_end(self, iterable: Iterable[Any]) -> Iterable[Any]:
        """The same items; after the last one the bar is complete."""
        yield from iterable
        self.complete = True

    def __exit__(self, exc_type: Any, exc_value: Any, traceback: Any) -> None:
        self.complete = exc_type is None
        super().__exit__(exc_type, exc_value, traceback)

    def close(self) -> None:
        """Show the final state."""
        if self.complete and self.total is not None:
            self.total = self.n
        super().close()


class _LineBar(_Bar):
    """A bar for a file: whole lines, at most one in `mininterval` seconds however often a redraw is requested."""

    monitor_interval = 0  # tqdm's monitor thread would redraw a slow bar more often than `mininterval`

    last_line: float | None = None  # time of the last line, as `time.monotonic()`
    last_state: tuple[Any, ...] = ()  # that it showed

    @staticmethod
    def status_printer(file: Any) -> Callable[[str], None]:
        """Unused, since `display` writes; tqdm's own flushes stderr, which fails on a full disk."""
        return lambda _line: None

    def refresh(self, nolock: bool = False, lock_args: tuple[Any, ...] | None = None) -> None:
        """Write a line if one is due; tqdm asks after every change of the postfix."""
        if not self.disable and self._time() - (self.last_line or self.start_t) >= self.mininterval:
            super().refresh(nolock=nolock, lock_args=lock_args)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write the state as one line (tqdm passes an empty `msg` to wipe a bar, which a file cannot)."""
        if msg != "":
            with contextlib.suppress(OSError):  # a full disk under the log
                self.fp.write(f"{msg or self}\n")
                self.fp.flush()
            self.last_line, self.last_state = self._time(), self._state()

    def _state(self) -> tuple[Any, ...]:
        return self.n, self.total, self.postfix

    def close(self) -> None:
        """Write the final state, once."""
        if not self.disable:
            if self.complete and self.total is not None:
                self.total = self.n
            if self._state() != self.last_state:
                self.display()
            self.leave = False  # tqdm would print it again
        super().close()
