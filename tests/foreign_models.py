"""Random instances of autoencoders of the diffusers library, small enough for tests."""

import diffusers
import torch

WAN_STATS = {
    "latents_mean": [0.1, -0.2, 0.3, 0.4],
    "latents_std": [1.5, 2.0, 0.5, 3.0],
}


WIDTHS = (8, 8, 8, 8)


def _build(name, **settings):
    torch.manual_seed(0)
    return getattr(diffusers, name)(**settings).eval()


def cogvideox():
    return _build(
        "AutoencoderKLCogVideoX",
        block_out_channels=WIDTHS,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        scaling_factor=0.7,
    )


def wan21(**changes):
    settings = {"base_dim": 3, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, **WAN_STATS}
    return _build("AutoencoderKLWan", **(settings | changes))


def wan_half_time():
    """Halves time once, but encodes groups of four frames as ever, and states 4."""
    return wan21(temperal_downsample=[False, False, True])


def wan_whole_time():
    """Does not compress time."""
    return wan21(temperal_downsample=[False] * 3, scale_factor_temporal=1)


def wan22():
    return _build(
        "AutoencoderKLWan",
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=16,
        **WAN_STATS,
    )


def modelscope():
    return _build("AutoencoderKL", latent_channels=4, **_image_blocks())


def hunyuan():
    return _build(
        "AutoencoderKLHunyuanVideo",
        latent_channels=4,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        norm_num_groups=4,
    )


def hunyuan15():
    return _build("AutoencoderKLHunyuanVideo15", latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1)


def hunyuan_refiner():
    return _build(
        "AutoencoderKLHunyuanImageRefiner", latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1
    )


def ltx(**changes):
    """LTX-Video 0.9.0."""
    settings = {
        "latent_channels": 8,
        "block_out_channels": WIDTHS,
        "decoder_block_out_channels": WIDTHS,
        "layers_per_block": (1,) * 5,
        "decoder_layers_per_block": (1,) * 5,
        "patch_size": 1,
    }
    return _build("AutoencoderKLLTXVideo", **(settings | changes))


def ltx091():
    """LTX-Video 0.9.1: conditioned on a time step, with noise in the decoder that does something."""
    model = ltx(timestep_conditioning=True, decoder_inject_noise=(True, True, False, False, False))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "per_channel_scale" in name:
                parameter.fill_(0.3)
    return model


