"""CogVideoX of both eras, unpacked, with models small enough for a CPU and configurations for them."""

import os
import re
import subprocess
import sys

import torch
import yaml
from PIL import Image

from sat_ssvae import SSVAE, SSVAEConfig
from sat_ssvae.cogvideo.compatibility import find_mismatches
from sat_ssvae.cogvideo.first_stage import build_first_stage
from sat_ssvae.cogvideo.sat_config import SATConfig, merge_configs
from sat_ssvae.data.video_io import probe, write_video
from sat_ssvae.vae.statistics import LatentStats

from .test_project import ROOT

COGVIDEO = os.environ.get("SAT_SSVAE_COGVIDEO") or None
PYTHON = os.environ.get("SAT_SSVAE_COGVIDEO_PYTHON", sys.executable)
REVISIONS = {"v1.0": "v1.0", "main": "e519ece"}
OVERLAYS = ROOT / "cogvideo_configs"
ON_CPU = ROOT / "tests" / "cogvideo_on_cpu.py"
CLIPS = 9  # held-out and training videos, each

TEXT_ENCODER = """
import sys
import sentencepiece
from transformers import T5Config, T5EncoderModel
words = "a red bar moves over blue sea while green hills shine and birds fly in the light of evening".split()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(" ".join(words[i:] + words[:i]) for i in range(len(words))),
    model_prefix=sys.argv[1] + "/spiece", vocab_size=60, hard_vocab_limit=False,
    pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2)
config = T5Config(vocab_size=128, d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
T5EncoderModel(config).save_pretrained(sys.argv[1])
"""

STOCK_AUTOENCODER = """
import sys
import torch
from omegaconf import OmegaConf
from sgm.util import instantiate_from_config
torch.manual_seed(0)
first_stage = OmegaConf.merge(*[OmegaConf.load(file) for file in sys.argv[2:]]).model.first_stage_config
first_stage.params.ckpt_path = None
torch.save({"state_dict": instantiate_from_config(first_stage).state_dict()}, sys.argv[1])
"""


def environment(package=ROOT):
    """Of a process of CogVideoX; `package` is the folder that sat_ssvae is imported from."""
    launch = dict.fromkeys(["RANK", "LOCAL_RANK"], "0") | dict.fromkeys(["WORLD_SIZE", "LOCAL_WORLD_SIZE"], "1")
    return {**os.environ, **launch, "PYTHONPATH": str(package), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}


def start(script, *arguments, cwd, package=ROOT):
    """A script of CogVideoX on the CPU, however it ends."""
    command = [PYTHON, ON_CPU, script, *arguments]
    return subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment(package), capture_output=True, text=True, check=False
    )


def run(script, *arguments, cwd, package=ROOT):
    """What a script of CogVideoX that succeeds printed."""
    done = start(script, *arguments, cwd=cwd, package=package)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


def make_world(folder):
    """Videos, an image, an untrained SSVAE of 48 channels, a text encoder, and both eras, patched."""
    (folder / "t5").mkdir()
    for split, speed in (("data", 1), ("more", 2), ("heldout", 3)):
        for kind in ("videos", "labels"):
            (folder / split / kind).mkdir(parents=True)
        for number in range(1 if split == "data" else CLIPS):
            name = "bars" if split == "data" else f"clip{number}"
            write_video(folder / split / "videos" / f"{name}.mp4", waves(speed + number / 4), fps=8)
            (folder / split / "labels" / f"{name}.txt").write_text("a red bar moves\n")
    Image.new("RGB", (96, 64), (200, 40, 40)).save(folder / "image.png")
    (folder / "encoder.py").write_text(TEXT_ENCODER)
    run(folder / "encoder.py", folder / "t5", cwd=folder)
    torch.manual_seed(0)
    sizes = {"base_channels": 2, "channel_multipliers": (1, 1, 2, 2, 4), "num_res_blocks": 1, "num_mid_blocks": 1}
    vae = SSVAE(SSVAEConfig(**sizes))
    with torch.no_grad():
        vae.latent_stats = LatentStats.measure(vae.encode(torch.randn(4, 3, 5, 64, 96)).mode())
    vae.save_pretrained(folder / "ssvae")
    for era in REVISIONS:
        unpack(era, folder / era)
        install(folder / era, "--copy")
    return folder


def waves(speed):
    """A video 3 x 40 x 64 x 96 of moving stripes."""
    time, y, x = torch.arange(40).view(-1, 1, 1) * speed / 8, torch.arange(64).view(-1, 1) / 64, torch.arange(96) / 96
    phases = (2 * x + time, 2 * y - time, x + y + time / 2)
    return 0.8 * torch.stack([torch.sin(6.28 * phase).expand(40, 64, 96) for phase in phases])


def unpack(era, folder):
    """An era's sat folder, as its authors left it."""
    command = ["git", "-C", COGVIDEO, "archive", REVISIONS[era], "sat"]
    tar = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", folder], input=tar, check=True)


def install(checkout, action):
    script = ROOT / "scripts" / "install_into_cogvideo.sh"
    subprocess.run(["bash", script, checkout, action], check=True)


def is_main(stock):
    """Whether a stock configuration is one of main's."""
    return "1.5" in stock


