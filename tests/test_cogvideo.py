"""SSVAE in the real CogVideoX code of both eras: training, logging, resuming, sampling and comparing, with tiny models.

    SAT_SSVAE_COGVIDEO=/path/to/CogVideo pytest tests/test_cogvideo.py

names a git clone of CogVideo with tag v1.0; SAT_SSVAE_COGVIDEO_PYTHON a Python with CogVideo's requirements and
sat-ssvae's (default: the one that runs the tests). CogVideoX's configurations, our overlay and layers of tiny sizes are
merged as a user's would be; on main the package is the copy in sgm/, in v1.0 the installed one.
"""

import json
import math
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open

from sat_ssvae import SSVAE
from sat_ssvae.cogvideo.sat_config import SATConfig, merge_configs
from sat_ssvae.cogvideo.sat_transformer import adapt, read_transformer, write_transformer
from sat_ssvae.data.video_io import read_frames

from . import tiny_transformers
from .cogvideo_world import (
    CLIPS,
    COGVIDEO,
    ON_CPU,
    OVERLAYS,
    PYTHON,
    Checkout,
    environment,
    falls,
    grid,
    install,
    make_world,
    run,
    sampling,
    saved,
    ssvae_latents,
    start,
    stock_latents,
    tiny,
    training,
    unpack,
    videos,
    written,
)
from .test_project import ROOT

STEPS = 12

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COGVIDEO is None, reason="SAT_SSVAE_COGVIDEO names no clone of github.com/zai-org/CogVideo"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("cogvideo"))


def small(world, stock, **model):
    """Layers of tiny sizes for SSVAE's latents."""
    return tiny(world, stock, **model), ssvae_latents(world, stock)


def test_main_trains_logs_resumes_and_samples(world, tmp_path):
    checkout = Checkout(world / "main", "cogvideox1.5_5b", ["cogvideox1.5_5b"], tmp_path)
    layers = small(world, "cogvideox1.5_5b")
    losses = checkout.train(*layers, training(world, tmp_path / "first", STEPS))
    assert len(losses) == STEPS
    assert falls(losses)
    first = saved(tmp_path / "first")
    for kind in ("inputs", "reconstructions", "samples"):
        assert videos(first / "video" / f"{kind}_gs-{STEPS:06}") == {(13, 64, 96)}
    resumed = checkout.train(*layers, training(world, tmp_path / "second", STEPS + 2, load=str(first)))
    assert len(resumed) == 2
    assert max(resumed) < losses[0]
    checkout.sample(*layers, sampling(world, tmp_path / "out", first, frames=4))
    assert videos(tmp_path / "out") == {(13, 64, 96)}


def test_main_trains_and_samples_image_to_video(world, tmp_path):
    checkout = Checkout(world / "main", "cogvideox1.5_5b_i2v", ["cogvideox1.5_5b_i2v"], tmp_path)
    large = grid(48, 72, {"ckpt_path": str(world / "ssvae")})  # sampling has a short side of 768
    layers = tiny(world, "cogvideox1.5_5b_i2v"), large
    losses = checkout.train(*layers, training(world, tmp_path / "save", 2))
    assert len(losses) == 2
    load, prompt = saved(tmp_path / "save"), f"a red bar@@{world / 'image.png'}"
    checkout.sample(*layers, sampling(world, tmp_path / "out", load, 2, prompt, image2video=True, bf16=True))
    assert videos(tmp_path / "out") == {(5, 768, 1152)}


def v1_sampling(world, checkout, trained, folder, **more):
    """v1.0 samples 480 x 720 whatever it was trained at: the same weights with that grid's positions."""
    large = tiny(world, checkout.stock.stem)
    positions = large["model"]["network_config"]["params"]["modules"]["pos_embed_config"]["params"]
    if "height_interpolation" in positions:
        positions |= {"height_interpolation": 1.875, "width_interpolation": 1.875}
    layers = large, grid(30, 45, {"ckpt_path": str(world / "ssvae")})
    files = [checkout.stock, *checkout.overlays, *written(folder, "large", *layers)]
    left_out = adapt(trained, folder / "adapted", SATConfig(merge_configs(files)).transformer())
    rotary = {"freqs_sin", "freqs_cos"} if "5b" in checkout.stock.stem else set()
    assert {name.split(".")[-1] for name, _, _ in left_out} == {"pos_embedding"} | rotary
    checkout.sample(*layers, sampling(world, folder / "out", folder / "adapted", frames=3, **more))
    assert videos(folder / "out") == {(9, 480, 720)}


