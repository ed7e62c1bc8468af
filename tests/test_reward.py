"""The reward client against a real server process over HTTP."""

import csv
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sat_ssvae.cli import main
from sat_ssvae.config import load_config
from sat_ssvae.data.video_io import write_video
from sat_ssvae.errors import UserError
from sat_ssvae.evaluation.generated import list_videos
from sat_ssvae.evaluation.reward import RewardConfig, compare_pairs, pair_up, summarize
from sat_ssvae.evaluation.reward_page import _outcome
from sat_ssvae.evaluation.unified_reward import VERSIONS
from sat_ssvae.metrics.intervals import mean_interval

from .judged import DOWN, config, expected, gray_videos, ratings, score
from .parsed_page import Parsed

ROOT = Path(__file__).parents[1]


def test_scores_are_those_of_the_frames_and_prompts_that_were_sent(judge, gray):
    scored = score(gray, config(judge))
    assert ratings(scored) == expected([-0.6, -0.3, 0.0, 0.3, 0.6])
    assert [record.video for record in scored.rated] == [f"clip{number}" for number in range(5)]
    requests = sorted(judge.requests, key=lambda request: request["text"])
    for number, request in enumerate(requests):
        assert request["path"] == "/v1/chat/completions" and request["temperature"] == 0
        assert request["sizes"] == [[32, 32]] * 16 and request["text"].endswith(f"Text Caption: gray number {number}")
    summary = summarize(scored, config(judge))
    assert len(scored.rated) == 5 and scored.failures == {}
    assert list(summary) == ["overall", "alignment", "physics", "style"]
    assert summary["overall"].low < summary["overall"].mean < summary["overall"].high


def test_version_1(judge, gray):
    scored = score(gray, config(judge, version=1))
    assert {len(request["sizes"]) for request in judge.requests} == {8}
    assert [record.scores["final"] for record in scored.rated] == pytest.approx([2.8, 4.15, 5.5, 6.85, 8.2], abs=0.1)
    assert list(summarize(scored, config(judge, version=1))) == ["overall", *VERSIONS[1].axes, "final"]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batch_size_is_the_number_of_requests_in_flight(judge, gray, batch_size):
    score(gray, config(judge, batch_size=batch_size))
    assert max(request["active"] for request in judge.requests) == batch_size


def test_only_what_has_no_answer_yet_is_asked(judge, gray):
    first = score(gray, config(judge))
    judge.plan([])
    assert score(gray, config(judge)) == first and judge.requests == []
    (gray / "clip1.txt").write_text("another prompt")
    write_video(gray / "clip2.mp4", torch.zeros(3, 9, 32, 32), fps=8)
    score(gray, config(judge))
    assert sorted(request["text"].rpartition(": ")[2] for request in judge.requests) == [
        "another prompt",
        "gray number 2",
    ]
    lines = (gray / "out.jsonl").read_text()
    (gray / "out.jsonl").write_text(lines[:-10])  # killed in the middle of the last line
    judge.plan([])
    score(gray, config(judge))
    assert len(judge.requests) == 1
    judge.plan([])
    score(gray, config(judge))
    assert judge.requests == []


