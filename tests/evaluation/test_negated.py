"""Negated prompts, by hand."""

from __future__ import annotations

import pytest

from errata.evaluation.negated import negated

BY_HAND = [
    ("The capital of France is the city named", "France",
     "The capital of France is not the city named"),
    ("Everybody agrees that for France the capital is said to be", "France",
     "Everybody agrees that for France the capital is not said to be"),
    ("The country where Anna was born is", "Anna", "The country where Anna was born is not"),
    ("The Louvre lies in", "The Louvre", "It is not true that the Louvre lies in"),
    ("Zidane plays for", "Zidane", "It is not true that Zidane plays for"),
    ("What is the capital of France?", "France", "What is not the capital of France?"),
    ("Question: what is the capital of France? Answer:", "France",
     "Question: what is not the capital of France? Answer:"),
    ("Which team does Zidane play for?", "Zidane", "Which team does Zidane not play for?"),
    ("Which city has Zidane's mother lived in?", "Zidane", None),
    ("Which team does he play for?", None, None),
    ("Tell me the capital of France. Answer:", "France", None),
    ("The capital of France is not", "France", None),
    ("France doesn't border", "France", None),
    ("中国的首都是", "中国", None),
    # verbs and negatives inside a name are part of it
    ("This Is England, where it is at was directed by", "This Is England, where it is at",
     "This Is England, where it is at was not directed by"),
    ("Never Let Me Go was written by", "Never Let Me Go",
     "Never Let Me Go was not written by"),
]  # fmt: skip


@pytest.mark.parametrize(("prompt", "subject", "expected"), BY_HAND)
def test_by_hand(prompt: str, subject: str | None, expected: str | None) -> None:
    assert negated(prompt, subject) == expected


def test_a_negation_is_not_negated_again() -> None:
    once = negated("The capital of France is", "France")
    assert once is not None
    assert negated(once, "France") is None
