"""The training objective: what each setting does, and gradients against plain autograd."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sat_ssvae import SSVAE, SSVAEConfig
from sat_ssvae.config import parse_config
from sat_ssvae.errors import UserError
from sat_ssvae.spectral.correlation import correlation_loss, local_correlation
from sat_ssvae.training import losses as losses_module
from sat_ssvae.training.losses import (
    LCRConfig,
    LMRConfig,
    Objective,
    ObjectiveConfig,
    ReconstructionConfig,
)
from sat_ssvae.vae.posterior import Posterior

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


class ConvolutionTypes(TorchDispatchMode):
    """Notes the types that convolutions really get, forward and backward."""

    def __init__(self):
        super().__init__()
        self.seen = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "convolution" in function.__name__:
            self.seen |= {value.dtype for value in args if isinstance(value, torch.Tensor)}
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_in_the_convolutions_and_float32_in_the_losses(monkeypatch, precision):
    regularised, compared = [], []
    correlation, kl = losses_module.local_correlation, Posterior.kl
    terms = Objective._reconstruction_terms
    monkeypatch.setattr(
        losses_module, "local_correlation", lambda x, *a: regularised.append(x.dtype) or correlation(x, *a)
    )
    monkeypatch.setattr(Posterior, "kl", lambda self: regularised.append(self.mean.dtype) or kl(self))
    monkeypatch.setattr(Objective, "_reconstruction_terms", lambda self, *a: compared.extend(a) or terms(self, *a))
    scale = 2.0**-10 if precision == "float16" else 1.0
    # Not gradient-balanced: the balance takes float16's gradient norms in float32, a sum that float16 does not hold.
    lcr = LCRConfig(weighting="fixed")
    module = objective(precision=precision, lcr_weight=0.1, lcr=lcr)
    with ConvolutionTypes() as convolutions:
        losses = module(video(), torch.Generator().manual_seed(0))
        (losses.total * scale).backward()
    assert convolutions.seen == {getattr(torch, precision)}
    assert regularised == [torch.float32] * 2 and {x.dtype for x in compared} == {torch.float32}
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
