"""Captions wherever people keep them: packed, trained on, and given to the reward's client alike."""

import datetime
import json
import os
import unicodedata

import pytest

from sat_ssvae.data.caption_fields import caption_in, csv_value, text_of
from sat_ssvae.data.captions import CaptionFinder
from sat_ssvae.data.folders import files_below
from sat_ssvae.data.index import caption_of, find_stores, list_samples, read_records
from sat_ssvae.data.pack import PackConfig, pack
from sat_ssvae.data.settings import AnyOf
from sat_ssvae.data.shards import fixed_clips
from sat_ssvae.data.skips import SkipLog
from sat_ssvae.data.tars import TarStore
from sat_ssvae.errors import UserError
from sat_ssvae.evaluation.items import list_items

from .caption_files import parquet_file, write
from .shard_files import meta, small, write_tar

LAYOUTS = {
    "beside": {"a.txt": "a cat\n"},
    "beside, with the suffix": {"a.mp4.txt": "a cat"},
    "beside, of Windows": {"a.txt": b"\xef\xbb\xbfa cat\r\n"},
    "beside, of Notepad": {"a.txt": "a cat".encode("utf-16")},
    "caption beside": {"a.caption": "a cat"},
    "by language": {"a.json": '{"caption": {"zh": "mao", "en": "a cat"}}'},
    "long and short": {"a.json": '{"short_caption": "cat", "long_caption": "a cat"}'},
    "captions": {"captions/a.txt": "a cat"},
    "a TSV file": {"list.tsv": "path\tcaption\na.mp4\ta cat\n"},
    "a table of WebVid": {
        "results.csv": "videoid,contentUrl,duration,page_dir,name\na,http://x/y.mp4,PT00H,7_8,a cat\n"
    },
    "json beside": {"a.json": '{"prompt": "a cat"}'},
    "json with a BOM": {"a.json": b'\xef\xbb\xbf{"caption": ["a cat", "a pet"]}'},
    "broken json, text beside": {"a.json": '{"caption":', "a.txt": "a cat"},
    "json without a caption, text beside": {"a.json": '{"url": "x"}', "a.txt": "a cat"},
    "labels": {"labels/a.txt": "a cat"},
    "metadata.jsonl": {"metadata.jsonl": '{"file_name": "a.mp4", "text": "a cat"}\n'},
    "metadata.jsonl, a line broken": {"metadata.jsonl": '{"file_na\n\n{"file_name": "./a.mp4", "caption": "a cat"}\n'},
    "metadata.jsonl, no suffix": {"metadata.jsonl": '{"video": "a", "caption": "a cat"}'},
    "metadata.json": {"metadata.json": '[{"path": "a.mp4", "cap": ["a cat"]}]'},
    "metadata.json by path": {"metadata.json": '{"a.mp4": "a cat"}'},
    "metadata.csv": {"metadata.csv": "file_name,text\na.mp4,a cat\n"},
    "metadata.parquet": {"metadata.parquet": parquet_file(file_name=["b.mp4", "a.mp4"], text=["a dog", "a cat"])},
    "a Parquet file of more than text": {
        "train-00000.parquet": parquet_file(
            video=[{"bytes": b"x", "path": "a.mp4"}],
            caption=[["a cat", "one more"]],
            made=[datetime.datetime(2026, 1, 2)],
            score=[float("nan")],
            content=[b"x"],
        )
    },
    "a CSV file with semicolons": {"list.csv": "path;caption;score\na.mp4;a cat;3,5\n"},
    "a CSV file with tabs": {"list.csv": "path\tcaption\na.mp4\ta cat\n"},
    "keys in capitals": {"a.json": '{"Caption": "a cat", "URL": "x"}'},
    "a table of OpenVid": {"OpenVid.csv": "\ufeffvideo,caption,motion score\nclips/a.mp4,a cat,3.5\n"},
    "beside, in capitals": {"a.TXT": "a cat"},
    "labels, in capitals": {"labels/a.TXT": "a cat"},
    "captions.jsonl": {"captions.jsonl": '{"video": "a.mp4", "caption": "a cat"}'},
    "a list of another name": {"video_cap.json": '[{"path": "a.mp4", "cap": ["a cat"], "fps": 24}]'},
    "captions by path": {"all.json": '{"a.mp4": "a cat"}'},
    "a label in JSON": {"captions/a.json": '{"caption": "a cat"}'},
    "a folder of prompts": {"prompts/a.txt": "a cat"},
    "a CSV file of UTF-16": {"list.csv": "path,caption\na.mp4,a cat\n".encode("utf-16")},
    "a CSV file of Latin-1": {"list.csv": "path,caption\na.mp4,a cat\nb.mp4,caf\xe9\n".encode("latin-1")},
    "a CSV file that begins with an empty line": {"list.csv": "\r\npath,caption\r\na.mp4,a cat\r\n"},
    "a CSV file with bars": {"list.csv": "path|caption\na.mp4|a cat\n"},
    "a CSV file in capitals": {"LIST.CSV": "filename,description\na.mp4,a cat\n"},
    "a CSV file with spaces": {"list.csv": 'caption, path\n"a cat", "a.mp4"\n'},
    "a list in JSON lines": {"metadata.jsonl": '[\n{"file_name": "a.mp4", "text": "a cat"}\n]'},
    "JSON lines in a list's file": {"train.json": '{"file_name": "a.mp4", "text": "a cat"}\n{"file_name": "b.mp4"}\n'},
    "a row of JSON": {"metadata.json": '{"File_Name": "a.mp4", "Text": "a cat"}'},
    "a list inside of an object": {"all.json": '{"info": {"v": 1}, "data": [{"path": "a.mp4", "caption": "a cat"}]}'},
    "MSR-VTT": {
        "train.json": '{"videos": [{"video_id": "a", "split": "train"}], "sentences": ['
        '{"caption": "a cat", "video_id": "a"}, {"caption": "a pet", "video_id": "a"}]}',
    },
    "names and captions": {"list.csv": "name,caption\na.mp4,a cat\n"},
    "clips and sentences": {"list.csv": 'clip_path,sentence\na.mp4,"a cat"\n'},
    "a CSV file of Excel": {"list.csv": "\ufeffsep=;\r\npath;caption\r\na.mp4;a cat\r\n"},
    "a CSV file of Excel, UTF-16": {"list.csv": "sep=\t\npath\tcaption\na.mp4\ta cat".encode("utf-16")},
    "a CSV file of ids": {"list.csv": "id,caption\nb,a dog\na,a cat\n"},
    "a CSV file of ids with suffixes": {"list.csv": "clipID,caption\na.mp4,a cat\n"},
    "a CSV file of keys": {"list.csv": "uid,license,text\na,x,a cat\n"},
    "a CSV file with commas at the ends": {"list.csv": "path,caption\na.mp4,a cat,\n"},
    "columns in words": {"list.csv": "File Name,Video Caption\na.mp4,a cat\n"},
    "keys in camel case": {"list.jsonl": '{"videoPath": "a.mp4", "denseCaption": "a cat"}\n{"videoPath": "b.mp4"}\n'},
    "a prompt, and what it is not": {"a.json": '{"negative_prompt": "blurry", "text_prompt": "a cat"}'},
    "ndjson": {"list.ndjson": '{"media_path": "a.mp4", "caption": "a cat"}\r\n{"media_path": "b.mp4"}\r\n'},
    "COCO": {"list.jsonl": '{"id": "a", "image_id": 7, "caption": "a dog"}\n{"path": "a.mp4", "caption": "a cat"}'},
    "COCO's two lists": {
        "coco.json": '{"images": [{"id": 7, "file_name": "a.mp4"}], "annotations": ['
        '{"id": 1, "image_id": 7, "caption": "a cat"}, {"id": 2, "image_id": 7, "caption": "a dog"}]}'
    },
    "COCO's two lists, of videos by name": {
        "coco.json": '{"videos": [{"id": "7", "name": "a.mp4"}], "annotations": [{"video_id": 7, "caption": "a cat"}]}'
    },
    "COCO's two lists, of ids": {
        "coco.json": '{"videos": [{"id": 1, "video_id": "a"}], "annotations": [{"video_id": 1, "caption": "a cat"}]}'
    },
    "a column src": {"list.csv": "src,caption\na.mp4,a cat\n"},
    "addresses": {"list.csv": "url,caption\nhttp://x.y/z/a.mp4?size=1,a cat\n"},
    "addresses of pages, and ids": {"list.csv": "videoid,url,caption\na,http://x.y/watch?v=a,a cat\n"},
    "VATEX": {"vatex.json": '[{"videoID": "a", "enCap": ["a cat", "one more"], "chCap": ["x"]}]'},
    "a list that pandas wrote": {"list.csv": "path,captions\na.mp4,\"['a cat', 'one more']\"\n"},
    "a list of one clip": {"list.csv": "videoID,timestamp,caption\na,\"[['0:01', '0:02']]\",\"['a cat']\"\n"},
    "nested objects": {"list.jsonl": '{"video": {"path": "a.mp4"}, "caption": "a cat"}'},
    "a conversation": {
        "list.json": '[{"id": 1, "video": "a.mp4", "conversations": [{"from": "human", "value": "<video>What?"},'
        ' {"from": "gpt", "value": "a cat"}]}]'
    },
    "messages": {
        "list.jsonl": '{"messages": [{"role": "user", "content": "<video>"}, {"role": "assistant", "content": "a cat"}]'
        ', "videos": ["a.mp4"]}'
    },
    "a quote that is not closed": {"list.csv": 'path,caption\nb.mp4,"a dog\na.mp4,a cat\nc.mp4,"a cow"\n'},
    "two lists with empty lines": {"videos.txt": "a.mp4\r\n", "prompts.txt": "a cat\r\n\r\n\r\n"},
    "two lists of finetrainers": {"videos.txt": "a.mp4\n", "captions.txt": "a cat\n"},
    "two lists": {"videos.txt": "b.mp4\na.mp4\n", "prompts.txt": "a dog\na cat\n"},
    "two lists, of Windows": {"videos.txt": "a.mp4\r\nb.mp4", "prompts.txt": "\ufeffa cat\r\na dog\r\n"},
}


