import io
import json
import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sat_ssvae.data.files import VideoError
from sat_ssvae.data.video_io import write_video
from sat_ssvae.errors import UserError
from sat_ssvae.evaluation.unified_reward import (
    VERSIONS,
    UnparsableAnswer,
    chat_messages,
    overall,
    parse_answer,
    read_instruction,
    video_frames,
)

V1, V2 = VERSIONS[1], VERSIONS[2]
LINES_V1 = [f"{words} (1-4): 3" for words in V1.axes.values()]


def levels(frames):
    return [round(sum(Image.open(io.BytesIO(frame)).getpixel((5, 5))) / 3) for frame in frames]


def test_frames_run_evenly_from_the_first_to_the_last(tmp_path):
    ramp = torch.linspace(-0.9, 0.9, 46).view(1, 46, 1, 1).expand(3, 46, 32, 48)
    write_video(tmp_path / "ramp.mp4", ramp, fps=24)
    frames = video_frames(tmp_path / "ramp.mp4", V2)
    assert len(frames) == 16
    assert {Image.open(io.BytesIO(frame)).size for frame in frames} == {(48, 32)}
    every_third = [(ramp[0, 3 * k, 0, 0].item() + 1) * 127.5 for k in range(16)]
    assert levels(frames) == pytest.approx(every_third, abs=3)
    old = video_frames(tmp_path / "ramp.mp4", V1)
    assert len(old) == 8 and {Image.open(io.BytesIO(frame)).size for frame in old} == {(512, 512)}


def test_a_video_shorter_than_the_number_of_frames_repeats_some(tmp_path):
    write_video(tmp_path / "short.mp4", torch.linspace(-0.9, 0.9, 3).view(1, 3, 1, 1).expand(3, 3, 32, 32), fps=8)
    shown = levels(video_frames(tmp_path / "short.mp4", V2))
    assert len(shown) == 16 and shown == sorted(shown) and len({round(level, -1) for level in shown}) == 3


