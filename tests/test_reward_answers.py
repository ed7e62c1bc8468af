"""What a judge's server may answer, or not: trouble that passes, trouble that lasts, and ratings in any wording."""

import gc
import gzip
import json
import time

import pytest

from sat_ssvae.config import parse_config
from sat_ssvae.errors import UserError
from sat_ssvae.evaluation.reward import RewardConfig, summarize

from .judged import DOWN, config, expected, ratings, score

SLOW = pytest.param("slow", marks=pytest.mark.slow)


@pytest.mark.parametrize("fate", ["429", "500", "503", "drop", SLOW])
def test_passing_trouble_is_waited_out(judge, gray, fate):
    judge.plan([fate, "ok", fate])
    started = time.monotonic()
    scored = score(gray, config(judge, timeout=2 if fate == "slow" else 60))
    assert scored.failures == {} and len(scored.rated) == 5
    assert len(judge.requests) == 7
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
def test_lasting_trouble_fails_one_video_and_keeps_the_others(judge, gray, fate, reason):
    settings = config(judge, batch_size=1, timeout=2 if fate == "slow" else 60)
    judge.plan(["ok", *[fate] * 3, "ok", "ok", "ok"])
    scored = score(gray, settings)
    assert list(scored.failures) == ["clip1"] and scored.failures["clip1"].startswith(reason)
    assert [record.video for record in scored.rated] == ["clip0", "clip2", "clip3", "clip4"]
    judge.plan([])
    assert len(score(gray, settings).rated) == 5 and len(judge.requests) == 1


@pytest.mark.parametrize(
    ("fate", "reason"), [("nonsense", "no chat completion"), ("empty", "an answer without a text"), ("400", "HTTP 400")]
)
def test_what_repetition_does_not_mend_is_not_repeated(judge, gray, fate, reason):
    judge.plan([fate])
    scored = score(gray, config(judge, batch_size=1))
    assert scored.failures["clip0"].startswith(reason)
    assert len(judge.requests) == 5


def test_an_answer_without_ratings_is_a_failure_and_is_asked_again(judge, gray):
    settings = config(judge, batch_size=1)
    judge.plan(["ok", "chatter"])
    scored = score(gray, settings)
    assert list(scored.failures) == ["clip1"] and len(scored.rated) == 4
    assert "no rating from 1 to 5 for Alignment in the answer 'A fine video, I like it.'" in scored.failures["clip1"]
    judge.plan([])
    assert len(score(gray, settings).rated) == 5 and len(judge.requests) == 1


def test_an_answer_that_max_tokens_cut_off_says_so_and_is_asked_again(judge, gray):
    judge.plan(["short"] * 5)
    scored = score(gray, config(judge))
    assert scored.rated == []
    assert set(scored.failures.values()) == {"cut off after 1024 tokens, before the ratings; raise max_tokens"}
    with pytest.raises(UserError, match=r"no video got a score; clip.: cut off after 1024 tokens"):
        summarize(scored, config(judge))
    judge.plan(["short"] * 5)
    assert len(score(gray, config(judge, max_tokens=4096)).rated) == 5
    assert {request["max_tokens"] for request in judge.requests} == {4096}


DRAFT = "Alignment Score (1-5): 1\nPhysics Score (1-5): 1\nStyle Score (1-5): 1"


@pytest.mark.parametrize(
    "choice",
    [
        {"message": {"content": None, "reasoning_content": "hm", "reasoning": "RATING"}, "finish_reason": "length"},
        {"message": {"content": "", "reasoning_content": "RATING"}, "finish_reason": "stop"},
        {"message": {"content": f"<think>\n{DRAFT}\n</think>\nRATING"}},
        {"message": {"content": f"{DRAFT}\n</think>\nRATING"}},  # the template opened the thinking
        {"message": {"content": f"RATING\n<think>{DRAFT}"}},
        {"message": {"content": f"◁think▷{DRAFT}◁/think▷RATING"}},
        {"message": {"content": f"RATING\n<Thinking>{DRAFT}"}},
        {"message": {"content": f"<think>\n{DRAFT}\nRATING\n</think>\n"}, "finish_reason": "stop"},
        {"message": {"content": [{"type": "text", "text": "RATING"}]}},
        {"message": {"content": [{"type": "thinking", "thinking": DRAFT}, {"type": "text", "text": "RATING"}]}},
        {"message": {"content": "RATING", "reasoning_content": DRAFT}, "finish_reason": "stop"},
    ],
)
def test_ratings_are_found_wherever_servers_put_them(judge, gray, choice):
    judge.plan([{"choice": choice}] * 5)
    assert ratings(score(gray, config(judge))) == expected([-0.6, -0.3, 0.0, 0.3, 0.6])


