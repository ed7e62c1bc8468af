"""The training objective: what each setting does, and gradients against plain autograd."""

import subprocess
import sys
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sat_ssvae import SSVAE, SSVAEConfig
from sat_ssvae.config import parse_config
from sat_ssvae.errors import UserError
from sat_ssvae.spectral.correlation import correlation_loss, local_correlation
from sat_ssvae.spectral.masking import apply_mask, draw_mask, draw_ratios
from sat_ssvae.spectral.rescaling import draw_factor, shrink
from sat_ssvae.training import losses as losses_module
from sat_ssvae.training.discriminator import AdversarialConfig, Discriminator, generator_loss
from sat_ssvae.training.gradients import send_back
from sat_ssvae.training.losses import Objective
from sat_ssvae.training.objective_config import (
    LCRConfig,
    LMRConfig,
    ObjectiveConfig,
    ReconstructionConfig,
    ScaleConfig,
)
from sat_ssvae.vae.posterior import Posterior

from .processes import unmeasured

SIZES = SSVAEConfig(
    latent_channels=6,
    base_channels=4,
    channel_multipliers=(1, 2, 2),
    temporal_downsample=(False, True),
    num_res_blocks=1,
    num_mid_blocks=1,
)
PLAIN = ReconstructionConfig(perceptual_weight=0, learned_variance=False)


def objective(**settings):
    torch.manual_seed(0)
    defaults = {"reconstruction": PLAIN, "lcr_weight": 0.0, "lmr_mask_ratio": 0.0}
    return Objective(SSVAE(SIZES), ObjectiveConfig(**(defaults | settings)))


