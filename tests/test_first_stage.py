"""The first stage driven by the call sequences of both CogVideoX eras: their results are those of a whole decode."""

import logging
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

from sat_ssvae import UserError
from sat_ssvae.cogvideo import SSVAEFirstStage
from sat_ssvae.vae.statistics import LatentStats

from .small_models import random_video, tiny_vae

STOCK = {
    "cp_size": 1,
    "ignore_keys": ["loss"],
    "loss_config": {"target": "torch.nn.Identity"},
    "regularizer_config": {"target": "vae_modules.regularizers.DiagonalGaussianRegularizer"},
    "encoder_config": {"target": "vae_modules.cp_enc_dec.ContextParallelEncoder3D", "params": {"ch_mult": [1, 2]}},
    "decoder_config": {"target": "vae_modules.cp_enc_dec.ContextParallelDecoder3D", "params": {}},
}
MEAN, STD = (0.5, -1.0, 0.0, 2.0), (1.0, 0.5, 2.0, 3.0)
SPACE, TIME = 4, 2  # of tiny_vae


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    vae = tiny_vae()
    vae.latent_stats = LatentStats(torch.tensor(MEAN), torch.tensor(STD))
    folder = tmp_path_factory.mktemp("ssvae")
    vae.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stage(folder):
    return SSVAEFirstStage(ckpt_path=folder)


@pytest.fixture(scope="module")
def latents():
    return torch.randn(1, 4, 14, 1, 2, generator=torch.Generator().manual_seed(1))


def decode_like_main(stage, z, patched=True):
    """CogVideoX main's decode_first_stage: up to ten chunks of at least two latent frames."""
    z = z[:, :, getattr(stage, "first_latent", 1) if patched else 1 :]
    count = max(1, min(10, z.shape[2] // 2))
    frames = []
    for number, chunk in enumerate(torch.tensor_split(z, count, dim=2)):
        last = number == count - 1
        frames.append(stage.decode(chunk.contiguous(), clear_fake_cp_cache=last, use_cp=number == 0))
    return torch.cat(frames, dim=2)


def sample_like_v1(stage, z):
    """v1.0's sample_video.py: three latent frames, then two at a time; no use_cp."""
    count = (z.shape[2] - 1) // 2
    frames = []
    for number in range(count):
        start, end = (0, 3) if number == 0 else (number * 2 + 1, number * 2 + 3)
        frames.append(stage.decode(z[:, :, start:end].contiguous(), clear_fake_cp_cache=number == count - 1))
    return torch.cat(frames, dim=2)


def assert_close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 2, 3, 5, 14])
def test_chunks_of_main_are_a_whole_decode(stage, latents, length):
    z = latents[:, :, :length]
    video = decode_like_main(stage, z)
    assert video.shape[2] == TIME * (length - 1) + 1
    assert_close(video, stage.decode(z))


@torch.no_grad()
@pytest.mark.parametrize("length", [3, 5, 13])
def test_chunks_of_v1_are_a_whole_decode(stage, latents, length):
    z = latents[:, :, :length]
    assert_close(sample_like_v1(stage, z), stage.decode(z))


@torch.no_grad()
@settings(max_examples=15)
@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_any_partition_is_a_whole_decode(stage, latents, sizes):
    z = latents.repeat(1, 1, 2, 1, 1)[:, :, : sum(sizes)]
    chunks = z.split(sizes, dim=2)
    frames = [stage.decode(chunk, clear_fake_cp_cache=False) for chunk in chunks[:-1]]
    video = torch.cat([*frames, stage.decode(chunks[-1], clear_fake_cp_cache=True)], dim=2)
    assert_close(video, stage.decode(z))


@torch.no_grad()
def test_chunked_and_whole_decode_differ_when_state_is_lost(stage, latents):
    """So the tests above would notice."""
    whole = stage.decode(latents[:, :, :6])
    later = stage.decode(latents[:, :, 3:6])
    assert (later[:, :, 1:] - whole[:, :, -later.shape[2] + 1 :]).abs().max() > 1e-3