COUNTED = {
    "a list named like the folder of videos": {"train.json": '[{"video": "train/a.mp4", "caption": "a cat"}]'},
    "a list beside a text of its name": {"captions.json": '{"train/a.mp4": "a cat"}', "captions.txt": "a cat"},
    "ids and a column that ends in id": {"list.csv": "id,caption,valid,channel_id\na,a cat,True,x\n"},
    "ids of YouTube": {"list.jsonl": '{"YoutubeID": "a", "Start_timestamp": "0:01", "Caption": "a cat"}\n{}\n'},
    "a data set's name and description": {
        "metadata.json": '{"name": "set", "description": "of mine", "images": [{"id": 1, "file_name": "train/a.mp4"}], '
        '"annotations": [{"image_id": 1, "caption": "a cat"}]}'
    },
    "a kind of content": {"list.csv": "path,content,video_caption\na.mp4,mp4,a cat\n"},
    "names of files": {"aes.csv": "video_id,name,score\na,a.mp4,3\n", "list.csv": "path,caption\na.mp4,a cat\n"},
    "paths of another machine": {"list.csv": "path,caption\n/x/train/a.mp4,a cat\n/x/test/a.mp4,a dog\n"},
    "two files of JSON": {"train/a.json": '{"text": "a cat"}', "labels/train/a.json": '{"text": "a dog"}'},
    "a column `image`": {"list.csv": "image,caption\ntrain/a.mp4,a cat\n"},
}


