"""Reading published and own checkpoints, and what is said about files that are neither."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sat_ssvae import SSVAE, SSVAEConfig, UserError
from sat_ssvae.vae.checkpoint import infer_config
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
    path = tmp_path / "published.pth"
    torch.save({"state_dict": weights | {"loss.discriminator.weight": torch.zeros(3)}, "epoch": 3}, path)
    with caplog.at_level("INFO"):
        vae = SSVAE.from_pretrained(path)
    assert "left out 1 tensors that only training uses" in caplog.text
    for name, value in vae.state_dict().items():
        assert torch.equal(value, weights[name])


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
        (lambda path, _: path.write_text("quite another"), "damaged or not a checkpoint"),
        (pickled_code, "damaged or not a checkpoint"),
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

    monkeypatch.setattr("sat_ssvae.vae.checkpoint.save_file", fail)
    with pytest.raises(UserError, match="make room"):
        small.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == before
