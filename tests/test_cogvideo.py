"""SSVAE in the real CogVideoX code of both eras: training, logging, resuming and sampling with a tiny transformer.

    SAT_SSVAE_COGVIDEO=/path/to/CogVideo pytest tests/test_cogvideo.py

names a git clone of CogVideo with tag v1.0; SAT_SSVAE_COGVIDEO_PYTHON a Python with CogVideo's requirements (default:
the one that runs the tests). CogVideoX's configurations, our overlay and a layer of tiny sizes are merged as a user's
would be; on main the package is the copy in sgm/, in v1.0 the installed one.
"""

import os
import re
import subprocess
import sys

import pytest
import torch
import yaml
from PIL import Image

from sat_ssvae import SSVAE, SSVAEConfig
from sat_ssvae.cogvideo.check import Settings, check, merge
from sat_ssvae.cogvideo.transformer import adapt
from sat_ssvae.data.video_io import probe, write_video
from sat_ssvae.vae.statistics import LatentStats

from .test_project import ROOT

COGVIDEO = os.environ.get("SAT_SSVAE_COGVIDEO") or None
PYTHON = os.environ.get("SAT_SSVAE_COGVIDEO_PYTHON", sys.executable)
REVISIONS = {"v1.0": "v1.0", "main": "e519ece"}
OVERLAYS = ROOT / "cogvideo_configs"
STEPS = 12

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COGVIDEO is None, reason="SAT_SSVAE_COGVIDEO names no clone of github.com/zai-org/CogVideo"),
]

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


def run(script, *arguments, cwd, package=ROOT):
    """A script of CogVideoX on the CPU; `package` is the folder that sat_ssvae is imported from."""
    launch = dict.fromkeys(["RANK", "LOCAL_RANK"], "0") | dict.fromkeys(["WORLD_SIZE", "LOCAL_WORLD_SIZE"], "1")
    environment = {**os.environ, **launch, "PYTHONPATH": str(package), "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [PYTHON, ROOT / "tests" / "cogvideo_on_cpu.py", script, *arguments]
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Videos, an image, an untrained SSVAE of 48 channels, a text encoder, and both eras, patched."""
    folder = tmp_path_factory.mktemp("cogvideo")
    for name in ("t5", "data/videos", "data/labels"):
        (folder / name).mkdir(parents=True)
    time, y, x = torch.arange(40).view(-1, 1, 1) / 8, torch.arange(64).view(-1, 1) / 64, torch.arange(96) / 96
    waves = (2 * x + time, 2 * y - time, x + y + time / 2)
    video = torch.stack([torch.sin(6.28 * wave).expand(40, 64, 96) for wave in waves])
    write_video(folder / "data/videos/bars.mp4", 0.8 * video, fps=8)
    (folder / "data/labels/bars.txt").write_text("a red bar moves\n")
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


def unpack(era, folder):
    """An era's sat folder, as its authors left it."""
    command = ["git", "-C", COGVIDEO, "archive", REVISIONS[era], "sat"]
    tar = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    folder.mkdir()
    subprocess.run(["tar", "-x", "-C", folder], input=tar, check=True)


def install(checkout, action):
    script = ROOT / "scripts" / "install_into_cogvideo.sh"
    subprocess.run(["bash", script, checkout, action], check=True)


def tiny(world, name, **model):
    """A layer of tiny sizes: 9 frames of 64 x 96 in v1.0, 13 on main."""
    main = "1.5" in name
    frames = 13 if main else 9
    positions = {"text_length": 8} | ({} if main else {"height_interpolation": 0.25, "width_interpolation": 0.25})
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
        "latent_height": 8 if main else 4,
        "latent_width": 8 if main else 6,
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
            "first_stage_config": {"params": {"ckpt_path": str(world / "ssvae")}},
            "conditioner_config": {"params": {"emb_models": [embedder]}},
            "sampler_config": {"params": sampler},
            **model,
        },
    }


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
    """One era's configurations, merged from files, checked, and run."""

    def __init__(self, world, era, stock, overlay, folder):
        self.sat = world / era / "sat"
        self.stock = self.sat / "configs" / f"{stock}.yaml"
        self.overlay = OVERLAYS / f"{overlay}.yaml"
        self.folder = folder
        self.copied = [OVERLAYS / "copied.yaml"] if era == "main" else []

    def run(self, script, kind, *layers, **options):
        """A script with the stock files, the overlay, and layers of this test."""
        files = [self.stock, self.sat / "configs" / f"{kind}.yaml", self.overlay, *written(self.folder, *layers)]
        assert check(merge(files)) == []
        extra = [text for name, value in options.items() for text in (f"--{name}", value)]
        package = self.folder if self.copied else ROOT  # sat_ssvae itself is not to be found beside the copy
        return run(script, "--base", *files, *self.copied, "--seed", 1, *extra, cwd=self.sat, package=package)

    def train(self, *layers):
        """The losses of all steps."""
        output = self.run("train_video.py", "sft", *layers, device=0)
        return [float(loss) for loss in re.findall(r"iteration .* total loss (\S+) ", output)]

    def sample(self, *layers):
        """What sample_video.py printed."""
        return self.run("sample_video.py", "inference", *layers)


