#!/usr/bin/env bash
# diffusers 0.42.1: HunyuanVideoImageToVideoPipeline(num_frames=9) returns 5 frames with a transformer of the kind "latent_concat", and its latents decode to 5 others.
#
# Input: the pipeline with a random small transformer of that kind (as HunyuanVideo-I2V-33ch has it), its own autoencoder, a grey image and
# embeddings in place of the text encoders. One would expect num_frames frames, and output_type="latent" to be those frames before they are decoded.
# But after decoding, the pipeline cuts off the first four frames, and of latents the first frame. That one holds the image: in a causal autoencoder
# it is a single frame, so three frames of the video go with it; and the latents that are left begin in the middle, where the decoder takes their first
# one for a still. Asked for 17 frames, it returns 13.
#
#   kind            num_frames   frames   latent frames   decoded to   largest difference of those frames
#   token_replace   9            9        3               9            0
#   latent_concat   9            5        2               5            .70 of 1
#   latent_concat   17           13       4               13           .89 of 1
#
# Exits 1 if the behaviour has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"${PYTHON:-python3}" -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.4.6 diffusers==0.42.1 \
    transformers==5.23.0 pillow
"$work/venv/bin/python" -W ignore - <<'PYTHON'
import sys

import diffusers
import torch
from PIL import Image

diffusers.utils.logging.set_verbosity_error()
CHANNELS, SIZE = 4, 32


def built(kind):
    torch.manual_seed(0)
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=CHANNELS, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=2 * CHANNELS + 1 if kind == "latent_concat" else CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=32,
        pooled_projection_dim=16,
        rope_axes_dim=(2, 2, 4),
        image_condition_type=kind,
    )
    pipeline = diffusers.HunyuanVideoImageToVideoPipeline(
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=diffusers.FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        image_processor=None,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def lengths(kind, num_frames):
    pipeline = built(kind)

    def run(output_type):
        return pipeline(
            image=Image.new("RGB", (SIZE, SIZE), "grey"),
            prompt_embeds=torch.ones(1, 8, 32),
            pooled_prompt_embeds=torch.ones(1, 16),
            prompt_attention_mask=torch.ones(1, 8, dtype=torch.long),
            height=SIZE,
            width=SIZE,
            num_frames=num_frames,
            num_inference_steps=2,
            generator=torch.Generator().manual_seed(0),
            output_type=output_type,
        ).frames

    with torch.no_grad():
        frames, latents = torch.as_tensor(run("pt")), run("latent")
        decoded = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample.movedim(1, 2)
    decoded = (decoded / 2 + 0.5).clamp(0, 1)
    difference = (decoded - frames).abs().max().item()
    print(f"{kind:14} {num_frames:4} -> {frames.shape[1]:3} frames; {latents.shape[2]} latent frames, decoded to {decoded.shape[1]}, {difference:.4f} away")
    return frames.shape[1], latents.shape[2], decoded.shape[1], difference > 1e-3


found = [lengths("token_replace", 9), lengths("latent_concat", 9), lengths("latent_concat", 17)]
sys.exit(int(found != [(9, 3, 9, False), (5, 2, 5, True), (13, 4, 13, True)]))
PYTHON