def test_a_broken_video_is_a_video_error(tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    with pytest.raises(VideoError, match="not a video"):
        video_frames(tmp_path / "broken.mp4", V2)


def test_messages_hold_the_frames_then_the_text_that_ends_with_the_caption():
    (message,) = chat_messages([b"one", b"two"], "a dog {runs}", V2.instruction)
    *images, text = message["content"]
    assert message["role"] == "user"
    assert [image["image_url"]["url"] for image in images] == [f"data:image/jpeg;base64,{d}" for d in ("b25l", "dHdv")]
    assert text["text"].endswith("Text Caption: a dog {runs}")


@pytest.mark.parametrize("version", [V1, V2], ids=["v1", "v2"])
def test_the_instruction_names_every_axis_as_the_parser_expects_it(version):
    """Whoever fills in the lines that the instruction asks for is understood."""
    filled = "\n".join(f"{line} 2.5" if line.endswith(":") else line for line in version.instruction.splitlines())
    assert set(version.axes) <= set(parse_answer(filled, version))
    with pytest.raises(UnparsableAnswer):
        parse_answer(version.instruction, version)


@given(st.lists(st.decimals(1, 5, places=4), min_size=3, max_size=3), st.sampled_from(["{}", "**{}**", "- {}\n"]))
def test_ratings_are_found_in_any_order_and_dress(ratings, dress):
    lines = [f"{name} Score (1-5): {value}" for name, value in zip(V2.axes.values(), ratings, strict=True)]
    scores = parse_answer("I see a video.\n" + "\n".join(dress.format(line) for line in reversed(lines)), V2)
    assert scores == dict(zip(V2.axes, map(float, ratings), strict=True))
    assert overall(scores, V2) == pytest.approx(sum(map(float, ratings)) / 3)


@pytest.mark.parametrize(
    ("answer", "scores"),
    [
        ("**Alignment Score (1-5):** 2.4036\n**Physics Score (1-5):** 3\n**Style Score (1-5):** 4.5", (2.4036, 3, 4.5)),
        ("alignment: 1/5, physics: 2/5, style: 3/5", (1, 2, 3)),
        ("Alignment Score (1–5): 1\nPhysics Score (1-5): 2\nStyle Score (1-5): 3\nStyle Score (1-5): 5", (1, 2, 5)),
    ],
)
def test_answers_of_version_2(answer, scores):
    assert tuple(parse_answer(answer, V2).values()) == scores


def test_answers_of_version_1():
    scores = parse_answer("\n".join([*LINES_V1, "Final Score: 7.25"]), V1)
    assert scores == dict.fromkeys(V1.axes, 3.0) | {"final": 7.25}
    assert overall(scores, V1) == 3  # the final score is not part of it
    assert parse_answer("\n".join([*LINES_V1, "Final Score: good"]), V1) == dict.fromkeys(V1.axes, 3.0)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "What a lovely video!",
        "Alignment Score (1-5): 3\nPhysics Score (1-5): 3",
        "Alignment Score (1-5): 3\nPhysics Score (1-5): nan\nStyle Score (1-5): 3",
        "Alignment Score (1-5): 3\nPhysics Score (1-5): 0.5\nStyle Score (1-5): 3",
        "Alignment Score (1-5): 3\nPhysics Score (1-5): 50\nStyle Score (1-5): 3",
        "Alignment Score (1-5): 3\nPhysics Score (1-5): -3\nStyle Score (1-5): 3",
        "Alignment: 3/10\nPhysics: 3/10\nStyle: 3/10",  # another scale
        '{"Alignment": 3, "Physics": null, "Style": 3}',
        "Alignment Score (1-10): 4\nPhysics Score (1-10): 4\nStyle Score (1-10): 4",
        "Alignment Score (out of 10): 4\nPhysics Score [0-100]: 4\nStyle Score (0-5): 4",
        "Alignment: 4 of 10\nPhysics: 4 of 10\nStyle: 4 of 10",
        "Alignment: 4%\nPhysics: 4 %\nStyle: 4%",
        "Alignment: 3-4\nPhysics: 3\nStyle: 3",
        "Alignment: 3 - 4 out of 5\nPhysics: 3\nStyle: 3",
        "Alignment: 3 to 4 points\nPhysics: 3\nStyle: 3",
        "Alignment: 3½\nPhysics: 3\nStyle: 3",
        "Alignment: 3\nPhysics: 3\nStyle: 3D animation",
        "1. Alignment Score (1-5):\n2. Physics Score (1-5): 3\n3. Style Score (1-5): 4",  # 2 is no rating
        "| Axis | Frame 1 | Score |\n|---|---|---|\n| Alignment | 1 | n/a |\n| Physics | 1 | 2 |\n| Style | 1 | 4 |",
        "| Axis | Rating (1-10) |\n|---|---|\n| Alignment | 3.5 |\n| Physics | 2.5 |\n| Style | 4 |",
        "| Axis | Score / 10 |\n|---|---|\n| Alignment | 3.5 |\n| Physics | 2.5 |\n| Style | 4 |",
        "Alignment Score: 3.5 (out of 10)\nPhysics Score: 2.5\nStyle Score: 4",
        "Alignment Score: 3.5 [1-10]\nPhysics Score: 2.5\nStyle Score: 4",
        "Alignment Score: 3.5 out of a possible 10\nPhysics Score: 2.5\nStyle Score: 4",
        "Alignment Score: 3.5 on a scale of 10\nPhysics Score: 2.5\nStyle Score: 4",
        "Alignment Score: 3.5 on a scale from 1 to 10\nPhysics Score: 2.5\nStyle Score: 4",
        "Alignment Score (1‑10): 3.5\nPhysics Score (1−10): 2.5\nStyle Score (1 through 10): 4",
        "Alignment Score: 3.5 or 4\nPhysics Score: 2.5\nStyle Score: 4",
        "Alignment Score: 3 -> 3.5\nPhysics Score: 2.5\nStyle Score: 4",
        "Alignment Score: 5 (initially), then 4\nPhysics Score: 2.5\nStyle Score: 4",
        "Alignment (4/10)\nPhysics Score: 2.5\nStyle Score: 4",
        "Alignment Score: 3 → 3.5\nPhysics Score: 2.5\nStyle Score: 4",
        "Misalignment: 1\nPhysics Score: 2.5\nStyle Score: 4",
        "Alignment Score (1-5): 3 1/2\nPhysics Score: 2.5\nStyle Score: 4",
        "Alignment Score: 4 stars out of 10\nPhysics Score: 2.5\nStyle Score: 4",
        "Alignment Score: 4 (on a 1-10 scale)\nPhysics Score: 2.5\nStyle Score: 4",
        "Alignment Score: 4 on a 10-point scale\nPhysics Score: 2.5\nStyle Score: 4",
        "Alignment Score: 4 (out of 10 possible)\nPhysics Score: 2.5\nStyle Score: 4",
        "Alignment (1-10) Score: 4\nPhysics Score: 2.5\nStyle Score: 4",
        "Alignment Score (adherence) (1-10): 4\nPhysics Score: 2.5\nStyle Score: 4",
        "| Axis | Weight | Result |\n|---|---|---|\n| Alignment | 2 | 4 |\n| Physics | 1 | 2.5 |\n| Style | 1 | 4 |",
    ],
)
def test_incomplete_answers_and_ratings_off_the_scale_are_refused(answer):
    with pytest.raises(UnparsableAnswer):
        parse_answer(answer, V2)


