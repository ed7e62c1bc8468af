"""Random instances of autoencoders of the diffusers library, small enough for tests."""

import diffusers
import torch

WAN_STATS = {
    "latents_mean": [0.1, -0.2, 0.3, 0.4],
    "latents_std": [1.5, 2.0, 0.5, 3.0],
}


def cogvideox():
    torch.manual_seed(0)
    return diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2, scaling_factor=0.7
    )


def wan21():
    torch.manual_seed(0)
    return diffusers.AutoencoderKLWan(base_dim=3, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, **WAN_STATS)


def wan22():
    torch.manual_seed(0)
    return diffusers.AutoencoderKLWan(
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
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=2,
        latent_channels=4,
    )


def hunyuan():
    torch.manual_seed(0)
    return diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )


def ltx():
    torch.manual_seed(0)
    return diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False, False, False, False, False),
        upsample_residual=(False, False, False, False),
        upsample_factor=(1, 1, 1, 1),
        timestep_conditioning=False,
        patch_size=1,
        patch_size_t=1,
        encoder_causal=True,
        decoder_causal=False,
    )


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


KINDS = {"cogvideox": cogvideox, "wan2.1": wan21, "wan2.2": wan22, "modelscope": modelscope, "diffusers": hunyuan}


def save_all(home):
    """Each kind's model as diffusers saves it, in a folder of the kind's name; Wan 2.1's inside a pipeline's folder."""
    for kind, build in KINDS.items():
        build().save_pretrained(home / kind / "vae" if kind == "wan2.1" else home / kind)
    return home
