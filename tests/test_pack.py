"""What `pack` makes of videos, images and tables."""

import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sat_ssvae.cli import main
from sat_ssvae.config import parse_config
from sat_ssvae.data.convert import in_bursts
from sat_ssvae.data.inputs import PackItem, pack_items
from sat_ssvae.data.pack import PackConfig, pack
from sat_ssvae.data.video_io import probe, read_clip, write_video
from sat_ssvae.errors import UserError

from .shard_files import contents, records_in, samples_in, skips_in


def test_shards_hold_the_videos_and_their_meta(tiny_videos, tiny_shards):
    names = sorted(path.name for path in tiny_shards.glob("clips-*"))
    assert names == [f"clips-00000{number}.{kind}" for number in range(3) for kind in ("meta.jsonl", "tar")]
    samples, records = samples_in(tiny_shards), records_in(tiny_shards)
    assert [sample["__key__"] for sample in samples] == [record["key"] for record in records]
    for number, (sample, record) in enumerate(zip(samples, records, strict=True)):
        source = tiny_videos / f"bars{number}.mp4"
        assert sample["mp4"] == source.read_bytes()  # nothing to change: copied
        assert sample["id"].decode() == record["source"] == source.name
        info = probe(source)
        assert (record["height"], record["width"], record["frames"]) == (info.height, info.width, info.frames)
        assert record["duration"] == info.duration and record["fps"] == info.fps
    assert [record.get("caption") for record in records] == [None, "coloured bars", None, None, None]


def test_the_report_counts(tiny_videos, tiny_shards):
    report = pack(tiny_videos, tiny_shards, PackConfig(samples_per_shard=2))
    assert report.samples == 5 and len(report.shards) == 3 and report.skipped == {}


def test_workers_do_not_change_the_result(tiny_videos, tmp_path):
    for workers in (1, 3):
        pack(
            tiny_videos,
            tmp_path / str(workers),
            PackConfig(max_short_side=32, samples_per_shard=2, workers=workers),
        )
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


@settings(max_examples=10)
@given(side=st.integers(16, 80), max_fps=st.sampled_from([5, 8, 12, 23.9, 24, 50]), seconds=st.floats(0.3, 5))
def test_scaling_slowing_and_cutting(tiny_videos, tmp_path_factory, side, max_fps, seconds):
    output = tmp_path_factory.mktemp("cut")
    config = PackConfig(max_short_side=side, max_fps=max_fps, segment_seconds=seconds, workers=1, captions="none")
    video = tiny_videos / "bars3.mp4"
    pack(video, output, config)
    records = records_in(output)
    assert len(records) == max(1, round(3.0 / seconds))
    fps = max(24 / step for step in range(1, 25) if 24 / step <= max_fps * 1.001)
    short = min(side, 64)
    for record in records:
        assert record["fps"] == pytest.approx(fps, rel=1e-3)
        # H.264 in yuv420p has even sizes
        assert record["height"] in (short, short + 1) and record["height"] % 2 == 0
        assert abs(record["width"] - short * 80 / 64) <= 1.5
    # the parts hold the whole film: at most one frame lost or doubled per cut
    assert abs(sum(record["frames"] for record in records) - 3.0 * fps) <= len(records)


def test_parts_show_their_own_time(tmp_path):
    levels = torch.linspace(-0.9, 0.9, 48).view(1, 48, 1, 1).expand(3, 48, 32, 32)
    write_video(tmp_path / "ramp.mp4", levels, fps=24)
    pack([PackItem(tmp_path / "ramp.mp4", "ramp", "gray", start=0.5, end=1.5)], tmp_path / "out", PackConfig())
    (sample,), (record,) = samples_in(tmp_path / "out"), records_in(tmp_path / "out")
    assert (record["frames"], record["duration"], record["caption"]) == (24, 1.0, "gray")
    assert record["source"] == "ramp@0.500"
    first = read_clip(sample["mp4"], start=0, num_frames=1, fps=24, size=(32, 32)).float().mean()
    assert first == pytest.approx((levels[0, 12, 0, 0].item() + 1) * 127.5, abs=3)


@pytest.mark.parametrize(("size", "ahead"), [((256, 456), 24), ((1080, 1920), 5), ((4320, 7680), 1)])
def test_frames_are_made_in_bursts_of_bounded_size(size, ahead):
    made = []
    frames = in_bursts((made.append(number) or number for number in range(50)), size)
    assert next(frames) == 0 and len(made) == ahead
    assert [0, *frames] == list(range(50))


