"""A client of OpenAI-compatible servers, out of the standard library.

It asks greedily, with bounded concurrency, waits where a server asks it to, tries again what may
work the next time, and turns everything else into one sentence. The key comes from the environment
and goes to the given address only: redirects are not followed.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from errata.errors import ConfigError, EndpointError
from errata.served.answers import Said, read_said

KEYS = ("ERRATA_ENDPOINT_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the key, the first one first."""

LARGEST = 16 << 20
"""Bytes of an answer at most."""
LONGEST_WAIT = 60.0
"""Seconds that a server may ask to wait at most."""
AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Answers after which the same request may work."""

Message = Mapping[str, str]


@dataclass(frozen=True)
class Request:
    """One question for a server.

    Attributes:
        prompt: A text to go on from, or the messages of a chat.
        tokens: Tokens of the answer at most.
        model: Who is asked; default: the endpoint's model.
    """

    prompt: str | tuple[Message, ...]
    tokens: int
    model: str | None = None


@dataclass(frozen=True)
class Failure:
    """A question that was not answered.

    Attributes:
        reason: Why not, in one sentence.
    """

    reason: str


@dataclass(frozen=True)
class Endpoint:
    """A server and the model that is asked there.

    Attributes:
        url: Where its interface begins (`http://localhost:8000/v1`).
        model: Name of the model there; empty if the server is to choose.
        timeout: Seconds to wait for one answer.
        retries: Times that a request is made again.
        workers: Requests under way at once.
        key: Sent as a bearer token.
    """

    url: str
    model: str = ""
    timeout: float = 60.0
    retries: int = 4
    workers: int = 4
    key: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, url: str, model: str | None = None, **how: Any) -> Endpoint:
        """Read an address; the key comes from the environment.

        Raises:
            ConfigError: If it is none, or holds a password.
        """
        return cls(address(url), model or "", key=key(), **how)


def key() -> str | None:
    """Return the key that the environment holds, if any."""
    return next((os.environ[name].strip() for name in KEYS if os.environ.get(name)), None)


def address(url: str) -> str:
    """Return where the interface of a server begins.

    Raises:
        ConfigError: If this is no address, or it holds a password.
    """
    try:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        named = parts.hostname
        _ = parts.port
    except ValueError:
        parts, named = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not named:
        raise ConfigError(f"{url!r} is no address", "Example: --endpoint http://localhost:8000/v1")
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            "an address with a password, name or query is not taken",
            f"Put the key into the environment: {KEYS[0]}=…",
        )
    path = parts.path.rstrip("/")
    for end in ("/chat/completions", "/completions", "/models"):
        path = path.removesuffix(end)
    return urlunsplit((parts.scheme, parts.netloc, path or "/v1", "", ""))


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key would go along."""

    def redirect_request(self, *of: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Say no."""
        return None


def open_here(request: urllib.request.Request, timeout: float) -> Any:
    """Send a request to its own address and to no other."""
    return _OPENER.open(request, timeout=timeout)


_OPENER = urllib.request.build_opener(_Stay)


class Refused(Exception):
    """The server's answer to one request is an error.

    Args:
        code: Of HTTP; 0 if there was no answer, 200 if it is not what was asked for.
        reason: What is said to the user.
        wait: Seconds after which it may be tried again; None: it may not.
    """

    def __init__(self, code: int, reason: str, wait: float | None = None) -> None:
        super().__init__(reason)
        self.code, self.reason, self.wait = code, reason, wait


class Client:
    """Asks one endpoint.

    Args:
        endpoint: Where.
        sleep: Waits some seconds; replaced in tests.
    """

    def __init__(self, endpoint: Endpoint, sleep: Callable[[float], None] = time.sleep) -> None:
        self.endpoint = endpoint
        self._sleep = sleep
        self._down = threading.Event()
        self._plain = threading.Event()

    def models(self) -> list[str] | None:
        """Return the names of the models there; None if the server does not tell.

        Raises:
            EndpointError: If nothing answers, or it wants another key.
        """
        try:
            found = self.post("models", None)
        except Refused as error:
            if error.code in (404, 405, 501):
                return None
            raise self._error(error) from None
        entries = found.get("data") if isinstance(found, dict) else None
        if not isinstance(entries, list):
            return None
        return [str(one["id"]) for one in entries if isinstance(one, dict) and "id" in one]

    def ask(self, request: Request) -> Said:
        """Ask one question.

        Raises:
            EndpointError: If it is not answered.
        """
        answer = self._answer(request)
        if isinstance(answer, Failure):
            raise EndpointError(answer.reason)
        return answer

    def ask_all(
        self, requests: Sequence[Request], done: Callable[[], None] = lambda: None
    ) -> list[Said | Failure]:
        """Ask many questions at once; what fails is told in its place, and the rest is kept.

        Args:
            requests: The questions.
            done: Called after each, in the caller's thread.
        """
        pool = ThreadPoolExecutor(max(1, self.endpoint.workers))
        try:
            asked = [pool.submit(self._answer, request) for request in requests]
            for _ in as_completed(asked):
                done()  # in the caller's thread, to which what it shows belongs
            return [one.result() for one in asked]
        finally:
            pool.shutdown(cancel_futures=True)

    # ------------------------------------------------------------------ one request

    def _answer(self, request: Request) -> Said | Failure:
        chat = not isinstance(request.prompt, str)
        body: dict[str, Any] = {
            "model": request.model or self.endpoint.model,
            "max_tokens": request.tokens,
            "temperature": 0,
            "stream": False,
        }
        if chat:
            body["messages"] = [dict(message) for message in request.prompt]  # pyright: ignore[reportArgumentType, reportCallIssue]
            probabilities = {"logprobs": True, "top_logprobs": 5}
        else:
            body["prompt"] = request.prompt
            probabilities = {"logprobs": 5}
        path = "chat/completions" if chat else "completions"
        try:
            return read_said(self._asked(path, body, probabilities))
        except Refused as error:
            return Failure(error.reason)
        except ValueError as error:
            return Failure(f"{self.endpoint.url}: the answer is none of a completion: {error}")

    def _asked(self, path: str, body: dict[str, Any], probabilities: dict[str, Any]) -> Any:
        """Ask with log probabilities, and without where the server does not give them."""
        if not self._plain.is_set():
            try:
                return self.post(path, body | probabilities)
            except Refused as error:
                if error.code not in (400, 422) or "logprob" not in error.reason.lower():
                    raise
                self._plain.set()
        return self.post(path, body)

    def post(self, path: str, body: Mapping[str, Any] | None) -> Any:
        """Make a request, again where that may help, and return what JSON says.

        Args:
            path: Behind the endpoint's address.
            body: What is sent; None: nothing (GET).

        Raises:
            Refused: If it fails.
        """
        tries = 0
        while True:
            try:
                return self._once(path, body)
            except Refused as error:
                if error.wait is None or tries >= self.endpoint.retries or self._down.is_set():
                    if error.code == 0:
                        self._down.set()  # the questions behind it do not wait as well
                    raise
                self._sleep(max(error.wait, 0.5 * 2**tries))
                tries += 1

    def _once(self, path: str, body: Mapping[str, Any] | None) -> Any:
        url = f"{self.endpoint.url}/{path}"
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if self.endpoint.key:
            headers["Authorization"] = f"Bearer {self.endpoint.key}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, headers)
        try:
            with open_here(request, self.endpoint.timeout) as reply:
                raw = reply.read(LARGEST + 1)
        except urllib.error.HTTPError as error:
            with error:
                raise _refusal(url, error) from None
        except TimeoutError:
            seconds = f"{self.endpoint.timeout:g} seconds"
            raise Refused(0, f"{url} gives no answer within {seconds}", 0.0) from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            why = getattr(error, "reason", None) or error
            if isinstance(why, TimeoutError):
                seconds = f"{self.endpoint.timeout:g} seconds"
                raise Refused(0, f"{url} gives no answer within {seconds}", 0.0) from None
            text = getattr(why, "strerror", None) or str(why) or type(why).__name__
            raise Refused(0, f"nothing answers at {url}: {text}", 0.0) from None
        if len(raw) > LARGEST:
            raise Refused(200, f"{url} answers with more than {LARGEST >> 20} MB")
        try:
            return json.loads(raw)
        except (ValueError, RecursionError):
            begin = raw[:60].decode("utf-8", "replace").strip()
            reason = f"{url} answers with something that is no JSON: {begin!r}"
            raise Refused(200, reason) from None

    def _error(self, error: Refused) -> EndpointError:
        hint = None
        if error.code in (401, 403):
            hint = f"Put the key into the environment: {KEYS[0]}=…"
        elif error.code == 0:
            hint = "Is the server up? Give its address: --endpoint http://HOST:PORT/v1"
        elif error.code == 200:
            hint = "Is it an OpenAI-compatible server? Its address: --endpoint http://HOST:PORT/v1"
        elif error.code in AGAIN:
            hint = "Ask less at once, and more patiently: --workers 1 --retries 10"
        return EndpointError(error.reason, hint)


def _refusal(url: str, error: urllib.error.HTTPError) -> Refused:
    """Read an answer that is an error."""
    if 300 <= error.code < 400:
        where = error.headers.get("Location", "elsewhere")
        return Refused(error.code, f"{url} sends us to {where}: give that address instead")
    told = _told(error) or error.reason
    text = " ".join(str(told).split())[:200]
    what = {401: "wants another key", 403: "does not allow this", 429: "is asked too often"}
    reason = f"{url} {what.get(error.code, f'answers {error.code}')}: {text}"
    wait = _seconds(error.headers.get("Retry-After")) if error.code in AGAIN else None
    return Refused(error.code, reason, wait)


def _told(error: urllib.error.HTTPError) -> Any:
    """Return what a server says of an error: a message in JSON, or plain text."""
    try:
        raw = error.read(LARGEST).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        told = json.loads(raw)
    except (ValueError, RecursionError):
        return raw if raw.lstrip()[:1] not in ("<", "{", "[") else ""  # a page says nothing
    told = told.get("error", told) if isinstance(told, dict) else told
    return told.get("message", told) if isinstance(told, dict) else told


def _seconds(text: str | None) -> float:
    """Return how long a server asks to wait; 0 if it does not say so in seconds."""
    try:
        asked = float(text or 0)
    except ValueError:
        return 0.0
    return min(max(asked, 0.0), LONGEST_WAIT) if math.isfinite(asked) else 0.0
