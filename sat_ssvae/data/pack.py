"""The packer: videos and images in, WebDataset shards out.

    report = pack(Path("videos"), Path("shards"), PackConfig(max_short_side=256, segment_seconds=10))

writes NAME-000000.tar, NAME-000001.tar, ... each with KEY.mp4 (or .jpg, .png) and KEY.id per sample, and beside each
tar a NAME-000000.meta.jsonl with one JSON per sample: key, duration (s), fps, frames, width, height, source, caption.
index.npz lists all of them, so that training need not parse these; skipped.jsonl lists what could not be used.

Which sample is in which shard is planned before any is made (pack.json), and one worker makes a shard as a whole. So
the bytes do not depend on who made them, and an interrupted run continues with the unfinished shards.
"""

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ..addresses import is_address
from ..config import fingerprint
from ..errors import UserError
from ..jobs.engines import run_job
from ..jobs.isolation import Crashed, IsolatedCalls
from ..jobs.job import Advance, Item, Job
from ..jobs.ledger import Ledger, claimed, collect, refuse_missing
from ..jobs.settings import Part
from ..jobs.store_lock import Claim
from ..storage import atomic, remove_partials, write_text
from .captions import WHERE
from .containers import VIDEO_SUFFIXES
from .convert import InputFiles, PackConfig, PackedSample, convert, cut
from .files import META_SUFFIX, VideoError
from .images import IMAGE_SUFFIXES
from .inputs import PackItem, pack_items
from .samples import write_index
from .skips import SKIPPED_FILE, Skip, read_skips
from .tars import PlainTar, plain_tar

logger = logging.getLogger(__name__)

_PLAN_FILE = "pack.json"
_PROBED = 64  # files in a piece of the probing


@dataclass(frozen=True)
class PackReport:
    """What is in the output folder, earlier runs' shards included. `skipped` counts by cause."""

    shards: tuple[Path, ...]
    samples: int
    captions: int
    skipped: dict[str, int]


