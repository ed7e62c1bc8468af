"""The discriminators: shapes, precision, hinge losses, and the adaptive weight against plain autograd."""

import pytest
import torch
from torch import nn

from sat_ssvae.config import parse_config
from sat_ssvae.errors import UserError
from sat_ssvae.training.discriminator import AdversarialConfig, Discriminator, critic_loss, generator_loss
from sat_ssvae.training.settings import TrainConfig

from .test_losses import objective, video

SMALL = AdversarialConfig(weight=0.5, base_channels=8, num_layers=2)


def test_patches_of_frames_and_of_video():
    critic = Discriminator(SMALL, "float32")
    frames, clips = critic(video())
    assert frames.shape == (2 * 5, 1, 6, 6) and clips.shape == (2, 1, 2, 6, 6)
    (frames,) = critic(video()[:, :, :1])
    assert frames.shape == (2, 1, 6, 6)


def test_frames_are_judged_alone_and_the_video_as_a_whole():
    critic = Discriminator(SMALL, "float32")
    shuffled = video()[:, :, [3, 1, 0, 4, 2]]
    (frames, clips), (other_frames, other_clips) = critic(video()), critic(shuffled)
    torch.testing.assert_close(
        other_frames.unflatten(0, (2, 5)), frames.unflatten(0, (2, 5))[:, [3, 1, 0, 4, 2]], rtol=1e-4, atol=1e-5
    )
    assert not torch.allclose(clips, other_clips, atol=1e-3)


def test_hinge():
    real, fake = [torch.tensor([2.0, 0.5])], [torch.tensor([-3.0, 0.0])]
    assert critic_loss(real, fake).item() == pytest.approx((0.25 + 0.5) / 2)
    assert critic_loss(real * 2, fake * 2).item() == pytest.approx(0.375)
    assert generator_loss(fake).item() == 1.5


@pytest.mark.parametrize("frames", [1, 5])
def test_bfloat16_is_in_the_convolutions_and_float32_in_the_loss(frames):
    """Gradients, too: they agree with float32 ones as far as bf16 goes, and are the same each time."""
    clip = video()[:, :, :frames]
    seen, gradients = set(), []
    for precision in ("float32", "bfloat16", "bfloat16"):
        torch.manual_seed(0)
        critic = Discriminator(SMALL, precision)
        for part in critic.modules():
            if isinstance(part, nn.Conv2d | nn.Conv3d) and precision == "bfloat16":
                part.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
        loss = critic_loss(critic(clip), critic(-clip))
        loss.backward()
        assert loss.dtype == torch.float32
        gradients.append([p.grad for p in critic.parameters() if p.grad is not None])
    assert seen == {torch.bfloat16}
    for full, half, again in zip(*gradients, strict=True):
        assert torch.equal(half, again) and (half - full).norm() <= 0.3 * full.norm()


def test_the_adaptive_weight_equals_two_separate_backward_passes():
    critic = Discriminator(SMALL, "float32").requires_grad_(False)
    module = objective()
    losses = module(video(), torch.Generator().manual_seed(0), critic, 0.5)
    losses.total.backward()
    actual = {name: p.grad.clone() for name, p in module.vae.named_parameters() if p.grad is not None}

    reference = objective()
    plain = reference(video(), torch.Generator().manual_seed(0), critic, 0.0)
    vae, last = reference.vae, reference.vae.decoder.last_layer
    # The same pass, its two parts apart
    posterior = vae.encode(video())
    eps = torch.randn(posterior.mean.shape, generator=torch.Generator().manual_seed(0))
    reconstruction = vae.decode(posterior.mean + posterior.std * eps)
    torch.testing.assert_close(reconstruction, module.reconstruction)
    nll = (reconstruction - video()).abs().sum() / 2
    adversarial = generator_loss(critic(reconstruction))
    assert adversarial.item() == pytest.approx(losses.adversarial.item(), rel=1e-5)
    (from_nll,) = torch.autograd.grad(nll, last, retain_graph=True)
    (from_critic,) = torch.autograd.grad(adversarial, last, retain_graph=True)
    applied = (0.5 * from_nll.norm() / (from_critic.norm() + 1e-4)).clamp_max(0.5e4)
    (nll + 5e-4 * posterior.kl().mean() + applied * adversarial).backward()
    assert module.applied_adversarial_weight.item() == pytest.approx(applied.item(), rel=1e-3)
    for name, gradient in actual.items():
        expected = dict(vae.named_parameters())[name].grad
        assert (gradient - expected).norm() <= 1e-3 * expected.norm() + 1e-6, name
    assert losses.total.item() == pytest.approx(plain.total.item(), rel=1e-6)
    assert all(p.grad is None for p in critic.parameters())


def test_settings():
    assert not AdversarialConfig().active_at(10**9)
    config = AdversarialConfig(weight=1.0)
    assert not config.active_at(24_999) and config.active_at(25_000)  # the 25,001st step is number 25,000 from 0
    with pytest.raises(UserError, match="needs a resolution of at least 24, found 16"):
        parse_config(TrainConfig, {"data": {"path": "x"}, "resolution": 16, "adversarial": {"weight": 1.0}})