def tiny(world, stock, **model):
    """A layer of tiny sizes, whatever the latents: 9 frames of 64 x 96 in v1.0, 13 on main."""
    frames = 13 if is_main(stock) else 9
    positions = {"text_length": 8}
    if "2b" in stock:
        positions |= {"height_interpolation": 0.25, "width_interpolation": 0.25}
    embedder = {
        "is_trainable": False,
        "input_key": "txt",
        "ucg_rate": 0.1,
        "target": "sgm.modules.encoders.modules.FrozenT5Embedder",
        "params": {"model_dir": str(world / "t5"), "max_length": 8, "device": "cpu"},
    }
    network = {
        "num_layers": 2,
        "hidden_size": 64,
        "num_attention_heads": 1,
        "time_embed_dim": 64,
        "num_frames": frames,
        "transformer_args": {"checkpoint_activations": False},
        "modules": {
            "pos_embed_config": {"params": positions},
            "patch_embed_config": {"params": {"text_hidden_size": 32}},
        },
    }
    sampler = {"num_steps": 3, "verbose": False, "guider_config": {"params": {"num_steps": 3}}}
    return {
        "args": {"distributed_backend": "gloo", "bf16": False},
        "data": {"params": {"video_size": [64, 96], "fps": 8, "max_num_frames": frames, "skip_frms_num": 0}},
        "model": {
            "network_config": {"params": network},
            "conditioner_config": {"params": {"emb_models": [embedder]}},
            "sampler_config": {"params": sampler},
            **model,
        },
    }


def grid(height, width, first_stage):
    """A layer with the latents' size and parameters of the first stage."""
    network = {"params": {"latent_height": height, "latent_width": width}}
    return {"model": {"network_config": network, "first_stage_config": {"params": first_stage}}}


def ssvae_latents(world, stock):
    """SSVAE's layer for 64 x 96: 4 x 6 latents, on main a table of positions with room to spare."""
    return grid(*((8, 8) if is_main(stock) else (4, 6)), {"ckpt_path": str(world / "ssvae")})


def stock_latents(world, stock, sat):
    """The layer of CogVideoX's own autoencoder, made narrow and untrained: 8 x 12 latents of 16 channels."""
    narrow = {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    weights = world / f"{stock}_vae.pt"
    parts = {f"{part}_config": {"params": narrow} for part in ("encoder", "decoder")}
    layer = grid(8, 12, {"ckpt_path": str(weights), **parts})
    if not weights.exists():
        (world / "autoencoder.py").write_text(STOCK_AUTOENCODER)
        files = [sat / "configs" / f"{stock}.yaml", *written(world, "stock", layer)]
        run(world / "autoencoder.py", weights, *files, cwd=sat)
    return layer


def training(world, save, steps, **more):
    zero = {"stage": 1, "reduce_bucket_size": 1000000, "allgather_bucket_size": 1000000}
    adam = {"lr": 0.003, "torch_adam": True, "eps": 1e-8, "betas": [0.9, 0.95], "weight_decay": 0.0}
    return {
        "args": {
            "load": None,
            "mode": "pretrain",
            "train_data": [str(world / "data")],
            "valid_data": [str(world / "data")],
            "train_iters": steps,
            "eval_interval": steps,
            "save_interval": steps,
            "log_interval": 1,
            "save": str(save),
            "num_workers": 0,
            "only_log_video_latents": False,
            "no_save_rng": True,
            "no_load_rng": True,
            **more,
        },
        "deepspeed": {
            "train_micro_batch_size_per_gpu": 1,
            "bf16": {"enabled": False},
            "zero_optimization": zero,
            "optimizer": {"type": "AdamW", "params": adam},
        },
    }


def sampling(world, output, load, frames, prompt="a red bar", **more):
    (world / "prompts.txt").write_text(f"{prompt}\n")
    values = {
        "load": str(load),
        "mode": "inference",
        "input_file": str(world / "prompts.txt"),
        "output_dir": str(output),
    }
    values |= {"sampling_num_frames": frames, "sampling_image_size": [64, 96], "sampling_fps": 8}
    return {"args": values | more}


class Checkout:
    """One era's configurations, merged from files, checked where they have SSVAE's latents, and run."""

    def __init__(self, checkout, stock, overlays, folder):
        self.sat = checkout / "sat"
        self.stock = self.sat / "configs" / f"{stock}.yaml"
        self.overlays = [OVERLAYS / f"{overlay}.yaml" for overlay in overlays]
        self.folder = folder
        self.copied = [OVERLAYS / "copied.yaml"] if overlays and is_main(stock) else []

    def run(self, script, kind, *layers, **options):
        """A script with the stock files, the overlays, and layers of this test."""
        files = [self.stock, self.sat / "configs" / f"{kind}.yaml", *self.overlays]
        files += written(self.folder, script, *layers)
        if self.overlays:
            config = SATConfig(merge_configs(files))
            assert find_mismatches(config, build_first_stage(config).latent_format) == []
        extra = [text for name, value in options.items() for text in (f"--{name}", value)]
        # sat_ssvae itself is not to be found beside the copy
        package = self.folder if self.copied else ROOT
        return run(script, "--base", *files, *self.copied, "--seed", 1, *extra, cwd=self.sat, package=package)

    def train(self, *layers):
        """The losses of all steps."""
        output = self.run("train_video.py", "sft", *layers, device=0)
        return [float(loss) for loss in re.findall(r"iteration .* total loss (\S+) ", output)]

    def sample(self, *layers):
        """What sample_video.py printed."""
        return self.run("sample_video.py", "inference", *layers)


def written(folder, name, *layers):
    """Layers as files."""
    files = [folder / f"{name}{number}.yaml" for number, _ in enumerate(layers)]
    for file, values in zip(files, layers, strict=True):
        file.write_text(yaml.safe_dump(values))
    return files


def saved(folder):
    """The folder that a training run made below its `save`."""
    (found,) = folder.iterdir()
    return found


def videos(folder):
    """(frames, height, width) of the videos below a folder."""
    found = [probe(path) for path in folder.rglob("*.mp4")]
    assert found
    return {(info.frames, info.height, info.width) for info in found}


def falls(losses):
    """Whether the last losses are below the first ones."""
    return sum(losses[-3:]) < sum(losses[:3])