@torch.no_grad()
def test_the_default_ends_a_video(stage, latents):
    first = stage.decode(latents[:, :, :4])
    assert torch.equal(first, stage.decode(latents[:, :, :4]))


@torch.no_grad()
def test_use_cp_starts_anew_after_an_unfinished_video(stage, latents):
    stage.decode(latents[:, :, :4], clear_fake_cp_cache=False)
    assert_close(decode_like_main(stage, latents), stage.decode(latents))


@torch.no_grad()
def test_a_failed_chunk_ends_the_video(stage, latents):
    stage.decode(latents[:, :, :4], clear_fake_cp_cache=False)
    with pytest.raises(UserError, match="a stream is one video"):
        stage.decode(latents[..., :1], clear_fake_cp_cache=False)
    assert stage.decode(latents[:, :, :1]).shape[2] == 1


@torch.no_grad()
def test_latents_are_standardised_posterior_means(stage):
    x = random_video(5)
    z = stage.encode(x)
    mean, std = (torch.tensor(values).view(1, 4, 1, 1, 1) for values in (MEAN, STD))
    assert_close(z * std + mean, stage.vae.encode(x).mode())
    assert_close(stage.decode(z), stage.vae.decode(stage.vae.encode(x).mode()))


@torch.no_grad()
def test_encode_returns_what_sgm_asks_for(stage):
    x = random_video(5)
    posterior = stage.vae.encode(x)
    z, log = stage.encode(x, return_reg_log=True)
    assert torch.equal(z, stage.encode(x, use_cp=False))
    assert_close(log["kl_loss"], posterior.kl().mean())
    moments, empty = stage.encode(x, unregularized=True)
    assert torch.equal(moments, torch.cat([posterior.mean, posterior.logvar], 1))
    assert empty == {}
    z, video, log = stage(x, use_cp=True)
    assert video.shape == x.shape
    assert log["kl_loss"] > 0


def test_last_layer_and_networks_are_the_autoencoders(stage):
    assert stage.get_last_layer() is stage.vae.decoder.out[2].conv.weight
    assert stage.decoder is stage.vae.decoder
    assert stage.encoder is stage.vae.encoder
    assert (stage.spatial_factor, stage.first_latent) == (SPACE, 0)


def test_weights_are_laid_out_as_deepspeed_needs_them(stage):
    assert all(parameter.is_contiguous() for parameter in stage.parameters())


class Model(nn.Module):
    """The place of a first stage in CogVideoX's model."""

    def __init__(self, first_stage):
        super().__init__()
        self.model = nn.Linear(2, 2)
        self.first_stage_model = first_stage


def another_stage(folder):
    stage = SSVAEFirstStage(ckpt_path=folder)
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.normal_()
    return stage


def test_the_first_stage_is_no_part_of_the_models_state(folder):
    model = Model(SSVAEFirstStage(ckpt_path=folder))
    assert set(model.state_dict()) == {"model.weight", "model.bias"}
    assert set(model.first_stage_model.state_dict()) == {f"vae.{name}" for name in tiny_vae().state_dict()}


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("saved", ["with", "without", "stock"])
def test_a_models_checkpoint_does_not_replace_the_first_stage(folder, saved, strict, caplog):
    model, other = Model(SSVAEFirstStage(ckpt_path=folder)), another_stage(folder)
    module = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    if saved == "with":
        module |= {f"first_stage_model.{name}": value for name, value in other.state_dict().items()}
    elif saved == "stock":
        module["first_stage_model.encoder.conv_in.conv.weight"] = torch.ones(4)
    before = {name: value.clone() for name, value in model.first_stage_model.state_dict().items()}
    with caplog.at_level(logging.INFO, logger="sat_ssvae"):
        missing, unexpected = model.load_state_dict(module, strict=strict)
    assert not missing and not unexpected
    assert torch.equal(model.model.weight, module["model.weight"])
    after = model.first_stage_model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert ("ckpt_path names the autoencoder" in caplog.text) == (saved != "without")


