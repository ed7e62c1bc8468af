"""Tables of captions: which row belongs to a video, and which belongs to a part of it."""

import json
import time

import pytest

from sat_ssvae.addresses import path_of
from sat_ssvae.data.captions import CaptionFinder
from sat_ssvae.data.inputs import pack_items
from sat_ssvae.errors import UserError

from .caption_files import parquet_file, write


@pytest.mark.parametrize("name", ["12e45678", "1.10", "0012"])
def test_an_id_is_a_text_also_where_it_reads_like_a_number(tmp_path, name):
    write(tmp_path, {f"{name}.mp4": b"", "list.csv": f"ID,caption\n{name},a cat\n"})
    assert CaptionFinder(tmp_path).caption(tmp_path / f"{name}.mp4") == "a cat"


@pytest.mark.parametrize(
    "files",
    [
        {"a.json": '[{"start": 0, "end": 1, "text": "a dog"}, {"start": 1, "end": 2, "text": "a cow"}]'},
        {"list.json": '{"a": [{"start": 0, "caption": "a dog"}, {"start": 1, "caption": "a cow"}]}'},
        {"list.csv": "video_id,clip_id,caption\na,0,a dog\na,1,a cow\n"},
        {"list.csv": "video_id,t_start,t_end,caption\na,0,1,a dog\na,1,2,a cow\n"},
        {"list.json": '[{"path": "a.mp4", "segment": [0], "cap": "x"}, {"path": "a.mp4", "segment": [1], "cap": "y"}]'},
        {"list.csv": "path,content\na.mp4,video\n"},
    ],
    ids=["a file of parts", "parts by name", "numbered parts", "t_start", "segments", "a kind of file"],
)
def test_what_is_no_caption_of_the_video(tmp_path, files):
    write(tmp_path, {"a.mp4": b"", **files})
    assert CaptionFinder(tmp_path).caption(tmp_path / "a.mp4") == ""


def test_a_file_of_json_for_each_of_many_videos_that_are_gone(tmp_path):
    """As downloads that failed leave them: none is asked for each video."""
    row = '{"url": "http://x/NUMBER.mp4", "text": "x"}'
    write(tmp_path, {f"{number:04d}.json": row.replace("NUMBER", str(number)) for number in range(400)})
    write(tmp_path, {"list.csv": "path,caption\nx/7.mp4,a cat\nv.1.mp4,a dog\n", "7.json": '{"path": "7.mp4", "n": 1}'})
    finder = CaptionFinder(tmp_path)
    start = time.perf_counter()
    found = {name: finder.fields(tmp_path / f"{name}.mp4") for name in ("7", "v.1", *map(str, range(400, 1000)))}
    assert time.perf_counter() - start < 5  # 20 to ask them all
    assert found["7"] == {"n": 1, "url": "http://x/7.mp4", "caption": "x"} and found["v.1"] == {"caption": "a dog"}


def test_a_compressed_table_is_named(tmp_path, caplog):
    write(tmp_path, {"a.mp4": b"", "list.csv.gz": b"x", "more.csv.gz": b"x"})
    assert CaptionFinder(tmp_path).caption(tmp_path / "a.mp4") == ""
    (warning,) = caplog.messages
    assert "list.csv.gz: no captions from it, it is compressed; unpack it" in warning


def test_a_list_of_json_that_names_no_videos_says_so(tmp_path, caplog):
    write(tmp_path, {"a.mp4": b"", "list.json": '[{"vidname": "a.mp4", "caption": "a cat"}]'})
    assert CaptionFinder(tmp_path).caption(tmp_path / "a.mp4") == ""
    assert "none of its columns is `path` or `video_id`: vidname, caption" in caplog.text


PARTS = {
    "start_time": ("start_time,end_time", ["0,1.5", "1.5,3"]),
    "times of day": ("Start Timestamp,End Timestamp", ["00:00:00.000,00:00:01.500", "0:01.5,0:03"]),
    "start and end": ("start,end", ["0,1.5", "1.5,3"]),
}


