"""A folder of generated videos, and their prompts.

    for video in list_videos(Path("outputs"), prompts=Path("prompts.txt")): ...

A prompt comes from a caption (NAME.txt beside NAME.mp4, tables, see `data.captions`), a JSON file {name: prompt} or a
table. For the output of CogVideoX's sample_video.py (`3_a_red_car/0/000000.mp4`: number and words of the prompt, number
of the sample) it comes from the file of prompts that was sampled from, or from the folder's name if that is the whole
prompt.
"""

import json
import re
from collections import Counter
from pathlib import Path

from ..data.caption_tables import UNREADABLE, Table, is_table, table_captions
from ..data.captions import CaptionFinder
from ..data.containers import VIDEO_SUFFIXES
from ..data.folders import media_files
from ..data.images import is_image
from ..data.skips import printable
from ..errors import UserError, one_line
from .items import VideoItem, is_view

_SAMPLE = re.compile(r"(\d+)_(.*)/\d+/\d{6}")
"""Path of a sample of CogVideoX, without the suffix."""
_SAMPLE_LENGTH = 120
"""Characters of the prompt that CogVideoX keeps in the folder's name."""
_MARK = "\ufeff"  # of byte order: CogVideoX takes it for part of the first prompt


def list_videos(folder: Path, prompts: Path | None) -> list[VideoItem]:
    """The folder's videos with their prompts as captions.

    Names are paths in the folder, without the suffix unless others differ in that alone.

    Args:
        folder: is searched at any depth.
        prompts: a JSON object {name: prompt}, names with or without suffix, a table (CSV, JSON lines, ...), or the text
            file that CogVideoX sampled from, one prompt per line; None to look beside the videos.

    Raises:
        UserError: no folder, no video in it, prompts that cannot be read, or a video without one.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder of videos")
    found = (path for path in media_files(folder) if path.is_file() and not is_image(path.suffix, path))
    paths = sorted(path for path in found if not is_view(path))
    if not paths:
        raise UserError(f"{folder}: no video in it (known: {', '.join(sorted(VIDEO_SUFFIXES))})")
    known = _read_prompts(prompts, folder) if prompts else CaptionFinder(folder)
    videos = [_video(path, folder, known, prompts) for path in paths]
    counts = Counter(video.name for video in videos)
    return [
        one._replace(name=one.name + path.suffix) if counts[one.name] > 1 else one
        for one, path in zip(videos, paths, strict=True)
    ]


def _video(path: Path, folder: Path, known: Table | list[str] | CaptionFinder, prompts: Path | None) -> VideoItem:
    name = path.relative_to(folder).with_suffix("").as_posix()
    sample = _SAMPLE.fullmatch(name)
    if isinstance(known, Table):
        prompt = str(known.fields(path, by_name=True).get("caption", ""))
        missing = f"add it to {prompts}"
    elif isinstance(known, list):
        prompt = _numbered_prompt(known, sample)
        missing = f"{prompts} has no line for it (lines belong to folders as CogVideoX names them: 0_the_first_prompt)"
    else:
        prompt = known.caption(path) or (_prompt_of_folder(sample[2]) if sample else "")
        missing = f"write it to {path.with_suffix('.txt')} or give --prompts"
    if not prompt.strip():
        raise UserError(f"{path}: no prompt for this video; {missing}")
    return VideoItem(printable(name), path, prompt)


def _numbered_prompt(lines: list[str], sample: re.Match[str] | None) -> str:
    """The line with the sample's number, if the folder's name fits it."""
    if sample is None or int(sample[1]) >= len(lines):
        return ""
    prompt = lines[int(sample[1])].partition("@@")[0]  # of image to video: the prompt and its image
    return prompt.lstrip(_MARK) if _folder_name(prompt) == sample[2] else ""


def _prompt_of_folder(words: str) -> str:
    return "" if len(words) >= _SAMPLE_LENGTH else words.lstrip(_MARK).replace("_", " ").strip()


def _folder_name(prompt: str) -> str:
    return prompt.replace(" ", "_").replace("/", "")[:_SAMPLE_LENGTH]


def _read_prompts(path: Path, folder: Path) -> Table | list[str]:
    if not is_table(path):
        try:
            return [line.strip() for line in path.read_text(encoding="utf-8").split("\n")]
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: not a readable text file ({error})") from None
    try:
        prompts = json.loads(path.read_text(encoding="utf-8-sig")) if path.suffix.lower() == ".json" else None
        if isinstance(prompts, dict) and all(isinstance(text, str) for text in prompts.values()):
            rows = [(name, {"caption": text}) for name, text in prompts.items()]
        else:
            rows = list(table_captions(path))
    except UNREADABLE as error:
        kind = "JSON file" if path.suffix.lower() == ".json" else "table"
        raise UserError(f"{path}: not a readable {kind} ({one_line(error)})") from None
    if prompts != {} and not any("caption" in fields for _, fields in rows):
        raise UserError(
            f'{path}: expected one JSON object {{"video name": "prompt", ...}}, or a table of paths and captions'
        )
    return Table(folder, rows)
