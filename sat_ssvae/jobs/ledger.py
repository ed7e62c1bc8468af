"""Files with which a killed job continues: the results of finished items, and of parts on other machines.

with claimed(folder, "check-data", config.chosen_part) as claim:
    ledger = Ledger(folder / "check-data", identity)
    results = collect(job, items, config, ledger, claim, "checking", "clip")
"""

import contextlib
import fcntl
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ..addresses import is_address
from ..errors import UserError
from ..storage import GrowingText, read_json_lines, try_lock, write_text
from .engines import run_job
from .job import Item, Job
from .settings import JobConfig, Part, part_of
from .store_lock import Claim, locked

T = TypeVar("T")


class Ledger:
    """Results of items, one JSON line each, in `STEM.jsonl` or for a part `STEM.part-3-of-16.jsonl`.

    Results with another `identity`, of the input and the settings, are dropped.
    """

    def __init__(self, stem: Path, identity: str) -> None:
        self._stem, self._identity = stem, identity
        self._files: dict[Part, GrowingText] = {}

    def path(self, part: Part) -> Path:
        """The file of a part."""
        return self._stem.with_name(f"{self._stem.name}{part.suffix}.jsonl")

    def parts(self) -> list[Part]:
        """The parts that have a file."""
        pattern = re.compile(rf"{re.escape(self._stem.name)}\.part-(\d+)-of-(\d+)\.jsonl")
        names = (pattern.fullmatch(path.name) for path in self._stem.parent.glob(f"*{Part(1, 2).suffix[:6]}*"))
        return sorted(Part(int(name[1]), int(name[2])) for name in names if name)

    def read(self, part: Part) -> dict[str, Any]:
        """Results by the items' names; the incomplete line of a killed process is dropped, also from the file."""
        path = self.path(part)
        whole = read_json_lines(path)
        if not whole or whole[0] != self._identity:
            whole = [self._identity]
        write_text(path, "".join(json.dumps(line) + "\n" for line in whole))
        return dict(whole[1:])

    def add(self, part: Part, name: str, result: Any) -> None:
        """Append a result."""
        self._files.setdefault(part, GrowingText(self.path(part))).add(json.dumps([name, result]) + "\n")

    def flush(self) -> None:
        """Upload results that are not in the object store yet."""
        for file in self._files.values():
            file.flush()

    def is_of(self, part: Part) -> bool:
        """Whether a part's file belongs to this input and these settings."""
        with self.path(part).open(encoding="utf-8") as file:
            return file.readline() == json.dumps(self._identity) + "\n"

    def remove(self) -> None:
        """Delete all files; call it when the results are saved elsewhere."""
        for part in [Part(1, 1), *self.parts()]:
            self.path(part).unlink(missing_ok=True)


def collect(
    job: Job[T, Any],
    items: Sequence[Item[T]],
    config: JobConfig,
    ledger: Ledger,
    claim: Claim,
    title: str,
    unit: str,
) -> list[Any] | None:
    """The results (plain values, as in JSON) of all items, in their order.

    Results of an earlier, killed run are taken from the ledger. Those of a part stay there, and None is returned.
    `title` and `unit` are the progress bar's, see `run_job`.

    Raises:
        UserError: a worker's; the claim was lost.
    """
    part = config.chosen_part
    known = ledger.read(part)
    todo = [item for item in items if item.name not in known and part.takes(item.name)]
    done = sum(item.units for item in items if item.name in known)
    try:
        for item, result in run_job(job, todo, config, title, unit, done=done):
            claim.check()
            known[item.name] = result
            ledger.add(part, item.name, result)
    finally:
        if not claim.lost:  # else the file is another one's
            ledger.flush()
    return [known[item.name] for item in items] if part.count == 1 else None


def merge(items: Iterable[Item[Any]], ledger: Ledger) -> list[Any]:
    """The results of all parts, in the items' order.

    Raises:
        UserError: parts are missing (the message names them) or had other settings.
    """
    parts = ledger.parts()
    if len({part.count for part in parts}) > 1:
        raise UserError(
            f"{ledger.path(parts[0])}: parts of several jobs ({', '.join(map(str, parts))}); delete the old"
        )
    known: dict[str, Any] = {}
    for part in parts:
        if not ledger.is_of(part):
            raise UserError(
                f"{ledger.path(part)}: of other data or settings; give the same ones to all parts and --merge"
            )
        known |= ledger.read(part)
    names = [item.name for item in items]
    refuse_missing([name for name in names if name not in known], parts[0].count if parts else 1)
    return [known[name] for name in names]


def refuse_missing(names: Sequence[str], count: int) -> None:
    """Raise UserError naming the parts, of `count`, whose items are missing; nothing if none is."""
    if not names:
        return
    if count == 1:
        raise UserError(f"{len(names)} pieces are not done: run the same command without --merge")
    numbers = sorted({part_of(name, count) for name in names})
    shown = ", ".join(map(str, numbers[:20])) + (", ..." if len(numbers) > 20 else "")
    raise UserError(
        f"part{'s' * (len(numbers) > 1)} {shown} of {count} not finished, {len(names)} pieces are missing: "
        f"run the same command with part={numbers[0]}/{count}{' and so on' * (len(numbers) > 1)}, then --merge again"
    )


@contextlib.contextmanager
def claimed(folder: Path, name: str, part: Part) -> Iterator[Claim]:
    """Keep other jobs of this kind out of a folder, except those for other parts; the folder is made.

    On the Hugging Face hub, where each sign of life would be a commit, and in a local folder without locks no job is
    kept out: files appear whole, and all writers write the same.

    Raises:
        UserError: another one is running there.
        OSError: a store cannot say.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if is_address(folder):
            claim = Claim() if str(folder).startswith("hf:") else stack.enter_context(locked(folder, name, part))
            if part.count > 1:  # for `parts_of`
                write_text(folder / f".{name}{part.suffix}.lock", "")
            yield claim
            return
        alone = part.count == 1
        locks = [(f".{name}.lock", fcntl.LOCK_EX if alone else fcntl.LOCK_SH)]
        locks += [] if alone else [(f".{name}{part.suffix}.lock", fcntl.LOCK_EX)]
        for file_name, kind in locks:
            file = stack.enter_context((folder / file_name).open("a+b"))
            if not try_lock(file, kind):
                what = f"{name} {'' if alone else f'of part {part} '}".strip()
                raise UserError(f"{folder}: another {what} works there; wait for it, or choose another folder")
        yield Claim()


def parts_of(folder: Path, name: str) -> int:
    """The number of parts that the job in a folder was split into; 1 if it was not split."""
    counts = {int(path.stem.rpartition("-")[2]) for path in folder.glob(f".{name}.part-*-of-*.lock")}
    return max(counts, default=1)
