import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sat_ssvae.data.shards import DataConfig, fixed_clips, training_batches
from sat_ssvae.data.skips import SkipLog
from sat_ssvae.errors import UserError

from .shard_files import meta, small, write_tar


@pytest.mark.parametrize("form", ["tar", "pattern", "list", "folder of videos"])
def test_paths(tiny_videos, tiny_shards, form):
    path = {
        "tar": str(tiny_shards / "clips-000000.tar"),
        "pattern": str(tiny_shards / "clips-{000000..000001}.tar"),
        "list": (str(tiny_shards / "clips-000002.tar"), str(tiny_shards / "clips-000001.tar")),
        "folder of videos": str(tiny_videos),
    }[form]
    config = DataConfig(path=path, num_frames=5, resolution=32, num_workers=0)
    expected = {"tar": 2, "pattern": 4, "list": 3, "folder of videos": 5}[form]
    clips = list(fixed_clips(config, stride=100))
    assert len(clips) == expected
    captions = [clip.caption for clip in clips if clip.caption]
    assert captions == ([] if form == "list" else ["coloured bars"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none", "does not exist"),
        (lambda folder: folder / "none-{0..3}.tar", "none-0.tar does not exist"),
        (lambda folder: folder / "none-{0..3.tar", "Unbalanced braces"),
        (lambda folder: folder, "neither .tar shards nor videos"),
        (lambda folder: folder / "a.mp4", "is not a .tar file"),
        (lambda folder: folder / "a.tar.gz", "compressed as a whole"),
        (lambda folder: folder / "empty.tar", r"no usable sample \(1 unreadable tar\), such as .*empty\.tar"),
    ],
)
def test_wrong_paths(tmp_path, make, message):
    path = make(tmp_path)
    if path.suffix in (".mp4", ".gz") or path.name == "empty.tar":
        path.write_bytes(b"")
    with pytest.raises(UserError, match=message):
        next(training_batches(small(path), batch_size=1, seed=0))


def test_what_does_not_fit_is_counted_and_listed(tmp_path, tiny_video):
    records = [
        meta("fits"),
        meta("short", duration=0.3),
        meta("tiny", width=16, height=40),
        meta("slow", fps=4),
        meta("score", score=0),
        meta("scored", score=7.5),
        "",
        "{broken",
        '["no", "object"]',
        '{"duration": 3}',
        meta("fits"),
        "\udcff".encode("utf-8", "surrogateescape").decode("latin-1"),
    ]
    tar = write_tar(tmp_path / "a.tar", [("fits.mp4", tiny_video), ("scored.mp4", tiny_video)], records)
    skips = SkipLog(tmp_path / "log" / "skipped.jsonl")
    keys = [clip.key for clip in fixed_clips(small(tar), stride=100, skips=skips)]
    assert keys == ["a/fits", "a/scored"]
    assert skips.counts == {
        "too short": 1,
        "too small": 1,
        "fps too low": 1,
        "broken meta line": 4,
        "duplicate key": 1,
        "not in the tar": 1,
    }
    listed = [json.loads(line) for line in skips.path.read_text().splitlines()]
    assert Counter(skip["cause"] for skip in listed) == skips.counts
    assert {"source": "a/slow", "cause": "fps too low", "detail": "4 frames per second, wanted 8"} in listed
    # a second run lists nothing twice
    list(fixed_clips(small(tar), stride=100, skips=SkipLog(skips.path)))
    assert len(skips.path.read_text().splitlines()) == len(listed)


def test_filters_know_zero_from_missing(tmp_path, tiny_video):
    records = [
        meta(key, **({} if score is None else {"score": score}))
        for key, score in zip("abcd", [0, 5, None, 9], strict=True)
    ]
    tar = write_tar(tmp_path / "s.tar", [(f"{key}.mp4", tiny_video) for key in "abcd"], records)
    for limits, kept in (((0, None), "abd"), ((None, 5), "ab"), ((1, 8), "b")):
        skips = SkipLog()
        keys = [clip.key[-1] for clip in fixed_clips(small(tar, filters={"score": limits}), stride=100, skips=skips)]
        assert "".join(keys) == kept
        assert skips.counts["no score"] == 1 and skips.counts.total() == 4 - len(kept)


def test_a_tar_without_meta_is_probed(tmp_path, tiny_video, caplog):
    members = [
        ("a.mp4", tiny_video),
        ("a.json", b'{"caption": "from json"}'),
        ("b.mp4", b"nothing"),
        ("c.id", b"c"),
    ]
    members += [
        ("d.mp4", tiny_video),
        ("d.txt", b"from text\n"),
        ("../../up.mp4", tiny_video),
        ("e.b.mp4", tiny_video),
    ]
    tar = write_tar(tmp_path / "a.tar", members)
    skips = SkipLog()
    clips = list(fixed_clips(small(tar), stride=100, skips=skips))
    assert [(clip.key, clip.caption) for clip in clips] == [("a/a", "from json"), ("a/d", "from text"), ("a/e", "")]
    assert skips.counts == {"not a video": 1, "no video or image": 1, "unsafe name": 1}
    assert "no a.meta.jsonl beside it" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_meta_without_tar_is_counted(tiny_shards, tmp_path):
    folder = shutil.copytree(tiny_shards, tmp_path / "shards")
    (folder / "clips-000001.tar").unlink()
    skips = SkipLog()
    keys = [clip.key for clip in fixed_clips(small(folder), stride=100, skips=skips)]
    assert [key[:12] for key in keys] == ["clips-000000", "clips-000000", "clips-000002"]
    assert skips.counts == {"meta without tar": 1}


