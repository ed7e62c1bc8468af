"""Columns give back what was put into them; the cache and the index beside shards give what a new listing would."""

import json
import os
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sat_ssvae.data import clips, samples
from sat_ssvae.data.clips import unsuitable
from sat_ssvae.data.index import Sample, find_stores, list_samples
from sat_ssvae.data.samples import Samples, cached_samples
from sat_ssvae.data.settings import AnyOf, DataConfig
from sat_ssvae.data.shards import fixed_clips
from sat_ssvae.data.skips import SkipLog, printable

from .shard_files import meta, small, write_tar

TEXT = st.text(st.characters(), max_size=8)
SAMPLE = st.tuples(
    st.integers(0, 1),
    TEXT,
    st.floats(0, 100),
    st.floats(0, 100),
    *[st.integers(0, 65535)] * 2,
    TEXT,
)


def sample_of(values):
    store, key, duration, fps, width, height, caption = values
    return Sample(store, key, printable(f"{'ab'[store]}/{key}"), duration, fps, width, height, caption)


@given(st.lists(SAMPLE.map(sample_of), max_size=8), st.data())
def test_columns_keep_samples(given_samples, data):
    columns = Samples.collect("ab", given_samples)
    assert list(columns) == given_samples and len(columns) == len(given_samples)
    rows = data.draw(st.lists(st.integers(0, len(given_samples) - 1), max_size=5)) if given_samples else []
    some = columns.select(np.array(rows, dtype=int))
    assert list(some) == [given_samples[row] for row in rows]
    assert some.column("width").tolist() == [given_samples[row].width for row in rows]


SUITABLE = st.tuples(
    st.just(0),
    st.just("k"),
    st.sampled_from([0.0, 0.5, 1.0, 2.0, 2.001, 5.062]),
    st.sampled_from([0.0, 7.9, 7.93, 8.0, 16.0, 23.976, 30.0]),
    *[st.sampled_from([16, 31, 32, 33, 64, 100])] * 2,
    st.just(""),
)