def saved_names(run):
    step = (run / "latest").read_text()
    return set(torch.load(run / step / "mp_rank_00_model_states.pt", weights_only=True)["module"])


def test_sampling_decodes_with_the_autoencoder_of_ckpt_path(world, tmp_path):
    """Even where the transformer's checkpoint holds another first stage, as those of older versions do."""
    checkout = Checkout(world / "main", "cogvideox1.5_5b", ["cogvideox1.5_5b"], tmp_path)
    checkout.train(*small(world, "cogvideox1.5_5b"), training(world, tmp_path / "save", 1))
    run = saved(tmp_path / "save")
    assert not [name for name in saved_names(run) if name.startswith("first_stage_model.")]
    vae = SSVAE.from_pretrained(world / "ssvae")
    module = {f"first_stage_model.vae.{name}": value for name, value in vae.state_dict().items()}
    write_transformer(read_transformer(run) | module, tmp_path / "old")  # as 0.1.0 wrote it
    with torch.no_grad():
        vae.decoder.last_layer.zero_()
        vae.decoder.out[2].conv.bias.fill_(0.5)
    vae.save_pretrained(tmp_path / "grey")
    layers = tiny(world, "cogvideox1.5_5b"), grid(8, 8, {"ckpt_path": str(tmp_path / "grey")})
    checkout.sample(*layers, sampling(world, tmp_path / "out", tmp_path / "old", frames=4))
    (video,) = (tmp_path / "out").rglob("*.mp4")
    (frames,) = {frame.picture.shape for frame in read_frames(video)}
    assert frames == (64, 96, 3)
    assert all(abs(frame.picture.astype(int) - 191).max() <= 4 for frame in read_frames(video))


@pytest.mark.parametrize("stock", tiny_transformers.OVERLAYS)
def test_the_recorded_transformers_are_the_real_ones(world, tmp_path, stock):
    """What tests/test_export.py holds an exported transformer against is what SAT computes."""
    checkout = Checkout(
        world / ("main" if "1.5" in stock else "v1.0"), stock, tiny_transformers.OVERLAYS[stock], tmp_path
    )
    vae = {"model": {"first_stage_config": {"params": {"ckpt_path": str(world / "ssvae")}}}}
    layers = written(tmp_path, "tiny", tiny(world, stock, latent_input=False), tiny_transformers.layer(stock), vae)
    files = [checkout.stock, checkout.sat / "configs" / "inference.yaml", *checkout.overlays, *layers, *checkout.copied]
    run(ROOT / "tests" / "tiny_transformers.py", tmp_path / "computed.safetensors", *files, cwd=checkout.sat)
    recorded = ROOT / "tests" / "data" / "reference" / f"sat_{stock}.safetensors"
    with safe_open(recorded, "pt") as ours, safe_open(tmp_path / "computed.safetensors", "pt") as computed:
        assert ours.metadata() == computed.metadata()
        for name in ("output", "signal"):
            torch.testing.assert_close(computed.get_tensor(name), ours.get_tensor(name), rtol=1e-4, atol=1e-5)


def test_v1_trains_logs_and_samples(world, tmp_path):
    checkout = Checkout(world / "v1.0", "cogvideox_2b", ["cogvideox_2b_5b"], tmp_path)
    losses = checkout.train(*small(world, "cogvideox_2b"), training(world, tmp_path / "save", STEPS))
    assert falls(losses)
    trained = saved(tmp_path / "save")
    assert videos(trained / "video" / f"reconstructions_gs-{STEPS:06}") == {(9, 64, 96)}
    v1_sampling(world, checkout, trained, tmp_path)


def test_v1_trains_and_samples_image_to_video(world, tmp_path):
    checkout = Checkout(world / "v1.0", "cogvideox_5b_i2v", ["cogvideox_5b_i2v"], tmp_path)
    losses = checkout.train(*small(world, "cogvideox_5b_i2v"), training(world, tmp_path / "save", 2))
    assert len(losses) == 2
    trained = saved(tmp_path / "save")
    assert videos(trained / "video" / "samples_gs-000002") == {(9, 64, 96)}
    prompt = f"a red bar@@{world / 'image.png'}"
    v1_sampling(world, checkout, trained, tmp_path, prompt=prompt, image2video=True, bf16=True)


