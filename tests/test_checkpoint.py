"""Reading published and own checkpoints, and what is said about files that are neither."""

import json
import re
import subprocess
import sys
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sat_ssvae import SSVAE, SSVAEConfig, UserError
from sat_ssvae import vae as vae_room
from sat_ssvae.vae.checkpoint import infer_config, published_stats, read_checkpoint
from sat_ssvae.vae.statistics import LatentStats

REFERENCE = Path(__file__).parent / "data" / "reference"


@pytest.fixture
def weights():
    return {k: v.float() for k, v in load_file(REFERENCE / "case_a.weights.safetensors").items()}


def test_the_full_models_sizes_follow_from_names_and_shapes():
    published = json.loads((REFERENCE / "ssvae_ch48_parameters.json").read_text())
    shapes = published.get("parameters", published)
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert infer_config(tensors, Path("ch48")) == SSVAEConfig()


def test_a_published_file_loads_without_its_training_tensors(tmp_path, weights, caplog):
    path = tmp_path / "published.ckpt"
    torch.save({"state_dict": weights | {"loss.discriminator.weight": torch.zeros(3)}, "epoch": 3}, path)
    with caplog.at_level("INFO"):
        vae = SSVAE.from_pretrained(path)
    assert "left out 1 tensors that only training uses" in caplog.text
    for name, value in vae.state_dict().items():
        assert torch.equal(value, weights[name])


def ema_of(weights, names, value=None):
    """What the published trainer's moving average saves: names without dots."""
    shadows = {
        f"model_ema.{name.replace('.', '')}": weights[name] + 1 if value is None else value(weights[name])
        for name in names
    }
    return shadows | {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(10)}


def lightning_file(path, state_dict, **more):
    """A checkpoint with everything that Lightning's Trainer puts beside the weights, NumPy's numbers included."""
    rate = np.float64(5e-5)
    content = {
        "epoch": 3,
        "global_step": 150000,
        "pytorch-lightning_version": "2.0.0",
        "state_dict": state_dict,
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 4}}}},
        "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), "kth_value": np.float32(2)}},
        "optimizer_states": [{"state": {}, "param_groups": [{"lr": rate, "betas": (0.9, np.float64(0.95))}]}],
        "lr_schedulers": [{"base_lrs": [rate], "last_epoch": np.int64(7), "_last_lr": [rate], "on": np.bool_(True)}],
    }
    torch.save(content | more, path)
    return path


