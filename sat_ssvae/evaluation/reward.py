"""Score a folder of generated videos with UnifiedReward, and compare two folders.

    scored = score_videos(list_videos(Path("samples"), prompts=None), Path("rewards.jsonl"), RewardConfig())
    summary = summarize(scored, RewardConfig())

The result file has one JSON line for each answer, written when the answer comes: an interrupted run asks only what has
no line yet. A line belongs to a video's content, its prompt, the model's name and the instruction, and to nothing else.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Literal

from pydantic import Field

from ..config import fingerprint
from ..data.files import VideoError
from ..data.skips import printable
from ..data.video_io import VIDEO_SUFFIXES
from ..errors import UserError
from ..metrics.intervals import MeanInterval, mean_interval
from ..progress import progress_bar
from .journal import append, read_journal
from .reward_client import ChatClient, RequestFailed, ServerConfig
from .unified_reward import (
    VERSIONS,
    RewardVersion,
    UnparsableAnswer,
    chat_messages,
    overall,
    parse_answer,
    read_instruction,
    video_frames,
)

logger = logging.getLogger(__name__)


class RewardConfig(ServerConfig):
    """What is asked of which server, and how much at once."""

    version: Literal[1, 2] = 2
    """Generation of the UnifiedReward model that is served: 2 rates three axes, 1 five dimensions and a final score."""
    batch_size: int = Field(default=4, gt=0)
    """Requests in flight at the same time."""
    instruction: Path | None = None
    """A text file to ask with instead of the package's wording; `{caption}` stands for the prompt."""
    max_failures: int = Field(default=8, gt=0)
    """Requests that may fail one after the other before the run ends."""
    seed: int = Field(default=0, ge=0)
    """Of the bootstrap intervals."""


@dataclass(frozen=True)
class Video:
    """A generated video; `name` is its path in its folder without the suffix."""

    name: str
    path: Path
    prompt: str


@dataclass(frozen=True)
class Record:
    """One answered request. `scores` by axis; empty when the answer could not be parsed."""

    key: str
    video: str
    prompt: str
    answer: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Scored:
    """Records of a folder's videos in their order, and what was not answered: video -> reason."""

    records: list[Record] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """What a folder's videos got: means by axis over the `videos` that were rated, and the names of the others."""

    scores: dict[str, MeanInterval]
    videos: int
    unparsable: list[str]
    failed: dict[str, str]


