"""Captions in tars, as people have them."""

import shutil

import pytest

from sat_ssvae.data.folders import FolderStore
from sat_ssvae.data.shards import fixed_clips
from sat_ssvae.data.skips import SkipLog
from sat_ssvae.data.tars import TarStore
from sat_ssvae.evaluation.items import list_items

from .shard_files import meta, small, write_tar


def test_tars_as_people_have_them(tmp_path, tiny_video):
    keys = ["0000", "0001"]
    files = {
        "json without a caption": (".mp4", {".json": b'{"url": "x", "status": "success"}', ".txt": b"a cat"}),
        "broken json": (".mp4", {".json": b'{"caption": "a c', ".txt": b"a cat"}),
        "text and prompt": (".mp4", {".json": b'{"text": "", "prompt": "a cat"}'}),
        "a list": (".mp4", {".json": b'{"captions": ["", "a cat", "a dog"]}'}),
        "a bare list": (".mp4", {".json": b'["a cat"]'}),
        "a bare text": (".mp4", {".json": b'"a cat"'}),
        "null": (".mp4", {".json": b'{"caption": null, "text": 3}', ".caption": b"a cat"}),
        "dots in names": (".480p.mp4", {".480p.txt": b"a cat"}),
        "fields of WebDataset": (".video.mp4", {".caption.txt": b"\xef\xbb\xbfa cat"}),
        "fields of json": (".video.mp4", {".meta.json": b'{"caption": "a cat"}'}),
        "upper case": (".MP4", {".TXT": b"a cat"}),
        "folders": (".mp4", {".json": b"\xef\xbb\xbf" + b'{"caption": "a cat"}'}),
    }
    for number, (name, (suffix, others)) in enumerate(files.items()):
        prefix = "./deep/er/" if name == "folders" else "v"
        members = [(f"{prefix}{k}{s}", data) for k in keys for s, data in {suffix: tiny_video, **others}.items()]
        tar = write_tar(tmp_path / f"{number}.tar", members)
        skips = SkipLog()
        clips = fixed_clips(small(tar), stride=100, skips=skips)
        assert clips.count_captions() == 2, name
        assert [clip.caption for clip in clips] == ["a cat", "a cat"], name
        assert [item.caption for item in list_items(tar, [])] == ["a cat", "a cat"], name
        assert not skips.counts, name
    clips = list(fixed_clips(small(tmp_path), stride=100))
    assert len(clips) == 2 * len(files) and {clip.caption for clip in clips} == {"a cat"}


@pytest.mark.parametrize("root", ["", "./", "set/"])
@pytest.mark.parametrize(
    ("video", "text"),
    [
        ("videos/a.mp4", "labels/a.txt"),
        ("videos/a.mp4", "captions/a.txt"),
        ("videos/deep/a.mp4", "labels/deep/a.txt"),
        ("a.mp4", "labels/a.txt"),
        ("videos/a.mp4", "videos/labels/a.txt"),
        ("clips/a.mp4", "metas/v0/a.txt"),
    ],
)
def test_tars_of_videos_and_labels(tmp_path, tiny_video, root, video, text):
    tar = write_tar(tmp_path / "a.tar", [(root + text, b"a cat"), (root + video, tiny_video)])
    skips = SkipLog()
    assert [clip.caption for clip in fixed_clips(small(tar), stride=100, skips=skips)] == ["a cat"]
    assert not skips.counts


def test_captions_that_are_none(tmp_path, tiny_video, caplog):
    """A value that is missing, and captions of the video's parts."""
    parts = b'{"caption": ["a dog", "a cow"], "timestamp": [["0:00", "0:01"], ["0:01", "0:02"]]}'
    members = [
        ("a.txt", b"nan"),
        ("a.json", b'{"text": "a cat"}'),
        ("b.json", b'{"caption": "None"}'),
        ("c.json", parts),
        ("d.json", parts),
        *(("e.json", parts), ("e.txt", b"a cow")),
    ]
    tar = write_tar(tmp_path / "a.tar", [*((f"{key}.mp4", tiny_video) for key in "abcde"), *members])
    store = TarStore(tar)
    assert store.caption("e") == "a cow" and not caplog.messages
    assert [store.caption(key) for key in "abcd"] == ["a cat", "", "", ""]
    (warning,) = caplog.messages
    assert f"{tmp_path}: no captions from JSON files that list several parts of a video" in warning


def test_a_text_goes_before_json_as_in_folders(tmp_path, tiny_video):
    """Such as new captions beside the files that a downloader wrote."""
    files = {"a.mp4": tiny_video, "a.txt": b"a cat", "a.json": b'{"caption": "cats!!", "width": 3, "views": 7}'}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    store = TarStore(write_tar(tmp_path / "a.tar", list(files.items())))
    assert store.fields("a") == FolderStore(tmp_path).fields("a.mp4") == {"views": 7, "caption": "a cat"}


def test_nested_folders_of_tars(tmp_path, tiny_video, caplog):
    for folder in ("one", "two/deep"):
        (tmp_path / folder).mkdir(parents=True)
        write_tar(tmp_path / folder / "0.tar", [("a.mp4", tiny_video)], [meta("a", caption=folder)])
    clips = list(fixed_clips(small(tmp_path), stride=100))
    assert [(clip.key, clip.caption) for clip in clips] == [("one/0/a", "one"), ("two/deep/0/a", "two/deep")]
    (tmp_path / "b.mp4").write_bytes(tiny_video)
    assert [clip.key.partition("/")[2] for clip in fixed_clips(small(tmp_path), stride=100)] == ["b.mp4"]
    assert "only its videos are read" in caplog.text
    shutil.copy(tmp_path / "one" / "0.tar", tmp_path)
    assert len(list(fixed_clips(small(tmp_path), stride=100))) == 3 and "only its .tar shards" in caplog.text


@pytest.mark.parametrize("table", ["metadata.csv", "set/captions.jsonl", "metadata.json", "a.parquet", "prompts.txt"])
def test_a_table_in_a_tar_is_named(tmp_path, tiny_video, caplog, table):
    store = TarStore(write_tar(tmp_path / "a.tar", [("0.mp4", tiny_video), (table, b"path,caption\n0.mp4,x")]))
    assert store.caption("0") == ""
    assert f"no captions from {table}, tables in tars are not read; put KEY.txt beside KEY.mp4" in caplog.text