@pytest.mark.parametrize(
    "choice",
    [
        {"message": {"content": "Alignment Score (1-5): 3.5\nPhys"}, "finish_reason": "length"},
        {"message": {"content": f"<think>{DRAFT}"}, "finish_reason": "length"},  # drafts are not the answer
        {"message": {"content": f"<thinking>{DRAFT}"}, "finish_reason": "length"},
        {"message": {"content": f"[THINK]{DRAFT}"}, "finish_reason": "length"},
        {"message": {"content": None}, "finish_reason": "length"},
        {"message": {"content": "Alignment Score (1-5): 3.5\nPhys"}, "finish_reason": "MAX_TOKENS"},
        {"message": {"content": "Alignment Score (1-5): 3.5", "reasoning": DRAFT}, "finish_reason": "length"},
        {"message": {"content": f"<think>{DRAFT}</think>\nAlignment Score (1-5): 3.5"}, "finish_reason": "length"},
    ],
)
def test_half_an_answer_is_none(judge, gray, choice):
    judge.plan([{"choice": choice}])
    scored = score(gray, config(judge, batch_size=1))
    assert scored.failures == {"clip0": "cut off after 1024 tokens, before the ratings; raise max_tokens"}


@pytest.mark.parametrize(
    "message", [{"content": f"<think>{DRAFT}</think>\nNo."}, {"content": "No.", "reasoning_content": DRAFT}]
)
def test_drafts_do_not_stand_for_the_answer_that_follows_them(judge, gray, message):
    judge.plan([{"choice": {"message": message}}])
    scored = score(gray, config(judge, batch_size=1))
    assert list(scored.failures) == ["clip0"] and "no rating from 1 to 5" in scored.failures["clip0"]


LIMIT = {"error": {"message": "At most 1 image(s) may be provided in one prompt.", "code": 400}}


CONTEXT = {"object": "error", "message": "This model's maximum context length is 4096 tokens. You requested 20000"}


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (LIMIT, "--limit-mm-per-prompt"),
        (CONTEXT, "--max-model-len"),
        ({"error": {"message": "the request exceeds the available context size"}}, "llama.cpp: --ctx-size"),
        ({"detail": "no"}, ""),
    ],
)
def test_what_the_server_refuses_comes_with_advice(judge, gray, error, advice):
    judge.plan([{"status": 400, "error": error}])
    if error is LIMIT:  # the next video would fare no better
        with pytest.raises(UserError, match=r"HTTP 400.*--limit-mm-per-prompt"):
            score(gray, config(judge, batch_size=1))
        assert len(judge.requests) == 1
    else:
        text = score(gray, config(judge, batch_size=1)).failures["clip0"]
        assert text.startswith("HTTP 400 Bad Request: ") and advice in text


