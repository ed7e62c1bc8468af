"""Stands in for CogVideoX's: the merged configuration as arguments, the process group started, and the seed set."""

import argparse

from omegaconf import OmegaConf

from sat_ssvae.cogvideo.registry import import_sat

import_sat()  # the real SAT, where there is no triton
from sat.arguments import initialize_distributed, set_random_seed  # noqa: E402

DEFAULTS = {"mode": "finetune", "load": None, "fp16": False, "bf16": False, "device": "cpu", "force_train": False}
LAUNCH = {"distributed_backend": "gloo", "rank": 0, "world_size": 1, "local_rank": 0, "model_parallel_size": 1}


def get_args(args_list=None):
    parser = argparse.ArgumentParser()
    parser.add_argument("--base", nargs="*")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(args_list)
    config = OmegaConf.merge(*[OmegaConf.load(file) for file in args.base])
    for key, value in {**DEFAULTS, **LAUNCH, "deepspeed": False, **OmegaConf.to_container(config.args)}.items():
        setattr(args, key, value)
    args.model_config, args.data_config = config.model, config.data
    initialize_distributed(args)
    set_random_seed(args.seed)  # which takes none below 1
    return args
