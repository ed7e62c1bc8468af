import io
import itertools
import json
import pickle
import random
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sat_ssvae.config import parse_config
from sat_ssvae.data.pack import PackConfig, PackItem, pack
from sat_ssvae.data.shards import DataConfig, epoch_order, fixed_clips, training_batches
from sat_ssvae.data.skips import SkipLog
from sat_ssvae.data.video_io import probe, read_clip, to_unit_range, write_video
from sat_ssvae.errors import UserError


def small(path, **changes):
    values = {"num_frames": 5, "fps": 8, "resolution": 32, "num_workers": 0, **changes}
    return DataConfig(path=str(path), **values)


def take(count, iterator):
    return list(itertools.islice(iterator, count))


def same(first, second):
    return (
        torch.equal(first.video, second.video)
        and first.keys == second.keys
        and first.captions == second.captions
    )


def write_tar(path, members, meta=None):
    """A shard from (name, bytes) pairs and meta records (or raw lines)."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    if meta is not None:
        lines = [line if isinstance(line, str) else json.dumps(line) for line in meta]
        path.with_name(f"{path.stem}.meta.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return path


def meta(key, **changes):
    return {"key": key, "duration": 1.5, "fps": 24, "width": 80, "height": 64, **changes}


@pytest.fixture
def good(tiny_videos):
    return (tiny_videos / "bars0.mp4").read_bytes()


def test_batches_look_as_promised(tiny_shards):
    batch = next(training_batches(small(tiny_shards, resolution=(32, 48)), batch_size=5, seed=0))
    assert batch.video.shape == (5, 3, 5, 32, 48) and batch.video.dtype == torch.float32
    assert -1 <= batch.video.min() < -0.5 and 0.5 < batch.video.max() <= 1
    assert sorted(batch.keys) == [f"clips-{n // 2:06d}/{n:08d}" for n in range(5)]
    assert dict(zip(batch.keys, batch.captions, strict=True))["clips-000000/00000001"] == "coloured bars"
    assert sum(caption == "" for caption in batch.captions) == 4


@settings(max_examples=12)
@given(batch_size=st.integers(1, 4), world_size=st.integers(1, 3), seed=st.integers(0, 2**31), data=st.data())
def test_each_sample_goes_to_one_rank_an_epoch_and_a_run_can_continue(
    tiny_shards, batch_size, world_size, seed, data
):
    epochs = 3
    batches = -(-5 * epochs // (batch_size * world_size))
    ranks = [
        take(
            batches,
            training_batches(
                small(tiny_shards), batch_size=batch_size, seed=seed, rank=rank, world_size=world_size
            ),
        )
        for rank in range(world_size)
    ]
    # Places of the stream, in the order in which the ranks take batches of them in turn
    stream = [key for batch in range(batches) for rank in ranks for key in rank[batch].keys]
    for epoch in range(epochs):
        assert len(set(stream[5 * epoch : 5 * epoch + 5])) == 5
    start, rank = data.draw(st.integers(0, batches - 1)), data.draw(st.integers(0, world_size - 1))
    continued = training_batches(
        small(tiny_shards),
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        start_batch=start,
    )
    rest = take(batches - start, continued)
    assert all(same(one, other) for one, other in zip(rest, ranks[rank][start:], strict=True))


def test_workers_do_not_change_the_batches(tiny_shards):
    batches = {
        workers: take(
            6, training_batches(small(tiny_shards, num_workers=workers), batch_size=2, seed=3, start_batch=1)
        )
        for workers in (0, 2)
    }
    assert all(same(one, other) for one, other in zip(batches[0], batches[2], strict=True))


def test_seed_and_epoch_change_order_and_positions(tiny_shards):
    def epoch(seed, number):
        (batch,) = take(1, training_batches(small(tiny_shards), batch_size=5, seed=seed, start_batch=number))
        return dict(zip(batch.keys, batch.video, strict=True)), batch.keys

    (clips, order), (later, later_order), (other, other_order) = epoch(0, 0), epoch(0, 1), epoch(1, 0)
    assert order != later_order or order != other_order
    assert any(not torch.equal(clips[key], later[key]) for key in order)
    assert any(not torch.equal(clips[key], other[key]) for key in order)


def test_a_far_position_is_reached_without_reading_the_way(tiny_shards):
    skips = SkipLog()
    batch = next(training_batches(small(tiny_shards), batch_size=2, seed=0, start_batch=10**12, skips=skips))
    assert len(batch.keys) == 2 and skips.reads == 2


def test_clips_start_anywhere_on_the_frames_of_the_video(tmp_path):
    levels = torch.linspace(-1, 1, 48).view(1, 48, 1, 1).expand(3, 48, 32, 32)
    write_video(tmp_path / "ramp.mp4", levels, fps=24)
    batch = next(training_batches(small(tmp_path), batch_size=400, seed=0))
    frames = ((batch.video.mean(dim=(1, 3, 4)) + 1) / 2 * 47).round().int()
    starts = frames[:, 0]
    assert starts.unique().tolist() == list(range(36))  # 48 frames, a clip spans 4 * 3 + 1 of them
    assert (frames - starts[:, None] == torch.arange(0, 13, 3)).all()


@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 1000),
    block=st.integers(1, 9),
)
def test_epoch_order_is_a_permutation_that_mixes_neighbouring_shards(sizes, seed, epoch, block):
    order = epoch_order(sizes, seed, epoch, block)
    assert sorted(order) == list(range(sum(sizes)))
    assert (epoch_order(sizes, seed, epoch, block) == order).all()
    shard_of = np.repeat(np.arange(len(sizes)), sizes)[order]
    if block == 1:  # shards come one after the other
        assert len([1 for _ in itertools.groupby(shard_of)]) == sum(size > 0 for size in sizes)


def test_epoch_orders_are_fair():
    firsts = Counter(int(epoch_order([3, 2], 0, epoch, 2)[0]) for epoch in range(1000))
    assert set(firsts) == set(range(5)) and all(140 < count < 260 for count in firsts.values())


def test_fixed_clips_are_every_stride(tiny_videos, tiny_shards):
    clips = list(fixed_clips(small(tiny_shards), stride=0.4))
    starts = {
        f"clips-{n // 2:06d}/{n:08d}": [
            0.4 * k for k in range(9) if 0.4 * k + 0.5 + 1 / 24 <= 1.5 + 0.5 * n + 1e-6
        ]
        for n in range(5)
    }
    assert [(clip.key, clip.start) for clip in clips] == [
        (key, pytest.approx(t)) for key in starts for t in starts[key]
    ]
    for clip in clips[::4]:
        video = tiny_videos / f"bars{int(clip.key[-1])}.mp4"
        expected = read_clip(video, start=clip.start, num_frames=5, fps=8, size=(32, 32))
        assert torch.equal(clip.video, to_unit_range(expected))
    again = list(fixed_clips(small(tiny_shards, num_workers=2), stride=0.4))
    assert all(
        torch.equal(one.video, other.video) and one.key == other.key
        for one, other in zip(clips, again, strict=True)
    )


def test_a_limit_spreads_over_all_samples(tiny_shards):
    everything = [(clip.key, clip.start) for clip in fixed_clips(small(tiny_shards), stride=0.2)]
    some = [(clip.key, clip.start) for clip in fixed_clips(small(tiny_shards), stride=0.2, limit=5)]
    assert len(some) == 5 and set(some) <= set(everything) and len({key for key, _ in some}) >= 4
    assert len(list(fixed_clips(small(tiny_shards), stride=0.2, limit=10**6))) == len(everything)


def test_global_random_state_is_left_alone(tiny_shards):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    take(2, training_batches(small(tiny_shards), batch_size=2, seed=0))
    take(2, fixed_clips(small(tiny_shards), stride=0.5))
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


@pytest.mark.parametrize("form", ["tar", "pattern", "list", "folder of videos"])
def test_paths(tiny_videos, tiny_shards, form):
    path = {
        "tar": str(tiny_shards / "clips-000000.tar"),
        "pattern": str(tiny_shards / "clips-{000000..000001}.tar"),
        "list": (str(tiny_shards / "clips-000002.tar"), str(tiny_shards / "clips-000001.tar")),
        "folder of videos": str(tiny_videos),
    }[form]
    config = DataConfig(path=path, num_frames=5, resolution=32, num_workers=0)
    expected = {"tar": 2, "pattern": 4, "list": 3, "folder of videos": 5}[form]
    clips = list(fixed_clips(config, stride=100))
    assert len(clips) == expected
    captions = [clip.caption for clip in clips if clip.caption]
    assert captions == ([] if form == "list" else ["coloured bars"])


def test_parts_are_disjoint_and_complete(tiny_shards):
    keys = {
        part: [clip.key for clip in fixed_clips(small(tiny_shards, part=part), stride=100)]
        for part in ("all", "train", "heldout")
    }
    assert sorted(keys["train"] + keys["heldout"]) == keys["all"] and len(keys["heldout"]) == 1
    with pytest.raises(UserError, match="cannot be split"):
        next(fixed_clips(small(tiny_shards / "clips-000002.tar", part="train"), stride=1))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none", "does not exist"),
        (lambda folder: folder / "none-{0..3}.tar", "none-0.tar does not exist"),
        (lambda folder: folder, "neither .tar shards nor videos"),
        (lambda folder: folder / "a.mp4", "is not a .tar file"),
        (lambda folder: folder / "a.tar.gz", "gunzip"),
        (lambda folder: folder / "empty.tar", r"no usable sample \(1 unreadable tar\)"),
    ],
)
def test_wrong_paths(tmp_path, make, message):
    path = make(tmp_path)
    if path.suffix in (".mp4", ".gz") or path.name == "empty.tar":
        path.write_bytes(b"")
    with pytest.raises(UserError, match=message):
        next(training_batches(small(path), batch_size=1, seed=0))


def test_what_does_not_fit_is_counted_and_listed(tmp_path, good):
    records = [
        meta("fits"),
        meta("short", duration=0.3),
        meta("tiny", width=16, height=40),
        meta("slow", fps=4),
        meta("score", score=0),
        meta("scored", score=7.5),
        "{broken",
        '["no", "object"]',
        '{"duration": 3}',
        meta("fits"),
        "\udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
    ]
    tar = write_tar(tmp_path / "a.tar", [("fits.mp4", good), ("scored.mp4", good)], records)
    skips = SkipLog(tmp_path / "log" / "skipped.jsonl")
    keys = [clip.key for clip in fixed_clips(small(tar), stride=100, skips=skips)]
    assert keys == ["a/fits", "a/scored"]
    assert skips.counts == {
        "too short": 1,
        "too small": 1,
        "fps too low": 1,
        "broken meta line": 4,
        "duplicate key": 1,
        "not in the tar": 1,
    }
    listed = [json.loads(line) for line in skips.path.read_text().splitlines()]
    assert Counter(skip["cause"] for skip in listed) == skips.counts
    assert {"source": "a/slow", "cause": "fps too low", "detail": "4 frames per second, wanted 8"} in listed
    # a second run lists nothing twice
    list(fixed_clips(small(tar), stride=100, skips=SkipLog(skips.path)))
    assert len(skips.path.read_text().splitlines()) == len(listed)


def test_filters_know_zero_from_missing(tmp_path, good):
    records = [
        meta(key, **({} if score is None else {"score": score}))
        for key, score in zip("abcd", [0, 5, None, 9], strict=True)
    ]
    tar = write_tar(tmp_path / "s.tar", [(f"{key}.mp4", good) for key in "abcd"], records)
    for limits, kept in (((0, None), "abd"), ((None, 5), "ab"), ((1, 8), "b")):
        skips = SkipLog()
        keys = [
            clip.key[-1]
            for clip in fixed_clips(small(tar, filters={"score": limits}), stride=100, skips=skips)
        ]
        assert "".join(keys) == kept
        assert skips.counts["no score"] == 1 and skips.counts.total() == 4 - len(kept)


def test_portrait_videos_are_kept(tmp_path):
    write_video(tmp_path / "portrait.mp4", torch.zeros(3, 24, 64, 36), fps=24)
    clip = next(fixed_clips(small(tmp_path), stride=1))
    assert clip.video.shape == (3, 5, 32, 32)


def test_a_tar_without_meta_is_probed(tmp_path, good, caplog):
    members = [
        ("a.mp4", good),
        ("a.json", b'{"caption": "from json"}'),
        ("b.mp4", b"nothing"),
        ("c.id", b"c"),
    ]
    members += [("d.mp4", good), ("d.txt", b"from text\n"), ("../../up.mp4", good), ("e.b.mp4", good)]
    tar = write_tar(tmp_path / "a.tar", members)
    skips = SkipLog()
    clips = list(fixed_clips(small(tar), stride=100, skips=skips))
    assert [(clip.key, clip.caption) for clip in clips] == [("a/a", "from json"), ("a/d", "from text")]
    assert skips.counts == {"not a video": 1, "no video or image": 2, "unsafe name": 1}
    assert "no a.meta.jsonl beside it" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_meta_without_tar_is_counted(tiny_shards, tmp_path):
    folder = shutil.copytree(tiny_shards, tmp_path / "shards")
    (folder / "clips-000001.tar").unlink()
    skips = SkipLog()
    keys = [clip.key for clip in fixed_clips(small(folder), stride=100, skips=skips)]
    assert [key[:12] for key in keys] == ["clips-000000", "clips-000000", "clips-000002"]
    assert skips.counts == {"meta without tar": 1}


def test_a_cut_off_tar_gives_what_it_has(tmp_path, good, caplog):
    members = [(f"{key}.mp4", good) for key in "abc"]
    tar = write_tar(tmp_path / "a.tar", members, [meta(key) for key in "abc"])
    data = tar.read_bytes()
    for size, left in ((512 + len(good) + 2000, "a"), (512 + 300, ""), (2 * len(good) + 3 * 1024, "ab")):
        tar.write_bytes(data[:size])
        skips = SkipLog()
        clips = [clip.key[-1] for clip in fixed_clips(small(tar), stride=100, skips=skips)]
        assert "".join(clips) == left and skips.counts.total() == 3 - len(left)
        assert set(skips.counts) <= {"truncated", "not in the tar", "unreadable tar"}
    assert "damaged or cut off" in caplog.text


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_samples_are_replaced_by_readable_ones(tmp_path, good, workers):
    members = [(f"{n}.mp4", good if n % 4 else good[: 100 * n + 50]) for n in range(12)]
    tar = write_tar(tmp_path / "a.tar", members, [meta(str(n)) for n in range(12)])
    skips = SkipLog(max_share=0.9)
    config = small(tar, num_workers=workers)
    batches = take(8, training_batches(config, batch_size=3, seed=0, skips=skips))
    keys = [key for batch in batches for key in batch.keys]
    assert len(keys) == 24 and not {"a/0", "a/4", "a/8"} & set(keys)
    assert set(skips.counts) == {"not a video"} and skips.failures >= 6
    continued = take(
        5, training_batches(config, batch_size=3, seed=0, start_batch=3, skips=SkipLog(max_share=0.9))
    )
    assert all(same(one, other) for one, other in zip(continued, batches[3:], strict=True))


def test_too_many_broken_samples_stop_the_run(tmp_path, good):
    members = [(f"{n}.mp4", good if n % 4 else b"junk") for n in range(12)]
    tar = write_tar(tmp_path / "a.tar", members, [meta(str(n)) for n in range(12)])
    skips = SkipLog(tmp_path / "skipped.jsonl")
    batches = training_batches(small(tar), batch_size=3, seed=0, skips=skips)
    with pytest.raises(UserError, match=r"of \d+ clips could not be read \(\d+ not a video\), listed in"):
        take(100, batches)
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_ends_in_one_line(tmp_path, workers):
    tar = write_tar(tmp_path / "a.tar", [("a.mp4", b"junk")], [meta("a")])
    with pytest.raises(UserError) as caught:
        next(training_batches(small(tar, num_workers=workers), batch_size=2, seed=0))
    assert "not a video" in str(caught.value) and "\n" not in str(caught.value)


def test_the_list_of_skips_cannot_be_written(tmp_path, good):
    tar = write_tar(tmp_path / "a.tar", [("a.mp4", good)], [meta("a"), meta("b", duration=0.1)])
    with pytest.raises(UserError, match="cannot write /dev/full"):
        next(fixed_clips(small(tar), stride=1, skips=SkipLog(Path("/dev/full/skipped.jsonl"))))
    with pytest.raises(UserError, match="No space left"):
        next(fixed_clips(small(tar), stride=1, skips=SkipLog(Path("/dev/full"))))


def test_images_are_clips_of_one_frame(tmp_path, tiny_videos):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (50, 40), colour).save(folder / f"{name}.png")
    pack(
        [PackItem(folder / f"{name}.png", name) for name in ("red", "blue")],
        tmp_path / "shards",
        PackConfig(),
    )
    for path in (tmp_path / "shards", folder):
        clips = list(fixed_clips(small(path, num_frames=1), stride=1))
        assert {tuple(clip.video.mean(dim=(1, 2, 3)).tolist()) for clip in clips} == {
            (1, -1, -1),
            (-1, -1, 1),
        }
        assert clips[0].video.shape == (3, 1, 32, 32)
        with pytest.raises(UserError, match=r"no usable sample \(2 an image\)"):
            next(fixed_clips(small(path), stride=1))


@settings(max_examples=40)
@given(
    damage=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=60)), min_size=1, max_size=6),
    cut=st.floats(0.01, 1),
    keep_meta=st.booleans(),
)
def test_any_damage_to_a_shard_is_a_skip_or_one_line(tiny_shards, tmp_path_factory, damage, cut, keep_meta):
    folder = tmp_path_factory.mktemp("damaged")
    data = bytearray((tiny_shards / "clips-000000.tar").read_bytes())
    for place, junk in damage:
        offset = int(place * (len(data) - 1))
        data[offset : offset + len(junk)] = junk
    (folder / "clips-000000.tar").write_bytes(data[: int(cut * len(data))])
    if keep_meta:
        shutil.copy(tiny_shards / "clips-000000.meta.jsonl", folder)
    skips = SkipLog(max_share=1)
    message, clips = "", []
    try:
        clips = list(fixed_clips(small(folder), stride=1, skips=skips))
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    assert clips or skips.counts
    assert all(clip.video.shape == (3, 5, 32, 32) for clip in clips)


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=30),
            st.just("{}"),
            st.builds(
                json.dumps,
                st.dictionaries(
                    st.sampled_from(["key", "duration", "fps", "width", "height", "caption"]),
                    st.one_of(
                        st.none(),
                        st.booleans(),
                        st.integers(),
                        st.floats(),
                        st.text(max_size=5),
                        st.lists(st.integers(), max_size=2),
                    ),
                ),
            ),
        ),
        max_size=6,
    )
)
def test_any_meta_file_is_a_skip_or_one_line(tiny_shards, tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("meta")
    shutil.copy(tiny_shards / "clips-000000.tar", folder / "clips-000000.tar")
    content = "\n".join([json.dumps(meta("00000000")), *lines])
    (folder / "clips-000000.meta.jsonl").write_text(content, encoding="utf-8", errors="surrogatepass")
    skips = SkipLog(max_share=1)
    clips = list(fixed_clips(small(folder), stride=1, skips=skips))
    assert any(clip.key == "clips-000000/00000000" for clip in clips)
    written = sum(bool(line.strip()) for line in content.split("\n"))
    assert len({clip.key for clip in clips}) + skips.counts.total() >= min(2, written)


def test_configuration_errors():
    for wrong, message in (
        ({"num_frames": 16}, "must be 4k . 1, for example 17"),
        ({"resolution": 0}, "must be positive"),
        ({"fps": 0}, "fps"),
        ({"nun_workers": 1}, "did you mean `num_workers`"),
        ({"filters": {"score": [1, 2, 3]}}, "filters"),
    ):
        with pytest.raises(UserError, match=message):
            parse_config(DataConfig, {"path": "x", **wrong})
    assert parse_config(DataConfig, {"path": "x", "resolution": [64, 96]}).size == (64, 96)


def test_probe_agrees_with_meta(tiny_videos, tiny_shards):
    record = json.loads((tiny_shards / "clips-000000.meta.jsonl").read_text().splitlines()[0])
    info = probe(tiny_videos / "bars0.mp4")
    assert (record["duration"], record["fps"], record["width"], record["height"]) == (1.5, 24, 80, 64)
    assert info.duration == 1.5
    pickle.dumps(info)
