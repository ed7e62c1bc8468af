"""The prompts of a sampling configuration, as sample_video.py reads them."""

import re

import pytest

from sat_ssvae.cogvideo.prompts import inspect_prompts
from sat_ssvae.cogvideo.sat_config import SATConfig


def problems(**args):
    return [str(problem) for problem in inspect_prompts(SATConfig({"args": {"mode": "inference", **args}}))]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "image.png").touch()
    return tmp_path


def test_what_sampling_reads(here):
    (here / "prompts.txt").write_text("a cat\n\na dog@@nowhere.png\n")
    assert problems(input_type="txt", input_file="prompts.txt") == []
    assert problems(input_type="cli") == problems() == problems(input_file="nowhere.txt") == []
    assert problems(mode="finetune", input_type="txt", input_file="nowhere.txt") == []
    (here / "prompts.txt").write_text("a cat@@image.png\nein Hündchen@@image.png\n", encoding="utf-8")
    assert problems(input_type="txt", input_file="prompts.txt", image2video=True) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a cat\n", "line 1 of prompts.txt, must be text@@image.png: image to video takes an image for every prompt"),
        ("a cat@@image.png\n\na\n", "line 2 of prompts.txt, must be text@@image.png: image to .* [(]and 1 more[)]$"),
        ("a@@b@@image.png", "line 1 of prompts.txt, must be text@@image.png: image to video takes an image"),
        ("a cat@@image.jpg", "line 1 of prompts.txt, must be text@@image.png: there is no image 'image.jpg' in "),
        ("a cat@@ image.png", "line 1 of prompts.txt, must be text@@image.png: there is no image ' image.png' in "),
        ("", "prompts.txt, must be a text file with a prompt on each line: it is empty"),
    ],
)
def test_lines_without_an_image(here, text, message):
    (here / "prompts.txt").write_text(text)
    (problem,) = problems(input_type="txt", input_file="prompts.txt", image2video=True)
    assert problem.startswith("args.input_file is ")
    assert re.search(message, problem)


def test_files_that_cannot_be_read(here):
    (here / "latin.txt").write_bytes("Hündchen".encode("latin-1"))
    assert "it is not UTF-8" in problems(input_type="txt", input_file="latin.txt")[0]
    assert "No such file or directory, from " in problems(input_type="txt", input_file="nowhere.txt")[0]
    assert "No such file" in problems(input_type="txt")[0]  # CogVideoX's default is input.txt
    assert problems(input_type="json") == [
        "args.input_type is json, must be txt or cli: sample_video.py knows no other"
    ]