def test_a_cut_off_tar_gives_what_it_has(tmp_path, tiny_video, caplog):
    members = [(f"{key}.mp4", tiny_video) for key in "abc"]
    tar = write_tar(tmp_path / "a.tar", members, [meta(key) for key in "abc"])
    data = tar.read_bytes()
    for size, left in (
        (512 + len(tiny_video) + 2000, "a"),
        (512 + 300, ""),
        (2 * len(tiny_video) + 3 * 1024, "ab"),
    ):
        tar.write_bytes(data[:size])
        skips = SkipLog()
        clips = [clip.key[-1] for clip in fixed_clips(small(tar), stride=100, skips=skips)]
        assert "".join(clips) == left and skips.counts.total() == 3 - len(left)
        assert set(skips.counts) <= {"truncated", "not in the tar", "unreadable tar"}
    assert "damaged or cut off" in caplog.text


def test_the_list_of_skips_cannot_be_written(tmp_path, tiny_video):
    tar = write_tar(tmp_path / "a.tar", [("a.mp4", tiny_video)], [meta("a"), meta("b", duration=0.1)])
    with pytest.raises(UserError, match="cannot write /dev/full"):
        next(iter(fixed_clips(small(tar), stride=1, skips=SkipLog(Path("/dev/full/skipped.jsonl")))))
    with pytest.raises(UserError, match="No space left"):
        next(iter(fixed_clips(small(tar), stride=1, skips=SkipLog(Path("/dev/full")))))


@settings(max_examples=40)
@given(
    damage=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=60)), min_size=1, max_size=6),
    cut=st.floats(0.01, 1),
    keep_meta=st.booleans(),
)
def test_any_damage_to_a_shard_is_a_skip_or_one_line(tiny_shards, tmp_path_factory, damage, cut, keep_meta):
    folder = tmp_path_factory.mktemp("damaged")
    data = bytearray((tiny_shards / "clips-000000.tar").read_bytes())
    for place, junk in damage:
        offset = int(place * (len(data) - 1))
        data[offset : offset + len(junk)] = junk
    (folder / "clips-000000.tar").write_bytes(data[: int(cut * len(data))])
    if keep_meta:
        shutil.copy(tiny_shards / "clips-000000.meta.jsonl", folder)
    skips = SkipLog(max_share=1)
    message, clips = "", []
    try:
        clips = list(fixed_clips(small(folder), stride=1, skips=skips))
    except UserError as error:
        message = str(error)
    assert "\n" not in message
    assert clips or skips.counts
    assert all(clip.video.shape == (3, 5, 32, 32) for clip in clips)


@settings(max_examples=60)
@given(
    st.lists(
        st.one_of(
            st.text(max_size=30),
            st.just("{}"),
            st.builds(
                json.dumps,
                st.dictionaries(
                    st.sampled_from(["key", "duration", "fps", "width", "height", "caption"]),
                    st.one_of(
                        st.none(),
                        st.booleans(),
                        st.integers(),
                        st.floats(),
                        st.text(max_size=5),
                        st.lists(st.integers(), max_size=2),
                    ),
                ),
            ),
        ),
        max_size=6,
    )
)
def test_any_meta_file_is_a_skip_or_one_line(tiny_shards, tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("meta")
    shutil.copy(tiny_shards / "clips-000000.tar", folder / "clips-000000.tar")
    content = "\n".join([json.dumps(meta("00000000")), *lines])
    (folder / "clips-000000.meta.jsonl").write_text(content, encoding="utf-8", errors="surrogatepass")
    skips = SkipLog(max_share=1)
    clips = list(fixed_clips(small(folder), stride=1, skips=skips))
    assert any(clip.key == "clips-000000/00000000" for clip in clips)
    written = sum(bool(line.strip()) for line in content.split("\n"))
    assert len({clip.key for clip in clips}) + skips.counts.total() >= min(2, written)


@pytest.mark.parametrize("field", ["duration", "fps", "width", "height"])
@pytest.mark.parametrize("value", [1e12, -1, float("nan"), float("inf"), "24", None, True])
def test_impossible_meta_values_are_measured_instead(tmp_path, tiny_video, field, value):
    tar = write_tar(tmp_path / "a.tar", [("a.mp4", tiny_video)], [meta("a", **{field: value})])
    assert [clip.start for clip in fixed_clips(small(tar), stride=0.5)] == [0, 0.5]


@pytest.mark.parametrize(("field", "value"), [("duration", 0), ("fps", 0), ("fps", 5e-324)])
@pytest.mark.parametrize("num_frames", [1, 5])
def test_a_video_without_duration_or_rate_is_measured(tmp_path, tiny_video, field, value, num_frames):
    tar = write_tar(tmp_path / "a.tar", [("a.mp4", tiny_video)], [meta("a", **{field: value})])
    config = small(tar, num_frames=num_frames)
    assert next(training_batches(config, batch_size=1, seed=0)).keys == ["a/a"]
    assert [clip.start for clip in fixed_clips(config, stride=0.5)][:2] == [0, 0.5]


@pytest.mark.parametrize("path", [".", "..", "../in/."])
def test_the_folder_where_one_is_has_a_name_like_any_other(tmp_path, tiny_video, monkeypatch, path):
    """`..` in the name of a sample would lead those who name files after it out of their folder."""
    (tmp_path / "in" / "deeper").mkdir(parents=True)
    (tmp_path / "in" / "a.mp4").write_bytes(tiny_video)
    monkeypatch.chdir(tmp_path / "in" / ("deeper" if path == ".." else ""))
    config = DataConfig(path=path, num_frames=5, resolution=32, num_workers=0)
    assert [clip.key for clip in fixed_clips(config, stride=100)] == ["in/a.mp4"]
