import pytest

from sat_ssvae.comparison.run_index import INDEX_NAME, RunIndex, TrainedTransformer
from sat_ssvae.comparison.settings import ClipsConfig
from sat_ssvae.diffusion.process import FlowMatching
from sat_ssvae.errors import UserError


def trained(arm, seed):
    return TrainedTransformer(
        arm=arm,
        seed=seed,
        folder=f"transformer/{arm}-seed{seed}",
        autoencoder=f"vae/{arm}",
        weights="0",
        diffusion=FlowMatching(shift=2.0),
        latent_mean=(0.1, 1 / 3),
        latent_std=(1.0, 2.0),
    )


@pytest.fixture
def index():
    transformers = (trained("stock", 0), trained("stock", 1), trained("ssvae", 4))
    return RunIndex(clips=ClipsConfig(), text_length=32, transformers=transformers)


def test_what_is_written_is_read(index, tmp_path):
    index.write(tmp_path)
    assert RunIndex.read(tmp_path) == index


def test_finding(index):
    assert index.find("stock").seed == 0 and index.find("stock", 1).seed == 1 and index.find("ssvae").seed == 4
    with pytest.raises(UserError, match="no arm `ssave` with a finished transformer; there are: stock, ssvae"):
        index.find("ssave")
    with pytest.raises(UserError, match="arm stock: no finished transformer of seed 7; there are: 0, 1"):
        index.find("stock", 7)


def test_folders_without_one(tmp_path):
    with pytest.raises(UserError, match=r"gone: no such folder; give the --output of a `sat-ssvae compare`"):
        RunIndex.read(tmp_path / "gone")
    with pytest.raises(UserError, match=r"no finished transformer there; give the --output"):
        RunIndex.read(tmp_path)
    (tmp_path / INDEX_NAME).write_text("{")
    with pytest.raises(UserError, match=r"not readable .*; run the comparison again"):
        RunIndex.read(tmp_path)
    (tmp_path / INDEX_NAME).write_text('{"clips": {}}')
    with pytest.raises(UserError, match=r"`text_length` is required"):
        RunIndex.read(tmp_path)
