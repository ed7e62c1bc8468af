"""Questions to a model server over the OpenAI chat API, through the `openai` package.

    async with aclosing(ChatClient(ServerConfig(url="http://localhost:8080"))) as client:
        answer = await client.ask(messages)

`openai` repeats refused connections, time-outs, "too many requests" and server errors with growing pauses. What remains
wrong is either `RequestFailed`, which concerns one request, or a `UserError`, after which no other request can succeed.
"""

import ipaddress
import json
import os
import re
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import openai
from pydantic import AnyHttpUrl, Field, SecretStr, TypeAdapter, ValidationError, field_validator

from ..config import Config
from ..errors import UserError, one_line

KEY_VARIABLE = "OPENAI_API_KEY"
_SHORT = 200  # characters of what a server said
_HOPELESS = frozenset({401, 403, 404, 407})  # wrong key, path, model name or proxy: the next request fares no better
_MORE_IMAGES = "let the server take that many (vLLM: --limit-mm-per-prompt '{\"image\": 16}')"
_LONGER = "give the server a longer context (vLLM: --max-model-len, llama.cpp: --ctx-size), or lower max_tokens"
_HINTS = {
    "image(s) may be provided": _MORE_IMAGES,
    "limit-mm-per-prompt": _MORE_IMAGES,
    "context length": _LONGER,
    "context size": _LONGER,
    "maximum model length": _LONGER,
}
"""What to do about a refusal that holds these words."""
_THOUGHT = re.compile(r"[<\[◁](?P<closing>/?)(?:\w+:)?(?:think|thinking|thought)[>\]▷]", re.IGNORECASE)
"""What models put around their reasoning."""
_API_VERSION = re.compile(r"/v\d\w*(?:/openai)?$")
"""End of an address that `/chat/completions` is added to."""


