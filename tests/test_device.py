"""Everything that takes a device from the caller works on one that is not the CPU, and gives the CPU's results."""

import json

import pytest
import torch
from torch import nn

from sat_ssvae.cogvideo.first_stage import SSVAEFirstStage
from sat_ssvae.comparison.reference import measure_arm
from sat_ssvae.comparison.run_index import TrainedTransformer
from sat_ssvae.comparison.scoring import DiTGenerator, ScoringConfig, score_generator
from sat_ssvae.comparison.settings import ClipsConfig
from sat_ssvae.data.shards import DataConfig, fixed_clips
from sat_ssvae.diffusion.process import FlowMatching, VPrediction
from sat_ssvae.diffusion.text import CaptionStates
from sat_ssvae.diffusion.transformer import DiTConfig, build_dit
from sat_ssvae.evaluation.reconstruct import ReconstructConfig, reconstruct
from sat_ssvae.evaluation.restore import RestoreConfig, Restorer
from sat_ssvae.evaluation.spectra import SpectraConfig, measure_latents
from sat_ssvae.latents.encoding import EncoderSettings
from sat_ssvae.latents.latent_set import LatentSet, encode_latents
from sat_ssvae.metrics.features import ClipFeatures, FrameFeatures
from sat_ssvae.metrics.fidelity import reconstruction_scores
from sat_ssvae.metrics.perceptual import Perceptual, build_perceptual
from sat_ssvae.spectral.correlation import local_correlation
from sat_ssvae.spectral.spectrum import (
    channel_eigenvalues,
    cumulative_explained_variance,
    dct_amplitude,
    latent_eigenvalues,
    low_frequency_share,
)
from sat_ssvae.training.discriminator import AdversarialConfig, Discriminator, critic_loss
from sat_ssvae.training.losses import Objective
from sat_ssvae.training.monitor import Monitor, MonitorConfig
from sat_ssvae.training.objective_config import LCRConfig, LMRConfig, ObjectiveConfig
from sat_ssvae.vae.statistics import LatentStats

from .elsewhere import REAL, elsewhere
from .small_models import random_video, tiny_vae

CPU = torch.device("cpu")
SCORING = ScoringConfig(samples=4, sampler_steps=2, denoising_clips=3, loss_levels=2, batch_size=3, noise_levels=(0.5,))
DIT = {"latent_channels": 4, "patch_size": (1, 2, 2), "width": 48, "depth": 1}


def on_both(compute):
    """What a function of the device returns, on the CPU and elsewhere."""
    here = compute(CPU)
    with elsewhere() as device:
        there = compute(device)
    return here, there


@pytest.mark.skipif(REAL is not None, reason="about the device that tests/elsewhere.py makes up")
def test_the_device_is_another_one():
    with elsewhere() as device, pytest.raises(RuntimeError, match="two devices"):
        torch.ones(2, device=device) + torch.ones(2)
    with elsewhere() as device, pytest.raises(RuntimeError, match="generator of the CPU"):
        torch.randn(2, device=device, generator=torch.Generator())
    with elsewhere() as device:
        assert (torch.ones(2).to(device) + 1).device == device and (torch.ones(2, device=device) + 1).sum().item() == 4


@pytest.mark.parametrize("how", ["plain", "for inference", "in chunks", "in tiles"])
@torch.no_grad()
def test_the_autoencoder(how):
    options = {"chunk_frames": 4} if how == "in chunks" else {"tile_size": 16} if how == "in tiles" else {}
    latent_options = {"chunk_frames": 1} if how == "in chunks" else options

    def compute(device):
        vae = tiny_vae().to(device)
        vae = vae.for_inference() if how == "for inference" else vae
        latents = vae.encode(random_video(5, 32, 32).to(device), **options).mode()
        return latents.cpu(), vae.decode(latents, **latent_options).cpu()

    for here, there in zip(*on_both(compute), strict=True):
        torch.testing.assert_close(there, here, atol=1e-4, rtol=1e-4)


