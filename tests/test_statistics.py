"""Statistics of latents: exact whatever the batches, stored beside the weights by `sat-ssvae stats`."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sat_ssvae import SSVAE, UserError
from sat_ssvae.cli import main
from sat_ssvae.data.shards import DataConfig, fixed_clips
from sat_ssvae.latents.statistics import StatsConfig, measure_stats
from sat_ssvae.vae.statistics import LatentStats, StatsMeter

from .small_models import tiny_vae


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.floats(-1e4, 1e4), st.floats(1e-3, 1e3))
def test_batches_give_the_statistics_of_all(sizes, offset, scale):
    generator = torch.Generator().manual_seed(sum(sizes))
    latents = offset + scale * torch.randn(sum(sizes), 3, 2, 3, 4, generator=generator)
    meter = StatsMeter(3)
    for batch in latents.split(sizes):
        meter.add(batch)
    stats = meter.result()
    exact = latents.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(stats.mean, exact.mean(1).float(), rtol=1e-6, atol=1e-6 * scale)
    torch.testing.assert_close(stats.std, exact.std(1, correction=0).float(), rtol=1e-5, atol=0)


def test_standardised_latents_keep_dtype_and_shape_errors_are_one_line():
    stats = LatentStats(torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5]))
    z = torch.ones(1, 2, 1, 1, 1, dtype=torch.bfloat16)
    assert stats.standardize(z).dtype == torch.bfloat16
    assert stats.standardize(z).flatten().tolist() == [0.0, 6.0]
    with pytest.raises(UserError, match="b c t h w with 2 channels, found"):
        stats.standardize(torch.ones(1, 3, 1, 1, 1))


def test_nothing_and_nan_are_refused():
    with pytest.raises(UserError, match="no clips"):
        StatsMeter(2).result()
    with pytest.raises(UserError, match="not finite"):
        StatsMeter(1).add(torch.full((1, 1, 1, 1, 1), torch.nan))


def test_the_command_measures_and_stores(tmp_path, tiny_shards, capsys):
    tiny_vae().save_pretrained(tmp_path / "vae")
    settings = ["data.resolution=32", "data.num_frames=5", "data.num_workers=0"]
    arguments = ["stats", str(tmp_path / "vae"), "--data", str(tiny_shards), "stride=0.5", "batch_size=3"]
    assert main([*arguments, *settings]) == 0
    assert "in 4 channels" in capsys.readouterr().out
    vae = SSVAE.from_pretrained(tmp_path / "vae")
    clips = fixed_clips(DataConfig(path=str(tiny_shards), resolution=32, num_frames=5, num_workers=0), stride=0.5)
    with torch.no_grad():
        latents = torch.cat([vae.encode(clip.video[None]).mean for clip in clips])
    expected = LatentStats.measure(latents)
    torch.testing.assert_close(vae.latent_stats.mean, expected.mean, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(vae.latent_stats.std, expected.std, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_large_frames_are_measured_in_tiles_and_long_clips_in_chunks(tiny_shards, tmp_path):
    vae = tiny_vae()
    data = DataConfig(path=str(tiny_shards), resolution=32, num_frames=5, num_workers=0)
    whole = measure_stats(vae, StatsConfig(data=data, stride=0.5), torch.device("cpu"), tmp_path)
    chunks = measure_stats(vae, StatsConfig(data=data, stride=0.5, chunk_frames=2), torch.device("cpu"), tmp_path)
    torch.testing.assert_close(chunks.mean, whole.mean, atol=1e-5, rtol=1e-4)
    tiles = measure_stats(vae, StatsConfig(data=data, stride=0.5, tile_size=16), torch.device("cpu"), tmp_path)
    clips = fixed_clips(data, stride=0.5)
    expected = LatentStats.measure(torch.cat([vae.encode(clip.video[None], tile_size=16).mean for clip in clips]))
    torch.testing.assert_close(tiles.mean, expected.mean, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(tiles.mean, whole.mean, atol=1e-4)


def test_parts_give_the_same_bits(tiny_shards, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sat_ssvae.latents.statistics.CLIPS_IN_PIECE", 4)
    for name in ("whole", "parts"):
        tiny_vae().save_pretrained(tmp_path / name)
    settings = ["data.resolution=32", "data.num_frames=5", "data.num_workers=0", "stride=0.25"]

    def measure(name, *more):
        return main(["stats", str(tmp_path / name), "--data", str(tiny_shards), *settings, *more])

    assert measure("whole") == 0
    for part in ("2/2", "1/2"):
        with pytest.raises(SystemExit):
            measure("parts", "--merge")
        assert measure("parts", f"part={part}") == 0
        assert f"part {part} is done; after all parts: the same with --merge" in capsys.readouterr().out
    assert measure("parts", "--merge") == 0
    written = [(tmp_path / name / "latent_stats.json").read_bytes() for name in ("whole", "parts")]
    assert written[0] == written[1]


def test_statistics_of_a_file_have_no_place(tmp_path, capsys):
    (tmp_path / "weights.pth").touch()
    with pytest.raises(SystemExit):
        main(["stats", str(tmp_path / "weights.pth"), "--data", "x"])
    assert f"sat-ssvae convert {tmp_path / 'weights.pth'} FOLDER" in capsys.readouterr().err


def test_statistics_of_a_run_lie_beside_its_weights(tmp_path, tiny_shards, capsys):
    run = tmp_path / "run"
    run.mkdir()
    torch.save(tiny_vae().state_dict(), run / "latest.pth")
    command = ["stats", str(run), "--data", str(tiny_shards), "data.resolution=32", "data.num_frames=5"]
    with pytest.raises(SystemExit):  # not finished
        main(command)
    assert f"first: sat-ssvae convert {run / 'latest.pth'} FOLDER" in capsys.readouterr().err
    tiny_vae().save_pretrained(run / "vae")
    assert main([*command, "stride=1", "data.num_workers=0"]) == 0
    assert SSVAE.from_pretrained(run).latent_stats is not None
    assert not (run / "latent_stats.json").exists()


@pytest.mark.parametrize("flag", ["--latent-stats", "--latent_stats"])
def test_the_published_statistics_are_converted_by_name(tmp_path, narrow_vae, capsys, flag):
    assert main(["convert", str(narrow_vae), str(tmp_path / "vae"), flag, "published"]) == 0
    stats = SSVAE.from_pretrained(tmp_path / "vae").latent_stats
    assert stats.mean[0].item() == -0.1962890625 and len(stats.std) == 48
    tiny_vae().save_pretrained(tmp_path / "tiny")
    with pytest.raises(SystemExit):
        main(["convert", str(tmp_path / "tiny"), str(tmp_path / "other"), flag, "published"])
    assert "statistics of 48 channels, but the autoencoder has 4" in capsys.readouterr().err


def test_converting_there_and_back(tmp_path, capsys):
    vae = tiny_vae()
    vae.save_pretrained(tmp_path / "a")
    json_path = tmp_path / "stats.json"
    json_path.write_text(json.dumps({"mean": [0, 1, 2, 3], "std": [1, 1, 2, 2]}))
    for source, target in [("a", "b.pth"), ("b.pth", "c.safetensors"), ("c.safetensors", "d")]:
        assert main(["convert", str(tmp_path / source), str(tmp_path / target)]) == 0
    assert main(["convert", str(tmp_path / "d"), str(tmp_path / "e"), "--latent_stats", str(json_path)]) == 0
    again = SSVAE.from_pretrained(tmp_path / "e")
    assert again.latent_stats.std.tolist() == [1, 1, 2, 2]
    for name, value in vae.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)
    assert set(torch.load(tmp_path / "b.pth", weights_only=True)) == {"state_dict"}

    # A file of weights has no place for statistics: they lie beside it, and find back.
    assert main(["convert", str(tmp_path / "e"), str(tmp_path / "f.pth")]) == 0
    beside = str(tmp_path / "f.latent_stats.json")
    assert beside in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "f.pth"), str(tmp_path / "g"), "--latent_stats", beside]) == 0
    assert torch.equal(SSVAE.from_pretrained(tmp_path / "g").latent_stats.mean, again.latent_stats.mean)

    for arguments, message in [
        (["e", "f.onnx"], "name a folder, a .safetensors or a .ckpt"),
        (["missing", "h"], "no such checkpoint"),
        (["a", "d"], "exists; give --overwrite to replace it"),
    ]:
        capsys.readouterr()
        with pytest.raises(SystemExit):
            main(["convert", str(tmp_path / arguments[0]), str(tmp_path / arguments[1])])
        assert message in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "a"), str(tmp_path / "d"), "--overwrite"]) == 0
