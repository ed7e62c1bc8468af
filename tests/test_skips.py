"""What was left out is listed once, also by a run that continues after it was killed in the middle of a line."""

from sat_ssvae.data.skips import Skip, SkipLog, read_skips


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