def test_an_instruction_of_the_users_own(tmp_path):
    own = tmp_path / "own.txt"
    own.write_text("Rate it.\nText Caption: {caption}")
    assert read_instruction(own).startswith("Rate it.")
    own.write_text("Rate it.")
    with pytest.raises(UserError, match=r"needs \{caption\}"):
        read_instruction(own)
    with pytest.raises(UserError, match="not a readable instruction"):
        read_instruction(tmp_path / "none.txt")


TABLE = "| Axis | Score | Why |\n|---|:-:|---|\n"
TABLE += "| **Alignment** (1-5) | 3.5 | 2 dogs |\n| Physics Score | `2.5` | ok |\n| Style | 4/5 | |"
WIDE = "Ratings:\n\n| Alignment | Physics | Style |\n| --- | --- | --- |\n| 3.5 | 2.5 | 4 |\n\nDone."


@pytest.mark.parametrize(
    "answer",
    [
        TABLE,
        WIDE,
        "| Alignment Score (1-5) | 3.5 |\n| Physics Score (1-5) | 2.5 |\n| Style Score (1-5) | 4 |",
        '```json\n{"Alignment Score": 3.5, "Physics Score": "2.5", "Style Score": 4}\n```',
        '{"scores": {"alignment_score": 3.5, "physics": {"reason": "1", "score": 2.5}, "style": "4/5"}}',
        "Alignment Score (1-5): 3.5/5\nPhysics Score (1-5): 2.5 / 5\nStyle Score (1-5): 4 out of 5",
        "Alignment Score（1-5）：3.5\nPhysics：2.5\nStyle rating: **4**",
        "Alignment Score (1 to 5, decimals allowed): 3,5\nPhysics Score = 2.5\n'Style': 4",
        "| # | Axis | Score |\n|---|---|---|\n| 1 | Alignment | 3.5 |\n| 2 | Physics | 2.5 |\n| 3 | Style | 4 |",
        "| Axis | Best | Score |\n|---|---|---|\n| Alignment | 5 | 3.5 |\n| Physics | 5 | 2.5 |\n| Style | 5 | 4 |",
        "| Axis | Scale | Score |\n| Alignment | 1-5 | 3.5 |\n| Physics | 1-5 | 2.5 |\n| Style | 1-5 | 4 |",
        "| Alignment | Physics | Style |\n|---|---|---|\n| 3.5/5 | 2.5/5 | 4/5 |\n| fine | weak | good |",
        '{"Alignment": {"why": "2 dogs", "score": 3.5,}, "Physics": {"score": 2.5}, "Style": {"score": 4},}',
        '[{"aspect": "Alignment", "why": "2 dogs", "score": 3.5}, {"aspect": "Physics", "why": "bad", "score": 2.5}, '
        '{"aspect": "Style", "why": "", "score": 4}]',
        "### 1. Alignment (3.5/5)\nA dog.\n**Physics (2.5/5):** bad.\nStyle [4 / 5] is good",
        '{"Alignment": {"value": 3.5}, "Physics": {"value": 2.5}, "Style": {"value": 4}}',
        "Alignment Score (1-5): 3.5\nPhysics Score (1-5): 2.5\nStyle Score (1-5): 4\nPhysics: 2 balls; style is 1960s.",
    ],
)
def test_ratings_in_tables_json_and_fractions(answer):
    assert parse_answer(f"Here they are.\n{answer}\nThat is all.", V2) == {"alignment": 3.5, "physics": 2.5, "style": 4}


