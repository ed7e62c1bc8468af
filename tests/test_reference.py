"""Agreement with the published implementation, from numbers recorded with it (tests/data/reference).

The tolerances are those that float32 on a CPU can be expected to meet, far below any mistake in the architecture.
`SAT_SSVAE_TEST_DEVICE=cuda` in the environment runs them there (scripts/gpu_check.sh).
"""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sat_ssvae import SSVAE, SSVAEConfig
from sat_ssvae.spectral.correlation import local_correlation
from sat_ssvae.training.losses import Losses, Objective
from sat_ssvae.training.objective_config import LCRConfig, ObjectiveConfig, ReconstructionConfig
from sat_ssvae.vae.posterior import Posterior

REFERENCE = Path(__file__).parent / "data" / "reference"
DEVICE = os.environ.get("SAT_SSVAE_TEST_DEVICE", "cpu")
CASES = ["video", "rect", "image"]


@pytest.fixture(scope="module")
def facts():
    return json.loads((REFERENCE / "case_a.json").read_text())


@pytest.fixture(scope="module")
def tensors():
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return load_file(REFERENCE / "case_a.tensors.safetensors", device=DEVICE)


@pytest.fixture
def vae(facts):
    sizes = facts["config"]
    config = SSVAEConfig(
        in_channels=sizes["in_channels"],
        latent_channels=sizes["z_channels"],
        base_channels=sizes["ch"],
        channel_multipliers=tuple(sizes["ch_mult"]),
        num_res_blocks=sizes["num_res_blocks"],
        num_mid_blocks=sizes["num_mid_blocks"],
        temporal_downsample=tuple(sizes["encoder_temporal_upsample"]),
    )
    model = SSVAE(config)
    weights = load_file(REFERENCE / "case_a.weights.safetensors")
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    return model.to(DEVICE)


def check_close(actual, expected, tolerance):
    """Largest difference, in standard deviations of what is expected."""
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.std()


def test_the_full_model_has_the_published_parameters():
    published = json.loads((REFERENCE / "ssvae_ch48_parameters.json").read_text())
    with torch.device("meta"):
        ours = SSVAE().state_dict()
    assert {name: list(value.shape) for name, value in ours.items()} == published.get("parameters", published)
    assert len(ours) == 278


@pytest.mark.parametrize("case", CASES)
def test_encoder_and_decoder(case, vae, tensors):
    with torch.no_grad():
        moments = vae.encoder(tensors[f"{case}.x"])
        latent = vae.encode(tensors[f"{case}.x"]).mode()
        check_close(moments, tensors[f"{case}.moments"], 2e-5)
        check_close(latent, tensors[f"{case}.latent"], 2e-5)
        check_close(vae.decode(tensors[f"{case}.latent"]), tensors[f"{case}.reconstruction"], 1e-4)
        check_close(vae.decode(latent), tensors[f"{case}.reconstruction"], 5e-4)


@pytest.mark.parametrize("case", CASES)
def test_kl(case, facts, tensors):
    posterior = Posterior.from_moments(tensors[f"{case}.moments"])
    expected = facts["cases"][case]
    assert posterior.kl().mean().item() == pytest.approx(expected["kl_loss"], rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_local_correlation(case, facts, tensors):
    expected = facts["cases"][case]
    correlation = local_correlation(tensors[f"{case}.latent"], tuple(facts["lcr_window"]))
    assert correlation.first.item() == pytest.approx(expected["image_localcorr"], abs=1e-6)
    assert correlation.mean.item() == pytest.approx(expected["avg_localcorr"], abs=1e-6)
    if case == "image":
        assert correlation.rest is None
    else:
        assert correlation.rest.item() == pytest.approx(expected["video_localcorr"], abs=1e-6)


def test_training_step(vae, facts, tensors, monkeypatch):
    """Every gradient of a whole step: reconstruction, KL, and LCR with its gradient-balanced weight."""
    step = facts["step"]
    config = ObjectiveConfig(
        lcr_weight=step["lcr_weight"] * step["lcr_factor"],
        lmr_mask_ratio=0.0,
        lcr=LCRConfig(threshold=step["lcr_threshold"], window=facts["lcr_window"], weighting="gradient"),
        reconstruction=ReconstructionConfig(perceptual_weight=0, kl_weight=step["kl_weight"]),
    )
    objective = Objective(vae, config)
    # The recorded step decodes the posterior mean.
    monkeypatch.setattr(torch, "randn", lambda shape, **_: torch.zeros(shape))
    losses: Losses = objective(tensors["video.x"], torch.Generator().manual_seed(0))
    losses.total.backward()

    log = step["log"]
    weighted_lcr = (objective.applied_lcr_weight * losses.lcr).item()
    assert weighted_lcr == pytest.approx(log["train/loss/lcr_loss"], rel=1e-4)
    assert losses.error.item() == pytest.approx(log["train/loss/rec"], rel=1e-5)
    assert losses.nll.item() == pytest.approx(log["train/loss/nll"], rel=1e-5)
    total = losses.nll.item() + step["kl_weight"] * losses.kl.item() + weighted_lcr
    assert total == pytest.approx(step["total"], rel=1e-5)

    parameters = dict(vae.named_parameters())
    for name, norm in step["grad_norms"].items():
        assert parameters[name].grad.norm().item() == pytest.approx(norm, rel=1e-3), name
    for key, expected in tensors.items():
        if key.startswith("step.grad."):
            check_close(parameters[key.removeprefix("step.grad.")].grad, expected, 5e-4)

    # The log-variance rows see the KL alone, whose part in the total would hide a mistake.
    rows = vae.config.latent_channels
    actual = parameters["encoder.out.2.conv.weight"].grad[rows:]
    expected = tensors["step.grad.encoder.out.2.conv.weight"][rows:]
    assert (actual - expected).norm() <= 1e-4 * expected.norm()
