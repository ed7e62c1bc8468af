"""The building blocks of pages: whole, self-contained, escaped, and drawn from the numbers that they were given."""

import base64
import io
import json
import math
import re

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image

from sat_ssvae.pages.blocks import (
    Cell,
    Legend,
    MatrixGroup,
    MatrixRow,
    badge,
    box,
    bullets,
    code,
    command,
    details,
    facts,
    interval,
    matrix,
    paragraph,
    section,
    subheading,
    table,
)
from sat_ssvae.pages.charts import Axis, chart, charts, line
from sat_ssvae.pages.clips import ClipCell, ClipRow, film, player
from sat_ssvae.pages.document import document

from .parsed_page import Parsed

HOSTILE = '</script><script>alert("1")</script> & <b>'


def moving(seed=0, *, frames=7, size=(24, 32)):
    """A smooth clip, uint8 T H W 3."""
    y, x = np.mgrid[: size[0], : size[1]]
    waves = [np.sin(x / 9 + y / 7 + seed + t / 3 + np.arange(3)[:, None, None]) for t in range(frames)]
    return (128 + 100 * np.moveaxis(np.stack(waves), 1, -1)).astype(np.uint8)


def everything(legend):
    """A page with every block."""
    names = legend.names
    cells = [
        ClipCell(legend.label(name), [film(moving(0)), film(moving(1))], ["early", HOSTILE], name) for name in names
    ]
    rows = [ClipRow(HOSTILE, [ClipCell("original", film(moving())), *cells], "note")]
    curves = [
        line(legend, name, [1, 10, 100], [3.0, math.nan, 1.0], interval=([2, 2, 0.5], [4, 4, 2])) for name in names
    ]
    cell = Cell("2.6×", HOSTILE, "good", interval=interval(0.6, 0.9, 0.7, legend.colour(names[0])))
    groups = [
        MatrixGroup("", [MatrixRow(HOSTILE, [cell] * len(names))]),
        MatrixGroup("Folded", [MatrixRow("b", ["x"] * len(names))], folded=True),
    ]
    wipe = ClipCell("x", film(moving(0)), under=(HOSTILE, film(moving(1)), "own"))
    return [
        legend.toggles(HOSTILE),
        box(badge(HOSTILE, "bad"), paragraph(HOSTILE), command(f"run '{HOSTILE}'"), tone="warn"),
        section("Clips", player(rows, fps=8, steps=["1", "2"], legend=legend)),
        section("Numbers", matrix(legend, names, groups), facts({HOSTILE: HOSTILE})),
        section("Curves", subheading("x"), charts([chart(HOSTILE, curves, Axis(HOSTILE), Axis("y"))])),
        section("Table", table(["a", "b"], [["x", Cell("1.5", sort=2.0)]], sortable=True)),
        section("Wipe", player([ClipRow("w", [wipe])], fps=8)),
        details(HOSTILE, code(HOSTILE), bullets([HOSTILE])),
    ]


class TestDocument:
    def test_is_whole_and_needs_nothing_from_outside(self):
        page = Parsed(document("Title", everything(Legend(["a", "b"])), subtitle="sub", footer="foot"))
        assert page.sources and all(source.startswith("data:") for source in page.sources)
        assert "Title sub" in page.text and page.text.endswith("foot")
        for tag, attributes in page.tags:
            assert tag not in ("link", "iframe") or attributes["href"] == "data:,"
            assert not any(name.startswith("on") for name in attributes)

    def test_text_is_escaped_everywhere(self):
        page = document(HOSTILE, everything(Legend(["a", HOSTILE])), subtitle=HOSTILE, footer=HOSTILE)
        parsed = Parsed(page)
        assert "alert" not in "".join(parsed.data[-1:]) and "<script>alert" not in page
        assert parsed.text.count('alert("1")') > 10

    def test_style_and_script_load_nothing(self):
        page = document("Title", [])
        assert not re.search(r"@import|url\((?!#)|(?<!www\.w3\.org/2000)https?://(?!www\.w3\.org/2000/svg)", page)

    def test_an_empty_section_is_left_out(self):
        assert section("Nothing") == section("Nothing", "") == Markup()


class TestLegend:
    def test_colours_are_by_position(self):
        legend = Legend(["a", "b", *"cdefghi"])
        assert legend.colour("a") != legend.colour("b") and legend.colour("i") == legend.colour("a")
        assert "<script" not in Legend([HOSTILE]).label(HOSTILE)

    def test_names_are_known_and_different(self):
        with pytest.raises(ValueError, match="two series have one name"):
            Legend(["a", "a"])
        with pytest.raises(ValueError, match="no series is named 'b'"):
            Legend(["a"]).index("b")


