"""Latent shards of real video files: resuming, several ranks, and what the data set gives to train_video.py."""

import os
import shutil
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader

from sat_ssvae import UserError
from sat_ssvae.autoencoders.classes import as_autoencoder
from sat_ssvae.autoencoders.specification import open_autoencoder
from sat_ssvae.cli import main
from sat_ssvae.cogvideo import LatentDataset, SSVAEFirstStage
from sat_ssvae.data.shards import DataConfig, fixed_clips
from sat_ssvae.latents.shards import EncodeConfig, encode_shards

from . import foreign_models
from .small_models import measured_vae, tiny_vae

CPU = torch.device("cpu")
STOCK = {"video_size": [480, 720], "fps": 8, "max_num_frames": 49, "skip_frms_num": 3.0}


def settings(path, **changes):
    data = DataConfig(path=str(path), num_frames=5, fps=8, resolution=(16, 24), num_workers=0)
    return EncodeConfig(**({"data": data, "clips_per_shard": 3, "batch_size": 2} | changes))


@pytest.fixture(scope="module")
def encoded(tiny_shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoded")
    encoded = encode_shards(measured_vae().for_inference(), settings(tiny_shards), folder, CPU)
    return folder, encoded


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


@torch.no_grad()
def test_the_dataset_gives_what_the_first_stage_encodes(encoded, tiny_shards, tmp_path):
    folder, done = encoded
    dataset = LatentDataset.create_dataset_function(str(folder), args=None, **STOCK)
    clips = list(fixed_clips(settings(tiny_shards).data, stride=5 / 8))
    assert len(dataset) == len(clips) == done.clips > 6
    assert 0 < done.captions == dataset.count_captions() == sum(bool(clip.caption) for clip in clips) < done.clips
    vae = measured_vae()
    vae.save_pretrained(tmp_path)
    stage = SSVAEFirstStage(ckpt_path=tmp_path)
    for item, clip in zip(dataset, clips, strict=True):
        assert item["mp4"].dtype == torch.float32
        torch.testing.assert_close(item["mp4"], stage.encode(clip.video[None])[0], rtol=2e-3, atol=2e-3)
        assert (item["txt"], item["num_frames"], item["fps"]) == (clip.caption, 5, 8)
    assert {item["txt"] for item in dataset} == {"", "coloured bars"}


def test_batches_are_those_that_latent_input_reads(encoded):
    batch = next(iter(DataLoader(LatentDataset(encoded[0]), batch_size=2)))
    assert batch["mp4"].shape == (2, 4, 3, 4, 6)  # B c t h w
    assert batch["num_frames"].tolist() == [5, 5]
    assert batch["fps"].shape == (2,)


def test_an_interrupted_run_goes_on(encoded, tiny_shards, tmp_path):
    shutil.copytree(encoded[0], tmp_path / "again")
    tars = sorted((tmp_path / "again").glob("*.tar"))
    tars[1].rename(tars[1].with_name(f"{tars[1].name}.partial"))
    times = {path: path.stat().st_mtime_ns for path in tars if path.exists()}
    assert encode_shards(measured_vae(), settings(tiny_shards, chunk_frames=4), tmp_path / "again", CPU) == encoded[1]
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert contents(tmp_path / "again").keys() == contents(encoded[0]).keys()


def test_other_settings_or_weights_need_another_folder(encoded, tiny_shards):
    with pytest.raises(UserError, match="choose an empty folder"):
        encode_shards(measured_vae(), settings(tiny_shards, stride=0.25), encoded[0], CPU)
    other = measured_vae()
    other.mask_token.data += 1
    with pytest.raises(UserError, match="choose an empty folder"):
        encode_shards(other, settings(tiny_shards), encoded[0], CPU)


def test_unusable_input_is_one_line(encoded, tiny_shards, tmp_path):
    with pytest.raises(UserError, match="sat-ssvae stats"):
        encode_shards(tiny_vae(), settings(tiny_shards), tmp_path, CPU)
    with pytest.raises(UserError, match="sat-ssvae encode"):
        LatentDataset(tmp_path)
    with pytest.raises(UserError, match="takes no stride"):
        LatentDataset.create_dataset_function(str(encoded[0]), args=None, stride=1)
    shutil.copytree(encoded[0], tmp_path / "cut")
    tar = sorted((tmp_path / "cut").glob("*.tar"))[0]
    tar.write_bytes(tar.read_bytes()[:700])
    with pytest.raises(UserError, match="delete"):
        [LatentDataset(tmp_path / "cut")[index] for index in range(3)]


@pytest.mark.slow
def test_two_ranks_write_the_same_shards_as_one(encoded, tiny_shards, tmp_path):
    measured_vae().save_pretrained(tmp_path / "vae")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    overrides = [
        "data.num_frames=5",
        "data.resolution=[16,24]",
        "data.num_workers=0",
        "clips_per_shard=3",
        "batch_size=2",
    ]
    command = [*launch, "-m", "sat_ssvae.cli", "encode", tmp_path / "vae", tiny_shards, tmp_path / "out", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'out'}: {encoded[1].clips} clips, {encoded[1].captions} with a caption\n"
    assert contents(tmp_path / "out") == contents(encoded[0])


@pytest.mark.parametrize("kind", foreign_models.KINDS)
@torch.no_grad()
def test_other_autoencoders_give_what_their_pipelines_take(kind, tiny_shards, tmp_path, capsys):
    """Shards of the command hold latents with scale, shift and statistics applied as each kind defines them."""
    folder = tmp_path / "model"
    foreign_models.KINDS[kind]().save_pretrained(folder)
    frames, size = {"mochi": 13}.get(kind, 9), {"ltx2": (64, 64)}.get(kind, (32, 48))
    clip_settings = [f"data.num_frames={frames}", f"data.resolution={list(size)}", "data.num_workers=0", "stride=1"]
    assert main(["encode", f"{kind}:{folder}", str(tiny_shards), str(tmp_path / "out"), *clip_settings]) == 0
    dataset = LatentDataset(tmp_path / "out")
    assert (
        capsys.readouterr().out
        == f"{tmp_path / 'out'}: {len(dataset)} clips, {dataset.count_captions()} with a caption\n"
    )
    clip = next(iter(fixed_clips(DataConfig(path=str(tiny_shards), num_frames=frames, resolution=size), stride=1)))
    vae = open_autoencoder(f"{kind}:{folder}")
    expected = vae.latent_stats.standardize(vae.encode(clip.video[None]).mode())[0]
    torch.testing.assert_close(dataset[0]["mp4"], expected, rtol=2e-3, atol=2e-3)
    assert dataset.infos[0].shapes == (tuple(expected.shape),)


def test_what_only_ssvae_can(tiny_shards, tmp_path, capsys):
    foreign_models.wan21().save_pretrained(tmp_path / "wan")
    places = [f"wan2.1:{tmp_path / 'wan'}", str(tiny_shards), str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        main(["encode", *places, "data.resolution=32", "data.num_frames=5", "chunk_frames=4"])
    assert "chunk_frames=4: for SSVAE alone, AutoencoderKLWan takes a clip as a whole" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["encode", "wan3:x", str(tiny_shards), str(tmp_path / "out")])
    assert "with a KIND of cogvideox, wan2.1, wan2.2, hunyuan" in capsys.readouterr().err


def test_latents_of_an_autoencoder_that_defines_no_normalisation(tiny_shards, tmp_path):
    model = foreign_models.modelscope()
    model.register_to_config(scaling_factor=1.0)
    encode_shards(as_autoencoder(model), settings(tiny_shards), tmp_path, CPU)
    (info,) = LatentDataset(tmp_path).infos
    assert info.latent_mean == (0,) * 4 and info.latent_std == (1,) * 4


def test_settings_of_the_command_are_checked(tiny_shards, tmp_path, capsys):
    measured_vae().save_pretrained(tmp_path / "vae")
    with pytest.raises(SystemExit):
        main(["encode", str(tmp_path / "vae"), str(tiny_shards), str(tmp_path / "out"), "data.num_frame=5"])
    assert "did you mean `data.num_frames`?" in capsys.readouterr().err


def test_data_without_any_caption_is_refused_unless_it_is_meant(tiny_videos, tmp_path):
    videos = tmp_path / "videos"
    videos.mkdir()
    for path in tiny_videos.glob("*.mp4"):
        shutil.copy(path, videos)
    with pytest.raises(UserError, match=r"none of \d+ clips has a caption .*; captions=none encodes them without"):
        encode_shards(measured_vae(), settings(videos), tmp_path / "refused", CPU)
    assert not (tmp_path / "refused").exists()
    done = encode_shards(measured_vae(), settings(videos, captions="none"), tmp_path / "meant", CPU)
    assert done.clips and done.captions == 0


def test_captions_in_the_layout_of_cogvideox(tiny_videos, tmp_path):
    (tmp_path / "labels").mkdir()
    (tmp_path / "videos").mkdir()
    for path in tiny_videos.glob("*.mp4"):
        shutil.copy(path, tmp_path / "videos")
        (tmp_path / "labels" / f"{path.stem}.txt").write_text(f"a film of {path.stem}")
    done = encode_shards(measured_vae(), settings(tmp_path), tmp_path / "out", CPU)
    assert done.captions == done.clips
    assert {item["txt"] for item in LatentDataset(tmp_path / "out")} <= {f"a film of bars{n}" for n in range(9)}
    silent = encode_shards(measured_vae(), settings(tmp_path, captions="none"), tmp_path / "silent", CPU)
    assert silent == (done.clips, 0) and {item["txt"] for item in LatentDataset(tmp_path / "silent")} == {""}


def test_small_videos_are_enlarged_when_asked(tiny_shards, tmp_path):
    def large(**changes):
        return settings(tiny_shards, data=DataConfig(path=str(tiny_shards), num_frames=5, resolution=96, **changes))

    with pytest.raises(UserError, match=r"64x80, wanted at least 96x96; data.enlarge=true scales such videos up"):
        encode_shards(measured_vae(), large(), tmp_path, CPU)
    encode_shards(measured_vae(), large(enlarge=True), tmp_path, CPU)
    assert LatentDataset(tmp_path)[0]["mp4"].shape == (4, 3, 24, 24)


def test_tiles_that_do_not_fit_claim_no_folder(tiny_shards, tmp_path):
    for vae in (measured_vae(), as_autoencoder(foreign_models.dc())):
        with pytest.raises(UserError, match="tile_size 13: must be a multiple of"):
            encode_shards(vae, settings(tiny_shards, tile_size=13), tmp_path / "latents", CPU)
    assert not (tmp_path / "latents").exists()


@torch.no_grad()
def test_large_frames_in_tiles(tiny_shards, tmp_path):
    data = DataConfig(path=str(tiny_shards), num_frames=5, resolution=(32, 48))
    encode_shards(measured_vae(), settings(tiny_shards, data=data, tile_size=32), tmp_path, CPU)
    vae = measured_vae()
    clip = next(iter(fixed_clips(data, stride=5 / 8)))
    latents = vae.latent_stats.standardize(vae.encode(clip.video[None], tile_size=32).mode())[0]
    torch.testing.assert_close(LatentDataset(tmp_path)[0]["mp4"], latents, rtol=2e-3, atol=2e-3)
    with pytest.raises(UserError, match="tile_size 30: must be a multiple of 4"):
        encode_shards(measured_vae(), settings(tiny_shards, data=data, tile_size=30), tmp_path / "odd", CPU)


def test_parts_are_merged(encoded, tiny_shards, tmp_path):
    output, vae, config = tmp_path / "parts", measured_vae().for_inference(), settings(tiny_shards)
    for index in (2, 1):
        with pytest.raises(UserError, match=r"not finished|no latents|pieces are not done"):
            encode_shards(vae, config, output, CPU, merged=True)
        encode_shards(vae, config.model_copy(update={"part": f"{index}/2"}), output, CPU)
    done = encode_shards(vae, config, output, CPU, merged=True)
    assert done == encoded[1]
    assert {name: data for name, data in contents(output).items() if name.endswith(".tar")} == {
        name: data for name, data in contents(encoded[0]).items() if name.endswith(".tar")
    }
