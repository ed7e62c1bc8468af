"""Packing, checking, measuring, encoding and training with videos and shards in S3, over real HTTP."""

import json
import re
import shutil
from pathlib import Path

import pytest

from sat_ssvae.addresses import files_at, path_of, upload
from sat_ssvae.cli import main
from sat_ssvae.config import parse_config
from sat_ssvae.data import remote
from sat_ssvae.data.convert import PackConfig
from sat_ssvae.data.inputs import pack_items
from sat_ssvae.data.pack import pack
from sat_ssvae.data.settings import DataConfig
from sat_ssvae.data.shards import fixed_clips, training_batches
from sat_ssvae.data.skips import SkipLog
from sat_ssvae.errors import UserError
from sat_ssvae.latents.dataset import LatentDataset

from .object_store import forbidden, full, proxied

CLIPS = ["data.num_frames=5", "data.resolution=32", "data.num_workers=0"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SAT_SSVAE_CACHE", str(tmp_path / "cache"))


def send(folder, address):
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        upload(path, path_of(f"{address}/{path.relative_to(folder)}"))


def stored(address):
    """Names and contents of what a reader needs, without pack.json, which names no bytes of theirs."""
    names = [name for name, _ in files_at(address) if name != "pack.json"]
    return {name: path_of(f"{address}/{name}").read_bytes() for name in names}


def contents(folder):
    names = [path for path in folder.iterdir() if path.name != "pack.json" and not path.name.startswith(".")]
    return {path.name: path.read_bytes() for path in names}


def clips_of(path, tmp_path, **changes):
    values = {"path": path, "cache": str(tmp_path / "cache" / "shards"), "num_frames": 5, "resolution": 32}
    return parse_config(DataConfig, {**values, "num_workers": 0, **changes})


def test_the_same_videos_give_the_same_bytes_in_s3(store, tiny_videos, tmp_path, capsys):
    """From and to S3, with a damaged video, cut into parts, and again when all is done."""
    videos = shutil.copytree(tiny_videos, tmp_path / "videos")
    (videos / "half.mp4").write_bytes((videos / "bars0.mp4").read_bytes()[:3000])
    send(videos, f"{store}/videos")
    settings = ["segment_seconds=1", "max_short_side=32", "samples_per_shard=4", "workers=2"]
    assert main(["pack", str(videos), "--output", str(tmp_path / "local"), *settings]) == 0
    for inputs, output in ((videos, "a"), (f"{store}/videos", "b"), (f"{store}/videos", "b")):
        assert main(["pack", str(inputs), "--output", f"{store}/{output}", *settings]) == 0
    local = contents(tmp_path / "local")
    del local["index.npz"]  # where readers fetch the meta files, there is none
    assert local == stored(f"{store}/a")
    listed = local["skipped.jsonl"].decode().replace(str(videos), f"{store}/videos")
    assert local | {"skipped.jsonl": listed.encode()} == stored(f"{store}/b")
    assert "1 with a caption" not in capsys.readouterr().err
    records = path_of(f"{store}/b/clips-000000.meta.jsonl").read_text().splitlines()
    assert "coloured bars" in " ".join(records)


def test_captions_in_s3_are_those_of_a_folder(store, tmp_path):
    """A row whose own video is there is none of another video of its name, nor is a file of JSON beside a video."""
    for name in ("one/a.mp4", "two/a.mp4", "two/b.mp4"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"")
    (tmp_path / "in" / "list.csv").write_text("path,caption\none/a.mp4,a cat\n")
    (tmp_path / "in" / "one" / "a.json").write_text('{"url": "http://x/b.mp4", "views": 7}')
    (tmp_path / "in" / "two" / "a.json").write_text('{"url": "http://x/b.mp4", "text": "a dog"}')
    send(tmp_path / "in", f"{store}/in")
    found = [pack_items(place, tmp_path / "out") for place in (tmp_path / "in", path_of(f"{store}/in"))]
    local, there = ([(item.id, item.caption, item.fields) for item in items] for items in found)
    assert local == there
    assert [caption for _, caption, _ in local] == ["a cat", "a dog", ""]


@pytest.mark.slow
def test_a_thousand_videos_give_the_same_bytes_in_s3(store, thousand_videos, thousand_packed):
    """As on one machine, and as in tests/test_ray.py on two Ray nodes one of which dies and in four parts."""
    report = pack(thousand_videos, path_of(f"{store}/shards"), PackConfig(samples_per_shard=50))
    assert report.samples == 999 and report.skipped == {"not a video": 1} and len(report.shards) == 20
    local = contents(thousand_packed)
    del local["index.npz"]  # where readers fetch the meta files, there is none
    assert stored(f"{store}/shards") == local and len(local) == 41


def test_a_table_of_addresses(store, tiny_videos, tmp_path):
    upload(tiny_videos / "bars0.mp4", path_of(f"{store}/deep/bars0.mp4"))
    (tmp_path / "clips.csv").write_text(
        f"path,caption,start,end\n{store}/deep/bars0.mp4,one,,\n{store}/gone.mp4,two,,\n"
    )
    report = pack(tmp_path / "clips.csv", tmp_path / "out", PackConfig(workers=1))
    assert report.samples == 1 and report.skipped == {"missing file": 1}
    (tmp_path / "inside.csv").write_text("path,caption\nbars0.mp4,one\n")
    upload(tmp_path / "inside.csv", path_of(f"{store}/deep/inside.csv"))
    assert pack(path_of(f"{store}/deep/inside.csv"), tmp_path / "inside", PackConfig(workers=1)).captions == 1


def test_a_full_bucket_keeps_what_is_finished(store, tiny_videos, tmp_path, monkeypatch):
    monkeypatch.setattr("sat_ssvae.addresses.PAUSE", 0.01)
    config = PackConfig(samples_per_shard=2, workers=1)
    output = path_of(f"{store}/shards")

    def third(path, method):
        return full(path, method) if "clips-000001.tar" in path or "clips-000002.tar" in path else None

    with (
        proxied(monkeypatch, refuse=third),
        pytest.raises(UserError, match=r"quota.*finished shards are kept") as caught,
    ):
        pack(tiny_videos, output, config)
    assert "\n" not in str(caught.value)
    kept = stored(f"{store}/shards")
    assert set(kept) == {"clips-000000.tar", "clips-000000.meta.jsonl"}
    report = pack(tiny_videos, output, config)
    assert report.samples == 5 and kept.items() <= stored(f"{store}/shards").items()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["pack", "{videos}", "--output", "{store}/out"], "Access Denied|Forbidden"),
        (["pack", "{store}/videos", "--output", "out"], "Access Denied|Forbidden"),
        (["check-data", "{store}/shards", *CLIPS], "Access Denied|Forbidden"),
    ],
)
def test_a_bucket_without_rights_is_one_line(store, tiny_videos, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    words = [word.format(videos=tiny_videos, store=store) for word in words]
    with proxied(monkeypatch, refuse=forbidden), pytest.raises(SystemExit) as ended:
        main(words)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert store in line and re.search(message, line)
    assert "Traceback" not in said and "very-secret" not in said


def test_training_reads_shards_in_s3(store, tiny_shards, tmp_path, monkeypatch):
    """The same clips under the same names; each shard comes once, also after its connection broke."""
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    send(tiny_shards, f"{store}/shards")
    local = [clip.key for clip in fixed_clips(clips_of(str(tiny_shards), tmp_path), stride=0.5)]
    with proxied(monkeypatch, cut=1) as proxy:
        clips = fixed_clips(clips_of(f"{store}/shards", tmp_path), stride=0.5)
        assert [clip.key for clip in clips] == local
        assert proxy.count <= 1
    with proxied(monkeypatch, refuse=lambda path, method: forbidden(path, method) if ".tar" in path else None):
        batch = next(training_batches(clips_of(f"{store}/shards", tmp_path), batch_size=4, seed=0))
    assert batch.video.shape == (4, 3, 5, 32, 32)
    pattern = clips_of(f"{store}/shards/clips-{{000000..000001}}.tar", tmp_path)
    assert len(list(fixed_clips(pattern, stride=100))) == 4


def test_workers_fetch_what_is_not_there_yet(store, tiny_shards, tmp_path):
    """Processes that were forked from one which was connected already."""
    send(tiny_shards, f"{store}/shards")
    clips = fixed_clips(clips_of(f"{store}/shards", tmp_path, num_workers=2), stride=100)
    assert len(list(clips)) == 5


def test_a_shard_that_cannot_be_had_is_counted(store, tiny_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    send(tiny_shards, f"{store}/shards")
    path_of(f"{store}/shards/clips-000001.tar").unlink()
    skips = SkipLog(tmp_path / "skipped.jsonl", max_share=1)
    assert len(list(fixed_clips(clips_of(f"{store}/shards", tmp_path), stride=100, skips=skips))) == 3
    assert skips.counts == {"meta without tar": 1}
    with pytest.raises(UserError, match=r"no \.tar shards there; `sat-ssvae pack"):
        list(fixed_clips(clips_of(f"{store}/nothing", tmp_path), stride=100))


@pytest.mark.slow
def test_check_stats_and_encode(store, tiny_shards, narrow_vae, tmp_path, capsys):
    send(tiny_shards, f"{store}/shards")
    send(narrow_vae, f"{store}/vae")
    local = tmp_path / "local"
    shutil.copytree(narrow_vae, local / "vae")
    for data, place in ((str(tiny_shards), str(local)), (f"{store}/shards", store)):
        assert main(["check-data", data, "--output", f"{place}/report", *CLIPS, "data.drop_frozen=0.2"]) == 0
        assert main(["stats", f"{place}/vae", "--data", data, *CLIPS]) == 0
        command = ["encode", f"{place}/vae", data, f"{place}/latents", "clips_per_shard=4", *CLIPS]
        assert main(command) == 0
        assert main(command) == 0
    said = capsys.readouterr().out.splitlines()
    half = len(said) // 2
    assert [line.replace(str(local), store) for line in said[:half]] == said[half:]
    assert path_of(f"{store}/vae/latent_stats.json").read_text() == (local / "vae" / "latent_stats.json").read_text()
    listing = (local / "report" / "skipped.jsonl").read_bytes()
    assert path_of(f"{store}/report/skipped.jsonl").read_bytes() == listing != b""
    tars = {path.name: path.read_bytes() for path in (local / "latents").glob("*.tar")}
    assert {name: data for name, data in stored(f"{store}/latents").items() if name.endswith(".tar")} == tars
    dataset = LatentDataset(f"{store}/latents")
    assert len(dataset) == len(LatentDataset(local / "latents")) and dataset[0]["mp4"].shape[0] == 48


def test_nothing_written_holds_credentials(store, tiny_videos, tmp_path, capsys):
    assert main(["pack", str(tiny_videos), "--output", f"{store}/out", "workers=1"]) == 0
    with pytest.raises(SystemExit):
        main(["pack", str(tiny_videos), "--output", "s3://testing:very-secret@bucket/out"])
    said = capsys.readouterr()
    written = b"".join(stored(f"{store}/out").values()) + path_of(f"{store}/out/pack.json").read_bytes()
    assert "very-secret" not in said.out + said.err and b"very-secret" not in written
    assert json.loads(path_of(f"{store}/out/pack.json").read_text())["samples_per_shard"] == 1000


def test_local_paths_with_colons_stay_local(tiny_videos, tmp_path):
    folder = tmp_path / "s3:"
    shutil.copytree(tiny_videos, folder / "bucket")
    assert pack(folder / "bucket", Path(tmp_path, "out"), PackConfig(workers=1)).samples == 5
