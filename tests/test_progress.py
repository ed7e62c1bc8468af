import errno
import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from sat_ssvae import progress
from sat_ssvae.progress import already_done, progress_bar, setup_logging

from .processes import unmeasured

PACKAGE_LOGGER = "sat_ssvae.something"


@pytest.fixture
def logging_restored():
    """Undo what setup_logging does to the process."""
    root, package = logging.getLogger(), logging.getLogger("sat_ssvae")
    handlers, levels = list(root.handlers), (root.level, package.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    package.setLevel(levels[1])


def lines(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_log_file_gets_one_final_line_from_a_short_run(capsys):
    with progress_bar(50, "training", "step") as bar:
        for step in range(50):
            bar.set_postfix(loss=f"{1 / (step + 1):.3f}")
            bar.update()
    (line,) = lines(capsys)
    assert line.startswith("training: 50/50 [")
    assert "step/s" in line and "loss=0.020" in line and "\r" not in line


def test_a_log_file_gets_no_second_line_for_what_the_last_one_said(capsys):
    with progress_bar(2, "training", "step") as bar:
        for _ in range(2):
            bar.last_line = -1e9  # as if a line were due
            bar.update()
            bar.set_postfix(loss="0.1")
    assert [line.split()[1] for line in lines(capsys)].count("2/2") == 1


@pytest.mark.parametrize("units", [7, 10, 12])
def test_a_bar_ends_full_unless_an_error_stops_it(capsys, units):
    with progress_bar(10, "packing", "clip") as bar:
        bar.update(units)
    assert lines(capsys)[-1].startswith(f"packing: {units}/{units} [")
    with pytest.raises(TypeError), progress_bar(10, "packing", "clip") as bar:
        bar.update("seven")
    assert lines(capsys)[-1].startswith("packing: 0/10 [")


def test_a_bar_over_clips_that_turn_out_fewer_ends_full(capsys):
    class Clips:
        def __len__(self):
            return 5

        def __iter__(self):
            return iter("abc")

    assert list(progress_bar(Clips(), "checking", "clip")) == ["a", "b", "c"]
    assert lines(capsys)[-1].startswith("checking: 3/3 [")


def test_what_an_earlier_run_did_is_no_speed(capsys):
    with progress_bar(1000, "restoring", "frame") as bar:
        already_done(bar, 900)
        bar.start_t -= 10
        bar.update(100)
    (line,) = lines(capsys)
    assert line.startswith("restoring: 1000/1000 [00:10<00:00") and re.search(r" (9\.\d+|10\.0+) ?frame/s", line)


def test_a_warning_is_said_once(capsys, logging_restored):
    setup_logging()
    logger = logging.getLogger(PACKAGE_LOGGER)
    for step in (1, 2, 1):
        logger.warning("%s is taken for another", f"file {step}")
        logger.info("again")
        logger.error("and again")
    said = [line.split(" ", 1)[1] for line in lines(capsys)]
    assert [line for line in said if "WARNING" in line] == [
        "WARNING: file 1 is taken for another",
        "WARNING: file 2 is taken for another",
    ]
    assert said.count("INFO: again") == 1 and said.count("ERROR: and again") == 3


def test_a_log_file_gets_a_line_each_interval_however_often_the_loss_changes(capsys, monkeypatch):
    monkeypatch.setattr(progress, "QUIET_INTERVAL", 0.1)
    with progress_bar(1000, "encoding", "clip") as bar:
        end = time.monotonic() + 0.55
        while time.monotonic() < end:
            bar.set_postfix(loss="1")
            bar.update()
            time.sleep(0.002)
    written = lines(capsys)
    assert 3 <= len(written) <= 7  # five intervals and the end, give or take a busy machine
    assert all(line.startswith("encoding: ") and "<" in line for line in written)


def test_bars_write_to_stderr_only(capsys):
    assert list(progress_bar([1, 2, 3], "reading", "file")) == [1, 2, 3]
    captured = capsys.readouterr()
    assert captured.out == "" and "reading: 3/3" in captured.err


def test_resumed_run_counts_what_was_done_but_not_in_the_rate(capsys):
    with progress_bar(100, "training", "step", initial=90) as bar:
        time.sleep(0.1)
        bar.update(10)
    (line,) = lines(capsys)
    assert "100/100" in line
    assert float(line.split(", ")[1].split()[0]) <= 100  # 10 steps in 0.1 s; with the 90 it would be 1000 a second


def test_resumed_iterable_reaches_its_total(capsys):
    assert len(list(progress_bar(range(7), "encoding", "clip", initial=3))) == 7
    assert "encoding: 10/10" in lines(capsys)[-1]


@pytest.mark.parametrize("source", [None, iter("abc")])
def test_unknown_total_shows_the_count(capsys, source):
    bar = progress_bar(source, "reading", "file")
    if source is None:
        bar.update(3)
        bar.close()
    else:
        assert "".join(bar) == "abc"
    assert "reading: 3/?" in lines(capsys)[-1]


def test_bar_of_an_interrupted_loop_says_how_far_it_came(capsys):
    def interrupted_loop():
        with progress_bar(10, "training", "step") as bar:
            bar.update(4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_loop()
    assert lines(capsys)[-1].startswith("training: 4/10")


def run_on_a_terminal(code: str) -> str:
    """What a Python program prints on a pseudo terminal of 80 columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    while True:
        try:
            data = os.read(ours, 4096)
        except OSError as error:  # Linux reports the closed other end as an I/O error
            if error.errno != errno.EIO:
                raise
            break
        if not data:
            break
        shown += data
    os.close(ours)
    assert process.wait() == 0, shown.decode()
    return shown.decode()


def test_terminal_bar_redraws_in_place_and_survives_log_lines():
    shown = run_on_a_terminal(
        "import logging, time\n"
        "from sat_ssvae.progress import already_done, progress_bar, setup_logging\n"
        "setup_logging()\n"
        "with progress_bar(3, 'training', 'step') as bar:\n"
        "    for step in range(3):\n"
        "        bar.set_postfix(loss=f'{step}.5')\n"
        "        bar.update()\n"
        "        time.sleep(0.15)\n"
        "        logging.getLogger('sat_ssvae.x').info('saved step %d', step)\n"
    )
    rows = shown.replace("\r\n", "\n").split("\n")
    for step in range(3):
        assert any(row.endswith(f"INFO: saved step {step}") for row in rows)
    assert rows[-2].split("\r")[-1].startswith("training: 100%") and "loss=2.5" in rows[-2]
    assert shown.count("training:") > 3 and len([row for row in rows if "training:" in row]) < 6


def test_log_lines_go_to_stderr_with_time_and_level(capsys, logging_restored):
    setup_logging()
    logging.getLogger(PACKAGE_LOGGER).info("encoded %d clips", 3)
    (line,) = lines(capsys)
    assert line.endswith(" INFO: encoded 3 clips") and line[2] == line[5] == ":"


def test_others_are_quieter_than_the_package(capsys, logging_restored):
    setup_logging()
    logging.getLogger(PACKAGE_LOGGER).debug("detail")
    logging.getLogger("other_library").info("chatter")
    logging.getLogger("other_library").warning("trouble")
    assert [line.split()[-1] for line in lines(capsys)] == ["trouble"]


def test_verbose_shows_details(capsys, logging_restored):
    setup_logging(verbose=True)
    logging.getLogger(PACKAGE_LOGGER).debug("detail")
    logging.getLogger("other_library").info("chatter")
    assert [line.split()[-1] for line in lines(capsys)] == ["detail", "chatter"]


def test_setting_up_twice_does_not_double_the_lines(capsys, logging_restored):
    setup_logging()
    setup_logging()
    logging.getLogger(PACKAGE_LOGGER).info("once")
    assert len(lines(capsys)) == 1


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_under_the_log_does_not_stop_the_program_nor_change_its_exit_status(unbuffered):
    code = (
        "import logging; from sat_ssvae.progress import already_done, progress_bar, setup_logging\n"
        "setup_logging(); logging.getLogger('sat_ssvae.x').info('lost')\n"
        "with progress_bar(2, 'training', 'step') as bar: bar.update(2)\n"
        "print('went on')"
    )
    variables = {**unmeasured(), "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], env=variables, stdout=subprocess.PIPE, stderr=full, text=True, check=True
        )
    assert done.stdout == "went on\n"


def test_of_two_ranks_only_the_first_shows_bars_and_information(tmp_path):
    code = (
        "import logging, sys, torch.distributed as dist\n"
        "from sat_ssvae.progress import already_done, progress_bar, setup_logging\n"
        f"store = dist.FileStore('{tmp_path}/store', 2)\n"
        "dist.init_process_group('gloo', store=store, rank=int(sys.argv[1]), world_size=2)\n"
        "setup_logging()\n"
        "with progress_bar(3, 'training', 'step') as bar:\n"
        "    bar.set_postfix(loss=1)\n"
        "    bar.update(3)\n"
        "logging.getLogger('sat_ssvae.x').info('information')\n"
        "logging.getLogger('sat_ssvae.x').warning('trouble')\n"
        "dist.destroy_process_group()\n"
    )
    ranks = [
        subprocess.Popen([sys.executable, "-c", code, number], stderr=subprocess.PIPE, text=True) for number in "01"
    ]
    first, second = (process.communicate(timeout=100)[1] for process in ranks)
    assert [process.returncode for process in ranks] == [0, 0], first + second
    assert "training: 3/3" in first and "information" in first and "trouble" in first
    assert "training" not in second and "information" not in second and "trouble" in second


@pytest.mark.parametrize("jump", [-7200, 7200])
def test_a_clock_that_jumps_does_not_change_rate_and_remaining_time(jump, monkeypatch, capsys):
    clock = time.time
    bar = progress_bar(10, "counting", "unit")
    bar.update(5)
    monkeypatch.setattr(time, "time", lambda: clock() + jump)
    bar.update(2)
    assert 0 <= bar.format_dict["elapsed"] < 60
    bar.close()
    assert "7/10 [00:" in capsys.readouterr().err
