"""A client of the OpenAI chat API that survives what a busy model server does.

    with ChatClient(ServerConfig(url="http://localhost:8080")) as client:
        answer = client.ask(messages)

Refused connections, time-outs, "too many requests" and server errors are tried again, each time after twice the pause
(or what the server's Retry-After asks for). What remains wrong is either `RequestFailed`, which concerns one request,
or a `UserError`, after which no other request can succeed either.
"""

import logging
import random
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import httpx2
from pydantic import Field, field_validator

from ..config import Config
from ..errors import UserError

logger = logging.getLogger(__name__)

_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_HOPELESS = frozenset({401, 403, 404})  # wrong key, path or model name: the next request fares no better
_MAX_PAUSE = 60.0


class ServerConfig(Config):
    """Where the model is served, and how patient the client is."""

    url: str = "http://localhost:8080"
    """The server; `/v1/chat/completions` is added to it."""
    model: str = "UnifiedReward"
    """The name that the model is served under."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds that an answer may take."""
    retries: int = Field(default=5, ge=0)
    """How often a failed request is sent again."""
    pause: float = Field(default=1.0, ge=0)
    """Seconds before the first repetition; doubles each time, up to 60."""
    max_tokens: int = Field(default=1024, gt=0)
    """Longest answer."""

    @field_validator("url")
    @classmethod
    def _http(cls, value: str) -> str:
        try:
            url = httpx2.URL(value)
        except httpx2.InvalidURL as error:
            raise ValueError(str(error)) from None
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("expected the address of a server, for example http://localhost:8080")
        return value.rstrip("/").removesuffix("/v1")


class RequestFailed(Exception):
    """One request got no usable answer, however often it was sent; the text says why."""


class ChatClient:
    """Asks one question at a time in each thread; may be shared by threads. Closing it ends their repetitions."""

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        self._http = httpx2.Client(timeout=httpx2.Timeout(config.timeout, connect=min(10.0, config.timeout)))
        self._closed = threading.Event()

    def __enter__(self) -> "ChatClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed.set()
        self._http.close()

    def ask(self, messages: Sequence[dict[str, Any]]) -> str:
        """The model's answer at temperature 0.

        Raises:
            RequestFailed: no usable answer to this request.
            UserError: the server is not there, or refuses requests of this kind.
        """
        for attempt in range(self.config.retries + 1):
            try:
                response = self._post(messages)
            except httpx2.TimeoutException as error:
                reason, pause, down = f"no answer within {self.config.timeout:g} s", 0.0, _never_sent(error)
            except httpx2.TransportError as error:
                reason, pause, down = f"connection lost ({_words(error)})", 0.0, _never_sent(error)
            else:
                if response.status_code not in _TRY_AGAIN:
                    return self._answer(response)
                reason, pause, down = _status(response), _retry_after(response), False
            if attempt < self.config.retries:
                logger.debug("%s; trying again", reason)
                if self._closed.wait(max(pause, self._backoff(attempt))):
                    raise RequestFailed("the client was closed")
        if down:
            raise UserError(f"{self.config.url}: no server there; start it, or give its address with url=...")
        raise RequestFailed(reason)

    def _post(self, messages: Sequence[dict[str, Any]]) -> httpx2.Response:
        body = {
            "model": self.config.model,
            "messages": messages,
            "temperature": 0,
            "max_tokens": self.config.max_tokens,
        }
        return self._http.post(f"{self.config.url}/v1/chat/completions", json=body)

    def _answer(self, response: httpx2.Response) -> str:
        if response.status_code in _HOPELESS:
            raise UserError(f"{self.config.url}, model {self.config.model}: {_status(response)}")
        if response.status_code != 200:
            raise RequestFailed(_status(response))
        try:
            answer = response.json()["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            answer = None
        if not isinstance(answer, str):
            raise RequestFailed(f"no chat completion in the response: {_shortened(response.text)}")
        return answer

    def _backoff(self, attempt: int) -> float:
        """Seconds; half of it at random, so that a batch's repetitions do not arrive together."""
        return min(_MAX_PAUSE, self.config.pause * 2**attempt) * random.uniform(0.5, 1.0)


def _never_sent(error: httpx2.TransportError) -> bool:
    return isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout)


def _retry_after(response: httpx2.Response) -> float:
    """The pause in seconds that the server asks for; 0 where it names none (or a date, which servers hardly send)."""
    asked = response.headers.get("Retry-After", "")
    return min(_MAX_PAUSE, float(asked)) if asked.isdecimal() else 0.0


def _status(response: httpx2.Response) -> str:
    try:
        content = response.json()
        error = content.get("error", content)
        detail = error.get("message") if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        detail = response.text
    detail = _shortened(str(detail or ""))
    return f"HTTP {response.status_code} {response.reason_phrase}" + (f": {detail}" if detail else "")


def _words(error: Exception) -> str:
    return _shortened(str(error)) or type(error).__name__


def _shortened(text: str, length: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else f"{text[: length - 1]}…"
