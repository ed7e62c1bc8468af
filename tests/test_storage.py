import os
import stat
import subprocess
import sys
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sat_ssvae.data.pack import PackConfig, pack
from sat_ssvae.data.shards import Clip
from sat_ssvae.data.video_io import write_video
from sat_ssvae.data.video_write import VideoWriter
from sat_ssvae.engine.checkpoints import save_weights
from sat_ssvae.engine.log import MetricsLog
from sat_ssvae.latents.encoding import EncoderSettings
from sat_ssvae.latents.latent_set import encode_latents
from sat_ssvae.storage import atomic, digest_of, remove_partials, save_tensors, write_text
from sat_ssvae.vae import checkpoint

from .processes import unmeasured
from .small_models import random_video, tiny_vae

KILLED = """
import os, sys
from pathlib import Path
from sat_ssvae.engine.checkpoints import save_weights
from sat_ssvae.engine.log import MetricsLog
from sat_ssvae.latents.encoding import EncoderSettings
from sat_ssvae.latents.latent_set import encode_latents
from sat_ssvae.storage import atomic
with atomic(Path(sys.argv[1])) as partial:
    partial.write_text("half")
    os._exit(9)
"""
NAMES = st.text("abc.é 漢[*?]", min_size=1, max_size=80).filter(lambda name: name.strip("."))


@pytest.fixture(params=[0o022, 0o027, 0o002, 0o077], ids="{:03o}".format)
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder):
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()}


def write_bytes(path, data, **options):
    with atomic(path, **options) as partial:
        partial.write_bytes(data)


@given(data=st.binary(max_size=2000), name=NAMES)
@settings(max_examples=30, deadline=None)
def test_what_was_written_is_there_and_nothing_else(tmp_path_factory, data, name):
    folder = tmp_path_factory.mktemp("storage")
    write_bytes(folder / name, b"earlier")
    write_bytes(folder / name, data, durable=True)
    assert [path.name for path in folder.iterdir()] == [name] and (folder / name).read_bytes() == data


def test_the_folder_is_made_too(tmp_path):
    write_text(tmp_path / "new" / "folder" / "a.txt", "whole")
    assert (tmp_path / "new" / "folder" / "a.txt").read_text() == "whole"


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    path = tmp_path / ("漢" * 85)
    write_text(path, "text")
    assert path.read_text(encoding="utf-8") == "text"


def test_a_block_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "file"
    write_text(path, "before")

    def fail():
        with atomic(path) as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_block_that_removes_its_file_leaves_what_was_there(tmp_path):
    with atomic(tmp_path / "file") as partial:
        partial.unlink()
    assert not list(tmp_path.iterdir())


def test_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "file"
    start = threading.Barrier(8)

    def work(number):
        start.wait()
        for _ in range(20):
            with atomic(path) as partial:
                partial.write_bytes(bytes([number]) * 5000)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    content = path.read_bytes()
    assert len(content) == 5000 and len(set(content)) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_writer_left_goes_after_a_day(tmp_path):
    path = tmp_path / "weights[1].pth"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", KILLED, path], check=False)
    leftovers = list(tmp_path.iterdir())
    assert len(leftovers) == 2
    other = tmp_path / "weights[1].pth.another.partial.txt"
    other.touch()
    os.utime(leftovers[0], (0, time.time() - 25 * 3600))
    write_text(path, "whole")
    assert sorted(tmp_path.iterdir()) == sorted([path, leftovers[1], other])


def test_a_new_link_to_an_old_file_is_no_leftover(tmp_path):
    old = tmp_path / "old"
    old.touch()
    os.utime(old, (0, time.time() - 25 * 3600))
    link = tmp_path / "shard.tar.00000000.partial"
    link.symlink_to(old)
    write_bytes(tmp_path / "shard.tar", b"whole")
    assert link.is_symlink() and old.exists()


def test_a_clock_that_jumps_costs_no_file_that_is_being_written(tmp_path):
    with atomic(tmp_path / "shard.tar") as partial:
        partial.write_bytes(b"half")
        os.utime(partial, (0, time.time() - 25 * 3600))  # by the clock, nobody has written to it for a day
        write_bytes(tmp_path / "shard.tar", b"another writer's")
        assert partial.exists()
    assert (tmp_path / "shard.tar").read_bytes() == b"half"


def test_files_get_the_users_umask(tmp_path, umask):
    write_text(tmp_path / "new" / "text", "text", durable=True)
    write_bytes(tmp_path / "bytes", b"bytes")
    save_tensors(tmp_path / "tensors.safetensors", {"x": torch.zeros(3, 4).T})
    assert modes(tmp_path) == {0o666 & ~umask}


def test_what_the_package_writes_gets_the_users_umask(tmp_path, tiny_videos, umask):
    pack(tiny_videos, tmp_path / "shards", PackConfig(max_short_side=32, workers=1))
    write_video(tmp_path / "video.mp4", torch.zeros(3, 2, 16, 16), 8)
    with VideoWriter(tmp_path / "long.mp4", 8) as writer:
        writer.write(np.zeros((16, 16, 3), np.uint8), Fraction(0))
    vae = tiny_vae()
    vae.save_pretrained(tmp_path / "vae")
    checkpoint.write_weights(vae.state_dict(), tmp_path / "vae" / "vae.pth", "torch")
    (tmp_path / "run").mkdir()
    save_weights(vae, tmp_path / "run" / "latest.pth")
    clips = [Clip(random_video(5)[0], "film", "caption", 0.0)]
    encode_latents(vae, clips, tmp_path / "latents.safetensors", EncoderSettings(batch_size=1), torch.device("cpu"))
    MetricsLog(tmp_path / "run" / "metrics.csv", ["step", "loss"], 0).write(1, {"loss": 0.5})
    assert modes(tmp_path) == {0o666 & ~umask}


def test_partials_of_a_prefix_are_removed_and_nothing_else(tmp_path):
    for name in ("[a]-0.tar.1.partial", "a-0.tar.1.partial", "[a]-0.tar", "b.partial"):
        (tmp_path / name).touch()
    remove_partials(tmp_path, "[a]-")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["[a]-0.tar", "a-0.tar.1.partial", "b.partial"]


def test_digest(tmp_path):
    (tmp_path / "file").write_bytes(b"abc" * 700_000)
    assert digest_of(tmp_path / "file") == digest_of(b"abc" * 700_000)
    assert digest_of(b"abc").startswith("ba7816bf")


FULL = """
import resource, signal, sys
from pathlib import Path
import torch
from sat_ssvae.storage import save_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    save_tensors(Path(sys.argv[1]), {"x": torch.zeros(999)})
except OSError as error:
    print(error.filename, error.strerror)
"""


@pytest.mark.slow
def test_tensors_that_the_disk_has_no_room_for_are_an_error_of_the_system(tmp_path):
    """Which every command ends on in one line."""
    path = tmp_path / "x.safetensors"
    command = [sys.executable, "-c", FULL, path]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=unmeasured())
    assert done.stdout.startswith(f"{path} ") and "File too large" in done.stdout
    assert not list(tmp_path.iterdir())
