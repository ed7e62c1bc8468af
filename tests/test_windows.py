import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_ssvae.evaluation.windows import Window, join, windows


def numbered(count):
    """Frames `1 1 1` that hold their number."""
    return [torch.full((1, 1, 1), float(number)) for number in range(count)]


@given(count=st.integers(1, 40), length=st.integers(1, 12), overlap=st.integers(0, 11))
def test_windows_that_are_left_alone_join_to_the_video(count, length, overlap):
    overlap = min(overlap, length - 1)
    parts = list(windows(numbered(count), length, overlap))
    assert all(part.video.shape == (1, length, 1, 1) for part in parts)
    joined = torch.cat(list(join(parts, overlap)), dim=1)
    torch.testing.assert_close(joined.flatten(), torch.arange(float(count)))
    assert sum(part.real for part in parts) == count + overlap * (len(parts) - 1)


def test_the_last_frame_fills_the_last_window():
    first, second = windows(numbered(6), 5, overlap=2)
    assert first.video.flatten().tolist() == [0, 1, 2, 3, 4] and first.real == 5
    assert second.video.flatten().tolist() == [3, 4, 5, 5, 5] and second.real == 3


def test_one_window_fades_into_the_next():
    parts = [Window(torch.full((2, 5, 1, 1), value), 5) for value in (0.0, 3.0, 6.0)]
    joined = torch.cat(list(join(parts, 2)), dim=1)
    assert joined[1].flatten().tolist() == pytest.approx([0, 0, 0, 1, 2, 3, 4, 5, 6, 6, 6])


def test_frames_are_read_as_they_are_needed():
    read = []
    frames = (read.append(number) or torch.zeros(1, 1, 1) for number in range(100))
    pieces = join(windows(frames, 10, 2), 2)
    next(pieces)
    assert len(read) == 10
    next(pieces)
    assert len(read) == 18


def test_no_frames_no_windows():
    assert list(windows([], 5, 1)) == [] and list(join([], 1)) == []
