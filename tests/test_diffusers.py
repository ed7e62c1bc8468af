"""SSVAE inside real pipelines of diffusers, everything at random small size."""

import diffusers
import numpy as np
import pytest
import torch
from diffusers.guiders import ClassifierFreeGuidance

from sat_ssvae import UserError
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


def test_an_autoencoder_without_statistics_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"no latent statistics.*sat-ssvae stats") as caught:
        AutoencoderSSVAE.from_ssvae(tiny_vae())
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="belong together"):
        AutoencoderSSVAE(**tiny_vae().config.model_dump(mode="json"), channel_mean=[0.0] * 4)


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
    model.enable_tiling()  # the default is larger than the video: the same as the whole
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


def pipeline_of(pipeline, transformer, scheduler, **more):
    vae = AutoencoderSSVAE.from_ssvae(with_stats())
    return pipeline(tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=transformer, **more)


WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 32,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 1,
    "rope_max_seq_len": 32,
}
EMBEDDINGS = {"prompt_embeds": torch.ones(1, 8, 32), "negative_prompt_embeds": torch.zeros(1, 8, 32)}
SIZE = {"height": 16, "width": 16, "num_inference_steps": 2}


def unipc():
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def frames(count=5):
    generator = np.random.default_rng(0)
    return list(generator.random((count, 16, 16, 3), dtype=np.float32))


def wan_video_to_video():
    pipeline = pipeline_of(diffusers.WanVideoToVideoPipeline, diffusers.WanTransformer3DModel(**WAN), unipc())
    return pipeline, {"video": frames(), "strength": 0.8, **EMBEDDINGS}


def wan_image_to_video():
    transformer = diffusers.WanTransformer3DModel(**{**WAN, "in_channels": 2 * 4 + 2})  # latents, condition, mask
    others = {"image_encoder": None, "image_processor": None}
    pipeline = pipeline_of(diffusers.WanImageToVideoPipeline, transformer, unipc(), **others)
    return pipeline, {"image": diffusers.utils.numpy_to_pil(frames(1)[0])[0], "num_frames": 5, **EMBEDDINGS}


def anyflow():
    """Asks for the moments of the condition, not for a distribution."""
    transformer, scheduler = diffusers.AnyFlowTransformer3DModel(**WAN), diffusers.FlowMatchEulerDiscreteScheduler()
    pipeline = pipeline_of(diffusers.AnyFlowPipeline, transformer, scheduler)
    condition = torch.as_tensor(frames(1)[0]).permute(2, 0, 1)[None, None]  # B T C H W
    return pipeline, {"video": condition, "num_frames": 5, "prompt_embeds": EMBEDDINGS["prompt_embeds"]}


def wan_vace():
    masks = 4 * 4  # one channel for each pixel of a latent position
    transformer = diffusers.WanVACETransformer3DModel(**WAN, vace_layers=[0], vace_in_channels=2 * 4 + masks)
    pipeline = pipeline_of(diffusers.WanVACEPipeline, transformer, unipc())
    video = [diffusers.utils.numpy_to_pil(frame)[0] for frame in frames()]
    mask = [picture.convert("L").point(lambda value: 255) for picture in video]
    return pipeline, {"video": video, "mask": mask, "num_frames": 5, **EMBEDDINGS}


def skyreels_v2():
    pipeline = pipeline_of(diffusers.SkyReelsV2Pipeline, diffusers.SkyReelsV2Transformer3DModel(**WAN), unipc())
    return pipeline, {"num_frames": 5, **EMBEDDINGS}


def cogvideox_image_to_video():
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=16,
        in_channels=8,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=1,
        sample_width=4,
        sample_height=4,
        sample_frames=5,
        patch_size=2,
        temporal_compression_ratio=2,
        max_text_seq_length=8,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=False,
    )
    pipeline = pipeline_of(diffusers.CogVideoXImageToVideoPipeline, transformer, diffusers.DDIMScheduler())
    image = diffusers.utils.numpy_to_pil(frames(1)[0])[0]
    return pipeline, {"image": image, "num_frames": 5, **EMBEDDINGS}


