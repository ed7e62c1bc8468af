"""What `cogvideo check` says of the videos that CogVideoX's SFTDataset would read."""

import pytest
import torch

from sat_ssvae.cogvideo.sat_config import SATConfig
from sat_ssvae.cogvideo.training_videos import inspect_videos
from sat_ssvae.data.video_io import write_video

from .numbered_videos import record, trim


@pytest.fixture
def data(tmp_path_factory):
    """Videos of 60 frames of 32 x 48 at 8 frames a second, with captions; no other folder is called videos."""
    tmp_path = tmp_path_factory.mktemp("sft")
    for kind in ("videos", "labels"):
        (tmp_path / "DATA" / kind).mkdir(parents=True)
    for name in ("a", "b"):
        add_video(tmp_path / "DATA", name)
    return tmp_path / "DATA"


def add_video(data, name, frames=60, size=(32, 48), fps=8, caption="a bar"):
    write_video(data / "videos" / f"{name}.mp4", torch.zeros(3, frames, *size), fps=fps)
    if caption is not None:
        (data / "labels" / f"{name}.txt").write_text(caption)


def look(data, target="data_video.SFTDataset", mode="finetune", **params):
    params = {"video_size": [32, 48], "fps": 8, "max_num_frames": 49, "skip_frms_num": 3.0, **params}
    args = {"mode": mode, "train_data": [str(data)], "valid_data": [str(data)]}
    return inspect_videos(SATConfig({"args": args, "data": {"target": target, "params": params}}))


def test_videos_that_fit_are_not_mentioned(data):
    assert look(data) == ([], [])


def test_slower_videos_than_the_configuration_are_named_with_the_lowest_rate(data):
    """There SFTDataset's step between frames is 0."""
    add_video(data, "c", frames=30, fps=4)
    ((problem,), notes) = look(data)
    assert (problem.key, problem.found, problem.expected) == ("data.params.fps", 8, "at most 4")
    assert problem.reason == f"{data}/videos/c.mp4 has 4; the data set divides by zero there"
    assert notes == []
    assert look(data, fps=4) == ([], [])
    assert look(data, max_num_frames=61) == ([], [])  # then a short video is padded, at its own rate


def test_videos_that_are_all_skipped_are_named(data):
    add_video(data, "c", frames=6)
    ((problem,), _) = look(data)
    assert problem.expected == "videos of more than 6 frames" and "c.mp4 has 6" in problem.reason
    assert look(data, skip_frms_num=0)[0] == []


def test_small_videos_will_be_enlarged(data):
    add_video(data, "c", size=(32, 32))
    problems, (note,) = look(data)
    assert problems == []
    assert "1 of 3 videos are smaller than data.params.video_size [32, 48] and will be enlarged" in note
    assert note.endswith("c.mp4 has [32, 32]")


def test_videos_that_were_trimmed_without_encoding_them_again(data, tmp_path):
    """decord counts the frames that the edit list hides, and jumps back to them where it seeks."""
    trim(record(tmp_path / "long.mp4", 90, 8), data / "videos" / "c.mp4", 2.5)
    (data / "labels" / "c.txt").write_text("a number")
    problems, (note,) = look(data)
    assert problems == []
    assert "1 of 3 videos were trimmed without encoding them again" in note and note.endswith("c.mp4 again")


def test_captions_are_looked_for_where_the_data_set_does(data):
    add_video(data, "c", caption=None)
    problems, (note,) = look(data)
    assert problems == [] and "1 of 3 videos have no caption" in note and note.endswith(f"no {data}/labels/c.txt")
    (data / "labels" / "a.txt").write_text("")  # the data set takes the first of its lines
    ((problem,), _) = look(data)
    assert problem.found == data / "labels" / "a.txt" and problem.reason == "the file is empty"


def test_a_parent_folder_called_videos_hides_the_captions(data):
    """SFTDataset puts `labels` for every `videos` in the path."""
    moved = data.with_name("my_videos") / "DATA"
    moved.parent.mkdir()
    data.rename(moved)
    _, (note,) = look(moved)
    assert "2 of 2 videos have no caption" in note and "/my_labels/DATA/labels/a.txt" in note


def test_missing_and_damaged_videos_are_named(data, tmp_path):
    (problems, _) = look(tmp_path / "nowhere")
    assert [problem.expected for problem in problems] == ["a folder of .mp4 videos"]
    assert "no such folder" in problems[0].reason
    (data / "videos" / "c.mp4").write_bytes(b"")
    ((problem,), _) = look(data)
    assert (problem.found, problem.expected) == (data / "videos" / "c.mp4", "a readable video")


def test_nothing_is_read_where_no_videos_are(tmp_path):
    assert look(tmp_path / "nowhere", target="sat_ssvae.cogvideo.LatentDataset") == ([], [])
    assert look(tmp_path / "nowhere", mode="inference") == ([], [])


def test_a_finetuning_as_long_as_its_slow_start_is_noted():
    assert (
        "first 100 iterations of a finetuning at 5 %"
        in SATConfig({"args": {"mode": "finetune", "train_iters": 100}}).notes()[0]
    )
    assert SATConfig({"args": {"mode": "finetune", "train_iters": 1000}}).notes() == []
    assert SATConfig({"args": {"mode": "pretrain", "train_iters": 100}}).notes() == []


def test_encoded_latents_are_told_from_an_empty_folder(tmp_path):
    ((problem, *_), _) = look(tmp_path)
    assert problem.reason == "it holds none"
    (tmp_path / "latents.json").write_text("{}")
    ((problem, *_), _) = look(tmp_path)
    assert problem.reason == "it holds encoded latents; give latents.yaml last"
