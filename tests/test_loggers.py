"""TensorBoard and Weights & Biases get the same, read back from what they wrote; and neither can stop training."""

import io
import json
import logging
import os
import random
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image

from sat_ssvae.training import loggers
from sat_ssvae.training.loggers import TensorBoard, WeightsAndBiases
from sat_ssvae.training.trainer import train

from .processes import unmeasured
from .ranks import free_port
from .test_monitor import lines
from .test_stages import differing, weights_of
from .test_trainer import CPU, configured, rows, settings

wandb = pytest.importorskip("wandb", minversion="0.31")
PICTURES = ("heldout/reconstructions", "heldout/video")


@pytest.fixture(autouse=True)
def _offline(monkeypatch, tmp_path):
    """Unless a test says otherwise, and without what the user of this machine may have configured."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "HOME": str(tmp_path / "home"),
        "NETRC": str(tmp_path / "netrc"),
        "WANDB_MODE": "offline",
        "WANDB_ERROR_REPORTING": "false",
    }.items():
        monkeypatch.setenv(name, value)
    yield
    wandb.teardown()


def monitored(shards, **changes):
    return {"every": 2, "path": str(shards), "clips": 2, "wandb_project": "ssvae", **changes}


def events(folder):
    """Those of the event files in a folder, in their order."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.glob("events*")):
        data = io.BytesIO(path.read_bytes())
        while header := data.read(12):  # length, its checksum; then the event and its checksum
            yield Event.FromString(data.read(struct.unpack("<Q", header[:8])[0]))
            data.read(4)


def event_values(folder):
    """Numbers and image files by (step, name)."""
    numbers, images = {}, {}
    for event in events(folder):
        for value in event.summary.value:
            if value.HasField("image"):
                images[event.step, value.tag] = value.image.encoded_image_string
            else:
                numbers[event.step, value.tag] = value.simple_value
    return numbers, images


def wandb_records(folder):
    """The records of an offline run: blocks of 32 KiB that hold parts of records (LevelDB's log format)."""
    from wandb.proto.wandb_internal_pb2 import Record

    (path,) = folder.glob("*.wandb")
    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        length, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or a last part
            yield Record.FromString(parts)
            parts = b""


def offline_runs(run):
    wandb.teardown()  # its service may still be writing after a run is finished
    return sorted(path for path in (run / "wandb").glob("offline-run-*") if path.is_dir())


def logged_values(folder):
    """What `log` was given, by (step, name); of a picture a dictionary."""
    values = {}
    for record in wandb_records(folder):
        if record.HasField("history"):
            row = {}
            for item in record.history.item:
                name, *inner = item.nested_key or [item.key]
                value = json.loads(item.value_json)
                row[name] = {**row.get(name, {}), inner[0]: value} if inner else value
            values |= {(row["step"], name): value for name, value in row.items() if "/" in name}
    return values


def test_both_loggers_get_the_same_and_training_is_unchanged(tiny_shards, tmp_path):
    run = tmp_path / "run"
    train(configured(tiny_shards, max_steps=4), tmp_path / "alone", CPU)
    train(configured(tiny_shards, max_steps=4, monitor=monitored(tiny_shards, tensorboard=True)), run, CPU)
    assert rows(run) == rows(tmp_path / "alone")
    assert differing(weights_of(run), weights_of(tmp_path / "alone")) == set()

    numbers, images = event_values(run / "tensorboard")
    (folder,) = offline_runs(run)
    logged = logged_values(folder)
    plain = {place: value for place, value in logged.items() if place[1] not in PICTURES}
    assert plain.keys() == numbers.keys() and images.keys() == logged.keys() - plain.keys()
    assert all(numbers[place] == pytest.approx(value, rel=1e-5) for place, value in plain.items())
    assert {name.split("/")[0] for _, name in plain} == {"train", "heldout", "dct_amplitude", "explained_variance"}
    assert {step for step, name in plain if name == "train/error"} == {1, 2, 3, 4}
    evaluation = lines(run / "evaluations.jsonl")[-1]
    assert plain[4, "heldout/psnr"] == evaluation["psnr"]
    assert plain[4, "heldout/local_correlation"] == evaluation["local_correlation"]
    assert plain[4, "dct_amplitude/0008"] == evaluation["dct_amplitude"][7]
    assert plain[4, "explained_variance/0004"] == pytest.approx(1)

    video, grid = (folder / "files" / logged[4, name]["path"] for name in ("heldout/video", "heldout/reconstructions"))
    assert video.read_bytes() == (run / "evaluations" / "step_4.mp4").read_bytes()
    with Image.open(run / "evaluations" / "step_4.png") as expected:
        for source in (grid, io.BytesIO(images[4, "heldout/reconstructions"])):
            with Image.open(source) as shown:
                assert np.array_equal(np.asarray(shown.convert("RGB")), np.asarray(expected))
    with Image.open(io.BytesIO(images[4, "heldout/video"])) as gif:
        assert gif.n_frames == 5 and gif.size == (64, 64)


