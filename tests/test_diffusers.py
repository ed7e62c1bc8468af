"""SSVAE behind the autoencoder interface of diffusers; its pipelines have tests of their own."""

import diffusers
import pytest
import torch

from sat_ssvae import SSVAE, UserError
from sat_ssvae.diffusers import AutoencoderSSVAE
from sat_ssvae.vae.statistics import LatentStats

from .small_models import random_video, tiny_vae


def with_stats():
    vae = tiny_vae()
    vae.latent_stats = LatentStats(torch.tensor([0.5, -1.0, 0.0, 2.0]), torch.tensor([2.0, 1.0, 0.5, 3.0]))
    return vae


@torch.no_grad()
def test_latents_are_standardised_and_the_round_trip_is_ssvaes_own():
    own, video = with_stats(), random_video(5)
    model = AutoencoderSSVAE.from_ssvae(own)
    posterior, expected = model.encode(video).latent_dist, own.encode(video)
    torch.testing.assert_close(posterior.mean, own.latent_stats.standardize(expected.mean))
    torch.testing.assert_close(posterior.std, expected.std / own.latent_stats.std.view(1, 4, 1, 1, 1))
    torch.testing.assert_close(model.decode(posterior.mean).sample, own.decode(expected.mean).clamp(-1, 1))
    torch.testing.assert_close(model(video).sample, own.decode(expected.mean).clamp(-1, 1))
    (same,) = model.decode(posterior.mean, return_dict=False)
    assert torch.equal(same, model.decode(posterior.mean).sample)


@torch.no_grad()
def test_images_slices_and_chunks_give_the_same():
    model, video = AutoencoderSSVAE.from_ssvae(with_stats()), torch.cat([random_video(9, seed=s) for s in (0, 1)])
    whole = model.encode(video).latent_dist.mean
    decoded = model.decode(whole).sample
    model.enable_slicing()
    model.chunk_frames = 4
    torch.testing.assert_close(model.encode(video).latent_dist.mean, whole)
    torch.testing.assert_close(model.decode(whole).sample, decoded)
    image = model.encode(video[:, :, 0]).latent_dist.mean
    torch.testing.assert_close(image, whole[:, :, 0])
    torch.testing.assert_close(model.decode(image).sample, decoded[:, :, 0], atol=3e-5, rtol=1e-5)


@torch.no_grad()
def test_saving_keeps_weights_statistics_and_no_derived_setting(tmp_path):
    model = AutoencoderSSVAE.from_ssvae(with_stats())
    model.save_pretrained(tmp_path)
    again = AutoencoderSSVAE.from_pretrained(tmp_path, low_cpu_mem_usage=False)
    video = random_video(5)
    torch.testing.assert_close(again.encode(video).latent_dist.mean, model.encode(video).latent_dist.mean)
    for name in ("scaling_factor", "latents_std", "block_out_channels", "temporal_compression_ratio", "z_dim"):
        assert again.config[name] == model.config[name]
    assert "z_dim" not in (tmp_path / "config.json").read_text()


def test_a_folder_of_ssvae_is_told_from_one_of_diffusers(tmp_path):
    with_stats().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"of SSVAE, not of diffusers; open it by AutoencoderSSVAE\.from_ssvae\("):
        AutoencoderSSVAE.from_pretrained(str(tmp_path))


def test_an_autoencoder_without_statistics_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"no latent statistics.*sat-ssvae stats") as caught:
        AutoencoderSSVAE.from_ssvae(tiny_vae())
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="belong together"):
        AutoencoderSSVAE(**tiny_vae().config.model_dump(mode="json"), channel_mean=[0.0] * 4)


@pytest.mark.parametrize(
    ("mean", "message"),
    [
        ([0.0] * 3, r"expected a number for each of 4 channels, found shape \(3,\)"),
        ([[0.0] * 4], r"found shape \(1, 4\)"),
        ("0123", "expected a list of numbers each"),
        ([0.0, None, 0.0, 0.0], "expected a list of numbers each"),
    ],
)
def test_statistics_that_do_not_fit_the_latents_are_refused(mean, message):
    with pytest.raises(UserError, match=f"channel_mean and channel_std: .*{message}"):
        AutoencoderSSVAE(**tiny_vae().config.model_dump(mode="json"), channel_mean=mean, channel_std=[1.0] * 4)


@torch.no_grad()
def test_a_constant_channel_is_0_in_half_precision_as_well():
    stats = LatentStats(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]))
    z = torch.ones(1, 2, 1, 2, 2, dtype=torch.float16)
    assert stats.standardize(z)[:, 0].tolist() == torch.zeros(1, 1, 2, 2).tolist()


def test_where_pipelines_look_for_sizes_and_normalisation():
    model = AutoencoderSSVAE.from_ssvae(with_stats())
    assert model.temperal_downsample == model.config.temperal_downsample == [False, True]
    assert model.spatial_compression_ratio == model.config.spatial_compression_ratio == 4
    assert model.temporal_compression_ratio == model.config.temporal_compression_ratio == 2
    assert 2 ** (len(model.config.block_out_channels) - 1) == 4
    assert model.config.scaling_factor == 1 and model.config.invert_scale_latents is False
    assert model.config.shift_factor == 0, "a number: pipelines of images add it unasked"
    assert model.config.force_upcast is False, "AnimateDiff's video to video asks"
    assert model.latents_mean.tolist() == model.config.latents_mean == [0, 0, 0, 0]
    assert model.latents_std.tolist() == model.config.latents_std == [1, 1, 1, 1]
    assert model.double().latents_std.dtype == torch.float64