def test_a_proxy_is_named_and_loopback_goes_past_it(judge, gray, monkeypatch):
    for name in ("http_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://user:word@127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert len(score(gray, config(judge)).rated) == 5
    (gray / "out.jsonl").unlink()
    elsewhere = parse_config(RewardConfig, {"url": "http://reward.example", "retries": 0})
    message = r"http://reward.example: not reached through the proxy http://127.0.0.1:9 .*NO_PROXY=reward.example"
    with pytest.raises(UserError, match=message) as failed:
        score(gray, elsewhere)
    assert "word" not in str(failed.value)
    monkeypatch.setenv("http_proxy", judge.url)  # a proxy that answers by itself
    judge.plan(["503"] * 5)
    scored = score(gray, elsewhere.model_copy(update={"batch_size": 1, "max_failures": 9}))
    assert f"it came through the proxy {judge.url}" in scored.failures["clip0"]
    for broken in ("socks5://127.0.0.1:9", "nonsense://127.0.0.1:9"):
        monkeypatch.setenv("http_proxy", broken)
        with pytest.raises(UserError, match=f"proxy {broken}"):
            score(gray, elsewhere)


def test_a_run_of_failures_ends_the_run_and_keeps_what_there_is(judge, gray):
    judge.plan(["ok", "ok", *["500"] * 20])
    settings = config(judge, batch_size=1, retries=0, max_failures=2)
    with pytest.raises(UserError, match=r"2 requests in a row failed, at last: HTTP 500.*out.jsonl.*continues"):
        score(gray, settings)
    assert len((gray / "out.jsonl").read_text().splitlines()) == 2


def test_a_server_that_is_down(gray):
    with pytest.raises(UserError, match=rf"{DOWN}: no server there \(.*\); start it, or give its address with url="):
        score(gray, parse_config(RewardConfig, {"url": DOWN, "retries": 1}))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # asyncio's, of the failed handshake
def test_a_server_without_a_name_or_without_encryption_is_told_apart(judge, gray):
    elsewhere = parse_config(RewardConfig, {"url": "http://no-such-host.invalid", "retries": 0})
    with pytest.raises(UserError, match=r"no server there \(\[Errno .*\); start it"):
        score(gray, elsewhere)
    settings = config(judge, url=judge.url.replace("http", "https"), retries=0)
    with pytest.raises(UserError, match=r"no secure connection \(\[SSL.*\); give its http:// address, or"):
        score(gray, settings)
    gc.collect()


def test_certificates_that_cannot_be_read_are_named(gray, tmp_path, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(UserError, match="no certificates can be read from SSL_CERT_FILE"):
        score(gray, parse_config(RewardConfig, {"url": "http://reward.example", "retries": 0}))


@pytest.mark.parametrize(
    ("path", "whole"),
    [
        *[(path, "/v1/chat/completions") for path in ("", "/", "/v1", "/v1/", "/v1/chat/completions")],
        *[(path, "/api/v4/chat/completions") for path in ("/api/v4", "/api/v4/chat/completions/")],
        ("/v1beta/openai/", "/v1beta/openai/chat/completions"),
    ],
)
def test_addresses_as_servers_print_them(judge, gray, path, whole):
    settings = config(judge, url=f" {judge.url}{path} ", batch_size=1, retries=0)
    if not whole.startswith("/v1/"):  # which this server does not have
        with pytest.raises(UserError, match="HTTP 404"):
            score(gray, settings)
    else:
        score(gray, settings)
    assert judge.requests[0]["path"] == whole


def test_an_unknown_model_name_ends_the_run_at_once(judge, gray):
    with pytest.raises(UserError, match="model Other: HTTP 404 Not Found: The model `Other` does not exist"):
        score(gray, config(judge, model="Other", batch_size=1))
    assert len(judge.requests) == 1


GOOD = "Alignment Score (1-5): 3.5\nPhysics Score (1-5): 2.5\nStyle Score (1-5): 4"


def http(body, status="200 OK", *head, length=None):
    """A whole response, as `chat_server.py` sends it."""
    data = body if isinstance(body, bytes) else body.encode()
    size = len(data) if length is None else length
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {size}", "Connection: close", *head, "", ""]
    return {"raw": "\r\n".join(lines) + data.decode("latin-1")}


def completion(content=GOOD, finish_reason="stop", **more):
    return json.dumps({"choices": [{"message": {"content": content}, "finish_reason": finish_reason}], **more})


AROUND = [
    http(completion(finish_reason=None, usage=None)),
    http(completion(usage=[1])),
    http(completion(usage={"completion_tokens": "9"})),
    http(f"\ufeff{completion()}"),
    http(gzip.compress(completion().encode()), "200 OK", "Content-Encoding: gzip"),
]


def test_what_servers_put_around_an_answer_is_no_matter(judge, gray):
    judge.plan(AROUND)
    assert ratings(score(gray, config(judge))) == [4.0] * 5


OVERLOADED = {"error": {"message": "overloaded", "code": 503}}


NO_ANSWERS = [
    (http(completion("", None)), "an answer without a text: finish_reason None"),
    (http(completion(None)), "an answer without a text: finish_reason stop"),
    (http(json.dumps({"choices": [{"message": {"content": "", "refusal": "I may not."}}]})), "I may not"),
    (http(json.dumps({"choices": [OVERLOADED | {"message": {"content": ""}}]})), "without a text: overloaded"),
    (http(json.dumps(OVERLOADED)), "an error instead of an answer: overloaded"),
    (http('{"choices": []}'), "no chat completion in the response"),
    (http(f"data: {completion()}\n\ndata: [DONE]"), "no chat completion in the response: data:"),
    (http(""), "no chat completion in the response: it is empty"),
    (http("[" * 100_000), "no chat completion in the response"),
    (http(completion('{"a":' * 20_000)), "no rating from 1 to 5"),
    (http(completion(), length=9999), "connection lost"),
    (http(completion(), "200 OK", "Content-Encoding: gzip"), "connection lost"),
    (http("null", "400 Bad Request"), "HTTP 400 Bad Request"),
    (http('{"error": null, "message": "no vision"}', "400 Bad Request"), "HTTP 400 Bad Request: no vision"),
    (http('{"code": 1301, "msg": "no balance"}', "400 Bad Request"), 'Request: {"code": 1301, "msg": "no balance"}'),
    (http("{}", "429 Too Many Requests", "Retry-After: 3600"), "it asks for a pause of 3600 s"),
]


@pytest.mark.parametrize("first", range(0, len(NO_ANSWERS), 5))
def test_what_is_no_answer_is_one_line_and_is_asked_again(judge, gray, first):
    settings = config(judge, batch_size=1, retries=0)
    responses, reasons = zip(*NO_ANSWERS[first : first + 5], strict=True)
    judge.plan(responses)
    failures = score(gray, settings).failures
    assert list(failures) == [f"clip{number}" for number in range(len(responses))]
    assert all(reason in failure for reason, failure in zip(reasons, failures.values(), strict=True))
    judge.plan([])
    assert len(score(gray, settings).rated) == 5 and len(judge.requests) == len(responses)


def test_a_message_that_is_cut_short_shows_no_part_of_the_key(judge, gray):
    key = "sk-a-secret-of-many-letters"
    judge.plan([http("x" * place + f" {key}", "400 Bad Request") for place in (0, 150, 160, 170, 190)])
    scored = score(gray, config(judge, batch_size=1, retries=0, api_key=key))
    assert len(scored.failures) == 5 and "sk-" not in str(scored.failures)


def test_an_answer_that_repeats_the_key_is_read_and_kept_without_it(judge, gray, caplog):
    key = "sk-a-secret-of-many-letters"
    caplog.set_level("DEBUG", "sat_ssvae")
    thoughts = {"message": {"content": f"Authorization: Bearer {key}\nRATING"}}
    spoilt = [{"message": {"content": f"{'x' * place} {key} is no rating"}} for place in (0, 60, 70)]
    judge.plan([{"choice": choice} for choice in (thoughts, *spoilt)])
    scored = score(gray, config(judge, batch_size=1, retries=0, api_key=key))
    assert len(scored.rated) == 2 and len(scored.failures) == 3
    assert "Bearer ***" in (gray / "out.jsonl").read_text()
    assert "sk-" not in (gray / "out.jsonl").read_text() + str(scored) + caplog.text
    (gray / "out.jsonl").unlink()
    assert ratings(score(gray, config(judge, api_key="5"))) == ratings(score(gray, config(judge))), "not a rating's 5"


def test_a_redirection_is_named_where_it_fails(judge, gray):
    settings = config(judge, batch_size=1, retries=0)
    judge.plan([http("", "301 Moved Permanently", "Location: /login?token=s3cret")])
    scored = score(gray, settings)
    (failure,) = [text for text in scored.failures.values() if "redirected" in text]
    assert f"the request was redirected to {judge.url}/login; give that server" in failure and "s3cret" not in failure
    judge.plan([http("", "307 Temporary Redirect", "Location: http://a:s3cret@127.0.0.1:9/v1?token=s3cret")])
    with pytest.raises(UserError, match=f"{judge.url}: redirects to http://127.0.0.1:9/v1, where no server is"):
        score(gray, settings)