@pytest.mark.parametrize("layout", COUNTED)
def test_layouts_below_a_folder(tmp_path, layout):
    write(tmp_path, {"train/a.mp4": b"", **COUNTED[layout]})
    assert CaptionFinder(tmp_path).caption(tmp_path / "train" / "a.mp4") == "a cat"


@pytest.mark.parametrize(("video", "label"), [("images/a.jpg", "labels/a.txt"), ("mp4/a.mp4", "txt/a.txt")])
def test_labels_of_other_folders(tmp_path, video, label):
    write(tmp_path, {video: b"", label: "a cat"})
    assert CaptionFinder(tmp_path).caption(tmp_path / video) == "a cat"


def captions_everywhere(place, output):
    """What training, the packer, and reward find in a folder."""
    trained = [clip.caption for clip in fixed_clips(small(place), stride=100)]
    pack(place, output, PackConfig(workers=1))
    records = [json.loads(line) for line in (output / "clips-000000.meta.jsonl").read_text().splitlines()]
    assert [record.get("caption", "") for record in records] == trained
    assert [clip.caption for clip in fixed_clips(small(output), stride=100)] == trained
    assert [item.caption for item in list_items(place, [])] == trained
    assert [item.caption for item in list_items(output, [])] == trained
    return trained


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_found_by_all(tmp_path, tiny_video, layout):
    write(tmp_path / "in", {"a.mp4": tiny_video, **LAYOUTS[layout]})
    assert captions_everywhere(tmp_path / "in", tmp_path / "out") == ["a cat"]
    assert next(iter(list_items(tmp_path / "in" / "a.mp4", []))).caption == "a cat"


