"""The logs of a training: what a cut-off run left, and a full disk."""

from pathlib import Path

import pytest

from sat_ssvae.engine.log import JsonLog, MetricsLog
from sat_ssvae.errors import UserError


def test_rows_beyond_the_start_and_half_rows_are_dropped(tmp_path):
    table, lines = tmp_path / "train.csv", tmp_path / "metrics.jsonl"
    table.write_text("step,lr,total\n1,0.1,5\n2,0.1,4\n3,0.1,3\n4,0.")
    lines.write_text('{"step": 1, "total": 5}\n{"step": 2, "total": 4}\n{"step": 3, "total": 3}\n{"step": 4, "to')
    MetricsLog(table, ["step", "lr", "total"], 2).write(3, {"lr": 0.1, "total": 2.5})
    JsonLog(lines, 2).write(3, {"total": float("nan")})
    assert table.read_text().split() == ["step,lr,total", "1,0.1,5", "2,0.1,4", "3,0.1,2.5"]
    assert lines.read_text().splitlines()[2:] == ['{"step": 3, "total": null}']


@pytest.mark.parametrize("kind", [MetricsLog, JsonLog])
def test_a_full_disk_is_one_line_that_names_the_file(tmp_path, monkeypatch, kind):
    original, path = Path.open, tmp_path / "log"

    def full(file, mode="r", **options):
        return original(Path("/dev/full") if (file, mode) == (path, "ab") else file, mode, **options)

    monkeypatch.setattr(Path, "open", full)
    log = MetricsLog(path, ["step", "total"], 0) if kind is MetricsLog else JsonLog(path, 0)
    with pytest.raises(UserError, match=rf"{path}: cannot be written \(No space left on device\); make room"):
        log.write(1, {"total": 5.0})