def test_alone_it_loads_its_state(folder):
    stage, other = SSVAEFirstStage(ckpt_path=folder), another_stage(folder)
    stage.load_state_dict(other.state_dict())
    assert torch.equal(stage.get_last_layer(), other.get_last_layer())


@torch.no_grad()
def test_an_image_is_one_latent_frame(stage):
    assert stage.encode(random_video(1)).shape == (1, 4, 1, 4, 4)


@pytest.mark.parametrize("parameters", [{}, {"chunk_frames": 4}, {"tile_size": 32}])
@torch.no_grad()
def test_a_batch_may_be_empty(folder, parameters):
    """As with CogVideoX's own autoencoder: a rank may get no video."""
    stage = SSVAEFirstStage(ckpt_path=folder, **parameters)
    z = stage.encode(torch.zeros(0, 3, 9, 64, 64))
    assert len(z) == 0 and stage.decode(z).shape == (0, 3, 9, 64, 64)


@torch.no_grad()
@pytest.mark.parametrize("chunk_frames", [1, 4, 100])
def test_chunk_frames_changes_nothing(folder, stage, chunk_frames):
    chunked = SSVAEFirstStage(ckpt_path=folder, chunk_frames=chunk_frames)
    x = random_video(9)
    z = stage.encode(x)
    assert_close(chunked.encode(x), z)
    assert_close(chunked.decode(z), stage.decode(z))
    assert_close(sample_like_v1(chunked, z), stage.decode(z))


@torch.no_grad()
def test_tiles_are_those_of_the_autoencoder_in_chunks_too(folder, stage):
    tiled = SSVAEFirstStage(ckpt_path=folder, tile_size=8)
    x = random_video(9)
    z = tiled.encode(x)
    assert_close(z, stage.stats.standardize(stage.vae.encode(x, tile_size=8).mode()))
    assert not torch.allclose(z, stage.encode(x))
    latents = stage.stats.unstandardize(z)
    assert_close(tiled.decode(z), stage.vae.decode(latents, tile_size=8))
    assert_close(sample_like_v1(tiled, z), tiled.decode(z))
    assert_close(decode_like_main(tiled, z), tiled.decode(z))
    whole = SSVAEFirstStage(ckpt_path=folder, tile_size=16)
    assert_close(whole.decode(z), stage.decode(z))


@torch.no_grad()
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs", [torch.float32, torch.bfloat16])
def test_results_have_the_callers_dtype(folder, weights, inputs):
    stage = SSVAEFirstStage(ckpt_path=folder).to(weights)
    z = stage.encode(random_video(3).to(inputs))
    assert z.dtype == inputs
    assert stage.decode(z).dtype == inputs
    assert stage.stats.mean.dtype == torch.float32  # half precision would round the statistics


def test_stock_parameters_left_by_a_merge_are_named_once(folder, caplog):
    with caplog.at_level(logging.INFO, logger="sat_ssvae"):
        merged = OmegaConf.merge({"ckpt_path": "stock.pt", **STOCK}, {"ckpt_path": str(folder)})
        SSVAEFirstStage(**merged)
    (record,) = caplog.records
    assert all(name in record.message for name in STOCK)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"chunk_frame": 4}, "unknown key `chunk_frame`, did you mean `chunk_frames`"),
        ({"chunk_frames": 0}, "chunk_frames"),
        ({}, "ckpt_path is missing"),
        ({"ckpt_path": "x", "random_init": True}, "set ckpt_path: null"),
        ({"ckpt_path": "/nowhere.pth"}, "/nowhere.pth: no such"),
        ({"random_init": True, "latent_mean": [0.0]}, "belong together"),
        ({"random_init": True, "latent_mean": [0.0], "latent_std": [0.0]}, "latent_std"),
        ({"ckpt_path": "x", "model": {}}, "belongs to random_init"),
    ],
)
def test_wrong_parameters_are_refused_by_name(params, message):
    with pytest.raises(UserError, match=message) as caught:
        SSVAEFirstStage(**params)
    assert "\n" not in str(caught.value)


