"""Videos whose pictures tell their number, so that every reader can be asked which ones it found."""

from fractions import Fraction

import av
import numpy as np
import pytest

from sat_ssvae.data.check import CheckConfig, check_data
from sat_ssvae.data.pack import PackConfig, pack
from sat_ssvae.data.resample import read_resampled
from sat_ssvae.data.shards import fixed_clips
from sat_ssvae.data.video_io import probe, read_frames

from .shard_files import small

PACK = PackConfig(workers=1, captions="none")
CUT = {"avoid_negative_ts": "disabled"}
SOUND = {".mp4": "aac", ".flv": "aac", ".wmv": "wmav2"}
CODECS = {".webm": "libvpx", ".wmv": "wmv2"}


def numbered(count, size=(32, 48)):
    """Pictures that tell their number: tens in the left half, units in the right one."""
    pictures = []
    for index in range(count):
        picture = np.full((*size, 3), 20 + 20 * (index // 10), np.uint8)
        picture[:, size[1] // 2 :] = 20 + 20 * (index % 10)
        pictures.append(picture)
    return pictures


def number_of(picture):
    height, width = picture.shape[:2]
    middles = (picture[height // 4 : 3 * height // 4, side * width // 8 :][:, : width // 4] for side in (1, 5))
    tens, units = (round((float(middle.mean()) - 20) / 20) for middle in middles)
    return 10 * tens + units


def record(path, count, fps, codec="libx264", *, sound=0.0, start=0.0, milliseconds=False, size=(32, 48)):
    """`count` pictures that tell their number, with `sound` seconds of silence from the beginning on."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=fps)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.bit_rate = 30, 1_000_000
        base = Fraction(1, 1000) if milliseconds else 1 / Fraction(fps)
        stream.codec_context.time_base = base
        audio = output.add_stream(SOUND.get(path.suffix, "libopus"), rate=48000) if sound else None
        if audio:
            audio.codec_context.bit_rate = 64_000
        for index, picture in enumerate(numbered(count, size)):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = round((start + index / fps) / base), base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
        if audio:
            samples = {"libopus": 960, "aac": 1024, "wmav2": 2048}[audio.codec_context.name]
            for block in range(int(sound * 48000 / samples)):
                silence = av.AudioFrame.from_ndarray(np.zeros((2, samples), np.float32), "fltp", "stereo")
                silence.sample_rate, silence.pts, silence.time_base = 48000, block * samples, Fraction(1, 48000)
                resampled = av.AudioResampler(audio.format, audio.layout, 48000).resample(silence)
                for piece in resampled:
                    output.mux(audio.encode(piece))
            output.mux(audio.encode(None))
    return path


def record_at(path, times, codec="libx264", base=Fraction(1, 1000), *, b_frames=0, flags=""):
    """Pictures that tell their number, shown at these seconds; the header states 30 per second."""
    with av.open(str(path), "w", options={"movflags": flags} if flags else {}) as output:
        stream = output.add_stream(codec, rate=30)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.bit_rate = 30, 1_000_000
        stream.codec_context.max_b_frames, stream.codec_context.time_base = b_frames, base
        for time, picture in zip(times, numbered(len(times)), strict=True):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24")
            frame.pts, frame.time_base = round(time / base), base
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def trim(source, path, start):
    """Leave out the first seconds, as `ffmpeg -ss -c copy`: samples before the cut stay, an edit list hides them."""
    with av.open(str(source)) as given, av.open(str(path), "w", options=CUT) as output:
        stream = output.add_stream_from_template(given.streams.video[0])
        given.seek(int(start * 1e6))
        for packet in given.demux(given.streams.video[0]):
            if packet.size:
                shift = round(start / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
                output.mux(packet)


def is_whole(path, count, fps, folder):
    """Every reader finds `count` frames, none twice."""
    info = probe(path)
    assert (info.frames, round(info.fps, 2)) == (count, round(fps, 2))
    assert info.duration == pytest.approx(count / fps, abs=0.3 / fps)
    numbers = [number_of(picture) for picture in read_resampled(path, info.fps, (32, 48))]
    assert (
        numbers
        == [number_of(frame.picture) for frame in read_frames(path)]
        == list(range(numbers[0], numbers[0] + count))
    )
    num_frames = (count - 1) // 4 * 4 + 1
    report = check_data(CheckConfig(data=small(path.parent, num_frames=num_frames, fps=fps)), path.parent)
    assert (report.clips, report.skipped) == (1, {})
    report = pack(path, folder, PACK)
    assert report.skipped == {}
    assert f'"frames": {count},' in (folder / "clips-000000.meta.jsonl").read_text()
    (clip,) = fixed_clips(small(folder, num_frames=num_frames, fps=fps, resolution=(32, 48)), stride=100)
    assert number_of(clip.video[:, -1].permute(1, 2, 0).add(1).mul(127.5)) == numbers[0] + num_frames - 1
    return True
