"""Shards written by hand, and the small configuration that reads them."""

import io
import json
import tarfile

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
