"""SSVAE in real pipelines of diffusers: from the same noise, a video is what SSVAE decodes from the latents."""

import diffusers
import numpy as np
import pytest
import torch
import transformers
from diffusers.guiders import ClassifierFreeGuidance

from sat_ssvae.diffusers import AutoencoderSSVAE

from .small_models import measured_vae, random_video


def pipeline_of(pipeline, transformer, scheduler, **more):
    vae = AutoencoderSSVAE.from_ssvae(measured_vae())
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


def skyreels_v2_image_to_video():
    sizes = {"in_channels": 2 * 4 + 2, "image_dim": 16, "added_kv_proj_dim": 24}  # latents, condition, mask
    transformer = diffusers.SkyReelsV2Transformer3DModel(**{**WAN, **sizes})
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPVisionConfig(image_size=16, patch_size=8, **vision)
    encoder = transformers.CLIPVisionModelWithProjection(config).eval()
    processor = transformers.CLIPImageProcessor(size=16, crop_size=16)
    others = {"image_encoder": encoder, "image_processor": processor}
    pipeline = pipeline_of(diffusers.SkyReelsV2ImageToVideoPipeline, transformer, unipc(), **others)
    text = {name: value.repeat(1, 64, 1) for name, value in EMBEDDINGS.items()}  # its attention counts on 512 tokens
    return pipeline, {"image": diffusers.utils.numpy_to_pil(frames(1)[0])[0], "num_frames": 5, **text}


def hunyuan_transformer(**changes):
    settings = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "text_embed_dim": 32,
        "pooled_projection_dim": 16,
        "rope_axes_dim": (2, 2, 4),
    }
    return diffusers.HunyuanVideoTransformer3DModel(**(settings | changes))


HUNYUAN_EMBEDDINGS = {
    "prompt_embeds": torch.ones(1, 8, 32),
    "pooled_prompt_embeds": torch.ones(1, 16),
    "prompt_attention_mask": torch.ones(1, 8, dtype=torch.long),
}


def hunyuan_video():
    others = {"text_encoder_2": None, "tokenizer_2": None}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    pipeline = pipeline_of(diffusers.HunyuanVideoPipeline, hunyuan_transformer(), scheduler, **others)
    return pipeline, {"num_frames": 5, **HUNYUAN_EMBEDDINGS}


def hunyuan_image_to_video(**transformer):
    """Its first frame is the image's latent; the older kind, which drops four frames, has a test of its own."""
    sizes = {"image_condition_type": "token_replace", **transformer}
    others = {"text_encoder_2": None, "tokenizer_2": None, "image_processor": None}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    pipeline = pipeline_of(
        diffusers.HunyuanVideoImageToVideoPipeline, hunyuan_transformer(**sizes), scheduler, **others
    )
    image = diffusers.utils.numpy_to_pil(frames(1)[0])[0]
    return pipeline, {"image": image, "num_frames": 5, **HUNYUAN_EMBEDDINGS}


def hunyuan_skyreels():
    others = {"text_encoder_2": None, "tokenizer_2": None}
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0)
    transformer = hunyuan_transformer(in_channels=2 * 4)
    pipeline = pipeline_of(diffusers.HunyuanSkyreelsImageToVideoPipeline, transformer, scheduler, **others)
    image = diffusers.utils.numpy_to_pil(frames(1)[0])[0]
    negative = {f"negative_{name}": torch.zeros_like(value) for name, value in HUNYUAN_EMBEDDINGS.items()}
    negative["negative_prompt_attention_mask"] += 1
    return pipeline, {"image": image, "num_frames": 5, **HUNYUAN_EMBEDDINGS, **negative}


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


def cogvideox_video_to_video():
    transformer = cogvideox_pipeline().transformer
    pipeline = pipeline_of(diffusers.CogVideoXVideoToVideoPipeline, transformer, diffusers.CogVideoXDDIMScheduler())
    video = [diffusers.utils.numpy_to_pil(frame)[0] for frame in frames()]
    return pipeline, {"video": video, "strength": 0.8, **EMBEDDINGS}


def ltx_condition():
    """Reads the statistics as tensors, and gives the decoder a time step."""
    sizes = {"in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8}
    text = {"cross_attention_dim": 16, "caption_channels": 32}
    transformer = diffusers.LTXVideoTransformer3DModel(num_layers=1, **sizes, **text)
    pipeline = pipeline_of(diffusers.LTXConditionPipeline, transformer, diffusers.FlowMatchEulerDiscreteScheduler())
    masks = {f"{kind}prompt_attention_mask": torch.ones(1, 8) for kind in ("", "negative_")}
    image = diffusers.utils.numpy_to_pil(frames(1)[0])[0]
    return pipeline, {"image": image, "num_frames": 5, "height": 32, "width": 32, **EMBEDDINGS, **masks}


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")  # of LTX's time steps
@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        cogvideox_video_to_video,
        ltx_condition,
        wan_video_to_video,
        wan_image_to_video,
        wan_vace,
        skyreels_v2,
        anyflow,
        skyreels_v2_image_to_video,
        cogvideox_image_to_video,
        hunyuan_video,
        hunyuan_image_to_video,
        hunyuan_skyreels,
        hunyuan_video15,
    ],
)
def test_further_pipelines_run_to_a_video(build):
    torch.manual_seed(0)
    pipeline, arguments = build()
    pipeline.set_progress_bar_config(disable=True)

    def generate(output):
        generator = torch.Generator().manual_seed(0)
        settings = {**SIZE, **arguments}
        return torch.as_tensor(pipeline(**settings, generator=generator, output_type=output).frames).detach()

    latents, video = generate("latent"), generate("pt")
    if isinstance(pipeline, (diffusers.CogVideoXImageToVideoPipeline, diffusers.CogVideoXVideoToVideoPipeline)):
        latents = latents.permute(0, 2, 1, 3, 4)
    side = arguments.get("height", 16)
    assert latents.shape == (1, 4, 3, side // 4, side // 4) and video.shape == (1, 5, 3, side, side)
    with torch.no_grad():
        expected = pipeline.vae.decode(latents).sample.movedim(2, 1)
    torch.testing.assert_close(video, (expected + 1) / 2, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_the_older_image_to_video_of_hunyuan_drops_the_frames_of_its_image():
    """It concatenates the image's latent and drops four frames, those of one latent frame of SSVAE's real sizes."""
    torch.manual_seed(0)
    pipeline, arguments = hunyuan_image_to_video(in_channels=2 * 4 + 1, image_condition_type="latent_concat")
    pipeline.set_progress_bar_config(disable=True)
    arguments["num_frames"] = 9
    video = torch.as_tensor(pipeline(**SIZE, **arguments, output_type="pt").frames)
    assert video.shape == (1, 5, 3, 16, 16) and video.isfinite().all()


def wan_pipeline():
    torch.manual_seed(0)
    transformer = diffusers.WanTransformer3DModel(**{**WAN, "freq_dim": 256})
    return pipeline_of(diffusers.WanPipeline, transformer, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))


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
    return pipeline_of(diffusers.CogVideoXPipeline, transformer, diffusers.DDIMScheduler())


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
    vae, scheduler = AutoencoderSSVAE.from_ssvae(measured_vae()), diffusers.DDIMScheduler()
    return diffusers.TextToVideoSDPipeline(vae=vae, text_encoder=None, tokenizer=None, unet=unet, scheduler=scheduler)


@pytest.mark.slow
@pytest.mark.parametrize("build", [wan_pipeline, cogvideox_pipeline, modelscope_pipeline])
def test_a_pipeline_generates_through_ssvae(build):
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
