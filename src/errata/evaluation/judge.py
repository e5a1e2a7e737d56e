"""A judge of free answers, beside exact match: `contains`, a function of yours, or an endpoint.

`contains` looks whether an accepted answer stands anywhere in what is said: no proof that the model
means it ("not Rome"), but it tells an answer in a sentence, as models give it in a chat, from none.

An endpoint is one that speaks OpenAI's chat completions (`POST URL/chat/completions`). Its key is
read from the environment (`ERRATA_JUDGE_KEY`) and from nowhere else. Verdicts are kept in the
cache folder as they come, so that a run that fails in the middle asks only for the rest.

```python
errata.evaluate(lm, "rome", cases, protocol="wild", judge=lambda question, answers, said: ...)
```
"""

from __future__ import annotations

import json
import logging
import os
import re
import string
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from errata.errors import ConfigError, ErrataError, RunError
from errata.served import client as served
from errata.served.client import Refused
from errata.store.cache import digest, load_json, save_json
from errata.store.files import cache_root

log = logging.getLogger(__name__)

KEY = "ERRATA_JUDGE_KEY"
PROMPT = """You compare an answer to a question with the accepted answers.

Question: {question}
Accepted answers: {answers}
Given answer: {said}

The given answer is CORRECT only if it holds all important information of one accepted answer, \
contradicts it nowhere, and neither repeats itself nor adds other answers; else it is INCORRECT.
Reply with one letter: A for CORRECT, B for INCORRECT."""
"""Temperature 0; after Yang et al. 2025 (arXiv:2502.11177)."""

FORMAT = 1
SHOWN = 200


class Item(NamedTuple):
    """What a judge is shown.

    Attributes:
        question: The question as the data set has it.
        answers: Accepted answers.
        said: What the model said.
    """

    question: str
    answers: tuple[str, ...]
    said: str


Function = Callable[[str, Sequence[str], str], Any]
"""A judge: question, accepted answers, what was said; true if it is right."""

Judge = Callable[[Sequence[Item]], list[bool]]


def contains(question: str, answers: Sequence[str], said: str) -> bool:
    """Return whether an accepted answer stands in a text, word for word.

    Both are normalised as SQuAD does; an answer of which nothing is left then stands nowhere.
    """
    text = f" {squad(said)} "
    found = (squad(answer) for answer in answers)
    return any(answer and f" {answer} " in text for answer in found)


def by_function(function: Function) -> Judge:
    """Return a judge that asks a function, one answer after another."""
    return lambda items: [bool(function(*item)) for item in items]


def squad(text: str) -> str:
    """Return text as SQuAD compares it: lower case, without punctuation and English articles."""
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(?:a|an|the)\b", " ", kept).split())


def name_of(function: Function) -> str:
    """Return the name by which runs tell functions apart."""
    own = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', '')}.{own}"


@dataclass(frozen=True)
class Endpoint:
    """A judge behind an OpenAI-compatible endpoint.

    Attributes:
        url: Its base, up to `/v1`.
        model: The model it is asked for.
        timeout: Seconds without an answer before a question counts as lost.
        retries: How often a lost question is asked again.
        together: Questions under way at a time.
        sleep: Waits some seconds before a retry; replaced in tests.
    """

    url: str
    model: str
    timeout: float = 60.0
    retries: int = 4
    together: int = 4
    sleep: Callable[[float], None] = time.sleep

    def __post_init__(self) -> None:
        check_url(self.url)

    def __call__(self, items: Sequence[Item]) -> list[bool]:
        """Return a verdict on each answer.

        Raises:
            RunError: If the endpoint cannot be asked; the verdicts so far are kept.
        """
        wanted = list(dict.fromkeys(items))
        with ThreadPoolExecutor(max_workers=self.together) as pool:
            asked = [pool.submit(self._verdict, item) for item in wanted]
            try:
                found = {item: one.result() for item, one in zip(wanted, asked, strict=True)}
            except BaseException:
                for one in asked:
                    one.cancel()
                raise
        return [found[item] for item in items]

    def _verdict(self, item: Item) -> bool:
        text = PROMPT.format(
            question=item.question, answers=json.dumps(item.answers, ensure_ascii=False),
            said=item.said.strip() or "(nothing)",
        )  # fmt: skip
        path = cache_root() / "judge" / f"{digest(FORMAT, self.model, text)}.json"
        kept = load_json(path)
        if isinstance(kept, bool):
            return kept
        verdict = self._asked(text)
        try:
            save_json(path, verdict)
        except ErrataError as error:
            log.warning("a verdict cannot be kept in %s: %s", path, error.message)
        return verdict

    def _asked(self, text: str) -> bool:
        """Ask until there is a verdict, at most as often as allowed."""
        body = {
            "model": self.model, "temperature": 0,
            "messages": [{"role": "user", "content": text}],
        }  # fmt: skip
        reason = ""
        for _ in range(self.retries + 1):
            try:
                found = self._client.post("chat/completions", body)
            except Refused as error:
                if error.code != 200:
                    raise self._failure(error.reason, error.code) from None
                reason = error.reason
                continue
            reply = _reply(found)
            verdict = None if reply is None else read(reply)
            if verdict is not None:
                return verdict
            shown = json.dumps(found) if reply is None else repr(reply)
            reason = f"neither A nor B but {shown[:SHOWN]}"
        raise self._failure(f"{reason} ({self.retries + 1} times)", None)

    @cached_property
    def _client(self) -> served.Client:
        key = os.environ.get(KEY) or None
        where = served.Endpoint(
            served.address(self.url),
            self.model,
            timeout=self.timeout,
            retries=self.retries,
            key=key,
        )
        return served.Client(where, self.sleep)

    def _failure(self, reason: str, code: int | None) -> RunError:
        hint = "Verdicts so far are kept: go on with --resume when the endpoint answers."
        if code in (401, 403):
            hint = f"Set its key in the environment variable {KEY}."
        elif code is not None and 300 <= code < 500:
            hint = "Check --judge (the address up to /v1) and --judge-model."
        return RunError(f"the judge {self.model} gave no verdict: {reason}", hint)


_WORD = r"\b(A|B|CORRECT|INCORRECT)\b"
_FIRST = re.compile(rf"\W*{_WORD}\W*?(?:$|[.:),\n])")
_LAST = re.compile(rf"{_WORD}\W*$")


def read(reply: str) -> bool | None:
    """Return the verdict that a reply begins or ends with; None if it has none.

    Not every first A is a verdict: "A correct answer would be …".
    """
    text = re.sub(r"<think>.*?</think>", "", reply, flags=re.DOTALL).strip()
    found = _FIRST.match(text) or _LAST.search(text)
    return None if found is None else found[1] in ("A", "CORRECT")


def check_url(url: str) -> str:
    """Return an address of an endpoint.

    Raises:
        ConfigError: If it is none, or holds a password.
    """
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(
            f"judge {url!r} is not the address of an endpoint",
            "Example: --judge http://localhost:8000/v1 --judge-model NAME",
        )
    if parts.username or parts.password or parts.query:
        raise ConfigError(
            "the address of the judge holds a key: it would be written into the run folder",
            f"Set it in the environment variable {KEY}.",
        )
    return url


def _reply(found: Any) -> str | None:
    """Return the text of a chat completion; None if it is none."""
    try:
        content = found["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    return content if isinstance(content, str) else ""