@torch.no_grad()
def test_a_configuration_builds_the_same_again_and_takes_what_is_registered():
    model = AutoencoderSSVAE.from_ssvae(with_stats())
    again = AutoencoderSSVAE.from_config(model.config)
    again.load_state_dict(model.state_dict())
    video = random_video(5)
    torch.testing.assert_close(again.encode(video).latent_dist.mean, model.encode(video).latent_dist.mean)
    assert dict(again.config) == dict(model.config)
    again.register_to_config(force_upcast=True, scaling_factor=3.0)
    assert again.config.force_upcast is True
    assert again.config.scaling_factor == 1, "latents are standardised already"
    assert AutoencoderSSVAE.from_config(again.config).config.z_dim == 4
    other = AutoencoderSSVAE.from_config(model.config, latent_channels=2, channel_mean=None, channel_std=None)
    assert other.config.z_dim == 2 and other.config.latents_mean == [0, 0]


@torch.no_grad()
def test_a_time_step_for_the_decoder_is_ignored():
    model = AutoencoderSSVAE.from_ssvae(with_stats())
    z = torch.randn(1, 4, 2, 3, 3)
    expected = model.decode(z).sample
    assert torch.equal(model.decode(z, torch.tensor([0.05]), return_dict=False)[0], expected)
    assert torch.equal(model.decode(z, None, False)[0], expected)
    assert torch.equal(model.decode(z, temb=None).sample, expected)


@torch.no_grad()
def test_tiles_are_those_of_ssvae():
    own = with_stats()
    model, video = AutoencoderSSVAE.from_ssvae(own), random_video(5, 32, 32)
    whole = model.encode(video).latent_dist.mean
    model.enable_tiling(16)
    tiled = model.encode(video).latent_dist.mean
    torch.testing.assert_close(tiled, own.latent_stats.standardize(own.encode(video, tile_size=16).mean))
    assert not torch.equal(tiled, whole)
    expected = own.decode(own.latent_stats.unstandardize(tiled), tile_size=16).clamp(-1, 1)
    torch.testing.assert_close(model.decode(tiled).sample, expected)
    model.disable_tiling()
    assert torch.equal(model.encode(video).latent_dist.mean, whole)
    model.enable_tiling(512)  # larger than the video: the same as the whole
    torch.testing.assert_close(model.encode(video).latent_dist.mean, whole)
    with pytest.raises(UserError, match="tile_size 18: must be a multiple of 4"):
        model.enable_tiling(18)


@torch.no_grad()
def test_float64_is_computed_in_float64():
    single, video = AutoencoderSSVAE.from_ssvae(with_stats()), random_video(5)
    double = AutoencoderSSVAE.from_ssvae(with_stats()).double()
    z = double.encode(video.double()).latent_dist.mean
    assert z.dtype == torch.float64 and double.decode(z).sample.dtype == torch.float64
    torch.testing.assert_close(z.float(), single.encode(video).latent_dist.mean, atol=1e-4, rtol=1e-4)
    shifted = double.encode(video.double() * (1 + 1e-12)).latent_dist.mean
    assert 0 < (shifted - z).abs().max() < 1e-9, "finer than float32 can tell"


