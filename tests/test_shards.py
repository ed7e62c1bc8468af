import itertools
import random
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sat_ssvae.config import parse_config
from sat_ssvae.data.clips import Clip, open_readers
from sat_ssvae.data.mixture import epoch_order
from sat_ssvae.data.pack import PackConfig, PackItem, pack
from sat_ssvae.data.shards import DataConfig, fixed_clips, training_batches
from sat_ssvae.data.skips import SkipLog, read_skips
from sat_ssvae.data.tars import TarStore
from sat_ssvae.data.video_io import read_clip, to_unit_range, write_video
from sat_ssvae.errors import UserError

from .processes import unmeasured
from .shard_files import meta, small, write_tar


def take(count, iterator):
    return list(itertools.islice(iterator, count))


def same(first, second):
    return torch.equal(first.video, second.video) and first.keys == second.keys and first.captions == second.captions


def test_batches_look_as_promised(tiny_shards):
    batch = next(training_batches(small(tiny_shards, resolution=(32, 48)), batch_size=5, seed=0))
    assert batch.video.shape == (5, 3, 5, 32, 48) and batch.video.dtype == torch.uint8
    video = to_unit_range(batch.video)
    assert video.dtype == torch.float32
    assert -1 <= video.min() < -0.5 and 0.5 < video.max() <= 1
    assert sorted(batch.keys) == [f"clips-{n // 2:06d}/{n:08d}" for n in range(5)]
    assert dict(zip(batch.keys, batch.captions, strict=True))["clips-000000/00000001"] == "coloured bars"
    assert sum(caption == "" for caption in batch.captions) == 4