DRESSES = (
    "- {} Score (1-5) - {}",
    "{} Score (1-5) – {}",
    "{} Score [1-5]: [{}]",
    "The {} score is {}.",
    "<b>{} Score (1-5):</b> {}<br>",
    "{} Score → {}",
    "### {} Score (1-5)\n{}\n",
    "<{0}_score>{1}</{0}_score>",
    "{} Score: $\\boxed{{{}}}$",
    "{} Score: ★★★ {}",
    "{} Score (1-5): ~{}",
    "{} | {}",
    "{}\t{}",
    "{} Score (1-5): <{}>",
    "{} Score (1-5): {}\n- 2 dogs",
    "{} Score (1-5): {} of 5",
    "{} Score {};",
    "{}: Score +{}",
    "- {}\n  - Score: {}",
    "{}:\n  score: {}",
    "{} Score (1-5): {}pts",
    "{} Score (1-5): {} points",
    "{} Score (1.0-5.0): {}",
    "{} Score (weight 1/3): {}",
    "{} Score (1-5): {} - 15 things are odd",
    "{} Score: {} (out of 5)",
    "{} Score: {} on a scale of 1 to 5",
    "{} Score: {} out of a possible 5",
    "{} Score (1‑5): {}",
    "{} Score: {} (3 of 4 dogs)",
    "{}: \u200b{}",
    "{}: \ufeff{}",
    "{} Score (1-5): ~~1~~ {}",
    "{} Score (1-5): <|begin_of_box|>{}<|end_of_box|>",
    "{}Score: {}",
    "{} (as the caption says) Score: {}",
    "{} Score (as the caption says) (1-5): {}",
    "[{} Score (1-5)]: {}",
    "{} Score: {} stars out of 5",
    "{} Score: {} on a 5-point scale",
    "| {} | {} | 2 dogs |",
)


@pytest.mark.parametrize("dress", DRESSES)
def test_ratings_in_less_usual_dress(dress):
    lines = [dress.format(name, value) for name, value in (("Alignment", "3.5"), ("Physics", "2.5"), ("Style", "4"))]
    assert parse_answer("\n".join(lines), V2) == {"alignment": 3.5, "physics": 2.5, "style": 4}


@pytest.mark.parametrize(
    "answer",
    [
        "Alignment Score：３．５\nPhysics Score：２．５\nStyle Score：４",
        '{"alignment_score_1_5": 3.5, "physics_score_1_5": 2.5, "style_score_1_5": 4}',
        '{"ratings": [{"name": "Alignment Score", "rating": 3.5}, {"name": "Physics", "rating": 2.5}, '
        '{"axis": "Style", "score": 4}]}',
        "Alignment: 3.5 | Physics: 2.5 | Style: 4",
        "Alignment: 3.5\nPhysics: 2.5\nStyle: 4\nMisalignment: 5\nMetaphysics: 2\nLifestyle: 1",
        "| Axis | Frame 1 | Average |\n| Alignment | 1 | 3.5 |\n| Physics | 2 | 2.5 |\n| Style | 3 | 4 |",
        "Alignment - 1 to 5: 3.5\nAlignment Score: 3.5\nPhysics: 2.5\nStyle: 1-5\nStyle: 4",
    ],
)
def test_ratings_in_full_width_lists_and_ranges(answer):
    assert parse_answer(answer, V2) == {"alignment": 3.5, "physics": 2.5, "style": 4}


@pytest.mark.parametrize(
    "stuck", ["\\__", " *_", "Alignment ", '{"a":', "{", "|", "★ ", "Alignment Score:-", "Alignment (", "\n", "<"]
)
def test_a_model_that_repeats_itself_costs_no_time(stuck):
    started = time.process_time()
    with pytest.raises(UnparsableAnswer):
        parse_answer("Alignment Score: " + stuck * (8000 // len(stuck)), V2)
    assert time.process_time() - started < 5


def test_json_keys_of_version_1():
    scores = {"visual_quality": 3, "temporal_consistency": 2, "dynamic_degree": 1, "text_to_video_alignment": 4}
    answer = json.dumps(scores | {"factual_consistency": 3.5, "final_score": 7})
    assert list(parse_answer(answer, V1).values()) == [3, 2, 1, 4, 3.5, 7]
