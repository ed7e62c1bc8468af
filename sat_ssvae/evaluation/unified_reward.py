"""What UnifiedReward is asked about a video, and how its answer is read; `reward_client.py` sends it.

    messages = chat_messages(video_frames(path, VERSIONS[2]), "a dog runs along a beach", VERSIONS[2].instruction)
    scores = parse_answer(answer, VERSIONS[2])       # {"alignment": 2.4, "physics": 3.1, "style": 2.9}

UnifiedReward (Wang et al., arXiv 2503.05236, models CodeGoat24/UnifiedReward*) is a vision-language model that vLLM or
SGLang serve behind the OpenAI chat API. Version 2 rates three axes from 1 to 5, version 1 five dimensions from 1 to 4
and a final score from 1 to 10. The instructions here are worded for this package after the published answer format.
How the SSVAE paper rescaled its UnifiedReward of 26 to 48 is not known: no score from here compares with it.
"""

import base64
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from av.video.reformatter import VideoReformatter
from PIL import Image

from ..data.containers import open_video
from ..data.images import encode_jpeg
from ..data.pictures import upright_rgb
from ..data.video_io import nearest_frames, probe
from ..errors import UserError

CAPTION_FIELD = "{caption}"


class UnparsableAnswer(ValueError):
    """The model's answer holds no complete set of ratings."""


@dataclass(frozen=True)
class RewardVersion:
    """One generation of UnifiedReward models: what it sees, what it is asked, what it answers."""

    number: int
    axes: Mapping[str, str]
    """Name of each rated axis in our tables -> the words in front of `(1-5): 2.4` in the answer."""
    scale: tuple[int, int]
    """Lowest and highest rating of an axis."""
    num_frames: int
    """Frames of a video, evenly spaced from first to last."""
    frame_size: tuple[int, int] | None
    """(height, width) that frames are scaled to; None sends them as they are."""
    instruction: str
    """Text after the frames, with `{caption}` where the caption belongs."""


_V1_AXES = {
    "visual_quality": "Visual Quality",
    "temporal_consistency": "Temporal Consistency",
    "dynamic_degree": "Dynamic Degree",
    "text_alignment": "Text-to-Video Alignment",
    "factual_consistency": "Factual Consistency",
}
_V2_AXES = {"alignment": "Alignment", "physics": "Physics", "style": "Style"}

_V1_INSTRUCTION = """\
The images above are frames, in order, of one video that a model generated from a caption. Rate the video.

Give each of these five dimensions a rating from 1 (bad) to 4 (perfect):
- Visual Quality: sharpness, resolution, brightness and colour of the frames.
- Temporal Consistency: objects and background stay the same from frame to frame.
- Dynamic Degree: how much moves, where the caption asks for motion.
- Text-to-Video Alignment: the video shows what the caption says.
- Factual Consistency: the video agrees with common sense and facts.
Then give the whole video a final score from 1 to 10.

Answer in these lines, with a number after each colon, and nothing else:
Visual Quality (1-4):
Temporal Consistency (1-4):
Dynamic Degree (1-4):
Text-to-Video Alignment (1-4):
Factual Consistency (1-4):
Final Score:

Text Caption: {caption}"""

_V2_INSTRUCTION = """\
The images above are frames, in order, of one video that a model generated from a caption. Rate the video.

Give each of these three axes a rating from 1 to 5, decimals allowed:
- Alignment: objects, actions, scene and details of the video are those of the caption.
- Physics: motion, contacts, gravity and materials behave as in the world.
- Style: the video looks good; clear frames, coherent colours, the style that the caption asks for.

Answer in these lines, with a number after each colon, and nothing else:
Alignment Score (1-5):
Physics Score (1-5):
Style Score (1-5):

Text Caption: {caption}"""

