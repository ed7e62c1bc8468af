"""Videos for a judge whose server is tests/chat_server.py, and what it says of them."""

import pytest
import torch

from sat_ssvae.config import parse_config
from sat_ssvae.data.video_io import write_video
from sat_ssvae.evaluation.generated import list_videos
from sat_ssvae.evaluation.reward import RewardConfig, score_videos

DOWN = "http://127.0.0.1:9"  # the discard port, on which nothing listens


def gray_videos(folder, levels):
    folder.mkdir(exist_ok=True)
    for number, level in enumerate(levels):
        write_video(folder / f"clip{number}.mp4", torch.full((3, 5, 32, 32), float(level)), fps=8)
        (folder / f"clip{number}.txt").write_text(f"gray number {number}\n")
    return folder


def config(server, **values):
    return parse_config(RewardConfig, {"url": server.url, "timeout": 60, "retries": 2} | values)


def score(folder, config):
    return score_videos(list_videos(folder, None), folder / "out.jsonl", config)


def ratings(scored):
    return [record.scores["style"] for record in scored.rated]


def expected(levels):
    return pytest.approx([3 + 2 * level for level in levels], abs=0.05)  # 1 + 4 * (level + 1) / 2
