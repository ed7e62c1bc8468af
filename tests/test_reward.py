"""The reward client against a real server process over HTTP."""

import csv
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from sat_ssvae.cli import main
from sat_ssvae.config import load_config, parse_config
from sat_ssvae.data.video_io import write_video
from sat_ssvae.errors import UserError
from sat_ssvae.evaluation.generated import list_videos
from sat_ssvae.evaluation.reward import RewardConfig, Scored, compare_pairs, pair_up, score_videos, summarize
from sat_ssvae.evaluation.unified_reward import VERSIONS

from .chat_server import serve
from .parsed_page import Parsed

ROOT = Path(__file__).parents[1]
DOWN = "http://127.0.0.1:9"  # the discard port, on which nothing listens


@pytest.fixture(scope="module")
def running():
    with serve() as server:
        yield server


@pytest.fixture
def server(running):
    running.plan([])
    return running


def gray_videos(folder, levels):
    folder.mkdir(exist_ok=True)
    for number, level in enumerate(levels):
        write_video(folder / f"clip{number}.mp4", torch.full((3, 5, 32, 32), float(level)), fps=8)
        (folder / f"clip{number}.txt").write_text(f"gray number {number}\n")
    return folder


@pytest.fixture
def videos(tmp_path):
    return gray_videos(tmp_path / "videos", [-0.6, -0.3, 0.0, 0.3, 0.6])


def config(server, **values):
    return parse_config(RewardConfig, {"url": server.url, "timeout": 60, "retries": 2} | values)


def score(folder, config):
    return score_videos(list_videos(folder, None), folder / "out.jsonl", config)


def ratings(scored):
    return [record.scores["style"] for record in scored.rated]


def expected(levels):
    return pytest.approx([3 + 2 * level for level in levels], abs=0.05)  # 1 + 4 * (level + 1) / 2


def test_scores_are_those_of_the_frames_and_prompts_that_were_sent(server, videos):
    scored = score(videos, config(server))
    assert ratings(scored) == expected([-0.6, -0.3, 0.0, 0.3, 0.6])
    assert [record.video for record in scored.rated] == [f"clip{number}" for number in range(5)]
    requests = sorted(server.requests, key=lambda request: request["text"])
    for number, request in enumerate(requests):
        assert request["path"] == "/v1/chat/completions" and request["temperature"] == 0
        assert request["sizes"] == [[32, 32]] * 16 and request["text"].endswith(f"Text Caption: gray number {number}")
    summary = summarize(scored, config(server))
    assert len(scored.rated) == 5 and scored.failures == {}
    assert list(summary) == ["overall", "alignment", "physics", "style"]
    assert summary["overall"].low < summary["overall"].mean < summary["overall"].high


def test_version_1(server, videos):
    scored = score(videos, config(server, version=1))
    assert {len(request["sizes"]) for request in server.requests} == {8}
    assert [record.scores["final"] for record in scored.rated] == pytest.approx([2.8, 4.15, 5.5, 6.85, 8.2], abs=0.1)
    assert list(summarize(scored, config(server, version=1))) == ["overall", *VERSIONS[1].axes, "final"]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_batch_size_is_the_number_of_requests_in_flight(server, videos, batch_size):
    score(videos, config(server, batch_size=batch_size))
    assert max(request["active"] for request in server.requests) == batch_size


def test_only_what_has_no_answer_yet_is_asked(server, videos):
    first = score(videos, config(server))
    server.plan([])
    assert score(videos, config(server)) == first and server.requests == []
    (videos / "clip1.txt").write_text("another prompt")
    write_video(videos / "clip2.mp4", torch.zeros(3, 9, 32, 32), fps=8)
    score(videos, config(server))
    assert sorted(request["text"].rpartition(": ")[2] for request in server.requests) == [
        "another prompt",
        "gray number 2",
    ]
    lines = (videos / "out.jsonl").read_text()
    (videos / "out.jsonl").write_text(lines[:-10])  # killed in the middle of the last line
    server.plan([])
    score(videos, config(server))
    assert len(server.requests) == 1
    server.plan([])
    score(videos, config(server))
    assert server.requests == []


SLOW = pytest.param("slow", marks=pytest.mark.slow)


@pytest.mark.parametrize("fate", ["429", "500", "503", "drop", SLOW])
def test_passing_trouble_is_waited_out(server, videos, fate):
    server.plan([fate, "ok", fate])
    started = time.monotonic()
    scored = score(videos, config(server, timeout=2 if fate == "slow" else 60))
    assert scored.failures == {} and len(scored.rated) == 5
    assert len(server.requests) == 7
    assert fate != "429" or time.monotonic() - started >= 1  # Retry-After