def test_spectra_and_correlation():
    latents = torch.randn(6, 8, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    def compute(device):
        z = latents.to(device)
        return [
            local_correlation(z).mean.cpu(),
            dct_amplitude(z).cpu(),
            cumulative_explained_variance(channel_eigenvalues(z)).cpu(),
            latent_eigenvalues(z).cpu(),
            torch.tensor(low_frequency_share(z)),
            LatentStats.measure(z).standardize(z).cpu(),
        ]

    for here, there in zip(*on_both(compute), strict=True):
        torch.testing.assert_close(there, here)


@pytest.mark.parametrize("mask", ["channel", "block", "future"])
@pytest.mark.parametrize("weighting", ["fixed", "gradient"])
def test_the_objective_and_its_gradients(mask, weighting):
    config = ObjectiveConfig(
        lcr=LCRConfig(weighting=weighting, threshold=1.0), lmr=LMRConfig(kind=mask), lmr_mask_ratio={0.2: 0.5, 0.5: 0.5}
    )

    def compute(device):
        torch.manual_seed(0)
        module = Objective(tiny_vae().train(), config).to(device)
        critic = Discriminator(AdversarialConfig(weight=0.5, base_channels=16, num_layers=2), "float32").to(device)
        video = random_video(5, 32, 32).repeat(2, 1, 1, 1, 1).clamp(-1, 1).to(device)
        losses = module(video, torch.Generator().manual_seed(1), critic, 0.5)
        losses.total.backward()
        critic_loss(critic(video), critic(module.reconstruction)).backward()
        gradients = [p.grad.cpu() for p in (*module.parameters(), *critic.parameters()) if p.grad is not None]
        return [*(loss.detach().cpu() for loss in losses), *gradients]

    for here, there in zip(*on_both(compute), strict=True):
        torch.testing.assert_close(there, here, atol=1e-4 * max(1.0, here.abs().max().item()), rtol=1e-3)


@pytest.mark.parametrize("build", [FrameFeatures, ClipFeatures, lambda: build_perceptual("st-lpips-alex")])
@torch.no_grad()
def test_networks_that_score_take_clips_from_the_cpu(build):
    clips, others = (random_video(3, 32, 32, seed=seed).clamp(-1, 1) for seed in (0, 1))

    def compute(device):
        network = build().to(device)
        if isinstance(network, Perceptual):
            return reconstruction_scores(clips, others, network)[network.metric]
        return network(clips)

    here, there = on_both(compute)
    torch.testing.assert_close(there, here, atol=1e-4, rtol=1e-3)


class MeanColour(nn.Module):
    """Features that cost nothing."""

    def forward(self, video):
        return video.flatten(2).mean(2)


@pytest.mark.parametrize("process", [FlowMatching(), VPrediction()], ids=lambda process: process.kind)
@pytest.mark.parametrize("with_text", [False, True])
@torch.no_grad()
def test_scores_of_a_comparison(process, with_text):
    clips = torch.rand(8, 3, 5, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = tiny_vae().encode(clips).mode()
    heldout = LatentSet(latents, ("k",) * 8, ("a caption",) * 8, LatentStats.measure(latents))
    states = torch.randn(1, 5, 12, generator=torch.Generator().manual_seed(2))
    text = CaptionStates(states, torch.zeros(8, dtype=torch.long), states[0] * 0) if with_text else None
    sizes = {"text_dim": 12, "text_length": 5} if with_text else {}
    config = DIT | sizes | {"latent_size": latents.shape[2:]}
    scoring = SCORING.model_copy(update={"guidance": 2.0})

    def compute(device):
        vae = tiny_vae().to(device)
        arm = measure_arm(vae.decode, torch.device(device), heldout, clips, {"colour": MeanColour()}, scoring, text)
        generator = DiTGenerator(build_dit(DiTConfig(**config), seed=0).to(device), process, scoring)
        scores, shown = score_generator(generator, arm, scoring, loss_floor=0.0)
        return {metric: estimate.value for metric, estimate in scores.items()}, shown

    (here, shown), (there, shown_there) = on_both(compute)
    assert there == pytest.approx(here, rel=1e-3, abs=1e-4)
    torch.testing.assert_close(shown_there, shown, atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_restoration():
    latents = tiny_vae().encode(random_video(5)).mode()
    config = DIT | {"latent_size": latents.shape[2:]}
    identity = {"arm": "ssvae", "seed": 0, "folder": ".", "autoencoder": ".", "weights": ""}
    trained = TrainedTransformer(**identity, diffusion=FlowMatching(), latent_mean=(0.0,), latent_std=(1.0,))
    clips = ClipsConfig(num_frames=5, resolution=16)

    def compute(device):
        vae, model = tiny_vae().to(device), build_dit(DiTConfig(**config), seed=0).to(device)
        stats = LatentStats.measure(latents)
        restorer = Restorer(trained, clips, vae, stats, model, None, 0, device)
        settings = RestoreConfig(strengths=(0.3, 0.6), steps=2)
        return restorer.views(random_video(5)[0], settings, None, torch.Generator().manual_seed(0))

    here, there = on_both(compute)
    torch.testing.assert_close(there, here, atol=1e-4, rtol=1e-4)


def test_reconstruction_of_a_video(tiny_videos, tmp_path):
    config = ReconstructConfig(perceptual="none", chunk_frames=7)

    def compute(device):
        source = tiny_videos / "bars0.mp4"
        return reconstruct(tiny_vae(), source, tmp_path / device.type, config, device).totals()

    here, there = on_both(compute)
    assert there == pytest.approx(here, rel=1e-4)


def test_latents_and_their_spectra(tiny_shards, tmp_path):
    data = DataConfig(path=str(tiny_shards), num_frames=5, resolution=16, num_workers=0)

    def compute(device):
        clips = fixed_clips(data, stride=1)
        path = tmp_path / f"{device.type}.safetensors"
        encoded = encode_latents(tiny_vae(), clips, path, EncoderSettings(batch_size=3), device)
        videos = torch.stack([clip.video for clip in clips])
        settings = SpectraConfig(data=data, noise_levels=(0.5,), dropped_shares=(0.5,), disturbed_clips=2)
        return encoded.latents, measure_latents("vae", tiny_vae(), videos, settings, device)

    (latents, spectra), (latents_there, spectra_there) = on_both(compute)
    torch.testing.assert_close(latents_there, latents, atol=1e-5, rtol=1e-4)
    assert spectra_there.psnr_by_noise == pytest.approx(spectra.psnr_by_noise, rel=1e-4)
    assert spectra_there.psnr_by_dropped == pytest.approx(spectra.psnr_by_dropped, rel=1e-4)


def test_an_evaluation_while_training(tiny_shards, tmp_path):
    data = DataConfig(path=str(tiny_shards), num_frames=5, resolution=16, num_workers=0)

    def compute(device):
        folder = tmp_path / device.type
        folder.mkdir()
        monitor = Monitor(MonitorConfig(every=1, path=str(tiny_shards)), data, folder, "float32", device, 0)
        monitor.evaluate(1, tiny_vae().to(device))
        monitor.close()
        return json.loads((folder / "evaluations.jsonl").read_text())

    here, there = on_both(compute)
    assert there["psnr"] == pytest.approx(here["psnr"], rel=1e-4)
    assert there["dct_amplitude"] == pytest.approx(here["dct_amplitude"], rel=1e-3, abs=1e-5)


@torch.no_grad()
def test_cogvideos_first_stage(tmp_path):
    vae = tiny_vae()
    vae.latent_stats = LatentStats(torch.arange(4.0), torch.arange(1.0, 5.0))
    vae.save_pretrained(tmp_path)

    def compute(device):
        stage = SSVAEFirstStage(ckpt_path=tmp_path).to(device)
        z = stage.encode(random_video(9).to(device))
        return z.cpu(), stage.decode(z).cpu()

    for here, there in zip(*on_both(compute), strict=True):
        torch.testing.assert_close(there, here, atol=1e-4, rtol=1e-4)
