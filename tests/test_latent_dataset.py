"""Encoded latents of several sizes, in batches as SAT makes them of a data set."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader

from sat_ssvae import UserError
from sat_ssvae.data.shards import DataConfig
from sat_ssvae.latents.dataset import LatentDataset
from sat_ssvae.latents.shards import EncodeConfig, encode_shards
from sat_ssvae.vae.statistics import LatentStats

from .small_models import tiny_vae

CPU = torch.device("cpu")
SIZES = ((16, 24), (24, 16))


def encode(source, output, **changes):
    vae = tiny_vae()
    vae.latent_stats = LatentStats(torch.zeros(4), torch.ones(4))
    data = DataConfig(path=str(source), num_frames=5, num_workers=0, **changes)
    return encode_shards(vae, EncodeConfig(data=data, clips_per_shard=4), output, CPU)


@pytest.fixture(scope="module")
def two_sizes(tiny_shards, tmp_path_factory):
    """Folders wide and high."""
    home = tmp_path_factory.mktemp("latents")
    for name, size in zip(("wide", "high"), SIZES, strict=True):
        encode(tiny_shards, home / name, resolution=size)
    return home


class Mapped(torch.utils.data.Dataset):
    """Items in a random order, as SAT's RandomMappingDataset asks for them."""

    def __init__(self, dataset, length=96):
        self.dataset = dataset
        self.order = torch.randint(len(dataset), (length,), generator=torch.Generator().manual_seed(0)).tolist()

    def __len__(self):
        return len(self.order)

    def __getitem__(self, index):
        return self.dataset[self.order[index]]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_batch_has_one_size_and_all_sizes_come(two_sizes, workers):
    args = SimpleNamespace(batch_size=4, eval_batch_size=None, train_data=None)
    dataset = LatentDataset.create_dataset_function(f"{two_sizes}/{{wide,high}}", args)
    assert len(dataset) == sum(len(LatentDataset(two_sizes / name)) for name in ("wide", "high"))
    shapes = [tuple(batch["mp4"].shape) for batch in DataLoader(Mapped(dataset), batch_size=4, num_workers=workers)]
    assert set(shapes) == {(4, 4, 3, 4, 6), (4, 4, 3, 6, 4)}
    assert 6 < shapes.count(shapes[0]) < 18  # of 24, both sizes have as many clips


def test_without_batches_every_item_is_its_own(two_sizes):
    dataset = LatentDataset(f"{two_sizes}/{{wide,high}}")
    wide, high = (LatentDataset(two_sizes / name) for name in ("wide", "high"))
    assert all(torch.equal(item["mp4"], own["mp4"]) for item, own in zip(dataset, [*wide, *high], strict=True))


def test_evaluation_in_batches_of_another_size(two_sizes):
    args = SimpleNamespace(batch_size=4, eval_batch_size=6)
    dataset = LatentDataset.create_dataset_function(f"{two_sizes}/{{wide,high}}", args)
    for size in (4, 6):
        shapes = {batch["mp4"].shape for batch in DataLoader(Mapped(dataset), batch_size=size)}
        assert len(shapes) == 2


def test_buckets_of_the_data_make_one_folder(tiny_shards, tmp_path):
    done = encode(tiny_shards, tmp_path, buckets=((32, 40), (32, 32)))
    dataset = LatentDataset(tmp_path, batch_size=2)
    assert len(dataset) == done.clips and set(dataset.infos[0].shapes) <= {(4, 3, 8, 10), (4, 3, 8, 8)}
    for batch in DataLoader(dataset, batch_size=2):
        assert tuple(batch["mp4"].shape[1:]) in dataset.infos[0].shapes


def test_several_sizes_at_several_paths_are_refused_for_batches(two_sizes):
    paths = [str(two_sizes / "wide"), str(two_sizes / "high")]
    args = SimpleNamespace(batch_size=2, eval_batch_size=None, train_data=paths, valid_data=None)
    with pytest.raises(UserError, match=r"batches of 2 cannot mix; give the folders as one, \[\"\{.*wide,.*high\}\"\]"):
        LatentDataset.create_dataset_function(paths[0], args)
    args.batch_size = 1
    assert len(LatentDataset.create_dataset_function(paths[0], args))
