"""`sat-ssvae reward`: score generated videos with a UnifiedReward server."""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config import load_config
from ._options import add_overrides

if TYPE_CHECKING:
    from ..evaluation.reward import RewardConfig, Scored
    from ..metrics.intervals import MeanInterval


def add(commands: Any) -> None:
    """Add the command's parser."""
    command = commands.add_parser("reward", help="score generated videos with a UnifiedReward server")
    command.set_defaults(run=run)
    command.add_argument("--video_dir", type=Path, required=True, metavar="DIR", help="folder of generated videos")
    command.add_argument(
        "--against", type=Path, metavar="DIR", help="baseline: a folder with videos of the same names and prompts"
    )
    command.add_argument(
        "--prompts", type=Path, metavar="JSON", help='{"video name": "prompt"} (default: NAME.txt beside each video)'
    )
    command.add_argument("--batch_size", type=int, default=4, metavar="N", help="requests in flight (default: 4)")
    add_overrides(command)


def run(options: argparse.Namespace) -> None:
    """Score one folder or two, write the answers and the summary into them, print the summary."""
    from ..evaluation.reward import RewardConfig, list_videos, paired_differences, score_videos

    config = load_config(RewardConfig, None, [f"batch_size={options.batch_size}", *options.overrides])
    folders = [options.video_dir] + ([options.against] if options.against else [])
    videos = {folder: list_videos(folder, options.prompts) for folder in folders}
    answers = f"unified_reward_v{config.version}"
    scored = {}
    for folder in folders:
        scored[folder] = score_videos(videos[folder], folder / f"{answers}.jsonl", config)
        _report(scored[folder], folder / f"{answers}.json", config)
    if options.against:
        differences = paired_differences(scored[options.against], scored[options.video_dir], config)
        count = differences["overall"].count
        sys.stdout.write(f"\n{options.video_dir} minus {options.against}, {count} pairs\n{_table(differences)}")


def _report(scored: "Scored", path: Path, config: "RewardConfig") -> None:
    """Write the summary of a folder to `path` and print it."""
    from ..evaluation.reward import summarize

    summary = summarize(scored, config)
    document = {
        "model": config.model,
        "version": config.version,
        "videos": summary.videos,
        "scores": {axis: asdict(mean) for axis, mean in summary.scores.items()},
        "unparsable": summary.unparsable,
        "failed": summary.failed,
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(
        f"{path.parent}: {summary.videos} videos, UnifiedReward {config.version}\n{_table(summary.scores)}"
    )
    for name in summary.unparsable:
        sys.stdout.write(f"  no ratings in the answer for {name}, see {path.with_suffix('.jsonl')}\n")
    for name, reason in summary.failed.items():
        sys.stdout.write(f"  {name} failed: {reason}\n")


def _table(scores: "Mapping[str, MeanInterval]") -> str:
    return "".join(f"  {axis.replace('_', ' '):22} {mean}\n" for axis, mean in scores.items())
