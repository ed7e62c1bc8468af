"""Videos whose pictures do not come evenly: screen recordings, phones in the dark, joined clips of two rates."""

import json
from fractions import Fraction

import av
import numpy as np
import pytest

from sat_ssvae.data import convert as convert_module
from sat_ssvae.data import lengths
from sat_ssvae.data.check import CheckConfig, check_data
from sat_ssvae.data.convert import PackConfig
from sat_ssvae.data.inputs import PackItem
from sat_ssvae.data.pack import pack
from sat_ssvae.data.resample import read_resampled
from sat_ssvae.data.shards import fixed_clips
from sat_ssvae.data.tars import TarStore
from sat_ssvae.data.timing import Times, shown_times
from sat_ssvae.data.video_io import probe, read_clip, read_frames

from .numbered_videos import PACK, number_of, record, record_at
from .shard_files import small

SLOWER = [k / 30 for k in range(20)] + [(20 + 2 * k) / 30 for k in range(20)]
DROPPED = [float(k) / 30 for k in np.cumsum([0, *np.random.default_rng(0).choice([1, 2, 3], 39)])]
PAUSED = [0.0, *(5 + k / 30 for k in range(39))]
FILES = [("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.flv", "flv"), ("a.ts", "libx264"), ("a.avi", "mpeg4")]
FILES += [("a.mp4", "libx264"), ("a.mov", "mpeg4")]
CASES = [(*file, times) for file in FILES for times in (SLOWER, DROPPED, PAUSED)]
CASES.remove(("a.avi", "mpeg4", PAUSED))  # which may as well be sound that began earlier


def uneven(tmp_path, name, codec, times):
    (tmp_path / "in").mkdir()
    base = Fraction(1, 30) if name == "a.avi" else Fraction(1, 1000)
    return record_at(tmp_path / "in" / name, times, codec, base)


@pytest.mark.parametrize(("name", "codec", "times"), CASES)
def test_a_variable_frame_rate_is_counted_in_pictures(tmp_path, name, codec, times):
    path = uneven(tmp_path, name, codec, times)
    info = probe(path)
    assert info.frames == 40
    assert info.duration == pytest.approx(times[-1] + 1 / 30, abs=0.04)
    assert info.fps == pytest.approx(40 / info.duration, rel=0.03)
    found = [number_of(picture) for picture in read_resampled(path, 30, (32, 48))]
    for step, number in enumerate(found):
        away = np.abs(np.array(times) - step / 30)
        assert away[number] <= away.min() + 0.002
    assert found[-1] == 39


@pytest.mark.parametrize(("name", "codec", "times"), CASES)
def test_a_variable_frame_rate_stays_in_shards(tmp_path, name, codec, times):
    path = uneven(tmp_path, name, codec, times)
    pack(path, tmp_path / "out", PACK.model_copy(update={"max_short_side": 16}))
    (line,) = (tmp_path / "out" / "clips-000000.meta.jsonl").read_text().splitlines()
    assert json.loads(line)["frames"] == 40
    config = small(tmp_path / "out", num_frames=5, fps=5, resolution=(16, 24))
    (clip,) = fixed_clips(config, stride=100)
    direct = read_clip(path, start=0.0, num_frames=5, fps=5, size=(16, 24))
    numbers = [number_of(picture) for picture in direct.permute(1, 2, 3, 0).numpy()]
    assert [number_of(picture) for picture in clip.video.permute(1, 2, 3, 0).add(1).mul(127.5)] == numbers
    reports = [
        check_data(CheckConfig(data=config.model_copy(update={"path": str(place)})), tmp_path / f"check{index}")
        for index, place in enumerate((tmp_path / "in", tmp_path / "out"))
    ]
    assert reports[0].clips == reports[1].clips > 0 and reports[0].skipped == {}