@pytest.mark.parametrize("case", PARTS)
def test_rows_of_parts_are_no_captions_of_the_whole_video(tmp_path, case, caplog):
    """As Panda-70M, Koala-36M and OpenVid list them: packing the table cuts, packing the folder asks for that."""
    columns, spans = PARTS[case]
    rows = [f"a.mp4,{span},{caption}\n" for span, caption in zip(spans, ("a cat", "a dog"), strict=True)]
    write(tmp_path, {"a.mp4": b"", "list.csv": f"path,{columns},caption\n{''.join(rows)}"})
    assert CaptionFinder(tmp_path).fields(tmp_path / "a.mp4") == {}
    assert "list.csv: no captions of 1 videos, since it lists several parts of each; give a CSV file" in caplog.text
    items = pack_items(tmp_path / "list.csv", tmp_path / "out")
    assert [(item.start, item.end, item.caption) for item in items] == [(0.0, 1.5, "a cat"), (1.5, 3.0, "a dog")]


def test_parts_without_seconds_are_refused(tmp_path):
    write(tmp_path, {"a.mp4": b"", "list.csv": "path,start_frame,caption\na.mp4,0,a cat\na.mp4,24,a dog\n"})
    assert CaptionFinder(tmp_path).caption(tmp_path / "a.mp4") == ""
    with pytest.raises(
        UserError, match=r"line 3: another part of a.mp4; give its seconds in columns `start` and `end`"
    ):
        pack_items(tmp_path / "list.csv", tmp_path / "out")
    write(tmp_path, {"list.csv": "path,start_time,end_time,caption\na.mp4,2024-05-01,2024-05-02,a cat\n"})
    (item,) = pack_items(tmp_path / "list.csv", tmp_path / "out")  # when it was recorded
    assert (item.start, item.end, item.fields["start_time"]) == (0.0, None, "2024-05-01")


@pytest.mark.parametrize("name", ["list.jsonl", "list.json", "list.parquet", "a.json"])
def test_rows_of_several_clips_are_none_of_the_whole_video(tmp_path, name, caplog):
    """Panda-70M, however it was written."""
    row = {"videoID": "a", "timestamp": [["0:01", "0:03"], ["0:04", "0:06"]], "caption": ["a cat", "a dog"]}
    contents = {
        "list.jsonl": json.dumps(row) + "\n{}\n",
        "list.json": json.dumps([row]),
        "list.parquet": parquet_file(**{key: [value] for key, value in row.items()}),
        "a.json": json.dumps({"captions": [{"start": 0, "end": 1, "text": "a cat"}, {"start": 1, "text": "a dog"}]}),
    }
    write(tmp_path, {"a.mp4": b"", name: contents[name]})
    assert CaptionFinder(tmp_path).caption(tmp_path / "a.mp4") == ""
    beside = "no captions from JSON files that list several parts of a video"
    assert (beside if name == "a.json" else "no captions from 1 lines, which list several clips") in caplog.text


@pytest.mark.parametrize("content", ["[1, 2", "[" * 100_000, "7", '"a"', '{"a.mp4": 3}'])
def test_a_table_that_cannot_be_read_gives_nothing(tmp_path, content):
    write(tmp_path, {"a.mp4": b"", "metadata.json": content, "b.csv": f"path,caption\na.mp4,{'x' * 200_000}\n"})
    assert CaptionFinder(tmp_path).fields(tmp_path / "a.mp4") == {}


def test_a_damaged_parquet_file_gives_nothing(tmp_path, caplog):
    write(tmp_path, {"a.mp4": b"", "metadata.parquet": parquet_file(file_name=["a.mp4"], text=["a cat"])[:-9]})
    assert CaptionFinder(tmp_path).fields(tmp_path / "a.mp4") == {}
    assert "metadata.parquet: no captions from it" in caplog.text
    for suffix in ("parquet", "jsonl", "json", "txt"):
        with pytest.raises(UserError, match=rf"metadata\.{suffix}: give the folder"):
            pack_items([tmp_path / f"metadata.{suffix}"], tmp_path / "out")
    with pytest.raises(UserError, match=r"s3://bucket/metadata\.parquet: give the folder"):
        pack_items([path_of("s3://bucket/metadata.parquet")], tmp_path / "out")