class TestFilm:
    @pytest.mark.parametrize("frames", [1, 2, 7, 49])
    def test_holds_every_frame_in_its_place(self, frames):
        clip = moving(frames=frames)
        made = film(clip, quality=95)
        sheet = np.asarray(Image.open(io.BytesIO(made.webp)).convert("RGB")).astype(int)
        assert (made.height, made.width, made.frames) == (24, 32, frames)
        for number in range(frames):
            top, left = number // made.columns * 28 + 2, number % made.columns * 36 + 2
            shown = sheet[top : top + 24, left : left + 32]
            assert np.abs(shown - clip[number]).mean() < 6

    def test_a_picture_is_a_film_of_one_frame(self):
        assert film(moving()[0]).frames == 1

    def test_wide_ones_are_made_smaller(self):
        made = film(moving(size=(48, 64)), max_width=32)
        assert (made.height, made.width) == (24, 32)

    @pytest.mark.parametrize("bad", [np.zeros((3, 2, 8, 8), np.uint8), np.zeros((2, 8, 8, 3)), np.zeros((0, 8, 8, 3))])
    def test_other_shapes_and_types_are_refused(self, bad):
        with pytest.raises(ValueError, match="uint8 T H W 3"):
            film(bad)

    def test_too_many_frames_are_refused(self):
        with pytest.raises(ValueError, match="too many"):
            film(np.zeros((2, 17_000, 8, 3), np.uint8))


class TestPlayer:
    def test_shows_the_last_step_and_hides_the_others(self):
        legend = Legend(["a"])
        cell = ClipCell("a", [film(moving(0)), None, film(moving(1))], ["x", "y", "z"], "a")
        page = Parsed(player([ClipRow("clip", [cell])], fps=8, steps=["1", "2", "3"], legend=legend))
        images = [attributes for tag, attributes in page.tags if tag == "img"]
        assert [(one["data-step"], "hidden" in one) for one in images] == [("0", True), ("2", False)]
        for one in images:
            Image.open(io.BytesIO(base64.b64decode(one["src"].partition(",")[2]))).load()

    def test_a_still_has_no_play_button(self):
        page = Parsed(player([ClipRow("", [ClipCell("", film(moving(frames=1)))])], fps=8))
        assert not [tag for tag, _ in page.tags if tag in ("button", "input")]

    def test_one_film_for_each_step(self):
        with pytest.raises(ValueError, match="2 films for 3 steps"):
            player([ClipRow("", [ClipCell("", [film(moving())] * 2)])], fps=8, steps=["1", "2", "3"])

    def test_only_equal_clips_lie_over_each_other(self):
        with pytest.raises(ValueError, match="one size"):
            player([ClipRow("", [ClipCell("", film(moving()), under=("a", film(moving(size=(24, 40))), "b"))])], fps=8)


class TestChart:
    def data(self, *lines):
        made = chart("t", lines, Axis("x"), Axis("y"))
        (text,) = Parsed(made).data
        return json.loads(text)

    def test_values_arrive_and_gaps_are_null(self):
        legend = Legend(["a", "b"])
        got = self.data(line(legend, "b", [0, 1], [1.5, math.inf], interval=([1, math.nan], [2, 3])))
        (curve,) = got["lines"]
        assert (curve["y"], curve["low"], curve["high"], curve["series"]) == ([1.5, None], [1, None], [2, 3], 1)

    @pytest.mark.parametrize(
        ("x", "y", "logs"),
        [
            ([100, 1600], [4, 0.1], (True, True)),
            ([0, 100, 1600], [4, 1, 0.1], (True, True)),
            ([-1, 100, 1600], [4, 1, 0.0], (False, False)),
            ([100, 200], [1, 2], (False, False)),
        ],
    )
    def test_axes_are_logarithmic_where_values_span_much(self, x, y, logs):
        got = self.data(line(Legend(["a"]), "a", x, y))
        assert (got["log_x"], got["log_y"]) == logs

    def test_unequal_lengths_are_refused(self):
        with pytest.raises(ValueError, match="1 values for 2 places"):
            line(Legend(["a"]), "a", [1, 2], [1])


def test_a_matrix_folds_its_groups_and_hides_columns_by_series():
    legend = Legend(["a", "b"])
    groups = [MatrixGroup("Folded", [MatrixRow("m", ["1", "2"])], folded=True), MatrixGroup("Empty", [])]
    page = Parsed(matrix(legend, ["b", "a"], groups))
    bodies = [attributes for tag, attributes in page.tags if tag == "tbody"]
    assert bodies == [{"data-folded": "true"}]
    assert [attributes["data-series"] for tag, attributes in page.tags if tag == "td"] == ["1", "0"]
    assert "Folded (1 row)" in page.text and "Empty" not in page.text