@pytest.mark.parametrize(
    ("era", "stock", "overlays"),
    [
        ("v1.0", "cogvideox_2b_lora", ["cogvideox_2b_5b", "cogvideox_lora"]),
        ("v1.0", "cogvideox_5b_i2v_lora", ["cogvideox_5b_i2v", "cogvideox_lora"]),
        ("main", "cogvideox1.5_5b", ["cogvideox1.5_5b", "cogvideox1.5_lora"]),
    ],
)
def test_lora_trains_its_layers_and_the_new_ones_alone(world, tmp_path, era, stock, overlays):
    checkout = Checkout(world / era, stock, overlays, tmp_path)
    layers = small(world, stock)
    losses = checkout.train(*layers, training(world, tmp_path / "save", STEPS, save_interval=1, eval_interval=100))
    assert falls(losses)
    run = saved(tmp_path / "save")
    early, late = (
        torch.load(run / step / "mp_rank_00_model_states.pt", weights_only=True)["module"] for step in ("1", str(STEPS))
    )
    changed = {name for name in late if not torch.equal(early[name], late[name])}
    mixins = "model.diffusion_model.mixins."
    new = {name for name in late if name.startswith((f"{mixins}patch_embed.proj", f"{mixins}final_layer"))}
    assert changed == new | {name for name in late if "matrix_A" in name or "matrix_B" in name}
    assert len(changed) > len(new) > 0
    if stock == "cogvideox_2b_lora":
        v1_sampling(world, checkout, run, tmp_path)


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
    subprocess.run([*map(str, command), *data], cwd=ROOT, env=environment(), check=True)
    checkout = Checkout(world / "main", "cogvideox1.5_5b", ["cogvideox1.5_5b"], tmp_path)
    layer, latents = small(world, "cogvideox1.5_5b", latent_input=True)
    layer["data"]["target"] = "sgm.sat_ssvae.cogvideo.LatentDataset"
    paths = {"train_data": [str(tmp_path / "latents")], "valid_data": [str(tmp_path / "latents")]}
    losses = checkout.train(layer, latents, training(world, tmp_path / "save", STEPS, **paths))
    assert falls(losses)
    assert videos(saved(tmp_path / "save") / "video" / f"reconstructions_gs-{STEPS:06}") == {(13, 64, 96)}


@pytest.mark.parametrize(
    ("era", "stock", "frames", "size"),
    [("v1.0", "cogvideox_2b", 9, (480, 720)), ("main", "cogvideox1.5_5b", 12, (64, 96))],
)
def test_a_reverted_checkout_is_the_stock_one_and_works(world, tmp_path, era, stock, frames, size):
    unpack(era, tmp_path / "stock")
    unpack(era, tmp_path / "ours")
    install(tmp_path / "ours", "--copy")
    compare = ["diff", "--recursive", "--brief", tmp_path / "stock", tmp_path / "ours"]
    assert subprocess.run(compare, stdout=subprocess.DEVNULL, check=False).returncode == 1
    install(tmp_path / "ours", "--revert")
    subprocess.run(compare, check=True)
    checkout = Checkout(tmp_path / "ours", stock, [], tmp_path)
    layers = tiny(world, stock, latent_input=False), stock_latents(world, stock, checkout.sat)
    losses = checkout.train(*layers, training(world, tmp_path / "save", 3))
    assert len(losses) == 3
    trained = saved(tmp_path / "save")
    assert videos(trained / "video" / "reconstructions_gs-000003") == {(frames, 64, 96)}
    if era == "v1.0":  # whose table of positions has one size
        large = tiny(world, stock)
        large["model"]["network_config"]["params"]["modules"]["pos_embed_config"]["params"] |= {
            "height_interpolation": 1.875,
            "width_interpolation": 1.875,
        }
        layers = large, stock_latents(world, stock, checkout.sat), grid(60, 90, {})
        files = [checkout.stock, *written(tmp_path, "large", *layers)]
        adapt(trained, tmp_path / "adapted", SATConfig(merge_configs(files)).transformer())
        trained = tmp_path / "adapted"
    checkout.sample(*layers, sampling(world, tmp_path / "out", trained, frames=3 if era == "v1.0" else 4))
    assert videos(tmp_path / "out") == {(frames, *size)}


def test_training_with_the_target_edited_alone_says_what_else_must_change(world, tmp_path):
    sat = world / "v1.0" / "sat"
    layer = tiny(world, "cogvideox_2b")
    layer["model"]["first_stage_config"] = {
        "target": "sat_ssvae.cogvideo.SSVAEFirstStage",
        "params": {"ckpt_path": str(world / "ssvae")},
    }
    files = ["configs/cogvideox_2b.yaml", "configs/sft.yaml"]
    files += written(tmp_path, "layer", layer, training(world, tmp_path / "save", 1))
    done = start("train_video.py", "--base", *files, "--seed", 1, "--device", 0, cwd=sat)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert "UserError: model.scale_factor is 1.15258426, must be 1.0" in last
    assert "more: sat-ssvae cogvideo check --base FILES" in last


