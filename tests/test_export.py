"""SAT's transformers as pipelines of diffusers: their outputs are those that the real SAT code computed."""

import json

import diffusers
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file

import sat_ssvae.diffusers  # noqa: F401 - diffusers finds the autoencoder's class there
from sat_ssvae.cogvideo.export import build_scheduler, build_transformer
from sat_ssvae.cogvideo.sat_config import SATConfig, merge_configs
from sat_ssvae.cogvideo.sat_transformer import write_transformer

from .test_cogvideo_compatibility import OVERLAYS
from .test_project import ROOT
from .tiny_transformers import GRID, drawn, inputs, layer, stock_layer
from .tiny_transformers import OVERLAYS as OURS

RECORDED = ROOT / "tests" / "data" / "sat_transformers"
SPACE = 16


def recorded(stock):
    """What SAT computed, and the transformer's tensors by their names in SAT's checkpoint."""
    path = RECORDED / f"{stock}.safetensors"
    with safe_open(path, "pt") as file:
        names = json.loads(file.metadata()["names"])
    tables = ("freqs_sin", "freqs_cos") if "i2v" in stock else ("freqs_sin", "freqs_cos", "pos_embedding")
    weights = {name: drawn(name, shape) for name, shape in names.items() if not name.endswith(tables)}
    return load_file(path), weights


@pytest.fixture
def training(narrow_vae, tmp_path):
    """The folder that a training left: the merged configuration, and a checkpoint with drawn weights."""

    def build(stock, more=None):
        vae = {"model": {"first_stage_config": {"params": {"ckpt_path": str(narrow_vae)}}}}
        files = [tmp_path / f"{number}.yaml" for number in range(3)]
        for file, values in zip(files, (stock_layer(stock), layer(stock), vae), strict=True):
            file.write_text(yaml.safe_dump(values))
        files[1:1] = [OVERLAYS / f"{overlay}.yaml" for overlay in OURS[stock]]
        _, weights = recorded(stock)
        folder = tmp_path / "run"
        write_transformer(weights | (more or {}), folder)
        values = merge_configs(files)
        (folder / "training_config.yaml").write_text(yaml.safe_dump(values))
        return folder, SATConfig(values), weights

    return build


def predict(transformer, config):
    """What a pipeline of diffusers asks of its transformer."""
    x, steps, text = inputs(config.required_network("in_channels"))
    rotary = None
    if transformer.config.use_rotary_positional_embeddings:
        pipeline = diffusers.CogVideoXPipeline(None, None, None, transformer, None)
        pipeline.vae_scale_factor_spatial = SPACE
        height, width = (SPACE * size for size in GRID)
        rotary = pipeline._prepare_rotary_positional_embeddings(height, width, x.shape[1], torch.device("cpu"))
    return transformer(x, text, steps, image_rotary_emb=rotary, return_dict=False)[0]


@torch.no_grad()
@pytest.mark.parametrize("stock", OURS)
def test_outputs_are_those_of_sat(training, stock):
    _, config, weights = training(stock)
    computed, _ = recorded(stock)
    output = predict(build_transformer(config, weights, SPACE), config)
    assert output.shape == computed["output"].shape
    assert computed["output"].std() > 0.1
    torch.testing.assert_close(output, computed["output"], rtol=2e-5, atol=2e-5 * float(computed["output"].abs().max()))


@pytest.mark.parametrize("stock", OURS)
def test_the_noise_schedule_is_sats(training, stock):
    _, config, _ = training(stock)
    signal = build_scheduler(config).alphas_cumprod.sqrt().float()
    torch.testing.assert_close(signal, recorded(stock)[0]["signal"], rtol=1e-4, atol=1e-5)