OTHERS = {
    "a key `content`": {"a.json": '{"content": "a cat"}'},
    "a column `content`": {"list.csv": "path,content\na.mp4,a cat\n"},
    "Vript": {
        "vript.jsonl": '{"meta": {"video_id": "x"}, "data": {"b": {"clip_id": "b", "caption": {"content": "a dog"}}, '
        '"a": {"video_id": "x", "clip_id": "a", "caption": {"shot_type": "close", "content": "a cat"}}}}\n{}\n',
    },
    "ShareGPT4Video": {
        "share.jsonl": '{"video_path": "x/a.mp4", "timestamp": ["0", "2"], "captions": ['
        '{"idx": "1", "content": "a dog"}, {"idx": "-1", "content": "a cat"}]}\n{}\n',
    },
    "Cosmos, to train on": {"metas/a.txt": "a cat"},
    "Cosmos, curated": {
        "metas/v0/a.json": '{"windows": [{"start_frame": 0, "end_frame": 99, "qwen_caption": "a cat"}]}'
    },
    "a missing text": {"a.txt": "nan\n", "list.csv": "path,caption\na.mp4,a cat\n"},
    "a missing cell": {"list.csv": "path,caption,text\na.mp4,nan,a cat\n"},
    "a missing value": {
        "list.json": '[{"path": "a.mp4", "caption": "None", "text": "NULL", "cap": NaN, "alt_caption": "a cat"}]'
    },
    "columns of pandas": {
        "list.json": '{"file_name": {"0": "a.mp4", "1": "b.mp4"}, "text": {"0": "a cat", "1": null}}'
    },
    "rows of pandas": {"list.json": '{"0": {"file_name": "a.mp4", "text": "a cat"}, "1": {"file_name": "b.mp4"}}'},
    "lists as columns": {"list.json": '{"path": ["b.mp4", "a.mp4"], "caption": ["a dog", "a cat"]}'},
    "two languages": {"list.csv": "path,caption_zh,caption_en\na.mp4,mao,a cat\n"},
    "a description": {"list.jsonl": '{"video_file_name": "a.mp4", "video_description": "a cat"}\n{}\n'},
    "two lengths": {"list.csv": "file_path,short_caption,dense_caption\na.mp4,cat,a cat\n"},
    "one part": {"list.csv": "path,start_time,end_time,caption\na.mp4,0,2,a cat\n"},
    "one part, twice": {"list.csv": "path,start,end,caption\na.mp4,0,2,a cat\na.mp4,0,2,a pet\n"},
}


@pytest.mark.parametrize("layout", OTHERS)
def test_other_layouts(tmp_path, layout):
    write(tmp_path, {"a.mp4": b"", **OTHERS[layout]})
    assert CaptionFinder(tmp_path).caption(tmp_path / "a.mp4") == "a cat"


@pytest.mark.parametrize("given", ["", "videos"])
@pytest.mark.parametrize(
    "files",
    [
        {"labels/deep/a.txt": "a cat"},
        {"captions/deep/a.txt": "a cat"},
        {"texts/deep/a.txt": "a cat"},
        {"labels/deep/a.json": '{"caption": "a cat"}'},
        {"videos.txt": "videos/deep/a.mp4", "prompts.txt": "a cat"},
        {"metadata.jsonl": '{"file_name": "videos/deep/a.mp4", "caption": "a cat"}'},
        {"list.csv": "path,prompt\nvideos\\deep\\a.mp4,a cat"},
        {"list.csv": "Path,Caption\nvideos/deep/a.mp4,a cat"},
        {"captions.json": '{"videos\\\\deep\\\\a.mp4": "a cat"}'},
    ],
    ids=lambda files: next(iter(files)),
)
def test_folders_of_videos_and_labels(tmp_path, tiny_video, files, given):
    """As CogVideoX's training, its diffusers fork, and data sets on the hub have them."""
    write(tmp_path / "in", {"videos/deep/a.mp4": tiny_video, **files})
    assert captions_everywhere(tmp_path / "in" / given, tmp_path / "out") == ["a cat"]


