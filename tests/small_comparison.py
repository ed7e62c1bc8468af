"""A comparison of two arms at the smallest size that runs every stage."""

from sat_ssvae.comparison.settings import CompareConfig
from sat_ssvae.config import packaged, parse_config, read_yaml

ARMS = {"stock": {"settings": {"lcr_weight": 0.0, "lmr_mask_ratio": 0.0}}, "ssvae": {"settings": {}}}


def settings(**changes):
    smoke = read_yaml(packaged("compare_smoke.yaml"))
    smoke["data"] |= {"train_stride": 0.5, "heldout_stride": 0.25, "max_heldout": 8, "num_workers": 0}
    smoke["vae"] |= {"max_steps": 2, "model": smoke["vae"]["model"] | {"base_channels": 4}}
    smoke["transformer"] |= {"max_steps": 3, "evaluation_steps": [1, 3], "width": 32, "depth": 1}
    smoke["scoring"] |= {"samples": 8, "denoising_clips": 4, "loss_levels": 2, "sampler_steps": 2}
    return smoke | {"arms": ARMS, "jobs": 1} | changes


def configured(**changes):
    return parse_config(CompareConfig, settings(**changes))