def video():
    return torch.rand(2, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def run(module, seed=0):
    losses = module(video(), torch.Generator().manual_seed(seed))
    module.zero_grad()
    losses.total.backward()
    return losses, {name: p.grad.clone() for name, p in module.vae.named_parameters() if p.grad is not None}


def test_gradient_balance_equals_two_separate_backward_passes():
    """The weight and every gradient, against the definition computed with torch.autograd.grad."""
    balanced = objective(lcr_weight=0.3, lcr=LCRConfig(threshold=1.0, weighting="gradient"))
    _, gradients = run(balanced)

    reference = objective(lcr_weight=0.0)
    vae, generator = reference.vae, torch.Generator().manual_seed(0)
    posterior = Posterior.from_moments(vae.encoder(video()))
    eps = torch.randn(posterior.mean.shape, generator=generator)
    reconstruction = vae.decode(posterior.mean + posterior.std * eps)
    nll = (reconstruction - video()).abs().sum() / 2
    kl = posterior.kl().mean()
    lcr = correlation_loss(local_correlation(posterior.mean), 1.0)
    weight = vae.encoder.moments.conv.weight
    (from_nll,) = torch.autograd.grad(nll, weight, retain_graph=True)
    (from_lcr,) = torch.autograd.grad(lcr, weight, retain_graph=True)
    applied = 0.3 * (from_nll.norm() / (from_lcr.norm() + 1e-4)).detach()
    (nll + 5e-4 * kl + applied * lcr).backward()

    assert balanced.applied_lcr_weight.item() == pytest.approx(applied.item(), rel=1e-4)
    for name, parameter in vae.named_parameters():
        if parameter.grad is not None:
            expected = parameter.grad
            assert (gradients[name] - expected).norm() <= 1e-4 * expected.norm() + 1e-7, name


def compared(module, rebuilt, video):
    """How far a reconstruction is from the video, by the module's error and perceptual distance."""
    own = module.config.reconstruction
    error = (rebuilt - video).abs() if own.error == "l1" else (rebuilt - video).square()
    if module.perceptual is None:
        return error.mean()
    pairs = zip(pieces(module, rebuilt), pieces(module, video), strict=True)
    frames = [[x.transpose(1, 2).flatten(0, 1).split(4) for x in pair] for pair in pairs]
    distances = [module.perceptual(*some) for pair in frames for some in zip(*pair, strict=True)]
    return error.mean() + own.perceptual_weight * torch.cat(distances).mean()


def pieces(module, batch):
    """The batch as the module takes it: a convolution of one clip may round otherwise than that of several, and from
    the signs of an L1 error or a rectifier that makes a difference of 0.1 %."""
    return batch.split(1 if module.sample_by_sample else len(batch))


def balanced(main, term, at, limit):
    """`term` with a gradient at `at` as large as that of `main`, its weight at most `limit`."""
    norms = [torch.autograd.grad(x, at, retain_graph=True)[0].norm() for x in (main, term)]
    return (norms[0] / (norms[1] + 1e-4)).clamp_max(limit).detach() * term


def plain_gradients(module, video, seed, critic=None, weight=0.0, scale=1.0):
    """The gradients of `scale` times the total by one graph, the balance by its definition."""
    vae, config, generator = module.vae, module.config, torch.Generator().manual_seed(seed)
    posterior = Posterior.from_moments(torch.cat([vae.encoder(part) for part in pieces(module, video)]))
    eps = torch.randn(posterior.mean.shape, generator=generator)
    sample = latents = posterior.mean + posterior.std * eps
    if config.lmr_mask_ratio:
        ratios = draw_ratios(config.lmr_mask_ratio, len(video), generator)
        mask = draw_mask(config.lmr.kind, latents.shape, ratios, config.lmr.block, generator=generator)
        latents = apply_mask(latents, mask, vae.mask_token)
    rebuilt = torch.cat([vae.decode(part) for part in pieces(module, latents)])
    own = config.reconstruction
    distance = compared(module, rebuilt, video)
    elements = video[0].numel()
    reduced = elements if own.reduction == "sum" else 1
    nll = scale * reduced * (distance / module.logvar.squeeze().exp() + module.logvar.squeeze())
    kl = scale * reduced / elements * own.kl_weight * posterior.kl().mean()
    main = nll
    if critic is not None:
        adversarial = scale * generator_loss(critic(rebuilt))
        main = main + weight * balanced(nll, adversarial, vae.decoder.last_layer, 1e4)
    if config.scale_weight:
        small, target = shrink(sample, video, draw_factor(config.scale.factors, generator))
        rescaled = reduced * compared(module, vae.decode(small), target) / module.logvar.detach().exp().squeeze()
        main = main + scale * config.scale_weight * rescaled
    total = main + kl
    correlation = local_correlation(posterior.mean, config.lcr.window, config.lcr.tiling)
    lcr = correlation_loss(correlation, config.lcr.threshold)
    if config.lcr_weight and lcr is not None:
        lcr, last = scale * lcr, vae.encoder.moments.conv.weight
        balance = config.lcr.weighting == "gradient"
        total = total + config.lcr_weight * (balanced(main, lcr, last, 1e8) if balance else lcr)
    module.zero_grad()
    total.backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@st.composite
def steps(draw):
    """An objective, a batch for it, and how its step is taken."""
    ratio = draw(st.sampled_from([0.0, 0.25, {0.0: 0.5, 0.5: 0.5}]))
    reconstruction = ReconstructionConfig(
        error=draw(st.sampled_from(["l1", "mse"])),
        perceptual="st-lpips-alex",
        perceptual_weight=draw(st.sampled_from([0.0, 0.5])),
        learned_variance=draw(st.booleans()),
        reduction=draw(st.sampled_from(["sum", "mean"])),
    )
    frozen = draw(st.booleans())
    module = objective(
        reconstruction=reconstruction,
        lcr_weight=0.0 if frozen else draw(st.sampled_from([0.0, 0.1])),
        lcr=LCRConfig(threshold=1.0, weighting=draw(st.sampled_from(["fixed", "gradient"]))),
        lmr_mask_ratio=ratio,
        lmr=LMRConfig(kind=draw(st.sampled_from(["channel", "block", "future"])), block=(2, 2, 2)),
        # A perceptual distance of shrunk frames would need larger ones.
        scale_weight=0.0 if frozen or reconstruction.perceptual_weight else draw(st.sampled_from([0.0, 0.25])),
        scale=ScaleConfig(factors=draw(st.sampled_from([(2,), (2, 4)]))),
    )
    module.vae.encoder.requires_grad_(not frozen)
    frames = draw(st.sampled_from([1, 5]))
    batch = torch.rand(draw(st.integers(1, 3)), 3, frames, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    critic = Discriminator(AdversarialConfig(weight=0.5, base_channels=8, num_layers=2), "float32").requires_grad_(
        False
    )
    return module, batch, draw(st.sampled_from([None, critic])), draw(st.sampled_from([1.0, 2.0**10]))


@given(step=steps(), sample_by_sample=st.booleans(), checkpointed=st.booleans(), seed=st.integers(0, 9))
@settings(max_examples=40)
@pytest.mark.slow
def test_a_step_in_pieces_has_the_gradients_of_one_graph(step, sample_by_sample, checkpointed, seed):
    module, batch, critic, scale = step
    module.sample_by_sample = sample_by_sample
    expected = plain_gradients(module, batch, seed, critic, 0.5, scale)
    expected = {name: gradient.clone() for name, gradient in expected.items()}
    module.zero_grad()
    judged = () if critic is None else (critic.requires_grad_(True), 0.5)
    module.vae.checkpoint_activations(checkpointed)
    with patch("sat_ssvae.metrics.perceptual.PIXELS_AT_ONCE", 4 * 32 * 32):  # four frames at a time
        losses = module(batch, torch.Generator().manual_seed(seed), *judged, scale=scale)
    (losses.total * scale).backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        # Sums over all positions, which cancel: one graph differs from itself by as much from one thread to two.
        cancels = gradient.ndim == 1 or "gamma" in name or "mask_token" in name
        tolerance = 5e-5 if cancels else 1e-5
        assert (gradient - expected[name]).norm() <= tolerance * expected[name].norm(), name
    if critic is not None:
        assert all(parameter.grad is None for parameter in critic.parameters())


@pytest.mark.parametrize("again", [False, True])
def test_sent_gradients_are_those_of_backward(again):
    """Also twice through one graph, which has to be asked for."""
    values = [torch.linspace(-1, 1, 6).reshape(2, 3).requires_grad_() for _ in range(2)]
    outputs = [value.sin() * value for value in values]
    gradient = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    for _ in range(1 + again):
        outputs[0].backward(gradient, retain_graph=again)
        send_back(outputs[1], gradient, retain_graph=again)
    assert torch.equal(values[0].grad, values[1].grad)
    if not again:
        with pytest.raises(RuntimeError, match="second time"):
            send_back(outputs[1], gradient)


def test_a_step_does_not_import_sympy():
    """It takes a sixth of what all of a training's imports take."""
    step = f"""
import sys
import torch
from sat_ssvae import SSVAE, SSVAEConfig
from sat_ssvae.training.losses import Objective
from sat_ssvae.training.objective_config import ObjectiveConfig, ReconstructionConfig
module = Objective(SSVAE({SIZES!r}), ObjectiveConfig(reconstruction=ReconstructionConfig(perceptual_weight=0)))
module(torch.zeros(1, 3, 5, 16, 16), torch.Generator()).total.backward()
print("sympy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", step], capture_output=True, text=True, check=True, env=unmeasured())
    assert done.stdout.splitlines()[-1] == "False"


def test_fixed_weight_adds_the_weighted_loss():
    without, _ = run(objective())
    module = objective(lcr_weight=0.5, lcr=LCRConfig(threshold=1.0, weighting="fixed"))
    losses, _ = run(module)
    assert losses.total.item() == pytest.approx(without.total.item() + 0.5 * losses.lcr.item(), rel=1e-6)
    assert losses.lcr.item() == pytest.approx(1 - losses.correlation.item(), rel=1e-6)


def test_reductions_differ_by_the_number_of_elements_only():
    summed, _ = run(objective())
    meant, _ = run(objective(reconstruction=PLAIN.model_copy(update={"reduction": "mean"})))
    assert summed.total.item() == pytest.approx(meant.total.item() * video()[0].numel(), rel=1e-5)


def test_squared_error():
    losses, _ = run(objective(reconstruction=PLAIN.model_copy(update={"error": "mse"})))
    absolute, _ = run(objective())
    assert losses.error < absolute.error**2 * 4 and losses.error > absolute.error**2


def test_learned_variance_starts_neutral_and_has_a_gradient():
    learned = objective(reconstruction=PLAIN.model_copy(update={"learned_variance": True}))
    losses, _ = run(learned)
    plain, _ = run(objective())
    assert losses.total.item() == pytest.approx(plain.total.item(), rel=1e-6)
    # d/dl of error * exp(-l) + l at l = 0
    expected = (1 - losses.error.item()) * video()[0].numel()
    assert learned.logvar.grad.item() == pytest.approx(expected, rel=1e-4)


class HalfDifference(nn.Module):
    """A distance simple enough to predict."""

    def forward(self, x, y):
        return (x - y).abs().flatten(1).mean(1) / 2


def test_perceptual_distance_of_a_frame_counts_for_each_of_its_elements():
    module = objective(reconstruction=PLAIN)
    plain, _ = run(module)
    module.perceptual = HalfDifference()
    module.config = module.config.model_copy(
        update={"reconstruction": PLAIN.model_copy(update={"perceptual_weight": 2.0})}
    )
    losses, _ = run(module)
    assert losses.perceptual.item() == pytest.approx(plain.error.item() / 2, rel=1e-5)
    assert losses.nll.item() == pytest.approx(2 * plain.nll.item(), rel=1e-5)


def test_scale_equivariance_is_the_error_of_shrunk_latents_against_the_shrunk_video():
    plain, _ = run(objective())
    weighted, gradients = run(objective(scale_weight=0.5))
    module = objective()
    sample = Posterior.from_moments(module.vae.encoder(video()))
    latents = sample.mean + sample.std * torch.randn(sample.mean.shape, generator=torch.Generator().manual_seed(0))
    halved = torch.nn.functional.avg_pool3d(latents, (1, 2, 2)), torch.nn.functional.avg_pool3d(video(), (1, 2, 2))
    error = (module.vae.decode(halved[0]) - halved[1]).abs().mean() * video()[0].numel()
    assert weighted.rescaled.item() == pytest.approx(error.item(), rel=1e-4)
    assert weighted.total.item() == pytest.approx(plain.total.item() + 0.5 * error.item(), rel=1e-5)
    assert weighted.nll.item() == plain.nll.item()
    assert plain.rescaled.item() == 0
    assert gradients["encoder.conv_in.conv.weight"].abs().sum() > 0


def test_masks_change_the_reconstruction_and_reach_the_token():
    masked = objective(lmr_mask_ratio=0.5, lmr=LMRConfig(kind="channel"))
    losses, gradients = run(masked)
    plain, without = run(objective())
    assert losses.nll.item() != plain.nll.item()
    assert gradients["mask_token"].abs().sum() > 0
    assert "mask_token" not in without
    assert losses.kl.item() == pytest.approx(plain.kl.item())  # KL and LCR look at the whole posterior


def test_equal_generators_give_equal_losses_and_leave_the_global_generator_alone():
    module = objective(lmr_mask_ratio=0.5)
    state = torch.get_rng_state()
    first = module(video(), torch.Generator().manual_seed(7)).total
    assert torch.equal(first, module(video(), torch.Generator().manual_seed(7)).total)
    assert not torch.equal(first, module(video(), torch.Generator().manual_seed(8)).total)
    assert torch.equal(state, torch.get_rng_state())


class Types(TorchDispatchMode):
    """Notes the types that convolutions (forward and backward) and absolute differences really get."""

    def __init__(self):
        super().__init__()
        self.convolutions, self.differences = set(), set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for name, seen in (("convolution", self.convolutions), ("abs", self.differences)):
            if name in function.__name__:
                seen |= {value.dtype for value in args if isinstance(value, torch.Tensor)}
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_in_the_convolutions_and_float32_in_the_losses(monkeypatch, precision):
    regularised = []
    correlation, kl = losses_module.local_correlation, Posterior.kl
    monkeypatch.setattr(
        losses_module, "local_correlation", lambda x, *a: regularised.append(x.dtype) or correlation(x, *a)
    )
    monkeypatch.setattr(Posterior, "kl", lambda self: regularised.append(self.mean.dtype) or kl(self))
    scale = 2.0**-10 if precision == "float16" else 1.0
    # Not gradient-balanced: the balance takes float16's gradient norms in float32, a sum that float16 does not hold.
    lcr = LCRConfig(weighting="fixed")
    module = objective(precision=precision, lcr_weight=0.1, lcr=lcr)
    with Types() as types:
        losses = module(video(), torch.Generator().manual_seed(0), scale=scale)
        (losses.total * scale).backward()
    assert types.convolutions == {getattr(torch, precision)} and types.differences == {torch.float32}
    assert regularised == [torch.float32] * 2
    assert {value.dtype for value in losses} == {torch.float32}
    assert {parameter.grad.dtype for parameter in module.parameters() if parameter.grad is not None} == {torch.float32}
    full, _ = run(objective(lcr_weight=0.1, lcr=lcr))
    assert losses.total.item() == pytest.approx(full.total.item(), rel=0.02)


def test_images_train():
    module = objective(lcr_weight=0.1, lmr_mask_ratio=0.5, lmr=LMRConfig(kind="block", block=(2, 2, 2)))
    losses = module(video()[:, :, :1], torch.Generator().manual_seed(0))
    losses.total.backward()
    assert losses.total.isfinite()


def test_the_articles_names_and_a_ratio_table_are_read():
    config = parse_config(ObjectiveConfig, {"lcr_weight": 0.1, "lmr_mask_ratio": {0: 0.7, 0.5: 0.3}})
    assert config.lmr_mask_ratio == {0.0: 0.7, 0.5: 0.3}
    with pytest.raises(UserError, match="must sum to 1"):
        parse_config(ObjectiveConfig, {"lmr_mask_ratio": {0: 0.7, 0.5: 0.2}})
    with pytest.raises(UserError, match="lmr_mask_ratio"):
        parse_config(ObjectiveConfig, {"lmr_mask_ratio": 1.5})
    with pytest.raises(UserError, match=r"unknown key `lcr.windw`, did you mean `lcr.window`"):
        parse_config(ObjectiveConfig, {"lcr": {"windw": [2, 2, 2]}})
