"""Other autoencoders through one interface, against the real classes of diffusers at random small size."""

import json

import diffusers
import pytest
import torch

from sat_ssvae.autoencoders.foreign import (
    DiffusersAutoencoder,
    FrameAutoencoder,
    denormalized,
    normalized,
    open_autoencoder,
)
from sat_ssvae.errors import UserError
from sat_ssvae.vae.statistics import LatentStats

from . import foreign_models
from .small_models import random_video, tiny_vae

KINDS = foreign_models.KINDS
FACTORS = {"cogvideox": (4, 8), "wan2.1": (4, 8), "wan2.2": (4, 16), "modelscope": (1, 8), "diffusers": (4, 8)}
"""In time and in space."""


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return foreign_models.save_all(tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_every_kind_opens_and_does_what_its_class_does(folders, kind):
    vae, own = open_autoencoder(f"{kind}:{folders / kind}"), KINDS[kind]().eval()
    assert (vae.temporal_factor, vae.spatial_factor) == FACTORS[kind]
    frames = {"modelscope": 3, "cogvideox": 9}.get(kind, 5)
    video = random_video(frames, 32, 48)
    posterior = vae.encode(video)
    size = vae.latent_size(frames, 32, 48)
    assert posterior.mean.shape == posterior.logvar.shape == (1, vae.latent_channels, *size)
    assert size == ((frames - 1) // FACTORS[kind][0] + 1, 32 // FACTORS[kind][1], 48 // FACTORS[kind][1])
    decoded = vae.decode(posterior.mode())
    assert decoded.shape == video.shape
    if kind == "modelscope":
        expected = torch.stack([own.encode(frame).latent_dist.mean for frame in video.unbind(2)], 2)
        pictures = torch.stack([own.decode(z).sample for z in expected.unbind(2)], 2)
    else:
        expected = own.encode(video).latent_dist.mean
        pictures = own.decode(expected).sample
    torch.testing.assert_close(posterior.mode(), expected)
    torch.testing.assert_close(decoded, pictures)


@torch.no_grad()
def test_normalisation_is_the_one_that_each_pipeline_applies():
    z = torch.randn(2, 4, 2, 3, 3)
    mean, std = (torch.tensor(values).view(1, 4, 1, 1, 1) for values in foreign_models.WAN_STATS.values())
    for build, expected in (
        (foreign_models.cogvideox, z * 0.7),
        (foreign_models.wan21, (z - mean) / std),
        (foreign_models.wan22, (z - mean) / std),
    ):
        vae = DiffusersAutoencoder(build())
        torch.testing.assert_close(normalized(vae, z), expected)
        torch.testing.assert_close(denormalized(vae, normalized(vae, z)), z)
    vae = FrameAutoencoder(foreign_models.modelscope())
    torch.testing.assert_close(normalized(vae, z), z * 0.18215)


def test_shift_and_scale_and_statistics_together():
    shifted = foreign_models.modelscope()
    shifted.register_to_config(shift_factor=0.5, scaling_factor=2.0)
    z = torch.randn(1, 4, 1, 2, 2)
    torch.testing.assert_close(normalized(FrameAutoencoder(shifted), z), (z - 0.5) * 2)
    both = foreign_models.modelscope()
    both.register_to_config(latents_mean=[1.0] * 4, latents_std=[4.0] * 4, scaling_factor=2.0)
    torch.testing.assert_close(normalized(FrameAutoencoder(both), z), (z - 1) * 2 / 4)
    both.register_to_config(latents_mean=[1.0] * 3, latents_std=[4.0] * 3)
    with pytest.raises(UserError, match="statistics of 3 channels for latents of 4"):
        FrameAutoencoder(both)


@torch.no_grad()
def test_statistics_that_are_buffers_count_too():
    model = foreign_models.ltx()
    model.latents_mean.fill_(2.0)
    model.latents_std.fill_(4.0)
    vae = DiffusersAutoencoder(model.eval())
    z = vae.encode(random_video(5, 32, 32)).mode()
    torch.testing.assert_close(normalized(vae, z), (z - 2) / 4)


@torch.no_grad()
def test_ssvae_opens_from_its_folder_and_brings_its_statistics(tmp_path):
    own = tiny_vae()
    own.latent_stats = LatentStats(torch.arange(4.0), torch.full((4,), 2.0))
    own.save_pretrained(tmp_path)
    vae = open_autoencoder(str(tmp_path))
    video = random_video(5)
    z = vae.encode(video).mode()
    torch.testing.assert_close(z, own.encode(video).mode())
    torch.testing.assert_close(normalized(vae, z), own.latent_stats.standardize(z))
    assert vae.latent_channels == 4 and not vae.training
    bare = tiny_vae()
    assert normalized(bare, z) is z and denormalized(bare, z) is z


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((5, 32, 32), r"5 frames: AutoencoderKLCogVideoX takes 8k \+ 1; the nearest are 1 and 9"),
        ((9, 36, 32), "height 36: AutoencoderKLCogVideoX takes multiples of 8; the nearest: 32 and 40"),
    ],
)
def test_sizes_that_do_not_fit(size, message):
    with pytest.raises(UserError, match=message):
        DiffusersAutoencoder(foreign_models.cogvideox()).encode(random_video(*size))


def test_a_class_that_compresses_in_another_way_is_refused():
    wrong = foreign_models.wan21()
    wrong.spatial_compression_ratio = 16
    with pytest.raises(UserError, match="does not fit the interface of causal video autoencoders"):
        DiffusersAutoencoder(wrong).encode(random_video(1, 32, 32))
    image = diffusers.AutoencoderTiny()
    with pytest.raises(UserError, match="AutoencoderTiny: its configuration has no temporal_compression_ratio"):
        DiffusersAutoencoder(image)


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ("nowhere", "nowhere: no such checkpoint"),
        ("hunyuan:somewhere", "expected the path of an SSVAE, or KIND:PATH_OR_ID with a KIND of cogvideox, wan2.1"),
        ("cogvideox:", "expected the path of an SSVAE"),
        ("cogvideox:/nowhere", "/nowhere: no autoencoder of diffusers there"),
        ("cogvideox:{folders}/wan2.2", "holds a residual AutoencoderKLWan, which is not cogvideox"),
        ("wan2.1:{folders}/wan2.2", "holds a residual AutoencoderKLWan, which is not wan2.1"),
        ("wan2.2:{folders}/wan2.1", "holds a AutoencoderKLWan, which is not wan2.2"),
    ],
)
def test_specifications_that_open_nothing(folders, specification, message):
    with pytest.raises(UserError, match=message):
        open_autoencoder(specification.format(folders=folders))


def test_damaged_models(folders, tmp_path):
    model = foreign_models.modelscope()
    model.save_pretrained(tmp_path / "damaged")
    (tmp_path / "damaged" / "diffusion_pytorch_model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="not a readable AutoencoderKL"):
        open_autoencoder(f"modelscope:{tmp_path / 'damaged'}")
    config = json.loads((tmp_path / "damaged" / "config.json").read_text())
    (tmp_path / "damaged" / "config.json").write_text(json.dumps(config | {"_class_name": "AutoencoderOfTomorrow"}))
    with pytest.raises(UserError, match=r"diffusers .* has no class AutoencoderOfTomorrow"):
        open_autoencoder(f"diffusers:{tmp_path / 'damaged'}")
    model.save_pretrained(tmp_path / "deeper")
    config["layers_per_block"] = 2
    (tmp_path / "deeper" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"tensors of AutoencoderKL are missing, the first is"):
        open_autoencoder(f"modelscope:{tmp_path / 'deeper'}")
