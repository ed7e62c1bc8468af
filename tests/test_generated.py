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


LONG = "a long prompt " * 12


def test_what_cogvideox_sampled(gray, tmp_path):
    """Its folders are named by the prompt's number and up to 120 characters of it, spaces and slashes replaced."""
    prompts = ["a red car", "day/night, a street", LONG.strip(), "a cat@@cat.png"]
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
    assert [video.caption for video in list_videos(outputs, None)][::2] == ["a red car", "daynight, a street", "a cat"]
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