def test_parts_of_a_variable_frame_rate_have_its_pictures_at_their_times(tmp_path):
    path = uneven(tmp_path, "a.mkv", "libx264", SLOWER)
    pack(path, tmp_path / "out", PackConfig(workers=1, captions="none", segment_seconds=1.0))
    store = TarStore(tmp_path / "out" / "clips-000000.tar")
    frames = [list(read_frames(store.media(key)[1])) for key in store.keys()]  # noqa: SIM118 - a store is no dict
    assert [number_of(frame.picture) for part in frames for frame in part] == list(range(40))
    starts = [SLOWER[0], SLOWER[len(frames[0])]]
    found = [float(frame.time) + start for part, start in zip(frames, starts, strict=True) for frame in part]
    assert found == pytest.approx(SLOWER, abs=0.002)


def frames_packed(path, output, **change):
    """Frames of each sample that a video becomes."""
    report = pack(path, output, PACK.model_copy(update=change))
    assert report.skipped == {}
    return [json.loads(line)["frames"] for line in (output / "clips-000000.meta.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("seconds", [None, 1.0])
def test_pictures_at_one_time_do_not_end_the_packing(tmp_path, seconds):
    """Parts of a stream that were joined and overlap by a picture."""
    parts = [record(tmp_path / "a.ts", 30, 24), record(tmp_path / "b.ts", 30, 24, start=28 / 24)]
    path = tmp_path / "c.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert (np.diff(shown_times(path).seconds) <= 0).any()
    assert sum(frames_packed(path, tmp_path / "out", segment_seconds=seconds)) == 60


def test_times_that_are_guessed_are_not_those_of_pictures(tmp_path):
    """FFmpeg gives two pictures of this program stream one time; they are counted."""
    path = record(tmp_path / "a.mpg", 60, 25, "mpeg2video", size=(64, 96))
    assert (np.diff(shown_times(path).seconds) <= 0).any()
    assert frames_packed(path, tmp_path / "out") == [60]
    _, video = TarStore(tmp_path / "out" / "clips-000000.tar").media("00000000")
    assert [float(frame.time) for frame in read_frames(video)] == pytest.approx([k / 25 for k in range(60)])


# Whose steps, in the order of decoding, end before the pictures do, or seem to last behind them.
STILL_AT_THE_END = [*(k / 30 for k in range(39)), 6.0]
STILL_BEFORE_THE_END = [k / 30 for k in range(37)] + [5 + k / 30 for k in range(3)]
JITTERING = [round((k + (0, 0.05, -0.05)[k % 3]) * 20) / 600 for k in range(40)]
REORDERED = [SLOWER, DROPPED, PAUSED, STILL_AT_THE_END, STILL_BEFORE_THE_END, JITTERING]


@pytest.mark.parametrize("flags", ["", "frag_keyframe+empty_moov"])
@pytest.mark.parametrize("times", REORDERED)
@pytest.mark.parametrize("b_frames", [2, 4])
def test_an_mp4_with_b_frames_is_as_long_as_its_pictures_are_shown(tmp_path, times, b_frames, flags):
    path = record_at(tmp_path / "a.mp4", times, base=Fraction(1, 600), b_frames=b_frames, flags=flags)
    info, duration = probe(path), times[-1] + 1 / 30
    assert (info.frames, info.fps) == (40, pytest.approx(40 / duration, rel=0.002))
    assert info.duration == pytest.approx(duration, abs=0.002)
    found = [number_of(picture) for picture in read_resampled(path, 30, (32, 48))]
    assert len(found) == round(30 * duration) and (found[0], found[-1]) == (0, 39)
    if max(np.diff(times)) < 1:  # else some parts have no picture
        parts = frames_packed(path, tmp_path / "out", segment_seconds=1.0)
        assert len(parts) == round(duration) and sum(parts) == 40


LIVE = [("a.ts", 90000), ("a.flv", 1000), ("a.mkv", 1000)]


@pytest.mark.parametrize(("name", "ticks"), LIVE)
@pytest.mark.parametrize("times", REORDERED)
@pytest.mark.parametrize("b_frames", [2, 4])
def test_a_live_recording_with_b_frames_is_read_to_its_end(tmp_path, times, b_frames, name, ticks):
    """Encoders of a variable rate write their ticks for a rate, and FLV's duration counts from the first packet."""
    path = record_at(tmp_path / name, times, base=Fraction(1, ticks), b_frames=b_frames)
    with av.open(str(path)) as container:
        decoded = [(frame.time, number_of(frame.to_ndarray(format="rgb24"))) for frame in container.decode(video=0)]
    seconds = np.array([time for time, _ in decoded]) - decoded[0][0]
    numbers = [number for _, number in decoded]
    info, duration = probe(path), seconds[-1] + 1 / 30
    assert (info.frames, info.fps) == (len(numbers), pytest.approx(len(numbers) / duration, rel=0.03))
    assert info.duration == pytest.approx(duration, abs=0.036)
    frames = list(read_frames(path))
    assert [number_of(frame.picture) for frame in frames] == numbers == list(range(40))
    assert [float(frame.time) for frame in frames] == pytest.approx(seconds, abs=0.001)
    found = [number_of(picture) for picture in read_resampled(path, 30, (32, 48))]
    away = np.abs(seconds[None] - np.arange(len(found))[:, None] / 30)
    assert (away[np.arange(len(found)), found] <= away.min(axis=1) + 0.002).all()
    assert found[-1] == 39


@pytest.mark.parametrize("b_frames", [0, 2])
def test_a_recording_whose_times_no_rate_explains_is_read_to_its_end(tmp_path, b_frames):
    """FFmpeg then guesses a picture per tick; the last one is shown as long as in files that do not say."""
    times = np.cumsum(np.random.default_rng(5).uniform(0.03, 0.1, 40)).tolist()
    path = record_at(tmp_path / "a.ts", times, base=Fraction(1, 90000), b_frames=b_frames)
    assert probe(path).duration == pytest.approx(times[-1] - times[0] + 1 / 25, abs=0.001)
    assert [number_of(picture) for picture in read_resampled(path, 30, (32, 48))][-1] == 39


def test_the_parts_of_a_file_share_what_is_read_of_it(tmp_path, monkeypatch):
    path, read = uneven(tmp_path, "a.mkv", "libx264", SLOWER), []
    whole = convert_module.shown_times
    monkeypatch.setattr(convert_module, "shown_times", lambda path, *rest: read.append(path) or whole(path, *rest))
    files = convert_module.InputFiles()
    parts = [PackItem(path, "a", start=start, end=start + 0.5) for start in (0.0, 0.5, 1.0)]
    made = [convert_module.convert(part, PACK, files) for part in parts]
    assert [sample.meta["frames"] for sample in made] == [sum(s <= t < s + 0.5 for t in SLOWER) for s in (0, 0.5, 1)]
    assert read == [path]


def test_a_large_file_is_read_whole_only_if_its_steps_are_uneven(tmp_path, monkeypatch):
    even, odd = record(tmp_path / "even.mkv", 90, 30, milliseconds=True), tmp_path / "odd.mkv"
    record_at(odd, [k / 30 for k in range(60)] + [(60 + 2 * k) / 30 for k in range(30)])
    monkeypatch.setattr(lengths, "_SMALL", -1)
    read = []
    monkeypatch.setattr(lengths, "shown_times", lambda path, *rest, **more: read.append(path) or shown_times(path))
    assert (probe(even).frames, read) == (90, [])
    assert (probe(odd).frames, read) == (90, [odd])


@pytest.mark.parametrize(
    ("steps", "kept"),
    [
        ([1] * 40, True),
        ([1] * 40 + [4], True),  # a cut that lost pictures
        ([1] * 200 + [2] + [1] * 99, True),
        ([1] * 20 + [2] * 20, False),
        ([1] * 40 + [150], False),
        ([1.1] * 40, False),
    ],
)
def test_a_rate_is_kept_if_few_pictures_are_missing(steps, kept):
    seconds = np.cumsum([0.0, *steps]) / 30
    assert Times(len(seconds), seconds, 1 / 30).keeps(30.0) is kept