@torch.no_grad()
def test_offloading_of_accelerate_brings_the_weights():
    hooks = pytest.importorskip("accelerate.hooks")
    model, video = AutoencoderSSVAE.from_ssvae(with_stats()), random_video(5)
    latents = model.encode(video).latent_dist.mode()
    calls = []

    class Counter(hooks.ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            calls.append(module)
            return args, kwargs

    hooks.add_hook_to_module(model, Counter())
    model.encode(video)
    model.decode(latents)
    assert calls == [model, model]
    hooks.remove_hook_from_module(model)
    hooks.attach_align_device_hook(model, execution_device=torch.device("cpu"), offload=True)
    assert model.device.type == "meta" and model.latents_std.tolist() == [1] * 4
    for frames in (video, video[:, :, :1]):
        expected = AutoencoderSSVAE.from_ssvae(with_stats())(frames).sample
        torch.testing.assert_close(model(frames).sample, expected)


@torch.no_grad()
def test_weights_that_are_stored_in_a_smaller_type():
    model, video = AutoencoderSSVAE.from_ssvae(with_stats()), random_video(5)
    expected = model(video).sample
    model.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    torch.testing.assert_close(model(video).sample, expected, atol=0.1, rtol=0)


def test_tiles_are_given_as_to_other_classes():
    model = AutoencoderSSVAE.from_ssvae(with_stats())
    model.enable_tiling(tile_sample_min_width=32, tile_sample_min_height=16, tile_sample_stride_height=12)
    assert (model.tile_sample_min_height, model.tile_sample_min_width) == (16, 32)
    model.enable_tiling(tile_overlap_factor_height=0.2)  # which has no effect
    assert (model.tile_sample_min_height, model.tile_sample_min_width) == (16, 32)
    video = random_video(5, 24, 32)
    with torch.no_grad():
        z, low = model.encode(video).latent_dist.mode(), model.encode(video[:, :, :, :16]).latent_dist.mode()
        torch.testing.assert_close(z[..., :2, :], low[..., :2, :])  # the first tile has the whole width
        decoded = model.decode(z).sample
        torch.testing.assert_close(decoded[..., :8, :], model.decode(z[..., :4, :]).sample[..., :8, :])
    with pytest.raises(TypeError, match="tile_sise"):
        model.enable_tiling(tile_sise=16)
    with pytest.raises(UserError, match="height 26"):
        model.encode(random_video(5, 26, 32))
    model.tile_sample_min_width = 18
    with pytest.raises(UserError, match="tile_size 18: must be a multiple of 4"):
        model.decode(z)


@pytest.mark.parametrize("save", [{}, {"variant": "fp16"}, {"max_shard_size": "50KB"}, {"safe_serialization": False}])
def test_auto_model_finds_the_class(tmp_path, save):
    model = AutoencoderSSVAE.from_ssvae(with_stats())
    model.save_pretrained(tmp_path / "vae", **save)
    load = {"variant": save.get("variant"), "use_safetensors": save.get("safe_serialization")}
    for folder, subfolder in ((tmp_path / "vae", None), (tmp_path, "vae")):
        again = diffusers.AutoModel.from_pretrained(str(folder), subfolder=subfolder, low_cpu_mem_usage=False, **load)
        assert type(again) is AutoencoderSSVAE and not again.training
        weights = again.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    half = diffusers.AutoModel.from_pretrained(str(folder), subfolder="vae", dtype=torch.bfloat16, **load)
    assert half.dtype == torch.bfloat16


def test_a_configuration_of_ours_gives_no_warning(caplog):
    model = AutoencoderSSVAE.from_ssvae(with_stats())
    model.register_to_config(force_upcast=True)
    diffusers.utils.logging.enable_propagation()
    try:
        again = AutoencoderSSVAE.from_config(model.config)
        assert not caplog.messages
        AutoencoderSSVAE.from_config({**model.config, "latent_chanels": 4})
        assert "{'latent_chanels': 4} were passed" in caplog.text
    finally:
        diffusers.utils.logging.disable_propagation()
    assert again.config == model.config


def test_gradient_checkpointing_keeps_less_and_changes_no_gradient():
    model, video = AutoencoderSSVAE.from_ssvae(with_stats()), random_video(5)

    def gradients():
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
            loss = model(video).sample.square().mean()
        model.zero_grad()
        loss.backward()
        return sum(kept), [parameter.grad for parameter in model.parameters() if parameter.grad is not None]

    most, expected = gradients()
    model.enable_gradient_checkpointing()
    assert model.is_gradient_checkpointing
    kept, found = gradients()
    assert kept < most / 2
    torch.testing.assert_close(found, expected)
    model.disable_gradient_checkpointing()
    assert not model.is_gradient_checkpointing and gradients()[0] == most


@pytest.mark.filterwarnings("ignore:The following device_map keys")  # the mask token is no module
@torch.no_grad()
def test_accelerate_places_encoder_and_decoder(tmp_path):
    pytest.importorskip("accelerate")
    model, video = AutoencoderSSVAE.from_ssvae(with_stats()), random_video(5)
    model.save_pretrained(tmp_path)
    places = {"ssvae.encoder": "cpu", "ssvae.decoder": "disk", "ssvae.mask_token": "cpu"}
    for device_map in ("auto", places):
        options = {"device_map": device_map, "offload_folder": str(tmp_path / "offloaded")}
        again = AutoencoderSSVAE.from_pretrained(tmp_path, **options)
        torch.testing.assert_close(again(video).sample, model(video).sample)
    assert next(again.ssvae.decoder.parameters()).device.type == "meta"


PREPARED = [lambda vae: vae, SSVAE.for_inference, SSVAE.for_training]


@pytest.mark.parametrize("prepare", PREPARED, ids=["plain", "inference", "training"])
def test_weights_that_are_elsewhere_or_in_another_type(prepare):
    video = random_video(5)
    expected = AutoencoderSSVAE.from_ssvae(with_stats())(video).sample
    stored = AutoencoderSSVAE.from_ssvae(prepare(with_stats()))
    stored.enable_layerwise_casting(storage_dtype=torch.bfloat16, compute_dtype=torch.float32)
    hooks = pytest.importorskip("accelerate.hooks")
    offloaded = AutoencoderSSVAE.from_ssvae(prepare(with_stats()))
    hooks.attach_align_device_hook(offloaded, execution_device=torch.device("cpu"), offload=True)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            torch.testing.assert_close(stored(video).sample, expected, atol=0.1, rtol=0)
            torch.testing.assert_close(offloaded(video).sample, expected, atol=1e-4, rtol=0)