def test_a_tile_that_does_not_fit_names_the_step(folder):
    with pytest.raises(UserError, match=r"tile_size is 10, must be a multiple of 4"):
        SSVAEFirstStage(ckpt_path=folder, tile_size=10)


def test_a_checkpoint_without_statistics_is_refused_unless_they_are_given(tmp_path):
    tiny_vae().save_pretrained(tmp_path)
    with pytest.raises(UserError, match="no latent statistics"):
        SSVAEFirstStage(ckpt_path=tmp_path)
    given_ones = SSVAEFirstStage(ckpt_path=tmp_path, latent_mean=MEAN, latent_std=STD)
    assert given_ones.stats.std.tolist() == list(STD)
    with pytest.raises(UserError, match="2 numbers, but the autoencoder has 4"):
        SSVAEFirstStage(ckpt_path=tmp_path, latent_mean=MEAN[:2], latent_std=STD[:2])


def test_random_weights_need_no_statistics():
    sizes = tiny_vae().config.model_dump()
    stage = SSVAEFirstStage(random_init=True, model=sizes, ckpt_path=None)
    assert stage.stats.std.tolist() == [1.0] * 4


def test_sizes_that_do_not_fit_name_the_nearest(stage):
    with pytest.raises(UserError, match="the nearest"):
        stage.encode(random_video(4))
    with pytest.raises(UserError, match="height 18"):
        stage.encode(random_video(5, height=18))


def test_videos_of_integers_are_refused(stage):
    with pytest.raises(UserError, match="floating point numbers in"):
        stage.encode(torch.zeros(1, 3, 5, 32, 32, dtype=torch.uint8))


def test_latents_of_another_autoencoder_are_refused_with_the_way_out(stage):
    with pytest.raises(
        UserError, match=r"latents of 16 channels for an autoencoder of \d+; put the overlay .* check"
    ) as caught:
        stage.decode(torch.zeros(1, 16, 2, 4, 4))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("split", ["input_cp", "output_cp"])
def test_split_videos_are_refused(stage, split):
    with pytest.raises(UserError, match=split):
        stage.encode(random_video(1), **{split: True})


def test_importing_the_first_stage_needs_neither_sat_nor_cogvideo():
    code = "import sys, sat_ssvae.cogvideo; assert not {'sat', 'sgm', 'deepspeed', 'webdataset'} & sys.modules.keys()"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def checkout(folder, *, sample, diffusion):
    """Stands for CogVideoX's files, of which only these words are looked at; imports diffusion_video, then builds."""
    (folder / "sample_video.py").write_text(sample)
    (folder / "diffusion_video.py").write_text(diffusion)
    code = "import diffusion_video; from sat_ssvae.cogvideo import *; SSVAEFirstStage(random_init=True, model={sizes})"
    sizes = tiny_vae().config.model_dump(mode="json")
    command = [sys.executable, "-c", code.format(sizes=sizes)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sample", "diffusion", "missing"),
    [
        ("F = 8", "", "sample_video.py"),
        ("F = spatial_factor", "fake_cp_size = 10", "diffusion_video.py"),
        ("F = spatial_factor", "fake_cp_size = 10; first_latent = 0", None),
    ],
)
def test_an_unpatched_checkout_is_refused(tmp_path, sample, diffusion, missing):
    sample = sample.replace("spatial_factor", "8  # spatial_factor")
    done = checkout(tmp_path, sample=sample, diffusion=diffusion)
    if missing is None:
        assert done.returncode == 0, done.stderr
    else:
        last = done.stderr.splitlines()[-1]
        assert f"{missing} is not patched for SSVAE; run: bash scripts/install_into_cogvideo.sh" in last