def test_what_is_nearer_goes_first(tmp_path):
    layouts = [
        {"a.txt": "beside"},
        {"labels/a.txt": "labels"},
        {"a.json": '{"caption": "json"}'},
        {"metadata.jsonl": '{"file_name": "a.mp4", "caption": "jsonl"}'},
        {"videos.txt": "a.mp4", "prompts.txt": "lists"},
    ]
    write(tmp_path, {name: content for layout in layouts for name, content in layout.items()})
    write(tmp_path, {"b.csv": "path,caption,score\na.mp4,csv,2\n", "a.mp4": b"video"})
    found = []
    for name in ("a.txt", "labels/a.txt", "a.json", "metadata.jsonl", "b.csv", "videos.txt"):
        fields = CaptionFinder(tmp_path).fields(tmp_path / "a.mp4")
        found.append(fields.pop("caption"))
        assert fields == ({"score": 2} if (tmp_path / "b.csv").exists() else {})
        (tmp_path / name).unlink()
    assert found == ["beside", "labels", "json", "jsonl", "csv", "lists"]
    assert CaptionFinder(tmp_path).caption(tmp_path / "a.mp4") == ""


def test_a_name_that_two_files_have_is_no_guess(tmp_path):
    write(tmp_path, {"one/a.mp4": b"1", "two/a.mp4": b"2", "a.mp4": b"3", "b.csv": "path,caption\na.mp4,a cat\n"})
    finder = CaptionFinder(tmp_path)
    assert [finder.caption(tmp_path / name) for name in ("a.mp4", "one/a.mp4", "two/a.mp4")] == ["a cat", "", ""]
    write(tmp_path, {"c.csv": "path,caption\nx/c.mp4,one\ny/c.mp4,two\nx/d.mp4,three\n", "c.mp4": b"4", "d.mp4": b"5"})
    finder = CaptionFinder(tmp_path)
    assert [finder.caption(tmp_path / name) for name in ("c.mp4", "d.mp4")] == ["", "three"]


def test_a_file_of_older_windows_programs(tmp_path):
    write(tmp_path, {"a.mp4": b"", "a.txt": "caf\xe9".encode("cp1252")})
    assert CaptionFinder(tmp_path).caption(tmp_path / "a.mp4") == "caf\xe9"
    write(tmp_path, {"b.mp4": b"", "b.json": '{"caption": "caf\xe9"}'.encode("cp1252")})
    assert CaptionFinder(tmp_path).caption(tmp_path / "b.mp4") == "caf\xe9"


def test_lists_of_different_lengths_are_refused(tmp_path, tiny_video):
    write(tmp_path / "in", {"a.mp4": tiny_video, "videos.txt": "a.mp4\nb.mp4\n", "prompts.txt": "a cat\n"})
    with pytest.raises(UserError, match=r"videos.txt has 2 lines and prompts.txt 1"):
        pack(tmp_path / "in", tmp_path / "out", PackConfig(workers=1))


def test_a_meta_file_is_no_table_of_videos(tmp_path):
    write(tmp_path, {"00000001.mp4": b"", "clips-000000.meta.jsonl": json.dumps(meta("00000001", caption="another"))})
    assert CaptionFinder(tmp_path).fields(tmp_path / "00000001.mp4") == {}