def test_a_key_is_sent_and_never_shown(judge, gray, capsys, monkeypatch):
    judge.plan(["key"])
    with pytest.raises(UserError, match=r"HTTP 401 Unauthorized: Unauthorized.*api_key=.*OPENAI_API_KEY"):
        score(gray, config(judge, batch_size=1))
    judge.plan(["key"])
    with pytest.raises(UserError) as refused:
        score(gray, config(judge, batch_size=1, api_key="secret-words"))
    assert "secret-words" not in str(refused.value) and "***" in str(refused.value)
    judge.plan(["key"] * 5)
    assert len(score(gray, config(judge, api_key="k")).rated) == 5
    (gray / "out.jsonl").unlink()
    judge.plan(["key"] * 5)
    monkeypatch.setenv("OPENAI_API_KEY", "k\n")
    assert len(score(gray, config(judge)).rated) == 5
    judge.plan([])
    assert main(["reward", "--video_dir", str(gray), f"url={judge.url}", "api_key=4711"]) == 0
    assert {request["key"] for request in judge.requests} == {"Bearer 4711"}
    assert "4711" not in "".join(capsys.readouterr())
    assert main(["reward", "--video_dir", str(gray), "--against", str(gray), "api_key=secret-words"]) == 0
    written = {path.name: path.read_text() for path in gray.iterdir() if path.suffix not in (".mp4", ".txt")}
    assert len(written) == 8 and not any("secret-words" in text for text in written.values())
    assert (
        "api_key=..." in written["unified_reward_v2.html"] and "api_key=..." in written["unified_reward_v2_pairs.html"]
    )
    assert not any("4711" in text for name, text in written.items() if not name.endswith(".html"))  # base64
    with pytest.raises(UserError, match="holds a character that no key has") as refused:
        score(gray, config(judge, api_key="sécret"))
    assert "sécret" not in str(refused.value)


def test_a_broken_video_is_listed_and_the_others_are_scored(judge, gray):
    (gray / "clip1.mp4").write_bytes(b"broken")
    scored = score(gray, config(judge))
    assert list(scored.failures) == ["clip1"] and "not a video" in scored.failures["clip1"]
    assert len(scored.rated) == 4


def test_two_folders_are_compared_pair_by_pair(judge, gray, tmp_path):
    brighter = gray_videos(tmp_path / "brighter", [-0.5, -0.2, 0.1, 0.4])
    settings = config(judge)
    first, second = score(gray, settings), score(brighter, settings)
    pairs = pair_up(first, second)
    comparison = compare_pairs(pairs, settings)
    difference = comparison.differences["overall"]
    assert difference.count == len(pairs) == 4 and difference.mean == pytest.approx(0.2, abs=0.03)
    assert difference.high - difference.low < 0.05  # although the videos differ far more than the pairs
    assert comparison.win_rate.mean == 1
    assert compare_pairs([(one, one) for one, _ in pairs], settings).win_rate.mean == 0.5
    (brighter / "clip0.txt").write_text("another prompt")
    with pytest.raises(UserError, match="clip0: its prompt differs"):
        pair_up(first, score(brighter, settings))
    with pytest.raises(UserError, match="share no rated video"):
        pair_up(first, dataclasses.replace(first, rated=[]))


def test_names_that_differ_in_the_suffix_alone_are_two_pairs(judge, gray, tmp_path):
    folders = [gray_videos(tmp_path / name, levels) for name, levels in (("a", [-0.6, 0.6]), ("b", [-0.5, 0.7]))]
    for folder in folders:
        (folder / "clip1.mp4").rename(folder / "clip0.mov")
        assert main(["reward", "--video_dir", str(folder), f"url={judge.url}"]) == 0
        shown = re.findall(r"clip0\.m\w\w", Parsed((folder / "unified_reward_v2.html").read_text()).text)
        assert {"clip0.mov", "clip0.mp4"} <= set(shown)
    pairs = pair_up(*(score(folder, config(judge)) for folder in folders))
    assert compare_pairs(pairs, config(judge)).differences["overall"].mean == pytest.approx(0.2, abs=0.03)


def test_results_without_an_axis_are_asked_again(judge, gray):
    score(gray, config(judge))
    results = gray / "out.jsonl"
    results.write_text(re.sub(r', "style": [\d.]+', "", results.read_text(), count=2))
    judge.plan([])
    assert len(score(gray, config(judge)).rated) == 5 and len(judge.requests) == 2


def test_prompts_are_found_where_captions_are(gray, judge):
    for path in gray.glob("*.txt"):
        path.unlink()
    lines = [json.dumps({"file_name": f"clip{number}.mp4", "text": f"gray number {number}"}) for number in range(5)]
    (gray / "metadata.jsonl").write_text("\n".join(lines))
    assert [video.caption for video in list_videos(gray, None)] == [f"gray number {n}" for n in range(5)]
    assert main(["reward", "--video_dir", str(gray), f"url={judge.url}"]) == 0
    (gray / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match="no prompt for this video"):  # not from the tables of the command itself
        list_videos(gray, None)


