"""Real processes that fail: the one line that the user sees says why."""

import sys

import pytest

from sat_ssvae import UserError
from sat_ssvae.cogvideo.launch import Launch

pytestmark = pytest.mark.slow
SCRIPT = """
import os, signal, sys, time
from sgm.sat_ssvae.errors import UserError
print("ImportError: no triton, going on without it", flush=True)
if int(os.environ["RANK"]) < int(os.environ["WORLD_SIZE"]) - 1:  # its last word comes when the other has failed
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("RuntimeError: connection closed by peer"))
    open("ready", "w").close()
    time.sleep(300)
while int(os.environ["WORLD_SIZE"]) > 1 and not os.path.exists("ready"):
    time.sleep(0.01)
{end}
"""


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("raise MemoryError('as if the machine were too small')", "MemoryError: as if the machine were too small"),
        ("raise UserError('give an overlay')", "give an overlay"),  # of a copy in sgm/
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by signal SIGKILL"),
    ],
)
def test_the_message_says_why_a_process_failed(tmp_path, monkeypatch, end, message, processes):
    copy = tmp_path / "sgm" / "sat_ssvae"
    copy.mkdir(parents=True)
    (copy / "errors.py").write_text("class UserError(ValueError): pass")
    (tmp_path / "train_video.py").write_text(SCRIPT.format(end=end))
    monkeypatch.chdir(tmp_path)
    log = tmp_path / "train.log"
    with pytest.raises(UserError) as caught:
        Launch((sys.executable,), processes).train([], log, "nothing", 8)
    assert str(caught.value) == f"train failed, see {log}: {message}"


def test_a_process_that_prints_no_error(tmp_path, monkeypatch):
    (tmp_path / "train_video.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"it printed no error$"):
        Launch((sys.executable,)).train([], tmp_path / "train.log", "nothing", 8)