QUOTES = {
    "to the end": ('a.mp4,"a cat\nb.mp4,a dog\n', ["a cat", "a dog"]),
    "to the next one": ('a.mp4,"a cat\nb.mp4,"a dog"\n', ["a cat", "a dog"]),
    "to one behind": ('a.mp4,"a cat\nb.mp4,a dog\nc.mp4,"a, b"\n', ["a cat", "a dog", "a, b"]),
    "to a quote at an end": ('a.mp4,"a cat\nb.mp4,a dog"\n', ["a cat", 'a dog"']),
    "inside": ('a.mp4,5" wide\nb.mp4,"big" dog\n', ['5" wide', '"big" dog']),
    "with a comma": ('a.mp4,"big, red" cat\nb.mp4,"a ""good"" dog"\n', ["big, red cat", 'a "good" dog']),
    "of several lines": ('a.mp4,"two\nlines, both"\nb.mp4,a dog\n', ["two\nlines, both", "a dog"]),
    "Windows": ('a.mp4,"a cat\r\nb.mp4,a dog\r\n', ["a cat", "a dog"]),
    "old Macs": ('a.mp4,"a cat\rb.mp4,a dog\r', ["a cat", "a dog"]),
}


@pytest.mark.parametrize("case", QUOTES)
def test_a_quote_that_is_not_closed_costs_no_other_row(tmp_path, case):
    rows, wanted = QUOTES[case]
    files = [f"{letter}.mp4" for letter in "abc"[: len(wanted)]]
    write(tmp_path, {**dict.fromkeys(files, b""), "list.csv": f"path,caption\n{rows}"})
    finder = CaptionFinder(tmp_path)
    assert [finder.caption(tmp_path / name) for name in files] == wanted
    assert [item.caption for item in pack_items(tmp_path / "list.csv", tmp_path / "out")] == wanted


@pytest.mark.parametrize("column", ["url", "path"])
def test_addresses_of_files_of_one_name_are_told_apart(tmp_path, column):
    write(tmp_path, {"a.mp4": b"", "list.csv": f"{column},caption\nhttp://x/1/a.mp4,a cat\nhttp://x/2/a.mp4,a dog\n"})
    assert CaptionFinder(tmp_path).fields(tmp_path / "a.mp4") == {}


def test_a_line_of_several_clips_is_no_caption_of_the_video(tmp_path, caplog):
    """Panda-70M: lists of times and captions."""
    row = "a.mp4,\"[['0:00:01', '0:00:03'], ['0:00:04', '0:00:06']]\",\"['a cat', 'a dog']\"\n"
    write(tmp_path, {"a.mp4": b"", "list.csv": f"path,timestamp,caption\n{row}"})
    assert CaptionFinder(tmp_path).fields(tmp_path / "a.mp4") == {}
    assert "no captions from 1 lines, which list several clips of a video; give a CSV file" in caplog.text
    with pytest.raises(UserError, match="line 2: it lists 2 clips of a video; give a CSV file of a line per clip"):
        pack_items(tmp_path / "list.csv", tmp_path / "out")


@pytest.mark.parametrize("table", ["a.mp4,a cat\nb.mp4,a dog\n", "clip number,caption\na.mp4,a cat\n"])
def test_a_table_that_names_no_videos_says_so(tmp_path, caplog, table):
    write(tmp_path, {"a.mp4": b"", "b.mp4": b"", "list.csv": table, "scores.csv": "name,score\na.mp4,3\n"})
    assert CaptionFinder(tmp_path).caption(tmp_path / "b.mp4") == ""
    (warning,) = caplog.messages
    columns = table.partition("\n")[0].replace(",", ", ")
    assert warning.endswith(f"none of its columns is `path` or `video_id`: {columns}")
