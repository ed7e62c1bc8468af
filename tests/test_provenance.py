"""Where a comparison's clips come from, by name."""

from sat_ssvae.comparison.provenance import FEW_CLIPS, FEW_VIDEOS, LeftOut, Provenance, few_warnings
from sat_ssvae.data.skips import Skip, SkipLog


def test_clips_are_counted_by_video_in_order(tmp_path):
    log = SkipLog(tmp_path / "skipped.jsonl")
    log.filtered(Skip("b/short.mp4", "too short", "1.0 s"))
    keys = ["b/z.mp4@0", "b/a@b.mp4@0.5", "b/z.mp4@1"]
    skipped = {"train": tmp_path / "skipped.jsonl", "heldout": tmp_path / "none.jsonl"}
    provenance = Provenance.of_clips(keys, ["c@0"], skipped)
    assert list(provenance.train.items()) == [("b/z.mp4", 2), ("b/a@b.mp4", 1)] and provenance.heldout == {"c": 1}
    assert provenance.left_out == (LeftOut("train", "b/short.mp4", "too short", "1.0 s"),)


def test_few_held_out_clips_or_videos_are_a_warning():
    assert few_warnings(FEW_CLIPS, FEW_VIDEOS) == few_warnings(FEW_CLIPS, FEW_CLIPS) == ()
    (warning,) = few_warnings(FEW_CLIPS - 1, FEW_VIDEOS)
    assert warning.startswith("Only 29 clips are held out")
    (warning,) = few_warnings(FEW_CLIPS, FEW_VIDEOS - 1)
    assert warning.startswith("The held-out clips come from only 9 videos")
    (warning,) = few_warnings(FEW_CLIPS, 1)
    assert warning.startswith("All 30 held-out clips come from one video")
    assert len(few_warnings(8, 2)) == 2
