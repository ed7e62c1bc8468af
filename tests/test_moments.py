"""The worst moment of a video, and which videos' moments are kept."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sat_ssvae.evaluation import moments
from sat_ssvae.evaluation.moments import ERROR_RANGE, FRAMES, RAMP, Moments, WorstMoment, error_map


def video(frames, wrong=(), size=(24, 32)):
    """Gray frames that become brighter, uint8; `wrong` ones are far too bright."""
    clip = np.full((frames, *size, 3), 60, np.uint8) + np.arange(frames, dtype=np.uint8)[:, None, None, None]
    clip[list(wrong)] += 100
    return clip


def moment(frames, wrong, pieces=()):
    found = WorstMoment("original", ["own"])
    views = {"original": video(frames), "own": video(frames, wrong)}
    ends = [0, *sorted(pieces), frames]
    for start, end in itertools.pairwise(ends):
        found.add({name: clip[start:end] for name, clip in views.items()})
    return found.exhibit("name")


@given(st.lists(st.integers(0, 30), max_size=5))
def test_the_worst_frames_are_found_however_the_video_arrives(pieces):
    found = moment(30, range(17, 20), pieces)
    assert found.frame == 16 and found.films["own"].frames == found.errors["own"].frames == FRAMES
    assert found == moment(30, range(17, 20))


def test_a_short_video_is_shown_whole():
    found = moment(3, [])
    assert (found.frame, found.films["original"].frames) == (0, 3)


def test_without_an_original_there_is_no_error():
    found = WorstMoment("degraded", ["restored"], scored=False)
    found.add({"degraded": video(9), "restored": video(9, [4])})
    assert found.exhibit("x").errors == {} and set(found.exhibit("x").films) == {"degraded", "restored"}


def test_an_error_map_is_of_luma_and_its_scale_ends():
    original = np.zeros((1, 1, 4, 3), np.uint8)
    other = original.copy()
    other[0, 0, 1], other[0, 0, 2], other[0, 0, 3] = 255, (0, 16 / 0.587 + 0.5, 0), ERROR_RANGE
    black, most, half, end = error_map(original, other)[0, 0].tolist()
    assert tuple(black) == RAMP[0] and tuple(most) == tuple(end) == RAMP[-1]
    assert np.abs(np.array(half) - RAMP[2]).max() <= 4
    assert (error_map(other, original) == error_map(original, other)).all()


def test_only_the_worst_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(moments, "SHOWN", 3)
    kept = Moments(tmp_path / "gallery")
    scores = {"a": 30.0, "b": 20.0, "deeper/c": 25.0, "d": 40.0, "e": 10.0, "f": 35.0}
    for name, score in scores.items():
        found = WorstMoment("original", ["own"])
        found.add({"original": video(8), "own": video(8, [1])})
        kept.add(name, score, found)
    assert [one.name for one in kept.exhibits()] == ["e", "b", "deeper/c"]
    files = {path.relative_to(tmp_path / "gallery").as_posix() for path in tmp_path.rglob("*.json")}
    assert files == {"e.json", "b.json", "deeper/c.json"}
    later = Moments(tmp_path / "gallery")  # a run that continues
    for name, score in scores.items():
        later.add(name, score)
    assert later.exhibits() == kept.exhibits()
    monkeypatch.setattr(moments, "PAGE_BYTES", 1)
    assert [one.name for one in later.exhibits()] == ["e"]


def test_videos_whose_pictures_are_gone_are_left_out(tmp_path):
    kept = Moments(tmp_path)
    kept.add("gone", 3.0)
    assert kept.exhibits() == []


@pytest.mark.parametrize("width", [8, 2000])
def test_films_are_of_bounded_width(width):
    found = WorstMoment("original", ["own"])
    found.add({"original": video(2, size=(8, width)), "own": video(2, [0], size=(8, width))})
    assert found.exhibit("x").films["own"].width == min(width, moments.WIDTH)
