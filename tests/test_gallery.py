"""Pages of the worst videos: bounded, escaped, and clear about what they leave out."""

from pathlib import Path

import numpy as np
import pytest

from sat_ssvae.data.skips import Skip
from sat_ssvae.evaluation import gallery
from sat_ssvae.evaluation.gallery import Gallery, clips_shown, scores_in_words, write_gallery
from sat_ssvae.evaluation.moments import Exhibit
from sat_ssvae.pages.clips import ClipCell, ClipRow, film

from .parsed_page import Parsed

HOSTILE = "<script>alert(1)</script>"


def written(folder, numbers, **changes):
    picture = film(np.zeros((2, 8, 8, 3), np.uint8))
    values = {
        "title": "Videos",
        "meaning": HOSTILE,
        "rows": [ClipRow(HOSTILE, [ClipCell("x", picture)])],
        "order": "all 1.",
        "header": ["video", "PSNR, dB"],
        "numbers": numbers,
        "csv": folder / "scores.csv",
        "command": f"sat-ssvae '{HOSTILE}'",
        "facts": {"autoencoder": HOSTILE},
    }
    return Parsed(write_gallery(folder / "page.html", Gallery(**{**values, **changes})).read_text())


def test_text_is_escaped_and_what_was_left_out_is_listed(tmp_path):
    page = written(tmp_path, [[HOSTILE, "3"]], skipped=[Skip("broken.mp4", "truncated", HOSTILE)])
    assert sum(tag == "script" for tag, _ in page.tags) == 1 and page.text.count(HOSTILE) == 6
    assert "1 left out" in page.text and "broken.mp4 truncated" in page.text
    assert [source for source in page.sources if not source.startswith("data:")] == ["scores.csv"]


def test_a_long_table_is_cut_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "ROWS", 3)
    page = written(tmp_path, [[f"video{number}", str(number)] for number in range(5)])
    assert "video2" in page.text and "video3" not in page.text and "The first 3 of 5 videos" in page.text


def test_a_page_without_clips_has_no_player(tmp_path):
    page = written(tmp_path, [["a", "1"]], rows=[])
    assert not any(attributes.get("class", "").startswith("player") for _, attributes in page.tags)


@pytest.mark.parametrize(
    ("count", "total", "scored", "words"),
    [
        (3, 3, True, "the lowest PSNR first, all 3."),
        (3, 3, True, "frames of each video with the largest error"),
        (24, 1000, True, "the lowest PSNR first, the lowest 24 of 1,000, so that the page stays small."),
        (24, 30, False, "in no order, the first 24 of 30, so that the page stays small."),
        (0, 3, True, "kept no pictures"),
    ],
)
def test_how_many_are_shown_and_why(count, total, scored, words):
    assert words in clips_shown([Exhibit("x", 0, {}, {})] * count, total, scored=scored)


def test_scores_in_words():
    assert (
        scores_in_words({"psnr": 23.104, "ssim": 0.7124, "stlpips": 0.2}) == "PSNR 23.10 dB, SSIM 0.712, ST-LPIPS 0.200"
    )


def test_paths_of_other_folders_are_linked_by_name(tmp_path):
    page = written(tmp_path, [["a", "1"]], csv=Path("some/where/scores.csv"))
    assert "some/where/scores.csv" in page.text and "scores.csv" in page.sources