@given(
    st.lists(SUITABLE.map(sample_of), min_size=1, max_size=10),
    st.sampled_from([1, 5, 17]),
    st.booleans(),
    st.sampled_from([(), ((32, 32), (32, 64), (64, 32))]),
)
def test_samples_are_told_apart_as_one_by_one(given_samples, num_frames, enlarge, buckets):
    given_samples = [s for s in given_samples if (s.duration > 0) == (s.fps > 0)]
    config = DataConfig(path="x", num_frames=num_frames, fps=8, resolution=32, enlarge=enlarge, buckets=buckets)
    skips = []
    kept = clips.suitable(Samples.collect("ab", given_samples), config, skips.append)
    problems = [unsuitable(sample, config) for sample in given_samples]
    assert list(kept) == [s for s, problem in zip(given_samples, problems, strict=True) if problem is None]
    assert [(skip.cause, skip.detail) for skip in skips] == [problem for problem in problems if problem]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "CACHED_FROM", 1)
    monkeypatch.setenv("SAT_SSVAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "listings"


@pytest.fixture
def shard(tmp_path, tiny_video):
    (tmp_path / "in").mkdir()
    records = [meta("a", caption="ein Kätzchen", good=True), "not json", meta("b", good=False), meta("a")]
    return write_tar(tmp_path / "in" / "s.tar", [("a.mp4", tiny_video), ("b.mp4", tiny_video)], records)


def listing(place, filters=None):
    skips = []
    found = cached_samples(find_stores(str(place), print), filters or {}, skips.append)
    return list(found), [(skip.source, skip.cause, skip.detail) for skip in skips]


def test_a_cached_listing_is_the_same_and_reads_no_meta_file(shard, cache, monkeypatch):
    new = listing(shard.parent)
    assert new[0] == list(list_samples(find_stores(str(shard.parent), print), {}, lambda _: None))
    assert [cause for _, cause, _ in new[1]] == ["broken meta line", "duplicate key"]
    assert len(list(cache.iterdir())) == 1
    filtered = listing(shard.parent, {"good": AnyOf(any_of=(True,))})
    assert len(filtered[0]) == 1 and len(filtered[1]) == 3 and len(list(cache.iterdir())) == 2
    with monkeypatch.context() as patch:
        patch.setattr(samples, "list_samples", None)
        assert listing(shard.parent) == new and listing(shard.parent, {"good": AnyOf(any_of=(True,))}) == filtered


def test_a_cache_is_renewed_when_something_changes(shard, cache, tiny_video):
    assert len(listing(shard.parent)[0]) == 2
    lines = shard.with_suffix(".meta.jsonl").read_text().splitlines()[:1]
    shard.with_suffix(".meta.jsonl").write_text("\n".join(lines) + "\n")
    assert len(listing(shard.parent)[0]) == 1
    edited = json.dumps(json.loads(lines[0]) | {"caption": "ein Hündchen"}) + "\n"
    shard.with_suffix(".meta.jsonl").write_text(edited)
    os.utime(shard.with_suffix(".meta.jsonl"), ns=(1, 1))
    assert listing(shard.parent)[0][0].caption == "ein Hündchen"
    write_tar(shard.with_name("t.tar"), [("c.mp4", tiny_video)])
    assert [sample.name for sample in listing(shard.parent)[0]] == ["s/a", "t/c"]
    write_tar(shard.with_name("t.tar"), [("c.mp4", tiny_video), ("d.mp4", tiny_video)])
    assert [sample.name for sample in listing(shard.parent)[0]] == ["s/a", "t/c", "t/d"]
    assert all(path.suffix == ".npz" for path in cache.iterdir())


@pytest.mark.parametrize("damage", [b"", b"no archive", "half", "keys"])
def test_a_damaged_cache_is_listed_again(shard, cache, damage, caplog):
    new = listing(shard.parent)
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    if damage == "keys":
        np.savez(file, marks=np.zeros(3, np.uint8))
    else:
        file.write_bytes(whole[: len(whole) // 2] if damage == "half" else damage)
    assert listing(shard.parent) == new and file.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_none(shard, tmp_path, monkeypatch, cache):
    (tmp_path / "cache").write_text("a file")
    assert len(listing(shard.parent)[0]) == 2


def test_small_and_folders_are_not_cached(tiny_shards, tiny_videos, tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_SSVAE_CACHE", str(tmp_path))
    assert len(listing(tiny_shards)[0]) == len(listing(tiny_videos)[0]) == 5
    monkeypatch.setattr(samples, "CACHED_FROM", 1)
    assert len(listing(tiny_videos)[0]) == 5
    assert not list(tmp_path.iterdir())


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_SSVAE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_shards_are_listed_from_the_index_beside_them(tiny_shards, tmp_path, own_cache, monkeypatch):
    """As `pack` leaves it; also where the folder was copied to, whatever times its files have there."""
    copy = tmp_path / "copy"
    for number, path in enumerate(sorted(tiny_shards.iterdir())):
        copy.mkdir(exist_ok=True)
        shutil.copy(path, copy)
        os.utime(copy / path.name, ns=(number, number))
    listed = [list_samples(find_stores(str(folder), print), {}, print) for folder in (tiny_shards, copy)]
    new = [(list(found), []) for found in listed]
    with monkeypatch.context() as patch:
        patch.setattr(samples, "list_samples", None)
        assert [listing(tiny_shards), listing(copy)] == new and len(new[0][0]) == 5
    assert len(listing(copy / "clips-000000.tar")[0]) == 2  # not all that the index has
    assert not own_cache.exists()


@pytest.mark.parametrize("change", ["meta", "no meta", "new shard", "fewer shards", "damage", "filter"])
def test_an_index_that_does_not_fit_is_not_used(tiny_shards, tmp_path, own_cache, change):
    folder = shutil.copytree(tiny_shards, tmp_path / "shards")
    meta_file, filters, expected = folder / "clips-000000.meta.jsonl", {}, 5
    status = meta_file.stat()
    if change == "meta":  # of the same length, and with the old time
        meta_file.write_text(meta_file.read_text().replace("coloured", "grey old"))
        os.utime(meta_file, ns=(status.st_atime_ns, status.st_mtime_ns))
    elif change == "no meta":
        meta_file.unlink()
    elif change == "new shard":
        expected = 6
        write_tar(folder / "new.tar", [], [meta("a")])
    elif change == "fewer shards":
        expected = 4
        for path in folder.glob("clips-000002.*"):
            path.unlink()
    elif change == "damage":
        (folder / "index.npz").write_bytes(b"no archive")
    else:
        filters, expected = {"duration": (2, None)}, 4
    found, _ = listing(folder, filters)
    assert len(found) == expected
    caption = [sample.caption for sample in found if sample.caption]
    assert caption == {"meta": ["grey old bars"], "no meta": []}.get(change, ["coloured bars"])


def test_clips_come_out_of_a_cached_listing(shard, cache):
    for _ in range(2):
        skips = SkipLog()
        assert [clip.caption for clip in fixed_clips(small(shard), stride=100, skips=skips)] == ["ein Kätzchen", ""]
        assert skips.counts == {"broken meta line": 1, "duplicate key": 1}