@pytest.mark.parametrize(
    ("fate", "reason"),
    [
        ("429", "HTTP 429 Too Many Requests: the server's own words"),
        ("500", "HTTP 500 Internal Server Error: the server's own words"),
        pytest.param("slow", "no answer within 2 s", marks=pytest.mark.slow),
        ("drop", "connection lost"),
    ],
)
def test_lasting_trouble_fails_one_video_and_keeps_the_others(server, videos, fate, reason):
    settings = config(server, batch_size=1, timeout=2 if fate == "slow" else 60)
    server.plan(["ok", *[fate] * 3, "ok", "ok", "ok"])
    scored = score(videos, settings)
    assert list(scored.failures) == ["clip1"] and scored.failures["clip1"].startswith(reason)
    assert [record.video for record in scored.rated] == ["clip0", "clip2", "clip3", "clip4"]
    server.plan([])
    assert len(score(videos, settings).rated) == 5 and len(server.requests) == 1


@pytest.mark.parametrize(
    ("fate", "reason"), [("nonsense", "no chat completion"), ("empty", "no chat"), ("400", "HTTP 400")]
)
def test_what_repetition_does_not_mend_is_not_repeated(server, videos, fate, reason):
    server.plan([fate])
    scored = score(videos, config(server, batch_size=1))
    assert scored.failures["clip0"].startswith(reason)
    assert len(server.requests) == 5


def test_an_answer_without_ratings_is_a_failure_and_is_asked_again(server, videos):
    settings = config(server, batch_size=1)
    server.plan(["ok", "chatter"])
    scored = score(videos, settings)
    assert list(scored.failures) == ["clip1"] and len(scored.rated) == 4
    assert "no rating from 1 to 5 for Alignment in the answer 'A fine video, I like it.'" in scored.failures["clip1"]
    server.plan([])
    assert len(score(videos, settings).rated) == 5 and len(server.requests) == 1


def test_an_answer_that_max_tokens_cut_off_says_so_and_is_asked_again(server, videos):
    server.plan(["short"] * 5)
    scored = score(videos, config(server))
    assert scored.rated == []
    assert set(scored.failures.values()) == {"cut off after 1024 tokens, before the ratings; raise max_tokens"}
    with pytest.raises(UserError, match=r"no video got a score; clip.: cut off after 1024 tokens"):
        summarize(scored, config(server))
    server.plan(["short"] * 5)
    assert len(score(videos, config(server, max_tokens=4096)).rated) == 5
    assert {request["max_tokens"] for request in server.requests} == {4096}


DRAFT = "Alignment Score (1-5): 1\nPhysics Score (1-5): 1\nStyle Score (1-5): 1"


@pytest.mark.parametrize(
    "choice",
    [
        {"message": {"content": None, "reasoning_content": "hm", "reasoning": "RATING"}, "finish_reason": "length"},
        {"message": {"content": "", "reasoning_content": "RATING"}, "finish_reason": "stop"},
        {"message": {"content": f"<think>\n{DRAFT}\n</think>\nRATING"}},
        {"message": {"content": f"{DRAFT}\n</think>\nRATING"}},  # the template opened the thinking
        {"message": {"content": f"RATING\n<think>{DRAFT}"}},
        {"message": {"content": [{"type": "text", "text": "RATING"}]}},
        {"message": {"content": [{"type": "thinking", "thinking": DRAFT}, {"type": "text", "text": "RATING"}]}},
        {"message": {"content": "RATING", "reasoning_content": DRAFT}, "finish_reason": "stop"},
    ],
)
def test_ratings_are_found_wherever_servers_put_them(server, videos, choice):
    server.plan([{"choice": choice}] * 5)
    assert ratings(score(videos, config(server))) == expected([-0.6, -0.3, 0.0, 0.3, 0.6])


@pytest.mark.parametrize(
    "choice",
    [
        {"message": {"content": "Alignment Score (1-5): 3.5\nPhys"}, "finish_reason": "length"},
        {"message": {"content": f"<think>{DRAFT}"}, "finish_reason": "length"},  # drafts are not the answer
        {"message": {"content": None}, "finish_reason": "length"},
    ],
)
def test_half_an_answer_is_none(server, videos, choice):
    server.plan([{"choice": choice}])
    scored = score(videos, config(server, batch_size=1))
    assert scored.failures == {"clip0": "cut off after 1024 tokens, before the ratings; raise max_tokens"}


