"""Folders of generated videos and their prompts."""

import json
import shutil

import pytest

from sat_ssvae.errors import UserError
from sat_ssvae.evaluation.generated import list_videos
from sat_ssvae.evaluation.items import list_items

from .judged import gray_videos


def test_prompts_from_json(gray, tmp_path):
    table = tmp_path / "prompts.json"
    prompts = {f"clip{number}": f"prompt {number}" for number in range(4)} | {"clip4.mp4": "prompt 4"}
    table.write_text(json.dumps(prompts))
    assert [video.caption for video in list_videos(gray, table)] == [f"prompt {number}" for number in range(5)]
    table.write_text("{}")
    with pytest.raises(UserError, match=r"clip0.mp4: no prompt for this video; add it to .*prompts.json"):
        list_videos(gray, table)
    for text, message in (("[1]", "expected one JSON object"), ("{", "not a readable JSON")):
        table.write_text(text)
        with pytest.raises(UserError, match=message):
            list_videos(gray, table)


def test_prompts_from_tables(gray, tmp_path):
    prompts = [f"prompt {number}" for number in range(5)]
    rows = [{"path": f"clip{number}.mp4", "caption": text} for number, text in enumerate(prompts)]
    for name, text in (
        ("p.csv", "".join(["name,prompt\n", *(f"clip{number},{text}\n" for number, text in enumerate(prompts))])),
        ("p.jsonl", "\n".join(map(json.dumps, rows))),
        ("rows.json", json.dumps(rows)),
    ):
        (tmp_path / name).write_text(text)
        assert [video.caption for video in list_videos(gray, tmp_path / name)] == prompts
    (tmp_path / "p.csv").write_text("clip0.mp4,a prompt\n")
    with pytest.raises(UserError, match=r"p.csv: expected .* a table of paths and captions"):
        list_videos(gray, tmp_path / "p.csv")
    (tmp_path / "p.json").write_text(
        json.dumps(dict.fromkeys(["clip0", "clip1", "clip2", "clip3"], "a") | {"clip4": " "})
    )
    with pytest.raises(UserError, match=r"clip4.mp4: no prompt for this video; add it"):
        list_videos(gray, tmp_path / "p.json")


def test_names_with_accents_are_found_however_they_are_written(gray, tmp_path):
    for path in [*gray.glob("*.txt"), *gray.glob("clip[1-4].mp4")]:
        path.unlink()
    (gray / "clip0.mp4").rename(gray / "cafe\u0301.mp4")  # as macOS writes it
    (tmp_path / "p.json").write_text('{"caf\u00e9": "a cup"}')
    assert [video.caption for video in list_videos(gray, tmp_path / "p.json")] == ["a cup"]


def test_names_that_differ_in_the_suffix_alone_keep_it(gray):
    shutil.copy(gray / "clip0.mp4", gray / "clip1.mov")
    assert [video.name for video in list_videos(gray, None)][:3] == ["clip0", "clip1.mov", "clip1.mp4"]


LONG = "a long prompt " * 12


def test_what_cogvideox_sampled(gray, tmp_path):
    """Its folders are named by the prompt's number and up to 120 characters of it, spaces and slashes replaced."""
    prompts = [
        "a red car",
        "day/night, a\u2028street",
        LONG.strip(),
        "a cat@@cat.png",
    ]  # \u2028: not to CogVideoX's reader
    table = tmp_path / "prompts.txt"
    table.write_text("\n".join(prompts) + "\n")
    outputs = tmp_path / "outputs"
    for number, line in enumerate(prompts):
        name = line.partition("@@")[0].replace(" ", "_").replace("/", "")[:120]
        for sample in range(2):
            place = outputs / f"{number}_{name}" / str(sample)
            place.mkdir(parents=True)
            shutil.copy(gray / "clip0.mp4", place / "000000.mp4")
    found = list_videos(outputs, table)
    assert [video.caption for video in found] == [p.partition("@@")[0] for p in prompts for _ in range(2)]
    assert found[1].name == "0_a_red_car/1/000000"
    with pytest.raises(UserError, match=r"no prompt for this video; .*--prompts"):  # the name holds part of it
        list_videos(outputs, None)
    for path in outputs.glob("2_*/*/000000.mp4"):
        path.unlink()
    assert [video.caption for video in list_videos(outputs, None)][::2] == [
        "a red car",
        "daynight, a\u2028street",
        "a cat",
    ]
    (outputs / "0_a_red_car").rename(outputs / "0_\ufeffa_red_car")  # of a file with a byte order mark
    table.write_text("\ufeff" + table.read_text())
    for known in (table, None):
        assert list_videos(outputs, known)[0].caption == "a red car"
    table.write_text("another prompt\n")
    with pytest.raises(UserError, match=r"prompts.txt has no line for it"):
        list_videos(outputs, table)


def test_links_are_followed_and_hidden_files_left_out(gray, tmp_path):
    outputs, prompts = tmp_path / "outputs", tmp_path / "prompts.json"
    outputs.mkdir()
    (outputs / "linked").symlink_to(gray)
    shutil.copy(gray / "clip0.mp4", outputs / "._clip0.mp4")
    names = [f"linked/clip{number}" for number in range(5)]
    prompts.write_text(json.dumps(dict.fromkeys(names, "a prompt")))
    assert [video.name for video in list_videos(outputs, prompts)] == names


def test_folders_that_hold_nothing_to_score(gray, tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        list_videos(tmp_path / "nowhere", None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no video in it"):
        list_videos(tmp_path / "empty", None)
    (gray / "clip2.txt").unlink()
    with pytest.raises(UserError, match=r"clip2.mp4: no prompt .* write it to .*clip2.txt or give --prompts"):
        list_videos(gray, None)


def test_views_of_other_videos_are_not_counted(tmp_path):
    """`reconstruct` and `restore` write them beside the videos that they show."""
    videos = gray_videos(tmp_path / "videos", [0.0, 0.5])
    first, second = sorted(videos.glob("*.mp4"))
    named = {
        first: ["a[1].mp4", "a[1].side_by_side.mp4", "a[1].error_map.mp4"],
        second: ["b.strength0.5.mp4", "b.side_by_side.mp4", "c.side_by_side.mp4"],
    }
    output = tmp_path / "output"
    output.mkdir()
    for source, names in named.items():
        for name in names:
            shutil.copy(source, output / name)
    own = ["a[1]", "b.strength0.5", "c.side_by_side"]  # nothing that the last one could be a view of
    skipped = []
    assert [item.name for item in list_items(output, skipped)] == own
    assert [skip.cause for skip in skipped] == ["a view of another video"] * 3
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps(dict.fromkeys(own, "gray")))
    assert [video.name for video in list_videos(output, prompts)] == own
