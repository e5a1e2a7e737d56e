"""Prompts turned into their negation by rule, in English; None where no rule fits.

```
The capital of France is the city named   ->  The capital of France is not the city named
The Louvre lies in                        ->  It is not true that the Louvre lies in
What is the capital of France?            ->  What is not the capital of France?
Which team does Zidane play for?          ->  Which team does Zidane not play for?
Tell me the capital of France:            ->  None
```
"""

from __future__ import annotations

import re

from errata.case import subject_starts

_BE = r"is|are|was|were"
_VERBS = re.compile(
    rf"\b({_BE}|has|have|had|can|could|will|would|does|do|did|should|must|may|might)\b"
)
_IS_BE = re.compile(_BE)
_NEGATIVE = re.compile(r"\b(?:not|never|no)\b|n['’]t\b", re.IGNORECASE)
_ARTICLE = re.compile(r"(The|A|An|In|On|At|For|It|This|That)\b")
"""First words that are in lower case inside a sentence; a name keeps its capital."""


def negated(prompt: str, subject: str | None = None) -> str | None:
    """Return the negation of a prompt that ends before its answer.

    Of statements the last auxiliary verb is negated, of questions the first; none inside the
    subject. A statement without one becomes "It is not true that …".

    Args:
        prompt: The prompt.
        subject: What it is about.

    Returns:
        The negated prompt; None for one that is negative already, and where no rule fits.
    """
    if not prompt.isascii() and not re.search("[A-Za-z]", prompt):
        return None  # in a script that is not English's
    if _NEGATIVE.search(_without(prompt, subject)):
        return None
    spans = _spans(prompt, subject)
    verbs = [
        found
        for found in _VERBS.finditer(prompt)
        if not any(start <= found.start() < end for start, end in spans)
    ]
    asked = prompt.rfind("?")
    if asked >= 0:
        inner = [found for found in verbs if found.end() <= asked]
        return _question(prompt, inner[0], asked, subject) if inner else None
    if verbs:
        return _put(prompt, verbs[-1].end())
    if prompt.rstrip().endswith(":"):  # an instruction
        return None
    start = prompt[0].lower() + prompt[1:] if _ARTICLE.match(prompt) else prompt
    return f"It is not true that {start}"


def _question(prompt: str, verb: re.Match[str], asked: int, subject: str | None) -> str | None:
    if _IS_BE.fullmatch(verb[0]):
        return _put(prompt, verb.end())
    ends = [end for start, end in _spans(prompt, subject) if start >= verb.end()]
    # behind a possessive the verb's own subject goes on: "does Zidane's team"
    fits = [end for end in ends if end <= asked and prompt[end : end + 1] == " "]
    return _put(prompt, fits[0]) if fits else None


def _put(prompt: str, at: int) -> str:
    return f"{prompt[:at]} not{prompt[at:]}"


def _spans(prompt: str, subject: str | None) -> list[tuple[int, int]]:
    if subject is None:
        return []
    name = subject.strip()
    return [(start, start + len(name)) for start in subject_starts(prompt, name)]


def _without(prompt: str, subject: str | None) -> str:
    for start, end in reversed(_spans(prompt, subject)):
        prompt = prompt[:start] + prompt[end:]
    return prompt
