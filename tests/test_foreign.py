"""Every autoencoder class of diffusers through one interface, against what the class itself does."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sat_ssvae.autoencoders.classes import REFUSED, as_autoencoder
from sat_ssvae.errors import UserError

from . import foreign_models
from .small_models import random_video

WORKING = {
    # frames and pixels per latent position, frame step, smallest size
    foreign_models.cogvideox: (4, 8, 8, 8),
    foreign_models.wan21: (4, 8, 4, 8),
    foreign_models.wan22: (4, 16, 4, 16),
    foreign_models.wan_half_time: (2, 8, 4, 8),
    foreign_models.wan_whole_time: (1, 8, 4, 8),
    foreign_models.hunyuan: (4, 8, 4, 8),
    foreign_models.hunyuan15: (4, 16, 4, 16),
    foreign_models.ltx: (8, 8, 8, 8),
    foreign_models.ltx091: (8, 8, 8, 8),
    foreign_models.ltx095: (8, 32, 8, 32),
    foreign_models.ltx2: (8, 32, 8, 64),
    foreign_models.cosmos: (8, 8, 8, 8),
    foreign_models.mochi: (6, 8, 6, 8),
    foreign_models.qwenimage: (4, 8, 4, 8),
    foreign_models.magvit: (4, 8, 4, 8),
    foreign_models.kvae_video: (4, 8, 4, 8),
    foreign_models.kandinsky6: (4, 16, 4, 16),
    foreign_models.vidtok: (4, 8, 4, 8),
    foreign_models.vidtok_fsq: (4, 8, 4, 8),
    foreign_models.svd: (1, 8, 1, 8),
    foreign_models.modelscope: (1, 8, 1, 8),
    foreign_models.dc: (1, 8, 1, 8),
    foreign_models.taesd: (1, 8, 1, 8),
    foreign_models.taesd64: (1, 64, 1, 64),
    foreign_models.flux2: (1, 16, 1, 16),
    foreign_models.hunyuan_image: (1, 8, 1, 8),
    foreign_models.kvae: (1, 8, 1, 8),
    foreign_models.asymmetric: (1, 8, 1, 8),
    foreign_models.vq: (1, 8, 1, 8),
    foreign_models.vq_wide: (1, 8, 1, 8),
    foreign_models.qwenimage21: (1, 16, 1, 16),
    foreign_models.hunyuan_refiner: (1, 16, 1, 16),
}


def by_name(build):
    return build.__name__


def sized_video(vae, clips=1, frames=2):
    """Random clips of `frames` steps after the first frame, wider than high."""
    clip = random_video(frames * vae.frame_step + 1, vae.min_size, vae.min_size + vae.spatial_factor, seed=clips)
    return torch.cat([clip.roll(index, dims=2) for index in range(clips)])


@pytest.mark.parametrize("build", WORKING, ids=by_name)
@torch.no_grad()
def test_sizes_and_shapes(build):
    vae = as_autoencoder(build())
    time, space, step, smallest = WORKING[build]
    assert (vae.temporal_factor, vae.spatial_factor, vae.frame_step, vae.min_size) == (time, space, step, smallest)
    video = sized_video(vae, clips=2)
    posterior = vae.encode(video)
    t, h, w = vae.latent_size(*video.shape[2:])
    assert (t, h, w) == ((video.shape[2] - 1) // time + 1, video.shape[3] // space, video.shape[4] // space)
    assert posterior.mean.shape == posterior.logvar.shape == (2, vae.latent_channels, t, h, w)
    decoded = vae.decode(posterior.mode())
    assert decoded.shape == video.shape
    for index, clip in enumerate(video.split(1)):  # a batch is its clips
        alone = vae.encode(clip)
        torch.testing.assert_close(posterior.mean[index : index + 1], alone.mean, atol=5e-3, rtol=1e-2)
        torch.testing.assert_close(decoded[index : index + 1], vae.decode(alone.mode()), atol=5e-3, rtol=1e-2)


def plain(model, video):
    """What most classes do: the mean of the distribution, and its reconstruction."""
    z = model.encode(video).latent_dist.mode()
    return z, model.decode(z).sample


def frame_by_frame(model, video):
    pairs = [plain(model, frame) for frame in video.unbind(2)]
    return tuple(torch.stack(frames, 2) for frames in zip(*pairs, strict=True))


def latents_by_frame(model, video):
    """Of classes without a distribution."""
    latents = [model.encode(frame)[0] for frame in video.unbind(2)]
    return torch.stack(latents, 2), torch.stack([model.decode(z).sample for z in latents], 2)


def ltx_at_step_0(model, video):
    z = model.encode(video).latent_dist.mode()
    torch.manual_seed(0)
    return z, model.decode(z, torch.zeros(1)).sample


def padded_in_front(model, video):
    frames = torch.cat([video[:, :, :1]] * 3 + [video], 2)
    z = model.encode(frames)
    z = z[0] if isinstance(z, tuple) else z.latent_dist.mode()
    sample = model(video, sample_posterior=False).sample
    torch.testing.assert_close(model.decode(z), sample)
    return z, sample


def all_frames_decoded_together(model, video):
    z = model.encode(video[0].movedim(1, 0)).latent_dist.mode()
    return z.movedim(0, 1)[None], model.decode(z, num_frames=len(z)).sample.movedim(0, 1)[None]


def patched(model, video):
    """As Flux2Pipeline packs latents: the four positions of a patch become channels."""
    packed, pictures = [], []
    for frame in video.unbind(2):
        z = model.encode(frame).latent_dist.mode()
        b, c, h, w = z.shape
        packed.append(z.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, 4 * c, h // 2, w // 2))
        pictures.append(model.decode(z).sample)
    return torch.stack(packed, 2), torch.stack(pictures, 2)


def one_frame_videos_with_alpha(model, video):
    opaque = torch.cat([video, torch.ones_like(video[:, :1])], 1)
    pairs = [plain(model, frame[:, :, None]) for frame in opaque.unbind(2)]
    z, pictures = (torch.cat(frames, 2) for frames in zip(*pairs, strict=True))
    return z, pictures[:, :3]


BY_CLASS = {
    foreign_models.modelscope: frame_by_frame,
    foreign_models.hunyuan_image: frame_by_frame,
    foreign_models.kvae: frame_by_frame,
    foreign_models.asymmetric: frame_by_frame,
    foreign_models.dc: latents_by_frame,
    foreign_models.taesd: latents_by_frame,
    foreign_models.taesd64: latents_by_frame,
    foreign_models.vq: latents_by_frame,
    foreign_models.vq_wide: latents_by_frame,
    foreign_models.ltx091: ltx_at_step_0,
    foreign_models.ltx095: ltx_at_step_0,
    foreign_models.vidtok: padded_in_front,
    foreign_models.vidtok_fsq: padded_in_front,
    foreign_models.svd: all_frames_decoded_together,
    foreign_models.flux2: patched,
    foreign_models.qwenimage21: one_frame_videos_with_alpha,
}


@pytest.mark.parametrize("build", WORKING, ids=by_name)
@torch.no_grad()
def test_latents_and_pictures_are_those_of_the_class(build):
    vae, model = as_autoencoder(build()), build()
    video = sized_video(vae, frames=1)
    latents, pictures = BY_CLASS.get(build, plain)(model, video)
    torch.testing.assert_close(vae.encode(video).mode(), latents, atol=5e-5, rtol=1e-4)  # float32 in two orders
    torch.testing.assert_close(vae.decode(latents), pictures, atol=1e-4, rtol=1e-3)


@torch.no_grad()
def test_clips_of_hunyuan_are_one_pass_whatever_their_length():
    model = foreign_models.hunyuan()
    video = random_video(33, 16, 16)
    tiled = model.encode(video).latent_dist.mode()
    whole = model.quant_conv(model.encoder(video)).chunk(2, 1)[0]
    assert not torch.allclose(tiled, whole, atol=1e-4)
    vae = as_autoencoder(model)
    torch.testing.assert_close(vae.encode(video).mode(), whole)
    torch.testing.assert_close(vae.decode(whole), model.decoder(model.post_quant_conv(whole)))
    assert vae.describe()["used"] == ["whole passes, by default the class tiles time"]


@torch.no_grad()
def test_noise_of_a_decoder_is_fixed_and_leaves_the_generator_alone():
    vae = as_autoencoder(foreign_models.ltx091())
    z = vae.encode(sized_video(vae)).mode()
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first = vae.decode(z)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(vae.decode(z), first)
    assert vae.describe()["used"] == ["decodes at time step 0", "injects noise of seed 0"]


@torch.no_grad()
def test_classes_that_take_one_clip_at_a_time():
    model = foreign_models.hunyuan15()
    with pytest.raises(RuntimeError):
        model.encode(random_video(5, 32, 32).expand(2, -1, -1, -1, -1))
    assert as_autoencoder(model).describe()["used"] == ["takes one clip at a time"]


@torch.no_grad()
def test_pictures_of_four_channels_get_an_opaque_one():
    model = foreign_models.qwenimage(input_channels=4)
    vae, video = as_autoencoder(model), random_video(5, 16, 24)
    expected = model.encode(torch.cat([video, torch.ones(1, 1, 5, 16, 24)], 1)).latent_dist.mode()
    torch.testing.assert_close(vae.encode(video).mode(), expected)
    assert vae.decode(expected).shape == video.shape


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (foreign_models.allegro, "wrong for smaller clips"),
        (foreign_models.minimax, r"takes 17k \+ 5 frames"),
        (foreign_models.consistency, "decodes with a diffusion model"),
        (lambda: foreign_models.vidtok(is_causal=False), "is_causal is false"),
        (lambda: foreign_models.flux2(patch_size=(1, 2)), "statistics of 8 channels for latents of 4"),
        (lambda: foreign_models.wan21(temperal_downsample=[True] * 3), r"cannot encode a video .*RuntimeError"),
        (foreign_models.unet, r"cannot encode a video \(1, 3, 2, 64, 128\) \(AttributeError: "),
        (lambda: foreign_models.qwenimage(input_channels=5), r"cannot encode a video .*RuntimeError"),
    ],
)
def test_classes_that_cannot_be_used(build, message):
    model = build()
    with pytest.raises(UserError, match=message) as caught:
        as_autoencoder(model)
    assert str(caught.value).startswith(type(model).__name__) and "\n" not in str(caught.value)


def test_what_a_class_tells_wrongly_is_measured_or_refused():
    wrong = foreign_models.wan21()
    wrong.spatial_compression_ratio = 16
    assert as_autoencoder(wrong).spatial_factor == 8
    wrong.decoder.forward = lambda x, *_, **__: x
    with pytest.raises(UserError, match="does not fit the interface of causal video autoencoders"):
        as_autoencoder(wrong)
    broken = foreign_models.modelscope()
    torch.nn.init.constant_(broken.decoder.conv_out.weight, math.nan)
    with pytest.raises(UserError, match="decodes to values that are not finite"):
        as_autoencoder(broken)


@pytest.mark.parametrize(("space", "time"), [(-8, -1), (4096, 512), (0, 0), (None, None)])
def test_a_compression_that_cannot_be_is_not_believed(space, time):
    """A video to try 4096 pixels per position on would take gigabytes."""
    model = foreign_models.modelscope()
    model.spatial_compression_ratio, model.temporal_compression_ratio = space, time
    vae = as_autoencoder(model)
    assert (vae.temporal_factor, vae.spatial_factor) == (1, 8)
    video = foreign_models.wan21()
    video.register_to_config(scale_factor_spatial=space, scale_factor_temporal=time)
    vae = as_autoencoder(video)
    assert (vae.temporal_factor, vae.spatial_factor) == (4, 8)


@pytest.mark.parametrize(
    ("build", "size", "message"),
    [
        (foreign_models.cogvideox, (5, 32, 32), r"5 frames: AutoencoderKLCogVideoX takes 8k \+ 1; the nearest are 1 "),
        (foreign_models.cogvideox, (9, 36, 32), "height 36: AutoencoderKLCogVideoX takes multiples of 8; the nearest"),
        (foreign_models.ltx2, (9, 32, 64), "32x64: AutoencoderKLLTX2Video takes 64 pixels a side or more"),
        (foreign_models.ltx2, (9, 48, 64), "48x64: AutoencoderKLLTX2Video takes 64 pixels a side or more"),  # not 32
    ],
)
def test_sizes_that_do_not_fit(build, size, message):
    with pytest.raises(UserError, match=message):
        as_autoencoder(build()).encode(random_video(*size))


@pytest.mark.parametrize("build", WORKING, ids=by_name)
@torch.no_grad()
def test_clips_of_other_lengths_come_back_or_are_refused(build):
    vae = as_autoencoder(build())
    for steps in (0, 3, 5):
        video = sized_video(vae, frames=steps)
        if build is foreign_models.kvae_video and steps == 5:
            with pytest.raises(
                UserError, match=r"21 frames: AutoencoderKLKVAEVideo does not decode that many; .* is 25"
            ):
                vae.encode(video)
            assert vae.encode_stream()(video).mode().shape[2] == 7
        else:
            assert vae.decode(vae.encode(video).mode()).shape == video.shape


@torch.no_grad()
def test_large_frames_in_tiles():
    vae, video = as_autoencoder(foreign_models.wan21()), random_video(5, 64, 64)
    z = vae.encode(video, tile_size=32).mode()
    assert z.shape == (1, 4, 2, 8, 8)
    torch.testing.assert_close(z[..., :1, :1], vae.encode(video[..., :32, :32]).mode()[..., :1, :1])
    assert vae.decode(z, tile_size=32).shape == video.shape
    torch.testing.assert_close(vae.encode(video, tile_size=64).mode(), vae.encode(video).mode())
    with pytest.raises(UserError, match="tile_size 12: AutoencoderKLWan takes multiples of 8, 8 at least"):
        vae.encode(video, tile_size=12)
    with pytest.raises(UserError, match="chunk_frames=4: for SSVAE alone, AutoencoderKLWan takes a clip as a whole"):
        vae.decode(z, chunk_frames=4)


@settings(max_examples=10)
@given(frames=st.integers(1, 9), height=st.integers(1, 20), width=st.integers(8, 20))
@torch.no_grad()
def test_streams_take_chunks_of_any_length(frames, height, width):
    vae = as_autoencoder(foreign_models.wan21())
    z = vae.encode_stream()(random_video(frames, height, width)).mode()
    assert z.shape[2:] == (-(-(frames - 1) // 4) + 1, -(-height // 8), -(-width // 8))
    assert vae.decode_stream()(z).shape[2] == -(-(frames - 1) // 4) * 4 + 1


def test_classes_that_are_refused_exist():
    import diffusers

    assert all(hasattr(diffusers, name) for name in REFUSED)
