"""The page of rated videos: clips with their ratings, the worst first, beside a baseline's where there is one.

write_reward_page(page, scored, config, command_line)
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data.skips import Skip
from ..data.video_io import probe, read_clip
from ..metrics.intervals import MeanInterval, written
from ..pages.clips import ClipCell, ClipRow, Film, film
from .gallery import Gallery, how_many, write_gallery
from .moments import SHOWN
from .reward import RatedVideo, RewardConfig, Scored, compare_pairs, pair_table, rating_table, summarize

_FRAMES = 16
_WIDTH = 320
_RATE = 4.0


def write_reward_page(page: Path, scored: Scored, config: RewardConfig, command_line: str) -> Path:
    """The page of one folder, the lowest overall rating first; returns its path."""
    rows = rating_table(scored.rated, config)
    ordered = sorted(range(1, len(rows)), key=lambda number: float(rows[number][2]))
    records = [scored.rated[number - 1] for number in ordered]
    means = summarize(scored, config)
    videos = f"{len(records):,} video{'s' * (len(records) != 1)}"
    meaning = f"{scored.folder}: mean overall rating {means['overall']} over {videos}."
    shown = [ClipRow(one.video, [_cell(scored, one)], one.prompt) for one in records[:SHOWN]]
    return _write(page, meaning, shown, rows, ordered, (scored, means, config, command_line))


def write_pairs_page(
    page: Path,
    baseline: Scored,
    candidate: Scored,
    pairs: Sequence[tuple[RatedVideo, RatedVideo]],
    config: RewardConfig,
    command_line: str,
) -> Path:
    """The page of pairs, those first whose candidate lost by most; returns its path."""
    rows = pair_table(pairs, config)
    ordered = sorted(range(1, len(rows)), key=lambda number: float(rows[number][-1]))
    comparison = compare_pairs(pairs, config)
    shown = [
        ClipRow(
            candidate_one.video,
            [
                _cell(baseline, baseline_one, f"baseline: {baseline.folder.name}"),
                _cell(candidate, candidate_one, f"candidate: {candidate.folder.name}"),
            ],
            f"{candidate_one.prompt} ({_overall(rows[number])})",
        )
        for number, (baseline_one, candidate_one) in ((number, pairs[number - 1]) for number in ordered[:SHOWN])
    ]
    meaning = _outcome(comparison.win_rate, candidate.folder, baseline.folder)
    return _write(page, meaning, shown, rows, ordered, (candidate, comparison.differences, config, command_line))


def _outcome(win_rate: MeanInterval, candidate: Path, baseline: Path) -> str:
    """Who wins, as far as the interval tells."""
    low, high = win_rate.low, win_rate.high
    conclusion = "too few pairs to say more"
    if low is not None and high is not None:
        conclusion = "better" if low > 0.5 else "worse" if high < 0.5 else "no difference that is beyond chance"
        conclusion = f"95 % interval {low:.0%} to {high:.0%}: {conclusion}"
    pairs = f"{win_rate.count:,} pair{'s' * (win_rate.count != 1)}"
    return f"{candidate} wins {win_rate.mean:.0%} of {pairs} against {baseline}, ties counted half ({conclusion})."


def _write(
    page: Path,
    meaning: str,
    shown: Sequence[ClipRow],
    rows: Sequence[Sequence[str]],
    ordered: Sequence[int],
    about: tuple[Scored, Mapping[str, MeanInterval], RewardConfig, str],
) -> Path:
    scored, means, config, command_line = about
    count = how_many(len(shown), len(ordered), "lowest")
    of_pairs = rows[0][-1] == "difference"
    facts = {axis.replace("_", " ") + " difference" * of_pairs: str(mean) for axis, mean in means.items()}
    gallery = Gallery(
        "Pairs of generated videos" if of_pairs else "Rated videos",
        meaning,
        shown,
        f"{_FRAMES} frames evenly over each video; the lowest {rows[0][-1] if of_pairs else 'overall rating'} first, "
        f"{count}.",
        _without_prompt(rows[0]),
        [_without_prompt(rows[number]) for number in ordered],
        page.with_suffix(".csv"),
        command_line,
        {"judge": f"{config.model}, UnifiedReward {config.version}", **facts},
        [Skip(name, "not rated", reason) for name, reason in scored.failures.items()],
        _RATE,
    )
    return write_gallery(page, gallery)


def _overall(row: Sequence[str]) -> str:
    """The ratings of a pair and their difference."""
    theirs, ours, difference = (float(text) for text in row[2:5])
    return f"overall {theirs:.2f} and {ours:.2f}: {written(difference, 2, signed=True)}"


def _without_prompt(row: Sequence[str]) -> list[str]:
    """A row of numbers: the prompts stand beside the clips and in the CSV file."""
    return [row[0], *row[2:]]


def _cell(scored: Scored, record: RatedVideo, title: str = "") -> ClipCell:
    """A video with its ratings."""
    source = next(video.source for video in scored.videos if video.name == record.video)
    ratings = ", ".join(f"{axis.replace('_', ' ')} {value:.2f}" for axis, value in record.scores.items())
    return ClipCell(title, _overview(source), ratings)


def _overview(source: Path | bytes) -> Film:
    """Some frames, evenly over a video."""
    info = probe(source)
    count = max(1, min(_FRAMES, info.frames))
    scale = min(1.0, _WIDTH / info.width)
    size = max(1, round(info.height * scale)), max(1, round(info.width * scale))
    clip = read_clip(source, start=0, num_frames=count, fps=count / info.duration, size=size)
    return film(clip.permute(1, 2, 3, 0).numpy(), max_width=_WIDTH)
