import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sat_ssvae.comparison.bookkeeping import content
from sat_ssvae.data.demo import HELDOUT_GAP, MIN_HELDOUT_SECONDS, prepare_demo, split_by_time
from sat_ssvae.data.shards import DataConfig, fixed_clips, training_batches
from sat_ssvae.data.video_io import to_uint8, to_unit_range
from sat_ssvae.errors import UserError


@given(first=st.floats(0, 100), length=st.floats(0.1, 1000))
def test_the_split_keeps_its_distance(first, length):
    last = first + length
    assume(last > first)
    parts = list(split_by_time(first, last))
    assert parts == sorted(parts)
    assert all(start < end and first <= start and end <= last + 1e-9 for start, end, _ in parts)
    for (_, end, held), (start, _, next_held) in itertools.pairwise(parts):
        assert start - end >= (HELDOUT_GAP - 1e-9 if held != next_held else -1e-9)
    held_out = [end - start for start, end, held in parts if held]
    assert all(part >= MIN_HELDOUT_SECONDS - 1e-9 for part in held_out)
    if length >= 60:
        assert sum(held_out) / length == pytest.approx(0.2)
        assert sum(end - start for start, end, held in parts if not held) / length > 0.7


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return prepare_demo(tmp_path_factory.mktemp("demo") / "demo", resolution=32, film_seconds=20)


def sources(folder):
    lines = [line for meta in folder.glob("*.meta.jsonl") for line in meta.read_text().splitlines()]
    return {json.loads(line)["source"].partition("@")[0] for line in lines}


def test_the_demo_holds_film_and_live_clips(demo):
    assert sources(demo.train) == {"big_buck_bunny", "bikes", "carphone", "faces", "single_face", "skyline"}
    assert sources(demo.heldout) == {"big_buck_bunny", "bikes", "faces", "skyline"}
    text = demo.attribution.read_text(encoding="utf-8")
    assert "CC BY 3.0" in text and "Blender Foundation" in text and "Wolfgang Langer" in text
    for folder in (demo.train, demo.heldout):
        assert (folder / "skipped.jsonl").read_text() == ""


def test_its_clips_can_be_read_and_move(demo):
    config = DataConfig(path=str(demo.train), num_frames=9, fps=8, resolution=32, num_workers=0)
    batch = next(training_batches(config, batch_size=8, seed=0))
    video = to_unit_range(batch.video)
    assert video.shape == (8, 3, 9, 32, 32)
    assert video.std() > 0.2
    assert (video.diff(dim=2).abs().mean(dim=(1, 2, 3, 4)) > 0.002).all()
    heldout = DataConfig(path=str(demo.heldout), num_frames=9, fps=8, resolution=32, num_workers=0)
    clips = list(fixed_clips(heldout, stride=0.5))
    assert len(clips) > 10 and len({to_uint8(clip.video).numpy().tobytes() for clip in clips}) == len(clips)


def test_a_second_call_does_nothing_again(demo):
    before = {folder: content(folder) for folder in (demo.train, demo.heldout)}
    assert all(any(name.endswith(".tar") for name, *_ in files) for files in before.values())
    again = prepare_demo(demo.train.parent, resolution=32, film_seconds=20)
    assert again == demo
    # What was trained on these clips is found again.
    assert {folder: content(folder) for folder in (demo.train, demo.heldout)} == before
    with pytest.raises(UserError, match="other inputs or settings"):
        prepare_demo(demo.train.parent, resolution=48, film_seconds=20)


def test_a_resolution_beyond_all_clips(tmp_path):
    with pytest.raises(UserError, match="choose a resolution"):
        prepare_demo(tmp_path, resolution=1080)


def test_without_network_it_says_so(tmp_path):
    program = """
import sys
from pathlib import Path
from sat_ssvae.data.demo import prepare_demo
from sat_ssvae.errors import UserError
try:
    prepare_demo(Path(sys.argv[1]), resolution=32)
except UserError as error:
    sys.exit(str(error))
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "demo")],
        check=False,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[1]),
            "SAT_SSVAE_CACHE": str(tmp_path / "cache"),
            "PIP_NO_INDEX": "1",
        },
    )
    assert done.returncode == 1
    assert done.stderr.strip().startswith("could not download moviepy==2.2.1 (")
    assert "pip download --no-deps moviepy==2.2.1" in done.stderr and len(done.stderr.strip().splitlines()) == 1