def ltx095():
    """LTX-Video 0.9.5 and later, whose configuration need not tell the compression: the class computes 64 instead."""
    return ltx(
        block_out_channels=(8,) * 5,
        down_block_types=("LTXVideo095DownBlock3D",) * 4,
        spatio_temporal_scaling=(True,) * 4,
        downsample_type=("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
        decoder_block_out_channels=(16, 32, 64),
        decoder_layers_per_block=(1,) * 4,
        decoder_spatio_temporal_scaling=(True,) * 3,
        decoder_inject_noise=(False,) * 4,
        upsample_residual=(True,) * 3,
        upsample_factor=(2,) * 3,
        timestep_conditioning=True,
        patch_size=4,
    )


def ltx2():
    """As of an old configuration, without its compression."""
    return _build(
        "AutoencoderKLLTX2Video",
        latent_channels=8,
        block_out_channels=WIDTHS,
        decoder_block_out_channels=(16, 32, 64),
        layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 4,
    )


def cosmos():
    """With the statistics of the real one: 16 channels by 16 latent frames."""
    return _build(
        "AutoencoderKLCosmos",
        encoder_block_out_channels=WIDTHS,
        decode_block_out_channels=WIDTHS,
        attention_resolutions=(8,),
        resolution=64,
        num_layers=1,
    )


def mochi():
    widths = (32,) * 4
    return _build(
        "AutoencoderKLMochi",
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        layers_per_block=(1,) * 5,
    )


def qwenimage(**changes):
    """Like Wan 2.1's, with another way of telling its compression."""
    settings = {"base_dim": 4, "z_dim": 4, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1, **WAN_STATS}
    return _build("AutoencoderKLQwenImage", **(settings | changes))


def qwenimage21():
    return _build(
        "AutoencoderKLQwenImage21",
        base_dim=4,
        decoder_base_dim=4,
        z_dim=4,
        dim_mult=[1] * 5,
        num_res_blocks=1,
        **WAN_STATS,
    )


def magvit():
    return _build(
        "AutoencoderKLMagvit", latent_channels=4, block_out_channels=WIDTHS, layers_per_block=1, norm_num_groups=4
    )


def kvae_video():
    return _build("AutoencoderKLKVAEVideo", ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1, z_channels=4)


def kandinsky6():
    widths = (16,) * 5
    return _build(
        "Kandinsky6SRVAE",
        latent_channels=8,
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        layers_per_block=1,
    )


def vidtok(**changes):
    settings = {"ch": 32, "ch_mult": [1, 1, 1, 1], "z_channels": 4, "num_res_blocks": 1}
    return _build("AutoencoderVidTok", **(settings | changes))


def vidtok_fsq():
    """Its `encode` returns a tuple of latents and indices."""
    return vidtok(regularizer="fsq", double_z=False, z_channels=6)


def allegro():
    return _build(
        "AutoencoderKLAllegro", latent_channels=4, block_out_channels=WIDTHS, layers_per_block=1, norm_num_groups=4
    )


def minimax():
    return _build(
        "AutoencoderKLMiniMaxH3",
        block_out_channels=(8,) * 6,
        layers_per_block=1,
        norm_num_groups=4,
        decoder_num_layers=1,
        decoder_num_attention_heads=2,
        decoder_attention_head_dim=32,
    )


def svd():
    return _build(
        "AutoencoderKLTemporalDecoder", block_out_channels=(32,) * 4, down_block_types=("DownEncoderBlock2D",) * 4
    )


def dc():
    return _build(
        "AutoencoderDC",
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=WIDTHS,
        decoder_block_out_channels=WIDTHS,
        encoder_layers_per_block=(1,) * 4,
        decoder_layers_per_block=(1,) * 4,
        encoder_qkv_multiscales=((),) * 4,
        decoder_qkv_multiscales=((),) * 4,
        scaling_factor=0.5,
    )


def taesd(levels=4):
    ones, widths = (1,) * levels, (8,) * levels
    return _build(
        "AutoencoderTiny",
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=ones,
        num_decoder_blocks=ones,
    )


def taesd64():
    """Of a compression that it does not state."""
    return taesd(levels=7)


def flux2(**changes):
    """With statistics in a batch normalisation of 2 x 2 patches."""
    settings = {"block_out_channels": WIDTHS, "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
    model = _build("AutoencoderKLFlux2", **(settings | changes))
    if changes:
        return model
    model.bn.running_mean.copy_(torch.linspace(-1, 1, 16))
    model.bn.running_var.copy_(torch.linspace(1, 3, 16))
    return model


def hunyuan_image():
    return _build(
        "AutoencoderKLHunyuanImage",
        in_channels=3,
        out_channels=3,
        latent_channels=8,
        block_out_channels=(32,) * 4,
        layers_per_block=1,
        spatial_compression_ratio=8,
        sample_size=64,
        scaling_factor=0.7,
    )


def kvae():
    return _build(
        "AutoencoderKLKVAE", channels=32, ch_mult=(1, 1, 1, 1), num_enc_blocks=1, num_dec_blocks=1, z_channels=4
    )


def asymmetric():
    blocks = _image_blocks(prefix=("down_", "up_"))
    return _build("AsymmetricAutoencoderKL", **blocks)


def vq(**changes):
    return _build("VQModel", latent_channels=4, **_image_blocks(), **changes)


def vq_wide():
    """Its code vectors have other channels than its encoder's output."""
    return vq(vq_embed_dim=8)


def consistency():
    widths = (32,) * 4
    return _build(
        "ConsistencyDecoderVAE",
        encoder_block_out_channels=widths,
        encoder_layers_per_block=1,
        decoder_block_out_channels=widths,
        decoder_layers_per_block=1,
    )


def unet():
    """A model of diffusers that is no autoencoder."""
    return _build(
        "UNet2DModel",
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )


def _image_blocks(prefix=None):
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "norm_num_groups": 2,
    }
    widths = {"block_out_channels": WIDTHS} if prefix is None else {f"{p}block_out_channels": WIDTHS for p in prefix}
    return blocks | widths


class SmallI3D(torch.nn.Module):
    """Called as FVD's I3D; 8 features a clip of 224x224 pixels, a map of features for larger ones, as I3D does."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Conv3d(3, 8, (2, 8, 8), stride=(2, 8, 8)), torch.nn.Tanh())

    def forward(self, x: torch.Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False):
        if rescale or resize or not return_features:
            raise RuntimeError("only used for features of clips that are scaled already")
        maps = torch.nn.functional.avg_pool3d(self.net(x), (x.shape[2] // 2, 28, 28))
        return maps.flatten(1) if x.shape[4] == 224 else maps


def small_i3d(path):
    """A TorchScript file of it."""
    torch.manual_seed(0)
    torch.jit.save(torch.jit.script(SmallI3D()), path)
    return path


KINDS = {
    "cogvideox": cogvideox,
    "wan2.1": wan21,
    "wan2.2": wan22,
    "hunyuan": hunyuan,
    "hunyuan1.5": hunyuan15,
    "ltx": ltx,
    "ltx2": ltx2,
    "cosmos": cosmos,
    "mochi": mochi,
    "qwenimage": qwenimage,
    "modelscope": modelscope,
    "diffusers": vidtok,
}
"""A model of each kind of specification."""


def save_all(home, kinds=tuple(KINDS)):
    """Models as diffusers saves them, in folders of the kinds' names; Wan 2.1's inside a pipeline's folder."""
    for kind in kinds:
        KINDS[kind]().save_pretrained(home / kind / "vae" if kind == "wan2.1" else home / kind)
    return home
