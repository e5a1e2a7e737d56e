"""What servers answer: a text, and the log probabilities of its tokens where they are given."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Said:
    """An answer.

    Attributes:
        text: What the model says.
        model: What the server calls who said it.
        tokens: Its tokens with their log probabilities; empty where the server gives none.
        first: The most probable first tokens with their log probabilities.
    """

    text: str
    model: str = ""
    tokens: tuple[tuple[str, float], ...] = ()
    first: Mapping[str, float] = field(default_factory=dict)

    def begins(self, target: str) -> bool:
        """Whether the model says a target first, as whole words."""
        said, wanted = self.text.lstrip(), target.strip()
        behind = said[len(wanted) : len(wanted) + 1]
        inside = wanted[-1:].isalnum() and behind.isalnum()
        return said.startswith(wanted) and not (inside and (wanted[-1] + behind).isascii())

    def holds(self, target: str) -> bool:
        """Whether a target stands anywhere in the answer, as whole words."""
        wanted = target.strip()
        ends = [r"(?<![A-Za-z0-9])" if wanted[0].isascii() and wanted[0].isalnum() else ""]
        ends += [r"(?![A-Za-z0-9])" if wanted[-1].isascii() and wanted[-1].isalnum() else ""]
        return re.search(re.escape(wanted).join(ends), self.text) is not None

    def probability(self, target: str) -> float | None:
        """Return the probability of a target; None where the server's answer does not tell it.

        It is known of what the model says by itself, and of targets of one token that are among the
        most probable ones.
        """
        wanted = target.strip()
        total, joined = 0.0, ""
        for text, logprob in self.tokens:
            joined, total = joined + text, total + logprob
            said = joined.strip()
            if said == wanted:
                return math.exp(total)
            if said and not wanted.startswith(said):
                break
        for text, logprob in self.first.items():
            if text.strip() == wanted:
                return math.exp(logprob)
        return None


def read_said(document: Any) -> Said:
    """Read the answer of a completion or of a chat.

    Raises:
        ValueError: If it is neither.
    """
    try:
        choice = document["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
    except (TypeError, KeyError, IndexError):
        raise ValueError(f"{str(document)[:80]!r}") from None
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise ValueError(f"its text is {str(text)[:40]!r}")
    tokens, first = _probabilities(choice.get("logprobs"))
    return Said(text, str(document.get("model", "")), tokens, first)


def _probabilities(told: Any) -> tuple[tuple[tuple[str, float], ...], dict[str, float]]:
    """Read log probabilities, as completions or chats have them; what is odd counts as none."""
    if not isinstance(told, dict):
        return (), {}
    try:
        if isinstance(told.get("content"), list):
            entries = told["content"]
            pairs = [(str(one["token"]), float(one["logprob"])) for one in entries]
            options = entries[0].get("top_logprobs") or [] if entries else []
            first = {str(one["token"]): float(one["logprob"]) for one in options}
        else:
            pairs = [
                (str(token), float(value))
                for token, value in zip(told["tokens"], told["token_logprobs"], strict=True)
            ]
            first = {str(k): float(v) for k, v in ((told.get("top_logprobs") or [{}])[0]).items()}
    except (TypeError, KeyError, ValueError, IndexError, AttributeError):
        return (), {}
    if not all(math.isfinite(value) for _, value in pairs):
        return (), {}
    return tuple(pairs), first
