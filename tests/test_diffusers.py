"""SSVAE inside real pipelines of diffusers, everything at random small size."""

import diffusers
import pytest
import torch

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
    torch.testing.assert_close(model.decode(image).sample, decoded[:, :, 0])


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
