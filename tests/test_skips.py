"""What was left out is listed once, also by a run that continues after it was killed in the middle of a line."""

import subprocess
import sys
from pathlib import Path

from sat_ssvae.data.skips import Skip, SkipLog, read_skips

from .processes import unmeasured


def test_a_half_written_line_costs_only_itself(tmp_path):
    path = tmp_path / "skipped.jsonl"
    log = SkipLog(path)
    log.filtered(Skip("a.mp4", "too short", "1 frame"))
    log.filtered(Skip("b.mp4", "black", ""))
    path.write_bytes(path.read_bytes()[:-9])  # killed while it wrote about b.mp4

    again = SkipLog(path)
    for name in ("a.mp4", "c.mp4"):
        again.filtered(Skip(name, "too short", "1 frame"))
    assert [skip["source"] for skip in read_skips(path)] == ["a.mp4", "c.mp4"]
    assert again.counts == {"too short": 2}


def test_lines_that_hosts_wrote_over_each_other_cost_only_themselves(tmp_path):
    """As on a network file system, where appending is not atomic."""
    path = tmp_path / "skipped.jsonl"
    long, short = (Skip(name, "too short", name).to_json().encode() for name in ("a_long_name.mp4", "b.mp4"))
    path.write_bytes(short + long[len(short) :] + 3 * b"\0" + long)
    assert [skip["source"] for skip in read_skips(path)] == ["b.mp4"]
    SkipLog(path).filtered(Skip("c.mp4", "black", ""))
    assert [skip["source"] for skip in read_skips(path)] == ["b.mp4", "c.mp4"]


def test_the_file_stays_open_and_has_every_line_at_once(tmp_path):
    path = tmp_path / "skipped.jsonl"

    def opened():
        return [link for link in Path("/proc/self/fd").iterdir() if link.is_symlink() and link.readlink() == path]

    log = SkipLog(path)
    assert not path.exists()
    for count in range(1, 4):
        log.filtered(Skip(f"{count}.mp4", "too short", "ü"))
        assert len(read_skips(path)) == count and len(opened()) == 1
    del log
    assert not opened()


def test_a_line_that_fits_in_part_only_is_an_error(tmp_path):
    """A limit on the size of files is what a full disk looks like to a process."""
    script = "import resource, signal, sys; from pathlib import Path; from sat_ssvae.data.skips import Skip, SkipLog\n"
    script += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))\n"
    script += "log = SkipLog(Path(sys.argv[1]))\n"
    script += "for name in 'ab': log.filtered(Skip(name, 'too short', 40 * '-'))\n"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "skipped.jsonl")],
        env=unmeasured(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert "UserError: cannot write" in done.stderr and done.stderr.strip().endswith("No space left on device")
    assert len(read_skips(tmp_path / "skipped.jsonl")) == 1
