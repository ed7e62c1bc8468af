"""Latents on disk: what a real autoencoder gives, resuming, damage, standardisation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sat_ssvae import SSVAE, SSVAEConfig
from sat_ssvae.data.shards import Clip
from sat_ssvae.errors import UserError
from sat_ssvae.latents.encoding import EncoderSettings
from sat_ssvae.latents.latent_set import LatentSet, LatentStats, encode_latents
from sat_ssvae.vae.checkpoint import weights_digest

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vae():
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return SSVAE(
            SSVAEConfig(
                latent_channels=3,
                base_channels=4,
                channel_multipliers=(1, 2, 2),
                num_res_blocks=1,
                num_mid_blocks=1,
                temporal_downsample=(False, True),
            )
        )


class Clips:
    """Random clips that count how often they were asked for, and can break off."""

    def __init__(self, count, size=(3, 5, 8, 12), stop=None):
        generator = torch.Generator().manual_seed(7)
        self.clips = [
            Clip(torch.rand(size, generator=generator) * 2 - 1, f"film-{i // 3}", f"caption {i}", i * 0.5)
            for i in range(count)
        ]
        self.stop = stop

    def __iter__(self):
        for index, clip in enumerate(self.clips):
            if index == self.stop:
                raise KeyboardInterrupt
            yield clip


class CountingVAE(SSVAE):
    """Counts the clips that it encodes."""

    encoded = 0

    def encode(self, x, *how):
        self.encoded += len(x)
        return super().encode(x, *how)


def counting(vae):
    other = CountingVAE(vae.config)
    other.load_state_dict(vae.state_dict())
    return other


def test_latents_are_the_posterior_means_in_order(vae, tmp_path):
    clips = Clips(70)
    path = tmp_path / "deep" / "latents.safetensors"
    vae.train()
    returned = encode_latents(vae, clips, path, EncoderSettings(batch_size=32), CPU)
    assert vae.training
    loaded = LatentSet.load(path)
    with torch.no_grad():
        expected = torch.cat([vae.encode(clip.video[None]).mode() for clip in clips])
    torch.testing.assert_close(loaded.latents, expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(loaded.latents, returned.latents)
    assert len(loaded) == 70 and loaded.shape == (3, 3, 2, 3)
    assert loaded.keys[:4] == ("film-0@0", "film-0@0.5", "film-0@1", "film-1@1.5")
    assert loaded.captions[69] == "caption 69"
    assert [p.name for p in path.parent.iterdir()] == ["latents.safetensors"]


def test_an_interrupted_encoding_continues(vae, tmp_path):
    path = tmp_path / "latents.safetensors"
    reference = encode_latents(vae, Clips(150), tmp_path / "reference.safetensors", EncoderSettings(batch_size=16), CPU)
    with pytest.raises(KeyboardInterrupt):
        encode_latents(counting(vae), Clips(150, stop=140), path, EncoderSettings(batch_size=16), CPU)
    assert not path.exists()
    second = counting(vae)
    resumed = encode_latents(second, Clips(150), path, EncoderSettings(batch_size=16), CPU)
    assert second.encoded == 150 - 128
    assert torch.equal(resumed.latents, reference.latents)
    assert resumed.keys == reference.keys


@pytest.mark.parametrize("change", ["weights", "clips", "damage"])
def test_parts_that_do_not_fit_are_made_again(vae, tmp_path, change):
    path = tmp_path / "latents.safetensors"
    with pytest.raises(KeyboardInterrupt):
        encode_latents(vae, Clips(100, stop=90), path, EncoderSettings(batch_size=16), CPU)
    second, clips = counting(vae), Clips(100)
    if change == "weights":
        with torch.no_grad():
            second.encoder.conv_in.conv.bias += 1e-3
    elif change == "clips":
        first = clips.clips[0]
        clips.clips[0] = Clip(first.video * 0.5, "another", first.caption, first.start)
    else:
        part = tmp_path / "latents.safetensors.parts" / "000000.safetensors"
        part.write_bytes(part.read_bytes()[:100])
    resumed = encode_latents(second, clips, path, EncoderSettings(batch_size=16), CPU)
    assert second.encoded == 100
    with torch.no_grad():
        torch.testing.assert_close(
            resumed.latents[:1], second.encode(clips.clips[0].video[None]).mode(), atol=1e-5, rtol=1e-4
        )


def test_no_clips_and_mixed_sizes_are_errors(vae, tmp_path):
    with pytest.raises(UserError, match="no clips"):
        encode_latents(vae, [], tmp_path / "a", EncoderSettings(batch_size=4), CPU)
    mixed = [*Clips(2), *Clips(2, size=(3, 5, 8, 8))]
    with pytest.raises(UserError, match="several sizes"):
        encode_latents(vae, mixed, tmp_path / "b", EncoderSettings(batch_size=4), CPU)
    apart = [*Clips(64), *Clips(2, size=(3, 5, 8, 8))]
    with pytest.raises(UserError, match="several sizes"):
        encode_latents(vae, apart, tmp_path / "c", EncoderSettings(batch_size=64), CPU)
    with pytest.raises(UserError, match="multiples of 4"):
        encode_latents(vae, Clips(2, size=(3, 5, 6, 8)), tmp_path / "d", EncoderSettings(batch_size=4), CPU)


def test_missing_damaged_and_infinite_files_are_named(vae, tmp_path):
    path = tmp_path / "latents.safetensors"
    with pytest.raises(UserError, match="encode the latents first"):
        LatentSet.load(path)
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(UserError, match="not a readable latent file"):
        LatentSet.load(path)
    broken = counting(vae)
    with torch.no_grad():
        broken.encoder.conv_in.conv.bias += float("nan")
    with pytest.raises(UserError, match="not finite"):
        encode_latents(broken, Clips(2), path, EncoderSettings(batch_size=2), CPU)


def test_heldout_latents_use_the_training_statistics(vae, tmp_path):
    train = encode_latents(vae, Clips(10), tmp_path / "train", EncoderSettings(batch_size=8), CPU)
    encode_latents(vae, Clips(3), tmp_path / "heldout", EncoderSettings(batch_size=8), CPU)
    heldout = LatentSet.load(tmp_path / "heldout", statistics=train.statistics)
    assert heldout.statistics is train.statistics
    assert not torch.equal(LatentSet.load(tmp_path / "heldout").statistics.std, train.statistics.std)


@given(
    channels=st.integers(1, 5),
    scale=st.floats(1e-3, 1e3),
    offset=st.floats(-10, 10),
    seed=st.integers(0, 100),
)
@settings(max_examples=30, deadline=None)
def test_standardisation_and_its_inverse(channels, scale, offset, seed):
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(20, channels, 2, 3, 3, generator=generator) * scale + offset
    statistics = LatentStats.measure(latents)
    standard = statistics.standardize(latents)
    per_channel = standard.transpose(0, 1).flatten(1).double()
    assert per_channel.mean(dim=1).abs().max() < 1e-2 * max(1.0, abs(offset) / scale * 1e-2)
    torch.testing.assert_close(per_channel.std(dim=1, correction=0), torch.ones(channels).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(
        statistics.unstandardize(standard), latents, atol=1e-5 * (scale + abs(offset)), rtol=1e-5
    )


def test_a_constant_channel_becomes_zero_and_comes_back():
    latents = torch.randn(4, 2, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    latents[:, 1] = 0.25
    statistics = LatentStats.measure(latents)
    standard = statistics.standardize(latents)
    assert not standard[:, 1].any()
    torch.testing.assert_close(statistics.unstandardize(standard), latents)


def test_digest_sees_values_and_names(vae):
    digest = weights_digest(vae.state_dict())
    other = counting(vae)
    assert weights_digest(other.state_dict()) == digest
    with torch.no_grad():
        other.mask_token[0, 0] += 1e-6
    assert weights_digest(other.state_dict()) != digest