def test_no_caption_at_all_is_refused(tmp_path, tiny_video, caplog):
    write(tmp_path / "in", {"a.mp4": tiny_video, "b.mp4": tiny_video})
    with pytest.raises(UserError, match=r"none of 2 files has a caption .*captions=none"):
        pack(tmp_path / "in", tmp_path / "out", PackConfig(workers=1))
    report = pack(tmp_path / "in", tmp_path / "without", PackConfig(workers=1, captions="none"))
    assert (report.samples, report.captions) == (2, 0)
    write(tmp_path / "in", {"a.txt": "a cat"})
    report = pack(tmp_path / "in", tmp_path / "some", PackConfig(workers=1))
    assert (report.samples, report.captions) == (2, 1) and "1 of 2 files have no caption" in caplog.text
    assert pack(tmp_path / "in", tmp_path / "none", PackConfig(workers=1, captions="none")).captions == 0


def test_clips_with_captions_are_counted(tmp_path, tiny_video):
    write(tmp_path / "in", {"a.mp4": tiny_video, "b.mp4": tiny_video, "b.txt": "a cat"})
    assert fixed_clips(small(tmp_path / "in"), stride=0.5).count_captions() == 2  # of four
    tar = write_tar(tmp_path / "s.tar", [("a.mp4", tiny_video), ("a.txt", b"a cat")], [meta("a"), meta("b")])
    assert fixed_clips(small(tar), stride=100).count_captions() == 1


def test_further_columns_can_be_filtered_by(tmp_path, tiny_video):
    columns = "path,caption,aesthetic,kind,good,fps,id,empty,odd\n"
    rows = (
        "a.mp4,one,5.5,film,True,99,007,,nan\nb.mp4,two,4,film,false,99,008,,1\nc.mp4,three,6e0,cartoon,True,9,9,,x\n"
    )
    write(tmp_path / "in", dict.fromkeys(("a.mp4", "b.mp4", "c.mp4"), tiny_video) | {"t.csv": columns + rows})
    pack(tmp_path / "in" / "t.csv", tmp_path / "out", PackConfig(workers=1))
    first = json.loads((tmp_path / "out" / "clips-000000.meta.jsonl").read_text().splitlines()[0])
    assert first.items() >= {"aesthetic": 5.5, "kind": "film", "good": True, "id": "007", "odd": "nan"}.items()
    assert first["fps"] == 24 and "empty" not in first
    filters = {"aesthetic": (5.0, None), "kind": AnyOf(any_of=("film",)), "good": AnyOf(any_of=(True,))}
    for place in (tmp_path / "in", tmp_path / "out"):
        samples = list_samples(find_stores(str(place), print), filters, lambda _: None)
        assert [sample.caption for sample in samples] == ["one"]


def test_a_table_of_numbers_as_names(tmp_path):
    write(tmp_path, {"clips/0012.mp4": b"1", "clips/12.mp4": b"2", "a.tsv": "VideoID\tName\n0012\ta cat\n12\ta dog\n"})
    finder = CaptionFinder(tmp_path)
    assert [finder.fields(tmp_path / "clips" / name) for name in ("0012.mp4", "12.mp4")] == [
        {"videoid": "0012", "caption": "a cat"},
        {"videoid": "12", "caption": "a dog"},
    ]


def test_several_videos_under_one_first_name_are_several_samples(tmp_path, tiny_video):
    members = [
        ("film.1.mp4", tiny_video),
        ("film.1.txt", b"a cat"),
        ("film.2.mp4", tiny_video),
        ("film.2.txt", b"a dog"),
    ]
    members += [("clip.a.mp4", tiny_video), ("clip.b.webm", tiny_video), ("clip.json", b'{"caption": "both"}')]
    members += [("one.mp4", tiny_video), ("one.preview.mp4", b"nothing"), ("one.thumb.jpg", b"nothing")]
    tar = write_tar(tmp_path / "a.tar", members)
    clips = fixed_clips(small(tar), stride=100)
    expected = {"film.1": "a cat", "film.2": "a dog", "clip.a": "both", "clip.b": "both", "one": ""}
    assert {clip.key.removeprefix("a/"): clip.caption for clip in clips} == expected
    write_tar(tmp_path / "a.tar", [("v0.480p.mp4", tiny_video), ("v0.480p.txt", b"a cat")], [meta("v0.480p")])
    assert [clip.caption for clip in fixed_clips(small(tar), stride=100)] == ["a cat"]  # however its key was split
    write_tar(tmp_path / "a.tar", [("v0.480p.mp4", tiny_video), ("v0.480p.txt", b"a cat")], [meta("v0")])
    assert [clip.caption for clip in fixed_clips(small(tar), stride=100)] == ["a cat"]