@settings(max_examples=12)
@given(batch_size=st.integers(1, 4), world_size=st.integers(1, 3), seed=st.integers(0, 2**31), data=st.data())
def test_each_sample_goes_to_one_rank_an_epoch_and_a_run_can_continue(tiny_shards, batch_size, world_size, seed, data):
    epochs = 3
    batches = -(-5 * epochs // (batch_size * world_size))
    ranks = [
        take(
            batches,
            training_batches(small(tiny_shards), batch_size=batch_size, seed=seed, rank=rank, world_size=world_size),
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
        workers: take(6, training_batches(small(tiny_shards, num_workers=workers), batch_size=2, seed=3, start_batch=1))
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
    frames = ((to_unit_range(batch.video).mean(dim=(1, 3, 4)) + 1) / 2 * 47).round().int()
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
        f"clips-{n // 2:06d}/{n:08d}": [0.4 * k for k in range(9) if 0.4 * k + 0.5 + 1 / 24 <= 1.5 + 0.5 * n + 1e-6]
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
        torch.equal(one.video, other.video) and one.key == other.key for one, other in zip(clips, again, strict=True)
    )


def test_a_limit_spreads_over_all_samples(tiny_shards):
    everything = [(clip.key, clip.start) for clip in fixed_clips(small(tiny_shards), stride=0.2)]
    some = [(clip.key, clip.start) for clip in fixed_clips(small(tiny_shards), stride=0.2, limit=5)]
    assert len(some) == 5 and set(some) <= set(everything) and len({key for key, _ in some}) >= 4
    assert len(list(fixed_clips(small(tiny_shards), stride=0.2, limit=10**6))) == len(everything)


def test_global_random_state_is_left_alone(tiny_shards):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    take(2, training_batches(small(tiny_shards), batch_size=2, seed=0))
    take(2, iter(fixed_clips(small(tiny_shards), stride=0.5)))
    after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_parts_are_disjoint_and_complete(tiny_shards):
    keys = {
        part: [clip.key for clip in fixed_clips(small(tiny_shards, part=part), stride=100)]
        for part in ("all", "train", "heldout")
    }
    assert sorted(keys["train"] + keys["heldout"]) == keys["all"] and len(keys["heldout"]) == 1
    with pytest.raises(UserError, match="cannot be split"):
        next(iter(fixed_clips(small(tiny_shards / "clips-000002.tar", part="train"), stride=1)))


def test_portrait_videos_are_kept(tmp_path):
    write_video(tmp_path / "portrait.mp4", torch.zeros(3, 24, 64, 36), fps=24)
    clip = next(iter(fixed_clips(small(tmp_path), stride=1)))
    assert clip.video.shape == (3, 5, 32, 32)


@pytest.mark.parametrize("workers", [0, 1])
def test_broken_samples_are_replaced_by_readable_ones(tmp_path, tiny_video, workers):
    members = [(f"{n}.mp4", tiny_video if n % 4 else tiny_video[: 100 * n + 50]) for n in range(12)]
    tar = write_tar(tmp_path / "a.tar", members, [meta(str(n)) for n in range(12)])
    skips = SkipLog(max_share=0.9)
    config = small(tar, num_workers=workers)
    batches = take(8, training_batches(config, batch_size=3, seed=0, skips=skips))
    keys = [key for batch in batches for key in batch.keys]
    assert len(keys) == 24 and not {"a/0", "a/4", "a/8"} & set(keys)
    assert set(skips.counts) == {"not a video"} and skips.failures.total() >= 6
    continued = take(5, training_batches(config, batch_size=3, seed=0, start_batch=3, skips=SkipLog(max_share=0.9)))
    assert all(same(one, other) for one, other in zip(continued, batches[3:], strict=True))


def test_too_many_broken_samples_stop_the_run(tmp_path, tiny_video):
    members = [(f"{n}.mp4", tiny_video if n % 4 else b"junk") for n in range(12)]
    tar = write_tar(tmp_path / "a.tar", members, [meta(str(n)) for n in range(12)])
    skips = SkipLog(tmp_path / "skipped.jsonl")
    batches = training_batches(small(tar), batch_size=3, seed=0, skips=skips)
    with pytest.raises(UserError, match=r"of \d+ clips could not be read \(\d+ not a video\), listed in"):
        take(100, batches)
    assert len((tmp_path / "skipped.jsonl").read_text().splitlines()) == 3


def test_the_message_names_the_causes_of_failed_reads_alone(tmp_path, tiny_video):
    """What a filter leaves out, however much, is not why clips cannot be read."""
    members = [(f"{n}.mp4", tiny_video if n % 4 else b"junk") for n in range(12)]
    records = [meta(str(n)) for n in range(12)] + [meta(f"short{n}", duration=0.1) for n in range(90)]
    tar = write_tar(tmp_path / "a.tar", members, records)
    with pytest.raises(UserError, match=r"\d+ of \d+ clips could not be read \(\d+ not a video\): repair"):
        take(100, training_batches(small(tar), batch_size=3, seed=0))
    write_tar(tmp_path / "a.tar", [("0.mp4", b"junk")], records)
    with pytest.raises(UserError, match=r"100 samples in a row could not be read \(\d+ [^,]+, \d+ [^,]+\)"):
        take(1, training_batches(small(tar, max_skip_share=1), batch_size=3, seed=0))


def test_what_no_rank_can_use_is_listed_by_the_first(tmp_path, tiny_video):
    members = [(f"{n}.mp4", tiny_video) for n in range(4)]
    tar = write_tar(tmp_path / "a.tar", members, [meta(str(n)) for n in range(4)] + [meta("short", duration=0.1)])
    logs = [SkipLog(tmp_path / "skipped.jsonl") for _ in range(2)]  # ranks begin at the same time
    for rank, log in enumerate(logs):
        take(1, training_batches(small(tar), batch_size=1, seed=0, rank=rank, world_size=2, skips=log))
        assert log.counts == {"too short": 1}
    assert [skip["source"] for skip in read_skips(logs[0].path)] == ["a/short"]


def test_the_indexes_of_a_few_shards_are_held_at_a_time(tmp_path, tiny_video, monkeypatch):
    for shard in range(9):  # half of them without a meta file, so they are looked into when they are listed
        write_tar(tmp_path / f"{shard}.tar", [("a.mp4", tiny_video)], [meta("a")] if shard % 2 else None)
    forgotten, original = [], TarStore.forget

    def forget(store):
        forgotten.append(int(store.name))
        original(store)

    monkeypatch.setattr(TarStore, "forget", forget)
    (reader,) = open_readers(small(tmp_path, shuffle_shards=2), SkipLog())
    assert sorted(forgotten) == list(range(9))
    forgotten.clear()
    for number in range(9):
        assert isinstance(reader.read(number, 0.0), Clip)
        assert forgotten == list(range(number - 3))
    for number, gone in ((5, []), (0, [6]), (6, [7])):  # the one used longest ago goes
        forgotten.clear()
        assert reader.stores[number].media("a") == ("mp4", tiny_video) and forgotten == gone


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_ends_in_one_line(tmp_path, workers):
    tar = write_tar(tmp_path / "a.tar", [("a.mp4", b"junk")], [meta("a")])
    with pytest.raises(UserError) as caught:
        next(training_batches(small(tar, num_workers=workers), batch_size=2, seed=0))
    assert "not a video" in str(caught.value) and "\n" not in str(caught.value)


KILLED = """
import multiprocessing, os, signal, sys, time
from torch.utils.data import DataLoader
from sat_ssvae.cli import main
original = DataLoader.__iter__
def iterate(self):
    for number, loaded in enumerate(original(self)):
        if number == 1:
            os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
            time.sleep(float(sys.argv[1]))
        yield loaded
DataLoader.__iter__ = iterate
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("busy", [0, 20])
def test_a_killed_worker_ends_the_command_with_one_line(tiny_shards, tmp_path, busy):
    """As the system does it when memory is short; also while the command does something else."""
    settings = [f"data.path={tiny_shards}", "data.num_frames=5", "data.num_workers=2"]
    arguments = ["train", "--config", "tiny_48p", "--name", "killed", *settings, "resolution=32", "monitor.every=0"]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(busy), *arguments],
        env=unmeasured(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    how = r"(DataLoader worker \(.*\) (is killed by signal: Killed|exited unexpectedly)|.*Connection reset by peer)"
    # Another worker may complain that nobody takes its clip any more.
    assert done.returncode == 2 and "RuntimeError" not in done.stderr, done.stderr
    assert re.match(rf"error: {how}; a decoding process died; if memory", done.stderr.splitlines()[-1])


def test_images_are_clips_of_one_frame(tmp_path, tiny_videos):
    folder = tmp_path / "in"
    folder.mkdir()
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (50, 40), colour).save(folder / f"{name}.png")
    pack(
        [PackItem(folder / f"{name}.png", name) for name in ("red", "blue")],
        tmp_path / "shards",
        PackConfig(captions="none"),
    )
    for path in (tmp_path / "shards", folder):
        clips = list(fixed_clips(small(path, num_frames=1), stride=1))
        assert {tuple(clip.video.mean(dim=(1, 2, 3)).tolist()) for clip in clips} == {
            (1, -1, -1),
            (-1, -1, 1),
        }
        assert clips[0].video.shape == (3, 1, 32, 32)
        with pytest.raises(UserError, match=r"no usable sample \(2 an image\)"):
            next(iter(fixed_clips(small(path), stride=1)))


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
