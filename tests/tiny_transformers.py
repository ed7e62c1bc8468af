"""CogVideoX's transformers at tiny sizes, with weights that follow from their names.

    python cogvideo_on_cpu.py tiny_transformers.py OUTPUT.safetensors FILES        # in CogVideo/sat

writes what the real SAT code computes: the output, the noise schedule, and the tensors' names and shapes. Such files
are tests/data/reference/sat_*; test_cogvideo.py compares them with the real code, test_export.py with an export.
"""

import json
import sys
import zlib

import torch

POSITIONS = "dit_video_concat.{}3DPositionEmbeddingMixin"
TEXT, HEAD, GRID, FRAMES = 3, 16, (4, 6), 5
OVERLAYS = {
    "cogvideox_2b": ["cogvideox_2b_5b"],
    "cogvideox_2b_lora": ["cogvideox_2b_5b", "cogvideox_lora"],
    "cogvideox_5b": ["cogvideox_2b_5b"],
    "cogvideox_5b_i2v": ["cogvideox_5b_i2v"],
    "cogvideox1.5_5b": ["cogvideox1.5_5b"],
    "cogvideox1.5_5b_i2v": ["cogvideox1.5_5b_i2v"],
}
"""Stock configurations, with ours for them."""


def drawn(name, shape):
    """A tensor that depends on its name alone, for weights about the size of trained ones."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    values = 0.2 * torch.randn(shape, generator=generator)
    return 1 + values if name.endswith("norm.weight") or ("_layernorm_list" in name and "weight" in name) else values


def inputs(channels):
    """Noisy latents b t c h w, steps, and states of the text."""
    x = 5 * drawn("x", (2, (FRAMES - 1) // 4 + 1, channels, *GRID))
    return x, torch.tensor([17, 801]), 5 * drawn("text", (2, TEXT, 8))


def layer(stock):
    """Tiny sizes, to be merged over a stock configuration and its overlay."""
    positions = {"text_length": TEXT}
    if "2b" in stock:
        positions |= {"height_interpolation": 0.25, "width_interpolation": 0.25}
    else:
        positions["hidden_size_head"] = HEAD
    modules = {"pos_embed_config": {"params": positions}, "patch_embed_config": {"params": {"text_hidden_size": 8}}}
    if "lora" in stock:
        modules["lora_config"] = {"params": {"r": 4}}
    sizes = {"num_layers": 2, "hidden_size": 2 * HEAD, "num_attention_heads": 2, "time_embed_dim": 16}
    grid = dict(zip(("latent_height", "latent_width"), (8, 8) if "1.5" in stock else GRID, strict=True))
    network = {**sizes, **grid, "num_frames": FRAMES, "modules": modules}
    data = {"params": {"video_size": [16 * size for size in GRID], "max_num_frames": FRAMES}}
    return {"data": data, "model": {"network_config": {"params": network}}}


def stock_layer(stock):
    """The settings of a stock configuration that an export reads, where there is no checkout of CogVideoX."""
    positions = {"target": POSITIONS.format("Basic" if "2b" in stock else "Rotary"), "params": {}}
    if stock == "cogvideox_5b_i2v":
        positions["params"] = {"learnable_pos_embed": True}
    network = {"elementwise_affine": True, "time_compressed_rate": 4, "modules": {"pos_embed_config": positions}}
    schedule = {} if "1.5" in stock else {"params": {"shift_scale": 3.0 if "2b" in stock else 1.0}}
    return {
        "model": {
            "network_config": {"params": network},
            "denoiser_config": {"params": {"discretization_config": schedule}},
            "noised_image_input": "i2v" in stock,
        }
    }


@torch.no_grad()
def record(output, files):
    """Build CogVideoX's engine of these files, give its transformer drawn weights, and write what it computes."""
    from safetensors.torch import save_file

    from sat_ssvae.cogvideo.worker import build_diffusion_engine

    engine, _ = build_diffusion_engine(files)
    for name, value in engine.model.named_parameters(prefix="model"):
        if value.requires_grad:  # 2B's table of positions is computed, and stays so
            value.copy_(drawn(name, value.shape))
    names = {name: list(value.shape) for name, value in engine.model.state_dict(prefix="model.").items()}
    network = engine.model.diffusion_model
    x, steps, text = inputs(network.in_channels)
    computed = {"output": network(x, timesteps=steps, context=text), "signal": engine.denoiser.sigmas.float()}
    save_file({name: value.contiguous() for name, value in computed.items()}, output, {"names": json.dumps(names)})


if __name__ == "__main__":
    record(sys.argv[1], sys.argv[2:])
