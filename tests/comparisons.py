"""Synthetic comparisons with a known truth, for the tests of analysis, verdict and report."""

import numpy as np
import torch

from sat_ssvae.comparison.analysis import paired_difference
from sat_ssvae.comparison.report.pictures import Pictures
from sat_ssvae.comparison.results import ArmResult, ComparisonResults, CurvePoint, Estimate
from sat_ssvae.comparison.verdict import judge

STEPS = (100, 200, 400, 600, 800, 1000, 1200, 1400, 1600)
SAMPLES = tuple(f"kernel_distance_{to}/{of}" for to in ("real", "reconstruction") for of in ("frame", "clip"))
DENOISING = tuple(f"denoising_error_{to}/{t}" for to in ("real", "reconstruction") for t in (0.3, 0.5, 0.7, 0.9))
DECODED = SAMPLES + DENOISING


def decay(step, *, speed=1.0, floor=0.0, start=4.0, power=0.7):
    """Score after `step` steps of an arm that trains `speed` times as fast as the baseline."""
    return floor + start * (1 + speed * step / 60) ** -power


def curve_points(arm, seed, metric, score, *, noise=0.0, width=0.0, steps=STEPS, rng=None):
    """Evaluations of `score(step)`. noise, width of the interval: relative (width 0: no interval)."""
    points = []
    for step in steps:
        true = score(step)
        value = true * (1 + noise * float(rng.standard_normal())) if noise else true
        ends = (value - width * true, value + width * true) if width else (None, None)
        points.append(CurvePoint(arm, seed, metric, step, value, *ends))
    return points


def arm_result(name, *, psnr=20.3, floors=None, baseline_psnr=None, rng=None):
    """An arm as a small experiment gives it; `baseline_psnr` adds the paired differences."""
    rng = rng or np.random.default_rng(0)
    difference = {}
    if baseline_psnr is not None:
        clips = baseline_psnr + rng.standard_normal(200)
        difference["psnr"] = paired_difference(
            (clips + psnr - baseline_psnr + 0.2 * rng.standard_normal(200)).tolist(), clips.tolist()
        )
    index = np.arange(64)
    steep = 1.0 if baseline_psnr is None else 1.5
    eigenvalues = np.exp(-0.25 * steep * np.arange(16))
    return ArmResult(
        name=name,
        vae={"latent_channels": 16, "base_channels": 16, "channel_multipliers": [1, 2, 4]},
        training={"lcr_weight": 0.0 if baseline_psnr is None else 0.02, "max_steps": 1000, "lr": 1e-4},
        reconstruction={
            "psnr": Estimate(psnr, psnr - 0.4, psnr + 0.4),
            "ssim": Estimate(0.031 * psnr, 0.031 * psnr - 0.01, 0.031 * psnr + 0.01),
            "stlpips": Estimate(4.0 / psnr, 4.0 / psnr - 0.01, 4.0 / psnr + 0.01),
        },
        floors=floors or {},
        dct_amplitude=tuple(float(a) for a in np.exp(-steep * np.sqrt(index)) * (1 + 0.1 * rng.random(64))),
        explained_variance=tuple(float(v) for v in np.cumsum(eigenvalues) / eigenvalues.sum()),
        reconstruction_difference=difference,
        spatial_spectrum=tuple((f, float((0.02 / f) ** steep)) for f in (0.0217824, 0.0430943, 0.0836184, 0.160244)),
    )


def comparison(
    speeds, *, seeds=(0, 1, 2), noise=0.02, width=0.03, floors=None, psnr=(20.3, 20.2), metrics=None, names=None
):
    """Arms whose true speed-ups over the baseline are `speeds`: for each a number, or a dict by metric.

    floors: by metric, as a share of the starting score of 4, the same in every arm.
    """
    floors = floors or {}
    metrics = metrics or DECODED
    names = names or ["stock", "ssvae", "lcr only", "lmr only"][: len(speeds) + 1]
    points = []
    for seed in seeds:
        for arm, speed in zip(names, (1.0, *speeds), strict=True):
            # Python's hash of a string changes from process to process, its bytes do not.
            rng = np.random.default_rng([seed, *arm.encode()])
            for metric in metrics:
                own = speed[metric] if isinstance(speed, dict) else speed
                floor = 4 * floors.get(metric, 0.0)

                def score(step, own=own, floor=floor):
                    return decay(step, speed=own, floor=floor)

                points += curve_points(arm, seed, metric, score, noise=noise, width=width, rng=rng)
    estimates = {metric: Estimate(4 * share, 3.9 * share, 4.1 * share) for metric, share in floors.items()}
    arms = [arm_result("stock", psnr=psnr[0], floors=estimates)]
    arms += [arm_result(n, psnr=psnr[1], floors=estimates, baseline_psnr=psnr[0]) for n in names[1:]]
    return ComparisonResults(
        arms=tuple(arms),
        curves=tuple(points),
        seeds=tuple(seeds),
        budget={"vae_steps": 1000, "transformer_steps": STEPS[-1], "minutes": 38.2},
        machine={"processor": "2 CPU cores", "memory_gib": 24},
        packages={"torch": "2.13.0", "numpy": "2.4.6"},
        configuration={"preset": "default", "transformer": {"width": 128, "depth": 4}},
        measurement={"held-out clips": 240, "samples": 128, "sampler": "Euler, 50 steps"},
        command="bash scripts/compare_convergence.sh",
        attribution="(c) Blender Foundation",
    )


def clips(count, seed, *, frames=5, size=(32, 48)):
    """Smooth moving pictures, so that a lossy video can be compared with them."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(count):
        coarse = torch.rand(1, 3, frames, 4, 4, generator=generator)
        video = torch.nn.functional.interpolate(coarse, size=(frames, *size), mode="trilinear")[0]
        made.append((video * 255).to(torch.uint8).permute(1, 2, 3, 0).contiguous())
    return made


def pictures(arms=("stock", "ssvae")):
    return Pictures(
        fps=8.0,
        originals=clips(5, 0),
        reconstructions={arm: clips(5, 1) for arm in arms},
        samples={arm: {200: clips(5, 2), 1600: clips(5, 3)} for arm in arms},
    )


def judged(results, name="ssvae"):
    """The verdict on one candidate."""
    return {verdict.candidate: verdict for verdict in judge(results)}[name]