class ServerConfig(Config):
    """Where the model is served, and how patient the client is."""

    url: str = "http://localhost:8080"
    """The server, to which `/v1/chat/completions` is added (behind a version such as `/v4` only the rest), or a whole
    address that ends in `/chat/completions`."""
    model: str = "UnifiedReward"
    """The name that the model is served under."""
    api_key: SecretStr = SecretStr("")
    """The server's key; empty takes the environment variable OPENAI_API_KEY. It is sent to the server and written
    nowhere."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds that the server may be silent before or during an answer."""
    retries: int = Field(default=5, ge=0)
    """How often a failed request is sent again, after pauses that double from half a second to eight."""
    max_tokens: int = Field(default=1024, gt=0)
    """Longest answer; models that reason before they rate need more."""

    @field_validator("url")
    @classmethod
    def _http(cls, value: str) -> str:
        try:
            url = TypeAdapter(AnyHttpUrl).validate_python(value)
        except ValidationError:
            raise ValueError("expected the address of a server, for example http://localhost:8080") from None
        if url.username or url.password:
            raise ValueError("expected an address without user and password; a key goes into api_key=...")
        if url.query or url.fragment:
            raise ValueError("expected an address without ? and #; a key goes into api_key=...")
        return value.strip().rstrip("/").removesuffix("/v1/chat/completions").removesuffix("/v1")

    @field_validator("api_key", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        return value if isinstance(value, SecretStr) else str(value).strip()  # digits come as a number

    @property
    def base_url(self) -> str:
        """What `/chat/completions` is added to."""
        whole = self.url.removesuffix("/chat/completions")
        return whole if whole != self.url or _API_VERSION.search(whole) else f"{self.url}/v1"

    @property
    def key(self) -> str:
        """`api_key`, or the environment variable's, or the word that servers without keys ignore."""
        return self.api_key.get_secret_value() or os.environ.get(KEY_VARIABLE, "").strip() or "EMPTY"


class RequestFailed(Exception):
    """One request got no usable answer, however often it was sent; the text says why."""


@dataclass(frozen=True)
class Answer:
    """A model's answer. `texts`: where ratings may stand, best place first; `cut_off`: it reached `max_tokens`."""

    texts: tuple[str, ...]
    cut_off: bool


class ChatClient:
    """Asks questions, any number at a time."""

    def __init__(self, config: ServerConfig) -> None:
        """Raises UserError when the key or the proxy cannot be used."""
        self.config = config
        self._proxy = _proxy(config.url)
        key = config.key
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise UserError(f"api_key or {KEY_VARIABLE}: holds a character that no key has")
        timeout = openai.Timeout(config.timeout, connect=min(10.0, config.timeout))
        try:
            http = openai.DefaultAsyncHttpxClient(timeout=timeout, trust_env=not _is_loopback(config.url))
        except (ImportError, ValueError) as error:  # a SOCKS proxy without its package, or no address at all
            raise UserError(f"the proxy {self._proxy} cannot be used ({error}); {self._bypass}") from None
        except OSError as error:
            places = " or ".join(name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if name in os.environ)
            raise UserError(f"no certificates can be read from {places or 'the system'} ({one_line(error)})") from None
        self._api = openai.AsyncOpenAI(
            api_key=key,
            base_url=config.base_url,
            timeout=timeout,
            max_retries=config.retries,
            http_client=http,
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def ask(self, messages: Sequence[Any]) -> Answer:
        """The model's answer at temperature 0.

        Raises:
            RequestFailed: no usable answer to this request.
            UserError: the server is not there, or refuses requests of this kind.
        """
        config = self.config
        try:
            response = await self._api.chat.completions.with_raw_response.create(
                model=config.model, messages=messages, temperature=0, max_tokens=config.max_tokens
            )
        except openai.APIStatusError as error:
            raise self._refused(_status(error), error.response) from None
        except openai.APIConnectionError as error:
            raise self._unreachable(error) from None
        try:
            return _read_answer(response.text, config.max_tokens)
        except RequestFailed as error:
            raise self._refused(str(error), response.http_response) from None

    def _refused(self, said: str, response: Any) -> Exception:
        """The error that belongs to an answer without a completion, with what can be done about it."""
        code = response.status_code
        hints = list(dict.fromkeys(hint for words, hint in _HINTS.items() if words in said))
        if code in (401, 403):
            hints = [f"give the server's key with api_key=... or in {KEY_VARIABLE}"]
        if response.history:
            hints.append(f"the request was redirected to {_shown(response.url)}; give that server with url=...")
        if (pause := response.headers.get("Retry-After", "")).isdecimal():
            hints.append(f"it asks for a pause of {pause[:9]} s")
        if self._proxy and code in (403, 407, 502, 503, 504):
            hints.append(f"it came through the proxy {self._proxy}; {self._bypass}")
        text = "; ".join([self._in_short(said).rstrip("."), *map(self.without_key, hints)])
        if code in _HOPELESS or _MORE_IMAGES in hints:
            return UserError(f"{self.config.url}, model {self.config.model}: {text}")
        return RequestFailed(text)

    def _unreachable(self, error: openai.APIConnectionError) -> Exception:
        cause = error.__cause__ or error
        # By name: some versions of openai speak through httpx, others through httpx2.
        never_sent = type(cause).__name__ in ("ConnectError", "ConnectTimeout", "ProxyError")
        reason = self._in_short(str(cause)) or type(cause).__name__
        if never_sent and self._proxy:
            return UserError(
                f"{self.config.url}: not reached through the proxy {self._proxy} ({reason}); {self._bypass}"
            )
        asked = str(getattr(cause, "request", error.request).url)
        if never_sent and _place(asked) != _place(self.config.url):
            shown = self.without_key(_shown(asked))
            return UserError(f"{self.config.url}: redirects to {shown}, where no server is")
        if never_sent and "SSL" in reason:
            return UserError(
                f"{self.config.url}: no secure connection ({reason}); give its http:// address, or the server a "
                "certificate that this machine trusts"
            )
        if never_sent:
            return UserError(
                f"{self.config.url}: no server there ({reason}); start it, or give its address with url=..."
            )
        through = f", through the proxy {self._proxy}" if self._proxy else ""
        if isinstance(error, openai.APITimeoutError):
            return RequestFailed(f"no answer within {self.config.timeout:g} s{through}")
        return RequestFailed(f"connection lost ({reason}){through}")

    @property
    def _bypass(self) -> str:
        return f"NO_PROXY={urlsplit(self.config.url).hostname} in the environment goes past it"

    def _in_short(self, text: str) -> str:
        """A text of the server in one short line, without the key (of which a cut text would leave a part)."""
        text = " ".join(self.without_key(text).split())
        return text if len(text) <= _SHORT else f"{text[: _SHORT - 1]}…"

    def without_key(self, text: str) -> str:
        """A text of the server, which may repeat the key, as it can be shown and written."""
        return re.sub(rf"(?<!\w){re.escape(self.config.key)}(?!\w)", "***", text)


def _read_answer(response: str, max_tokens: int) -> Answer:
    """The answer in a response that has the status 200, which does not say that it holds one.

    Raises:
        RequestFailed: it is something else.
    """
    try:
        body = json.loads(response.removeprefix("\ufeff"))
        if isinstance(body, dict) and body.get("error"):
            raise RequestFailed(f"an error instead of an answer: {_said(body)}")
        choice = body["choices"][0]
        message = choice["message"]
        content = _joined(message.get("content"))
        thoughts = [_joined(message.get(name)) for name in ("reasoning_content", "reasoning")]
        said = _said({"error": choice.get("error")}) or message.get("refusal")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise RequestFailed(f"no chat completion in the response: {response.strip() or 'it is empty'}") from None
    usage = body.get("usage")
    used = usage.get("completion_tokens") if isinstance(usage, dict) else 0
    reached = str(choice.get("finish_reason")).lower() in ("length", "max_tokens")
    cut_off = reached or (isinstance(used, int) and used >= max_tokens)
    # The text after the reasoning; reasoning stands for an answer only if it was closed and nothing follows it.
    end = max((tag.end() for tag in _THOUGHT.finditer(content) if tag["closing"]), default=0)
    thought, spoken = content[:end], _THOUGHT.split(content[end:], maxsplit=1)[0]
    texts = (spoken,) if spoken.strip() else tuple(text for text in (thought, *thoughts) if text.strip())
    if not texts and not cut_off:
        detail = said or f"finish_reason {choice.get('finish_reason')}"
        raise RequestFailed(f"an answer without a text: {detail}")
    return Answer(texts, cut_off)


def _joined(content: Any) -> str:
    """The text of a message, which is a string, a list of parts, or missing."""
    if isinstance(content, list):
        return "\n".join(str(part.get("text") or "") if isinstance(part, dict) else str(part) for part in content)
    return content if isinstance(content, str) else ""


def _place(url: str) -> tuple[str | None, int]:
    parts = urlsplit(url)
    return parts.hostname, parts.port or {"https": 443}.get(parts.scheme, 80)


def _shown(url: Any) -> str:
    """An address without what may be a secret in it: user, password and query."""
    parts = urlsplit(str(url))
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified  # 0.0.0.0 is what servers print


def _proxy(url: str) -> str:
    """The proxy of the environment that leads to `url`, without its password; empty if there is none."""
    parts, proxies = urlsplit(url), urllib.request.getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all") or ""
    if not proxy or _is_loopback(url) or urllib.request.proxy_bypass(parts.hostname or ""):
        return ""
    return proxy.replace(f"{urlsplit(proxy).netloc.rpartition('@')[0]}@", "") if "@" in proxy else proxy


def _status(error: openai.APIStatusError) -> str:
    """`HTTP 429 Too Many Requests: what the server said`."""
    response = error.response
    try:
        detail = _said(response.json()) or response.text
    except (ValueError, RecursionError):
        detail = response.text
    return f"HTTP {response.status_code} {response.reason_phrase}".rstrip() + (f": {detail}" if detail else "")


def _said(content: Any) -> Any:
    """What a server's JSON says of an error."""
    if not isinstance(content, dict):
        return content
    said = next((content[key] for key in ("error", "detail", "message") if content.get(key)), "")
    return said.get("message", said) if isinstance(said, dict) else said
