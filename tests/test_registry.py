"""SAT's own AutoModel loads what `save_sat` writes; each test is a process, since SAT keeps global state."""

import json
import os
import subprocess
import sys

import pytest
import torch

from sat_ssvae import UserError
from sat_ssvae.cogvideo import SSVAEFirstStage
from sat_ssvae.cogvideo.registry import save_sat
from sat_ssvae.cogvideo.sat_transformer import write_transformer
from sat_ssvae.vae.statistics import LatentStats

from .small_models import measured_vae, random_video, tiny_vae

LOAD = """
import sys, torch, importlib.util
from sat_ssvae.cogvideo import SSVAEFirstStage
from sat_ssvae.cogvideo.registry import register
register()
state = torch.get_rng_state()
from sat.model import AutoModel
from sat.model.registry import model_registry
assert issubclass(model_registry.get("SSVAEFirstStage"), SSVAEFirstStage)
assert ("triton" in sys.modules) == (importlib.util.find_spec("triton") is not None)
first_stage, args = AutoModel.from_pretrained(sys.argv[1])
assert isinstance(first_stage, SSVAEFirstStage)
assert args.first_stage["latent_mean"] == [0.0, 1.0, 2.0, 3.0]
x = torch.load(sys.argv[2])
with torch.no_grad():
    z = first_stage.encode(x)
    torch.save((z, first_stage.decode(z)), sys.argv[3])
"""


def run(code, *arguments, **environment):
    command = [sys.executable, "-W", "error::RuntimeWarning", "-c", code, *map(str, arguments)]
    variables = {**os.environ, "DS_ACCELERATOR": "cpu", **environment}
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=False)


@pytest.fixture
def vae():
    return measured_vae()


@pytest.mark.slow
@torch.no_grad()
def test_automodel_returns_the_first_stage_with_its_args(vae, tmp_path):
    save_sat(vae, tmp_path / "sat")
    vae.save_pretrained(tmp_path / "folder")
    torch.save(random_video(5), tmp_path / "video.pt")
    done = run(LOAD, tmp_path / "sat", tmp_path / "video.pt", tmp_path / "out.pt")
    assert done.returncode == 0, done.stderr
    stage = SSVAEFirstStage(ckpt_path=tmp_path / "folder")
    z, video = torch.load(tmp_path / "out.pt", weights_only=True)
    assert torch.equal(z, stage.encode(random_video(5)))
    assert torch.equal(video, stage.decode(z))


def test_a_folder_of_sat_holds_all_tensors_and_the_class(vae, tmp_path):
    save_sat(vae, tmp_path)
    assert json.loads((tmp_path / "model_config.json").read_text())["model_class"] == "SSVAEFirstStage"
    file = tmp_path / (tmp_path / "latest").read_text().strip() / "mp_rank_00_model_states.pt"
    weights = torch.load(file, weights_only=True)["module"]
    assert {name.removeprefix("vae.") for name in weights} == set(vae.state_dict())


def test_an_autoencoder_without_statistics_is_refused(vae, tmp_path):
    vae.latent_stats = None
    with pytest.raises(UserError, match="needs latent statistics"):
        save_sat(vae, tmp_path)


@pytest.mark.slow
def test_a_package_that_sat_needs_is_named(tmp_path):
    code = """
import sys
sys.modules["wandb"] = None  # what Python does for a package that is not there
from sat_ssvae.cogvideo.registry import register
from sat_ssvae import UserError
try:
    register()
except UserError as error:
    assert "SAT needs wandb" in str(error), error
else:
    raise SystemExit("no error")
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


CHECKPOINT = """
import argparse, sys
from pathlib import Path
import torch
from torch import nn
from sat_ssvae.cogvideo import SSVAEFirstStage
from sat_ssvae.cogvideo.registry import import_sat
import_sat()
from sat.arguments import initialize_distributed
from sat.training.model_io import load_checkpoint, save_checkpoint

class Model(nn.Module):
    def __init__(self, folder):
        super().__init__()
        self.model = nn.Linear(4, 4)
        self.first_stage_model = SSVAEFirstStage(ckpt_path=folder)

work = Path(sys.argv[1])
launch = dict(distributed_backend="gloo", device="cpu", rank=0, world_size=1, local_rank=0, model_parallel_size=1)
args = argparse.Namespace(**launch, deepspeed=False, mode="inference", save=str(work / "saved"), load=sys.argv[2])
initialize_distributed(args)
trained, sampled = Model(work / "first"), Model(work / "second")
save_checkpoint(1, trained, None, None, args)
before = {name: value.clone() for name, value in sampled.first_stage_model.state_dict().items()}
load_checkpoint(sampled, args)
assert torch.equal(sampled.model.weight, trained.model.weight) == (args.load == args.save)
after = sampled.first_stage_model.state_dict()
assert all(torch.equal(after[name], value) for name, value in before.items())
assert not torch.equal(after["vae.mask_token"], trained.first_stage_model.state_dict()["vae.mask_token"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("checkpoint", ["its own", "of an older version"])
def test_a_checkpoint_of_sat_does_not_replace_the_autoencoder(tmp_path, checkpoint):
    """Trained with one autoencoder, sampled with another decoder: ckpt_path decides."""
    for name, seed in (("first", 1), ("second", 2)):
        vae = tiny_vae()
        torch.manual_seed(seed)
        torch.nn.init.normal_(vae.mask_token)
        vae.latent_stats = LatentStats(torch.zeros(4), torch.full((4,), float(seed)))
        vae.save_pretrained(tmp_path / name)
    folder = tmp_path / "saved"
    if checkpoint == "of an older version":  # whose checkpoints held the first stage
        folder = tmp_path / "old"
        module = {"model.weight": torch.ones(4, 4), "model.bias": torch.ones(4)}
        first = {f"first_stage_model.vae.{name}": value for name, value in tiny_vae().state_dict().items()}
        write_transformer(module | first, folder)
    done = run(CHECKPOINT, tmp_path, folder)
    assert done.returncode == 0, done.stderr
    saved = torch.load(tmp_path / "saved" / "1" / "mp_rank_00_model_states.pt", weights_only=True)["module"]
    assert set(saved) == {"model.weight", "model.bias"}