def list_videos(folder: Path, prompts: Path | None) -> list[Video]:
    """The folder's videos with their prompts, from NAME.txt beside each or from a JSON object {name: prompt}.

    Names in the JSON are paths in the folder, with or without suffix.

    Raises:
        UserError: no folder, no video in it, prompts that cannot be read, or a video without one.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of videos")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES and path.is_file())
    if not paths:
        raise UserError(f"{folder}: no video in it (known: {', '.join(sorted(VIDEO_SUFFIXES))})")
    known = _read_prompts(prompts) if prompts else {}
    videos = []
    for path in paths:
        inside = path.relative_to(folder)
        prompt = known.get(str(inside)) or known.get(str(inside.with_suffix("")))
        if prompt is None and prompts is None and (sidecar := path.with_suffix(".txt")).is_file():
            prompt = sidecar.read_text(encoding="utf-8", errors="replace").strip()
        if not prompt:
            wanted = f"add it to {prompts}" if prompts else f"write it to {path.with_suffix('.txt')} or give --prompts"
            raise UserError(f"{path}: no prompt for this video; {wanted}")
        videos.append(Video(printable(str(inside.with_suffix(""))), path, prompt))
    return videos


def score_videos(videos: Sequence[Video], output: Path, config: RewardConfig) -> Scored:
    """Ask for every video that `output` has no line for, and return all records.

    A video that cannot be read and a request that fails are listed in `failures`; the next run tries them again.

    Raises:
        UserError: the server is down or refuses, `max_failures` requests in a row failed, or `output` is not writable.
    """
    version = VERSIONS[config.version]
    instruction = read_instruction(config.instruction) if config.instruction else version.instruction
    known = {record.key: record for record in read_journal(output, Record)}
    keys = {video: _key(video, instruction, version, config.model) for video in videos}
    missing = [video for video in videos if keys[video] not in known]
    failures: dict[str, str] = {}
    bar = progress_bar(len(videos), "scoring", "video", initial=len(videos) - len(missing))
    # The client closes first: an interrupted run does not wait for the repetitions of its threads.
    with bar, ThreadPoolExecutor(config.batch_size) as pool, ChatClient(config) as client:

        def ask(video: Video) -> Record:
            messages = chat_messages(video_frames(video.path, version), video.prompt, instruction)
            answer = client.ask(messages)
            return Record(keys[video], video.name, video.prompt, answer, _scores(answer, version))

        in_a_row = 0
        for video, done in _in_flight(pool, ask, missing, config.batch_size):
            try:
                record = done.result()
            except (RequestFailed, VideoError) as error:
                failures[video.name] = str(error)
                in_a_row += isinstance(error, RequestFailed)
                if in_a_row >= config.max_failures:
                    raise UserError(
                        f"{config.url}: {in_a_row} requests in a row failed, at last: {error}; "
                        f"what was scored is in {output}, the same command goes on"
                    ) from None
            else:
                in_a_row = 0
                known[record.key] = record
                append(output, record)
            bar.update()
    return Scored([known[keys[video]] for video in videos if keys[video] in known], failures)


def summarize(scored: Scored, config: RewardConfig) -> Summary:
    """Means with intervals over the videos that have ratings.

    Raises:
        UserError: no video got a score; the message has the first reason.
    """
    rated = [record for record in scored.records if record.scores]
    if not rated:
        why = [f"{video}: {reason}" for video, reason in scored.failures.items()]
        why += [f"{record.video}: no ratings in the answer {record.answer[:80]!r}" for record in scored.records]
        raise UserError(f"no video got a score; {why[0]}")
    scores = {axis: mean_interval(values, seed=config.seed) for axis, values in _columns(rated, config).items()}
    unparsable = [record.video for record in scored.records if not record.scores]
    return Summary(scores, len(rated), unparsable, scored.failures)


def paired_differences(first: Scored, second: Scored, config: RewardConfig) -> dict[str, MeanInterval]:
    """Mean of second - first by axis, over the videos that have the same name and prompt in both.

    Raises:
        UserError: the folders share no rated video, or one has different prompts.
    """
    baseline = {record.video: record for record in first.records if record.scores}
    pairs = [(baseline[other.video], other) for other in second.records if other.scores and other.video in baseline]
    if not pairs:
        raise UserError("the two folders share no rated video; equal prompts need equal file names")
    if unlike := [one.video for one, other in pairs if one.prompt != other.prompt]:
        raise UserError(f"{unlike[0]}: its prompt differs between the two folders, so the pair compares nothing")
    before, after = (_columns([pair[side] for pair in pairs], config) for side in (0, 1))
    return {
        axis: mean_interval([b - a for a, b in zip(before[axis], after[axis], strict=True)], seed=config.seed)
        for axis in before
        if axis in after and len(before[axis]) == len(after[axis]) == len(pairs)
    }


def _columns(records: Sequence[Record], config: RewardConfig) -> dict[str, list[float]]:
    """Ratings by axis, and first of all their mean over the axes."""
    version = VERSIONS[config.version]
    columns = {"overall": [overall(record.scores, version) for record in records]}
    for axis in [*version.axes, "final"]:
        if values := [record.scores[axis] for record in records if axis in record.scores]:
            columns[axis] = values
    return columns


def _in_flight(
    pool: ThreadPoolExecutor, ask: Callable[[Video], Record], videos: Sequence[Video], batch_size: int
) -> Iterator[tuple[Video, "Future[Record]"]]:
    """Videos with their finished requests, as they finish; never more than `batch_size` are under way."""
    waiting = iter(videos)
    running = {pool.submit(ask, video): video for video in islice(waiting, batch_size)}
    while running:
        for done in wait(running, return_when=FIRST_COMPLETED).done:
            yield running.pop(done), done
            running |= {pool.submit(ask, video): video for video in islice(waiting, 1)}


def _scores(answer: str, version: RewardVersion) -> dict[str, float]:
    try:
        return parse_answer(answer, version)
    except UnparsableAnswer as error:
        logger.debug("unparsable answer (%s): %s", error, answer)
        return {}


def _key(video: Video, instruction: str, version: RewardVersion, model: str) -> str:
    content = hashlib.sha256(video.path.read_bytes()).hexdigest()
    return fingerprint(video.name, content, video.prompt, instruction, version.number, model)


def _read_prompts(path: Path) -> dict[str, str]:
    try:
        prompts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise UserError(f'{path}: expected one JSON object {{"video name": "prompt", ...}}')
    return prompts