VERSIONS: Mapping[int, RewardVersion] = MappingProxyType(
    {
        1: RewardVersion(1, _V1_AXES, (1, 4), 8, (512, 512), _V1_INSTRUCTION),
        2: RewardVersion(2, _V2_AXES, (1, 5), 16, None, _V2_INSTRUCTION),
    }
)


def video_frames(source: Path | bytes, version: RewardVersion) -> list[bytes]:
    """The frames that this version is shown, first and last of the video included, as JPEG files.

    A video with fewer frames shows some of them several times.

    Raises:
        VideoError: the file cannot be read to its end.
    """
    info = probe(source)
    last, parts = (info.frames - 1) / info.fps, max(version.num_frames - 1, 1)
    scaler = VideoReformatter()
    with open_video(source) as (container, stream):
        times = [last * part / parts for part in range(version.num_frames)]
        pictures = nearest_frames(container, stream, times, source)
        size = version.frame_size or (info.height, info.width)
        return [encode_jpeg(Image.fromarray(upright_rgb(picture, size, scaler))) for picture in pictures]


def chat_messages(frames: Sequence[bytes], caption: str, instruction: str) -> list[dict[str, Any]]:
    """The `messages` of a chat request: JPEG frames as base64 data URLs, then the instruction with the caption."""
    images = [
        {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{base64.b64encode(frame).decode()}"}}
        for frame in frames
    ]
    text = {"type": "text", "text": instruction.replace(CAPTION_FIELD, caption)}
    return [{"role": "user", "content": [*images, text]}]


def parse_answer(answer: str, version: RewardVersion) -> dict[str, float]:
    """The ratings in an answer by axis, and version 1's `final` where it is there.

    Understood are lines such as `**Alignment Score (1-5):** 2.40` or `Alignment: 4 out of 5`, rows or columns of a
    Markdown table, and JSON, whatever surrounds them. Of an axis that is rated several times (a model that thinks
    aloud) the last rating counts.

    Raises:
        UnparsableAnswer: an axis has no rating, or one outside of its scale.
    """
    low, high = version.scale
    text = _as_lines(answer)
    scores = {}
    for axis, words in version.axes.items():
        rating = _last_rating(words, version.scale, text)
        if rating is None or not low <= rating <= high:
            raise UnparsableAnswer(f"no rating from {low} to {high} for {words}")
        scores[axis] = rating
    final = _last_rating("Final", (1, 10), text)
    if version.number == 1 and final is not None and 1 <= final <= 10:
        scores["final"] = final
    return scores


def overall(scores: Mapping[str, float], version: RewardVersion) -> float:
    """Mean of the axes' ratings (version 1's final score, the less reliable part, is left out)."""
    return sum(scores[axis] for axis in version.axes) / len(version.axes)


def read_instruction(path: Path) -> str:
    """An instruction of the user's own, for example the one that a model card prints.

    Raises:
        UserError: not a readable text, or without `{caption}`.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a readable instruction ({error})") from None
    if CAPTION_FIELD not in text:
        raise UserError(f"{path}: the instruction needs {CAPTION_FIELD} where the caption belongs")
    return text


_NUMBER = r"([-+]?\d+(?:[.,]\d+)?)"
_UNITS = r"(?:points?|pts?|stars?|out|of)\b"
_AFTER = r"(?:\([^()\n]{0,40}\))?[^\S\n]*(?:,[^\S\n]*)?(?:but[^\S\n]+)?then\b"  # "5 (at first), then 4"
_RANGE = (  # but not "3 - 4 balls fall"
    rf"(?:[-=]>|[-–→]|to\b|or\b|{_AFTER})[^\S\n]*\d[\d.,]*(?![\d.,]|[^\S\n]+(?!{_UNITS})[A-Za-z])"
)
_WHOLE = (  # not the 3 of 3D, 3 %, 3 1/2 or 3-4
    rf"(?!\d|[.,]\d|(?!{_UNITS})[A-Za-z]|[^\S\n]*(?:%|{_RANGE})|[^\S\n]+\d+[/⁄]\d)"
)
_SCALE = r"(?:[(\[][^()\[\]\n]{0,80}[)\]]|\d+[ -]\d+)"  # (1-5), [1-5] or what is left of alignment_score_1_5
_TO = r"(?:[- ‐–—−~]|to|through|\.\.)"
_OUT_OF = r"(?:(?<!\d)/|(?:\bout )?\bof(?: a possible)?|max(?:imum|\.)?)\s?"
_ENDS = re.compile(  # of a scale
    rf"(\d+)(?:\.0+)?\s*{_TO}\s*(\d+)|{_OUT_OF}(\d+)(?!\d|\s?{_TO}\s?\d)|(\d+)[ -]point", re.IGNORECASE
)
_SPAN = rf"\d+\s?{_TO}\s?\d+"
_ON = rf"on an? (?:scale (?:of|from) (?:{_SPAN}|\d+)|(?:{_SPAN}|\d+)[ -](?:point )?scale)"
_NOTE = (  # of a scale, after a number
    rf"(?:(?:points?|pts?|stars?)\s)?(?:/\s?\d+|{_OUT_OF}\d+|[(\[]?{_ON}|"
    rf"[(\[](?:scale:? )?(?:{_OUT_OF}\d+|{_SPAN})(?: possible| points| scale)?[)\]])"
)
_FRACTION = r"[(\[]\s?\d(?:[.,]\d+)?\s?/\s?\d"  # as in "Style (4/5)"
_OPENED = r"[\s(\[{<]{0,4}"  # brackets around a number
_DECORATION = re.compile(  # Markdown with what it strikes out, LaTeX, tokens of models and the like
    r"\\[A-Za-z]*|~~[^~\n]*~~|<\|\w+\|>|[*_`\"'~≈★☆⭐$\u200b-\u200f\u2060\ufeff]"
)
_TITLES = ("name", "axis", "dimension", "criterion", "category", "aspect", "metric")
_RATINGS = ("score", "rating", "value", "average", "mark", "grade")
_FORMATTING = re.compile(r"</?(?:b|strong|i|em|u|br|p|li|span|code|h\d|td|th|tr|div)\b[^>]*>", re.IGNORECASE)
_TAG = re.compile(r"<(/?)([A-Za-z]\w*)[^<>]*>")
_TRAILING_COMMA = re.compile(r",(?=\s*[}\]])")
_LIST_ITEM = re.compile(r"[.)][^\S\n]+\S")  # what follows the number of one


def _last_rating(words: str, scale: tuple[int, int], text: str) -> float | None:
    """The last number after `words: `, None if there is none or it is one of another scale (`3/10`).

    Numbers after `words Score` or `words (1-5)` go before those after the mere words (`Physics: 2 balls collide`).
    """
    name = re.sub(r"[ -]", r"[\\s-]?", words)
    score = rf"(?P<remark>\s?{_SCALE})?[\s:-]{{0,5}}(?P<score>Score|Rating)"
    label = rf"(?<![A-Za-z]){name}(?:{score})?(?P<scale>(?:\s?{_SCALE}){{0,2}})\s?[)\]}}]?\s?"
    stop = rf"(?:[:=→\t]|[ ](?:-|–|—|is)[ ]|(?={_FRACTION})|(?(score)[\n ]|(?!)))"
    pattern = rf"{label}{stop}(?P<opened>{_OPENED}){_NUMBER}{_WHOLE}\s?(?P<note>{_NOTE})?"
    found = [
        match
        for match in re.finditer(pattern, text, re.IGNORECASE)
        if not ("\n" in match["opened"] and _LIST_ITEM.match(text, match.end()))
    ]
    found = [match for match in found if match["score"] or match["scale"]] or found
    if not found:
        return None
    number, note = found[-1].groups()[-2:]
    scales = found[-1]["remark"] or "", found[-1]["scale"], note or ""
    return float(number.replace(",", ".")) if all(_is_scale(written, scale) for written in scales) else None


def _is_scale(written: str, scale: tuple[int, int]) -> bool:
    """Whether a note such as `(1-5)`, `[out of 5]` or `/5` names this scale, or none."""
    ends = _ENDS.search(written)
    return ends is None or (ends[1] in (None, str(scale[0])) and (ends[2] or ends[3] or ends[4]) == str(scale[1]))


def _as_lines(answer: str) -> str:
    """The answer with its Markdown tables, JSON objects and tags as lines `name: value`, without decoration.

    Of spaces side by side one is left: a model that writes nothing else any more costs no time.
    """
    answer = unicodedata.normalize("NFKC", answer)  # digits and colons of full width
    lines: list[str] = []
    rows: list[list[str]] = []
    for line in [*answer.splitlines(), ""]:
        lines.append(_TAG.sub(lambda tag: "\n" if tag[1] else f"\n{tag[2]}: ", _FORMATTING.sub(" ", line)))
        if "|" in line:
            rows.append([cell.strip(" *_`") for cell in line.strip().strip("|").split("|")])
            continue
        lines += _table_lines(rows)
        rows = []
    text = _DECORATION.sub(" ", "\n".join([*lines, *_json_lines(answer)]))
    return re.sub(r"\s+", lambda space: next((kind for kind in "\n\t" if kind in space[0]), " "), text)


def _table_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """`name: rating` of each row, from the column with ratings; of a single row of numbers `head: number` as well."""
    rows = [row for row in rows if any(set(cell) - set("-: ") for cell in row)]
    head = [cell.lower() for cell in rows[0]] if rows else []
    rated = next((place for place, cell in enumerate(head) if place and any(word in cell for word in _RATINGS)), 0)
    scale = _ENDS.search(head[rated]) if rated else None
    note = f" ({scale[0]})" if scale else ""
    lines = []
    for row in rows:
        name = next((cell for cell in row if not re.match(_NUMBER, cell)), "")
        numbers = [cell for cell in row if re.match(_NUMBER, cell) and name in row[: row.index(cell)]]
        bare = [cell for cell in numbers if re.fullmatch(rf"{_NUMBER}\s?(?:{_NOTE})?", cell)] or numbers
        chosen = row[rated : rated + 1] if rated else bare if len(bare) == 1 else []  # of several, any may be a weight
        lines += [f"{name}: {cell}{note}" for cell in chosen if cell in numbers]
    with_numbers = [row for row in rows[1:] if any(re.match(_NUMBER, cell) for cell in row)]
    if len(with_numbers) == 1 and len(head) == len(with_numbers[0]):
        lines += [f"{name}: {cell}" for name, cell in zip(rows[0], with_numbers[0], strict=True)]
    return lines


def _json_lines(answer: str) -> list[str]:
    """Names and numbers of the outermost JSON objects in the answer; of `{"score": 3, ...}` its score."""
    lines: list[str] = []
    answer = _TRAILING_COMMA.sub("", answer)
    start = answer.find("{")
    while start >= 0:
        try:
            found, end = json.JSONDecoder().raw_decode(answer, start)
        except RecursionError:
            break
        except ValueError:
            end = start + 1
        else:
            lines += _named_values(found)
        start = answer.find("{", end)
    return lines


def _named_values(found: Mapping[str, Any]) -> list[str]:
    lines = []
    title = next((found[key] for key in found if key.lower() in _TITLES), None)
    for name, value in found.items():
        if isinstance(value, dict):
            rating = next((value[key] for key in value if key.lower() in _RATINGS), None)
            lines += [f"{name}: {rating}"] if rating is not None else _named_values(value)
        elif isinstance(value, list):
            lines += [line for part in value if isinstance(part, dict) for line in _named_values(part)]
        elif title is not None and name.lower() in _RATINGS:
            lines.append(f"{title}: {value}")
        else:
            lines.append(f"{name.replace('_', ' ')}: {value}")
    return lines