def test_links_are_followed_once_and_hidden_files_left_out(tmp_path, tiny_video):
    write(tmp_path / "far", {"c.mp4": tiny_video, "c.txt": "a cat"})
    write(
        tmp_path / "in",
        {"a.mp4": tiny_video, "._a.mp4": b"\0\5\x16\7", ".cache/b.mp4": tiny_video, "z/d.mp4": tiny_video},
    )
    folder = tmp_path / "in"
    for name, target in {"loop": folder, "z/up": folder, "far": tmp_path / "far", "0again": folder / "z"}.items():
        (folder / name).symlink_to(target, target_is_directory=True)
    (folder / "self").symlink_to("self")
    (folder / "file.mp4").symlink_to(tmp_path / "far" / "c.mp4")
    (folder / "gone.mp4").symlink_to("nowhere.mp4")
    skips = SkipLog()
    keys = [clip.key for clip in fixed_clips(small(folder), stride=100, skips=skips)]
    assert keys == ["in/a.mp4", "in/far/c.mp4", "in/file.mp4", "in/z/d.mp4"]
    assert skips.counts == {"missing file": 1}
    report = pack(folder, tmp_path / "out", PackConfig(workers=1))
    assert (report.samples, report.captions) == (4, 1) and report.skipped["missing file"] >= 1
    assert all(not path.name.startswith(".") for path in files_below(folder))


def test_a_folder_named_like_a_pattern(tmp_path, tiny_video):
    write(tmp_path / "a{0..3}::b", {"a.mp4": tiny_video})
    assert len(list(fixed_clips(small(tmp_path / "a{0..3}::b"), stride=100))) == 1


def test_a_folder_may_be_given_by_any_name(tmp_path, tiny_video, monkeypatch):
    write(tmp_path, {"videos/a.mp4": tiny_video, "labels/a.txt": "a cat", "videos/deep/b.mp4": tiny_video})
    monkeypatch.chdir(tmp_path / "videos" / "deep")
    for place in ("..", "../../videos", os.path.relpath(tmp_path / "videos"), str(tmp_path / "videos")):
        assert next(iter(fixed_clips(small(place), stride=100))).caption == "a cat"


def test_a_record_s_own_caption_goes_first(tmp_path, tiny_video):
    records = [meta("a", caption="record"), meta("b", text=["list"]), meta("c")]
    tar = write_tar(tmp_path / "a.tar", [(f"{key}.{s}", b"tar") for key in "abc" for s in ("mp4", "txt")], records)
    (store,) = find_stores(str(tar), print)
    assert [caption_of(store, record) for record in read_records(store, print)] == ["record", "list", "tar"]


def test_values():
    assert [csv_value(text) for text in ("1", "-2.5e3", "true", "FALSE", "01", "nan", "1_0", " 1")] == [
        *(1, -2500.0, True, False),
        *("01", "nan", "1_0", " 1"),
    ]
    assert text_of(b"\xff\xfea\0b\0") == "ab" and text_of(b"a\xff") == "a\xff"
    assert caption_in([[[[["too deep"]]]]]) == "" and caption_in({"title": "other key"}) == ""


@pytest.mark.parametrize(("video", "caption"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_are_the_same_however_they_are_written(tmp_path, tiny_video, video, caption):
    """macOS writes an accent apart from its letter in names of files, other systems and editors do not."""
    name, other = (unicodedata.normalize(form, "café") for form in (video, caption))
    assert name != other
    layouts = {
        "beside": {f"{other}.txt": "a cat"},
        "labels": {f"labels/{other}.txt": "a cat"},
        "table": {"metadata.csv": f"path,caption\n{other}.mp4,a cat\n"},
    }
    for layout, files in layouts.items():
        write(tmp_path / layout, files | {f"{name}.mp4": b""})
        assert CaptionFinder(tmp_path / layout).caption(tmp_path / layout / f"{name}.mp4") == "a cat", layout
    store = TarStore(write_tar(tmp_path / "a.tar", [(f"{name}.mp4", tiny_video), (f"{other}.txt", b"a cat")]))
    (key,) = store.keys()
    assert store.caption(key) == "a cat" and store.media(name) == ("mp4", tiny_video)
