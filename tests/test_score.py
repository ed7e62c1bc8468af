"""`sat-ssvae score` on real files: good, frozen and jumbled copies of real videos."""

import csv
import json
import shutil

import pytest
import torch

from sat_ssvae.cli import main
from sat_ssvae.config import load_config
from sat_ssvae.data.video_io import read_clip, to_unit_range, write_video
from sat_ssvae.errors import UserError
from sat_ssvae.evaluation.score import MEASURES, ScoreConfig, score
from sat_ssvae.metrics.features import ClipFeatures
from sat_ssvae.metrics.frechet import frechet_distance, frechet_interval
from sat_ssvae.metrics.kernel_distance import kernel_distance

from .foreign_models import small_i3d
from .small_clip import small_clip

CPU = torch.device("cpu")
SMALL = ["data.num_frames=11", "data.resolution=32"]
DISTANCES = ["frame_distance", "motion_distance"]
TEMPORAL = ["smoothness", "flicker", "motion"]


@pytest.fixture(scope="module")
def folders(tiny_videos, tmp_path_factory):
    """By name: the same videos as the real ones, and their frames frozen, and in disorder."""
    home = tmp_path_factory.mktemp("scored")
    shutil.copytree(tiny_videos, home / "same")
    order = torch.randperm(36, generator=torch.Generator().manual_seed(0))
    for name in ("frozen", "jumbled"):
        (home / name).mkdir()
        for path in sorted(tiny_videos.glob("*.mp4")):
            video = to_unit_range(read_clip(path, start=0, num_frames=36, fps=24, size=(64, 80)))
            frames = torch.zeros(36, dtype=torch.long) if name == "frozen" else order
            write_video(home / name / path.name, video[:, frames], fps=24)
    return home


def config(*settings):
    return load_config(ScoreConfig, None, [*SMALL, *settings])


@pytest.fixture(scope="module")
def report(folders, tiny_videos):
    places = [folders / name for name in ("same", "frozen", "jumbled")]
    return score(places, tiny_videos, config("clip=none"), CPU)


def test_distances_and_temporal_measures_tell_copies_apart(report):
    same, frozen, jumbled = (folder.scores for folder in report.folders)
    assert list(same) == [*DISTANCES, *TEMPORAL] and list(report.real.scores) == list(same)
    assert same["motion_distance"].value < frozen["motion_distance"].value
    assert same["motion_distance"].value < jumbled["motion_distance"].value
    assert frozen["motion"].value < 1 < same["motion"].value < jumbled["motion"].value
    assert frozen["smoothness"].value > same["smoothness"].value > jumbled["smoothness"].value
    assert frozen["flicker"].value < same["flicker"].value < jumbled["flicker"].value
    for name in DISTANCES + TEMPORAL:
        assert same[name].low <= same[name].value <= same[name].high and same[name].count == 5
    for name in TEMPORAL:
        assert same[name].value == pytest.approx(report.real.scores[name].value, rel=1e-6)
    assert [len(folder.videos) for folder in report.folders] == [5, 5, 5]
    assert report.notes == ("FVD left out: give the TorchScript file of its network with i3d=FILE",)