def written(folder, *layers):
    """Layers as files."""
    files = [folder / f"layer{number}.yaml" for number, _ in enumerate(layers)]
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


def test_main_trains_logs_resumes_and_samples(world, tmp_path):
    checkout = Checkout(world, "main", "cogvideox1.5_5b", "cogvideox1.5_5b", tmp_path)
    small = tiny(world, "cogvideox1.5_5b")
    losses = checkout.train(small, training(world, tmp_path / "first", STEPS))
    assert len(losses) == STEPS
    assert falls(losses)
    first = saved(tmp_path / "first")
    for kind in ("inputs", "reconstructions", "samples"):
        assert videos(first / "video" / f"{kind}_gs-{STEPS:06}") == {(13, 64, 96)}
    resumed = checkout.train(small, training(world, tmp_path / "second", STEPS + 2, load=str(first)))
    assert len(resumed) == 2
    assert max(resumed) < losses[0]
    checkout.sample(small, sampling(world, tmp_path / "out", first, frames=4))
    assert videos(tmp_path / "out") == {(13, 64, 96)}


def test_main_trains_and_samples_image_to_video(world, tmp_path):
    checkout = Checkout(world, "main", "cogvideox1.5_5b_i2v", "cogvideox1.5_5b_i2v", tmp_path)
    small = tiny(world, "cogvideox1.5_5b_i2v")
    small["model"]["network_config"]["params"] |= {
        "latent_height": 48,
        "latent_width": 72,
    }  # short side 768 for sampling
    losses = checkout.train(small, training(world, tmp_path / "save", 2))
    assert len(losses) == 2
    load, prompt = saved(tmp_path / "save"), f"a red bar@@{world / 'image.png'}"
    checkout.sample(small, sampling(world, tmp_path / "out", load, 2, prompt, image2video=True, bf16=True))
    assert videos(tmp_path / "out") == {(5, 768, 1152)}


def test_v1_trains_logs_and_samples(world, tmp_path):
    checkout = Checkout(world, "v1.0", "cogvideox_2b", "cogvideox_2b_5b", tmp_path)
    small = tiny(world, "cogvideox_2b")
    losses = checkout.train(small, training(world, tmp_path / "save", STEPS))
    assert falls(losses)
    trained = saved(tmp_path / "save")
    assert videos(trained / "video" / f"reconstructions_gs-{STEPS:06}") == {(9, 64, 96)}
    # v1.0 samples 480 x 720 whatever it was trained at: the same weights with that grid's positions.
    full = tiny(world, "cogvideox_2b")
    network = full["model"]["network_config"]["params"]
    network |= {"latent_height": 30, "latent_width": 45}
    network["modules"]["pos_embed_config"]["params"] |= {"height_interpolation": 1.875, "width_interpolation": 1.875}
    inference = sampling(world, tmp_path / "out", tmp_path / "adapted", frames=3)
    layers = [checkout.stock, checkout.overlay, *written(tmp_path, full)]
    left_out = adapt(trained, tmp_path / "adapted", Settings(merge(layers)).transformer())
    assert [name.split(".")[-1] for name, _, _ in left_out] == ["pos_embedding"]
    checkout.sample(full, inference)
    assert videos(tmp_path / "out") == {(9, 480, 720)}


def test_training_on_latents_needs_no_encoder(world, tmp_path):
    command = [
        sys.executable,
        "-m",
        "sat_ssvae.cli",
        "encode",
        world / "ssvae",
        world / "data/videos",
        tmp_path / "latents",
    ]
    data = ["data.num_frames=13", "data.fps=8", "data.resolution=[64,96]", "data.num_workers=0"]
    subprocess.run([*map(str, command), *data], cwd=ROOT, check=True)
    checkout = Checkout(world, "main", "cogvideox1.5_5b", "cogvideox1.5_5b", tmp_path)
    small = tiny(world, "cogvideox1.5_5b", latent_input=True)
    small["data"]["target"] = "sgm.sat_ssvae.cogvideo.LatentDataset"
    paths = {"train_data": [str(tmp_path / "latents")], "valid_data": [str(tmp_path / "latents")]}
    losses = checkout.train(small, training(world, tmp_path / "save", STEPS, **paths))
    assert falls(losses)
    assert videos(saved(tmp_path / "save") / "video" / f"reconstructions_gs-{STEPS:06}") == {(13, 64, 96)}


@pytest.mark.parametrize("era", REVISIONS)
def test_a_reverted_checkout_is_the_stock_one(era, tmp_path):
    unpack(era, tmp_path / "stock")
    unpack(era, tmp_path / "ours")
    install(tmp_path / "ours", "--copy")
    compare = ["diff", "--recursive", "--brief", tmp_path / "stock", tmp_path / "ours"]
    assert subprocess.run(compare, stdout=subprocess.DEVNULL, check=False).returncode == 1
    install(tmp_path / "ours", "--revert")
    subprocess.run(compare, check=True)