def test_a_continued_training_continues_its_run(tiny_shards, tmp_path):
    run = tmp_path / "run"
    config = configured(tiny_shards, max_steps=6, checkpoint_every=4, monitor=monitored(tiny_shards))
    for _ in range(2):  # the second time from the checkpoint of step 4, as if killed after it
        train(config, run, CPU)
        (run / "done").unlink()
    kept = (run / "wandb_id").read_text()
    first, second = offline_runs(run)
    assert kept in first.name and kept in second.name
    ids = [
        record.run.run_id for folder in (first, second) for record in wandb_records(folder) if record.HasField("run")
    ]
    assert set(ids) == {kept}
    assert {step for step, _ in logged_values(second)} == {5, 6}
    again = {
        place: value for place, value in logged_values(first).items() if place[0] > 4 and "seconds" not in place[1]
    }
    for place, value in again.items():
        if place[1] not in (*PICTURES, "train/data_share"):
            assert logged_values(second)[place] == value


def test_no_random_number_is_drawn(tmp_path):
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
    one = WeightsAndBiases(tmp_path, "ssvae", {})
    one.scalars(1, {"train/error": 0.5})
    one.close()
    assert before == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())  # noqa: NPY002
    (folder,) = offline_runs(tmp_path)
    assert logged_values(folder) == {(1, "train/error"): 0.5}


def test_a_run_without_the_package_is_one_line(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "wandb", None)
    one = WeightsAndBiases(tmp_path, "ssvae", {})
    one.scalars(1, {"train/error": 0.5})
    one.close()
    (record,) = caplog.records
    assert "monitor.wandb_project has no effect without wandb: `pip install wandb`" in record.message


def test_without_a_key_nobody_is_asked_and_the_run_is_offline(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "sat_ssvae")
    monkeypatch.setenv("WANDB_MODE", "online")
    WeightsAndBiases(tmp_path, "ssvae", {}).close()
    (record,) = [record for record in caplog.records if record.name.startswith("sat_ssvae")]
    (folder,) = offline_runs(tmp_path)
    assert record.message == f"Weights & Biases: offline, `wandb sync {folder}` uploads it"


def test_a_disabled_run_is_not_announced(tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "sat_ssvae")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    one = WeightsAndBiases(tmp_path, "ssvae", {})
    one.scalars(1, {"train/error": 0.5})
    one.close()
    assert not [record for record in caplog.records if record.name.startswith("sat_ssvae")]
    assert not offline_runs(tmp_path)