def hunyuan_video15():
    transformer = diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=2 * 4 + 1,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=32,
        text_embed_2_dim=16,
        image_embed_dim=12,
        rope_axes_dim=(2, 2, 4),
        target_size=16,
        task_type="t2v",
    )
    others = {"text_encoder_2": None, "tokenizer_2": None, "guider": ClassifierFreeGuidance(guidance_scale=2.0)}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    pipeline = pipeline_of(diffusers.HunyuanVideo15Pipeline, transformer, scheduler, **others)
    embeddings = {"prompt_embeds_2": torch.ones(1, 6, 16), "negative_prompt_embeds_2": torch.zeros(1, 6, 16)}
    for name in ("prompt_embeds_mask", "negative_prompt_embeds_mask"):
        embeddings |= {name: torch.ones(1, 8, dtype=torch.long), f"{name}_2": torch.ones(1, 6, dtype=torch.long)}
    return pipeline, {"num_frames": 5, **EMBEDDINGS, **embeddings}


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        wan_video_to_video,
        wan_image_to_video,
        wan_vace,
        skyreels_v2,
        anyflow,
        cogvideox_image_to_video,
        hunyuan_video15,
    ],
)
def test_further_pipelines_run_to_a_video(build):
    """From the same noise, the pipeline's video is what SSVAE decodes from the pipeline's latents."""
    torch.manual_seed(0)
    pipeline, arguments = build()
    pipeline.set_progress_bar_config(disable=True)

    def generate(output):
        generator = torch.Generator().manual_seed(0)
        return torch.as_tensor(pipeline(**SIZE, **arguments, generator=generator, output_type=output).frames).detach()

    latents, video = generate("latent"), generate("pt")
    if build is cogvideox_image_to_video:
        latents = latents.permute(0, 2, 1, 3, 4)
    assert latents.shape == (1, 4, 3, 4, 4) and video.shape == (1, 5, 3, 16, 16)
    with torch.no_grad():
        expected = pipeline.vae.decode(latents).sample.movedim(2, 1)
    torch.testing.assert_close(video, (expected + 1) / 2, atol=1e-4, rtol=1e-4)


def wan_pipeline():
    torch.manual_seed(0)
    transformer = diffusers.WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=32,
        freq_dim=256,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    vae, scheduler = AutoencoderSSVAE.from_ssvae(with_stats()), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    return diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=transformer
    )


def cogvideox_pipeline():
    torch.manual_seed(0)
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=32,
        num_layers=1,
        sample_width=16,
        sample_height=16,
        sample_frames=5,
        patch_size=2,
        temporal_compression_ratio=2,
        max_text_seq_length=8,
    )
    vae, scheduler = AutoencoderSSVAE.from_ssvae(with_stats()), diffusers.DDIMScheduler()
    return diffusers.CogVideoXPipeline(
        tokenizer=None, text_encoder=None, vae=vae, scheduler=scheduler, transformer=transformer
    )


def modelscope_pipeline():
    torch.manual_seed(0)
    unet = diffusers.UNet3DConditionModel(
        block_out_channels=(8, 8),
        layers_per_block=1,
        in_channels=4,
        out_channels=4,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=2,
    )
    vae, scheduler = AutoencoderSSVAE.from_ssvae(with_stats()), diffusers.DDIMScheduler()
    return diffusers.TextToVideoSDPipeline(vae=vae, text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler)


@pytest.mark.slow
@pytest.mark.parametrize("build", [wan_pipeline, cogvideox_pipeline, modelscope_pipeline])
def test_a_pipeline_generates_through_ssvae(build):
    """From the same noise, the pipeline's video is what SSVAE decodes from the pipeline's latents."""
    pipeline = build()
    pipeline.set_progress_bar_config(disable=True)
    arguments = {
        "prompt_embeds": torch.randn(1, 8, 32),
        "negative_prompt_embeds": torch.zeros(1, 8, 32),
        "height": 16,
        "width": 16,
        "num_frames": 5,
        "num_inference_steps": 2,
    }

    def generate(output):
        generator = torch.Generator().manual_seed(0)
        return pipeline(**arguments, generator=generator, output_type=output).frames

    latents, video = generate("latent"), torch.as_tensor(generate("pt"))
    if build is modelscope_pipeline:  # its frames are images: nothing is compressed in time
        assert latents.shape == (1, 4, 5, 4, 4)
        frames = [pipeline.vae.decode(z).sample for z in latents.unbind(2)]
        expected = torch.stack(frames, 1)
    else:
        if build is cogvideox_pipeline:
            latents = latents.permute(0, 2, 1, 3, 4)
        assert latents.shape == (1, 4, 3, 4, 4)
        expected = pipeline.vae.decode(latents).sample.movedim(2, 1)
    assert video.shape == (1, 5, 3, 16, 16)
    torch.testing.assert_close(video, (expected.detach() + 1) / 2, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@torch.no_grad()
def test_a_pipeline_is_saved_and_opened_with_its_ssvae(tmp_path):
    pipeline = cogvideox_pipeline()
    pipeline.save_pretrained(tmp_path)
    again = diffusers.CogVideoXPipeline.from_pretrained(
        tmp_path, tokenizer=None, text_encoder=None, low_cpu_mem_usage=False
    )
    assert type(again.vae) is AutoencoderSSVAE
    video = random_video(5)
    torch.testing.assert_close(again.vae(video).sample, pipeline.vae(video).sample)
