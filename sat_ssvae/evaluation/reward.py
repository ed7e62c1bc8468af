"""Score a folder of generated videos with UnifiedReward, and compare two folders.

    scored = score_videos(list_videos(Path("samples"), prompts=None), Path("rewards.jsonl"), RewardConfig())
    summary = summarize(scored, RewardConfig())

The result file has one JSON line for each answer with ratings, written when the answer comes: an interrupted run asks
only what has no line yet. A line belongs to a video's content, its prompt, the model's name and the instruction, and to
nothing else.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from ..config import fingerprint
from ..data.files import VideoError
from ..errors import UserError
from ..metrics.intervals import MeanInterval, mean_interval
from ..progress import progress_bar
from ..storage import digest_of
from .items import VideoItem
from .journal import append, read_journal
from .reward_client import Answer, ChatClient, RequestFailed, ServerConfig
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
    """Requests that may fail in a row before the run ends."""
    seed: int = Field(default=0, ge=0)
    """Seed of the bootstrap intervals."""


@dataclass(frozen=True)
class RatedVideo:
    """A video whose answer has ratings: `scores` by axis."""

    key: str
    video: str
    prompt: str
    answer: str
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Scored:
    """A folder's videos, those that are rated in their order, and what got no rating: video -> reason."""

    folder: Path
    videos: Sequence[VideoItem]
    rated: list[RatedVideo]
    failures: dict[str, str]


@dataclass(frozen=True)
class Comparison:
    """A folder minus its baseline, over the videos of the same name and prompt.

    differences: mean by axis. win_rate: share of the pairs whose overall rating is higher; equal ones count half.
    """

    differences: dict[str, MeanInterval]
    win_rate: MeanInterval


def score_videos(videos: Sequence[VideoItem], output: Path, config: RewardConfig) -> Scored:
    """Ask for every video that `output` has no ratings of, and return all of them.

    A video that cannot be read, a request that fails and an answer without ratings are listed in `failures`; the next
    run tries them again.

    Raises:
        UserError: the server is down or refuses, `max_failures` requests in a row failed, or `output` is not writable.
    """
    return asyncio.run(_Scoring(videos, output, config).run())


_Result = tuple[VideoItem, RatedVideo | RequestFailed | VideoError]


class _Scoring:
    """One run over a folder."""

    def __init__(self, videos: Sequence[VideoItem], output: Path, config: RewardConfig) -> None:
        self.videos, self.output, self.config = videos, output, config
        self.version = VERSIONS[config.version]
        self.instruction = read_instruction(config.instruction) if config.instruction else self.version.instruction
        records = read_journal(output, RatedVideo)
        self.known = {
            record.key: record for record in records if self.version.axes.keys() <= (record.scores or {}).keys()
        }
        self.keys = {video: self._key(video) for video in videos}

    async def run(self) -> Scored:
        missing = [video for video in self.videos if self.keys[video] not in self.known]
        failures: dict[str, str] = {}
        in_a_row = 0
        with progress_bar(len(self.videos), "scoring", "video", initial=len(self.videos) - len(missing)) as bar:
            async with aclosing(self._results(missing)) as results:
                async for video, result in results:
                    if isinstance(result, RatedVideo):
                        in_a_row = 0
                        self.known[result.key] = result
                        append(self.output, result)
                    else:
                        failures[video.name] = str(result)
                        in_a_row += isinstance(result, RequestFailed)
                    if in_a_row >= self.config.max_failures:
                        raise UserError(
                            f"{self.config.url}: {in_a_row} requests in a row failed, at last: {result}; "
                            f"finished scores are in {self.output}; the same command continues"
                        )
                    bar.update()
        rated = [self.known[key] for key in self.keys.values() if key in self.known]
        return Scored(self.output.parent, self.videos, rated, failures)

    async def _results(self, videos: Sequence[VideoItem]) -> AsyncGenerator[_Result, None]:
        """Each video with what became of it, as they finish; never more than `batch_size` are under way."""
        free = asyncio.Semaphore(self.config.batch_size)
        async with aclosing(ChatClient(self.config)) as client:

            async def rate(video: VideoItem) -> _Result:
                async with free:
                    try:
                        return video, await self._rate(client, video)
                    except (RequestFailed, VideoError) as error:
                        return video, error

            tasks = [asyncio.create_task(rate(video)) for video in videos]
            try:
                for done in asyncio.as_completed(tasks):
                    yield await done
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    async def _rate(self, client: ChatClient, video: VideoItem) -> RatedVideo:
        frames = await asyncio.to_thread(video_frames, video.source, self.version)
        answer = await client.ask(chat_messages(frames, video.caption, self.instruction))
        text, scores = _read(answer, self.version, self.config.max_tokens, client.without_key)
        return RatedVideo(self.keys[video], video.name, video.caption, text, scores)

    def _key(self, video: VideoItem) -> str:
        content = digest_of(video.source)
        return fingerprint(video.name, content, video.caption, self.instruction, self.version.number, self.config.model)


