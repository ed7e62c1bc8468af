import json
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_ssvae.autoencoders.classes import as_autoencoder
from sat_ssvae.cli import main
from sat_ssvae.config import parse_config
from sat_ssvae.errors import UserError
from sat_ssvae.evaluation.spectra import (
    SpectraConfig,
    add_noise,
    drop_channels,
    load_clips,
    measure_latents,
    measure_pixels,
)
from sat_ssvae.evaluation.spectra_page import SpectraResults, numbers_table, write_spectra
from sat_ssvae.metrics.fidelity import psnr
from sat_ssvae.spectral.spectrum import dct_amplitude
from sat_ssvae.vae.statistics import LatentStats

from . import foreign_models
from .parsed_page import Parsed
from .small_models import random_video, tiny_vae

CPU = torch.device("cpu")


def config(folder="nowhere", **values):
    data = {"path": str(folder), "num_frames": 5, "fps": 8, "resolution": 32, "num_workers": 0}
    return parse_config(SpectraConfig, {"data": data, "disturbed_clips": 3} | values)


def clips(count=6):
    return torch.cat([0.3 * random_video(5, 32, 32, seed=seed) for seed in range(count)])


@given(st.integers(1, 12), st.floats(0, 1))
def test_the_share_of_channels_that_is_dropped(channels, share):
    z, stats = torch.full((3, channels, 1, 2, 2), 5.0), LatentStats(torch.zeros(channels), torch.ones(channels))
    left = drop_channels(z, stats, share, torch.Generator().manual_seed(0))
    dropped = (left == 0).flatten(2).all(2)
    assert (dropped.sum(1) == round(share * channels)).all() and ((left == 5) | (left == 0)).all()


def test_noise_is_scaled_by_each_channels_deviation():
    stats = LatentStats(torch.zeros(2), torch.tensor([1.0, 10.0]))
    noise = add_noise(torch.zeros(1, 2, 20, 30, 30), stats, 0.5, torch.Generator().manual_seed(0))
    assert noise.std((0, 2, 3, 4)).tolist() == pytest.approx([0.5, 5.0], rel=0.05)
    assert torch.equal(add_noise(noise, stats, 0.0, torch.Generator()), noise)


def test_tiles_come_close_to_whole_frames():
    videos, vae = clips(2), tiny_vae()
    whole, tiled = (measure_latents("x", vae, videos, config(tile_size=tile), CPU) for tile in (None, 24))
    assert tiled != whole
    assert tiled.explained_variance == pytest.approx(whole.explained_variance, abs=0.05)
    assert tiled.psnr_by_noise[0.0] == pytest.approx(whole.psnr_by_noise[0.0], abs=1.5)


@torch.no_grad()
def test_measures_of_ssvae_and_of_an_image_autoencoder():
    vae, videos = tiny_vae(), clips()
    measured = measure_latents("ssvae", vae, videos, config(), CPU)
    latents = vae.encode(videos).mode()
    assert measured.latent_shape == (4, 3, 8, 8)
    assert measured.dct_amplitude == pytest.approx(dct_amplitude(latents).tolist())
    assert len(measured.explained_variance) == 4 and measured.explained_variance[-1] == pytest.approx(1)
    assert 0 < measured.gaussian_floor <= torch.pi / 2 + 1e-6
    chosen = videos[[0, 2, 5]]
    plain = float(psnr(vae.decode(vae.encode(chosen).mode()), chosen).mean())
    assert measured.psnr_by_noise[0.0] == pytest.approx(plain, rel=1e-4)
    assert measured.psnr_by_dropped[0.0] == pytest.approx(plain, rel=1e-4)
    image_vae = as_autoencoder(foreign_models.modelscope())
    frame_by_frame = measure_latents("sd", image_vae, videos[:, :, :1], config(), CPU)
    assert frame_by_frame.latent_shape == (4, 1, 4, 4) and -1 <= frame_by_frame.local_correlation <= 1
    assert measure_latents("ssvae", vae, videos, config(), CPU) == measured


def test_the_page_holds_every_number_and_curve(tmp_path):
    arms = tuple(measure_latents(name, tiny_vae(), clips(), config(), CPU) for name in ("plain", "R&D <b>"))
    pixels = measure_pixels(clips(), config())
    results = SpectraResults(arms, *pixels, {"clips": "six"}, "sat-ssvae spectrum --vae a=b", "sat-ssvae compare")
    page = Parsed(write_spectra(results, tmp_path).read_text())
    for row in numbers_table(results):
        assert all(cell in page.text for cell in row)
    assert results.meaning in page.text and "sat-ssvae compare" in page.text
    space, time, modes, noise, dropped = [json.loads(text) for text in page.data if text.startswith("{")]
    assert [one["name"] for one in space["lines"]] == ["plain", "R&D <b>", "the videos' pixels"]
    assert space["lines"][0]["x"] == pytest.approx(arms[0].spatial.frequency, rel=1e-4)
    assert space["lines"][2]["y"] == pytest.approx(pixels[0].amplitude, rel=1e-4) and space["log_x"] and space["log_y"]
    assert time["lines"][1]["y"] == pytest.approx(arms[1].temporal.amplitude, rel=1e-4)
    assert modes["lines"][0]["y"] == pytest.approx(arms[0].explained_variance, rel=1e-4)
    assert noise["lines"][0]["y"] == pytest.approx(list(arms[0].psnr_by_noise.values()), rel=1e-4)
    assert len(dropped["lines"]) == 2
    kept = json.loads((tmp_path / "spectrum.json").read_text())
    assert kept["arms"][0]["latent_shape"] == [4, 3, 8, 8] and kept["meaning"] == results.meaning
    assert kept["arms"][0]["dct_amplitude"] == list(arms[0].dct_amplitude)
    assert {path.name for path in tmp_path.iterdir()} == {"spectrum.json", "spectrum.html"}


def test_the_command(tiny_videos, tmp_path, capsys):
    tiny_vae().save_pretrained(tmp_path / "vae")
    settings = ["data.num_frames=5", "data.resolution=32", "data.num_workers=0", "max_clips=4", "disturbed_clips=2"]
    vaes = ["--vae", f"one={tmp_path / 'vae'}", "--vae", f"two={tmp_path / 'vae'}"]
    places = ["--data", str(tiny_videos), "--output", str(tmp_path / "out")]
    assert main(["spectrum", *vaes, *places, *settings]) == 0
    output = capsys.readouterr().out
    assert re.search(r"one +4×3×8×8", output) and "spectrum.html" in output
    assert "These numbers name no favourite" in output  # it is one autoencoder twice
    page = (tmp_path / "out" / "spectrum.html").read_text()
    assert f"sat-ssvae compare {' '.join(vaes)} --data {tiny_videos}" in page
    for names, message in (
        ([*vaes, *vaes[:2]], "expected NAME=VAE with a name of its own"),
        (["--vae", f"the videos' pixels={tmp_path / 'vae'}"], "expected NAME=VAE with a name of its own"),
    ):
        with pytest.raises(SystemExit):
            main(["spectrum", *names, *places, *settings])
        assert message in capsys.readouterr().err


def test_too_few_clips(tiny_videos, tmp_path):
    (tmp_path / "bars0.mp4").write_bytes((tiny_videos / "bars0.mp4").read_bytes())
    with pytest.raises(UserError, match="1 clip; spectra need at least 2"):
        load_clips(config(tmp_path, stride=100))
