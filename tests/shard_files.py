"""Shards written by hand, the small configuration that reads them, and what is in those that `pack` wrote."""

import io
import json
import tarfile

from webdataset.tariterators import group_by_keys, tar_file_expander

from sat_ssvae.data.shards import DataConfig


def small(path, **changes):
    values = {"num_frames": 5, "fps": 8, "resolution": 32, "num_workers": 0, **changes}
    return DataConfig(path=str(path), **values)


def write_tar(path, members, meta=None):
    """A shard from (name, bytes) pairs and meta records (or raw lines)."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    if meta is not None:
        lines = [line if isinstance(line, str) else json.dumps(line) for line in meta]
        path.with_name(f"{path.stem}.meta.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return path


def meta(key, **changes):
    return {"key": key, "duration": 1.5, "fps": 24, "width": 80, "height": 64, **changes}


def samples_in(folder):
    """What WebDataset's own reader finds."""
    samples = []
    for path in sorted(folder.glob("*.tar")):
        with path.open("rb") as stream:
            files = tar_file_expander([{"url": str(path), "stream": stream}])
            samples += group_by_keys(files)
    return samples


def records_in(folder):
    lines = [line for path in sorted(folder.glob("*.meta.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def skips_in(folder):
    return [json.loads(line) for line in (folder / "skipped.jsonl").read_text().splitlines()]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "pack.json"}
