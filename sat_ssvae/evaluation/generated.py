"""A folder of generated videos, and their prompts.

    for video in list_videos(Path("outputs"), prompts=Path("prompts.txt")): ...

A prompt comes from a caption (NAME.txt beside NAME.mp4, tables, see `data.captions`) or a JSON file {name: prompt}. For
the output of CogVideoX's sample_video.py (`3_a_red_car/0/000000.mp4`: number and words of the prompt, number of the
sample) it comes from the file of prompts that was sampled from, or from the folder's name if that is the whole prompt.
"""

import json
import re
from pathlib import Path

from ..data.captions import CaptionFinder
from ..data.containers import VIDEO_SUFFIXES
from ..data.folders import media_files
from ..data.images import is_image
from ..data.skips import printable
from ..errors import UserError
from .items import VideoItem, is_view

_SAMPLE = re.compile(r"(\d+)_(.*)/\d+/\d{6}")
"""Path of a sample of CogVideoX, without the suffix."""
_SAMPLE_LENGTH = 120
"""Characters of the prompt that CogVideoX keeps in the folder's name."""


def list_videos(folder: Path, prompts: Path | None) -> list[VideoItem]:
    """The folder's videos with their prompts as captions; names are paths in the folder without the suffix.

    Args:
        folder: is searched at any depth.
        prompts: a JSON object {name: prompt}, names with or without suffix, or the text file that CogVideoX sampled
            from, one prompt per line; None to look beside the videos.

    Raises:
        UserError: no folder, no video in it, prompts that cannot be read, or a video without one.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of videos")
    found = (path for path in media_files(folder) if path.is_file() and not is_image(path.suffix, path))
    paths = sorted(path for path in found if not is_view(path))
    if not paths:
        raise UserError(f"{folder}: no video in it (known: {', '.join(sorted(VIDEO_SUFFIXES))})")
    known = _read_prompts(prompts) if prompts else CaptionFinder(folder)
    return [_video(path, folder, known, prompts) for path in paths]


def _video(
    path: Path, folder: Path, known: dict[str, str] | list[str] | CaptionFinder, prompts: Path | None
) -> VideoItem:
    inside = path.relative_to(folder)
    name = inside.with_suffix("").as_posix()
    sample = _SAMPLE.fullmatch(name)
    if isinstance(known, dict):
        prompt = known.get(inside.as_posix()) or known.get(name, "")
        missing = f"add it to {prompts}"
    elif isinstance(known, list):
        prompt = _numbered_prompt(known, sample)
        missing = f"{prompts} has no line for it (lines belong to folders as CogVideoX names them: 0_the_first_prompt)"
    else:
        prompt = known.caption(path) or (_prompt_of_folder(sample[2]) if sample else "")
        missing = f"write it to {path.with_suffix('.txt')} or give --prompts"
    if not prompt:
        raise UserError(f"{path}: no prompt for this video; {missing}")
    return VideoItem(printable(name), path, prompt)


def _numbered_prompt(lines: list[str], sample: re.Match[str] | None) -> str:
    """The line with the sample's number, if the folder's name fits it."""
    if sample is None or int(sample[1]) >= len(lines):
        return ""
    prompt = lines[int(sample[1])].partition("@@")[0]  # of image to video: the prompt and its image
    return prompt if _folder_name(prompt) == sample[2] else ""


def _prompt_of_folder(words: str) -> str:
    return "" if len(words) >= _SAMPLE_LENGTH else words.replace("_", " ").strip()


def _folder_name(prompt: str) -> str:
    return prompt.replace(" ", "_").replace("/", "")[:_SAMPLE_LENGTH]


def _read_prompts(path: Path) -> dict[str, str] | list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() != ".json":
            return [line.strip() for line in text.splitlines()]
        prompts = json.loads(text)
    except (OSError, ValueError) as error:
        kind = "JSON" if path.suffix.lower() == ".json" else "text"
        raise UserError(f"{path}: not a readable {kind} file ({error})") from None
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise UserError(f'{path}: expected one JSON object {{"video name": "prompt", ...}}')
    return prompts