@pytest.mark.slow
def test_a_server_that_does_not_answer_leaves_the_run_offline(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(loggers, "CONNECT_SECONDS", 3)
    for name, value in {"MODE": "online", "API_KEY": 40 * "0", "BASE_URL": f"http://127.0.0.1:{free_port()}"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    begin = time.monotonic()
    one = WeightsAndBiases(tmp_path, "ssvae", {})
    one.scalars(1, {"train/error": 0.5})
    one.close()
    assert time.monotonic() - begin < 40
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    (record,) = [record for record in warnings if record.name.startswith("sat_ssvae")]
    assert "does not answer" in record.message
    (folder,) = offline_runs(tmp_path)
    assert logged_values(folder) == {(1, "train/error"): 0.5}


FULL_DISK = """
import resource, signal, sys, tempfile
from pathlib import Path
import numpy as np
from sat_ssvae.progress import setup_logging
from sat_ssvae.training.loggers import EvaluationPictures, TensorBoard
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
setup_logging()
logger = TensorBoard(Path(sys.argv[1]), 0)
frames = np.random.default_rng(0).integers(255, size=(5, 128, 128, 3), dtype=np.uint8)
for step in range(300):
    logger.scalars(step, {"train/error": 0.5})
    if step % 100 == 0:
        logger.pictures(step, EvaluationPictures(frames[0], frames, Path("video"), 8.0))
logger.close()
"""


def test_a_full_disk_neither_stops_nor_delays_training_nor_its_end(tmp_path):
    """Files of 10 kB at most are what a full disk looks like to a process; pictures are larger than a pipe holds."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    done = subprocess.run(command, env=unmeasured(), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert "TensorBoard failed, training continues without it" in line and "File too large" in line


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path, caplog):
    (tmp_path / "file").touch()
    one = TensorBoard(tmp_path / "file" / "tensorboard", 0)
    for step in range(3):
        one.scalars(step, {"train/error": 0.5})
    one.close()
    (record,) = caplog.records
    assert record.message.startswith("TensorBoard failed, training continues without it")


def test_tensorboard_learns_from_which_step_training_continued(tmp_path):
    """It then drops what it has read of that step and later ones; each process has a file of its own."""
    for start in (0, 2):
        one = TensorBoard(tmp_path, start)
        one.scalars(start + 1, {"train/error": 0.5})
        one.close()
    assert len(list(tmp_path.iterdir())) == 2
    told = [(event.step, event.session_log.status == 1) for event in events(tmp_path) if not event.file_version]
    assert told == [(1, True), (1, False), (3, True), (3, False)]


def test_what_fails_inside_is_one_warning(tiny_shards, tmp_path, monkeypatch, caplog):
    def broken(*_arguments, **_options):
        raise OSError("no space\nleft")

    monkeypatch.setattr("wandb.sdk.wandb_run.Run.log", broken)
    train(configured(tiny_shards, max_steps=4, monitor=monitored(tiny_shards, every=0)), tmp_path / "run", CPU)
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["Weights & Biases failed, training continues without it (no space left)"]
    assert (tmp_path / "run" / "done").exists()


KILLED = """
import json, os, signal, sys
from pathlib import Path
import torch
from sat_ssvae.config import parse_config
from sat_ssvae.progress import setup_logging
from sat_ssvae.training.monitor import Monitor
from sat_ssvae.training.trainer import TrainConfig, train

def children():
    found = {path.parent.name: path.read_text().split() for path in Path("/proc").glob("[0-9]*/stat")}
    return [int(pid) for pid, stat in found.items() if stat[3] == str(os.getpid()) and "wandb-core" in stat[1]]

original = Monitor.scalars
def scalars(self, step, values):
    if step == 3:
        (service,) = children()
        os.kill(service, signal.SIGKILL)
        os.waitpid(service, 0)
    original(self, step, values)

Monitor.scalars = scalars
setup_logging()
train(parse_config(TrainConfig, json.loads(sys.argv[1])), Path(sys.argv[2]), torch.device("cpu"))
"""


@pytest.mark.slow
def test_a_killed_service_neither_stops_nor_delays_the_training(tiny_shards, tmp_path):
    run = tmp_path / "run"
    config = settings(tiny_shards, max_steps=8, monitor=monitored(tiny_shards, every=0))
    command = [sys.executable, "-c", KILLED, json.dumps(config), str(run)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (run / "done").exists() and len(rows(run)) == 8
    assert "Traceback" not in done.stderr.partition("atexit")[0]  # where wandb's own hook misses its service
    assert done.stderr.count("training continues without it") == 1
