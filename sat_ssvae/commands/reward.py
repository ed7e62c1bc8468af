"""`sat-ssvae reward`: score generated videos with a UnifiedReward server."""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import load_config
from ..storage import write_json
from ._table import write_csv
from .grammar import add_command

if TYPE_CHECKING:
    from ..evaluation.reward import RewardConfig, Scored
    from ..metrics.intervals import MeanInterval


_NOTE = "; means, in brackets their 95 % intervals"


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = add_command(
        commands,
        "reward",
        run,
        "score generated videos with a UnifiedReward server",
        "sat-ssvae reward --video_dir samples/ --against baseline/ url=http://gpu-box:8080",
        settings="evaluation.reward:RewardConfig",
    )
    command.add_argument("--video_dir", type=Path, required=True, metavar="DIR", help="folder of generated videos")
    command.add_argument(
        "--against", type=Path, metavar="DIR", help="baseline: a folder with videos of the same names and prompts"
    )
    command.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help='{"video name": "prompt"} in NAME.json, a table (CSV, JSON lines, ...), or the text file that CogVideoX '
        "sampled from, one prompt per line (default: NAME.txt beside each video, or the names of CogVideoX's folders)",
    )
    # The article writes this one as a flag; like all settings it is key=value as well.
    command.add_argument("--batch_size", metavar="N", help="requests in flight")


def run(options: argparse.Namespace) -> None:
    """Score one folder or two, write ratings, tables, summary and page into them, print the summary."""
    from ..evaluation.generated import list_videos
    from ..evaluation.reward import RewardConfig, compare_pairs, pair_table, pair_up, score_videos
    from ..evaluation.reward_page import write_pairs_page, write_reward_page

    flags = [f"batch_size={options.batch_size}"] if options.batch_size else []
    config = load_config(RewardConfig, None, [*flags, *options.overrides])
    folders = [options.video_dir] + ([options.against] if options.against else [])
    videos = {folder: list_videos(folder, options.prompts) for folder in folders}
    name = f"unified_reward_v{config.version}"
    scored = {}
    for folder in folders:
        scored[folder] = score_videos(videos[folder], folder / f"{name}.jsonl", config)
        _report(scored[folder], folder / f"{name}.json", config)
    pages = [
        write_reward_page(folder / f"{name}.html", scored[folder], config, options.command_line) for folder in folders
    ]
    if options.against:
        pairs = pair_up(scored[options.against], scored[options.video_dir])
        comparison = compare_pairs(pairs, config)
        write_csv(options.video_dir / f"{name}_pairs.csv", pair_table(pairs, config))
        document = {"baseline": str(options.against), "pairs": len(pairs), **asdict(comparison)}
        write_json(options.video_dir / f"{name}_pairs.json", document)
        page, both = options.video_dir / f"{name}_pairs.html", (scored[options.against], scored[options.video_dir])
        pages.append(write_pairs_page(page, *both, pairs, config, options.command_line))
        sys.stdout.write(
            f"\n{options.video_dir} minus {options.against}, {len(pairs)} pairs{_NOTE}\n"
            f"{_table(comparison.differences)}  {'win rate':22} {comparison.win_rate}\n"
        )
    sys.stdout.write("".join(f"page: {page}\n" for page in pages))


def _report(scored: "Scored", path: Path, config: "RewardConfig") -> None:
    """Write the summary of a folder to `path` and its videos' ratings beside it; print the summary."""
    from ..evaluation.reward import rating_table, summarize

    means = summarize(scored, config)
    document = {
        "model": config.model,
        "version": config.version,
        "videos": len(scored.rated),
        "scores": {axis: asdict(mean) for axis, mean in means.items()},
        "failed": scored.failures,
    }
    write_json(path, document)
    write_csv(path.with_suffix(".csv"), rating_table(scored.rated, config))
    sys.stdout.write(
        f"{path.parent}: {len(scored.rated)} videos, UnifiedReward {config.version}{_NOTE}\n{_table(means)}"
    )
    for name, reason in scored.failures.items():
        sys.stdout.write(f"  {name} failed: {reason}\n")


def _table(scores: "Mapping[str, MeanInterval]") -> str:
    return "".join(f"  {axis.replace('_', ' '):22} {mean}\n" for axis, mean in scores.items())