@pytest.mark.parametrize("protocol", ["numpy._core", "numpy.core"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_lightning_files_of_the_published_trainer_load(tmp_path, weights, dtype, protocol):
    path = lightning_file(tmp_path / "last.ckpt", {name: value.to(dtype) for name, value in weights.items()})
    if protocol == "numpy.core":  # what NumPy 1 wrote; the same length, for the archive's sizes to stay right
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "old.ckpt", "w") as new:
            for name in old.namelist():
                new.writestr(name, old.read(name).replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
        path = tmp_path / "old.ckpt"
        assert b"numpy.core.multiarray" in path.read_bytes() and b"numpy._core" not in path.read_bytes()
    vae = SSVAE.from_pretrained(path)
    for name, value in vae.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, weights[name].to(dtype).float())


def of_part(weights, *parts):
    return [name for name in weights if name.startswith(parts)]


@pytest.mark.parametrize(
    ("covered", "said"),
    [
        (("encoder", "decoder", "mask_token"), "moving average of decoder, encoder, mask_token"),
        (("decoder", "mask_token"), "moving average of decoder, mask_token"),  # the encoder was frozen
    ],
)
def test_the_moving_average_is_taken_where_it_is_complete(tmp_path, weights, caplog, covered, said):
    names = of_part(weights, *covered)
    path = lightning_file(tmp_path / "last.ckpt", weights | ema_of(weights, names))
    with caplog.at_level("INFO"):
        vae = SSVAE.from_pretrained(path)
    for name, value in vae.state_dict().items():
        assert torch.equal(value, weights[name] + 1 if name in names else weights[name])
    assert said in caplog.text


@pytest.mark.parametrize("fault", ["one is missing", "another shape", "never updated", "of the losses alone"])
def test_a_moving_average_that_is_not_complete_is_left_alone(tmp_path, weights, caplog, fault):
    names = list(weights)
    ema = ema_of(weights, names[1:] if fault == "one is missing" else names)
    if fault == "another shape":
        ema[f"model_ema.{names[0].replace('.', '')}"] = torch.zeros(1)
    if fault == "never updated":
        ema["model_ema.num_updates"] = torch.tensor(0)
    if fault == "of the losses alone":
        ema = {"model_ema.lossdiscriminatorweight": torch.zeros(2), "model_ema.num_updates": torch.tensor(5)}
    with caplog.at_level("INFO"):
        vae = SSVAE.from_pretrained(lightning_file(tmp_path / "last.ckpt", weights | ema))
    for name, value in vae.state_dict().items():
        assert torch.equal(value, weights[name])
    assert "the weights themselves are taken" in caplog.text


class Executed:
    """Pickles as a call that would leave a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_another_pickled_class_is_named_and_nothing_is_executed(tmp_path, weights):
    for name, thing in {
        "pathlib.Path.touch": Executed(tmp_path / "trace"),
        "fractions.Fraction": Fraction(1, 3),
    }.items():
        path = lightning_file(tmp_path / "file.ckpt", weights, hyper_parameters={"thing": thing})
        with pytest.raises(UserError) as caught:
            SSVAE.from_pretrained(path)
        text = str(caught.value)
        assert text.startswith(str(path)) and "\n" not in text and "weights_only=False" in text
        if name == "fractions.Fraction":
            assert name in text
            command = re.search(r'python -c "(.*)"', text)[1]
            subprocess.run([sys.executable, "-c", command], check=True, cwd=tmp_path)
            assert SSVAE.from_pretrained(tmp_path / "weights.ckpt").config.latent_channels == 8
    assert not (tmp_path / "trace").exists()


def published_sizes():
    """Weights with the published shapes that take no space: every tensor is one number."""
    with torch.device("meta"):
        shapes = SSVAE().state_dict()
    return {name: torch.zeros(1).expand(value.shape) for name, value in shapes.items()}


def test_a_published_file_brings_the_published_statistics(tmp_path, weights, caplog):
    expected = json.loads((Path(vae_room.__file__).parent / "published_latent_stats.json").read_text())
    state = published_sizes()
    files = {
        "ch48_256p_15w_512p_5w.ckpt": {"state_dict": state},
        "renamed.ckpt": {"state_dict": state | {"loss.logvar": torch.zeros(1)}},
    }
    for name, content in files.items():
        torch.save(content, tmp_path / name)
        with caplog.at_level("WARNING"):
            statistics = read_checkpoint(tmp_path / name).statistics
        assert statistics.mean.tolist() == expected["mean"] and statistics.std.tolist() == expected["std"]
        assert "taken for the published network" in caplog.text and "sat-ssvae stats" in caplog.text
        caplog.clear()


def test_other_weights_do_not_get_the_published_statistics(tmp_path, weights):
    torch.save(published_sizes(), tmp_path / "latest.pth")  # ours: nothing but weights
    torch.save({"state_dict": weights | {"loss.logvar": torch.zeros(1)}}, tmp_path / "ch48_256p_15w_512p_5w.ckpt")
    for name in ("latest.pth", "ch48_256p_15w_512p_5w.ckpt"):
        assert read_checkpoint(tmp_path / name).statistics is None


def test_the_published_statistics_are_those_that_were_published():
    stats = published_stats(48)
    assert (len(stats.mean), len(stats.std)) == (48, 48)
    assert stats.mean[:3].tolist() == [-0.1962890625, 0.52734375, -1.3984375] and stats.std.min() > 0
    with pytest.raises(UserError, match="48 channels, but the autoencoder has 16"):
        published_stats(16)


def test_round_trip_of_a_folder(tmp_path, weights):
    vae = SSVAE.from_pretrained(REFERENCE / "case_a.weights.safetensors")
    vae.latent_stats = LatentStats(torch.arange(8.0), torch.full((8,), 2.0))
    vae.save_pretrained(tmp_path / "vae")
    again = SSVAE.from_pretrained(tmp_path / "vae")
    assert again.config == vae.config
    x = torch.randn(1, 3, 5, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(vae.encode(x).mean, again.encode(x).mean)
    assert torch.equal(again.latent_stats.mean, torch.arange(8.0)) and again.latent_stats.std.eq(2).all()

    again.latent_stats = None  # the folder must not keep the statistics of what it held before
    again.save_pretrained(tmp_path / "vae")
    assert SSVAE.from_pretrained(tmp_path / "vae").latent_stats is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not readable as"),
        ('{"mean": [1.0]}', "not readable as"),
        ('{"mean": [1.0], "std": [1.0]}', "statistics of 1 channels, but the autoencoder has 8"),
        ('{"mean": [0, 0], "std": [1]}', "one number per channel"),
        ('{"mean": [0], "std": [-1]}', "no std negative"),
    ],
)
def test_wrong_statistics_are_one_line(tmp_path, content, message):
    SSVAE.from_pretrained(REFERENCE / "case_a.weights.safetensors").save_pretrained(tmp_path)
    (tmp_path / "latent_stats.json").write_text(content)
    with pytest.raises(UserError, match="latent_stats.json.*" + message):
        SSVAE.from_pretrained(tmp_path)


def truncated(path, weights):
    torch.save({"state_dict": weights}, path)
    path.write_bytes(path.read_bytes()[:5000])


def foreign(path, _weights):
    torch.save({"state_dict": {"model.layer.weight": torch.zeros(2)}}, path)


def missing_one(path, weights):
    torch.save({k: v for k, v in weights.items() if k != "decoder.conv_in.conv.bias"}, path)


def wrong_shape(path, weights):
    torch.save(weights | {"encoder.conv_in.conv.bias": torch.zeros(7)}, path)


def pickled_code(path, _weights):
    torch.save({"state_dict": Path("x")}, path)


def no_tensors(path, _weights):
    torch.save({"state_dict": {"a": 1}}, path)


def cut_safetensors(path, weights):
    save_file(weights, path.with_suffix(".safetensors"))
    path.with_suffix(".safetensors").rename(path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (truncated, "damaged or not a checkpoint"),
        (foreign, "it has no tensor 'encoder.conv_in.conv.weight'; its first tensors are model.layer.weight"),
        (missing_one, "decoder.conv_in.conv.bias is missing"),
        (wrong_shape, "encoder.conv_in.conv.bias has shape (7,) instead of (2,)"),
        (lambda path, _: path.write_text("just a text"), "damaged or not a checkpoint"),
        (lambda path, _: path.write_text("<html>404"), "not a torch file; it begins with b'<html>404'"),
        (pickled_code, "holds an object of the class pathlib"),
        (no_tensors, "expected a dictionary of tensors"),
        (cut_safetensors, "damaged or not a checkpoint"),
    ],
)
def test_other_files_get_one_line_that_names_them(tmp_path, weights, write, message):
    path = tmp_path / "file.pth"
    write(path, weights)
    with pytest.raises(UserError) as caught:
        SSVAE.from_pretrained(path)
    text = str(caught.value)
    assert text.startswith(str(path)) and message in text and "\n" not in text


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="no such checkpoint"):
        SSVAE.from_pretrained(tmp_path / "nothing.pth")
    with pytest.raises(UserError, match="no such checkpoint"):
        SSVAE.from_pretrained(tmp_path)


def test_saving_does_not_leave_half_a_file(tmp_path, monkeypatch):
    small = SSVAE(SSVAEConfig(base_channels=2, latent_channels=2))
    small.save_pretrained(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()

    def fail(*_arguments, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(UserError, match="make room"):
        small.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_runs_folder_is_its_finished_autoencoder_or_its_latest_weights(tmp_path, weights, caplog):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"max_steps": 9}')  # the training's, not the network's
    with pytest.raises(UserError, match=r"run/model\.safetensors: no such checkpoint"):
        SSVAE.from_pretrained(run)
    torch.save(weights, run / "latest.pth")
    with caplog.at_level("INFO"):
        early = SSVAE.from_pretrained(run)
    assert "not finished, so its latest weights are taken" in caplog.text
    assert all(torch.equal(value, weights[name]) for name, value in early.state_dict().items())
    for parameter in early.parameters():
        parameter.data += 1
    early.save_pretrained(run / "vae")
    assert all(torch.equal(value, weights[name] + 1) for name, value in SSVAE.from_pretrained(run).state_dict().items())