def test_a_key_is_sent_and_never_shown(server, videos, capsys, monkeypatch):
    server.plan(["key"])
    with pytest.raises(UserError, match=r"HTTP 401 Unauthorized: Unauthorized.*api_key=.*OPENAI_API_KEY"):
        score(videos, config(server, batch_size=1))
    server.plan(["key"])
    with pytest.raises(UserError) as refused:
        score(videos, config(server, batch_size=1, api_key="secret-words"))
    assert "secret-words" not in str(refused.value) and "***" in str(refused.value)
    server.plan(["key"] * 5)
    assert len(score(videos, config(server, api_key="k")).rated) == 5
    (videos / "out.jsonl").unlink()
    server.plan(["key"] * 5)
    monkeypatch.setenv("OPENAI_API_KEY", "k\n")
    assert len(score(videos, config(server)).rated) == 5
    server.plan([])
    assert main(["reward", "--video_dir", str(videos), f"url={server.url}", "api_key=4711"]) == 0
    assert {request["key"] for request in server.requests} == {"Bearer 4711"}
    assert "4711" not in "".join(capsys.readouterr())
    written = [path.read_text() for path in videos.iterdir() if path.suffix in (".json", ".jsonl", ".csv")]
    assert len(written) == 4 and not any("4711" in text or "secret-words" in text for text in written)
    with pytest.raises(UserError, match="holds a character that no key has") as refused:
        score(videos, config(server, api_key="sécret"))
    assert "sécret" not in str(refused.value)


LIMIT = {"error": {"message": "At most 1 image(s) may be provided in one prompt.", "code": 400}}
CONTEXT = {"object": "error", "message": "This model's maximum context length is 4096 tokens. You requested 20000"}


@pytest.mark.parametrize(
    ("error", "advice"), [(LIMIT, "--limit-mm-per-prompt"), (CONTEXT, "--max-model-len"), ({"detail": "no"}, "")]
)
def test_what_the_server_refuses_comes_with_advice(server, videos, error, advice):
    server.plan([{"status": 400, "error": error}])
    if error is LIMIT:  # the next video would fare no better
        with pytest.raises(UserError, match=r"HTTP 400.*--limit-mm-per-prompt"):
            score(videos, config(server, batch_size=1))
        assert len(server.requests) == 1
    else:
        text = score(videos, config(server, batch_size=1)).failures["clip0"]
        assert text.startswith("HTTP 400 Bad Request: ") and advice in text


def test_a_proxy_is_named_and_loopback_goes_past_it(server, videos, monkeypatch):
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://user:word@127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert len(score(videos, config(server)).rated) == 5
    (videos / "out.jsonl").unlink()
    elsewhere = parse_config(RewardConfig, {"url": "http://reward.example", "retries": 0})
    message = r"http://reward.example: not reached through the proxy http://127.0.0.1:9 .*NO_PROXY=reward.example"
    with pytest.raises(UserError, match=message) as failed:
        score(videos, elsewhere)
    assert "word" not in str(failed.value)
    monkeypatch.setenv("http_proxy", server.url)  # a proxy that answers by itself
    server.plan(["503"] * 5)
    scored = score(videos, elsewhere.model_copy(update={"batch_size": 1, "max_failures": 9}))
    assert f"it came through the proxy {server.url}" in scored.failures["clip0"]
    for broken in ("socks5://127.0.0.1:9", "nonsense://127.0.0.1:9"):
        monkeypatch.setenv("http_proxy", broken)
        with pytest.raises(UserError, match=f"proxy {broken}"):
            score(videos, elsewhere)


def test_a_run_of_failures_ends_the_run_and_keeps_what_there_is(server, videos):
    server.plan(["ok", "ok", *["500"] * 20])
    settings = config(server, batch_size=1, retries=0, max_failures=2)
    with pytest.raises(UserError, match=r"2 requests in a row failed, at last: HTTP 500.*out.jsonl.*continues"):
        score(videos, settings)
    assert len((videos / "out.jsonl").read_text().splitlines()) == 2


def test_a_server_that_is_down(videos):
    with pytest.raises(UserError, match=f"{DOWN}: no server there; start it, or give its address with url="):
        score(videos, parse_config(RewardConfig, {"url": DOWN, "retries": 1}))


def test_an_unknown_model_name_ends_the_run_at_once(server, videos):
    with pytest.raises(UserError, match="model Other: HTTP 404 Not Found: The model `Other` does not exist"):
        score(videos, config(server, model="Other", batch_size=1))
    assert len(server.requests) == 1


def test_a_broken_video_is_listed_and_the_others_are_scored(server, videos):
    (videos / "clip1.mp4").write_bytes(b"broken")
    scored = score(videos, config(server))
    assert list(scored.failures) == ["clip1"] and "not a video" in scored.failures["clip1"]
    assert len(scored.rated) == 4