def test_csv(tiny_videos, tmp_path):
    shutil.copytree(tiny_videos, tmp_path / "videos")
    table = tmp_path / "clips.csv"
    table.write_text(
        "\ufeffpath,caption,start,end\n"
        'videos/bars0.mp4,"red, green",,\n'
        "videos/bars4.mp4,,0.5,1.5\n"
        "videos/gone.mp4,lost,,\n"
    )
    report = pack(table, tmp_path / "out", PackConfig(workers=1))
    records = records_in(tmp_path / "out")
    assert [record.get("caption") for record in records] == ["red, green", None]
    assert records[1]["duration"] == 1.0 and records[1]["source"] == "videos/bars4.mp4@0.500"
    assert report.skipped == {"missing file": 1}
    assert skips_in(tmp_path / "out")[0]["source"] == "videos/gone.mp4"


@pytest.mark.parametrize("written", ["in\\a.mp4", "file://{folder}/in/a.mp4"])
def test_paths_of_a_table_as_other_programs_write_them(tiny_videos, tmp_path, written):
    (tmp_path / "in").mkdir()
    shutil.copy(tiny_videos / "bars0.mp4", tmp_path / "in" / "a.mp4")
    table = tmp_path / "a.csv"
    table.write_text(f"path,caption\n{written.format(folder=tmp_path)},a cat\n")
    (item,) = pack_items(table, tmp_path / "out")
    assert (item.path, item.caption) == (tmp_path / "in" / "a.mp4", "a cat")
    table.write_text("path,caption\nhttps://host/a.mp4,a cat\n")
    with pytest.raises(UserError, match=r"https://host/a\.mp4: web servers are not read here, download it first"):
        pack_items(table, tmp_path / "out")


def test_several_folders_and_files(tiny_videos, tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(tiny_videos / "bars0.mp4", tmp_path / name)
    (tmp_path / "two" / "bars0.txt").write_text("in the second")
    (tmp_path / "clips.csv").write_text("path,caption\none/bars0.mp4,in the table\n")
    inputs = [tmp_path / "one", tmp_path / "two", tiny_videos / "bars1.mp4", tmp_path / "clips.csv"]
    assert main(["pack", *map(str, inputs), "--output", str(tmp_path / "out"), "workers=1"]) == 0
    records = records_in(tmp_path / "out")
    assert [record["source"] for record in records] == ["bars0.mp4", "bars0.mp4", "bars1.mp4", "one/bars0.mp4"]
    assert [record.get("caption") for record in records] == [
        "in the table",
        "in the second",
        "coloured bars",
        "in the table",
    ]
    assert "4 samples, 4 with a caption, in 1 shards; skipped: nothing" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"gone: no such file or folder"):
        pack([tmp_path / "one", tmp_path / "gone"], tmp_path / "other", PackConfig())


def test_a_folder_is_listed_once_for_all_files_given_by_name(tiny_videos, tmp_path, monkeypatch):
    listed, iterdir = [], Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: listed.append(path) or iterdir(path))
    videos = sorted(tiny_videos.glob("*.mp4"))
    items = pack_items(videos, tmp_path / "out")
    assert len(videos) > 1 and items == [item for video in videos for item in pack_items(video, tmp_path / "out")]
    of_each = listed.count(tiny_videos) / (len(videos) + 1)
    listed.clear()
    pack_items(videos, tmp_path / "out")
    assert listed.count(tiny_videos) == of_each


def test_the_output_may_lie_in_the_input_or_around_it(tiny_videos, tmp_path):
    inputs = shutil.copytree(tiny_videos, tmp_path / "in")
    for output in (inputs / "shards", tmp_path, inputs / "deep" / "er"):
        for _ in range(2):  # again with what the first one made there
            assert pack(inputs, output, PackConfig(workers=1)).samples == 5
        shutil.rmtree(inputs / "shards", ignore_errors=True)
    with pytest.raises(UserError, match="a folder of their own"):
        pack(inputs, tmp_path / "in" / "deep" / "..", PackConfig(workers=1))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line must name a column `path`"),
        ("place,caption\na.mp4,b\n", "first line must name a column `path`"),
        ("path,start\na.mp4,soon\n", "line 2: start and end must be seconds"),
        ("path,start,end\na.mp4,3,2\n", "line 2: start 3.0 must be at least 0 and below end 2.0"),
        ("path,start\na.mp4,nan\n", "line 2: start nan must be"),
        ("path,caption\na.mp4,one,two\n", "line 2: expected at most one value per column"),
        ("path,caption\n,one\n", "line 2: there is no path"),
        ("path\n" + 200_000 * "x", "not a CSV file"),
        ("path\n", "no video or image in it"),
    ],
)
def test_malformed_csv(tmp_path, text, message):
    table = tmp_path / "clips.csv"
    table.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        pack(table, tmp_path / "out", PackConfig())