def test_a_distance_is_the_kernel_distance_of_the_clips_features(report, folders, tiny_videos):
    network = ClipFeatures()

    def features(folder):
        clips = []
        for number, path in enumerate(sorted(folder.glob("*.mp4"))):
            frames = 36 if folder.name == "jumbled" else 36 + 12 * number
            start = int((frames - 0.5 - 10 / 8 * 24) / 2) / 24  # the middle of what a clip can start at
            clips.append(to_unit_range(read_clip(path, start=start, num_frames=11, fps=8, size=(32, 32))))
        return network(torch.stack(clips))

    expected = kernel_distance(features(folders / "jumbled"), features(tiny_videos))
    assert report.folders[2].scores["motion_distance"].value == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_command_with_all_measures(folders, tiny_videos, tmp_path, capsys):
    places = [str(folders / name) for name in ("same", "jumbled")]
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps({f"bars{number}": f"bars number {number}" for number in range(5)}))
    networks = [f"i3d={small_i3d(tmp_path / 'i3d.pt')}", f"clip={small_clip(tmp_path / 'clip')}"]
    where = ["--real", str(tiny_videos), "--prompts", str(prompts), "--output", str(tmp_path / "out")]
    assert main(["score", *places, *where, *SMALL, *networks, "clips_per_video=2"]) == 0
    shown = capsys.readouterr().out
    table = shown.split("\n\n")[0].splitlines()
    assert table[0].split()[:2] == places and table[1].split() == ["videos", "5", "5", "5"]
    assert [row[: len(m.title)] for row, m in zip(table[2:], MEASURES.values(), strict=True)] == [
        measure.title for measure in MEASURES.values()
    ]
    for measure in MEASURES.values():
        assert f"{measure.title} ({measure.better}): {measure.meaning}" in shown
    assert "intervals are too narrow" in shown and "FVD of 10 clips" not in shown  # 10 clips, 8 dimensions
    document = json.loads((tmp_path / "out" / "score.json").read_text())
    assert document["configuration"]["clips_per_video"] == 2 and set(document["measures"]) == set(MEASURES)
    same, jumbled = document["generated"]
    assert set(same["scores"]) == set(MEASURES)
    assert same["scores"]["fvd"]["value"] == pytest.approx(0, abs=1e-6)
    assert jumbled["scores"]["fvd"]["value"] > 1e-4
    values = [video["clip_similarity"] for video in same["videos"].values()]
    assert same["scores"]["clip_similarity"]["value"] == pytest.approx(sum(values) / 5)
    assert same["scores"]["frame_distance"]["count"] == 10
    with (tmp_path / "out" / "score.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["folder"] for row in rows} == {*places, str(tiny_videos)}
    by_name = {(row["folder"], row["measure"]): row for row in rows}
    assert float(by_name[places[1], "fvd"]["value"]) == jumbled["scores"]["fvd"]["value"]


def test_what_is_left_out_is_said_in_a_line(folders, tiny_videos, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    generated = tmp_path / "generated"
    shutil.copytree(folders / "same", generated)
    write_video(generated / "short.mp4", torch.zeros(3, 8, 64, 64), fps=24)
    write_video(generated / "slow.mp4", torch.zeros(3, 20, 64, 64), fps=4)
    (generated / "broken.mp4").write_bytes(b"no video")
    assert main(["score", str(generated), "--real", str(tiny_videos), *SMALL]) == 0
    shown = capsys.readouterr().out
    assert "CLIP similarity left out: no model at hand" in shown and "FVD left out" in shown
    assert f"skipped {generated}/short: too short: 0.33 s, a clip" in shown
    assert f"skipped {generated}/slow: too slow: 4 frames per second, data.fps is 8" in shown
    assert f"skipped {generated}/broken: " in shown
    assert (generated / "score.csv").is_file() and (generated / "score.json").is_file()
    clip = small_clip(tmp_path / "clip")
    assert main(["score", str(generated), "--real", str(tiny_videos), *SMALL, f"clip={clip}"]) == 0
    document = json.loads((generated / "score.json").read_text())
    assert document["generated"][0]["scores"]["clip_similarity"]["count"] == 1  # one has a caption beside it
    (generated / "bars1.txt").unlink()
    assert main(["score", str(generated), "--real", str(tiny_videos), *SMALL, f"clip={clip}"]) == 0
    assert f"CLIP similarity of {generated} left out: {generated}/bars0.mp4: no prompt" in capsys.readouterr().out


def test_an_interrupted_run_continues_and_knows_how_much_is_left(
    report, folders, tiny_videos, tmp_path, monkeypatch, capsys
):
    journal, measure, measured, killed = tmp_path / "score.jsonl", ClipFeatures.forward, [], []

    def counted(self, video):
        if len(measured) == 7 and not killed:  # after all real videos and two others
            killed.append(True)
            raise KeyboardInterrupt
        measured.append(video)
        return measure(self, video)

    monkeypatch.setattr(ClipFeatures, "forward", counted)
    with pytest.raises(KeyboardInterrupt):
        score([folders / "frozen"], tiny_videos, config("clip=none"), CPU, journal=journal)
    assert len(journal.read_text().splitlines()) == 7 and "scoring: 7/10" in capsys.readouterr().err
    with journal.open("a") as file:
        file.write('{"key": "half a li')
    continued = score([folders / "frozen"], tiny_videos, config("clip=none", "seed=0"), CPU, journal=journal)
    assert len(measured) == 10 and "scoring: 10/10" in capsys.readouterr().err
    assert continued.real == report.real and continued.folders[0] == report.folders[1]
    again = score([folders / "frozen"], tiny_videos, config("clip=none", "seed=1"), CPU, journal=journal)
    assert len(measured) == 10  # the seed is that of the intervals
    assert again.real.videos == report.real.videos and again.real.scores != report.real.scores
    score([folders / "frozen"], tiny_videos, config("clip=none", "data.num_frames=10"), CPU, journal=journal)
    assert len(measured) == 20  # other clips


def test_mistakes_are_one_line(folders, tiny_videos, tmp_path, capsys):
    same, real = str(folders / "same"), str(tiny_videos)
    (tmp_path / "one").mkdir()
    shutil.copy(tiny_videos / "bars0.mp4", tmp_path / "one")
    for words, message in (
        ([same, same, "--real", real], "a folder is given twice"),
        ([str(tmp_path / "gone"), "--real", real, "clip=none"], "gone"),
        ([str(tmp_path / "one"), "--real", real, "clip=none"], "usable videos: 1, scores need 2 at least"),
        ([same, "--real", real, "i3d=x.pt", "data.num_frames=9"], "FVD needs data.num_frames of at least 10"),
        ([same, "--real", real, f"clip={tmp_path / 'gone'}"], "no CLIP model on this machine"),
        ([same, "--real", real, "clip=none", "data.frames=9"], "data.num_frames"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["score", *(words if "data.num_frames=9" in words else [*words, *SMALL])])
        error = capsys.readouterr().err.splitlines()[-1]
        assert ended.value.code == 2 and error.startswith("error: ") and message in error, error


def test_incomplete_prompts_are_refused_where_they_were_given(folders, tiny_videos, tmp_path):
    prompts = tmp_path / "prompts.json"
    prompts.write_text('{"bars0": "bars"}')
    clip = small_clip(tmp_path / "clip")
    with pytest.raises(UserError, match=r"bars1\.mp4: no prompt for this video"):
        score([folders / "same"], tiny_videos, config(f"clip={clip}"), CPU, prompts)


def test_shards_have_captions_as_prompts(tiny_shards, tiny_videos, tmp_path):
    clip = small_clip(tmp_path / "clip")
    report = score([tiny_shards], tiny_videos, config(f"clip={clip}"), CPU)
    (folder,) = report.folders
    assert len(folder.videos) == 5 and folder.scores["clip_similarity"].count == 1


def test_an_interval_of_fvd_holds_the_estimate_and_narrows_with_more_clips():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(400, 4, generator=generator), 1 + torch.randn(400, 4, generator=generator)
    few, many = frechet_interval(x[:40], y[:40]), frechet_interval(x, y)
    assert many[0] < frechet_distance(x, y) < many[1] and sum(many) / 2 == pytest.approx(4, abs=1)
    assert many[1] - many[0] < few[1] - few[0]
    assert frechet_interval(x, y) == many != frechet_interval(x, y, seed=1)