def _read(
    answer: Answer, version: RewardVersion, max_tokens: int, shown: Callable[[str], str]
) -> tuple[str, dict[str, float]]:
    """The first text of an answer that has all ratings, as `shown` lets it be written, and these.

    Raises:
        RequestFailed: none has.
    """
    reason = ""
    for text in answer.texts:
        try:
            return shown(text), parse_answer(text, version)
        except UnparsableAnswer as error:
            logger.debug("unparsable answer (%s): %s", error, shown(text))
            reason = reason or f"{error} in the answer {shown(text).strip()[:80]!r}"
    if answer.cut_off:
        raise RequestFailed(f"cut off after {max_tokens} tokens, before the ratings; raise max_tokens")
    raise RequestFailed(reason)


def summarize(scored: Scored, config: RewardConfig) -> dict[str, MeanInterval]:
    """Means by axis with their intervals over the rated videos.

    Raises:
        UserError: no video got a score; the message has the first reason.
    """
    if not scored.rated:
        video, reason = next(iter(scored.failures.items()))
        raise UserError(f"no video got a score; {video}: {reason}")
    return {axis: mean_interval(values, seed=config.seed) for axis, values in _columns(scored.rated, config).items()}


def pair_up(baseline: Scored, candidate: Scored) -> list[tuple[RatedVideo, RatedVideo]]:
    """The videos that are rated in both folders.

    Raises:
        UserError: the folders share no rated video, or one has different prompts.
    """
    known = {record.video: record for record in baseline.rated}
    pairs = [(known[other.video], other) for other in candidate.rated if other.video in known]
    if not pairs:
        raise UserError("the two folders share no rated video; equal prompts need equal file names")
    if unlike := [one.video for one, other in pairs if one.prompt != other.prompt]:
        raise UserError(f"{unlike[0]}: its prompt differs between the two folders, so the pair compares nothing")
    return pairs


def compare_pairs(pairs: Sequence[tuple[RatedVideo, RatedVideo]], config: RewardConfig) -> Comparison:
    """Mean differences, second minus first, and how often the second has the higher overall rating."""
    before, after = (_columns([pair[side] for pair in pairs], config) for side in (0, 1))
    differences = {
        axis: [b - a for a, b in zip(before[axis], after[axis], strict=True)]
        for axis in before
        if axis in after and len(before[axis]) == len(after[axis]) == len(pairs)
    }
    wins = [0.5 if difference == 0 else float(difference > 0) for difference in differences["overall"]]
    return Comparison(
        {axis: mean_interval(values, seed=config.seed) for axis, values in differences.items()},
        mean_interval(wins, seed=config.seed),
    )


def rating_table(rated: Sequence[RatedVideo], config: RewardConfig) -> list[list[str]]:
    """A header and one row per video, for a CSV file."""
    axes = list(_columns(rated, config))
    rows = [["name", "prompt", *axes]]  # not "video": the caption finder would take it for a table of captions
    version = VERSIONS[config.version]
    for record in rated:
        values = {"overall": overall(record.scores, version), **record.scores}
        rows.append([record.video, record.prompt, *(f"{values[a]:.4f}" if a in values else "" for a in axes)])
    return rows


def pair_table(pairs: Sequence[tuple[RatedVideo, RatedVideo]], config: RewardConfig) -> list[list[str]]:
    """A header and one row per pair, for a CSV file: the overall ratings of both, and their difference."""
    rows = [["name", "prompt", "baseline", "candidate", "difference"]]
    before, after = (_columns([pair[side] for pair in pairs], config)["overall"] for side in (0, 1))
    for (_, record), a, b in zip(pairs, before, after, strict=True):
        rows.append([record.video, record.prompt, f"{a:.4f}", f"{b:.4f}", f"{b - a:+.4f}"])
    return rows


def _columns(rated: Sequence[RatedVideo], config: RewardConfig) -> dict[str, list[float]]:
    """Ratings by axis, and first of all their mean over the axes."""
    version = VERSIONS[config.version]
    columns = {"overall": [overall(record.scores, version) for record in rated]}
    for axis in [*version.axes, "final"]:
        if values := [record.scores[axis] for record in rated if axis in record.scores]:
            columns[axis] = values
    return columns