def compare_convergence(world, folder, era, stock, overlay):
    """scripts/compare_convergence.sh with tiny settings; both arms train 8 steps on 9 videos."""
    sat = world / era / "sat"
    data = {"train_data": [str(world / "more")], "valid_data": [str(world / "heldout")]}
    common = training(world, folder / "unused", 8, eval_interval=100, device=0, **data)
    files = written(
        folder, "compared", tiny(world, stock, latent_input=False), common, stock_latents(world, stock, sat)
    )
    (ours,) = written(folder, "ours", ssvae_latents(world, stock))
    settings = ["evaluations=4", "scoring.samples=8", "scoring.denoising_clips=4", "scoring.loss_levels=2"]
    settings += ["scoring.batch_size=4", "scoring.noise_levels=[0.5,0.9]", "scoring.shown_clips=2"]
    copied = [OVERLAYS / "copied.yaml"] if era == "main" else []
    command = [ROOT / "scripts" / "compare_convergence.sh", "--cogvideo", world / era, "--output", folder / "out"]
    command += ["--stock", f"configs/{stock}.yaml", "configs/sft.yaml", *files]
    command += [
        "--ssvae",
        OVERLAYS / f"{overlay}.yaml",
        files[0],
        ours,
        *copied,
        "--python",
        f"{PYTHON} {ON_CPU}",
        *settings,
    ]
    done = subprocess.run(
        ["bash", *map(str, command)],
        env=environment() | {"PYTHON": PYTHON},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return done.stdout


def written_files(out):
    """Every file of the comparison's stages but the report, and when it was written."""
    paths = [path for stage in ("initial", "training", "scores") for path in (out / stage).rglob("*")]
    return {path: path.stat().st_mtime_ns for path in paths}


def numbers(value):
    """All numbers in a JSON document."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, float | int) else []


@pytest.mark.parametrize(
    ("era", "stock", "overlay"),
    [("v1.0", "cogvideox_2b", "cogvideox_2b_5b"), ("main", "cogvideox1.5_5b", "cogvideox1.5_5b")],
)
def test_the_comparison_on_its_own_training(world, tmp_path, era, stock, overlay):
    printed = compare_convergence(world, tmp_path, era, stock, overlay)
    out = tmp_path / "out"
    report, results = out / "report", json.loads((out / "report/results.json").read_text())
    assert f"report: {report / 'report.html'}" in printed
    decoded = [f"kernel_distance_{to}/{of}" for to in ("real", "reconstruction") for of in ("frame", "clip")]
    decoded += [f"denoising_error_{to}/{level}" for to in ("real", "reconstruction") for level in (0.5, 0.9)]
    points = [(point["arm"], point["metric"], point["step"]) for point in results["curves"]]
    for arm in ("stock", "ssvae"):
        for metric in ("loss", "loss_above_floor", *decoded):
            assert [point[2] for point in points if point[:2] == (arm, metric)] == [2, 4, 6, 8], metric
        assert [point[2] for point in points if point[:2] == (arm, "training_loss")] == list(range(1, 9))
    assert all(math.isfinite(number) for number in numbers(results["curves"]) + numbers(results["arms"]))
    theirs, ours = results["arms"]
    measured = {"psnr", "ssim", "stlpips", "psnr_above_mean_colour", "local correlation"}
    assert set(theirs["reconstruction"]) == measured
    assert set(ours["reconstruction_difference"]) == {"psnr", "ssim", "stlpips"}
    assert len(theirs["explained_variance"]) == 16 and len(ours["explained_variance"]) == 48
    assert set(theirs["floors"]) == {m for m in decoded if not m.startswith("denoising_error_rec")} | {
        "loss",
        "loss_above_floor",
    }
    assert results["measurement"]["held-out clips"] == CLIPS
    assert videos(report / "samples")
    page = (report / "report.html").read_text()
    assert all(title in page for title in ("Loss that train_video.py logged", "Channel modes", "Held out: "))

    (start,) = (out / "initial").glob("*/transformer")
    names = set(read_transformer(start))  # both arms', less what has another shape
    assert not [name for name in names if "patch_embed.proj.weight" in name or "final_layer.linear" in name]
    assert "model.diffusion_model.transformer.layers.0.attention.dense.weight" in names
    logs = list(out.glob("training/*/train.log"))
    assert len(logs) == 2 and all(f"successfully loaded {start}" in log.read_text() for log in logs)

    before = written_files(out)
    compare_convergence(world, tmp_path, era, stock, overlay)
    assert written_files(out) == before