def test_two_folders_are_compared_pair_by_pair(server, videos, tmp_path):
    brighter = gray_videos(tmp_path / "brighter", [-0.5, -0.2, 0.1, 0.4])
    settings = config(server)
    first, second = score(videos, settings), score(brighter, settings)
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
        pair_up(first, Scored())


def test_prompts_are_found_where_captions_are(videos, server):
    for path in videos.glob("*.txt"):
        path.unlink()
    lines = [json.dumps({"file_name": f"clip{number}.mp4", "text": f"gray number {number}"}) for number in range(5)]
    (videos / "metadata.jsonl").write_text("\n".join(lines))
    assert [video.prompt for video in list_videos(videos, None)] == [f"gray number {n}" for n in range(5)]
    assert main(["reward", "--video_dir", str(videos), f"url={server.url}"]) == 0
    (videos / "metadata.jsonl").unlink()
    with pytest.raises(UserError, match="no prompt for this video"):  # not from the tables of the command itself
        list_videos(videos, None)


@pytest.mark.parametrize(
    "setting",
    [
        "url=localhost:80",
        "url=http://",
        "url=http://a:b",
        "url=http://user:word@host",
        "version=3",
        "batch_size=0",
        "timeout=0",
        "model_name=x",
    ],
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(UserError, match=setting.partition("=")[0]):
        load_config(RewardConfig, None, [setting])


def test_the_command_prints_scores_and_difference(server, videos, tmp_path, capsys):
    brighter = gray_videos(tmp_path / "brighter", [-0.5, -0.2, 0.1, 0.4, 0.7])
    settings = [f"url={server.url}", "retries=0"]
    assert main(["reward", "--video_dir", str(brighter), "--against", str(videos), *settings]) == 0
    output = capsys.readouterr().out
    assert f"{brighter}: 5 videos, UnifiedReward 2; means, in brackets their 95 % intervals" in output
    assert f"{brighter} minus {videos}, 5 pairs; means, in brackets their 95 % intervals" in output
    assert "win rate               1.000 (1.000 to 1.000)" in output
    rows = list(csv.reader((videos / "unified_reward_v2.csv").read_text().splitlines()))
    assert rows[0] == ["name", "prompt", "overall", "alignment", "physics", "style"]
    page = Parsed((brighter / "unified_reward_v2_pairs.html").read_text())
    assert f"{brighter} wins 100% of 5 pairs against {videos}, ties counted half" in page.text and "better" in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == 2 * 5
    assert [source for source in page.sources if not source.startswith("data:")] == ["unified_reward_v2_pairs.csv"]
    shown = [words for words in page.words if words.startswith("gray number") and "(overall" in words]
    differences = [float(words.split(": ")[-1].rstrip(")")) for words in shown]
    assert len(differences) == 5 and differences == sorted(differences)
    alone = Parsed((videos / "unified_reward_v2.html").read_text())
    assert "mean overall rating" in alone.text and "5 videos" in alone.text and "alignment 1.80" in alone.text
    assert rows[5][:2] == ["clip4", "gray number 4"] and [float(rows[5][2])] == expected([0.6])
    pairs = list(csv.DictReader((brighter / "unified_reward_v2_pairs.csv").read_text().splitlines()))
    assert len(pairs) == 5 and all(0.1 < float(pair["difference"]) < 0.3 for pair in pairs)
    assert json.loads((brighter / "unified_reward_v2_pairs.json").read_text())["win_rate"]["mean"] == 1
    summary = json.loads((videos / "unified_reward_v2.json").read_text())
    assert summary["videos"] == 5 and summary["scores"]["style"]["count"] == 5
    assert len((videos / "unified_reward_v2.jsonl").read_text().splitlines()) == 5


def test_a_package_that_is_not_installed_is_named(videos, monkeypatch, capsys):
    for name in ("reward", "reward_client"):
        monkeypatch.delitem(sys.modules, f"sat_ssvae.evaluation.{name}")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(SystemExit):
        main(["reward", "--video_dir", str(videos)])
    assert capsys.readouterr().err.startswith("error: the package openai is not installed; the extras of sat-ssvae")


@pytest.mark.slow
def test_the_articles_script(server, videos):
    def run(*arguments):
        script = [sys.executable, str(ROOT / "scripts" / "eval_unified_reward.py")]
        command = [*script, "--video_dir", str(videos), "--batch_size", "4", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    done = run(f"url={server.url}")
    assert done.returncode == 0 and "5 videos" in done.stdout
    done = run(f"url={DOWN}", "version=1", "retries=0")
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(f"error: {DOWN}: no server there")