@pytest.mark.parametrize(("encoding", "tab"), [("utf-16", "\t"), ("cp1252", ";"), ("utf-8-sig", ",")])
def test_tables_as_excel_writes_them(tiny_videos, tmp_path, encoding, tab):
    shutil.copy(tiny_videos / "bars0.mp4", tmp_path / "été.mp4")
    (tmp_path / "clips.csv").write_bytes(f"path{tab}caption\r\nété.mp4{tab}à la plage\r\n".encode(encoding))
    pack(tmp_path / "clips.csv", tmp_path / "out", PackConfig(workers=1))
    assert [record["caption"] for record in records_in(tmp_path / "out")] == ["à la plage"]


def test_images(tmp_path):
    (tmp_path / "in").mkdir()
    Image.new("RGB", (60, 40), "red").save(tmp_path / "in" / "a.png")
    Image.new("RGB", (200, 100), "blue").save(tmp_path / "in" / "b.jpeg")
    Image.new("RGBA", (30, 30), (0, 0, 0, 0)).save(tmp_path / "in" / "c.webp")
    Image.new("RGB", (20, 20), "blue").save(tmp_path / "in" / "d.jfif", "JPEG")
    pack(tmp_path / "in", tmp_path / "out", PackConfig(max_short_side=50, segment_seconds=2, captions="none"))
    samples, records = samples_in(tmp_path / "out"), records_in(tmp_path / "out")
    assert samples[0]["png"] == (tmp_path / "in" / "a.png").read_bytes()
    assert all(sample["jpg"].startswith(b"\xff\xd8") for sample in samples[1:])
    assert samples[3]["jpg"] == (tmp_path / "in" / "d.jfif").read_bytes()
    assert [(record["height"], record["width"]) for record in records] == [(40, 60), (50, 100), (30, 30), (20, 20)]
    assert all(record["frames"] == 1 and record["duration"] == 0 for record in records)


@pytest.mark.parametrize("given", ["folder", "tar"])
def test_shards_are_not_packed_again(tiny_shards, tmp_path, given):
    place = tiny_shards if given == "folder" else next(tiny_shards.glob("*.tar"))
    with pytest.raises(UserError, match=r"these are shards already, use them as they are \(data\.path="):
        pack(place, tmp_path / "out", PackConfig(workers=1))
    assert not (tmp_path / "out").exists()


def test_configuration_errors():
    with pytest.raises(UserError, match="did you mean `samples_per_shard`"):
        parse_config(PackConfig, {"sample_per_shard": 5})
    for wrong in (
        {"samples_per_shard": 0},
        {"crf": 99},
        {"name": "../up"},
        {"max_fps": -1},
        {"segment_seconds": 0},
    ):
        with pytest.raises(UserError, match=next(iter(wrong))):
            parse_config(PackConfig, wrong)


def test_tars_are_plain(tiny_shards):
    with tarfile.open(tiny_shards / "clips-000000.tar", "r:") as tar:
        members = tar.getmembers()
    assert all(member.isreg() and "/" not in member.name and member.mtime == 0 for member in members)


def test_parts_are_merged(tiny_videos, tiny_shards, tmp_path, capsys):
    output = tmp_path / "shards"
    command = ["pack", str(tiny_videos), "--output", str(output), "samples_per_shard=2", "workers=1"]
    merging = ["pack", "--merge", "--output", str(output)]

    def error(arguments):
        with pytest.raises(SystemExit):
            main(arguments)
        return capsys.readouterr().err

    assert "nothing was packed there; first: sat-ssvae pack VIDEOS --output" in error(merging)
    assert main([*command, "part=2/4"]) == 0
    assert "parts 1, 3, 4 of 4 not finished" not in capsys.readouterr().err
    assert "2 pieces are missing: run the same command with part=1/4 and so on, then --merge again" in error(merging)
    assert "is packed in 4 parts: give part=N/4" in error([*command, "part=1/3"])
    assert "--merge needs neither videos nor settings" in error([*merging, str(tiny_videos)])
    assert "no videos given" in error(["pack", "--output", str(output)])
    for part in (1, 3, 4):
        assert main([*command, f"part={part}/4"]) == 0
    capsys.readouterr()
    for _ in range(2):  # merging again changes nothing
        assert main(merging) == 0
        assert "5 samples, 1 with a caption, in 3 shards; skipped: nothing" in capsys.readouterr().out
    assert {name: data for name, data in contents(output).items() if name[0] != "."} == {
        name: data for name, data in contents(tiny_shards).items() if name[0] != "."
    }