class _Plan(NamedTuple):
    """pack.json: which part of which file is which sample."""

    fingerprint: str
    """Of the inputs and the settings."""
    name: str
    samples_per_shard: int
    parts: int
    """In how many parts it is packed."""
    segments: list[list[Any]]
    """Number of the input, start and end (seconds) of each sample."""
    unusable: list[dict[str, Any]]
    """What gives no sample at all, as in skipped.jsonl."""

    def shards(self) -> list[str]:
        """The shards' names, some of which may turn out empty."""
        return [f"{self.name}-{number:06d}" for number in range(-(-len(self.segments) // self.samples_per_shard))]

    def members(self, shard: int) -> range:
        """The numbers of a shard's samples."""
        first = shard * self.samples_per_shard
        return range(first, min(first + self.samples_per_shard, len(self.segments)))


class _Shard(NamedTuple):
    """What a worker needs to know of a shard."""

    name: str
    number: int
    first: int
    """Number of its first sample."""
    segments: list[PackItem]


def pack(inputs: Path | Sequence[Path | PackItem], output: Path, config: PackConfig) -> PackReport:
    """Convert `inputs` to shards in the folder `output`.

    Args:
        inputs: a folder (searched recursively, captions where `CaptionFinder` looks), a CSV file with the columns path
            and optionally caption, start, end (seconds) and others, which go into the meta file, or a list of these,
            files and `PackItem`s.
        output: made if it does not exist; holds nothing but this pack.
        config: what to change on the way, and how many samples make a shard. With `part`, only the shards of that part
            are made; `merge` is the last step.

    Raises:
        UserError: no such input, a malformed CSV, nothing usable in it, no caption at all, an output folder that holds
            another pack or that another one works in, no space left.
    """
    items = pack_items(inputs, output)
    if not items:
        raise UserError(f"{inputs}: no video or image in it")
    _refuse_shards(items, inputs)
    items = _captioned(items, inputs, config)
    part = config.chosen_part
    with _one_line(output), claimed(output, "pack", part) as claim:
        plan = _plan(items, output, config, claim)
        _write_shards(items, plan, output, config, claim)
        if part.count > 1:
            return _report(output, [name for name in plan.shards() if part.takes(name)])
        return _finish(plan, output, str(inputs))


def merge(output: Path) -> PackReport:
    """The last step of packing in parts: check that all are there, and list what was skipped.

    Raises:
        UserError: no pack there, or parts are missing (they are named).
    """
    with _one_line(output):
        if not (output / _PLAN_FILE).is_file():
            raise UserError(
                f"{output}: nothing was packed there; first: sat-ssvae pack VIDEOS --output {output} part=1/4"
            )
        with claimed(output, "pack", Part(1, 1)):
            return _finish(_read_plan(output), output, str(output))


@contextlib.contextmanager
def _one_line(output: Path) -> Iterator[None]:
    """Errors of the disk as errors of the user."""
    try:
        yield
    except OSError as error:
        reason = f"{error.filename or output}: {error.strerror or error}"
        raise UserError(f"{reason}; finished shards are kept, run the same command again to go on") from None


def _refuse_shards(items: list[PackItem], inputs: object) -> None:
    suffixes = {item.path.suffix.lower() for item in items}
    if ".tar" in suffixes and not suffixes & (VIDEO_SUFFIXES | IMAGE_SUFFIXES):
        raise UserError(f"{inputs}: these are shards already, use them as they are (data.path={inputs})")


def _captioned(items: list[PackItem], inputs: object, config: PackConfig) -> list[PackItem]:
    """The items with their captions, or without any if so configured; refused if no caption is found."""
    if config.captions == "none":
        return [replace(item, caption="") for item in items]
    missing = sum(not item.caption for item in items)
    if missing == len(items):
        raise UserError(f"{inputs}: none of {missing} files has a caption {WHERE}; captions=none packs them without")
    if missing:
        logger.warning("%d of %d files have no caption", missing, len(items))
    return items


def _plan(items: list[PackItem], output: Path, config: PackConfig, claim: Claim) -> _Plan:
    """The samples to make, in order. Kept on disk, so that a resumed run does not probe again."""
    contents = [
        [item.id, item.caption, item.fields, item.start, item.end, item.size or _size(item.path)] for item in items
    ]
    ours = fingerprint(config.identity("workers"), contents)
    if (output / _PLAN_FILE).is_file():
        return _continued(_read_plan(output), ours, output, config.chosen_part)
    if any(output.glob("*.tar")):
        raise UserError(f"{output} holds shards that this packer did not write: choose an empty folder")
    segments: list[list[Any]] = []
    unusable: list[dict[str, Any]] = []
    for index, outcome in enumerate(_probed(items, output, config, ours, claim)):
        if isinstance(outcome, dict):
            unusable.append(outcome)
        else:
            segments += [[index, *times] for times in outcome]
    if (output / _PLAN_FILE).is_file():  # another part was quicker
        return _continued(_read_plan(output), ours, output, config.chosen_part)
    plan = _Plan(ours, config.name, config.samples_per_shard, config.chosen_part.count, segments, unusable)
    write_text(output / _PLAN_FILE, json.dumps(plan._asdict()))
    return plan


def _continued(plan: _Plan, ours: str, output: Path, part: Part) -> _Plan:
    if plan.fingerprint != ours:
        raise UserError(f"{output} holds shards of other inputs or settings: choose an empty folder or delete it")
    if part.count > 1 and part.count != plan.parts:
        if plan.parts > 1:
            raise UserError(f"{output} is packed in {plan.parts} parts: give part=N/{plan.parts}, N from 1 on")
        plan = plan._replace(parts=part.count)
        write_text(output / _PLAN_FILE, json.dumps(plan._asdict()))
    return plan


def _read_plan(output: Path) -> _Plan:
    file = output / _PLAN_FILE
    try:
        return _Plan(**json.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError):
        raise UserError(f"{file} is damaged or of another version: choose an empty folder or delete {output}") from None


def _size(path: Path) -> int | None:
    with contextlib.suppress(OSError):
        if not is_address(path) and path.is_file():  # at an address each would be a request
            return path.stat().st_size
    return None


def _probed(items: list[PackItem], output: Path, config: PackConfig, ours: str, claim: Claim) -> list[Any]:
    """For each item the (start, end) of its samples, or a dict that says why it gives none."""
    if config.segment_seconds is None:
        return [[(item.start, item.end)] for item in items]
    starts = range(0, len(items), _PROBED)
    blocks = [Item(f"files {start}", len(some := items[start : start + _PROBED]), some) for start in starts]
    part = config.chosen_part
    ledger = Ledger(output / f".probed{part.suffix}", ours)
    # Every part needs the whole plan.
    whole = config.model_copy(update={"part": "1/1"})
    job = Job(partial(_prober, config), overlap=2)
    results = collect(job, blocks, whole, ledger, claim, "probing", "file")
    ledger.remove()
    return [outcome for block in results or [] for outcome in block]


@contextlib.contextmanager
def _prober(config: PackConfig, cpus: int | None) -> Iterator[Callable[[list[PackItem], Advance], list[Any]]]:
    """Decides on the samples of a block of files, see `Job.open`."""
    workers = cpus or config.workers
    with IsolatedCalls(partial(cut, config=config, inputs=InputFiles()), workers) as calls:

        def probe_all(items: list[PackItem], advance: Advance) -> list[Any]:
            outcomes: list[Any] = []
            for item, outcome in zip(items, calls.map(items, 4 * workers), strict=True):
                skip = Skip(item.id, "crashed", outcome.reason) if isinstance(outcome, Crashed) else outcome
                outcomes.append(asdict(skip) if isinstance(skip, Skip) else skip)
                advance(1)
            return outcomes

        yield probe_all


def _write_shards(items: list[PackItem], plan: _Plan, output: Path, config: PackConfig, claim: Claim) -> None:
    """Make the shards, of this part, that are not finished."""
    names = plan.shards()
    ours = [number for number, name in enumerate(names) if config.chosen_part.takes(name)]
    finished = _finished(plan, output)
    todo = []
    for number in ours:
        if number not in finished:
            remove_partials(output, names[number])
            rows = [plan.segments[index] for index in plan.members(number)]
            segments = [replace(items[index], start=start, end=end) for index, start, end in rows]
            shard = _Shard(names[number], number, plan.members(number)[0], segments)
            todo.append(Item(shard.name, len(segments), shard))
    done = sum(len(plan.members(number)) for number in ours if number in finished)
    job = Job(partial(_packer, config, output.absolute()), overlap=2)
    for _item, _result in run_job(job, todo, config, f"packing {output.name}", "clip", done=done):
        claim.check()


@contextlib.contextmanager
def _packer(config: PackConfig, output: Path, cpus: int | None) -> Iterator[Callable[[_Shard, Advance], None]]:
    """Writes a shard, see `Job.open`."""
    workers = cpus or config.workers
    with IsolatedCalls(partial(convert, config=config, inputs=InputFiles()), workers) as calls:

        def write(shard: _Shard, advance: Advance) -> None:
            with _one_line(output):
                _write_shard(shard, calls.map(shard.segments, 2 * workers), output, advance)

        yield write


def _write_shard(
    shard: _Shard, outcomes: Iterator[PackedSample | Skip | Crashed], output: Path, advance: Advance
) -> None:
    """Write one tar, its skips and its meta file; the last one's final name is what marks the shard as finished."""
    records: list[dict[str, Any]] = []
    skips: list[Skip] = []
    with atomic(output / f"{shard.name}.tar") as unfinished:
        with plain_tar(unfinished) as writer:
            for index, (segment, outcome) in enumerate(zip(shard.segments, outcomes, strict=True), shard.first):
                written = _written(writer, f"{index:08d}", segment.source, outcome)
                advance(1)
                if isinstance(written, Skip):
                    skips.append(written)
                else:
                    records.append(written)
        if not records:
            unfinished.unlink()
    if skips:
        write_text(_skips_of(output, shard.name), "".join(skip.to_json(shard=shard.number) for skip in skips))
    if records:
        lines = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        write_text(output / f"{shard.name}{META_SUFFIX}", "".join(lines))


def _written(writer: PlainTar, key: str, source: str, outcome: PackedSample | Skip | Crashed) -> dict[str, Any] | Skip:
    """Append a sample to the tar; returns its line of the meta file, or why it is not there."""
    if isinstance(outcome, Skip):
        return outcome
    if isinstance(outcome, Crashed):
        return Skip(source, "crashed", outcome.reason)
    try:
        writer.write(key, {outcome.suffix: outcome.data, "id": source.encode("utf-8")})
    except VideoError as error:  # deleted in the meantime, or on a damaged disk: skip it like other bad files
        return Skip(source, error.cause, str(error).removeprefix(f"{error.cause}: "))
    return {"key": key, **outcome.meta}


def _skips_of(output: Path, shard: str) -> Path:
    """What a shard lacks, until all shards are finished and one list has it all."""
    return output / f"{shard}.{SKIPPED_FILE}"


def _skips(plan: _Plan, output: Path) -> list[dict[str, Any]]:
    """The lines of skipped.jsonl, in the samples' order, as far as shards are finished."""
    by_shard: dict[int, list[dict[str, Any]]] = {}
    for line in read_skips(output / SKIPPED_FILE):
        if line["shard"] is not None:
            by_shard.setdefault(line["shard"], []).append(line)
    for number, name in enumerate(plan.shards()):
        if own := read_skips(_skips_of(output, name)):
            by_shard[number] = own
    of_shards = [line for number in sorted(by_shard) for line in by_shard[number]]
    return [{**line, "shard": None} for line in plan.unusable] + of_shards


def _finished(plan: _Plan, output: Path) -> set[int]:
    """Shards whose tar and meta file exist, or all of whose samples are listed as skipped."""
    skipped = Counter(line["shard"] for line in _skips(plan, output))
    there = {path.name for path in output.glob(f"{plan.name}-??????.*")}
    return {
        number
        for number, name in enumerate(plan.shards())
        if {f"{name}.tar", f"{name}{META_SUFFIX}"} <= there or skipped[number] == len(plan.members(number))
    }


def _finish(plan: _Plan, output: Path, inputs: str) -> PackReport:
    """Put the shards' skips into one list, write the index of all samples, and count.

    Raises:
        UserError: shards are missing, or nothing was usable.
    """
    names, finished = plan.shards(), _finished(plan, output)
    refuse_missing([name for number, name in enumerate(names) if number not in finished], plan.parts)
    listing = output / SKIPPED_FILE
    write_text(listing, "".join(json.dumps(line) + "\n" for line in _skips(plan, output)))
    for name in names:
        _skips_of(output, name).unlink(missing_ok=True)
    remove_partials(output, f"{plan.name}-")
    report = _report(output, names)
    skips = Counter(line["cause"] for line in read_skips(listing))
    causes = ", ".join(f"{count} {cause}" for cause, count in skips.most_common())
    if not report.samples:
        raise UserError(f"{inputs}: no usable video or image ({causes}), see {listing}")
    if not is_address(output):  # whose meta files a reader has to fetch in any case
        write_index(report.shards)
    if skips:
        total = report.samples + skips.total()
        logger.warning("left out %d of %d clips (%s), see %s", skips.total(), total, causes, listing)
    return replace(report, skipped=dict(skips))


def _report(output: Path, names: Sequence[str]) -> PackReport:
    """What finished shards hold, and what is listed beside them."""
    shards = tuple(tar for name in names if (tar := output / f"{name}.tar").is_file())
    metas = "".join(shard.with_suffix(META_SUFFIX).read_text(encoding="utf-8") for shard in shards)
    records = [json.loads(line) for line in metas.split("\n") if line]
    skipped = Counter(line["cause"] for name in names for line in read_skips(_skips_of(output, name)))
    return PackReport(shards, len(records), sum("caption" in record for record in records), dict(skipped))