@pytest.mark.parametrize(
    "setting",
    [
        "url=localhost:80",
        "url=http://",
        "url=http://a:b",
        "url=http://user:word@host",
        "url=http://host/v1?key=word",
        "version=3",
        "batch_size=0",
        "timeout=0",
        "model_name=x",
    ],
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(UserError, match=setting.partition("=")[0]):
        load_config(RewardConfig, None, [setting])


def test_the_command_prints_scores_and_difference(judge, gray, tmp_path, capsys):
    brighter = gray_videos(tmp_path / "brighter", [-0.5, -0.2, 0.1, 0.4, 0.7])
    settings = [f"url={judge.url}", "retries=0"]
    assert main(["reward", "--video_dir", str(brighter), "--against", str(gray), *settings]) == 0
    output = capsys.readouterr().out
    assert f"{brighter}: 5 videos, UnifiedReward 2; means, in brackets their 95 % intervals" in output
    assert f"{brighter} minus {gray}, 5 pairs; means, in brackets their 95 % intervals" in output
    assert "win rate               1.000 (1.000 to 1.000)" in output
    rows = list(csv.reader((gray / "unified_reward_v2.csv").read_text().splitlines()))
    assert rows[0] == ["name", "prompt", "overall", "alignment", "physics", "style"]
    page = Parsed((brighter / "unified_reward_v2_pairs.html").read_text())
    assert f"{brighter} wins 100% of 5 pairs against {gray}, ties counted half" in page.text and "better" in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 2 * 5
    assert [source for source in page.sources if not source.startswith("data:")] == ["unified_reward_v2_pairs.csv"]
    shown = [words for words in page.words if words.startswith("gray number") and "(overall" in words]
    differences = [float(words.split(": ")[-1].rstrip(")")) for words in shown]
    assert len(differences) == 5 and differences == sorted(differences)
    alone = Parsed((gray / "unified_reward_v2.html").read_text())
    assert "mean overall rating" in alone.text and "5 videos" in alone.text and "alignment 1.80" in alone.text
    assert rows[5][:2] == ["clip4", "gray number 4"] and [float(rows[5][2])] == expected([0.6])
    pairs = list(csv.DictReader((brighter / "unified_reward_v2_pairs.csv").read_text().splitlines()))
    assert len(pairs) == 5 and all(0.1 < float(pair["difference"]) < 0.3 for pair in pairs)
    assert json.loads((brighter / "unified_reward_v2_pairs.json").read_text())["win_rate"]["mean"] == 1
    summary = json.loads((gray / "unified_reward_v2.json").read_text())
    assert summary["videos"] == 5 and summary["scores"]["style"]["count"] == 5
    assert len((gray / "unified_reward_v2.jsonl").read_text().splitlines()) == 5


def test_one_pair_is_called_one():
    text = _outcome(mean_interval([1.0]), Path("ours"), Path("theirs"))
    assert text == "ours wins 100% of 1 pair against theirs, ties counted half (too few pairs to say more)."


def test_a_package_that_is_not_installed_is_named(gray, monkeypatch, capsys):
    for name in ("reward", "reward_client"):
        monkeypatch.delitem(sys.modules, f"sat_ssvae.evaluation.{name}")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(SystemExit):
        main(["reward", "--video_dir", str(gray)])
    assert capsys.readouterr().err.startswith("error: the package openai is not installed; the extras of sat-ssvae")


@pytest.mark.slow
def test_the_articles_script(judge, gray):
    def run(*arguments):
        script = [sys.executable, str(ROOT / "scripts" / "eval_unified_reward.py")]
        command = [*script, "--video_dir", str(gray), "--batch_size", "4", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run(f"url={judge.url}")
    assert done.returncode == 0 and "5 videos" in done.stdout
    done = run(f"url={DOWN}", "version=1", "retries=0")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(f"error: {DOWN}: no server there")
